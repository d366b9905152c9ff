//! The contents of a queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::life::Life;
use super::model::{EntryKey, Found, Place};
use super::{ITEMS_MAX, PARTITION_BYTES_MAX, PARTITIONS_MAX};
use crate::calls::{Entry, Millis};

/// A queue's partitions.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Queue {
    partitions: BTreeMap<Bytes, Partition>,
    items: u64,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Partition {
    items: VecDeque<Item>,
    bytes: u64,
    until_ms: Millis,
    /// The record that took what came before the first item, while older records of items are in the log.
    head: Option<u64>,
    /// Records of items that are in the log.
    puts: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    at: Entry,
    offset: u64,
    bytes: u32,
}

impl Item {
    fn found(&self, life: &Life) -> Found<Place> {
        let Self { at, offset, bytes } = *self;
        let piece = Place { record: at.index, offset, bytes: bytes.into(), blob: life.blob_of(at.index) };
        Found { at, entry: EntryKey(0), key_bytes: 0, piece }
    }
}

impl Queue {
    pub(super) fn len(&self, partition: Option<&Bytes>) -> u64 {
        match partition {
            Some(name) => self.partitions.get(name).map_or(0, |partition| partition.items.len() as u64),
            None => self.items,
        }
    }

    /// Returns how many partitions have items.
    pub(super) fn partitions(&self) -> u64 {
        self.partitions.values().filter(|partition| !partition.items.is_empty()).count() as u64
    }

    /// Says, in words, why items of these lengths cannot be put into a partition now.
    pub(super) fn is_full(&self, name: &Bytes, lengths: &[u32]) -> Option<String> {
        let (items, bytes) = self.partitions.get(name).map_or((0, 0), |partition| (partition.items.len(), partition.bytes));
        let more: u64 = lengths.iter().copied().map(u64::from).sum();
        if items + lengths.len() > ITEMS_MAX {
            return Some(format!("it has {items} items, and {ITEMS_MAX} is the most"));
        }
        if bytes + more > PARTITION_BYTES_MAX {
            return Some(format!("its items have {bytes} bytes, and {PARTITION_BYTES_MAX} is the most"));
        }
        let is_new = !self.partitions.contains_key(name);
        (is_new && self.partitions.len() >= PARTITIONS_MAX).then(|| format!("the queue has {PARTITIONS_MAX} partitions, the most"))
    }

    /// Returns when a partition ends that has items.
    pub(super) fn until(&self, name: &Bytes) -> Option<Millis> {
        self.partitions.get(name).filter(|partition| !partition.items.is_empty()).map(|partition| partition.until_ms)
    }

    /// Returns the items after one: at most `max`, and no more than `bytes_max` bytes unless the first is longer.
    pub(super) fn after(&self, name: &Bytes, after: Entry, max: usize, bytes_max: u64, life: &Life) -> Vec<Found<Place>> {
        let Some(partition) = self.partitions.get(name) else { return Vec::new() };
        let first = partition.items.partition_point(|item| item.at <= after);
        let mut bytes = 0;
        let fits = |item: &&Item| {
            let is_first = bytes == 0;
            bytes += u64::from(item.bytes).max(1);
            is_first || bytes <= bytes_max
        };
        partition.items.range(first..).take(max).take_while(fits).map(|item| item.found(life)).collect()
    }

    pub(super) fn put(&mut self, index: u64, name: &Bytes, until_ms: Millis, lengths: &[u32], life: &mut Life) {
        let partition = self.partitions.entry(name.clone()).or_default();
        partition.until_ms = until_ms;
        partition.puts.insert(index);
        let mut offset = 0;
        for (number, bytes) in (0..).zip(lengths) {
            life.hold(index);
            partition.items.push_back(Item { at: Entry { index, number }, offset, bytes: *bytes });
            offset += u64::from(*bytes);
        }
        partition.bytes += offset;
        self.items += lengths.len() as u64;
    }

    /// Takes all items up to one. Those from `kept` on are returned, and held once more for whoever keeps them.
    pub(super) fn take(&mut self, index: u64, name: &Bytes, upto: Entry, kept: Option<Entry>, life: &mut Life) -> Vec<Found<Place>> {
        let Some(partition) = self.partitions.get_mut(name) else { return Vec::new() };
        let count = partition.items.partition_point(|item| item.at <= upto);
        let taken: Vec<Item> = partition.items.drain(..count).collect();
        self.items -= taken.len() as u64;
        partition.bytes -= taken.iter().map(|item| u64::from(item.bytes)).sum::<u64>();
        if partition.puts.range(..index).next().is_some() {
            life.hold(index);
            if let Some(before) = partition.head.replace(index) {
                life.release(before, index);
            }
        }
        let is_kept = |item: &&Item| kept.is_some_and(|first| item.at >= first);
        let found = taken.iter().filter(is_kept).map(|item| item.found(life)).collect();
        for item in &taken {
            if is_kept(&item) {
                life.hold(item.at.index);
            }
            life.release(item.at.index, index);
        }
        found
    }

    /// Empties a partition, or all of them.
    pub(super) fn clear(&mut self, index: u64, name: Option<&Bytes>, life: &mut Life) {
        let all = Entry { index, number: 0 };
        let names: Vec<Bytes> = name.map_or_else(|| self.partitions.keys().cloned().collect(), |name| vec![name.clone()]);
        for name in names {
            self.take(index, &name, all, None, life);
        }
    }

    /// Forgets a record of items: it is in no log any more.
    pub(super) fn dropped(&mut self, record: u64, name: &Bytes, by: u64, life: &mut Life) {
        let Some(partition) = self.partitions.get_mut(name) else { return };
        partition.puts.remove(&record);
        if let Some(head) = partition.head
            && partition.puts.range(..head).next().is_none()
        {
            partition.head = None;
            life.release(head, by);
        }
        if partition.puts.is_empty() && partition.items.is_empty() && partition.head.is_none() {
            self.partitions.remove(name);
        }
    }
}
