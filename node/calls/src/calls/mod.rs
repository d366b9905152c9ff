//! Calls: what is asked of functions, who works on it, and what came out; records of shards.
//!
//! A *call* is one `.remote()`, `.spawn()` or `.map()`. It has *inputs*; each has one *output* in the end. Containers (*tasks*)
//! **lease** inputs from the *pool* of their function and bring **outcomes**. The first outcome that counts, of an input's
//! current `retry_count`, is its output for every reader and for ever; later ones are answered "fine" and dropped, because
//! containers repeat what is answered with an error.
//!
//! | file | subject |
//! |---|---|
//! | [`model`], [`refused`], [`info`] | the words: what goes in, what comes out; what is said no to; what people and the scheduler are told |
//! | [`record`] | what is written to the shard's log |
//! | [`state`] | what follows from the records; pure |
//! | [`rules`] | who gets which input when, who is told what; pure, with `now` and everything that is not a record: queues, leases, waiting readers |
//! | `driver`, `boot` | the one owner of all of it: writes records, keeps time, answers |
//! | `handle`, `reading` | [`Calls`]: what everyone else holds |
//! | `ground` | the time and the disk that all of this stands on |
//! | `away` | requests that are for another node |
//! | `releases` | what waits until all nodes understand it |
//! | `takeover` | what a new home asks the others, and asks again of those that were silent |
//! | `replication`, [`copies`] | records between a home and those that keep copies |
//! | `running`, `stopping` | what the tasks of this node run; tasks that are to get no more |
//! | [`gone`] | tasks that are gone without a word to the homes of their inputs; pure |
//! | [`streams`], `data`, `origins` | data of generators and web bodies: not records, on the node of the container |
//!
//! **What lasts.** What is a record outlives the process, and with partners the machine: calls, inputs, outcomes, retries, cancellations.
//! Leases do not: after a restart an input without an outcome waits again, except where a live task says that it still runs it
//! ([`Calls::adopt`]). Inherited inputs are held back until all such reports are in ([`Calls::reports_complete`]), or for
//! [`rules::REPORTS_WAIT_MS`].
//!
//! **Once.** Ids are derived from the request's idempotency key, so that a repeated request finds what the first one made. A
//! repeated lease finds its key at its task.
//!
//! **Memory** holds an index and no payloads: some 330 bytes an input of a map, 1,000 bytes a call with one input
//! (`tests/memory.rs`).

mod away;
mod boot;
mod clock;
mod confirm;
pub mod copies;
mod data;
mod driver;
mod error;
pub mod gone;
mod ground;
mod handle;
pub mod info;
pub mod model;
mod options;
mod origins;
mod reading;
pub mod record;
pub mod refused;
mod releases;
mod replication;
pub mod rules;
mod running;
pub mod state;
mod stopping;
pub mod streams;
mod takeover;

pub use away::Road;
pub use driver::Starved;
pub use error::Error;
pub use ground::{Ground, Machine};
pub use handle::Calls;
pub use info::*;
pub use model::*;
pub use options::{Failed, Options};
pub use refused::Refused;
