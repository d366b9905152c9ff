//! Dicts and queues: values that one client sets and all look up, items that some put and others take.

use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::{Entry, Refused};
use shoal_calls::objects::{Content, EntryKey, NewEntry, ObjectAnswer, ObjectRequest, Piece};
use shoal_state::{ObjectId, ShardId};

use super::Client;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::world::{dict, queue, shards};

impl Client {
    async fn object(&mut self, request: impl Fn(u32) -> ObjectRequest) -> (Result<ObjectAnswer, Refused>, Duration) {
        let answered = self
            .ask(move |calls, tries| {
                let request = request(tries);
                Box::pin(async move { calls.object(request).await })
            })
            .await;
        (answered.answer, answered.began)
    }

    pub(super) async fn objects_open(&mut self) {
        self.world.does(self.number, "opens dicts and queues");
        for shard in shards() {
            for object in [ObjectId::from(queue(shard)), ObjectId::from(dict(shard))] {
                let _ = self.object(|_| ObjectRequest::Open { object }).await;
            }
        }
    }

    /// Puts items into a queue, or takes some.
    pub(super) async fn items(&mut self) {
        let (shard, number) = (self.shard(), self.next());
        let (queue, anew) = (queue(shard), self.world.has(Mutant::TriesAgainByAnotherKey));
        let key = move |tries: u32| u128::from(number) << 32 | u128::from(if anew { tries } else { 0 });
        if self.dice.below(2) == 0 {
            self.world.does(self.number, "puts an item");
            let put = move |tries| ObjectRequest::Put {
                queue,
                partition: Bytes::new(),
                kept_ms: 86_400_000,
                lengths: vec![8],
                content: Content::Inline(Bytes::copy_from_slice(&number.to_le_bytes())),
                key: key(tries),
            };
            if self.object(put).await.0.is_ok() {
                self.world.history.note(Event::ItemPut { queue, item: number });
            }
            return;
        }
        self.world.does(self.number, "takes items");
        let (max, wait_ms) = (u32::try_from(self.dice.from(1, 3)).unwrap_or(1), self.dice.below(2) * 500);
        self.take(shard, max, wait_ms, key).await;
    }

    async fn take(&mut self, shard: ShardId, max: u32, wait_ms: u64, key: impl Fn(u32) -> u128) -> Vec<u64> {
        let queue = queue(shard);
        let take = move |tries| ObjectRequest::Take { queue, partition: Bytes::new(), max, wait_ms, key: key(tries) };
        let Ok(ObjectAnswer::Found(found)) = self.object(take).await.0 else { return Vec::new() };
        let entries: Vec<(Entry, u64)> = found.iter().map(|found| (found.at, number_in(&found.piece))).collect();
        let items = entries.iter().map(|(_, item)| *item).collect();
        self.world.history.note(Event::ItemsTaken { queue, entries });
        items
    }

    /// Sets a value, if it is this client's, or looks one up.
    pub(super) async fn value(&mut self) {
        let (number, at) = (self.next(), usize::try_from(self.dice.below(3)).unwrap_or(0));
        let shard = shards()[at];
        let (dict, entry) = (dict(shard), EntryKey::of(b"v"));
        // Of each value there is one client that sets it.
        if self.number == at as u64 && self.dice.below(2) == 0 {
            self.world.does(self.number, "sets a value");
            let set = move |_| ObjectRequest::Update {
                dict,
                entries: vec![NewEntry { entry, key_bytes: 1, value_bytes: 8 }],
                content: Content::Inline([&b"v"[..], &number.to_le_bytes()].concat().into()),
                if_not_exists: false,
                key: u128::from(number),
            };
            if self.object(set).await.0.is_ok() {
                self.world.history.note(Event::ValueSet { shard, value: number });
            }
            return;
        }
        self.world.does(self.number, "looks a value up");
        let (found, began) = self.object(|_| ObjectRequest::Get { dict, entry }).await;
        if let Ok(ObjectAnswer::Found(found)) = found {
            let value = found.first().map_or(0, |found| number_in(&found.piece));
            self.world.history.note(Event::ValueRead { shard, began, value });
        }
    }

    /// Takes what is left of a queue, some at a time.
    pub(super) async fn take_left(&mut self, shard: ShardId, number: u64) -> Vec<u64> {
        let queue = queue(shard);
        let take = move |_| ObjectRequest::Take { queue, partition: Bytes::new(), max: 8, wait_ms: 0, key: u128::from(number) << 32 };
        let Ok(ObjectAnswer::Found(found)) = self.object(take).await.0 else { return Vec::new() };
        found.iter().map(|found| number_in(&found.piece)).collect()
    }
}

fn number_in(piece: &Piece) -> u64 {
    let Piece::Inline(bytes) = piece else { return 0 };
    let mut last = [0; 8];
    last.copy_from_slice(&bytes[bytes.len().saturating_sub(8)..]);
    u64::from_le_bytes(last)
}
