//! A request that is sent again, by whatever node, does once what it says.

use std::collections::{BTreeMap, BTreeSet};

use shoal_state::{CallId, InputId};

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut put: BTreeMap<CallId, BTreeSet<InputId>> = BTreeMap::new();
    let mut tried: BTreeMap<(CallId, String), Vec<(InputId, u32)>> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Put { call, inputs, .. } => put.entry(*call).or_default().extend(inputs),
            Event::Retried { call, key, tried: now } => {
                let first = tried.entry((*call, key.clone())).or_insert_with(|| now.clone());
                if first != now {
                    return Err(format!(
                        "at {at:?} inputs of {call} that were to be tried again once are at {now:?}, and were at {first:?}"
                    ));
                }
            }
            Event::Final { call, inputs, .. } => {
                let Some(known) = put.get(call) else { continue };
                if let Some(twice) = inputs.iter().find(|input| !known.contains(input)) {
                    return Err(format!("{call} has {twice} besides what its client put: a request was done twice"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
