//! Further processes in this node's containers: what they print is kept until it was read, and what they are sent is counted.
//!
//! Whoever started one may lose its connection at any moment and come back, through another node even. So a process lives on without
//! its client, its output is read from any place ([`output`]), and its stdin takes each byte once, whoever sends it again.
//!
//! Caveats: it is soft state. A process ends with its container, and what is known of it with the node; of one that has ended all is
//! kept for [`ENDED_FOR`].

mod output;
mod session;
pub(crate) mod stdin;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_runtime::{Container, ExitStatus};
use shoal_state::TaskId;

pub use output::READ_BYTES_MAX;
pub use session::Session;

/// How many such processes one container may have at once. Beyond it, starting another is refused.
pub const RUNNING_MAX: usize = 128;
/// How many that have ended are remembered on a node; then the oldest is forgotten.
const ENDED_MAX: usize = 512;
/// For how long one that has ended is remembered.
pub const ENDED_FOR: Duration = Duration::from_secs(600);
/// The longest name of a process: clients give them UUIDs.
const NAME_BYTES_MAX: usize = 128;

/// Why a process cannot be started, or does not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// There is none of that name.
    #[error("container {task} has no process {exec}: none was started by that name, or it has ended some time ago")]
    Unknown {
        /// The container's task.
        task: TaskId,
        /// The name of the process.
        exec: String,
    },
    /// The container is not there any more.
    #[error("container {task} has ended")]
    NoContainer {
        /// Its task.
        task: TaskId,
    },
    /// The container is still being started.
    #[error("container {task} is still being started: try again in a moment")]
    NotYet {
        /// Its task.
        task: TaskId,
    },
    /// The request cannot be right.
    #[error("cannot run a process in container {task}: {why}")]
    Invalid {
        /// The container's task.
        task: TaskId,
        /// What is wrong.
        why: String,
    },
    /// The container has too many of them.
    #[error("container {task} has {RUNNING_MAX} processes that were started from outside, and may have no more: wait until one ends")]
    TooMany {
        /// Its task.
        task: TaskId,
    },
    /// It could not be run.
    #[error("cannot run {program:?} in container {task}: {why}")]
    NotRun {
        /// The container's task.
        task: TaskId,
        /// What was to be run.
        program: String,
        /// What stood in the way.
        why: String,
    },
    /// What is written does not go on where the last write ended.
    #[error("process {exec} has {taken} bytes of its input, and cannot go on at {offset}")]
    Ahead {
        /// The name of the process.
        exec: String,
        /// How much it has.
        taken: u64,
        /// Where the write begins.
        offset: u64,
    },
    /// Nothing can be written to it any more.
    #[error("process {exec} takes no more input: {why}")]
    Closed {
        /// The name of the process.
        exec: String,
        /// Why.
        why: String,
    },
    /// It does not read what it is sent.
    #[error("process {exec} does not read its input: {taken} bytes of it are taken so far")]
    Stuck {
        /// The name of the process.
        exec: String,
        /// How much it has.
        taken: u64,
    },
    /// Another stream took over its input.
    #[error("the input of process {exec} is written by another stream now")]
    Overtaken {
        /// The name of the process.
        exec: String,
    },
    /// What it printed there is not kept any more, or not printed yet.
    #[error("the output of process {exec} is kept from byte {from} to {to}, and cannot be read at {offset}")]
    NotKept {
        /// The name of the process.
        exec: String,
        /// The first byte that is kept.
        from: u64,
        /// The end of what is there.
        to: u64,
        /// Where it was to be read.
        offset: u64,
    },
    /// The disk did not take or give what it printed.
    #[error("the output of process {exec} cannot be kept: {why}")]
    Disk {
        /// The name of the process.
        exec: String,
        /// What stood in the way.
        why: String,
    },
}

/// What becomes of what a process prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Printed {
    /// It is kept, to be read.
    Kept,
    /// It is thrown away.
    Dropped,
    /// It goes where its stdout goes.
    WithStdout,
}

/// A terminal for a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its height, in characters.
    pub rows: u16,
    /// Its width, in characters.
    pub columns: u16,
    /// Whether it is hung up when nobody has read from it for a while.
    pub hangs_up: bool,
}

