//! Who belongs to a cluster, and who votes in it: what to do next about that. Pure: what a node knows comes in, a step comes out, and the
//! binary takes it.
//!
//! | module | says |
//! |---|---|
//! | [`formation`] | how equal machines become one cluster, and never two |
//! | [`voters`] | which step the leader takes so that those vote that are to |
//! | [`removal`] | whether a node can be taken out, and what that costs |

pub mod formation;
pub mod removal;
pub mod voters;
