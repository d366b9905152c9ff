//! Lines of all nodes as one: each node keeps what its own containers printed.
//!
//! Whoever reads asks its own node, which asks the others. A place in all of them is a [`Place`]: one cursor a node.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{join_all, select_all};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_peer::{Service, Stream};
use shoal_raft::Raft;
use shoal_state::NodeId;
use shoal_worker::log::{Batch, Counts, Cursor, Entry, Filter, LogStore, fitting};

use super::blocking;
use super::error::Error;
use crate::peers::{self, Peers};

/// Lines of another node.
const LOGS: Service = Service::new(5, "read what its containers printed");
/// How much longer than it was asked to wait a node may take.
const PEER_WAIT: Duration = Duration::from_secs(5);

/// What one node asks of the lines of another.
#[derive(Debug, Serialize, Deserialize)]
enum Asked {
    Follow {
        filter: Filter,
        cursor: Cursor,
        wait_ms: u64,
    },
    Fetch {
        filter: Filter,
        limit: usize,
    },
    Count {
        filter: Filter,
        bucket_ns: u64,
    },
    /// Where its lines end now.
    End,
}

/// A place among the lines of all nodes: written `FILE-OFFSET` for a node that is alone, else `NODE:FILE-OFFSET,…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place(BTreeMap<Option<NodeId>, Cursor>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (node, cursor)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { "," };
            match node {
                None => write!(f, "{comma}{cursor}")?,
                Some(node) => write!(f, "{comma}{node}:{cursor}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let part = |part: &str| match part.split_once(':') {
            None => Ok((None, part.parse().map_err(drop)?)),
            Some((node, cursor)) => Ok((Some(node.parse().map_err(drop)?), cursor.parse().map_err(drop)?)),
        };
        text.split(',').filter(|part| !part.is_empty()).map(part).collect::<Result<_, ()>>().map(Self)
    }
}

impl Place {
    fn at(&self, node: Option<NodeId>) -> Cursor {
        self.0.get(&node).copied().unwrap_or(Cursor::START)
    }
}

/// What was found, and where to go on.
#[derive(Debug)]
pub(crate) struct Found {
    /// The lines.
    pub(crate) entries: Vec<Entry>,
    /// Everything before it is in `entries`, or did not match, or is on a node that could not be asked.
    pub(crate) place: Place,
}

/// The lines of all nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct JoinedLogs {
    logs: LogStore,
    /// The way to the others; none where there are none.
    road: Option<(Peers, Raft)>,
}

/// Answers for the lines of this node from now on, and reads those of others.
pub(crate) fn start(peers: &Peers, raft: &Raft, logs: &LogStore) -> JoinedLogs {
    let served = logs.clone();
    peers.endpoint.serve(LOGS, move |stream, _| serve(stream, served.clone()));
    JoinedLogs { logs: logs.clone(), road: Some((peers.clone(), raft.clone())) }
}

async fn serve(mut stream: Stream, logs: LogStore) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let answer = async {
        match postcard::from_bytes(&asked).map_err(|error| error.to_string())? {
            Asked::Follow { filter, cursor, wait_ms } => {
                let found = logs.follow(&filter, cursor, Duration::from_millis(wait_ms)).await.map_err(|error| error.to_string())?;
                Ok(written(&found))
            }
            Asked::Fetch { filter, limit } => {
                let found = blocking(move || logs.fetch(&filter, limit)).await.map_err(|error| error.to_string())?;
                Ok(written(&found))
            }
            Asked::End => Ok(written(&logs.end())),
            Asked::Count { filter, bucket_ns } => {
                let found = blocking(move || logs.count(&filter, bucket_ns)).await.map_err(|error| error.to_string())?;
                Ok(written(&found))
            }
        }
    };
    let answer: Result<Bytes, String> = tokio::select! {
        answer = answer => answer,
        // Whoever asked has got lines from elsewhere.
        () = stream.closed() => return,
    };
    let done = match answer {
        Ok(answer) => stream.send(answer).await.and_then(|()| stream.finish()),
        Err(why) => stream.fail(&why).await,
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a node did not wait for lines");
    }
}

fn written(found: &impl Serialize) -> Bytes {
    postcard::to_stdvec(found).expect("lines can be written").into()
}

impl JoinedLogs {
    /// Reads the lines of one node alone.
    #[cfg(test)]
    pub(crate) fn alone(logs: LogStore) -> Self {
        Self { logs, road: None }
    }

    /// Returns this node and the others.
    fn nodes(&self) -> (Option<NodeId>, Vec<(NodeId, String)>) {
        self.road.as_ref().map_or_else(Default::default, |(_, raft)| (Some(raft.node()), peers::others(raft)))
    }

