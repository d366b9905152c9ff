//! Shoal's replicated state machine: what every node agrees on, and the rules by which it changes.
//!
//! Start with [`State::apply`]: a total, deterministic function from a state and a [`Command`] to [`Event`]s or a
//! [`Refused`]. There is no clock, no randomness and no I/O in this crate (its `clippy.toml` bans them): ids, times and
//! digests are in the command, chosen by whoever proposed it.
//!
//! | module | holds |
//! |---|---|
//! | [`Command`], [`Event`] | what the log carries, and what wakes drivers |
//! | [`model`] | the things of the registry, shards and tasks |
//! | [`State`] | the rules |
//! | [`Refused`] | the answers that are a no |
//! | ids, [`Digest`] | names |

mod command;
mod digest;
mod id;
pub mod model;
mod object;
mod refused;
mod state;
#[doc(hidden)]
pub mod written;

pub use command::{Command, Event, VERSION_KNOWN};
pub use digest::{Digest, NotADigest};
pub use id::*;
pub use imbl;
pub use model::Timestamp;
pub use object::ObjectId;
pub use refused::{MemberIs, Refused};
pub use state::{HISTORY_KEPT, RELEASES_KEPT, SETTING_DEFAULT, State, VOTERS_MAX};

/// The environment that an empty name means.
pub const ENVIRONMENT_DEFAULT: &str = "main";
