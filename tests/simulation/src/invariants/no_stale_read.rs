//! A reader that begins after something was told to anybody is not told that there is nothing, or less, or something older. Outputs that
//! are told are true however few they are: who gets some asks for more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_state::{CallId, InputId, ShardId};

use super::{Events, machines_restarted};
use crate::history::Event;

#[derive(Default)]
struct Told {
    /// When the first one was told of an output.
    outputs: BTreeMap<(CallId, InputId), Duration>,
    /// When inputs were acknowledged.
    inputs: BTreeMap<CallId, Vec<(Duration, usize)>>,
    values: BTreeMap<ShardId, Vec<(Duration, u64)>>,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let restarted = machines_restarted(events);
    // What is tried again has no output for a while.
    let again: BTreeSet<CallId> = events
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Retried { call, .. } => Some(*call),
            Event::Opened { call, lasting: false } if restarted => Some(*call),
            _ => None,
        })
        .collect();
    let mut told = Told::default();
    for (at, event) in events {
        told.hear(*at, event, &again).map_err(|why| format!("at {at:?} {why}"))?;
    }
    Ok(())
}

impl Told {
    fn hear(&mut self, at: Duration, event: &Event, again: &BTreeSet<CallId>) -> Result<(), String> {
        match event {
            Event::Read { call, began, seen, all, .. } if !again.contains(call) => {
                let of_call = self.outputs.range((*call, InputId::MIN)..=(*call, InputId::MAX));
                let mut missed = of_call.filter(|((_, input), told)| **told < *began && !seen.iter().any(|seen| seen.input == *input));
                if let Some(((_, input), told)) = missed.next().filter(|_| *all && seen.is_empty()) {
                    return Err(format!(
                        "a reader that began at {began:?} is told that there are no outputs, and that of {input} was told at {told:?}"
                    ));
                }
                for seen in seen {
                    self.outputs.entry((*call, seen.input)).or_insert(at);
                }
            }
            Event::Put { call, inputs, .. } => self.inputs.entry(*call).or_default().push((at, inputs.len())),
            Event::Counted { call, began, inputs } if !again.contains(call) => {
                let put = self.inputs.get(call).into_iter().flatten().filter(|(told, _)| told < began);
                let least: usize = put.map(|(_, count)| count).sum();
                if (*inputs as usize) < least {
                    return Err(format!("a client that asked at {began:?} is told that {call} has {inputs} inputs, of {least} or more"));
                }
            }
            Event::ValueSet { shard, value } => self.values.entry(*shard).or_default().push((at, *value)),
            Event::ValueRead { shard, began, value } => {
                let set = self.values.get(shard).into_iter().flatten().filter(|(told, _)| told < began);
                let last = set.map(|(_, value)| *value).max().unwrap_or(0);
                if *value < last {
                    return Err(format!("a client that asked at {began:?} reads {value} in {shard}, and {last} was set before"));
                }
                // What one was shown the next one must see too.
                self.values.entry(*shard).or_default().push((at, *value));
            }
            _ => {}
        }
        Ok(())
    }
}
