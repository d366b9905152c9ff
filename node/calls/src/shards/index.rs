//! Where the live records of the shards stand in the node's log, and what of the log can be given back. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use shoal_storage::log::Position;

use super::record::{Header, Kind};
use super::slots::Slots;

/// Where a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What stands before its body.
    pub header: Header,
    /// Its place in the node's log.
    pub position: Position,
    /// Its length there.
    pub bytes: u32,
}

/// The live records of one shard.
#[derive(Debug, Default)]
pub struct Index {
    slots: Slots,
    owners: HashMap<u128, Vec<u64>>,
    /// How many of them are of dicts and queues.
    objects: usize,
}

impl Index {
    /// Takes a record in the order of the log, and tells `space` what lives and what died by it.
    pub fn take(&mut self, slot: Slot, space: &mut Space) {
        space.wrote(slot.position, slot.bytes);
        match slot.header.kind {
            Kind::Cut => self.cut(slot.header.mark.index, space),
            Kind::Dropped => {
                for index in self.owners.remove(&slot.header.owner).unwrap_or_default() {
                    self.remove(index, space);
                }
            }
            Kind::Tail | Kind::Kept => {}
            Kind::Began | Kind::Calls | Kind::Objects => self.insert(slot, space),
        }
    }

    fn insert(&mut self, slot: Slot, space: &mut Space) {
        let index = slot.header.mark.index;
        space.lives(slot.position, slot.bytes);
        self.objects += usize::from(slot.header.kind == Kind::Objects);
        let was = self.slots.insert(slot);
        self.objects -= usize::from(was.is_some_and(|was| was.header.kind == Kind::Objects));
        match was {
            // The same record again, carried forward.
            Some(was) if was.header == slot.header => space.died(was.position, was.bytes),
            Some(was) => {
                space.died(was.position, was.bytes);
                self.owners.entry(slot.header.owner).or_default().push(index);
            }
            None => self.owners.entry(slot.header.owner).or_default().push(index),
        }
    }

    fn remove(&mut self, index: u64, space: &mut Space) {
        if let Some(slot) = self.slots.remove(index) {
            self.objects -= usize::from(slot.header.kind == Kind::Objects);
            space.died(slot.position, slot.bytes);
        }
    }

    fn cut(&mut self, last: u64, space: &mut Space) {
        let void: Vec<Slot> = self.slots.after(last).collect();
        for slot in void {
            let index = slot.header.mark.index;
            self.remove(index, space);
            if let Some(indexes) = self.owners.get_mut(&slot.header.owner) {
                indexes.retain(|of_owner| *of_owner != index);
            }
        }
    }

    /// Lets those records up to `last` die that are not listed.
    pub fn keep_only(&mut self, last: u64, kept: &BTreeSet<u64>, space: &mut Space) {
        let dead: Vec<Slot> = self.slots.up_to(last).filter(|slot| !kept.contains(&slot.header.mark.index)).collect();
        for slot in dead {
            let index = slot.header.mark.index;
            self.remove(index, space);
            if let Some(indexes) = self.owners.get_mut(&slot.header.owner) {
                indexes.retain(|of_owner| *of_owner != index);
            }
        }
    }

    /// Says whether any of the live records up to `last` is not listed.
    pub fn has_others(&self, last: u64, kept: &BTreeSet<u64>) -> bool {
        self.slots.up_to(last).any(|slot| !kept.contains(&slot.header.mark.index))
    }

    /// Says whether there are records whose death matters: those of dicts and queues. Calls end by time alone.
    pub fn has_objects(&self) -> bool {
        self.objects > 0
    }

    /// Finds a live record.
    pub fn get(&self, index: u64) -> Option<Slot> {
        self.slots.get(index)
    }

    /// Iterates over the live records after `index`, in order.
    pub fn after(&self, index: u64) -> impl Iterator<Item = Slot> {
        self.slots.after(index)
    }

    /// Returns the last live record up to `index`.
    pub fn last_up_to(&self, index: u64) -> Option<Slot> {
        self.slots.up_to(index).next_back()
    }

    /// Iterates over all live records, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter()
    }
}

/// Live and dead bytes of the node's log, by stretches of it.
#[derive(Debug)]
pub struct Space {
    stretch_bytes: u64,
    stretches: BTreeMap<Position, Stretch>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stretch {
    bytes: u64,
    live: u64,
}

/// A front part of the log that is worth giving back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// Live records before this position are carried forward, then all before it is released.
    pub before: Position,
    /// How many bytes of them live.
    pub live: u64,
    /// How many bytes stand there.
    pub bytes: u64,
}

/// A front part is given back when at most one byte in so many lives. Each byte is then carried forward a third of a time at most.
const LIVE_ONE_IN: u64 = 4;

