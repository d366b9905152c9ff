//! What one node does so that its containers match the state.
//!
//! ```text
//! State ── tasks() ──► steps(desired, actual) ──► Driver: one owner loop, carries out each step
//!                                                    │
//!            one life a container: prepare ─ create ─ start ─ run ─ stop ─ drain ─ destroy ─ report the end
//!                    Provider ◄┘        └► Engines       └► stdout, stderr ─► LogStore                └► Provider
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`log`] | what containers print: kept in rotated files, fetched and followed |
//! | [`execs`] | further processes in containers, started from outside |
//! | [`steps()`], [`tasks()`] | what to do here, pure |
//! | [`Driver`], [`Handle`] | who does it, and what others may ask of it |
//! | [`Provider`], [`Engines`] | what the driver needs: what a container is to be, and what makes it |
//!
//! Whatever fails, a task ends with a sentence; the scheduler decides what comes next. Caveat: containers die with the
//! node's process. The engine cleans what is left of them when it opens, and their tasks end with "node restarted".

mod driver;
pub mod execs;
pub mod log;
mod steps;
mod streams;

pub use driver::{
    Config, ContainerPlan, ContainerStatus, Driver, Ended, Engines, Failure, Handle, Keyboard, Phase, PhaseTime, Provider, REPORT_WAIT,
    Running, StillThere,
};
pub use steps::{Containers, Life, Step, Tasks, Wanted, steps, tasks};
