//! Dicts and queues that are at home here: what is asked of them, who waits for an item, what has had its time.
//!
//! What can be seen is what records say; who waits is in memory alone, and asks again when the shard moves.

mod dicts;
mod queues;

use std::collections::HashSet;

use bytes::Bytes;
use shoal_state::{ObjectId, ShardId};

pub(super) use self::queues::Waits;
use self::queues::{ANSWER_BYTES_MAX, PAGE_MAX, Put, Want};
use super::{Answer, Due, Effect, Needs, Rules, Ticket, TimerKey};
use crate::calls::model::{Millis, PAYLOAD_BYTES_MAX};
use crate::calls::refused::Refused;
use crate::objects::record::ObjectRecord;
use crate::objects::{Content, ENTRY_KEPT_MS, ObjectAnswer, ObjectRequest, ObjectsState, Place, SILENCE_MAX_MS, SWEEP_EVERY_MS};

/// How many entries one record removes or notes.
const ENTRIES_MAX: usize = 4096;

/// How many records are dropped at once.
const DROPS_MAX: usize = 4096;

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
