//! The connections to peers: one each, dialled when there is something to say.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use quinn::Connection;
use shoal_state::{BootId, NodeId};

use crate::admission::Member;
use crate::error::{Error, Result};

/// How long a peer that could not be reached is left alone: those who come meanwhile get the same answer.
pub(crate) const REST: Duration = Duration::from_millis(200);

/// How long a dial is waited for to a peer that was not reached before, where there are others through which it may be.
pub const AGAIN_WAIT: Duration = Duration::from_millis(50);

/// A connection, and who is at its other end.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) member: Arc<Member>,
}

impl Link {
    fn is_up(&self) -> bool {
        self.connection.close_reason().is_none()
    }
}

/// How often a peer has acknowledged something, on which connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    connection: usize,
    times: u64,
}

impl Acknowledged {
    fn of(connection: &Connection) -> Self {
        Self { connection: connection.stable_id(), times: connection.stats().frame_rx.acks }
    }
}

type Dialling = Shared<BoxFuture<'static, Result<Link>>>;

/// The way to a peer.
enum Way {
    Up(Link),
    /// `before`: why it was not reached before.
    Dialling {
        address: String,
        dialling: Dialling,
        before: Option<Error>,
    },
    Failed {
        address: String,
        at: Instant,
        error: Error,
    },
}

impl Way {
    /// Returns why the peer was not reached on this way, if it was not.
    fn failure(&self, node: NodeId, address: &str) -> Option<Error> {
        let unreachable = |why| Error::Unreachable { peer: format!("node {node}"), address: address.to_owned(), why };
        match self {
            Self::Up(link) => match link.connection.close_reason() {
                Some(error @ quinn::ConnectionError::TimedOut) => Some(unreachable(explain(&error))),
                _ => None,
            },
            Self::Dialling { before, .. } => before.clone(),
            Self::Failed { error, .. } => Some(error.clone()),
        }
    }
}

/// All ways. Peers that are gone for good stay as a failure: they are as few as members ever were.
#[derive(Default)]
pub(crate) struct Links {
    ways: Mutex<HashMap<NodeId, Way>>,
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.ways.lock().keys()).finish()
    }
}

impl Links {
    /// Returns the connection to a peer; `dial` makes one where there is none, once for all who wait.
    pub(crate) async fn get<F>(self: &Arc<Self>, node: NodeId, address: &str, dial: impl FnOnce() -> F) -> Result<Link>
    where
        F: Future<Output = Result<Link>> + Send + 'static,
    {
        let (dialling, before) = {
            let mut ways = self.ways.lock();
            let has_others = || ways.values().any(|way| matches!(way, Way::Up(link) if link.member.node != node && link.is_up()));
            let has_others = has_others();
            match ways.get(&node) {
                Some(Way::Up(link)) if link.is_up() => return Ok(link.clone()),
                Some(Way::Failed { address: tried, at, error }) if tried == address && at.elapsed() < REST => return Err(error.clone()),
                Some(Way::Dialling { address: tried, dialling, before }) if tried == address => {
                    (dialling.clone(), before.clone().filter(|_| has_others))
                }
                before => {
                    let before = before.and_then(|way| way.failure(node, address));
                    let dialling = self.dialling(node, address.to_owned(), dial());
                    let way = Way::Dialling { address: address.to_owned(), dialling: dialling.clone(), before: before.clone() };
                    ways.insert(node, way);
                    (dialling, before.filter(|_| has_others))
                }
            }
        };
        // Whoever was not reached before may be reached through others: that is not to wait for a dial in vain.
        match before {
            Some(error) => tokio::time::timeout(AGAIN_WAIT, dialling).await.unwrap_or(Err(error)),
            None => dialling.await,
        }
    }

