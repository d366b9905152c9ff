//! Where tasks run: plan, score, explain. Pure: no clock, no randomness, no I/O.
//!
//! The leader calls [`plan()`] on a clone of the state whenever something changed, and when [`next_at()`] says. The plan is a list of
//! commands for the log (`Assign`, `StopTask`) and, for every function that has to wait, why. What `plan` *prefers* may
//! change every day; what *can't be* is refused by `State::apply`, item by item, so a plan that was made on an old state
//! does no harm.
//!
//! | module | holds |
//! |---|---|
//! | [`Load`] | what calls and workers report: soft state, never in the log |
//! | [`Barrier`] | what a leader must have before it decides |
//! | `demand` | how many containers one function should have, and which of its tasks count |
//! | `room` | what nodes have free; filter, then score |
//! | `share` | who has how much, and may have what others have |
//! | [`Placement`] | on which nodes a function may run, by their labels, and how many containers at once |
//! | [`plan()`] | the decisions |
//! | [`Yields`] | whom a leader has asked to give way |
//! | [`next_at()`] | when time alone makes another plan |
//! | [`Why`], [`explain()`] | the same in words |
//!
//! Caveats: a class with parameters keeps its `containers_min` for bound functions only if its base is in the app's
//! layout. Which GPUs of a node would leave the best ones for others is not considered. What could be stopped to make room is counted by
//! one container of its gang alone.

mod barrier;
mod demand;
mod explain;
mod load;
mod placement;
mod plan;
mod room;
mod share;
#[cfg(test)]
mod tests;
mod wake;
mod why;
mod yields;

pub use barrier::Barrier;
pub use demand::{CONTAINERS_LIMIT, SCALEDOWN_DEFAULT_MS};
pub use explain::explain;
pub use load::{Load, PoolLoad};
pub use placement::{CLOUD, Labels, PREEMPTIBLE, Placement, REGION};
pub use plan::{ASSIGNS_MAX, Plan, plan};
pub use room::holds;
pub use wake::{LOOK_AGAIN_MS, next_at};
pub use why::{Obstacle, Why, gpu_words, gpus_there, too_large};
pub use yields::Yields;
