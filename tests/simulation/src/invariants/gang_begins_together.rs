//! An input is given to a gang once all of its containers have come and none works on another one, and all are given the same, in the
//! same order.

use std::collections::{BTreeMap, BTreeSet};

use shoal_state::{InputId, TaskId};

use super::{Events, Ranks};
use crate::history::Event;

#[derive(Default)]
struct Known {
    ranks: Ranks,
    began: BTreeSet<TaskId>,
    works: BTreeMap<TaskId, InputId>,
    /// What each task was given, in order.
    given: BTreeMap<TaskId, Vec<(InputId, u32)>>,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut known = Known::default();
    for (at, event) in events {
        known.ranks.hear(event);
        known.hear(event).map_err(|why| format!("at {at:?} {why}"))?;
    }
    Ok(())
}

impl Known {
    fn hear(&mut self, event: &Event) -> Result<(), String> {
        match event {
            Event::ContainerBegan { task, .. } => drop(self.began.insert(*task)),
            Event::ContainerEnded { task, .. } | Event::RankEnded { task, .. } => drop(self.works.remove(task)),
            Event::RunBegan { task, input, retry_count, .. } => {
                let gang = self.ranks.gang(*task).unwrap_or_default();
                if let Some(absent) = gang.iter().find(|other| !self.began.contains(other)) {
                    return Err(format!("{input} is given to {task}, and {absent} of its gang has not begun"));
                }
                if let Some((other, works)) = gang.iter().find_map(|other| Some((other, self.works.get(other)?))) {
                    return Err(format!("{input} is given to {task}, and {other} of its gang works on {works}"));
                }
                if !gang.is_empty() {
                    self.given.entry(*task).or_default().push((*input, *retry_count));
                }
            }
            Event::RankBegan { task, input, retry_count, .. } => {
                self.works.insert(*task, *input);
                let given = self.given.entry(*task).or_default();
                given.push((*input, *retry_count));
                let (count, last) = (given.len(), given.last().copied());
                let first = self.ranks.gang(*task).and_then(|gang| gang.first());
                let of_first = first.and_then(|first| self.given.get(first)).and_then(|given| given.get(count - 1)).copied();
                if of_first != last {
                    return Err(format!("{task} is given {last:?} as number {count}, and rank 0 of its gang {of_first:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
