//! What the log shows of a shard when it is opened, record by record.

use std::collections::BTreeSet;

use bytes::Bytes;
use shoal_storage::log::Position;

use crate::shards::index::{Index, Slot, Space};
use crate::shards::record::{Kind, NotARecord};
use crate::shards::replica::Mark;

#[derive(Default)]
pub(super) struct Found {
    pub(super) tail: Mark,
    pub(super) began: Vec<Mark>,
    pub(super) index: Index,
    pub(super) tail_at: Position,
}

impl Found {
    pub(super) fn take(&mut self, slot: Slot, body: &[u8], space: &mut Space) -> Result<(), NotARecord> {
        let mark = slot.header.mark;
        if slot.header.kind == Kind::Kept {
            self.index.take(slot, space);
            self.index.keep_only(mark.index, &read_kept(body)?, space);
            return Ok(());
        }
        if slot.header.kind == Kind::Cut {
            self.began.retain(|began| began.index <= mark.index);
            let epoch = self.began.last().map_or(0, |began| began.epoch);
            self.tail = Mark { epoch, index: mark.index };
            self.tail_at = slot.position;
        } else {
            if slot.header.kind == Kind::Began && !self.began.contains(&mark) {
                self.began.push(mark);
                self.began.sort();
            }
            // What was carried forward stands behind records with greater marks.
            if mark.index >= self.tail.index {
                self.tail = mark;
                self.tail_at = slot.position;
            }
        }
        self.index.take(slot, space);
        Ok(())
    }
}

/// Writes which records live: how far each is from the one before.
pub(super) fn write_kept(indexes: impl Iterator<Item = u64>) -> Bytes {
    let mut last = 0;
    let steps: Vec<u64> = indexes.map(|index| index - std::mem::replace(&mut last, index)).collect();
    postcard::to_stdvec(&steps).expect("numbers can be written").into()
}

pub(super) fn read_kept(body: &[u8]) -> Result<BTreeSet<u64>, NotARecord> {
    let steps: Vec<u64> = postcard::from_bytes(body).map_err(|_| NotARecord::Kept)?;
    let mut last = 0_u64;
    let mut indexes = BTreeSet::new();
    for step in steps {
        last = last.saturating_add(step);
        indexes.insert(last);
    }
    Ok(indexes)
}
