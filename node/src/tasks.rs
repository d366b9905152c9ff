//! What this node knows of its tasks beyond the state: how far each has come, what it works on, what went wrong.
//!
//! Soft: it begins with the node, and a task's part ends with the task.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use shoal_state::{CallId, InputId, TaskId};

/// How far a task has come.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// When it first asked for anything; its start-up is over then.
    pub(crate) hello: Option<Instant>,
    /// The input it was given last, and its call.
    pub(crate) works_on: Option<(InputId, CallId)>,
    /// What went wrong, in words.
    pub(crate) notes: Vec<String>,
}

/// The tasks of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    known: Arc<Mutex<HashMap<TaskId, Known>>>,
}

impl Tasks {
    fn with<T>(&self, task: TaskId, change: impl FnOnce(&mut Known) -> T) -> T {
        let mut known = self.known.lock();
        change(known.entry(task).or_insert_with(|| Known { hello: None, works_on: None, notes: vec![] }))
    }

    /// Notes that a task's program asks for inputs; true the first time.
    pub(crate) fn hello(&self, task: TaskId) -> bool {
        self.with(task, |known| known.hello.replace(known.hello.unwrap_or_else(Instant::now)).is_none())
    }

    /// Notes which input a task was given.
    pub(crate) fn works_on(&self, task: TaskId, input: InputId, call: CallId) {
        self.with(task, |known| known.works_on = Some((input, call)));
    }

    /// Notes what went wrong.
    pub(crate) fn note(&self, task: TaskId, note: String) {
        self.with(task, |known| known.notes.push(note));
    }

    /// Returns what is known of a task.
    pub(crate) fn get(&self, task: TaskId) -> Option<Known> {
        self.known.lock().get(&task).cloned()
    }

    /// Forgets a task that has ended.
    pub(crate) fn forget(&self, task: TaskId) -> Option<Known> {
        self.known.lock().remove(&task)
    }
}
