//! A reader that goes on where it was told to has seen all outputs before that place.

use std::collections::{BTreeMap, BTreeSet};

use shoal_calls::calls::Entry;
use shoal_state::{CallId, InputId};

use super::Events;
use crate::history::Event;

#[derive(Default)]
struct Reader {
    at: Entry,
    seen: BTreeSet<(InputId, Entry)>,
}

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut readers: BTreeMap<(CallId, u64), Reader> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Read { call, reader, after, last, seen, all: false, .. } => {
                let known = readers.entry((*call, *reader)).or_default();
                if last < after {
                    return Err(format!("at {at:?} a reader of {call} that has read up to {after} is told to go on at {last}"));
                }
                // Where it stands is where it asked to go on, whoever told it so.
                known.at = known.at.max(*after);
                known.seen.extend(seen.iter().map(|seen| (seen.input, seen.entry)));
            }
            Event::Final { call, seen, .. } => {
                for ((of, reader), known) in readers.range((*call, 0)..=(*call, u64::MAX)) {
                    let missed = seen.iter().find(|seen| seen.entry <= known.at && !known.seen.contains(&(seen.input, seen.entry)));
                    if let Some(missed) = missed {
                        return Err(format!("client {reader} has read {of} up to {}, and never saw {missed:?}", known.at));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}
