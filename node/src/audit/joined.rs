//! The audit logs of all nodes as one, in the order of their clocks: each node keeps what it refused and did itself.
//!
//! Whoever reads asks its own node, which asks the others, and passes on what they send as they send it. What a node has kept is merged;
//! from where all have told what they had, records come in the order in which they arrive. A node that does not answer is named, so that
//! nobody takes what is there for all there is.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{TryFutureExt as _, join_all, select_all};
use futures::stream::{BoxStream, StreamExt as _, try_unfold};
use shoal_peer::{Service, Stream};
use shoal_state::NodeId;
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::{Audit, Record, Wanted};
use crate::api::{Api, blocking};

/// The audit log of another node.
const AUDITS: Service = Service::new(22, "read its audit log");
/// How often a follower without records hears of a node.
const ALIVE_EVERY: Duration = Duration::from_secs(5);
/// How long a node may say nothing until it is left out.
const SILENT_MAX: Duration = Duration::from_secs(15);
/// Records in one piece of an answer.
const PIECE: usize = 500;

/// Records of one node as they come, the oldest first. An empty piece says that all that was there has come, and later that the node is
/// alive. An error is the last item.
pub(crate) type Pieces = BoxStream<'static, Result<Vec<Record>, String>>;

/// What is next in the audit logs of all nodes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// These records, each with the name of its node. None while nothing happens.
    Records(Vec<(String, Record)>),
    /// From here on, what a node has is missing.
    Missing {
        /// The node's name.
        node: String,
        /// Why.
        why: String,
    },
}

/// Lets other nodes read this node's log from now on.
pub(crate) fn serve(api: &Api) {
    let audit = api.audit.clone();
    api.peers.endpoint.serve(AUDITS, move |stream, _| answer(stream, audit.clone()));
}

async fn answer(mut stream: Stream, audit: Audit) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let Ok(wanted) = postcard::from_bytes::<Wanted>(&asked) else {
        return drop(stream.fail("what was asked of the audit log cannot be read").await);
    };
    let mut pieces = pieces(audit, wanted);
    let done = loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = stream.closed() => return,
        };
        let sent = match piece {
            Some(Ok(records)) => stream.send(postcard::to_stdvec(&records).expect("records can be written").into()).await,
            Some(Err(why)) => break stream.fail(&why).await,
            None => break stream.finish(),
        };
        if sent.is_err() {
            break sent;
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a node did not wait for the audit log");
    }
}

/// Reads the log of this node, and goes on with what is written from then on if that is wanted.
pub(crate) fn pieces(audit: Audit, wanted: Wanted) -> Pieces {
    let reading = async move {
        // Asked for before the read: what is written meanwhile is then in one of them, or in both.
        let later = wanted.follow.then(|| audit.follow());
        let (filter, tail) = (wanted.filter.clone(), wanted.tail);
        let found = blocking(move || audit.read(&filter, tail)).await.map_err(|error| format!("it cannot be read: {error}"))?;
        let last = found.last().map_or(0, |record| record.id);
        let reader = Reader { filter: wanted.filter, found: found.into(), told: false, last, later };
        Ok(try_unfold(reader, |mut reader| async move { Ok(reader.next().await?.map(|piece| (piece, reader))) }))
    };
    reading.try_flatten_stream().boxed()
}

struct Reader {
    filter: super::Filter,
    found: VecDeque<Record>,
    /// That all that was found has been passed on is known.
    told: bool,
    /// The id of the last record that was read from the files.
    last: u64,
    later: Option<Receiver<Record>>,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<Vec<Record>>, String> {
        if !self.found.is_empty() {
            return Ok(Some(self.found.drain(..self.found.len().min(PIECE)).collect()));
        }
        if !std::mem::replace(&mut self.told, true) {
            return Ok(Some(Vec::new()));
        }
        let Some(later) = self.later.as_mut() else { return Ok(None) };
        match tokio::time::timeout(ALIVE_EVERY, later.recv()).await {
            Ok(Ok(record)) if record.id > self.last && self.filter.matches(&record) => Ok(Some(vec![record])),
            Ok(Ok(_)) | Err(_) => Ok(Some(Vec::new())),
            Ok(Err(RecvError::Lagged(_))) => Err("more was refused than could be followed; ask again with --since".to_owned()),
            Ok(Err(RecvError::Closed)) => Ok(None),
        }
    }
}

