//! How many cores a container sees.
//!
//! The sandbox counts the cores that it may run on when it is made, and shows its programs as many for good. So it is made on
//! a few cores, and afterwards let onto all of them: which ones it uses is for the kernel to say, and how much of them for
//! its cgroup.

use std::{fs, path::Path};

use rustix::{
    io,
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Returns how many cores containers may run on here: those of this process.
pub(crate) fn machine() -> usize {
    sched_getaffinity(None).map_or(1, |cores| cores.count() as usize)
}

/// The cores that this thread may run on, and some of them.
#[derive(Clone, Copy)]
pub(crate) struct Cores {
    all: CpuSet,
    few: CpuSet,
}

impl Cores {
    /// Chooses so many cores.
    pub(crate) fn choose(count: usize) -> io::Result<Self> {
        let all = sched_getaffinity(None)?;
        let mut few = CpuSet::new();
        (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).take(count).for_each(|core| few.set(core));
        Ok(Self { all, few })
    }

    /// Puts the calling thread on the few. Makes one system call and nothing else.
    pub(crate) fn enter(self) -> io::Result<()> {
        sched_setaffinity(None, &self.few)
    }

    /// Lets the threads that a file lists onto all cores, also those that they make meanwhile.
    pub(crate) fn let_out(self, threads: &Path) -> std::io::Result<()> {
        let mut done = std::collections::HashSet::new();
        loop {
            let text = fs::read_to_string(threads)?;
            let all = text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?));
            let fresh: Vec<Pid> = all.filter(|pid| done.insert(pid.as_raw_nonzero())).collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for pid in fresh {
                match sched_setaffinity(Some(pid), &self.all) {
                    // It has ended meanwhile.
                    Ok(()) | Err(io::Errno::SRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
}
