//! Queues: what is put, who takes it, and who waits for it.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use shoal_state::{ObjectId, QueueId, ShardId};

use super::parts;
use crate::calls::model::{Entry, Millis};
use crate::calls::refused::Refused;
use crate::calls::rules::{Due, Rules, Ticket, TimerKey};
use crate::objects::record::ObjectRecord;
use crate::objects::{Content, ObjectAnswer, PARTITION_NAME_BYTES_MAX};

/// How many bytes of entries or items one answer has, unless the first is longer.
pub(super) const ANSWER_BYTES_MAX: u64 = 8 << 20;

/// How many bytes of items one request may take, unless the first is longer. What it does not get stays for the next one.
const TAKEN_BYTES_MAX: u64 = 32 << 20;

/// How many entries or items one answer has at most, where the request does not say.
pub(super) const PAGE_MAX: usize = 1000;

/// What is no record: who waits, and which ephemeral objects were heard of.
#[derive(Debug, Default)]
pub(in crate::calls::rules) struct Waits {
    pub(super) at: BTreeMap<(QueueId, Bytes), VecDeque<Ticket>>,
    pub(super) of: HashMap<Ticket, Wait>,
    pub(super) heard: HashMap<ObjectId, Millis>,
}

/// Somebody waits for items.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) queue: QueueId,
    pub(super) partition: Bytes,
    pub(super) want: Want,
    pub(super) timer: TimerKey,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Want {
    Take { max: u32, key: u128 },
    Peek { after: Entry },
}

/// Items that are to be put.
pub(super) struct Put {
    pub(super) queue: QueueId,
    pub(super) partition: Bytes,
    pub(super) kept_ms: Millis,
    pub(super) lengths: Vec<u32>,
    pub(super) content: Content,
    pub(super) key: u128,
}

impl Rules {
    /// Returns the requests that wait for an item of a queue.
    pub fn waiting_for_items(&self) -> impl Iterator<Item = Ticket> {
        self.waits.of.keys().copied()
    }

    /// Forgets a request for an item: nobody waits for its answer.
    pub fn abandon(&mut self, ticket: Ticket) {
        self.unwait(ticket);
    }

    pub(super) fn put_items(&mut self, now: Millis, ticket: Ticket, shard: ShardId, put: Put) -> Result<(), Refused> {
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

    pub(super) fn take_items(
        &mut self,
        now: Millis,
        ticket: Ticket,
        shard: ShardId,
        (queue, partition, wait_ms): (QueueId, Bytes, u64),
        want: Want,
    ) {
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

    pub(super) fn unwait(&mut self, ticket: Ticket) -> Option<Wait> {
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
    pub(in crate::calls::rules) fn items_late(&mut self, ticket: Ticket) {
        if let Some(wait) = self.unwait(ticket)
            && let Some(shard) = wait.queue.shard()
        {
            self.answer_look(ticket, shard, wait.queue.into(), ObjectAnswer::Found(Vec::new()));
        }
    }

    /// Ends the partitions of a shard whose time is over.
    pub(super) fn end_partitions(&mut self, now: Millis, shard: ShardId) {
        while let Some((object, partition)) = self.homes.get_mut(&shard).and_then(|home| home.objects.state.ended(now)) {
            let record = ObjectRecord::Cleared { object, partition: Some(partition), key: 0, at_ms: now };
            self.append_object(shard, record, Bytes::new());
        }
    }
}
