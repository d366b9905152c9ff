//! Dicts and queues that are at home here: what is asked of them, who waits for an item, what has had its time.
//!
//! What can be seen is what records say; who waits is in memory alone, and asks again when the shard moves.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;
use shoal_state::{ObjectId, QueueId, ShardId};

use super::{Answer, Due, Effect, Needs, Rules, Ticket, TimerKey};
use crate::calls::model::{Entry, Millis, PAYLOAD_BYTES_MAX};
use crate::calls::refused::Refused;
use crate::objects::record::ObjectRecord;
use crate::objects::{
    Content, ENTRY_KEPT_MS, EntryKey, NewEntry, ObjectAnswer, ObjectRequest, ObjectsState, PARTITION_NAME_BYTES_MAX, Place, SILENCE_MAX_MS,
    SWEEP_EVERY_MS,
};

/// How many bytes of entries or items one answer has, unless the first is longer.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// How many bytes of items one request may take, unless the first is longer. What it does not get stays for the next one.
const TAKEN_BYTES_MAX: u64 = 32 << 20;

/// How many entries or items one answer has at most, where the request does not say.
const PAGE_MAX: usize = 1000;

/// How many entries one record removes or notes.
const ENTRIES_MAX: usize = 4096;

/// How many records are dropped at once.
const DROPS_MAX: usize = 4096;

/// What is no record: who waits, and which ephemeral objects were heard of.
#[derive(Debug, Default)]
pub(super) struct Waits {
    at: BTreeMap<(QueueId, Bytes), VecDeque<Ticket>>,
    of: HashMap<Ticket, Wait>,
    heard: HashMap<ObjectId, Millis>,
}

/// Somebody waits for items.
#[derive(Debug)]
struct Wait {
    queue: QueueId,
    partition: Bytes,
    want: Want,
    timer: TimerKey,
}

#[derive(Debug, Clone, Copy)]
enum Want {
    Take { max: u32, key: u128 },
    Peek { after: Entry },
}

/// What of a shard's home is about objects.
#[derive(Debug, Default)]
pub(super) struct ObjectsHome {
    pub(super) state: ObjectsState,
    timer: Option<(Millis, TimerKey)>,
    sweep_ms: Millis,
}

impl Rules {
    /// Takes the dicts and queues of a shard that was entered, as its records gave them.
    pub fn enter_objects(&mut self, now: Millis, shard: ShardId, state: ObjectsState) {
        if let Some(home) = self.homes.get_mut(&shard) {
            home.objects = ObjectsHome { state, sweep_ms: now + SWEEP_EVERY_MS, ..ObjectsHome::default() };
            self.arm(shard);
        }
    }

    /// Returns the dicts and queues of a shard that is at home here.
    pub fn objects(&self, shard: ShardId) -> Option<&ObjectsState> {
        self.homes.get(&shard).map(|home| &home.objects.state)
    }

    /// Returns the requests that wait for an item of a queue.
    pub fn waiting_for_items(&self) -> impl Iterator<Item = Ticket> {
        self.waits.of.keys().copied()
    }