    /// Dials in a task of its own: whoever asked first may give up.
    fn dialling(self: &Arc<Self>, node: NodeId, address: String, dial: impl Future<Output = Result<Link>> + Send + 'static) -> Dialling {
        let links = self.clone();
        let tried = address.clone();
        let task = tokio::spawn(async move {
            let found = dial.await;
            let mut ways = links.ways.lock();
            // A connection that the peer made meanwhile serves as well.
            let has_way = matches!(ways.get(&node), Some(Way::Up(link)) if link.is_up());
            match &found {
                Ok(link) if !has_way => drop(ways.insert(node, Way::Up(link.clone()))),
                Err(error) if !has_way => drop(ways.insert(node, Way::Failed { address: tried, at: Instant::now(), error: error.clone() })),
                _ => {}
            }
            found
        });
        let gone = move |_| Error::Unreachable { peer: format!("node {node}"), address, why: "this node stops".into() };
        async move { task.await.unwrap_or_else(|error| Err(gone(error))) }.boxed().shared()
    }

    /// Takes a connection that a peer made.
    pub(crate) fn accepted(&self, link: &Link) {
        let mut ways = self.ways.lock();
        let serves = matches!(ways.get(&link.member.node), Some(Way::Up(held)) if held.is_up() && held.member.boot == link.member.boot);
        if !serves && let Some(Way::Up(old)) = ways.insert(link.member.node, Way::Up(link.clone())) {
            // The peer was started anew: nobody is there any more.
            old.connection.close(0u32.into(), b"another start of this node has come");
        }
    }

    /// Returns the peers that are connected, and which start of them.
    pub(crate) fn up(&self) -> Vec<(NodeId, BootId, Duration)> {
        let ways = self.ways.lock();
        let links = ways.values().filter_map(|way| match way {
            Way::Up(link) if link.is_up() => Some((link.member.node, link.member.boot, link.connection.rtt())),
            _ => None,
        });
        links.collect()
    }

    /// Returns how much each connected peer has acknowledged.
    pub(crate) fn acknowledged(&self) -> HashMap<NodeId, Acknowledged> {
        let ways = self.ways.lock();
        let links = ways.iter().filter_map(|(node, way)| match way {
            Way::Up(link) if link.is_up() => Some((*node, Acknowledged::of(&link.connection))),
            _ => None,
        });
        links.collect()
    }

    /// Returns where a peer is that is connected.
    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        match self.ways.lock().get(&node) {
            Some(Way::Up(link)) if link.is_up() => Some(link.connection.remote_address()),
            _ => None,
        }
    }

    /// Says whether there is a connection to a peer.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        matches!(self.ways.lock().get(&node), Some(Way::Up(link)) if link.is_up())
    }

    /// Closes the connections to a peer that is no member any more.
    pub(crate) fn forget(&self, node: NodeId) {
        if let Some(Way::Up(link)) = self.ways.lock().remove(&node) {
            link.connection.close(0u32.into(), b"this node is no member any more");
        }
    }
}

/// Finds the address of `host:port`.
pub(crate) async fn resolve(host: &str) -> Result<SocketAddr> {
    let failed = |why: String| Error::Resolve { host: host.to_owned(), why };
    let mut found = tokio::net::lookup_host(host).await.map_err(|error| failed(error.to_string()))?;
    found.next().ok_or_else(|| failed("it has none".into()))
}

/// What QUIC calls it that an endpoint takes no connections now.
const CONNECTION_REFUSED: u64 = 2;

/// Says why a connection is none, in words.
pub(crate) fn explain(error: &quinn::ConnectionError) -> String {
    match error {
        quinn::ConnectionError::TimedOut => "nobody answers there: is the node up, and is its UDP port open on the way?".into(),
        // A node is asked for by its id, which its certificate names.
        quinn::ConnectionError::TransportError(error) if error.reason.contains("not valid for name") => {
            "another node answers there: was its machine wiped and joined anew, or has its address gone to another one? \
             One that is gone for good is taken out by `shoal node remove`"
                .into()
        }
        quinn::ConnectionError::TransportError(error) if error.reason.contains("invalid peer certificate") => {
            "what answers there belongs to another cluster, or to none yet".into()
        }
        quinn::ConnectionError::ConnectionClosed(closed) if u64::from(closed.error_code) == CONNECTION_REFUSED => {
            "it takes no connections: it starts or stops".into()
        }
        other => other.to_string(),
    }
}
