//! Host processes that are not our own children from the start: runsc's sandbox and gofer.
//!
//! `runsc create` forks them and exits, so they are handed to the nearest *subreaper*, which the
//! engine makes of this process. Each is then waited for by its pidfd alone, so nothing here can
//! take the exit status of a child that other code (such as `tokio::process`) waits for.
//! What a dying sandbox leaves besides, its stub processes, is reaped by [`sweep`], which looks
//! only at zombies whose session is that of a sandbox.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid};
use tokio::io::{Interest, unix::AsyncFd};

/// A process, held by a descriptor: its number cannot come to mean another process.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes hold of a process. Fails with ESRCH when it is gone and reaped.
    pub(crate) fn open(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned, and nothing closes or replaces it before the AsyncFd.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Self { pid, pidfd })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Waits until the process has ended. It still has to be reaped.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.pidfd.readable().await.map(drop)
    }

    /// Whether it runs.
    pub(crate) fn is_alive(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)], Some(&now)), Ok(0))
    }

    /// Takes the exit status. `None` while the process runs; ECHILD when somebody else took it.
    pub(crate) fn reap(&self) -> io::Result<Option<WaitIdStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        Ok(waitid(WaitId::PidFd(self.pidfd.get_ref().as_fd()), options)?)
    }

    /// Sends SIGKILL. A process that is gone already is no error.
    pub(crate) fn kill(&self) {
        // The only other answer is EPERM, which root does not get.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }
}

/// Makes this process the one to which orphaned descendants are handed.
pub(crate) fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Reaps zombies among our children that belong to one of the given sessions, except the session
/// leaders themselves: those are waited for by their pidfd. Returns how many it reaped.
pub(crate) fn sweep(sessions: &HashSet<i32>) -> usize {
    let ours = |pid: &i32| zombie_session(*pid).is_some_and(|s| s != *pid && sessions.contains(&s));
    let reap = |pid: i32| {
        let id = WaitId::Pid(Pid::from_raw(pid)?);
        waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok().flatten()
    };
    children().into_iter().filter(ours).filter_map(reap).count()
}

/// Waits until a process has ended, but not for ever: false when it still runs after `within`.
/// Blocks. The process stays to be reaped by its parent.
pub(crate) fn wait_blocking(pidfd: impl AsFd, within: Duration) -> io::Result<bool> {
    let until = Instant::now() + within;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Lists the children of this process. Each thread has its own list.
fn children() -> Vec<i32> {
    let Ok(threads) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// The session of a process that is a zombie; `None` for one that lives or is gone.
fn zombie_session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses and may hold anything, so count from its end.
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    matches!(state, "Z" | "X").then_some(session)
}

/// Lists live processes that have one of the given arguments, which are matched in full.
pub(crate) fn find_by_argument(argument: &str) -> Vec<i32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
        })
        .collect()
}
