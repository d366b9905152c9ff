//! What goes wrong between nodes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use shoal_state::NodeId;

/// A result between nodes.
pub type Result<T> = std::result::Result<T, Error>;

/// Why something between nodes did not happen.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The UDP port cannot be had.
    #[error("cannot listen on {address}/udp for peers: {why}; choose another address or port with --peers")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        why: String,
    },
    /// A key or certificate cannot be made, read or used.
    #[error("cannot {doing}: {why}")]
    Certificate {
        /// What was tried.
        doing: &'static str,
        /// What stands in the way.
        why: String,
    },
    /// The name of a host leads nowhere.
    #[error("cannot find the address of {host:?}: {why}")]
    Resolve {
        /// The name, with its port.
        host: String,
        /// What the resolver says.
        why: String,
    },
    /// Nothing reached the peer.
    #[error("cannot reach {peer} at {address}: {why}")]
    Unreachable {
        /// Whom, for people.
        peer: String,
        /// Where it should be.
        address: String,
        /// What stands in the way.
        why: String,
    },
    /// What answers has no certificate of the cluster that a token is of.
    #[error("the node at {address} belongs to another cluster than the token: its certificate is of another CA")]
    Stranger {
        /// Where it is.
        address: String,
    },
    /// The peer does not want this node, and says why.
    #[error("{peer} at {address} refused this node: {why}")]
    Refused {
        /// Whom, for people.
        peer: String,
        /// Where it is.
        address: String,
        /// The peer's words.
        why: String,
    },
    /// The connection broke after something was sent: the peer may have got it.
    #[error("the connection to node {peer} broke: {why}")]
    Broken {
        /// To whom.
        peer: NodeId,
        /// How.
        why: String,
    },
    /// The peer failed to do what it was asked for, and says why.
    #[error("node {peer} answers: {why}")]
    Failed {
        /// Who says it.
        peer: NodeId,
        /// Its words.
        why: String,
    },
    /// The peer did not answer in time. It may still do what it was asked for.
    #[error("waited {waited:?} for node {peer} to {what}")]
    Late {
        /// For whom.
        peer: NodeId,
        /// For what.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The peer sent more than one message may hold.
    #[error("node {peer} sent a message of {bytes} bytes, and {max} is the most")]
    TooLong {
        /// Who sent it.
        peer: NodeId,
        /// How long it is.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The text is no secret that machines could share.
    #[error(
        "this is no secret for machines that are to become one cluster: {why}; give all of them the same random one, as `openssl rand -hex 32` prints it"
    )]
    NoSecret {
        /// What is wrong with it.
        why: String,
    },
    /// The text is no token that lets a client's machine connect.
    #[error(
        "this is not a token that lets a client's machine connect: {why}; `shoal token create` on any node of the cluster prints the whole command"
    )]
    NoConnectToken {
        /// What is wrong with it.
        why: &'static str,
    },
    /// The text is no token that lets a node join.
    #[error(
        "this is not a token that lets a node join: {why}; `shoal token create --node` on any node of the cluster prints the whole command"
    )]
    NoToken {
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Error {
    /// Whether the peer cannot have got anything of what was to be sent.
    pub fn nothing_sent(&self) -> bool {
        matches!(self, Self::Resolve { .. } | Self::Unreachable { .. } | Self::Stranger { .. } | Self::Refused { .. })
    }
}

/// Names a failure around keys and certificates.
pub(crate) fn certificate<E: std::fmt::Display>(doing: &'static str) -> impl FnOnce(E) -> Error {
    move |why| Error::Certificate { doing, why: why.to_string() }
}

/// Names a failure to bind.
pub(crate) fn bind(address: SocketAddr) -> impl FnOnce(io::Error) -> Error {
    move |why| Error::Bind { address, why: why.to_string() }
}
