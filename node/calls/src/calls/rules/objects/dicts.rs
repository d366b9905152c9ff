//! Dicts: entries that are set, and taken away.

use std::collections::HashSet;

use bytes::Bytes;
use shoal_state::{ObjectId, ShardId};

use super::parts;
use crate::calls::model::Millis;
use crate::calls::refused::Refused;
use crate::calls::rules::{Rules, Ticket};
use crate::objects::record::ObjectRecord;
use crate::objects::{Content, EntryKey, NewEntry, ObjectAnswer};

impl Rules {
    pub(super) fn update(
        &mut self,
        now: Millis,
        ticket: Ticket,
        (shard, id): (ShardId, ObjectId),
        (entries, content): (Vec<NewEntry>, Content),
        if_not_exists: bool,
        key: u128,
    ) -> Result<(), Refused> {
        let ObjectId::Dict(dict) = id else { return Err(Refused::NoObject { object: id }) };
        if self.again(ticket, shard, key) {
            return Ok(());
        }
        let (blob, payload) = parts(id, content)?;
        let home = &self.homes[&shard];
        // Of a key that is there twice the last counts.
        let mut later = HashSet::new();
        let mut chosen: Vec<(NewEntry, bool)> = Vec::with_capacity(entries.len());
        for new in entries.into_iter().rev() {
            let set = later.insert(new.entry) && !(if_not_exists && home.objects.state.has(id, new.entry));
            chosen.push((new, set));
        }
        chosen.reverse();
        if !chosen.iter().any(|(_, set)| *set) {
            self.answer_look(ticket, shard, id, ObjectAnswer::Bool(chosen.is_empty()));
            return Ok(());
        }
        let record = ObjectRecord::Updated { dict, entries: chosen, blob, key, at_ms: now };
        let index = self.append_object(shard, record, payload);
        self.answer_object(ticket, shard, index, ObjectAnswer::Bool(true));
        Ok(())
    }

    pub(super) fn pop(&mut self, now: Millis, ticket: Ticket, (shard, id): (ShardId, ObjectId), entry: EntryKey, key: u128) {
        let ObjectId::Dict(dict) = id else { return };
        if self.again(ticket, shard, key) {
            return;
        }
        if !self.homes[&shard].objects.state.has(id, entry) {
            self.answer_look(ticket, shard, id, ObjectAnswer::Found(Vec::new()));
            return;
        }
        self.append_object(shard, ObjectRecord::Removed { dict, entries: vec![entry], key, at_ms: now }, Bytes::new());
        self.again(ticket, shard, key);
    }
}
