//! Tasks that are to stop: their homes give them no further inputs.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use shoal_state::{FunctionId, TaskId};

use super::error::Error;
use super::handle::Calls;
use super::rules::Request;

/// How long the homes of tasks may take to hear that these are to stop. Whoever plans waits for it, and what was planned ages meanwhile.
const TOLD_WITHIN: Duration = Duration::from_secs(1);

impl Calls {
    /// Gives a task no further inputs: it is told to stop when it asks.
    pub async fn stop_task(&self, task: TaskId, pool: FunctionId) -> Result<(), Error> {
        self.done("stop a task", Request::StopTask { task, pool }).await
    }

    /// As [`Self::stop_task`] with many at once. Returns those whose homes have taken notice within a moment.
    pub async fn stop_tasks(&self, tasks: Vec<(TaskId, FunctionId)>) -> BTreeSet<TaskId> {
        let told = tasks.into_iter().map(async |(task, pool)| match self.ground.within(TOLD_WITHIN, self.stop_task(task, pool)).await {
            Some(Ok(())) => Some(task),
            Some(Err(error)) => {
                tracing::warn!(%task, %error, "cannot keep inputs from a task that is to stop or to give way");
                None
            }
            None => {
                tracing::warn!(%task, "cannot keep inputs from a task that is to stop or to give way: its home does not answer");
                None
            }
        });
        join_all(told).await.into_iter().flatten().collect()
    }
}
