//! Gangs: containers of a clustered function that are one. The SDK calls one a cluster, which here is all the machines.

use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::{FunctionId, TaskId};

/// Containers of a clustered function that were placed together, take each input together, and end together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gang {
    /// What they run.
    pub function: FunctionId,
    /// Their tasks, in the order of their ranks. It does not change: a task that has ended is named still.
    pub tasks: Vec<TaskId>,
    /// When they were placed.
    pub created: Timestamp,
}

impl Gang {
    /// Returns the rank of a task.
    pub fn rank(&self, task: TaskId) -> Option<usize> {
        self.tasks.iter().position(|other| *other == task)
    }

    /// Returns the task of rank 0, whose outcomes count; none of a gang without containers, which there is not.
    pub fn first(&self) -> Option<TaskId> {
        self.tasks.first().copied()
    }
}
