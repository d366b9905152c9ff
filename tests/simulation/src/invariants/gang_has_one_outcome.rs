//! What a call of a clustered function gets as a success is what the container of rank 0 has brought.

use std::collections::BTreeSet;

use shoal_calls::calls::Status;
use shoal_state::InputId;

use super::{Events, Ranks};
use crate::history::{Event, fnv};

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut ranks = Ranks::default();
    // What gangs were given, and what their containers of rank 0 would bring of it.
    let (mut given, mut brought): (BTreeSet<InputId>, BTreeSet<u64>) = Default::default();
    for (at, event) in events {
        ranks.hear(event);
        match event {
            Event::RunBegan { task, input, retry_count, .. } if ranks.of.get(task).is_some_and(|(_, rank)| *rank == 0) => {
                given.insert(*input);
                brought.insert(fnv(0, format!("{input} {retry_count} by {task}").as_bytes()));
            }
            Event::Read { seen, .. } | Event::Final { seen, .. } => {
                let others = |status, input, result| status == Status::Success && given.contains(&input) && !brought.contains(&result);
                if let Some(seen) = seen.iter().find(|seen| others(seen.status, seen.input, seen.result)) {
                    return Err(format!("at {at:?} {} has an outcome that no container of rank 0 has brought: {seen:?}", seen.input));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
