//! What is told about a container.

use std::fmt;
use std::time::Duration;

use shoal_runtime::{Exit, ExitStatus, Way};
use shoal_state::{AppId, FunctionId, TaskId, Timestamp};

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Its image and arguments are being got ready.
    Preparing,
    /// The sandbox is being made.
    Creating,
    /// The program is being started.
    Starting,
    /// The program runs, and has not asked for an input yet.
    Loading,
    /// The program takes inputs.
    Ready,
    /// It was asked to stop.
    Stopping,
    /// It was killed, and is dying.
    Dying,
    /// It has ended; its last output is being read.
    Draining,
    /// It is gone; its end is being reported.
    Ended,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Preparing => "preparing",
            Self::Creating => "creating",
            Self::Starting => "starting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::Dying => "dying",
            Self::Draining => "draining",
            Self::Ended => "ended",
        })
    }
}

/// When a phase began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseTime {
    /// Which.
    pub phase: Phase,
    /// How long after the node first knew of the task.
    pub after: Duration,
}

/// A container of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerStatus {
    /// Its task.
    pub task: TaskId,
    /// The task's app.
    pub app: AppId,
    /// The task's function.
    pub function: FunctionId,
    /// How far it is.
    pub phase: Phase,
    /// When the node first knew of the task.
    pub since: Timestamp,
    /// When each phase so far began, in order.
    pub phases: Vec<PhaseTime>,
    /// In which way its sandbox began; `None` before there is one.
    pub way: Option<Way>,
    /// The host processes that read its files.
    pub readers: Vec<u32>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How its program ended; `None` when it never ran, or its status is lost.
    pub exit: Option<Exit>,
    /// Why the node ended it, or could not run it; `None` when the program ended by itself.
    pub why: Option<String>,
    /// In words, for `TaskEnd`: "exit code 0", "killed: out of memory", "node restarted".
    pub how: String,
    /// When each phase began, in order.
    pub phases: Vec<PhaseTime>,
}

impl Ended {
    /// A task that had no container.
    pub(crate) fn without_container(why: &str) -> Self {
        Self { exit: None, why: Some(why.to_owned()), how: why.to_owned(), phases: Vec::new() }
    }
}

/// Says how a program ended, given why it was told to and whether it was killed for that.
pub(crate) fn how(exit: Exit, why: Option<&str>, killed: bool) -> String {
    let ended = match exit.status {
        ExitStatus::Code(code) => format!("exit code {code}"),
        ExitStatus::Signal(signal) => format!("killed by signal {signal}"),
    };
    if exit.oom {
        return "killed: out of memory".to_owned();
    }
    if let Some(over) = exit.disk {
        return format!("killed: {over}");
    }
    match why {
        Some(why) if killed => format!("killed: {why}"),
        Some(why) if exit.success() => format!("stopped: {why}"),
        Some(why) => format!("stopped: {why} ({ended})"),
        None => ended,
    }
}

#[cfg(test)]
mod tests {
    use shoal_runtime::OverDisk;

    use super::*;

    #[test]
    fn an_end_is_said_in_words() {
        let exit = |status| Exit { status, oom: false, disk: None };
        let (fine, nine) = (exit(ExitStatus::Code(0)), exit(ExitStatus::Signal(9)));
        assert_eq!(how(fine, None, false), "exit code 0");
        assert_eq!(how(nine, None, false), "killed by signal 9");
        assert_eq!(how(fine, Some("idle for 60 s"), false), "stopped: idle for 60 s");
        assert_eq!(how(exit(ExitStatus::Code(3)), Some("idle"), false), "stopped: idle (exit code 3)");
        assert_eq!(how(nine, Some("by user"), true), "killed: by user");
        assert_eq!(how(Exit { oom: true, ..nine }, Some("by user"), true), "killed: out of memory");
        let over = OverDisk { own_bytes: 3 << 20, all_bytes: 5 << 20, budget_bytes: 4 << 20 };
        let said = how(Exit { disk: Some(over), ..nine }, None, false);
        assert!(said.starts_with("killed: it took 3 MiB of the node's disk") && said.contains("5 MiB together"), "{said}");
    }
}
