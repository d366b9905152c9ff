//! What one node does so that its containers match the state.
//!
//! | module | holds |
//! |---|---|
//! | [`log`] | what containers print: kept in rotated files, fetched and followed |
//!
//! The state says which tasks this node should run; the node knows which containers it has.

pub mod log;