/// The logs of some nodes, merged.
pub(crate) struct Joined {
    sources: Vec<Source>,
    /// Only the newest so many of what was there are passed on.
    tail: Option<usize>,
    missing: VecDeque<(String, String)>,
}

struct Source {
    node: String,
    pieces: Pieces,
    waiting: VecDeque<Record>,
    /// All that was there has come.
    caught_up: bool,
    ended: bool,
}

impl Source {
    /// Takes the next piece; returns why there is none, if that is no good end.
    async fn pull(&mut self) -> Option<String> {
        let why = match tokio::time::timeout(SILENT_MAX, self.pieces.next()).await {
            Ok(Some(Ok(records))) => {
                self.caught_up |= records.is_empty();
                self.waiting.extend(records);
                return None;
            }
            Ok(None) => None,
            Ok(Some(Err(why))) => Some(why),
            Err(_) => Some(format!("it said nothing for {} s", SILENT_MAX.as_secs())),
        };
        (self.caught_up, self.ended) = (true, true);
        why
    }
}

/// Begins to read the logs of all nodes, or of one of them.
pub(crate) fn read(api: &Api, wanted: &Wanted, only: Option<NodeId>) -> Joined {
    let state = api.local();
    let name = |node: NodeId| state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone());
    let mut sources = Vec::new();
    if only.is_none_or(|node| node == api.cluster.node) {
        sources.push((name(api.cluster.node), pieces(api.audit.clone(), wanted.clone())));
    }
    for (node, address) in crate::peers::others(api.cluster.raft()) {
        if only.is_none_or(|only| only == node) {
            sources.push((name(node), pieces_of(api.clone(), node, address, wanted)));
        }
    }
    Joined::new(sources, wanted.tail)
}

/// Reads the log of another node.
fn pieces_of(api: Api, node: NodeId, address: String, wanted: &Wanted) -> Pieces {
    let asked: Bytes = postcard::to_stdvec(wanted).expect("a question can be written").into();
    let reading = async move {
        let mut stream = api.peers.endpoint.open_stream(node, &address, AUDITS).await.map_err(|error| error.to_string())?;
        stream.send(asked).await.map_err(|error| error.to_string())?;
        Ok(try_unfold(stream, |mut stream| async move {
            let Some(piece) = stream.next().await.map_err(|error| error.to_string())? else { return Ok(None) };
            let records = postcard::from_bytes(&piece).map_err(|error| format!("what it says cannot be read: {error}"))?;
            Ok(Some((records, stream)))
        }))
    };
    reading.try_flatten_stream().boxed()
}

impl Joined {
    fn new(sources: Vec<(String, Pieces)>, tail: Option<usize>) -> Self {
        let sources =
            sources.into_iter().map(|(node, pieces)| Source { node, pieces, waiting: VecDeque::new(), caught_up: false, ended: false });
        Self { sources: sources.collect(), tail, missing: VecDeque::new() }
    }

    /// Returns what is next; none when there is no more.
    pub(crate) async fn next(&mut self) -> Option<Next> {
        if let Some((node, why)) = self.missing.pop_front() {
            return Some(Next::Missing { node, why });
        }
        if self.sources.iter().all(|source| source.caught_up) {
            return self.later().await;
        }
        let mut kept = VecDeque::new();
        loop {
            let behind = self.sources.iter_mut().filter(|source| source.waiting.is_empty() && !source.caught_up);
            let whys = join_all(behind.map(async |source| (source.pull().await, source.node.clone()))).await;
            self.missing.extend(whys.into_iter().filter_map(|(why, node)| Some((node, why?))));
            // What a node has not told yet may be older than what others have.
            while self.sources.iter().all(|source| source.caught_up || !source.waiting.is_empty()) {
                let with_records = self.sources.iter_mut().filter(|source| !source.waiting.is_empty());
                let Some(oldest) = with_records.min_by_key(|source| source.waiting.front().map(|record| record.at_ms)) else { break };
                kept.extend(oldest.waiting.pop_front().map(|record| (oldest.node.clone(), record)));
            }
            match self.tail {
                None => break,
                Some(tail) => drop(kept.drain(..kept.len().saturating_sub(tail))),
            }
            if self.sources.iter().all(|source| source.caught_up && source.waiting.is_empty()) {
                break;
            }
        }
        Some(Next::Records(kept.into()))
    }

