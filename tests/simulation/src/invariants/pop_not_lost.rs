//! What was put into a queue is taken out of it once: by a client that is told so, or in the end.

use std::collections::BTreeMap;

use shoal_state::QueueId;

use super::Events;
use crate::history::Event;

pub(super) fn check(events: &Events) -> Result<(), String> {
    let mut put: BTreeMap<QueueId, Vec<u64>> = BTreeMap::new();
    let mut taken: BTreeMap<(QueueId, u64), u32> = BTreeMap::new();
    for (at, event) in events {
        match event {
            Event::ItemPut { queue, item } => put.entry(*queue).or_default().push(*item),
            Event::ItemsTaken { queue, entries } => {
                for (_, item) in entries {
                    take(&mut taken, *queue, *item).map_err(|why| format!("at {at:?} {why}"))?;
                }
            }
            Event::ItemsLeft { queue, items } => {
                for item in items {
                    take(&mut taken, *queue, *item)?;
                }
                let lost = put.get(queue).into_iter().flatten().find(|item| !taken.contains_key(&(*queue, **item)));
                if let Some(item) = lost {
                    return Err(format!("item {item} was put into {queue}, and nobody got it"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn take(taken: &mut BTreeMap<(QueueId, u64), u32>, queue: QueueId, item: u64) -> Result<(), String> {
    let times = taken.entry((queue, item)).or_default();
    *times += 1;
    if *times == 1 { Ok(()) } else { Err(format!("item {item} of {queue} was taken twice")) }
}
