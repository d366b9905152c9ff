//! What to do here, so that the containers match the tasks. Pure.

use std::collections::BTreeMap;

use shoal_state::model::{AppState, Task};
use shoal_state::{BootId, NodeId, State, TaskId};

/// What the state wants of one task of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// It is to run.
    Run,
    /// It is to stop.
    Stop {
        /// Why.
        why: String,
        /// Its whole app was stopped, so nobody waits for its work.
        app_stopped: bool,
    },
    /// It was assigned to an earlier start of this node, so its container is dead.
    Lost,
}

/// The tasks that the state has for this node.
pub type Tasks = BTreeMap<TaskId, (Task, Wanted)>;

/// What is known of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is being made, or runs.
    Runs,
    /// It was told to stop, with the grace of a stopped app or the usual one.
    Stops {
        /// With the grace of a stopped app.
        app_stopped: bool,
    },
    /// It was told to end at once.
    Dies,
    /// It is gone, and its end is being reported.
    Ended,
}

/// The containers of this node, with the generation of the assignment that each is for.
pub type Containers = BTreeMap<TaskId, (u64, Life)>;

/// One thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask the container to stop, then kill it after its grace.
    Stop {
        /// Which.
        task: TaskId,
        /// Why.
        why: String,
        /// With the grace of a stopped app.
        app_stopped: bool,
    },
    /// End the container at once: the state does not know it.
    Kill {
        /// Which.
        task: TaskId,
    },
    /// Report the end of a task that has no container.
    End {
        /// Which.
        task: TaskId,
        /// Why it has none.
        why: String,
    },
    /// Forget a container that is gone, and whose task is.
    Forget {
        /// Which.
        task: TaskId,
    },
    /// Make a container.
    Start {
        /// For which task.
        task: TaskId,
    },
}

/// Collects the tasks that the state has for one start of a node.
pub fn tasks(state: &State, node: NodeId, boot: BootId) -> Tasks {
    let wanted = |task: &Task| {
        if task.boot != boot {
            return Wanted::Lost;
        }
        let app_stopped = state.apps.get(&task.app).is_none_or(|app| app.state == AppState::Stopped);
        match &task.stopping {
            Some(why) => Wanted::Stop { why: why.clone(), app_stopped },
            None => Wanted::Run,
        }
    };
    let here = state.tasks.iter().filter(|(_, task)| task.node == node);
    here.map(|(id, task)| (*id, (task.clone(), wanted(task)))).collect()
}

/// Returns what this node must do so that its containers match the tasks the state wants here.
///
/// Stops come before starts: they free what the starts need. Carrying out the steps and asking again gives no steps, and
/// after a crash anywhere the next round goes on from what there is.
pub fn steps(desired: &Tasks, actual: &Containers) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut starts = Vec::new();
    for (task, (generation, life)) in actual {
        let same = desired.get(task).filter(|(wanted, _)| wanted.generation == *generation);
        steps.extend(match (same, life) {
            (None, Life::Ended) => Some(Step::Forget { task: *task }),
            (None, Life::Runs | Life::Stops { .. }) => Some(Step::Kill { task: *task }),
            (Some((_, Wanted::Stop { why, app_stopped })), Life::Runs | Life::Stops { app_stopped: false }) => {
                let told = *life != Life::Runs && !app_stopped;
                (!told).then(|| Step::Stop { task: *task, why: why.clone(), app_stopped: *app_stopped })
            }
            _ => None,
        });
    }
    for (task, (_, wanted)) in desired.iter().filter(|(task, _)| !actual.contains_key(task)) {
        match wanted {
            Wanted::Run => starts.push(Step::Start { task: *task }),
            Wanted::Stop { why, .. } => steps.push(Step::End { task: *task, why: format!("stopped before it started: {why}") }),
            Wanted::Lost => steps.push(Step::End { task: *task, why: "node restarted".into() }),
        }
    }
    steps.extend(starts);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_state::{AppId, FunctionId, Timestamp};

    fn task(generation: u64) -> Task {
        let (of, on) = ((FunctionId::from_random(1), AppId::from_random(1)), (NodeId::from_random(1), BootId::from_random(1)));
        Task { generation, ..Task::new(of, on, Timestamp(0)) }
    }

    /// Reads `1:run 2:stop 3:stop! 4:lost` and `1:runs 2:stops 3:dies 4:ended 5/2:runs` (generation 2).
    fn round(desired: &str, actual: &str) -> String {
        let words = |text: &str| -> Vec<(u128, u64, String)> {
            let word = |word: &str| {
                let (id, what) = word.split_once(':').unwrap();
                let (id, generation) = id.split_once('/').unwrap_or((id, "1"));
                (id.parse().unwrap(), generation.parse().unwrap(), what.to_owned())
            };
            text.split_whitespace().map(word).collect()
        };
        let wanted = |what: &str| match what {
            "run" => Wanted::Run,
            "stop" => Wanted::Stop { why: "idle".into(), app_stopped: false },
            "stop!" => Wanted::Stop { why: "by user".into(), app_stopped: true },
            "lost" => Wanted::Lost,
            other => panic!("{other}"),
        };
        let life = |what: &str| match what {
            "runs" => Life::Runs,
            "stops" => Life::Stops { app_stopped: false },
            "stops!" => Life::Stops { app_stopped: true },
            "dies" => Life::Dies,
            "ended" => Life::Ended,
            other => panic!("{other}"),
        };
        let desired = words(desired).into_iter().map(|(id, generation, what)| (TaskId::from_random(id), (task(generation), wanted(&what))));
        let actual = words(actual).into_iter().map(|(id, generation, what)| (TaskId::from_random(id), (generation, life(&what))));
        let text = |step: &Step| match step {
            Step::Stop { task, why, app_stopped } => format!("stop{} {} ({why})", if *app_stopped { "!" } else { "" }, task.bits()),
            Step::Kill { task } => format!("kill {}", task.bits()),
            Step::End { task, why } => format!("end {} ({why})", task.bits()),
            Step::Forget { task } => format!("forget {}", task.bits()),
            Step::Start { task } => format!("start {}", task.bits()),
        };
        let steps: Vec<String> = steps(&desired.collect(), &actual.collect()).iter().map(text).collect();
        steps.join(", ")
    }

    #[test]
    fn containers_come_to_match_tasks() {
        let table = [
            ("", "", ""),
            ("1:run", "", "start 1"),
            ("1:run", "1:runs", ""),
            // Stops come before starts, whatever the ids.
            ("1:run 2:stop", "2:runs", "stop 2 (idle), start 1"),
            ("1:run 2:run", "3:runs", "kill 3, start 1, start 2"),
            // Once told is enough, but a stopped app shortens the grace.
            ("1:stop", "1:stops", ""),
            ("1:stop!", "1:stops", "stop! 1 (by user)"),
            ("1:stop!", "1:stops!", ""),
            ("1:stop", "1:dies", ""),
            ("", "1:dies 2:stops", "kill 2"),
            // What has no container ends at once.
            ("1:stop", "", "end 1 (stopped before it started: idle)"),
            ("1:lost", "", "end 1 (node restarted)"),
            // An end that is being reported is neither started again nor forgotten.
            ("1:run 2:stop", "1:ended 2:ended", ""),
            ("", "1:ended", "forget 1"),
            // Another generation is another task: the old container goes first, then the new one comes.
            ("1/2:run", "1:runs", "kill 1"),
            ("1/2:run", "1:ended", "forget 1"),
        ];
        for (desired, actual, expected) in table {
            assert_eq!(round(desired, actual), expected, "desired {desired:?}, actual {actual:?}");
        }
    }
}
