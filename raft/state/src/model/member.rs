//! The cluster, and who belongs to it.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// The cluster itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Chosen at random when it was founded.
    pub id: [u8; 16],
    /// How often it was started anew from one survivor.
    pub generation: u32,
    /// When it was founded.
    pub founded: Timestamp,
}

/// What the cluster knows of a node that belongs to it, whether it is up or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where peers reach it, `host:port` (UDP).
    pub address: String,
    /// Up to which version it knows the rules.
    pub version: u32,
    /// The release that it runs, for people.
    pub release: String,
    /// When it joined.
    pub joined: Timestamp,
}

/// A node that belonged to the cluster once. It never comes back under its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// When it was removed.
    pub at: Timestamp,
    /// Why, and by whom.
    pub why: String,
}

/// What an operator has decided of a node's vote. What nobody decided is for the leader to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Voting {
    /// It votes whenever it is there.
    Must,
    /// It does not vote.
    MustNot,
}
