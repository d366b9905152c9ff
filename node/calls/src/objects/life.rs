//! Which records are still needed, and when one may be dropped.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use bytes::Bytes;
use shoal_state::{BlobId, ObjectId};

use super::model::EntryKey;

/// A record of objects that is in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rec {
    pub(super) object: ObjectId,
    /// How much needs it: what is current in it, answers, and older records that it overrides.
    holds: u32,
    /// What it says something of, for when it is gone.
    pub(super) of: Of,
    pub(super) blob: Option<BlobId>,
    /// The last record that took something of it away: it may come back unless that is synced.
    by: u64,
    condemned: bool,
}

/// What a record gave values to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Of {
    Nothing,
    Entries(Box<[EntryKey]>),
    Items(Bytes),
}

/// All records of a shard's objects.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Life {
    records: BTreeMap<u64, Rec>,
    blobs: BTreeMap<BlobId, u64>,
    /// Nothing needs them once the second record is synced everywhere.
    garbage: VecDeque<(u64, u64)>,
    /// Records that were dropped by the first one.
    dropping: VecDeque<(u64, u64)>,
}

impl Life {
    pub(super) fn begin(&mut self, index: u64, object: ObjectId, of: Of, blob: Option<BlobId>) {
        self.blobs.extend(blob.map(|blob| (blob, index)));
        self.records.insert(index, Rec { object, holds: 0, of, blob, by: index, condemned: false });
    }

    pub(super) fn hold(&mut self, index: u64) {
        if let Some(record) = self.records.get_mut(&index) {
            record.holds += 1;
        }
    }

    /// Takes one hold back because of the record `by`.
    pub(super) fn release(&mut self, index: u64, by: u64) {
        if let Some(record) = self.records.get_mut(&index) {
            record.holds = record.holds.saturating_sub(1);
            record.by = record.by.max(by);
        }
        self.condemn_unheld(index);
    }

    /// Lets a record go that nothing holds, once what took its place is synced.
    pub(super) fn condemn_unheld(&mut self, index: u64) {
        if let Some(record) = self.records.get_mut(&index)
            && record.holds == 0
            && !record.condemned
        {
            record.condemned = true;
            self.garbage.push_back((index, record.by));
        }
    }

    /// Takes up to `max` records that may be dropped now that all up to `synced` is.
    pub(super) fn take_garbage(&mut self, synced: u64, max: usize) -> Vec<(u64, ObjectId)> {
        let mut taken = Vec::new();
        // What was condemned first waits for the earliest records, all but surely.
        while taken.len() < max
            && let Some((index, _)) = self.garbage.front().copied().filter(|(_, by)| *by <= synced)
        {
            self.garbage.pop_front();
            let Some(record) = self.records.get_mut(&index) else { continue };
            if record.holds > 0 {
                record.condemned = false;
            } else {
                taken.push((index, record.object));
            }
        }
        taken
    }

    pub(super) fn dropping(&mut self, by: u64, record: u64) {
        self.dropping.push_back((by, record));
    }

    /// Takes a record that is in nobody's log any more, now that all up to `synced` is synced; with the record that dropped it.
    pub(super) fn take_dropped(&mut self, synced: u64) -> Option<(u64, u64, Rec)> {
        loop {
            let (by, index) = self.dropping.front().copied().filter(|(by, _)| *by <= synced)?;
            self.dropping.pop_front();
            if let Some(record) = self.records.remove(&index) {
                if let Some(blob) = record.blob {
                    self.blobs.remove(&blob);
                }
                return Some((by, index, record));
            }
        }
    }

    pub(super) fn names(&self, blob: BlobId) -> bool {
        self.blobs.contains_key(&blob)
    }

    pub(super) fn blob_of(&self, index: u64) -> Option<BlobId> {
        self.records.get(&index).and_then(|record| record.blob)
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }
}
