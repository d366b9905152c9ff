//! What a client was told is there stays there: calls, inputs, outputs; through everything if they are to last, else through all but
//! restarts of machines.

use std::collections::{BTreeMap, BTreeSet};

use shoal_state::{CallId, InputId};

use super::{Events, machines_restarted};
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let restarted = machines_restarted(events);
    let mut calls: BTreeMap<CallId, BTreeSet<InputId>> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Opened { call, lasting } if *lasting || !restarted => drop(calls.entry(*call).or_default()),
            Event::Put { call, inputs, .. } => {
                if let Some(known) = calls.get_mut(call) {
                    known.extend(inputs);
                }
            }
            Event::Missing { call, why, .. } if calls.contains_key(call) => {
                return Err(format!("at {at:?} {call} was acknowledged before, and the answer is: {why}"));
            }
            Event::Final { call, inputs, seen } => {
                let Some(known) = calls.get(call) else { continue };
                if let Some(lost) = known.iter().find(|input| !inputs.contains(input)) {
                    return Err(format!("{lost} of {call} was acknowledged and is not there in the end"));
                }
                if let Some(lost) = known.iter().find(|input| !seen.iter().any(|seen| seen.input == **input)) {
                    return Err(format!("{lost} of {call} was acknowledged and has no output in the end"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
