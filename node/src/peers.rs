//! This node's road to its peers, and what travels on it.
//!
//! One endpoint on one UDP port; what a stream is for is a [`Service`]. Who may talk is in the state: every member, and no node
//! that was removed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use shoal_peer::{Admission, Endpoint, Member, Options, Service, Stream};
use shoal_raft::{Feed, Peer, Raft, Transport, Unsent};
use shoal_state::{BootId, NodeId, VERSION_KNOWN};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::Config;
use crate::keys::Keys;

/// Messages of consensus.
const RAFT: Service = Service::new(1, "answer a message of consensus");
/// What is decided, for nodes that do not vote.
const FOLLOW: Service = Service::new(19, "tell what is decided");
/// How long a node that follows may take to hear one word. Then it is to ask again.
const TELL_WAIT: Duration = Duration::from_secs(10);

/// Judges peers by the state, once there is one.
struct Members {
    me: Member,
    raft: OnceLock<Raft>,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Admission for Members {
    fn myself(&self) -> Member {
        self.me.clone()
    }

    fn admit(&self, peer: &Member) -> Result<(), String> {
        // Until the state is read, its certificate counts: the leader must be able to bring what is missing.
        let Some(raft) = self.raft.get() else { return Ok(()) };
        match raft.local().removed.get(&peer.node) {
            // The others need its vote until it is given to another one, whatever happens to its process or its connections meanwhile.
            Some(_) if raft.votes(peer.node) => Ok(()),
            Some(removed) => Err(shoal_state::Refused::NodeRemoved { id: peer.node, why: removed.why.clone() }.to_string()),
            None => Ok(()),
        }
    }
}

/// This node's end of all roads. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    /// The endpoint itself.
    pub(crate) endpoint: Endpoint,
    /// Where other nodes reach this one, `host:port`.
    pub(crate) address: String,
    members: Arc<Members>,
}

impl Peers {
    /// Opens the endpoint.
    pub(crate) fn open(config: &Config, keys: &Keys, boot: BootId) -> anyhow::Result<Self> {
        let me = Member {
            cluster: keys.cluster.id,
            generation: keys.cluster.generation,
            node: keys.node,
            boot,
            version: VERSION_KNOWN,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let members = Arc::new(Members { me, raft: OnceLock::new() });
        let endpoint = Endpoint::open(Options {
            address: config.peers(),
            identity: keys.identity.clone(),
            admission: members.clone(),
            reset_key: keys.reset,
            segmentation: config.segmentation,
        })?;
        let port = endpoint.address().context("cannot find out on which port peers reach this node")?.port();
        Ok(Self { endpoint, address: format!("{}:{port}", own_host(config)), members })
    }

    /// Tries to reach the other members of consensus; returns the first no, in the words of whoever said it.
    pub(crate) async fn refusal(&self, raft: &Raft) -> Option<shoal_peer::Error> {
        let status = raft.status();
        for peer in status.voters.iter().chain(&status.learners).filter(|peer| peer.node != raft.node()) {
            if let Err(error @ shoal_peer::Error::Refused { .. }) = self.endpoint.open_stream(peer.node, &peer.address, RAFT).await {
                return Some(error);
            }
        }
        None
    }

    /// Returns what carries messages of consensus.
    pub(crate) fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(Road { endpoint: self.endpoint.clone() })
    }

    /// Answers messages of consensus, tells those that follow what is decided, and judges peers by the state, from now on.
    pub(crate) fn serve_raft(&self, raft: &Raft) {
        // Set once, when the node starts.
        let _ = self.members.raft.set(raft.clone());
        let told = raft.clone();
        self.endpoint.serve(FOLLOW, move |stream, _| tell(stream, told.clone()));
        let raft = raft.clone();
        self.endpoint.serve(RAFT, move |mut stream, _| {
            let raft = raft.clone();
            async move {
                let Ok(Some(request)) = stream.next().await else { return };
                let done = match raft.answer(request).await {
                    Ok(answer) => stream.send(answer).await.and_then(|()| stream.finish()),
                    Err(error) => stream.fail(&error.to_string()).await,
                };
                if let Err(error) = done {
                    tracing::debug!(peer = %stream.peer(), %error, "a peer did not wait for its answer");
                }
            }
        });
    }
}

