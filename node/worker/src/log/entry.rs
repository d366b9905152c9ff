//! One line with its tags, what selects lines, and where they are.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shoal_state::{AppId, CallId, FunctionId, InputId, TaskId};

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// The container's standard output.
    Stdout,
    /// The container's standard error.
    Stderr,
    /// Shoal itself: why a container ended, what was dropped.
    System,
}

impl Stream {
    /// Returns the number that clients know the stream by.
    pub const fn fd(self) -> u8 {
        match self {
            Self::Stdout => 1,
            Self::Stderr => 2,
            Self::System => 3,
        }
    }

    /// Finds a stream by its number.
    pub const fn of_fd(fd: u8) -> Option<Self> {
        match fd {
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            3 => Some(Self::System),
            _ => None,
        }
    }
}

/// A line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Nanoseconds since 1970-01-01 UTC.
    pub timestamp_ns: u64,
    /// Where it came from.
    pub stream: Stream,
    /// The app of the task.
    pub app: AppId,
    /// The task that printed it.
    pub task: TaskId,
    /// The function of the task.
    pub function: FunctionId,
    /// The input that the task had then, when there was exactly one.
    pub input: Option<InputId>,
    /// The call of that input.
    pub call: Option<CallId>,
    /// The text, newline included.
    pub data: String,
}

/// What selects lines: all that is set must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Of this app.
    pub app: Option<AppId>,
    /// Of this task.
    pub task: Option<TaskId>,
    /// Of one of these functions; of any when there is none.
    pub functions: Vec<FunctionId>,
    /// Of this input.
    pub input: Option<InputId>,
    /// Of this call.
    pub call: Option<CallId>,
    /// From this stream.
    pub stream: Option<Stream>,
    /// Has this text in it.
    pub search: Option<String>,
    /// Not before this time, in nanoseconds since 1970.
    pub since_ns: Option<u64>,
    /// Before this time, in nanoseconds since 1970.
    pub until_ns: Option<u64>,
}

impl Filter {
    /// Selects the lines of an app.
    pub fn app(app: AppId) -> Self {
        Self { app: Some(app), ..Self::default() }
    }

    /// Selects the lines of a task.
    pub fn task(task: TaskId) -> Self {
        Self { task: Some(task), ..Self::default() }
    }

    /// Returns the times that are selected, in nanoseconds since 1970.
    pub(crate) fn times(&self) -> Range<u64> {
        self.since_ns.unwrap_or(0)..self.until_ns.unwrap_or(u64::MAX)
    }
}

/// A place in the store: a file's number and an offset in it, in bytes. Later lines have greater cursors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Cursor {
    pub(crate) file: u64,
    pub(crate) offset: u64,
}

impl Cursor {
    /// Before the oldest line.
    pub const START: Self = Self { file: 0, offset: 0 };
}

/// A text that is not a cursor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a place in the logs: expected two numbers and a dash between them")]
pub struct NotACursor {
    text: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.file, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = NotACursor;

    fn from_str(text: &str) -> Result<Self, NotACursor> {
        let parse = || {
            let (file, offset) = text.split_once('-')?;
            Some(Self { file: file.parse().ok()?, offset: offset.parse().ok()? })
        };
        parse().ok_or_else(|| NotACursor { text: text.chars().take(64).collect() })
    }
}
