//! GPUs: what nodes have, and what programs ask for. Pure.
//!
//! A program asks with a word and a number, `"H100:2"`, or with several of them, the best first. [`Request`] says which kinds of GPU
//! each accepts; [`allocate()`] picks those of one node that serve the first it can.
//!
//! Caveat: no device is looked for yet. A node has the GPUs that its configuration names, and its containers see none of them.

mod allocate;
mod kind;
mod request;

pub use allocate::{Allocation, allocate, fits};
pub use kind::{Kind, NotAnInventory, inventory};
pub use request::Request;
