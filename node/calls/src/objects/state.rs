//! What follows from the records of one shard about dicts and queues. Pure: equal records, equal state.
//!
//! [`ObjectsState::apply`] never fails: a record that says nothing new changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use shoal_state::{BlobId, ObjectId};

use super::dict::Dict;
use super::life::{Life, Of};
use super::model::{EntryKey, Found, ObjectAnswer, Place};
use super::queue::Queue;
use super::record::ObjectRecord;
use super::{ANSWERS_BYTES_MAX, ANSWERS_KEPT_MS, ANSWERS_MAX};
use crate::calls::{Entry, Millis};

/// The dicts and queues of one shard.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ObjectsState {
    objects: BTreeMap<ObjectId, Object>,
    life: Life,
    answers: HashMap<u128, Answered>,
    /// Their keys, the oldest first.
    answered: VecDeque<u128>,
    answers_bytes: u64,
    /// When partitions end.
    until: BTreeSet<(Millis, ObjectId, Bytes)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Object {
    contents: Contents,
    /// How many records of it are in the log.
    records: u64,
    opened: Option<u64>,
    closed: Option<u64>,
    /// Its last record.
    last: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Contents {
    Dict(Dict),
    Queue(Queue),
}

/// What a request did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answered {
    /// The record that says so.
    pub(crate) record: u64,
    pub(crate) answer: ObjectAnswer<Place>,
    object: ObjectId,
    at_ms: Millis,
    bytes: u64,
}

impl Object {
    fn new(id: ObjectId) -> Self {
        let contents = match id {
            ObjectId::Dict(_) => Contents::Dict(Dict::default()),
            ObjectId::Queue(_) => Contents::Queue(Queue::default()),
        };
        Self { contents, records: 0, opened: None, closed: None, last: 0 }
    }
}

impl ObjectsState {
    /// Applies the record with this index.
    pub fn apply(&mut self, index: u64, record: &ObjectRecord) {
        let id = record.object();
        let (of, blob) = match record {
            ObjectRecord::Updated { entries, blob, .. } => {
                let set = entries.iter().filter(|(_, set)| *set).map(|(new, _)| new.entry);
                (Of::Entries(set.collect()), *blob)
            }
            ObjectRecord::Put { partition, blob, .. } => (Of::Items(partition.clone()), *blob),
            _ => (Of::Nothing, None),
        };
        self.life.begin(index, id, of, blob);
        let object = self.objects.entry(id).or_insert_with(|| Object::new(id));
        object.records += 1;
        object.last = index;
        let life = &mut self.life;
        match (record, &mut object.contents) {
            (ObjectRecord::Opened { .. }, _) if object.opened.is_none() && object.closed.is_none() => {
                object.opened = Some(index);
                life.hold(index);
            }
            (ObjectRecord::Closed { .. }, _) => self.close(index, id),
            (ObjectRecord::Updated { entries, key, at_ms, .. }, Contents::Dict(dict)) => {
                let mut offset = 0;
                for (new, set) in entries {
                    if *set {
                        dict.set(index, *at_ms, *new, offset, life);
                    }
                    offset += u64::from(new.key_bytes) + u64::from(new.value_bytes);
                }
                self.remember(index, id, *key, *at_ms, ObjectAnswer::Bool(true));
            }
            (ObjectRecord::Removed { entries, key, at_ms, .. }, Contents::Dict(dict)) => {
                let was: Vec<_> = entries.iter().filter_map(|entry| dict.get(*entry, life, true)).collect();
                let kept = if *key == 0 { Vec::new() } else { was };
                kept.iter().for_each(|found| life.hold(found.piece.record));
                entries.iter().for_each(|entry| dict.remove(index, *entry, life));
                self.remember(index, id, *key, *at_ms, ObjectAnswer::Found(kept));
            }
            (ObjectRecord::Touched { entries, .. }, Contents::Dict(dict)) => {
                entries.iter().for_each(|(entry, at_ms)| dict.touched(index, *entry, *at_ms, life));
            }
            (ObjectRecord::Put { partition, until_ms, lengths, key, at_ms, .. }, Contents::Queue(queue)) => {
                queue.put(index, partition, *until_ms, lengths, life);
                self.until.insert((*until_ms, id, partition.clone()));
                self.remember(index, id, *key, *at_ms, ObjectAnswer::Done);
            }
            (ObjectRecord::Taken { partition, first, upto, key, at_ms, .. }, Contents::Queue(queue)) => {
                let taken = queue.take(index, partition, *upto, Some(*first), life);
                self.remember(index, id, *key, *at_ms, ObjectAnswer::Found(taken));
            }
            (ObjectRecord::Cleared { partition, key, at_ms, .. }, contents) => {
                match contents {
                    Contents::Dict(dict) => dict.clear(index, life),
                    Contents::Queue(queue) => queue.clear(index, partition.as_ref(), life),
                }
                self.remember(index, id, *key, *at_ms, ObjectAnswer::Done);
            }
            _ => {}
        }
        self.life.condemn_unheld(index);
    }

