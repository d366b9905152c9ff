//! A try of an input has one outcome, for every reader and for ever.

use std::collections::{BTreeMap, BTreeSet};

use shoal_state::{CallId, InputId};

use super::{Events, machines_restarted};
use crate::history::{Event, Seen};

pub(super) fn check(events: &Events) -> Result<(), String> {
    let restarted = machines_restarted(events);
    let mut excused: BTreeSet<CallId> = BTreeSet::new();
    let mut outcomes: BTreeMap<(InputId, u32), Seen> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Opened { call, lasting: false } if restarted => drop(excused.insert(*call)),
            Event::Read { call, seen, .. } | Event::Final { call, seen, .. } if !excused.contains(call) => {
                for seen in seen {
                    let known = outcomes.entry((seen.input, seen.retry_count)).or_insert(*seen);
                    if known != seen {
                        return Err(format!("at {at:?} an outcome is {seen:?}, and was {known:?} before"));
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}
