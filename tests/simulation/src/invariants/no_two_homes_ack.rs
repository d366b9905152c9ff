//! No two homes of a shard acknowledge different things under one number of its log.

use std::collections::BTreeMap;

use shoal_calls::calls::Entry;
use shoal_state::ShardId;

use super::{Events, machines_restarted};
use crate::history::{Event, Seen};

/// What a client was shown of a place in a shard's log.
type Shown = BTreeMap<(ShardId, Entry), String>;

pub(super) fn check(events: &Events) -> Result<(), String> {
    // What need not last through a restart of a machine may be lost with its number.
    if machines_restarted(events) {
        return Ok(());
    }
    let mut shown = Shown::new();
    for (at, event) in events {
        match event {
            Event::Read { call, seen, .. } | Event::Final { call, seen, .. } => {
                for Seen { input, entry, retry_count, result, .. } in seen {
                    let what = format!("output {result:x} of try {retry_count} of {input}");
                    note(&mut shown, call.shard(), *entry, what).map_err(|why| format!("at {at:?} {why}"))?;
                }
            }
            Event::ItemsTaken { queue, entries } => {
                for (entry, item) in entries {
                    note(&mut shown, queue.shard(), *entry, format!("item {item}")).map_err(|why| format!("at {at:?} {why}"))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn note(shown: &mut Shown, shard: Option<ShardId>, entry: Entry, what: String) -> Result<(), String> {
    let Some(shard) = shard else { return Ok(()) };
    let known = shown.entry((shard, entry)).or_insert_with(|| what.clone());
    if *known == what { Ok(()) } else { Err(format!("record {entry} of {shard} says {what}, and said {known} before")) }
}
