//! Data of generators, put by a container and read by whoever waits for the call, from node to node.

use std::time::Duration;

use futures::future::{join_all, select_all};
use shoal_state::{CallId, NodeId};

use super::away::{Asked, Told, strange};
use super::error::Error;
use super::handle::{Calls, millis};
#[cfg(doc)]
use super::streams::Streams;
use super::streams::{DataChunk, Direction, StreamKey};

/// How long is tried to tell a call's home, and to hear from it, where its data are.
const HOME_WAIT: Duration = Duration::from_secs(30);

/// How long is waited between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Calls {
    /// Names the data of a call's try that counts: others may have come before it.
    pub async fn data_key(&self, call: CallId, direction: Direction) -> Result<StreamKey, Error> {
        let retry_count = self.inputs(call).await?.first().map_or(0, |input| input.retry_count);
        Ok(StreamKey::of_try(call, retry_count, direction))
    }

    /// Puts chunks at the end of a stream of a call's data, at this node: that of the container. See [`Streams::put`].
    pub async fn put_data(&self, key: &StreamKey, chunks: Vec<DataChunk>, wait: Duration) -> Result<(), Error> {
        let origins = self.streams().origins();
        match self.away.home_of(key.call) {
            None => origins.note_own(key, None),
            Some(home) if origins.is_told(key, home) => {}
            Some(_) => {
                let home = self.tell_home(key).await?;
                origins.note_own(key, home);
            }
        }
        Ok(self.streams().put(key, chunks, wait).await?)
    }

    /// Tells the home of a call that its data are here. Returns who that is, if it is another node.
    async fn tell_home(&self, key: &StreamKey) -> Result<Option<NodeId>, Error> {
        let asked = Asked::DataHere { key: key.clone(), node: self.away.me };
        let began = self.ground.now();
        loop {
            let Some(home) = self.away.home_of(key.call) else { return Ok(None) };
            match self.ask_away(home, "say where data of a call are", Duration::ZERO, &asked).await {
                Ok(Told::Done) => return Ok(Some(home)),
                Ok(other) => return Err(strange(home, &other)),
                Err(error) if self.ground.now() > began + HOME_WAIT => return Err(error),
                Err(_) => self.ground.sleep(TRY_AGAIN_AFTER).await,
            }
        }
    }

    /// Returns chunks of a stream of a call's data, from where they are. See [`Streams::get`].
    pub async fn get_data(&self, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        let began = self.ground.now();
        loop {
            let left = wait.saturating_sub(self.ground.now() - began);
            match self.get_once(key, after, bytes_max, left).await {
                Ok(chunks) => return Ok(chunks),
                // The node of the container, or the home, is lost: what it did is done again elsewhere.
                Err(Error::Away { .. }) if !left.is_zero() => self.ground.sleep(TRY_AGAIN_AFTER.min(left)).await,
                Err(Error::Away { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn get_once(&self, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        let began = self.ground.now();
        let mut asked: Vec<_> = Vec::new();
        for node in self.where_data(key, wait).await? {
            let left = wait.saturating_sub(self.ground.now() - began);
            asked.push(Box::pin(self.get_from(node, key, after, bytes_max, left)));
        }
        let (mut failed, mut answered) = (None, asked.is_empty());
        while !asked.is_empty() {
            let (got, _, others) = select_all(asked).await;
            asked = others;
            match got {
                Ok(chunks) if chunks.is_empty() => answered = true,
                Ok(chunks) => return Ok(chunks),
                // Others may have it.
                Err(error @ Error::Away { .. }) => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        self.doubt(key);
        match failed {
            Some(error) if !answered => Err(error),
            _ => Ok(Vec::new()),
        }
    }

    async fn get_from(&self, node: NodeId, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        if node == self.away.me {
            return Ok(self.streams().get(key, after, bytes_max, wait).await?);
        }
        let asked = Asked::GetData { key: key.clone(), after, bytes_max, wait_ms: millis(wait) };
        match self.ask_away(node, "read data of a call", wait, &asked).await? {
            Told::Data(chunks) => Ok(chunks),
            other => Err(strange(node, &other)),
        }
    }

    /// Asks the home again where a stream is, the next time. The home itself is told should that change.
    fn doubt(&self, key: &StreamKey) {
        if self.away.home_of(key.call).is_some() {
            self.streams().origins().doubt(key);
        }
    }

    /// Returns on which nodes a stream is; none when that is not known in time.
    async fn where_data(&self, key: &StreamKey, wait: Duration) -> Result<Vec<NodeId>, Error> {
        let origins = self.streams().origins();
        let Some(home) = self.away.home_of(key.call) else { return Ok(origins.of(key, self.away.me, wait).await) };
        // That there are some here says nothing: they may be of a container whose input was given to another one.
        let found = origins.found(key);
        if !found.is_empty() {
            return Ok(found);
        }
        let asked = Asked::WhereData { key: key.clone(), wait_ms: millis(wait) };
        match self.ask_away(home, "hear where data of a call are", wait, &asked).await? {
            Told::Nodes(nodes) => {
                nodes.iter().rev().for_each(|node| origins.note(key, *node));
                Ok(nodes)
            }
            other => Err(strange(home, &other)),
        }
    }

    /// Waits until what a call has put out was read, up to `wait` for each stream. Returns how many chunks that is. See
    /// [`Streams::read_up`].
    pub async fn read_up(&self, call: CallId, wait: Duration) -> Result<u32, Error> {
        let nodes = match self.away.home_of(call) {
            None => self.streams().origins().of_call(call, self.away.me),
            Some(home) => match self.ask_away(home, "hear where data of a call are", Duration::ZERO, &Asked::WhereAll { call }).await? {
                Told::Nodes(nodes) => nodes,
                other => return Err(strange(home, &other)),
            },
        };
        let read = join_all(nodes.into_iter().map(async |node| match node == self.away.me {
            true => Ok(self.streams().read_up(call, wait).await),
            false => match self.ask_away(node, "wait for readers", wait, &Asked::ReadUp { call, wait_ms: millis(wait) }).await {
                Ok(Told::Chunks(chunks)) => Ok(chunks),
                Ok(other) => Err(strange(node, &other)),
                // What was there nobody reads any more.
                Err(Error::Away { .. }) => Ok(0),
                Err(error) => Err(error),
            },
        }));
        read.await.into_iter().try_fold(0, |all: u32, chunks| Ok(all.saturating_add(chunks?)))
    }
}
