//! A change of the voters that was begun is finished before another one is made, whoever leads then, and soon once nothing goes wrong.

use std::time::Duration;

use super::Events;
use crate::history::Event;

/// So long a change may be under way in a world that is whole.
const FINISHED_WITHIN: Duration = Duration::from_secs(20);

pub(super) fn check(events: &Events) -> Result<(), String> {
    let (mut under_way, mut healed) = (None, None);
    for (at, event) in events {
        if let (Some((since, to)), Some(healed)) = (&under_way, healed)
            && *at > FINISHED_WITHIN + healed
            && *at > FINISHED_WITHIN + *since
        {
            return Err(format!("at {at:?} the change to {to:?} is under way still, since {since:?}"));
        }
        match event {
            Event::Healed => healed = Some(*at),
            Event::MembersBegun { by, new, .. } => {
                if let Some((since, to)) = &under_way
                    && (new.next.is_some() || new.voters != *to)
                {
                    return Err(format!(
                        "at {at:?} node {by} begins another change, to {new:?}: that to {to:?} is under way since {since:?}"
                    ));
                }
            }
            Event::MembersDecided { config, .. } => under_way = config.next.clone().map(|to| (*at, to)),
            Event::MembersFinal { config, .. } if config.next.is_some() => {
                return Err(format!("in the end a change is under way: {config:?}"));
            }
            _ => {}
        }
    }
    Ok(())
}