    /// Forgets a request for an item: nobody waits for its answer.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.unwait(ticket);
    }

    pub(super) fn leave_objects(&mut self, shard: ShardId, left: &ObjectsHome) {
        if let Some((_, timer)) = left.timer {
            self.timers.unset(timer);
        }
        let of: Vec<Ticket> = self.waits.of.iter().filter(|(_, wait)| wait.queue.shard() == Some(shard)).map(|(id, _)| *id).collect();
        for ticket in of {
            if let Some(wait) = self.unwait(ticket) {
                let refused = self.not_home(shard, wait.queue.to_string());
                self.answer(ticket, Answer::Refused(refused));
            }
        }
    }

    pub(super) fn object(&mut self, now: Millis, ticket: Ticket, request: ObjectRequest) -> Result<(), Refused> {
        let Some(id) = request.object() else { return self.about_objects(now, ticket, &request) };
        let (shard, home) = self.home_of(id.shard(), || id.to_string())?;
        match request {
            ObjectRequest::Open { .. } => {
                let index = match home.objects.state.opened(id) {
                    Some(known) => known,
                    None => self.append_object(shard, ObjectRecord::Opened { object: id, at_ms: now }, Bytes::new()),
                };
                self.heard(now, id);
                self.answer_object(ticket, shard, index, ObjectAnswer::Done);
                return Ok(());
            }
            ObjectRequest::Close { .. } => {
                self.close(now, ticket, shard, id);
                return Ok(());
            }
            _ if !home.objects.state.exists(id) => return Err(Refused::NoObject { object: id }),
            _ => self.end_partitions(now, shard),
        }
        self.heard_if_known(now, id);
        match request {
            ObjectRequest::Update { entries, content, if_not_exists, key, .. } => {
                self.update(now, ticket, (shard, id), (entries, content), if_not_exists, key)?;
            }
            ObjectRequest::Pop { entry, key, .. } => self.pop(now, ticket, (shard, id), entry, key),
            ObjectRequest::Clear { partition, key, .. } => self.clear(now, ticket, (shard, id), partition, key),
            ObjectRequest::Put { queue, partition, kept_ms, lengths, content, key } => {
                let put = Put { queue, partition, kept_ms, lengths, content, key };
                self.put_items(now, ticket, shard, put)?;
            }
            ObjectRequest::Take { queue, partition, max, wait_ms, key } => {
                self.take_items(now, ticket, shard, (queue, partition, wait_ms), Want::Take { max: max.max(1), key });
            }
            ObjectRequest::Peek { queue, partition, after, wait_ms } => {
                self.take_items(now, ticket, shard, (queue, partition, wait_ms), Want::Peek { after });
            }
            looks => self.look_at(now, ticket, shard, &looks),
        }
        self.arm(shard);
        Ok(())
    }

    /// Answers a request that changes nothing.
    fn look_at(&mut self, now: Millis, ticket: Ticket, shard: ShardId, request: &ObjectRequest) {
        let Some(home) = self.homes.get_mut(&shard) else { return };
        let state = &mut home.objects.state;
        let (object, answer) = match request {
            ObjectRequest::Get { dict, entry } => {
                let object = (*dict).into();
                state.touch(object, *entry, now);
                (object, ObjectAnswer::Found(state.get(object, *entry).into_iter().collect()))
            }
            ObjectRequest::Has { dict, entry } => {
                let object = (*dict).into();
                state.touch(object, *entry, now);
                (object, ObjectAnswer::Bool(state.has(object, *entry)))
            }
            ObjectRequest::Page { dict, after, values } => {
                let object = (*dict).into();
                let found = state.page(object, *after, *values, PAGE_MAX, ANSWER_BYTES_MAX);
                found.iter().for_each(|found| state.touch(object, found.entry, now));
                (object, ObjectAnswer::Found(found))
            }
            ObjectRequest::Count { object, partition } => {
                let (items, partitions) = state.count(*object, partition.as_ref());
                (*object, ObjectAnswer::Count { items, partitions })
            }
            ObjectRequest::Beat { object } => (*object, ObjectAnswer::Done),
            other => unreachable!("{other:?} was answered before"),
        };
        if matches!(request, ObjectRequest::Beat { .. }) {
            self.heard(now, object);
            self.answer(ticket, Answer::Objects { shard, looked: false, answer });
        } else {
            self.answer_look(ticket, shard, object, answer);
        }
    }

    /// Answers what is about no single object.
    fn about_objects(&mut self, now: Millis, ticket: Ticket, request: &ObjectRequest) -> Result<(), Refused> {
        let any = ShardId::all().next().expect("there are shards");
        let (shard, answer) = match request {
            ObjectRequest::Silent { objects } => {
                let here = objects.iter().filter(|id| id.shard().is_some_and(|shard| self.homes.contains_key(&shard)));
                let here: Vec<ObjectId> = here.copied().collect();
                let known: HashSet<ObjectId> = here.iter().copied().collect();
                self.waits.heard.retain(|id, _| known.contains(id));
                let heard = &mut self.waits.heard;
                // One that is new here, because its shard is, has its whole time.
                let silent = here.into_iter().filter(|id| now >= *heard.entry(*id).or_insert(now) + SILENCE_MAX_MS);
                (any, ObjectAnswer::Objects(silent.collect()))
            }
            ObjectRequest::Named { blobs } => {
                let shard = blobs.first().and_then(|blob| blob.shard());
                let (shard, home) = self.home_of(shard, || blobs.first().map(ToString::to_string).unwrap_or_default())?;
                let named = blobs.iter().copied().filter(|blob| home.objects.state.names(*blob)).collect();
                // What is not named is deleted: only who is home yet may say so.
                self.answer(ticket, Answer::Objects { shard, looked: true, answer: ObjectAnswer::Blobs(named) });
                return Ok(());
            }
            _ => (any, ObjectAnswer::Objects(self.homes.values().flat_map(|home| home.objects.state.ids()).collect())),
        };
        self.answer(ticket, Answer::Objects { shard, looked: false, answer });
        Ok(())
    }

    fn heard(&mut self, now: Millis, id: ObjectId) {
        self.waits.heard.insert(id, now);
    }

    /// Who uses an ephemeral object is heard too.
    fn heard_if_known(&mut self, now: Millis, id: ObjectId) {
        if let Some(heard) = self.waits.heard.get_mut(&id) {
            *heard = now;
        }
    }

    fn close(&mut self, now: Millis, ticket: Ticket, shard: ShardId, id: ObjectId) {
        let known = self.homes.get(&shard).is_some_and(|home| home.objects.state.ids().any(|known| known == id));
        self.waits.heard.remove(&id);
        let waiting: Vec<Ticket> =
            self.waits.of.iter().filter(|(_, wait)| ObjectId::from(wait.queue) == id).map(|(ticket, _)| *ticket).collect();
        for waits in waiting {
            self.unwait(waits);
            self.answer(waits, Answer::Refused(Refused::NoObject { object: id }));
        }
        let index = match known {
            true => self.append_object(shard, ObjectRecord::Closed { object: id, at_ms: now }, Bytes::new()),
            false => 0,
        };
        self.answer_object(ticket, shard, index, ObjectAnswer::Done);
        self.arm(shard);
    }

    /// Answers a request again that was done before. Says whether it was.
    fn again(&mut self, ticket: Ticket, shard: ShardId, key: u128) -> bool {
        let known = self.homes.get(&shard).and_then(|home| home.objects.state.answered(key));
        let Some((record, answer)) = known.map(|known| (known.record, known.answer.clone())) else { return false };
        self.answer_object(ticket, shard, record, answer);
        true
    }

    fn update(
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

    fn pop(&mut self, now: Millis, ticket: Ticket, (shard, id): (ShardId, ObjectId), entry: EntryKey, key: u128) {
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

    fn clear(&mut self, now: Millis, ticket: Ticket, (shard, id): (ShardId, ObjectId), partition: Option<Bytes>, key: u128) {
        if self.again(ticket, shard, key) {
            return;
        }
        if self.homes[&shard].objects.state.count(id, partition.as_ref()).0 == 0 {
            self.answer_look(ticket, shard, id, ObjectAnswer::Done);
            return;
        }
        self.append_object(shard, ObjectRecord::Cleared { object: id, partition, key, at_ms: now }, Bytes::new());
        self.again(ticket, shard, key);
    }

    fn put_items(&mut self, now: Millis, ticket: Ticket, shard: ShardId, put: Put) -> Result<(), Refused> {
        let Put { queue, partition, kept_ms, lengths, content, key } = put;
        let id = ObjectId::from(queue);
        if self.again(ticket, shard, key) {
            return Ok(());
        }
        if partition.len() > PARTITION_NAME_BYTES_MAX {
            return Err(Refused::TooLong { what: format!("the name of a partition of queue {queue}"), bytes: partition.len() });
        }
        if let Some(why) = self.homes[&shard].objects.state.is_full(id, &partition, &lengths) {
            let name = String::from_utf8_lossy(&partition).into_owned();
            return Err(Refused::QueueFull { queue, partition: name, why });
        }
        if lengths.is_empty() {
            self.answer_look(ticket, shard, id, ObjectAnswer::Done);
            return Ok(());
        }
        let (blob, payload) = parts(id, content)?;
        let until_ms = now.saturating_add(kept_ms);
        let record = ObjectRecord::Put { queue, partition: partition.clone(), until_ms, lengths, blob, key, at_ms: now };
        let index = self.append_object(shard, record, payload);
        self.answer_object(ticket, shard, index, ObjectAnswer::Done);
        self.serve_waits(now, shard, queue, &partition);
        Ok(())
    }

    fn take_items(&mut self, now: Millis, ticket: Ticket, shard: ShardId, (queue, partition, wait_ms): (QueueId, Bytes, u64), want: Want) {
        if let Want::Take { key, .. } = want {
            if self.again(ticket, shard, key) {
                return;
            }
            // The request came again, and whoever waits for the answer to the first one is gone.
            let same = |wait: &Wait| matches!(wait.want, Want::Take { key: waits, .. } if waits == key);
            let before = self.waits.of.iter().find(|(_, wait)| same(wait)).map(|(ticket, _)| *ticket);
            if let Some(before) = before {
                self.unwait(before);
                self.answer_look(before, shard, queue.into(), ObjectAnswer::Found(Vec::new()));
            }
        }
        if self.give(now, ticket, shard, queue, &partition, want) {
            return;
        }
        if wait_ms == 0 {
            self.answer_look(ticket, shard, queue.into(), ObjectAnswer::Found(Vec::new()));
            return;
        }
        let timer = self.timers.set(now.saturating_add(wait_ms), Due::Items(ticket));
        self.waits.at.entry((queue, partition.clone())).or_default().push_back(ticket);
        self.waits.of.insert(ticket, Wait { queue, partition, want, timer });
    }

    /// Gives items to somebody, if there are any.
    fn give(&mut self, now: Millis, ticket: Ticket, shard: ShardId, queue: QueueId, partition: &Bytes, want: Want) -> bool {
        let (id, state) = (ObjectId::from(queue), &self.homes[&shard].objects.state);
        match want {
            Want::Peek { after } => {
                let found = state.items(id, partition, after, PAGE_MAX, ANSWER_BYTES_MAX);
                if found.is_empty() {
                    return false;
                }
                self.answer_look(ticket, shard, id, ObjectAnswer::Found(found));
            }
            Want::Take { max, key } => {
                let max = usize::try_from(max).unwrap_or(usize::MAX);
                let found = state.items(id, partition, Entry::default(), max, TAKEN_BYTES_MAX);
                let (Some(first), Some(last)) = (found.first(), found.last()) else { return false };
                let (first, upto) = (first.at, last.at);
                let record = ObjectRecord::Taken { queue, partition: partition.clone(), first, upto, key, at_ms: now };
                let index = self.append_object(shard, record, Bytes::new());
                self.answer_object(ticket, shard, index, ObjectAnswer::Found(found));
            }
        }
        true
    }

    /// Gives what has come to those who wait for it, the first first.
    fn serve_waits(&mut self, now: Millis, shard: ShardId, queue: QueueId, partition: &Bytes) {
        let waiting = self.waits.at.get(&(queue, partition.clone())).cloned().unwrap_or_default();
        for ticket in waiting {
            let Some(want) = self.waits.of.get(&ticket).map(|wait| wait.want) else { continue };
            if self.give(now, ticket, shard, queue, partition, want) {
                self.unwait(ticket);
            }
        }
    }

    fn unwait(&mut self, ticket: Ticket) -> Option<Wait> {
        let wait = self.waits.of.remove(&ticket)?;
        self.timers.unset(wait.timer);
        let place = (wait.queue, wait.partition.clone());
        if let Some(tickets) = self.waits.at.get_mut(&place) {
            tickets.retain(|waits| *waits != ticket);
            if tickets.is_empty() {
                self.waits.at.remove(&place);
            }
        }
        Some(wait)
    }

    /// Answers somebody for whom no item came in time.
    pub(super) fn items_late(&mut self, ticket: Ticket) {
        if let Some(wait) = self.unwait(ticket)
            && let Some(shard) = wait.queue.shard()
        {
            self.answer_look(ticket, shard, wait.queue.into(), ObjectAnswer::Found(Vec::new()));
        }
    }

    /// Does what is due in a shard.
    pub(super) fn objects_due(&mut self, now: Millis, shard: ShardId) {
        self.end_partitions(now, shard);
        let Some(home) = self.homes.get_mut(&shard) else { return };
        home.objects.timer = None;
        home.objects.state.trim(now);
        if home.objects.sweep_ms <= now {
            home.objects.sweep_ms = now + SWEEP_EVERY_MS;
            self.sweep(now, shard);
        }
        self.drop_unneeded(shard);
        self.arm(shard);
    }

    /// Ends the partitions of a shard whose time is over.
    fn end_partitions(&mut self, now: Millis, shard: ShardId) {
        while let Some((object, partition)) = self.homes.get_mut(&shard).and_then(|home| home.objects.state.ended(now)) {
            let record = ObjectRecord::Cleared { object, partition: Some(partition), key: 0, at_ms: now };
            self.append_object(shard, record, Bytes::new());
        }
    }

    /// Removes what was not used for long, and notes what was.
    fn sweep(&mut self, now: Millis, shard: ShardId) {
        let Some(home) = self.homes.get(&shard) else { return };
        let (idle, unnoted) = (home.objects.state.idle(now.saturating_sub(ENTRY_KEPT_MS)), home.objects.state.unnoted());
        for (id, entries) in idle {
            let ObjectId::Dict(dict) = id else { continue };
            for entries in entries.chunks(ENTRIES_MAX) {
                self.append_object(shard, ObjectRecord::Removed { dict, entries: entries.to_vec(), key: 0, at_ms: now }, Bytes::new());
            }
        }
        for (id, entries) in unnoted {
            let ObjectId::Dict(dict) = id else { continue };
            for entries in entries.chunks(ENTRIES_MAX) {
                self.append_object(shard, ObjectRecord::Touched { dict, entries: entries.to_vec() }, Bytes::new());
            }
        }
    }

    /// Notes that more of a shard is synced, and drops what is needed no more.
    pub(super) fn objects_synced(&mut self, shard: ShardId) {
        if let Some(home) = self.homes.get_mut(&shard) {
            home.objects.state.synced(home.synced.index);
            self.drop_unneeded(shard);
        }
    }

    fn drop_unneeded(&mut self, shard: ShardId) {
        let Some(home) = self.homes.get_mut(&shard) else { return };
        for (record, object) in home.objects.state.take_garbage(home.synced.index, DROPS_MAX) {
            let index = home.next;
            home.next += 1;
            home.objects.state.dropping(index, record);
            self.effects.push(Effect::DropObject { shard, index, owner: ObjectRecord::owner(object, record) });
        }
    }

    /// Sees to it that the shard is looked at when something is due.
    fn arm(&mut self, shard: ShardId) {
        let Some(home) = self.homes.get_mut(&shard) else { return };
        let objects = &mut home.objects;
        if objects.state.records() == 0 {
            return;
        }
        let at = objects.state.next_ms().map_or(objects.sweep_ms, |next| next.min(objects.sweep_ms));
        match objects.timer {
            Some((armed, _)) if armed <= at => {}
            before => {
                if let Some((_, timer)) = before {
                    self.timers.unset(timer);
                }
                objects.timer = Some((at, self.timers.set(at, Due::Objects(shard))));
            }
        }
    }

    fn append_object(&mut self, shard: ShardId, record: ObjectRecord, payload: Bytes) -> u64 {
        let home = self.homes.get_mut(&shard).expect("who appends has looked the object up");
        let index = home.next;
        home.next += 1;
        home.objects.state.apply(index, &record);
        self.effects.push(Effect::AppendObject { shard, index, record, payload });
        index
    }

    /// Answers once a record is synced everywhere.
    fn answer_object(&mut self, ticket: Ticket, shard: ShardId, index: u64, answer: ObjectAnswer<Place>) {
        self.answer_after(ticket, &[Needs { shard, index, durable: true }], Answer::Objects { shard, looked: false, answer });
    }

    /// Answers who changed nothing: once all that can be seen of the object is synced. Whoever gives the answer has it confirmed that
    /// this node is home.
    fn answer_look(&mut self, ticket: Ticket, shard: ShardId, object: ObjectId, answer: ObjectAnswer<Place>) {
        let Some(home) = self.homes.get(&shard) else { return };
        let needs = [Needs { shard, index: home.objects.state.last(object), durable: true }];
        self.answer_after(ticket, &needs, Answer::Objects { shard, looked: true, answer });
    }
}

/// Items that are to be put.
struct Put {
    queue: QueueId,
    partition: Bytes,
    kept_ms: Millis,
    lengths: Vec<u32>,
    content: Content,
    key: u128,
}

/// Takes content apart: the blob that has it, or the bytes that follow the record's head.
fn parts(object: ObjectId, content: Content) -> Result<(Option<shoal_state::BlobId>, Bytes), Refused> {
    match content {
        Content::Blob(blob) => Ok((Some(blob), Bytes::new())),
        Content::Inline(bytes) if bytes.len() > PAYLOAD_BYTES_MAX => {
            Err(Refused::TooLong { what: format!("a change of {object}"), bytes: bytes.len() })
        }
        Content::Inline(bytes) => Ok((None, bytes)),
    }
}
