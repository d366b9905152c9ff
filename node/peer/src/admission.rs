//! Who may talk.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use shoal_state::{BootId, NodeId};

/// What a node says of itself when a connection begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which cluster it is of: chosen when that was founded.
    pub cluster: [u8; 16],
    /// How often the cluster was started anew from one survivor.
    pub generation: u32,
    /// Which node it is.
    pub node: NodeId,
    /// Which start of it.
    pub boot: BootId,
    /// Up to which version it knows the rules of the state.
    pub version: u32,
    /// The release it runs, for people.
    pub release: String,
}

/// Says who this node is, and whom it talks to.
pub trait Admission: Debug + Send + Sync + 'static {
    /// Returns what this node says of itself.
    fn myself(&self) -> Member;

    /// Judges a peer, whose certificate says truly which node it is.
    ///
    /// # Errors
    /// Why it may not talk, in words for the operator at the other end: what is wrong, and what to do.
    fn admit(&self, peer: &Member) -> std::result::Result<(), String>;
}

/// What is the same for all: another cluster, or one that was left behind.
pub(crate) fn common(me: &Member, peer: &Member) -> std::result::Result<(), String> {
    if me.cluster != peer.cluster {
        return Err(format!("node {} is of another cluster than node {}", peer.node, me.node));
    }
    if me.node == peer.node && me.boot != peer.boot {
        return Err(format!("two nodes run as {}: their data folders are copies of each other; wipe one, and join it anew", me.node));
    }
    if me.generation > peer.generation {
        return Err(format!(
            "the cluster was recovered without node {}, which has its generation {}, and this is {}: wipe its data folder, and join it anew",
            peer.node, peer.generation, me.generation
        ));
    }
    Ok(())
}