/// Tells a node that follows what is decided, as long as it listens.
async fn tell(mut stream: Stream, raft: Raft) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let mut feed = match raft.feed(&asked) {
        Ok(feed) => feed,
        Err(error) => {
            // Whoever does not hear the words is told the next time.
            let _ = stream.fail(&error.to_string()).await;
            return;
        }
    };
    // What it holds must not keep Raft's files open.
    drop(raft);
    while let Some(Ok(word)) = feed.next().await {
        match tokio::time::timeout(TELL_WAIT, stream.send(word)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return tracing::debug!(peer = %stream.peer(), %error, "a node does not follow this one any more"),
            Err(_) => return tracing::debug!(peer = %stream.peer(), "a node that follows does not listen"),
        }
    }
    // Whoever listens no more needs no end.
    let _ = stream.finish();
}

/// Carries messages of consensus.
#[derive(Debug)]
struct Road {
    endpoint: Endpoint,
}

impl Transport for Road {
    fn call<'a>(&'a self, peer: &'a Peer, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, Unsent>> {
        Box::pin(async move {
            let answer = self.endpoint.call(peer.node, &peer.address, RAFT, request, patience).await;
            answer.map_err(|error| match error.nothing_sent() {
                true => Unsent::Unreachable { why: error.to_string() },
                false => Unsent::Lost { why: error.to_string() },
            })
        })
    }

    fn follow<'a>(&'a self, peer: &'a Peer, request: Bytes) -> BoxFuture<'a, Result<Feed, Unsent>> {
        Box::pin(async move {
            let opened = async {
                let mut stream = self.endpoint.open_stream(peer.node, &peer.address, FOLLOW).await?;
                stream.send(request).await?;
                Ok::<_, shoal_peer::Error>(stream)
            };
            let stream = opened.await.map_err(|error| Unsent::Unreachable { why: error.to_string() })?;
            let words = futures::stream::try_unfold(stream, async |mut stream| {
                let word = stream.next().await.map_err(|error| Unsent::Lost { why: error.to_string() })?;
                Ok(word.map(|word| (word, stream)))
            });
            Ok(words.boxed())
        })
    }
}

/// Returns the other members, each with where its peers reach it.
pub(crate) fn others(raft: &Raft) -> Vec<(NodeId, String)> {
    let me = raft.node();
    raft.local().members.iter().filter(|(id, _)| **id != me).map(|(id, member)| (*id, member.address.clone())).collect()
}

/// Runs one task for each other member, from when it becomes one until it is none, has moved, or `stop`.
pub(crate) async fn for_each_other<F>(raft: &Raft, stop: &CancellationToken, begin: impl Fn(NodeId, String) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut changes = raft.watch();
    let mut running: HashMap<(NodeId, String), AbortOnDropHandle<()>> = HashMap::new();
    loop {
        let now: HashSet<(NodeId, String)> = others(raft).into_iter().collect();
        running.retain(|member, _| now.contains(member));
        for member in now {
            running.entry(member.clone()).or_insert_with(|| AbortOnDropHandle::new(tokio::spawn(begin(member.0, member.1))));
        }
        let members = raft.local().members.clone();
        loop {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
            }
            if !raft.local().members.ptr_eq(&members) {
                break;
            }
        }
    }
}

/// Returns the host name or address by which other nodes reach this one: what the configuration says, else the address that is
/// listened on, else that of the way out of this machine.
fn own_host(config: &Config) -> String {
    if let Some(host) = config.advertised_host() {
        return host.to_owned();
    }
    let ip = config.peers().ip();
    let ip = if ip.is_unspecified() { way_out().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)) } else { ip };
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// Finds the address that this machine would use towards the world. Nothing is sent.
fn way_out() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address that is for documentation alone.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address: SocketAddr| address.ip()).filter(|ip| !ip.is_unspecified())
}
