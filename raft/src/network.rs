//! How the members' Rafts talk to each other.
//!
//! This crate knows what is said, not how it gets there: a [`Transport`] carries bytes to a peer and brings bytes back,
//! and the peer gives them to [`Raft::answer`](crate::Raft::answer). A cluster of one needs none: [`NoTransport`].
//!
//! Messages are a format byte and postcard. Beside openraft's own three there are two of ours: a proposal and a read
//! that a node which does not lead passes on to the one that does.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest, VoteResponse,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::append::{APPEND_PATIENCE, Appends};
use crate::batch::push;
use crate::heard::Heard;
use crate::types::{Answer, Core, Peer, StoredMembership, TypeConfig};

/// The first byte of a message.
const FORMAT: u8 = 1;

/// How long Raft leaves a peer alone that could not be reached.
const BACKOFF: Duration = Duration::from_millis(200);

/// Why a peer gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unsent {
    /// Nothing reached the peer.
    #[error("{why}")]
    Unreachable {
        /// What stands in the way.
        why: String,
    },
    /// The request may have reached the peer, but no answer came.
    #[error("no answer came: {why}")]
    Lost {
        /// What went wrong.
        why: String,
    },
}

/// Carries Raft's messages to a peer's [`Raft::answer`](crate::Raft::answer), and its answer back.
pub trait Transport: Debug + Send + Sync + 'static {
    /// Sends `request` and waits for the answer, up to `patience`. The caller may drop the future.
    fn call<'a>(&'a self, peer: &'a Peer, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, Unsent>>;

    /// Sends `request` to a peer's [`Raft::feed`](crate::Raft::feed), and brings the messages that come of it, in order, until one side
    /// ends it: this one by dropping them. A peer that is silent is not noticed here.
    fn follow<'a>(&'a self, peer: &'a Peer, request: Bytes) -> BoxFuture<'a, Result<Feed, Unsent>>;
}

/// The messages by which a voter tells what is decided.
pub type Feed = BoxStream<'static, Result<Bytes, Unsent>>;

/// The transport of a cluster of one: there is nobody to reach.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn call<'a>(&'a self, peer: &'a Peer, _: Bytes, _: Duration) -> BoxFuture<'a, Result<Bytes, Unsent>> {
        Box::pin(std::future::ready(Err(no_way(peer))))
    }

    fn follow<'a>(&'a self, peer: &'a Peer, _: Bytes) -> BoxFuture<'a, Result<Feed, Unsent>> {
        Box::pin(std::future::ready(Err(no_way(peer))))
    }
}

fn no_way(peer: &Peer) -> Unsent {
    let why = format!("this node was started alone and has no way to reach node {} at {:?}", peer.node, peer.address);
    Unsent::Unreachable { why }
}

/// What one member asks of another.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// What openraft asks.
    Core(CoreRequest),
    /// Encoded commands for the leader to propose, and how long the asker waits.
    Propose { commands: Vec<Bytes>, patience: Duration },
    /// Up to which entry must the state be to be the latest?
    ReadIndex,
    /// The commands of several calls, each with answers of its own. Known since version 7 of the rules.
    ProposeAll { calls: Vec<Vec<Bytes>>, patience: Duration },
    /// The leader says who the members are: the one that is asked is none of them, and is to follow those that vote.
    Invite { members: StoredMembership },
}

pub(crate) type Appended = Result<AppendEntriesResponse<u64>, RaftError<u64>>;
pub(crate) type Voted = Result<VoteResponse<u64>, RaftError<u64>>;
pub(crate) type Installed = Result<InstallSnapshotResponse<u64>, RaftError<u64, InstallSnapshotError>>;
/// The answers and the entry that the last of them is in.
pub(crate) type Proposed = Result<(Vec<Answer>, u64), Declined>;
pub(crate) type Index = Result<u64, Declined>;
/// Whether the node that was invited hears one that votes already.
pub(crate) type Invited = Result<bool, Declined>;

/// Why the node that was taken for the leader did not do it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Declined {
    /// It does not lead. Nothing was done.
    NotLeader,
    /// It could not confirm in time that it leads, or that the commands were committed.
    Unanswered,
    /// The leader changed after some commands of a long list.
    Interrupted { answered: usize },
    /// It does not know this version.
    VersionUnknown { version: u32 },
    /// Its Raft has stopped.
    Stopped { why: String },
}