    async fn ask<T: DeserializeOwned>(&self, node: NodeId, address: &str, asked: &Asked, wait: Duration) -> Result<T, Error> {
        let (peers, _) = self.road.as_ref().ok_or_else(|| Error::Unavailable("there is no way to other nodes".to_owned()))?;
        let request = postcard::to_stdvec(asked).expect("a question can be written").into();
        let answer = peers.endpoint.call(node, address, LOGS, request, wait + PEER_WAIT).await;
        let answer = answer.map_err(|error| Error::Unavailable(error.to_string()))?;
        postcard::from_bytes(&answer).map_err(Error::failed(format!("cannot understand the lines of node {node}")))
    }

    /// Returns lines after `place`, in the order of each node; waits up to `wait` for the first.
    pub(crate) async fn follow(&self, filter: &Filter, place: &Place, wait: Duration) -> Result<Found, Error> {
        let (me, others) = self.nodes();
        let failed = || Error::failed("cannot read the logs");
        let Some(me) = me.filter(|_| !others.is_empty()) else {
            let cursor = place.at(None).max(place.at(me));
            let found = self.logs.follow(filter, cursor, wait).await.map_err(failed())?;
            return Ok(Found { entries: found.entries, place: Place([(None, found.cursor)].into()) });
        };
        // A place of the time when this node was alone.
        let own = place.at(Some(me)).max(place.at(None));
        let mut next = Place(place.0.iter().filter(|(node, _)| node.is_some()).map(|(node, cursor)| (*node, *cursor)).collect());
        next.0.insert(Some(me), own);
        let mut asked = Vec::new();
        let here = async { (me, self.logs.follow(filter, own, wait).await.map_err(failed())) };
        asked.push(Box::pin(here) as futures::future::BoxFuture<'_, (NodeId, Result<Batch, Error>)>);
        for (node, address) in &others {
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let question = Asked::Follow { filter: filter.clone(), cursor: place.at(Some(*node)), wait_ms };
            asked.push(Box::pin(async move { (*node, self.ask(*node, address, &question, wait).await) }));
        }
        // The first that has lines ends the wait; the others are asked again from where they were.
        let mut entries = Vec::new();
        while !asked.is_empty() {
            let ((node, found), _, rest) = select_all(asked).await;
            asked = rest;
            match found {
                Ok(found) => {
                    next.0.insert(Some(node), found.cursor);
                    entries = found.entries;
                }
                Err(error) if node == me => return Err(error),
                Err(error) => tracing::debug!(%node, %error, "the lines of a node are left out for now"),
            }
            if !entries.is_empty() {
                break;
            }
        }
        Ok(Found { entries, place: next })
    }

    /// Returns the newest lines of all nodes, oldest first, at most `limit`, and the place behind them.
    pub(crate) async fn fetch(&self, filter: &Filter, limit: usize) -> Result<Found, Error> {
        let (logs, of) = (self.logs.clone(), filter.clone());
        let own = blocking(move || logs.fetch(&of, limit)).await.map_err(Error::failed("cannot read the logs"))?;
        let (me, others) = self.nodes();
        let mut found = Found { entries: own.entries, place: Place([(me.filter(|_| !others.is_empty()), own.cursor)].into()) };
        let asked = Asked::Fetch { filter: filter.clone(), limit };
        let more = others.iter().map(async |(node, address)| (*node, self.ask::<Batch>(*node, address, &asked, Duration::ZERO).await));
        for (node, other) in join_all(more).await {
            match other {
                Ok(other) => {
                    found.entries.extend(other.entries);
                    found.place.0.insert(Some(node), other.cursor);
                }
                Err(error) => tracing::warn!(%error, "the lines of a node are left out"),
            }
        }
        if !others.is_empty() {
            found.entries.sort_by_key(|entry| entry.timestamp_ns);
            let surplus = found.entries.len().saturating_sub(limit);
            found.entries.drain(..surplus);
            found.entries = fitting(found.entries);
        }
        Ok(found)
    }

    /// Begins to read all lines that there are now, of all nodes, oldest first.
    pub(crate) async fn read(&self, filter: Filter) -> Reading {
        let (me, others) = self.nodes();
        let own = Source::new(me.filter(|_| !others.is_empty()), String::new(), self.logs.end());
        let ends = others
            .iter()
            .map(async |(node, address)| (*node, address.clone(), self.ask::<Cursor>(*node, address, &Asked::End, Duration::ZERO).await));
        let mut sources = vec![own];
        for (node, address, end) in join_all(ends).await {
            match end {
                Ok(end) => sources.push(Source::new(Some(node), address, end)),
                Err(error) => tracing::warn!(%error, "the lines of a node are left out"),
            }
        }
        Reading { logs: self.clone(), filter, sources }
    }

    /// Counts the lines of all nodes in buckets of so many nanoseconds.
    pub(crate) async fn count(&self, filter: &Filter, bucket_ns: u64) -> Result<BTreeMap<u64, Counts>, Error> {
        let (logs, of) = (self.logs.clone(), filter.clone());
        let mut counted = blocking(move || logs.count(&of, bucket_ns)).await.map_err(Error::failed("cannot read the logs"))?;
        let asked = Asked::Count { filter: filter.clone(), bucket_ns };
        let (_, others) = self.nodes();
        let more = others.iter().map(|(node, address)| self.ask::<BTreeMap<u64, Counts>>(*node, address, &asked, Duration::ZERO));
        for other in join_all(more).await {
            match other {
                Ok(other) => {
                    for (at, counts) in other {
                        let all = counted.entry(at).or_default();
                        all.stdout += counts.stdout;
                        all.stderr += counts.stderr;
                        all.system += counts.system;
                    }
                }
                Err(error) => tracing::warn!(%error, "the lines of a node are not counted"),
            }
        }
        Ok(counted)
    }
}

/// The lines of one node, as they are read.
struct Source {
    node: Option<NodeId>,
    /// Empty for this node.
    address: String,
    cursor: Cursor,
    end: Cursor,
    waiting: VecDeque<Entry>,
}

impl Source {
    fn new(node: Option<NodeId>, address: String, end: Cursor) -> Self {
        Self { node, address, cursor: Cursor::START, end, waiting: VecDeque::new() }
    }

