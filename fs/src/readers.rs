//! The processes that read: which of them have to die, and which are to end soon.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;

/// Whether a reader may go on waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Its read may take as long as any.
    Full,
    /// It is to end: a read of it waits no longer than this.
    Upto(Duration),
    /// It was killed, and ends once its reads do; or it has ended.
    None,
}

/// A thread that reads, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reader {
    /// The process that it is of.
    pub(crate) process: u32,
    pub(crate) patience: Patience,
}

/// Processes that are to end, with how long their reads may wait.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    ending: Mutex<HashMap<u32, Duration>>,
}

impl Readers {
    /// Lets reads of a process wait no longer than `limit` from now on; a shorter time that was said before stays.
    pub(crate) fn hurry(&self, process: u32, limit: Duration) {
        let mut ending = self.ending.lock();
        ending.retain(|process, _| Path::new("/proc").join(process.to_string()).exists());
        let known = ending.entry(process).or_insert(limit);
        *known = limit.min(*known);
    }

    /// Says whether a process is to end, of any.
    pub(crate) fn any_ends(&self) -> bool {
        !self.ending.lock().is_empty()
    }

    /// Looks at a thread or process.
    pub(crate) fn look(&self, reader: u32) -> Reader {
        let (process, killed) = match std::fs::read_to_string(format!("/proc/{reader}/status")) {
            Ok(status) => (process_of(&status).unwrap_or(reader), has_to_die(&status)),
            Err(error) => (reader, matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))),
        };
        let patience = match self.ending.lock().get(&process) {
            _ if killed => Patience::None,
            Some(limit) => Patience::Upto(*limit),
            None => Patience::Full,
        };
        Reader { process, patience }
    }
}

/// Reads from the kernel's words on a thread which process it is of.
fn process_of(status: &str) -> Option<u32> {
    value(status, "Tgid:")?.parse().ok()
}

/// Reads from the kernel's words on a thread whether it has to die: SIGKILL waits for it, or it is dead.
pub(crate) fn has_to_die(status: &str) -> bool {
    let pending = value(status, "SigPnd:").and_then(|signals| u64::from_str_radix(signals, 16).ok()).unwrap_or(0);
    pending & (1 << (libc::SIGKILL - 1)) != 0 || value(status, "State:").is_some_and(|state| state.starts_with(['Z', 'X']))
}

fn value<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}
