//! The road between nodes: QUIC with mutual TLS, on one UDP port.
//!
//! ```text
//! Authority ── the cluster's own CA: signs what a node is
//! Identity ── a node's key and its certificate, which carries the node's id
//! Endpoint ── one UDP socket; accepts peers, and dials them when somebody has something to say
//!   call(peer, service, request) ── one stream: a request, an answer
//!   open(peer, service) ── one stream: frames in both directions, for bulk and for what goes on
//!   serve(service, …) ── who answers streams of one kind: consensus, chunks, calls
//! join(address, token, …) ── a road without a certificate: asks for one
//! Entry ── the road of a client's machine: mutual TLS too, a stream for each of its connections
//! ask_seed(address, secret, …) ── the other one: between machines that know a secret, and do not know yet who founds the cluster
//! ```
//!
//! Every connection begins with a hello: cluster, generation, node, version. With TLS 1.3 a dialling node is connected before
//! its certificate was judged; a refusal shows when it first uses the connection. So a peer counts as reached only once it has
//! answered the hello.
//!
//! What travels is opaque here. Who may be a member is for the caller to say ([`Admission`]): a certificate proves which node
//! it is, and the state says whether that node still belongs.
//!
//! Caveats. Two nodes that dial each other at the same moment have two connections for a while; either serves both. A frame is
//! whole in memory on both sides, up to [`FRAME_BYTES_MAX`].

mod admission;
mod authority;
mod clients;
mod closed;
mod complaints;
mod detour;
mod endpoint;
mod error;
mod hello;
mod identity;
mod join;
mod links;
mod seeds;
mod stream;
mod tls;

pub use admission::{Admission, Member};
pub use authority::Authority;
pub use clients::{Entry, Pass, Tunnel, turn_away, was_turned_away};
pub use detour::rules as detours;
pub use endpoint::{Endpoint, Options, Service};
pub use error::{Error, Result};
pub use identity::{Identity, Request};
pub use join::{ConnectToken, Fingerprint, JoinToken, Joined, greet, join};
pub use links::Acknowledged;
pub use seeds::{SECRET_CHARS_MIN, Secret, ask_seed};
pub use stream::{FRAME_BYTES_MAX, Incoming, Outgoing, Stream};