    fn is_done(&self) -> bool {
        self.cursor >= self.end
    }
}

/// Reads the lines of all nodes up to where they ended when it began, oldest first, a piece of each at a time.
pub(crate) struct Reading {
    logs: JoinedLogs,
    filter: Filter,
    sources: Vec<Source>,
}

impl Reading {
    /// Returns the next lines; none when there are no more. A piece may be empty.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<Entry>>, Error> {
        if self.sources.iter().all(|source| source.is_done() && source.waiting.is_empty()) {
            return Ok(None);
        }
        let (logs, filter) = (&self.logs, &self.filter);
        join_all(
            self.sources.iter_mut().filter(|source| source.waiting.is_empty() && !source.is_done()).map(|source| logs.more(filter, source)),
        )
        .await
        .into_iter()
        .collect::<Result<(), Error>>()?;
        let mut entries = Vec::new();
        // What a node has not told yet may be older than what others have.
        while self.sources.iter().all(|source| source.is_done() || !source.waiting.is_empty()) {
            let with_lines = self.sources.iter_mut().filter(|source| !source.waiting.is_empty());
            let Some(oldest) = with_lines.min_by_key(|source| source.waiting.front().map(|entry| entry.timestamp_ns)) else { break };
            entries.extend(oldest.waiting.pop_front());
        }
        Ok(Some(entries))
    }

    /// Returns the place behind what was read.
    pub(crate) fn place(&self) -> Place {
        Place(self.sources.iter().map(|source| (source.node, source.cursor)).collect())
    }
}

impl JoinedLogs {
    /// Reads on in the lines of a node. One that cannot be asked is left out from here on.
    async fn more(&self, filter: &Filter, source: &mut Source) -> Result<(), Error> {
        let found: Batch = match source.node.filter(|_| !source.address.is_empty()) {
            None => self.logs.follow(filter, source.cursor, Duration::ZERO).await.map_err(Error::failed("cannot read the logs"))?,
            Some(node) => {
                let asked = Asked::Follow { filter: filter.clone(), cursor: source.cursor, wait_ms: 0 };
                match self.ask(node, &source.address, &asked, Duration::ZERO).await {
                    Ok(found) => found,
                    Err(error) => {
                        tracing::warn!(%error, "the rest of the lines of a node is left out");
                        source.end = source.cursor;
                        return Ok(());
                    }
                }
            }
        };
        if found.entries.is_empty() && found.cursor <= source.cursor {
            source.end = source.cursor;
        }
        source.cursor = found.cursor;
        source.waiting = found.entries.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_version_6_ask_and_tell_of_lines_is_understood() {
        hold::<Asked>("what is asked of lines", include_str!("../../tests/written/6/logs-asked.txt"), 0);
        hold::<Batch>("lines", include_str!("../../tests/written/6/logs-batch.txt"), 0);
        hold::<Cursor>("a place in the lines", include_str!("../../tests/written/6/logs-cursor.txt"), 0);
        hold::<BTreeMap<u64, Counts>>("numbers of lines", include_str!("../../tests/written/6/logs-counts.txt"), 0);
    }

    #[test]
    fn a_place_is_read_as_it_is_written() {
        let (one, two) = (NodeId::from_random(1), NodeId::from_random(2));
        let cursor = |text: &str| text.parse::<Cursor>().unwrap();
        for place in [
            Place::default(),
            Place([(None, cursor("1-20"))].into()),
            Place([(Some(one), cursor("1-20")), (Some(two), cursor("3-4"))].into()),
        ] {
            assert_eq!(place.to_string().parse(), Ok(place));
        }
        assert!("what".parse::<Place>().is_err() && "no-1:".parse::<Place>().is_err());
    }
}
