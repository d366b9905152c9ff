//! Once nothing goes wrong any more, every client gets what it wanted.

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let stuck = events.iter().find_map(|(at, event)| match event {
        Event::ClientStuck { client, at: what } => Some(format!("at {at:?} client {client} waits still: it {what}")),
        _ => None,
    });
    stuck.map_or(Ok(()), Err)
}
