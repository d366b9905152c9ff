//! Data of generators, put by a container and read by whoever waits for the call, from node to node.

use std::time::Duration;

use shoal_state::{CallId, NodeId};
use tokio::time::Instant;

use super::away::{Asked, Told, strange};
use super::error::Error;
use super::handle::{Calls, millis};
#[cfg(doc)]
use super::streams::Streams;
use super::streams::{DataChunk, StreamKey};

/// How long is tried to tell a call's home, and to hear from it, where its data are.
const HOME_WAIT: Duration = Duration::from_secs(30);

/// How long is waited between two tries.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

impl Calls {
    /// Puts chunks at the end of a stream of a call's data, at this node: that of the container. See [`Streams::put`].
    pub async fn put_data(&self, key: &StreamKey, chunks: Vec<DataChunk>, wait: Duration) -> Result<(), Error> {
        let (origins, me) = (self.streams().origins(), self.away.me);
        match self.away.home_of(key.call) {
            None => origins.note(key, me, None),
            Some(home) if origins.is_told(key, me, home) => {}
            Some(_) => {
                let home = self.tell_home(key).await?;
                origins.note(key, me, home);
            }
        }
        Ok(self.streams().put(key, chunks, wait).await?)
    }

    /// Tells the home of a call that its data are here. Returns who that is, if it is another node.
    async fn tell_home(&self, key: &StreamKey) -> Result<Option<NodeId>, Error> {
        let asked = Asked::DataHere { key: key.clone(), node: self.away.me };
        let began = Instant::now();
        loop {
            let Some(home) = self.away.home_of(key.call) else { return Ok(None) };
            match self.ask_away(home, "say where data of a call are", Duration::ZERO, &asked).await {
                Ok(Told::Done) => return Ok(Some(home)),
                Ok(other) => return Err(strange(home, &other)),
                Err(error) if began.elapsed() > HOME_WAIT => return Err(error),
                Err(_) => tokio::time::sleep(TRY_AGAIN_AFTER).await,
            }
        }
    }

    /// Returns chunks of a stream of a call's data, from where they are. See [`Streams::get`].
    pub async fn get_data(&self, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        let began = Instant::now();
        loop {
            let left = wait.saturating_sub(began.elapsed());
            match self.get_once(key, after, bytes_max, left).await {
                Ok(chunks) => return Ok(chunks),
                // The node of the container, or the home, is lost: what it did is done again elsewhere.
                Err(Error::Away { .. }) if !left.is_zero() => tokio::time::sleep(TRY_AGAIN_AFTER.min(left)).await,
                Err(Error::Away { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn get_once(&self, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        let began = Instant::now();
        let Some(node) = self.where_data(key, wait).await? else { return Ok(Vec::new()) };
        let left = wait.saturating_sub(began.elapsed());
        if node == self.away.me {
            return Ok(self.streams().get(key, after, bytes_max, left).await?);
        }
        let asked = Asked::GetData { key: key.clone(), after, bytes_max, wait_ms: millis(left) };
        let told = self.ask_away(node, "read data of a call", left, &asked).await;
        match told {
            Ok(Told::Data(chunks)) => {
                if chunks.is_empty() {
                    self.doubt(key);
                }
                Ok(chunks)
            }
            Ok(other) => Err(strange(node, &other)),
            Err(error) => {
                self.doubt(key);
                Err(error)
            }
        }
    }

    /// Asks the home again where a stream is, the next time. The home itself is told should that change.
    fn doubt(&self, key: &StreamKey) {
        if self.away.home_of(key.call).is_some() {
            self.streams().origins().doubt(key);
        }
    }

    /// Returns on which node a stream is; none when that is not known in time.
    async fn where_data(&self, key: &StreamKey, wait: Duration) -> Result<Option<NodeId>, Error> {
        let origins = self.streams().origins();
        if let Some(known) = origins.of(key, Duration::ZERO).await {
            return Ok(Some(known));
        }
        let Some(home) = self.away.home_of(key.call) else { return Ok(origins.of(key, wait).await) };
        let asked = Asked::WhereData { key: key.clone(), wait_ms: millis(wait) };
        match self.ask_away(home, "hear where data of a call are", wait, &asked).await? {
            Told::Nodes(nodes) => {
                if let Some(node) = nodes.first() {
                    origins.note(key, *node, None);
                }
                Ok(nodes.first().copied())
            }
            other => Err(strange(home, &other)),
        }
    }

    /// Waits until what a call has put out was read, up to `wait` for each stream. Returns how many chunks that is. See
    /// [`Streams::read_up`].
    pub async fn read_up(&self, call: CallId, wait: Duration) -> Result<u32, Error> {
        let nodes = match self.away.home_of(call) {
            None => self.streams().origins().of_call(call),
            Some(home) => match self.ask_away(home, "hear where data of a call are", Duration::ZERO, &Asked::WhereAll { call }).await? {
                Told::Nodes(nodes) => nodes,
                other => return Err(strange(home, &other)),
            },
        };
        let mut chunks: u32 = 0;
        for node in nodes {
            chunks = chunks.saturating_add(match node == self.away.me {
                true => self.streams().read_up(call, wait).await,
                false => match self.ask_away(node, "wait for readers", wait, &Asked::ReadUp { call, wait_ms: millis(wait) }).await? {
                    Told::Chunks(chunks) => chunks,
                    other => return Err(strange(node, &other)),
                },
            });
        }
        Ok(chunks)
    }
}
