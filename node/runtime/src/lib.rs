//! Containers: gVisor sandboxes with a network namespace, limits and an overlay each.
//!
//! ```text
//! Engine::open ── cleans what a former process of this node left, by name
//!   make_ahead ── a few sandboxes wait, for containers that need nothing special (`ahead`)
//!   create ── one of those; or network slot (prepared ahead), cgroups, config.json, `runsc create`
//!     take_stdio ── pipes of the first process
//!     start ── by the control socket: network, then the first process
//!     exec, signal, export_upper, port_forward ── by the control socket
//!     exit ── the sandbox's own exit, by its pidfd
//!     stop ── signal, grace, SIGKILL inside, SIGKILL of the sandbox
//!     destroy ── nothing is left: processes, cgroups, links, files
//! ```
//!
//! The engine knows nothing of tasks, images or apps: it is handed a directory as the root, and
//! hands back pipes and an exit. Its parts:
//!
//! - [`spec`](ContainerSpec): what a container is to be; `oci`: that, as runsc reads it (pure).
//! - `control`: the sandbox's control socket.
//! - `network`: slots, addresses, the firewall table, resolv.conf.
//! - `cgroup`: limits and usage, for both versions of the kernel's interface; `cores`: how many of them a container sees.
//! - `overlays`: what all containers together take of the disk, and who ends when it is too much.
//! - `terminal`: terminals of further processes, and what typing into them means.
//! - `process`: waiting for processes that are not our children from the start.
//! - `leftover`: cleaning by name.
//! - [`doctor_checks`]: what is wrong with this machine, and how to repair it.
//!
//! Caveats. One version of runsc is spoken to, [`RUNSC_STAMP`]. Containers are not to outlive the process
//! that opened the engine: its pipes break, and the next [`Engine::open`], or [`clean_up`], kills what still runs.
//! A first process that a signal ended inside shows as exit code 128 + signal.

mod ahead;
mod cgroup;
mod container;
mod control;
mod cores;
mod doctor;
mod engine;
mod error;
mod exec;
mod identity;
mod leftover;
mod network;
mod oci;
mod overlays;
mod process;
mod socket;
mod spec;
mod stdio;
mod terminal;

pub use ahead::{AheadConfig, LAUNCHER, Rooms};
pub use container::Container;
pub use doctor::{Finding, Verdict, doctor_checks};
pub use engine::{Engine, EngineConfig, RUNSC_STAMP};
pub use error::{Error, Result};
pub use exec::{Exec, ExecSpec};
pub use identity::{ContainerId, Tag};
pub use leftover::{Leftovers, clean_up};
pub use network::{NetworkConfig, link::Link};
pub use oci::DEFAULT_CAPABILITIES;
pub use overlays::Disks;
pub use socket::ShortPath;
pub use spec::*;
pub use stdio::Stdio;
pub use terminal::{TerminalSize, Typed, end_of_input, typed};

/// Runs a blocking piece of work where it does not hold up other tasks.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => panic!("the runtime stopped in the middle of blocking work"),
        },
    }
}
