//! Images: from what a client sends to a tree of files and the config to start it with.
//!
//! | module | subject |
//! |---|---|
//! | [`recipe`] | what clients send, as typed steps; pure |
//! | [`config`] | what a container of an image starts with |
//! | [`bases`] | what stands after FROM: from a registry, a file, or made here |
//! | [`build`] | a request becomes an image |
//! | [`cache`] | which steps are known already |
//! | [`log`] | what the client prints while it waits |

pub mod bases;
pub mod build;
pub mod cache;
pub mod config;
mod error;
mod host;
mod key;
pub mod log;
pub mod recipe;

pub use error::{Error, FailureKind, Result};
pub use host::remove_work_folder;
