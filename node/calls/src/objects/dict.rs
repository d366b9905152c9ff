//! The contents of a dict.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::life::Life;
use super::model::{EntryKey, Found, NewEntry, Place};
use crate::calls::{Entry, Millis};

/// A dict's entries, in the order of their keys' hashes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Dict {
    slots: BTreeMap<EntryKey, Slot>,
    len: u64,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Slot {
    now: Now,
    /// Older records that gave it a value and are still in the log.
    old: Vec<u64>,
    /// The record that says when it was used last, if one was written since its value.
    touched: Option<u64>,
    used_ms: Millis,
    noted_ms: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Now {
    Value {
        record: u64,
        offset: u64,
        key_bytes: u32,
        value_bytes: u32,
    },
    /// It was removed by this record.
    Gone {
        record: u64,
    },
}

impl Dict {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn has(&self, entry: EntryKey) -> bool {
        self.slots.get(&entry).is_some_and(|slot| matches!(slot.now, Now::Value { .. }))
    }

    /// Finds an entry.
    pub(super) fn get(&self, entry: EntryKey, life: &Life, values: bool) -> Option<Found<Place>> {
        let Now::Value { record, offset, key_bytes, value_bytes } = self.slots.get(&entry)?.now else { return None };
        let bytes = u64::from(key_bytes) + if values { u64::from(value_bytes) } else { 0 };
        let piece = Place { record, offset, bytes, blob: life.blob_of(record) };
        Some(Found { at: Entry::default(), entry, key_bytes, piece })
    }

    /// Iterates over the keys after one.
    pub(super) fn after(&self, entry: Option<EntryKey>) -> impl Iterator<Item = EntryKey> {
        let from = entry.map_or(Bound::Unbounded, Bound::Excluded);
        let slots = self.slots.range((from, Bound::Unbounded));
        slots.filter(|(_, slot)| matches!(slot.now, Now::Value { .. })).map(|(entry, _)| *entry)
    }

    /// Notes that an entry is used, in memory alone.
    pub(super) fn touch(&mut self, entry: EntryKey, now: Millis) {
        if let Some(slot) = self.slots.get_mut(&entry) {
            slot.used_ms = slot.used_ms.max(now);
        }
    }

    pub(super) fn set(&mut self, index: u64, at_ms: Millis, new: NewEntry, offset: u64, life: &mut Life) {
        life.hold(index);
        let NewEntry { entry, key_bytes, value_bytes } = new;
        let now = Now::Value { record: index, offset, key_bytes, value_bytes };
        let Some(slot) = self.slots.get_mut(&entry) else {
            self.slots.insert(entry, Slot { now, old: Vec::new(), touched: None, used_ms: at_ms, noted_ms: at_ms });
            self.len += 1;
            return;
        };
        if slot.replace(now, index, life) {
            self.len += 1;
        }
        (slot.used_ms, slot.noted_ms) = (at_ms, at_ms);
    }

    /// Removes an entry because of a record.
    pub(super) fn remove(&mut self, index: u64, entry: EntryKey, life: &mut Life) {
        if let Some(slot) = self.slots.get_mut(&entry)
            && matches!(slot.now, Now::Value { .. })
        {
            life.hold(index);
            slot.replace(Now::Gone { record: index }, index, life);
            self.len -= 1;
        }
    }

    pub(super) fn clear(&mut self, index: u64, life: &mut Life) {
        let all: Vec<EntryKey> = self.after(None).collect();
        all.into_iter().for_each(|entry| self.remove(index, entry, life));
    }

    pub(super) fn touched(&mut self, index: u64, entry: EntryKey, at_ms: Millis, life: &mut Life) {
        if let Some(slot) = self.slots.get_mut(&entry)
            && matches!(slot.now, Now::Value { .. })
        {
            life.hold(index);
            if let Some(before) = slot.touched.replace(index) {
                life.release(before, index);
            }
            slot.noted_ms = slot.noted_ms.max(at_ms);
            slot.used_ms = slot.used_ms.max(at_ms);
        }
    }

    /// Forgets that a record gave a value to a key: it is in no log any more.
    pub(super) fn dropped(&mut self, record: u64, entry: EntryKey, by: u64, life: &mut Life) {
        let Some(slot) = self.slots.get_mut(&entry) else { return };
        slot.old.retain(|old| *old != record);
        if let (true, Now::Gone { record: tomb }) = (slot.old.is_empty(), slot.now) {
            self.slots.remove(&entry);
            life.release(tomb, by);
        }
    }

    /// Returns the entries that nobody has used since `before`.
    pub(super) fn idle(&self, before: Millis) -> Vec<EntryKey> {
        let idle = |slot: &Slot| slot.used_ms <= before && matches!(slot.now, Now::Value { .. });
        self.slots.iter().filter(|(_, slot)| idle(slot)).map(|(entry, _)| *entry).collect()
    }

    /// Returns the entries that were used since the log says so, and when.
    pub(super) fn unnoted(&self) -> Vec<(EntryKey, Millis)> {
        let unnoted = |slot: &Slot| slot.used_ms > slot.noted_ms && matches!(slot.now, Now::Value { .. });
        self.slots.iter().filter(|(_, slot)| unnoted(slot)).map(|(entry, slot)| (*entry, slot.used_ms)).collect()
    }
}

impl Slot {
    /// Puts something in the place of what is there. Says whether it is a value where none was.
    fn replace(&mut self, now: Now, by: u64, life: &mut Life) -> bool {
        if let Some(touched) = self.touched.take() {
            life.release(touched, by);
        }
        match std::mem::replace(&mut self.now, now) {
            Now::Value { record, .. } => {
                self.old.push(record);
                life.release(record, by);
                false
            }
            Now::Gone { record } => {
                life.release(record, by);
                true
            }
        }
    }
}