/// A process to be started in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The container's task.
    pub task: TaskId,
    /// The name of the process, which whoever starts it chooses. A second start of the same name is the same start.
    pub exec: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables to add to the container's, or to change.
    pub env: Vec<(String, String)>,
    /// The working directory; none for the container's.
    pub cwd: Option<String>,
    /// Its terminal, if it has one: what it prints is then all on its stdout.
    pub terminal: Option<Terminal>,
    /// What becomes of its stdout.
    pub stdout: Printed,
    /// What becomes of its stderr.
    pub stderr: Printed,
    /// When it is killed.
    pub timeout: Option<Duration>,
}

impl Spec {
    fn check(&self) -> Result<(), Error> {
        let invalid = |why: String| Err(Error::Invalid { task: self.task, why });
        match self {
            _ if self.exec.is_empty() || self.exec.len() > NAME_BYTES_MAX => {
                invalid(format!("its name must have 1 to {NAME_BYTES_MAX} bytes, and has {}", self.exec.len()))
            }
            _ if self.argv.first().is_none_or(String::is_empty) => invalid("no program is named".to_owned()),
            _ => Ok(()),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Code(code) => Self::Code(code),
            ExitStatus::Signal(signal) => Self::Signal(signal),
        }
    }
}

/// One of the two streams that a process prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fd {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

/// A write to the stdin of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Write {
    /// The stream that writes, from [`Session::stream`]; none for a write by itself.
    pub stream: Option<u64>,
    /// How many bytes come before.
    pub offset: u64,
    /// The bytes.
    pub data: Vec<u8>,
    /// Whether nothing comes after.
    pub eof: bool,
}

type Sessions = BTreeMap<(TaskId, String), Arc<Session>>;

/// The processes of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Execs {
    dir: PathBuf,
    sessions: Arc<Mutex<Sessions>>,
}

impl Execs {
    /// Keeps what processes print in `dir`, in files without names: nothing is left of them when the node ends.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, sessions: Arc::default() })
    }

    /// Starts a process, or waits for an earlier start of the same name.
    ///
    /// # Errors
    /// Those of the spec, [`Error::TooMany`], and why it could not be run.
    pub async fn start(&self, spec: Spec, container: &Arc<Container>) -> Result<(), Error> {
        spec.check()?;
        let (task, name) = (spec.task, spec.exec.clone());
        let disk = |error: io::Error| Error::Disk { exec: name.clone(), why: error.to_string() };
        let session = {
            let mut sessions = self.sessions.lock();
            forget_old(&mut sessions, Instant::now());
            let key = (task, spec.exec.clone());
            match sessions.get(&key) {
                Some(found) => Arc::clone(found),
                None if running(&sessions, task) >= RUNNING_MAX => return Err(Error::TooMany { task }),
                None => {
                    let session = Session::begin(spec, Arc::clone(container), &self.dir).map_err(disk)?;
                    sessions.insert(key, Arc::clone(&session));
                    session
                }
            }
        };
        let started = session.started().await;
        if started.is_err() {
            self.sessions.lock().remove(&(task, name));
        }
        started
    }

    /// Finds a process that was started.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub fn get(&self, task: TaskId, exec: &str) -> Result<Arc<Session>, Error> {
        let found = self.sessions.lock().get(&(task, exec.to_owned())).cloned();
        found.ok_or_else(|| Error::Unknown { task, exec: exec.to_owned() })
    }
}

fn running(sessions: &Sessions, task: TaskId) -> usize {
    sessions.iter().filter(|((of, _), session)| *of == task && session.ended_at().is_none()).count()
}

/// Forgets what ended long ago, and the oldest beyond what is remembered.
fn forget_old(sessions: &mut Sessions, now: Instant) {
    sessions.retain(|_, session| session.ended_at().is_none_or(|at| now.duration_since(at) < ENDED_FOR));
    let mut ended: Vec<_> = sessions.iter().filter_map(|(key, session)| Some((session.ended_at()?, key.clone()))).collect();
    ended.sort();
    let beyond = ended.len().saturating_sub(ENDED_MAX);
    for (_, key) in ended.drain(..beyond) {
        sessions.remove(&key);
    }
}