    fn close(&mut self, index: u64, id: ObjectId) {
        self.forget_answers(index, |answered| answered.object == id);
        let Some(object) = self.objects.get_mut(&id) else { return };
        if object.closed.is_some() {
            return;
        }
        let life = &mut self.life;
        object.closed = Some(index);
        // Held until nothing else of the object is in the log.
        life.hold(index);
        match &mut object.contents {
            Contents::Dict(dict) => dict.clear(index, life),
            Contents::Queue(queue) => queue.clear(index, None, life),
        }
        if let Some(opened) = object.opened {
            life.release(opened, index);
        }
        if object.records == 1 {
            life.release(index, index);
        }
    }

    /// Remembers what a request did; what it names is held by the caller already.
    fn remember(&mut self, record: u64, object: ObjectId, key: u128, at_ms: Millis, answer: ObjectAnswer<Place>) {
        if key == 0 {
            return;
        }
        self.life.hold(record);
        let bytes = places(&answer).map(|place| place.bytes).sum();
        self.answers_bytes += bytes;
        self.answered.push_back(key);
        if let Some(before) = self.answers.insert(key, Answered { record, answer, object, at_ms, bytes }) {
            self.let_go(&before, record);
        }
    }

    fn let_go(&mut self, answered: &Answered, by: u64) {
        self.answers_bytes -= answered.bytes;
        self.life.release(answered.record, by);
        for place in places(&answered.answer) {
            self.life.release(place.record, by);
        }
    }

    fn forget_answers(&mut self, by: u64, which: impl Fn(&Answered) -> bool) {
        let keys: Vec<u128> = self.answers.iter().filter(|(_, answered)| which(answered)).map(|(key, _)| *key).collect();
        for answered in keys.iter().filter_map(|key| self.answers.remove(key)).collect::<Vec<_>>() {
            self.let_go(&answered, by);
        }
    }

    /// Forgets answers that are old, or too many.
    pub(crate) fn trim(&mut self, now: Millis) {
        while let Some(key) = self.answered.front() {
            let too_many = self.answered.len() > ANSWERS_MAX || self.answers_bytes > ANSWERS_BYTES_MAX;
            let known = self.answers.get(key);
            if known.is_some_and(|answered| !too_many && answered.at_ms + ANSWERS_KEPT_MS > now) {
                return;
            }
            if let Some(answered) = self.answered.pop_front().and_then(|key| self.answers.remove(&key)) {
                self.let_go(&answered, answered.record);
            }
        }
    }

    /// Returns what a request did that came before.
    pub(crate) fn answered(&self, key: u128) -> Option<&Answered> {
        self.answers.get(&key)
    }

    /// Returns when [`Self::trim`] or [`Self::ended`] has something to do.
    pub(crate) fn next_ms(&self) -> Option<Millis> {
        let answer = self.answered.front().and_then(|key| self.answers.get(key)).map(|answered| answered.at_ms + ANSWERS_KEPT_MS);
        let until = self.until.first().map(|(until, _, _)| *until);
        answer.into_iter().chain(until).min()
    }

    /// Returns a partition with items whose time is over.
    pub(crate) fn ended(&mut self, now: Millis) -> Option<(ObjectId, Bytes)> {
        while self.until.first().is_some_and(|(until, _, _)| *until <= now) {
            let (until, id, partition) = self.until.pop_first()?;
            if self.queue(id).is_some_and(|queue| queue.until(&partition) == Some(until)) {
                return Some((id, partition));
            }
        }
        None
    }

    /// Takes up to `max` records that may be dropped, each with its object.
    pub(crate) fn take_garbage(&mut self, synced: u64, max: usize) -> Vec<(u64, ObjectId)> {
        self.life.take_garbage(synced, max)
    }

    /// Notes that the record `by` drops another one.
    pub(crate) fn dropping(&mut self, by: u64, record: u64) {
        self.life.dropping(by, record);
    }

    /// Notes that all records up to one are synced.
    pub(crate) fn synced(&mut self, upto: u64) {
        while let Some((by, index, record)) = self.life.take_dropped(upto) {
            let Some(object) = self.objects.get_mut(&record.object) else { continue };
            object.records -= 1;
            match (&record.of, &mut object.contents) {
                (Of::Entries(entries), Contents::Dict(dict)) => {
                    entries.iter().for_each(|entry| dict.dropped(index, *entry, by, &mut self.life));
                }
                (Of::Items(partition), Contents::Queue(queue)) => queue.dropped(index, partition, by, &mut self.life),
                _ => {}
            }
            match object.closed {
                Some(closed) if closed == index => drop(self.objects.remove(&record.object)),
                Some(closed) if object.records == 1 => self.life.release(closed, by),
                _ => {}
            }
        }
    }