    /// Waits for what any node tells next.
    async fn later(&mut self) -> Option<Next> {
        let open: Vec<_> = self.sources.iter_mut().filter(|source| !source.ended).map(|source| Box::pin(pulled(source))).collect();
        if open.is_empty() {
            return None;
        }
        // One that is given up here loses nothing: a piece is taken whole or not at all.
        let ((node, why, records), _, _) = select_all(open).await;
        Some(match why {
            Some(why) => Next::Missing { node, why },
            None => Next::Records(records.into_iter().map(|record| (node.clone(), record)).collect()),
        })
    }
}

async fn pulled(source: &mut Source) -> (String, Option<String>, Vec<Record>) {
    let why = source.pull().await;
    (source.node.clone(), why, source.waiting.drain(..).collect())
}

#[cfg(test)]
mod tests {
    use super::super::What;
    use super::*;

    fn record(at_ms: u64, why: &str) -> Record {
        let (who, method, from) = (String::new(), String::new(), String::new());
        Record { id: at_ms, at_ms, what: What::Refused, who, method, from, why: why.to_owned() }
    }

    fn pieces(pieces: Vec<Result<Vec<u64>, &str>>) -> Pieces {
        let pieces: Vec<_> = pieces
            .into_iter()
            .map(|piece| piece.map(|times| times.into_iter().map(|at| record(at, "no")).collect()).map_err(str::to_owned))
            .collect();
        futures::stream::iter(pieces).boxed()
    }

    async fn told(mut joined: Joined) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(next) = joined.next().await {
            match next {
                Next::Records(records) => told.extend(records.iter().map(|(node, record)| format!("{node} {}", record.at_ms))),
                Next::Missing { node, why } => told.push(format!("{node} is missing: {why}")),
            }
        }
        told
    }

    fn two(one: Vec<Result<Vec<u64>, &str>>, other: Vec<Result<Vec<u64>, &str>>, tail: Option<usize>) -> Joined {
        Joined::new(vec![("one".to_owned(), pieces(one)), ("two".to_owned(), pieces(other))], tail)
    }

    #[tokio::test]
    async fn records_of_all_nodes_come_in_the_order_of_their_times() {
        let merged = two(vec![Ok(vec![1, 4]), Ok(vec![9]), Ok(vec![])], vec![Ok(vec![2, 3, 5, 7]), Ok(vec![])], None);
        assert_eq!(told(merged).await, ["one 1", "two 2", "two 3", "one 4", "two 5", "two 7", "one 9"]);
        let newest = two(vec![Ok(vec![1, 4]), Ok(vec![9]), Ok(vec![])], vec![Ok(vec![2, 3, 5, 7]), Ok(vec![])], Some(2));
        assert_eq!(told(newest).await, ["two 7", "one 9"]);
    }

    #[tokio::test]
    async fn what_is_followed_comes_after_what_was_there() {
        let followed = two(vec![Ok(vec![1]), Ok(vec![]), Ok(vec![8])], vec![Ok(vec![2]), Ok(vec![]), Ok(vec![])], None);
        assert_eq!(told(followed).await, ["one 1", "two 2", "one 8"]);
    }

    #[tokio::test]
    async fn a_node_that_breaks_off_is_named_and_the_others_go_on() {
        let broken = two(vec![Ok(vec![1]), Err("gone")], vec![Ok(vec![2]), Ok(vec![]), Ok(vec![6])], None);
        assert_eq!(told(broken).await, ["one 1", "two 2", "one is missing: gone", "two 6"]);
        assert_eq!(told(two(vec![Err("gone")], vec![Ok(vec![])], Some(5))).await, ["one is missing: gone"]);
    }
}
