//! Who reads what a call yields has each item once and in order, whichever nodes and containers come and go; and what the container
//! whose outcome counts has put out can be read for as long as the process of its node lives.

use std::collections::BTreeMap;

use shoal_state::{CallId, TaskId};

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut readers: BTreeMap<(CallId, u64), u64> = BTreeMap::new();
    // What nodes have of a task's items, for as long as they live.
    let mut kept: BTreeMap<(CallId, TaskId), (usize, u64)> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::YieldTaken { call, task, node, index } => drop(kept.insert((*call, *task), (*node, *index))),
            Event::NodeStopped { node } => kept.retain(|_, (of, _)| of != node),
            Event::Yielded { call, reader, after, seen } => {
                let has = readers.entry((*call, *reader)).or_default();
                if has != after {
                    return Err(format!("at {at:?} reader {reader} of {call} goes on after item {after}, and has {has}"));
                }
                for (index, says) in seen {
                    if *index != *has + 1 || *says != *has {
                        return Err(format!("at {at:?} reader {reader} of {call} has {has} items, and the next is {index}: {says}"));
                    }
                    *has = *index;
                }
            }
            Event::YieldedGone { call, reader, has, task: Some(task) } => {
                if let Some((node, index)) = kept.get(&(*call, *task)).filter(|(_, index)| index > has) {
                    return Err(format!(
                        "at {at:?} reader {reader} of {call} gets nothing after item {has}, and node {node} has {index} of {task}"
                    ));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
