//! What this node knows of its tasks beyond the state: how far each has come, what it works on, what went wrong.
//!
//! Soft: it begins with the node, and a task's part ends with the task.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use shoal_state::model::{Task, TaskEnd};
use shoal_state::{AppId, CallId, FunctionId, InputId, TaskId, Timestamp};
use tokio_util::task::AbortOnDropHandle;

/// How far a task has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// When it first asked for anything; its start-up is over then.
    pub(crate) hello: Option<Instant>,
    /// The input it was given last, and its call.
    pub(crate) works_on: Option<(InputId, CallId)>,
    /// It was told that nothing more comes for it.
    pub(crate) dismissed: bool,
    /// Why its container does not go on from a zygote; none when it does, or is not planned yet.
    pub(crate) plain: Option<String>,
    /// What went wrong, in words.
    pub(crate) notes: Vec<String>,
}

/// How many ended tasks are remembered; then the oldest is forgotten.
const ENDED_MAX: usize = 4096;

/// A task that has ended on this node.
#[derive(Debug, Clone)]
pub(crate) struct EndedTask {
    id: TaskId,
    /// The app that it belonged to.
    pub(crate) app: AppId,
    /// The function that it ran.
    pub(crate) function: FunctionId,
    /// When it was decided.
    pub(crate) created: Timestamp,
    /// When and how it ended.
    pub(crate) end: TaskEnd,
}

#[derive(Debug, Default)]
struct Entry {
    known: Known,
    /// What ends the inputs that it works on, should they take too long, with the number of their try.
    limits: HashMap<InputId, (u32, AbortOnDropHandle<()>)>,
}

/// The tasks of this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    known: Arc<Mutex<HashMap<TaskId, Entry>>>,
    ended: Arc<Mutex<VecDeque<EndedTask>>>,
}

impl Tasks {
    fn with<T>(&self, task: TaskId, change: impl FnOnce(&mut Entry) -> T) -> T {
        change(self.known.lock().entry(task).or_default())
    }

    /// Notes that a task's program asks for inputs; true the first time.
    pub(crate) fn hello(&self, task: TaskId) -> bool {
        self.with(task, |entry| entry.known.hello.replace(entry.known.hello.unwrap_or_else(Instant::now)).is_none())
    }

    /// Notes which input a task was given.
    pub(crate) fn works_on(&self, task: TaskId, input: InputId, call: CallId) {
        self.with(task, |entry| entry.known.works_on = Some((input, call)));
    }

    /// Says whether a task that has come to ask for inputs has none.
    pub(crate) fn is_idle(&self, task: TaskId) -> bool {
        self.known.lock().get(&task).is_some_and(|entry| entry.known.hello.is_some() && entry.limits.is_empty())
    }

    /// Notes that a task was told that nothing more comes for it.
    pub(crate) fn dismissed(&self, task: TaskId) {
        self.with(task, |entry| entry.known.dismissed = true);
    }

    /// Holds what ends a try of an input that takes too long, until the try or the task is done.
    pub(crate) fn limit(&self, task: TaskId, (input, retry_count): (InputId, u32), limit: AbortOnDropHandle<()>) {
        self.with(task, |entry| entry.limits.insert(input, (retry_count, limit)));
    }

    /// Notes that a task is done with an input.
    pub(crate) fn done(&self, task: TaskId, input: InputId) {
        if let Some(entry) = self.known.lock().get_mut(&task) {
            entry.limits.remove(&input);
        }
    }

    /// Says whether a task has not said yet that it is done with a try of an input.
    pub(crate) fn has(&self, task: TaskId, input: InputId, retry_count: u32) -> bool {
        let is_this = |entry: &Entry| entry.limits.get(&input).is_some_and(|(of, _)| *of == retry_count);
        self.known.lock().get(&task).is_some_and(is_this)
    }

    /// Notes why a task's container does not go on from a zygote.
    pub(crate) fn starts_plain(&self, task: TaskId, why: String) {
        self.with(task, |entry| entry.known.plain = Some(why));
    }

    /// Notes what went wrong.
    pub(crate) fn note(&self, task: TaskId, note: String) {
        self.with(task, |entry| entry.known.notes.push(note));
    }

    /// Returns what is known of a task.
    pub(crate) fn get(&self, task: TaskId) -> Option<Known> {
        self.known.lock().get(&task).map(|entry| entry.known.clone())
    }

    /// Forgets a task that has ended.
    pub(crate) fn forget(&self, task: TaskId) -> Option<Known> {
        self.known.lock().remove(&task).map(|entry| entry.known)
    }

    /// Remembers how a task ended, for a while.
    pub(crate) fn remember(&self, id: TaskId, task: &Task, end: TaskEnd) {
        let mut ended = self.ended.lock();
        if ended.len() >= ENDED_MAX {
            ended.pop_front();
        }
        ended.push_back(EndedTask { id, app: task.app, function: task.function, created: task.created, end });
    }

    /// Returns how a task ended, if it did so here and lately.
    pub(crate) fn ended(&self, id: TaskId) -> Option<EndedTask> {
        self.ended.lock().iter().rev().find(|ended| ended.id == id).cloned()
    }
}
