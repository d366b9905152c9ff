//! The live records of a shard by their index, kept close together: there may be millions. Pure.
//!
//! Indexes are given in order, and records die in no order. A map of single records would leave each of its nodes half empty, as
//! nothing is ever put between two of them; here some neighbours share a list that grows with them.

use std::collections::BTreeMap;

use shoal_state::ShardId;
use shoal_storage::log::Position;

use super::index::Slot;
use super::record::{Header, Kind};
use super::replica::Mark;

/// How many indexes share a list.
const NEIGHBOURS: u64 = 64;

/// Records by index.
#[derive(Debug, Default)]
pub(super) struct Slots {
    lists: BTreeMap<u64, Vec<Kept>>,
}

/// A [`Slot`] in three quarters of its space.
#[derive(Debug, Clone, Copy)]
struct Kept {
    owner: [u64; 2],
    epoch: u64,
    index: u64,
    position: u64,
    bytes: u32,
    shard: ShardId,
    kind: Kind,
}

impl From<Slot> for Kept {
    fn from(Slot { header: Header { kind, shard, mark, owner }, position, bytes }: Slot) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let owner = [owner as u64, (owner >> 64) as u64];
        Self { owner, epoch: mark.epoch, index: mark.index, position: position.get(), bytes, shard, kind }
    }
}

impl Kept {
    fn slot(&self) -> Slot {
        let owner = u128::from(self.owner[0]) | u128::from(self.owner[1]) << 64;
        let mark = Mark { epoch: self.epoch, index: self.index };
        let header = Header { kind: self.kind, shard: self.shard, mark, owner };
        Slot { header, position: Position::new(self.position), bytes: self.bytes }
    }
}

impl Slots {
    /// Puts a record in. Returns the one that had its index.
    pub(super) fn insert(&mut self, slot: Slot) -> Option<Slot> {
        let list = self.lists.entry(slot.header.mark.index / NEIGHBOURS).or_default();
        match list.binary_search_by_key(&slot.header.mark.index, |kept| kept.index) {
            Ok(at) => Some(std::mem::replace(&mut list[at], slot.into()).slot()),
            Err(at) => {
                list.insert(at, slot.into());
                None
            }
        }
    }

    /// Takes a record out.
    pub(super) fn remove(&mut self, index: u64) -> Option<Slot> {
        let list = self.lists.get_mut(&(index / NEIGHBOURS))?;
        let at = list.binary_search_by_key(&index, |kept| kept.index).ok()?;
        let was = list.remove(at).slot();
        if list.is_empty() {
            self.lists.remove(&(index / NEIGHBOURS));
        } else if list.len() <= list.capacity() / 4 {
            list.shrink_to_fit();
        }
        Some(was)
    }

    /// Finds a record.
    pub(super) fn get(&self, index: u64) -> Option<Slot> {
        let list = self.lists.get(&(index / NEIGHBOURS))?;
        let at = list.binary_search_by_key(&index, |kept| kept.index).ok()?;
        Some(list[at].slot())
    }

    /// Iterates over all, in order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Slot> {
        self.lists.values().flatten().map(Kept::slot)
    }

    /// Iterates over those after an index, in order.
    pub(super) fn after(&self, index: u64) -> impl Iterator<Item = Slot> {
        let lists = self.lists.range(index / NEIGHBOURS..).map(|(_, list)| list);
        lists.flatten().skip_while(move |kept| kept.index <= index).map(Kept::slot)
    }

    /// Iterates over those up to an index, in order.
    pub(super) fn up_to(&self, index: u64) -> impl DoubleEndedIterator<Item = Slot> {
        let lists = self.lists.range(..=index / NEIGHBOURS).map(|(_, list)| list);
        lists.flatten().filter(move |kept| kept.index <= index).map(Kept::slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(index: u64) -> Slot {
        let owner = u128::from(index) << 100 | 7;
        let header = Header { kind: Kind::Calls, shard: ShardId::new(9).unwrap(), mark: Mark { epoch: 3, index }, owner };
        Slot { header, position: Position::new(index * 8), bytes: 5 }
    }

    fn indexes(slots: impl Iterator<Item = Slot>) -> Vec<u64> {
        slots.map(|slot| slot.header.mark.index).collect()
    }

    #[test]
    fn records_are_found_in_order_whatever_dies() {
        let mut slots = Slots::default();
        let mut left: Vec<u64> = (1..=1000).filter(|index| index % 3 > 0).collect();
        for index in left.iter().rev() {
            assert_eq!(slots.insert(slot(*index)), None);
        }
        assert_eq!(slots.insert(slot(500)), Some(slot(500)));
        for index in (1..=1000).filter(|index| index % 7 > 0) {
            assert_eq!(slots.remove(index).is_some(), left.contains(&index), "{index}");
        }
        left.retain(|index| index % 7 == 0);
        assert_eq!((indexes(slots.iter()), slots.get(7), slots.get(8)), (left.clone(), Some(slot(7)), None));
        for bound in [0, 6, 7, 63, 64, 128, 500, 1000, 5000] {
            let (before, after) = left.split_at(left.partition_point(|index| *index <= bound));
            assert_eq!((indexes(slots.up_to(bound)), indexes(slots.after(bound))), (before.to_vec(), after.to_vec()), "{bound}");
        }
        left.into_iter().for_each(|index| assert!(slots.remove(index).is_some()));
        assert!(slots.lists.is_empty());
    }

    #[test]
    fn what_is_kept_of_a_record_is_small() {
        assert_eq!(size_of::<Kept>(), 48);
    }
}
