//! Each time of a schedule is fired once, and is one call however often it is made.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_state::{CallId, Command, FunctionId, Timestamp};

use super::Events;
use crate::history::Event;

/// A firing has its call within this time, once nothing goes wrong.
const CALLED_WITHIN: Duration = Duration::from_secs(15);

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut fired: BTreeMap<(FunctionId, Timestamp), Duration> = BTreeMap::new();
    let mut last: BTreeMap<FunctionId, Timestamp> = BTreeMap::new();
    let mut calls: BTreeMap<(FunctionId, Timestamp), CallId> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::Decided { command, taken: true, .. } => {
                let Command::Fire { id, due, .. } = &**command else { continue };
                if last.insert(*id, *due).is_some_and(|last| last >= *due) {
                    return Err(format!("at {at:?} {id} is fired for {due:?}, and was for that or later before"));
                }
                fired.insert((*id, *due), *at);
            }
            Event::Scheduled { function, due, call } => {
                if !fired.contains_key(&(*function, *due)) {
                    return Err(format!("at {at:?} {function} is called for {due:?}, which was not fired"));
                }
                if calls.insert((*function, *due), *call).is_some_and(|known| known != *call) {
                    return Err(format!("at {at:?} {function} is called a second time for {due:?}"));
                }
            }
            _ => {}
        }
    }
    let ended = events.last().map_or(Duration::ZERO, |(at, _)| *at);
    let healed = events.iter().find(|(_, event)| matches!(event, Event::Healed)).map_or(ended, |(at, _)| *at);
    let uncalled = fired.iter().find(|(firing, at)| (**at).max(healed) + CALLED_WITHIN < ended && !calls.contains_key(firing));
    uncalled.map_or(Ok(()), |((id, due), at)| Err(format!("{id} was fired for {due:?} at {at:?}, and has no call in the end")))
}
