//! What a client was told is cancelled begins nowhere any more, what runs of it is stopped, and it ends as cancelled unless it was done
//! before its container heard of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_calls::calls::Status;
use shoal_state::{CallId, InputId, TaskId};

use super::{Events, Troubles, machines_restarted};
use crate::history::Event;

/// A container may be given an input until so long after.
const GIVEN_WITHIN: Duration = Duration::from_secs(2);
/// A container has stopped within this time, in which nothing went wrong anywhere.
const STOPPED_WITHIN: Duration = Duration::from_secs(20);
/// What was wrong with a node excuses what follows within this time.
const EXCUSED: Duration = Duration::from_secs(10);

struct Run {
    node: usize,
    began: Duration,
}

#[derive(Default)]
struct Known {
    cancelled: BTreeMap<InputId, Duration>,
    done: BTreeSet<InputId>,
    /// What runs, and where.
    runs: BTreeMap<(TaskId, InputId), Run>,
    trouble: Troubles,
    /// When anything went wrong last.
    wrong: Duration,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let restarted = machines_restarted(events);
    let mut excused: BTreeSet<CallId> = BTreeSet::new();
    let mut known = Known::default();
    for (at, event) in events {
        known.runs_on(*at).map_err(|why| format!("at {at:?} {why}"))?;
        match event {
            Event::Opened { call, lasting: false } if restarted => drop(excused.insert(*call)),
            Event::Cancelled { call, inputs } if !excused.contains(call) => {
                known.cancelled.extend(inputs.iter().map(|input| (*input, *at)));
            }
            event => known.hear(*at, event).map_err(|why| format!("at {at:?} {why}"))?,
        }
    }
    Ok(())
}

impl Known {
    /// Nothing that is cancelled runs for long.
    fn runs_on(&self, at: Duration) -> Result<(), String> {
        let since = |input| self.cancelled.get(input).map(|since| (*since).max(self.wrong));
        let late = |input| since(input).is_some_and(|since| since + STOPPED_WITHIN < at);
        let late = self.runs.iter().find(|((_, input), _)| late(input));
        let why = |((task, input), run): (&(TaskId, InputId), &Run)| {
            format!("{input} is cancelled, and {task} on node {} goes on with it, since {:?}", run.node, run.began)
        };
        late.map_or(Ok(()), |late| Err(why(late)))
    }

    fn hear(&mut self, at: Duration, event: &Event) -> Result<(), String> {
        match event {
            Event::Trouble { node, what } => {
                self.trouble.hear(*node, what, at);
                self.wrong = at;
            }
            Event::NodeStarted { .. } => self.wrong = at,
            Event::NodeStopped { node } => {
                self.wrong = at;
                self.runs.retain(|_, run| run.node != *node);
            }
            Event::ContainerEnded { task, .. } => self.runs.retain(|(of, _), _| of != task),
            Event::RunBegan { task, node, input, .. } => {
                let since = self.cancelled.get(input).filter(|since| **since + GIVEN_WITHIN < at);
                if let Some(since) = since.filter(|since| !self.trouble.since(*node, since.saturating_sub(EXCUSED))) {
                    return Err(format!("{input} is given to {task} on node {node}, and was cancelled at {since:?}"));
                }
                self.runs.insert((*task, *input), Run { node: *node, began: at });
            }
            Event::WorkDone { task, input } => {
                self.done.insert(*input);
                self.runs.remove(&(*task, *input));
            }
            Event::RunStopped { task, input } => drop(self.runs.remove(&(*task, *input))),
            Event::Final { seen, .. } => {
                let other =
                    |input, status| status != Status::Terminated && self.cancelled.contains_key(&input) && !self.done.contains(&input);
                if let Some(other) = seen.iter().find(|seen| other(seen.input, seen.status)) {
                    return Err(format!("{} was cancelled, and has another outcome in the end: {other:?}", other.input));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
