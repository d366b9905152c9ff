//! Simulated power cuts: does what a writer acknowledged survive one, at any moment?
//!
//! A [`Writer`] is two functions. `work` writes into a folder and says a line after each step that it believes to be on
//! disk. `check` opens a folder and compares it with the lines said so far.
//!
//! 1. [`record`] runs `work` in a process under `strace`, which writes down every system call that changes the folder, with
//!    all bytes, and every line said, in one order ([`trace`]).
//! 2. [`cut`] picks random moments of that trace. For each it makes the folder as the disk may have held it then
//!    ([`disk`]): what was fsynced, and a random part of the rest in blocks of 4 KiB, names of files included.
//! 3. `check` gets this folder and the lines said before the moment.
//!
//! A rig that cannot fail proves nothing. So each writer names the [`Sync`]s it relies on, and the tests leave out
//! each of them in turn (the trace stays, the rig ignores these calls) and demand that acknowledged writes are lost.
//!
//! To add a writer: a file in `writers`, and a line in [`writers::ALL`].
//!
//! A whole node is put to the same test by `tests/sdk/test_power.py`: it traces one under the load of real clients, and what
//! they were told, and when, is what was said. `power-cut-replay` makes the folders that its power cuts leave ([`replay`]).
//!
//! Caveats: the model is harsher than ext4 (nothing is written back by and by; a rename may be lost although a later file
//! was synced; a file may grow before its bytes arrive), and kinder in one way: a block is never half written.

mod content;
pub mod disk;
pub mod event;
mod random;
pub mod replay;
mod rig;
mod strace;
pub mod trace;
pub mod writers;

use std::path::Path;

pub use random::Random;
pub use rig::{Cuts, Failure, Report, Trace, cut, record, strace_is_here};

/// Something that writes to disk and claims that it lasts.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    /// A short name, for the command line and the report.
    pub name: &'static str,
    /// Writes into the empty folder, and calls [`say`] after each step that is on disk. The seed makes it vary.
    pub work: fn(&Path, u64) -> anyhow::Result<()>,
    /// Opens the folder and fails if it contradicts what was said. The lines are in the order they were said.
    pub check: fn(&Path, &[String]) -> anyhow::Result<()>,
    /// The syncs without which acknowledged writes are lost.
    pub syncs: &'static [Sync],
}

/// System calls that make something last, named by call and file.
#[derive(Debug, Clone, Copy)]
pub struct Sync {
    /// Which line of the program this is, in words.
    pub what: &'static str,
    /// `fsync` or `fdatasync`.
    pub call: &'static str,
    /// How the path ends, in the folder of the writer; empty for the folder itself. Before a `*` stands how it begins.
    pub path_end: &'static str,
}

impl Sync {
    /// Says whether a call on a path (relative to the folder) is one of these.
    pub fn is(&self, call: &str, path: &Path) -> bool {
        let path = path.to_str().unwrap_or_default();
        let (begin, end) = self.path_end.split_once('*').unwrap_or(("", self.path_end));
        self.call == call && if self.path_end.is_empty() { path.is_empty() } else { path.starts_with(begin) && path.ends_with(end) }
    }
}

/// Says that what the line tells is on disk now. One line is one write, so lines of threads do not mix.
pub fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush()).expect("the rig listens");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_is_named_by_call_and_path() {
        let is = |path_end, path: &str| Sync { what: "", call: "fsync", path_end }.is("fsync", Path::new(path));
        assert!(is("", "") && !is("", "a") && is(".segment", "a/1.segment") && !is("a", "a/1.segment"));
        assert!(is("a/*.segment", "a/1.segment") && !is("a/*.segment", "b/a/1.segment") && !is("a/*.segment", "a/LOCK"));
        assert!(!Sync { what: "", call: "fdatasync", path_end: "a" }.is("fsync", Path::new("a")));
    }
}