pub(crate) fn encode(message: &impl Serialize) -> Bytes {
    let mut bytes = vec![FORMAT];
    push(&mut bytes, message);
    bytes.into()
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadMessage> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(BadMessage::Damaged),
        Some((&format, _)) => Err(BadMessage::Format { format }),
        None => Err(BadMessage::Damaged(postcard::Error::DeserializeUnexpectedEnd)),
    }
}

/// Why a message was not understood.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum BadMessage {
    #[error("it is in format {format}, and this build knows format {FORMAT}: upgrade this node")]
    Format { format: u8 },
    #[error("{0}")]
    Damaged(postcard::Error),
}

/// What openraft asks of its peers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum CoreRequest {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    Snapshot(InstallSnapshotRequest<TypeConfig>),
}

/// Answers what a peer's openraft asks.
pub(crate) async fn serve(core: &Core, heard: &Heard, request: CoreRequest) -> Bytes {
    heard.note_question();
    match request {
        CoreRequest::Append(request) => {
            let answer = core.append_entries(request).await;
            if matches!(answer, Ok(AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_))) {
                heard.note_leader();
            }
            encode(&answer as &Appended)
        }
        CoreRequest::Vote(request) => encode(&core.vote(request).await as &Voted),
        CoreRequest::Snapshot(request) => encode(&core.install_snapshot(request).await as &Installed),
    }
}

/// Makes a link to each member for openraft.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) heard: Heard,
}

impl Links {
    /// Returns what carries messages to a member.
    pub(crate) fn wire(&self, target: u64, peer: &Peer) -> Wire {
        Wire { target, peer: peer.clone(), transport: self.transport.clone(), heard: self.heard.clone() }
    }
}

impl RaftNetworkFactory<TypeConfig> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Link {
        Link { wire: self.wire(target, node), appends: Appends::default() }
    }
}

/// openraft's way to one member.
#[derive(Debug)]
pub(crate) struct Link {
    wire: Wire,
    appends: Appends<Failed<RaftError<u64>>>,
}

/// What carries one message of openraft's to a member.
#[derive(Debug, Clone)]
pub(crate) struct Wire {
    target: u64,
    peer: Peer,
    transport: Arc<dyn Transport>,
    heard: Heard,
}

pub(crate) type Failed<E> = RPCError<u64, Peer, E>;

impl Wire {
    /// Sends an append and waits for its answer, up to `patience`.
    pub(crate) async fn append(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
        patience: Duration,
    ) -> Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        self.call(CoreRequest::Append(rpc), patience).await
    }

    async fn call<T, E>(&self, request: CoreRequest, patience: Duration) -> Result<T, Failed<E>>
    where
        T: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let reply = self.transport.call(&self.peer, encode(&Request::Core(request)), patience).await;
        let reply = reply.map_err(|unsent| match unsent {
            Unsent::Unreachable { .. } => RPCError::Unreachable(Unreachable::new(&unsent)),
            Unsent::Lost { .. } => RPCError::Network(NetworkError::new(&unsent)),
        })?;
        let answer: Result<T, E> = decode(&reply).map_err(|bad| RPCError::Unreachable(Unreachable::new(&bad)))?;
        self.heard.note(self.peer.node);
        answer.map_err(|error| RPCError::RemoteError(RemoteError::new(self.target, error)))
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        let Self { wire, appends } = self;
        let send = |rpc| {
            let wire = wire.clone();
            async move { wire.append(rpc, APPEND_PATIENCE).await }
        };
        appends.ask(rpc, send).await
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        self.wire.call(CoreRequest::Snapshot(rpc), option.hard_ttl()).await
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, Failed<RaftError<u64>>> {
        self.wire.call(CoreRequest::Vote(rpc), option.hard_ttl()).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_alone_says_whom_it_cannot_reach() {
        let peer = Peer { node: shoal_state::NodeId::from_random(7), address: "there:7470".into() };
        let unsent = NoTransport.call(&peer, Bytes::new(), Duration::ZERO).await.unwrap_err();
        assert!(unsent.to_string().contains(&peer.node.to_string()), "{unsent}");
    }

    #[test]
    fn what_nodes_of_version_6_ask_is_understood() {
        shoal_state::written::hold::<Request>("a request", include_str!("../tests/written/6/request.txt"), 1);
    }

    #[test]
    fn a_message_of_another_format_is_refused_by_its_first_byte() {
        let bytes = encode(&Request::ReadIndex);
        assert!(matches!(decode(&bytes), Ok(Request::ReadIndex)));
        let mut other = bytes.to_vec();
        other[0] = 9;
        assert!(matches!(decode::<Request>(&other), Err(BadMessage::Format { format: 9 })));
        assert!(decode::<Request>(&[]).is_err());
    }
}
