//! A leader plans only once it has applied all that was decided before its term.

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let too_early = events.iter().find_map(|(at, event)| match event {
        Event::Planned { node, term, applied, before_term } if applied < before_term => {
            Some(format!("at {at:?} node {node} plans as the leader of term {term} on {applied} of {before_term} earlier entries"))
        }
        _ => None,
    });
    too_early.map_or(Ok(()), Err)
}
