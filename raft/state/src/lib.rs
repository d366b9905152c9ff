//! Shoal's replicated state machine.

mod digest;
mod id;

pub use digest::{Digest, NotADigest};
pub use id::*;