    /// Says whether an object exists.
    pub fn exists(&self, id: ObjectId) -> bool {
        self.objects.get(&id).is_some_and(|object| object.opened.is_some() && object.closed.is_none())
    }

    /// Iterates over the objects that have anything in the log and were not closed.
    pub fn ids(&self) -> impl Iterator<Item = ObjectId> {
        self.objects.iter().filter(|(_, object)| object.closed.is_none()).map(|(id, _)| *id)
    }

    /// Returns the last record of an object.
    pub(crate) fn last(&self, id: ObjectId) -> u64 {
        self.objects.get(&id).map_or(0, |object| object.last)
    }

    /// Returns the record that opened an object.
    pub(crate) fn opened(&self, id: ObjectId) -> Option<u64> {
        self.objects.get(&id).filter(|object| object.closed.is_none()).and_then(|object| object.opened)
    }

    /// Says whether a record that is kept has its content in this blob.
    pub fn names(&self, blob: BlobId) -> bool {
        self.life.names(blob)
    }

    /// Returns how many records are in the log.
    pub fn records(&self) -> usize {
        self.life.len()
    }

    fn dict(&self, id: ObjectId) -> Option<&Dict> {
        match self.objects.get(&id).map(|object| &object.contents) {
            Some(Contents::Dict(dict)) => Some(dict),
            _ => None,
        }
    }

    fn queue(&self, id: ObjectId) -> Option<&Queue> {
        match self.objects.get(&id).map(|object| &object.contents) {
            Some(Contents::Queue(queue)) => Some(queue),
            _ => None,
        }
    }

    /// Says whether a dict has an entry.
    pub fn has(&self, id: ObjectId, entry: EntryKey) -> bool {
        self.dict(id).is_some_and(|dict| dict.has(entry))
    }

    /// Finds an entry of a dict.
    pub fn get(&self, id: ObjectId, entry: EntryKey) -> Option<Found<Place>> {
        self.dict(id)?.get(entry, &self.life, true)
    }

    /// Returns up to `max` entries of a dict after one, and no more than `bytes_max` bytes unless the first is longer.
    pub fn page(&self, id: ObjectId, after: Option<EntryKey>, values: bool, max: usize, bytes_max: u64) -> Vec<Found<Place>> {
        let Some(dict) = self.dict(id) else { return Vec::new() };
        let mut bytes = 0;
        let fits = |found: &Found<Place>| {
            let is_first = bytes == 0;
            bytes += found.piece.bytes.max(1);
            is_first || bytes <= bytes_max
        };
        dict.after(after).take(max).filter_map(|entry| dict.get(entry, &self.life, values)).take_while(fits).collect()
    }

    /// Notes in memory that an entry is used.
    pub(crate) fn touch(&mut self, id: ObjectId, entry: EntryKey, now: Millis) {
        if let Some(Contents::Dict(dict)) = self.objects.get_mut(&id).map(|object| &mut object.contents) {
            dict.touch(entry, now);
        }
    }

    /// Returns the entries of all dicts that nobody has used since `before`.
    pub(crate) fn idle(&self, before: Millis) -> Vec<(ObjectId, Vec<EntryKey>)> {
        let dicts = self.ids().filter_map(|id| Some((id, self.dict(id)?.idle(before))));
        dicts.filter(|(_, idle)| !idle.is_empty()).collect()
    }

    /// Returns the entries of all dicts that were used since the log says so.
    pub(crate) fn unnoted(&self) -> Vec<(ObjectId, Vec<(EntryKey, Millis)>)> {
        let dicts = self.ids().filter_map(|id| Some((id, self.dict(id)?.unnoted())));
        dicts.filter(|(_, unnoted)| !unnoted.is_empty()).collect()
    }

    /// Returns items of a partition after one.
    pub fn items(&self, id: ObjectId, partition: &Bytes, after: Entry, max: usize, bytes_max: u64) -> Vec<Found<Place>> {
        self.queue(id).map(|queue| queue.after(partition, after, max, bytes_max, &self.life)).unwrap_or_default()
    }

    /// Says in words why items cannot be put.
    pub(crate) fn is_full(&self, id: ObjectId, partition: &Bytes, lengths: &[u32]) -> Option<String> {
        self.queue(id).and_then(|queue| queue.is_full(partition, lengths))
    }

    /// Counts entries, or items of one or all partitions, and partitions with items.
    pub fn count(&self, id: ObjectId, partition: Option<&Bytes>) -> (u64, u64) {
        match self.objects.get(&id).map(|object| &object.contents) {
            Some(Contents::Dict(dict)) => (dict.len(), 0),
            Some(Contents::Queue(queue)) => (queue.len(partition), queue.partitions()),
            None => (0, 0),
        }
    }
}

fn places(answer: &ObjectAnswer<Place>) -> impl Iterator<Item = Place> {
    let found: &[Found<Place>] = if let ObjectAnswer::Found(found) = answer { found } else { &[] };
    found.iter().map(|found| found.piece)
}
