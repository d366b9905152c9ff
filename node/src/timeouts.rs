//! A function's `timeout`: how long one try of an input may take, by the clock of the node that runs it.
//!
//! The caller gets its outcome at the moment the time is up, whatever the container does; then the container is told to
//! stop, since nothing else surely ends what runs in it: SIGINT, so that its exit hooks run, and SIGKILL after its grace.
//! A container that has other inputs beside it is told to give up this one first, and is stopped if it does not; the next try does not
//! come to it before.
//! Should this node die meanwhile, the input's home ends it somewhat later.

use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::{LeasedInput, Outcome, Status};
use shoal_state::model::Task;
use shoal_state::{Command, InputId, TaskId};
use shoal_worker::log::{Entry, Stream};
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, now};

/// How long a container with other inputs has to let go of one.
const LETS_GO: Duration = Duration::from_secs(10);
/// How often is looked whether it has.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Begins the time of inputs that a task was just given. It ends when the task is done with them.
pub(crate) fn watch(api: &Api, id: TaskId, task: &Task, inputs: &[LeasedInput]) {
    let state = api.local();
    let Some(function) = state.functions.get(&task.function).filter(|function| function.timeout_ms > 0) else { return };
    let limit = Duration::from_millis(function.timeout_ms);
    let shares = function.inputs_concurrent > 1 && function.batch_max == 0;
    for input in inputs {
        let watching = watch_one(api.clone(), (id, task.clone()), (input.input, input.retry_count), limit, shares);
        api.tasks.limit(id, (input.input, input.retry_count), AbortOnDropHandle::new(tokio::spawn(watching)));
    }
}

async fn watch_one(api: Api, (id, task): (TaskId, Task), (input, retry_count): (InputId, u32), limit: Duration, shares: bool) {
    tokio::time::sleep(limit).await;
    // What follows must not be cut off when the task's outcome comes in between.
    tokio::spawn(async move {
        let why = format!("input {input} took longer than its function's timeout of {} s", limit.as_secs_f64());
        let then = if shares { "it is cancelled" } else { "its container is stopped" };
        say(&api, id, &task, input, &format!("{why}; {then}")).await;
        let outcome = Outcome { input, retry_count, status: Status::TimedOut, result: Bytes::new() };
        if let Err(error) = api.calls.finish((!shares).then_some((id, task.function)), vec![outcome]).await {
            tracing::warn!(task = %id, %input, %error, "cannot write that an input took too long");
        }
        if shares && lets_go(&api, id, input, retry_count).await {
            return;
        }
        if let Err(error) = api.calls.stop_task(id, task.function).await {
            tracing::warn!(task = %id, %error, "cannot keep inputs from a task that is to stop");
        }
        if let Err(error) = api.propose(Command::StopTask { id, why }).await {
            tracing::debug!(task = %id, %error, "a task whose input took too long has ended already");
        }
    });
}

/// Waits until a container has let go of an input; false when it does not in time.
async fn lets_go(api: &Api, id: TaskId, input: InputId, retry_count: u32) -> bool {
    let until = tokio::time::Instant::now() + LETS_GO;
    while api.tasks.has(id, input, retry_count) {
        if tokio::time::Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

/// Tells whoever reads the logs of the task.
async fn say(api: &Api, id: TaskId, task: &Task, input: InputId, why: &str) {
    let line = Entry {
        timestamp_ns: now().0 * 1_000_000,
        stream: Stream::System,
        app: task.app,
        task: id,
        function: task.function,
        input: Some(input),
        call: None,
        data: format!("{why}\n"),
    };
    let logs = api.logs.clone();
    if let Err(error) = crate::api::blocking(move || logs.append(&line)).await {
        tracing::warn!(task = %id, %error, "cannot log that an input took too long");
    }
}