/// How many live bytes are carried forward at once: the owner of the log does nothing else meanwhile.
pub const CARRIED_BYTES_MAX: u64 = 8 << 20;

impl Space {
    /// Begins empty. `stretch_bytes` is how finely live bytes are counted; the log's segment size is right.
    pub fn new(stretch_bytes: u64) -> Self {
        Self { stretch_bytes, stretches: BTreeMap::new() }
    }

    fn wrote(&mut self, position: Position, bytes: u32) {
        let fits = self.stretches.last_entry().filter(|last| last.get().bytes < self.stretch_bytes);
        match fits {
            Some(mut last) => last.get_mut().bytes += u64::from(bytes),
            None => {
                self.stretches.insert(position, Stretch { bytes: u64::from(bytes), live: 0 });
            }
        }
    }

    fn at(&mut self, position: Position) -> Option<&mut Stretch> {
        self.stretches.range_mut(..=position).next_back().map(|(_, stretch)| stretch)
    }

    fn lives(&mut self, position: Position, bytes: u32) {
        if let Some(stretch) = self.at(position) {
            stretch.live += u64::from(bytes);
        }
    }

    fn died(&mut self, position: Position, bytes: u32) {
        if let Some(stretch) = self.at(position) {
            stretch.live = stretch.live.saturating_sub(u64::from(bytes));
        }
    }

    /// Returns the longest front part of the log of which little lives; never the part that is being written.
    pub fn releasable(&self) -> Option<Release> {
        let (mut bytes, mut live, mut found) = (0, 0, None);
        let ends = self.stretches.keys().skip(1);
        for (stretch, before) in self.stretches.values().zip(ends) {
            bytes += stretch.bytes;
            live += stretch.live;
            if live > CARRIED_BYTES_MAX {
                break;
            }
            if live * LIVE_ONE_IN <= bytes {
                found = Some(Release { before: *before, live, bytes });
            }
        }
        found
    }

    /// Notes that the log was released up to there.
    pub fn released(&mut self, before: Position) {
        self.stretches = self.stretches.split_off(&before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::Mark;
    use shoal_state::ShardId;

    fn slot(kind: Kind, position: u64, index: u64, owner: u128) -> Slot {
        let header = Header { kind, shard: ShardId::new(0).unwrap(), mark: Mark { epoch: 1, index }, owner };
        Slot { header, position: Position::new(position), bytes: 10 }
    }

    #[test]
    fn a_dropped_owner_frees_the_front_and_a_survivor_is_carried_forward() {
        let (mut index, mut space) = (Index::default(), Space::new(40));
        for (position, owner) in [(0, 7), (10, 7), (20, 7), (30, 8), (40, 9)] {
            index.take(slot(Kind::Calls, position, position / 10 + 1, owner), &mut space);
        }
        assert_eq!(space.releasable(), None);
        index.take(slot(Kind::Dropped, 50, 6, 7), &mut space);
        let release = space.releasable().unwrap();
        assert_eq!(release, Release { before: Position::new(40), live: 10, bytes: 40 });
        let survivors: Vec<_> = index.iter().filter(|slot| slot.position < release.before).collect();
        assert_eq!(survivors.len(), 1);

        index.take(Slot { position: Position::new(60), ..survivors[0] }, &mut space);
        assert_eq!(index.get(4).unwrap().position, Position::new(60));
        assert_eq!(space.releasable().unwrap().live, 0);
        space.released(release.before);
        assert_eq!(space.releasable(), None);
    }

    #[test]
    fn what_an_owner_writes_after_it_was_dropped_lives() {
        let (mut index, mut space) = (Index::default(), Space::new(40));
        index.take(slot(Kind::Calls, 0, 1, 7), &mut space);
        index.take(slot(Kind::Dropped, 10, 2, 7), &mut space);
        index.take(slot(Kind::Calls, 20, 3, 7), &mut space);
        assert_eq!(index.iter().map(|slot| slot.header.mark.index).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_cut_voids_what_follows_it_and_not_what_is_written_later() {
        let (mut index, mut space) = (Index::default(), Space::new(1000));
        for at in 1..=4 {
            index.take(slot(Kind::Calls, at * 10, at, 7), &mut space);
        }
        index.take(slot(Kind::Cut, 50, 2, 0), &mut space);
        index.take(slot(Kind::Calls, 60, 3, 8), &mut space);
        assert_eq!(index.iter().map(|slot| slot.position.get()).collect::<Vec<_>>(), [10, 20, 60]);
        index.take(slot(Kind::Dropped, 70, 4, 7), &mut space);
        assert_eq!(index.iter().map(|slot| slot.position.get()).collect::<Vec<_>>(), [60]);
    }
}
