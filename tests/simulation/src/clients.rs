//! Clients: each does one thing after the other through any node, and asks again, by another node and with the same key, until it has an
//! answer.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use shoal_calls::calls::{CallKind, Entry, Invocation, NewInput, OpenCall, Outputs, Policy, Refused, RetryInput};
use shoal_calls::objects::{Content, EntryKey, NewEntry, ObjectAnswer, ObjectRequest, Piece};
use shoal_calls::{Calls, Error};
use shoal_state::{CallId, InputId, ObjectId, ShardId};

use crate::dice::Dice;
use crate::extras::Extra;
use crate::ground::BEGAN_MS;
use crate::history::{Event, Seen, fnv};
use crate::mutant::Mutant;
use crate::world::{World, dict, function, queue, shards};

mod cancels;
mod gangs;
mod generators;

/// How many clients there are.
pub const COUNT: u64 = 5;

/// How long a client waits for a node that does not answer.
const PATIENCE: Duration = Duration::from_secs(14);
/// How long it waits before it asks again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A reader asks for at most so many outputs, which is more than any call here has.
const ALL: usize = 16;
/// After so long without news a reader of a call that may have been lost gives up.
const LOST_AFTER: Duration = Duration::from_secs(60);

/// A client.
struct Client {
    world: World,
    number: u64,
    dice: Dice,
    made: u64,
}

/// An answer, after so many tries, the last of which began then.
struct Answered<T> {
    answer: Result<T, Refused>,
    tries: u32,
    began: Duration,
}

/// Does one thing after the other until the world is whole again, and finishes what it began.
pub async fn run(world: World, number: u64) {
    let dice = Dice::new(world.seed, 100 + number);
    let mut client = Client { world, number, dice, made: 0 };
    client.world.time.sleep(Duration::from_millis(500 + 300 * number)).await;
    client.objects_open().await;
    while !client.world.is_healed() {
        match client.dice.below(10) {
            0..2 if client.world.there_are(Extra::Cancels) => client.cancelled().await,
            2..4 if client.world.there_are(Extra::Generators) => client.generator().await,
            4 if client.world.there_are(Extra::Gangs) => client.gang().await,
            0..4 => client.call().await,
            4..6 => client.look().await,
            6..8 => client.items().await,
            _ => client.value().await,
        }
        let rest = client.dice.from(10, 500);
        client.world.time.sleep(Duration::from_millis(rest)).await;
    }
    // One is left over to look at the end of all.
    if number == 0 {
        while client.world.busy() > 1 {
            client.world.time.sleep(Duration::from_secs(1)).await;
        }
        client.audit().await;
    }
    client.world.done(number);
}

fn seen(outputs: &Outputs) -> Vec<Seen> {
    let one = |output: &shoal_calls::calls::Output| Seen {
        input: output.input,
        entry: output.entry,
        retry_count: output.retry_count,
        status: output.status,
        result: fnv(0, &output.result),
    };
    outputs.items.iter().map(one).collect()
}

impl Client {
    /// Asks nodes, one after the other, until one has an answer.
    async fn ask<T: Send + 'static>(&mut self, what: impl Fn(Calls, u32) -> BoxFuture<'static, Result<T, Error>>) -> Answered<T> {
        let mut tries = 0;
        loop {
            tries += 1;
            let node = usize::try_from(self.dice.below(self.world.size as u64)).unwrap_or(0);
            let began = self.world.time.now();
            let (net, asked) = (self.world.net.clone(), what_now(&what, tries));
            let answer = self.world.time.within(PATIENCE, net.ask(None, node, asked)).await;
            match answer.flatten() {
                Some(Ok(answer)) => return Answered { answer: Ok(answer), tries, began },
                Some(Err(Error::Refused(refused))) if !matches!(refused, Refused::NotHome { .. } | Refused::TooMany { .. }) => {
                    return Answered { answer: Err(refused), tries, began };
                }
                other => {
                    let why = other.and_then(Result::err).map(|error| error.to_string());
                    tracing::debug!(client = self.number, tries, node, why, "asks again");
                    self.world.time.sleep(AGAIN_AFTER).await;
                }
            }
        }
    }

    fn next(&mut self) -> u64 {
        self.made += 1;
        self.number * 1_000_000 + self.made
    }

    fn shard(&mut self) -> ShardId {
        self.dice.pick(&shards()).expect("there are some")
    }

    /// The key of a request at its so-manieth try.
    fn key(&self, key: &str) -> impl Fn(u32) -> String + Send + use<> {
        let (key, anew) = (key.to_owned(), self.world.has(Mutant::TriesAgainByAnotherKey));
        move |tries| if anew { format!("{key} {tries}") } else { key.clone() }
    }

    /// Opens a call; false if that was refused.
    async fn open(&mut self, open: OpenCall, lasting: bool) -> bool {
        let call = open.call;
        let opened = self
            .ask(move |calls, _| {
                let open = open.clone();
                Box::pin(async move { calls.open_call(open).await })
            })
            .await;
        if opened.answer.is_ok() {
            self.world.history.note(Event::Opened { call, lasting });
        }
        opened.answer.is_ok()
    }

    /// Opens a call, puts inputs, reads until all have outputs, has some tried again.
    async fn call(&mut self) {
        let (number, shard) = (self.next(), self.shard());
        let call = CallId::derive_in(shard, &[&number.to_le_bytes()]);
        let (lasting, unary) = (self.dice.below(3) > 0, self.dice.below(2) == 0);
        let policy = Policy { retries: 1, initial_delay_ms: 300, ..Policy::default() };
        let open = OpenCall {
            call,
            function: function(shard),
            pool: function(shard),
            kind: if unary { CallKind::Unary } else { CallKind::Map },
            invocation: if lasting { Invocation::Async } else { Invocation::Sync },
            parent: None,
            created_ms: BEGAN_MS,
            policy,
        };
        let mut wants: BTreeMap<InputId, u32> = BTreeMap::new();
        if unary {
            self.world.does(self.number, "opens a call with its input");
            let key = self.key("only");
            let put = self
                .ask(move |calls, tries| {
                    let (open, key) = (open.clone(), key(tries));
                    Box::pin(async move { calls.open_call_with(open, inputs(0, 1), &key).await })
                })
                .await;
            self.world.history.note(Event::Opened { call, lasting });
            if !self.took(call, "only", put, &mut wants) {
                return;
            }
        } else {
            self.world.does(self.number, "opens a call");
            if !self.open(open, lasting).await {
                return;
            }
            self.world.does(self.number, "puts inputs");
            for batch in 0..self.dice.from(1, 3) {
                let (name, count) = (format!("batch {batch}"), u32::try_from(self.dice.from(1, 4)).unwrap_or(1));
                let first = u32::try_from(batch).unwrap_or(0) * 10;
                let key = self.key(&name);
                let put = self
                    .ask(move |calls, tries| {
                        let key = key(tries);
                        Box::pin(async move { calls.put_inputs(call, inputs(first, count), &key).await })
                    })
                    .await;
                if !self.took(call, &name, put, &mut wants) {
                    return;
                }
            }
        }
        self.world.calls.borrow_mut().insert(call, lasting);
        self.world.does(self.number, "reads outputs");
        let mut cursor = Entry::default();
        if !self.read_all(call, lasting, &wants, &mut cursor).await || self.dice.below(3) > 0 {
            return;
        }
        self.world.does(self.number, "has inputs tried again");
        let input = wants.keys().next().copied().expect("it has inputs");
        if let Some(tried) = self.retry(call, input).await {
            let wants = BTreeMap::from([(input, tried)]);
            self.world.does(self.number, "reads outputs of later tries");
            self.read_all(call, lasting, &wants, &mut cursor).await;
        }
    }

    fn took(
        &mut self,
        call: CallId,
        key: &str,
        put: Answered<Vec<shoal_calls::calls::PutInput>>,
        wants: &mut BTreeMap<InputId, u32>,
    ) -> bool {
        match put.answer {
            Ok(put_inputs) => {
                let inputs: Vec<InputId> = put_inputs.iter().map(|put| put.input).collect();
                wants.extend(inputs.iter().map(|input| (*input, 0)));
                self.world.history.note(Event::Put { call, key: key.to_owned(), inputs, tries: put.tries });
                true
            }
            Err(refused) => {
                self.missing(call, put.began, &refused);
                false
            }
        }
    }

    fn missing(&mut self, call: CallId, began: Duration, refused: &Refused) {
        if matches!(refused, Refused::NoCall { .. } | Refused::NoInput { .. }) {
            self.world.history.note(Event::Missing { call, began, why: refused.to_string() });
        }
    }

    /// Asks twice for the same: two wishes with one key are one.
    async fn retry(&mut self, call: CallId, input: InputId) -> Option<u32> {
        let name = format!("retry {}", self.next());
        let mut last = None;
        for _ in 0..2 {
            let key = self.key(&name);
            let asked = self
                .ask(move |calls, tries| {
                    let key = key(tries);
                    let items = vec![RetryInput { input, retry_count: 0, payload: Bytes::new() }];
                    Box::pin(async move { calls.retry_inputs(items, &key).await })
                })
                .await;
            match asked.answer {
                Ok(tried) => {
                    last = tried.first().map(|(_, tried)| *tried);
                    self.world.history.note(Event::Retried { call, key: name.clone(), tried });
                }
                Err(refused) => self.missing(call, asked.began, &refused),
            }
        }
        last
    }

    /// Reads with a cursor until each input has an output of the try that is wanted, or of a later one.
    async fn read_all(&mut self, call: CallId, lasting: bool, wants: &BTreeMap<InputId, u32>, cursor: &mut Entry) -> bool {
        let mut wants = wants.clone();
        let (reader, mut news) = (self.number, self.world.time.now());
        let mut known: BTreeMap<InputId, u32> = BTreeMap::new();
        while !wants.is_empty() {
            let (after, max) = (*cursor, usize::try_from(self.dice.from(1, 4)).unwrap_or(1));
            let read = self
                .ask(move |calls, _| Box::pin(async move { calls.outputs(call, after, max, Duration::from_secs(3), false).await }))
                .await;
            let outputs = match read.answer {
                Ok(outputs) => outputs,
                Err(refused) => {
                    self.missing(call, read.began, &refused);
                    return false;
                }
            };
            let (seen, last) = (seen(&outputs), outputs.last);
            if !seen.is_empty() {
                news = self.world.time.now();
            }
            known.extend(seen.iter().map(|seen| (seen.input, seen.retry_count)));
            wants.retain(|input, least| known.get(input).is_none_or(|known| known < least));
            self.world.history.note(Event::Read { call, reader, began: read.began, after, last, seen, all: false });
            *cursor = last;
            if self.world.has(Mutant::CursorRunsAhead) {
                cursor.index += 1;
            }
            // What was not to last may be gone with a machine.
            if !lasting && self.world.time.now().saturating_sub(news) > LOST_AFTER {
                return false;
            }
        }
        true
    }

    /// Looks at some call of anybody.
    async fn look(&mut self) {
        self.world.does(self.number, "looks at a call");
        let calls: Vec<CallId> = self.world.calls.borrow().keys().copied().collect();
        let Some(call) = self.dice.pick(&calls) else { return };
        self.read_once(call).await;
        let counted = self.ask(move |calls, _| Box::pin(async move { calls.info(call).await })).await;
        match counted.answer {
            Ok(info) => self.world.history.note(Event::Counted { call, began: counted.began, inputs: info.inputs }),
            Err(refused) => self.missing(call, counted.began, &refused),
        }
    }

    async fn read_once(&mut self, call: CallId) -> Option<Vec<Seen>> {
        let after = Entry::default();
        let read = self.ask(move |calls, _| Box::pin(async move { calls.outputs(call, after, ALL, Duration::ZERO, false).await })).await;
        match read.answer {
            Ok(outputs) => {
                let (seen, reader) = (seen(&outputs), 1_000 + self.number);
                let all = Event::Read { call, reader, began: read.began, after, last: outputs.last, seen: seen.clone(), all: true };
                self.world.history.note(all);
                Some(seen)
            }
            Err(refused) => {
                self.missing(call, read.began, &refused);
                None
            }
        }
    }

    async fn object(&mut self, request: impl Fn(u32) -> ObjectRequest) -> (Result<ObjectAnswer, Refused>, Duration) {
        let answered = self
            .ask(move |calls, tries| {
                let request = request(tries);
                Box::pin(async move { calls.object(request).await })
            })
            .await;
        (answered.answer, answered.began)
    }

    async fn objects_open(&mut self) {
        self.world.does(self.number, "opens dicts and queues");
        for shard in shards() {
            for object in [ObjectId::from(queue(shard)), ObjectId::from(dict(shard))] {
                let _ = self.object(|_| ObjectRequest::Open { object }).await;
            }
        }
    }

    /// Puts items into a queue, or takes some.
    async fn items(&mut self) {
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
    async fn value(&mut self) {
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

    /// Looks at everything when all is done.
    async fn audit(&mut self) {
        let calls: Vec<(CallId, bool)> = self.world.calls.borrow().iter().map(|(call, lasting)| (*call, *lasting)).collect();
        for (call, _) in calls {
            self.world.does(self.number, "looks at a call in the end");
            let Some(seen) = self.read_once(call).await else { continue };
            let listed = self.ask(move |calls, _| Box::pin(async move { calls.inputs(call).await })).await;
            if let Ok(inputs) = listed.answer {
                let inputs = inputs.iter().map(|info| info.input).collect();
                self.world.history.note(Event::Final { call, inputs, seen });
            }
        }
        for shard in shards() {
            self.world.does(self.number, "takes what is left in a queue");
            let mut left = Vec::new();
            loop {
                let number = self.next();
                let taken = self.take_left(shard, number).await;
                if taken.is_empty() {
                    break;
                }
                left.extend(taken);
            }
            self.world.history.note(Event::ItemsLeft { queue: queue(shard), items: left });
        }
    }

    async fn take_left(&mut self, shard: ShardId, number: u64) -> Vec<u64> {
        let queue = queue(shard);
        let take = move |_| ObjectRequest::Take { queue, partition: Bytes::new(), max: 8, wait_ms: 0, key: u128::from(number) << 32 };
        let Ok(ObjectAnswer::Found(found)) = self.object(take).await.0 else { return Vec::new() };
        found.iter().map(|found| number_in(&found.piece)).collect()
    }
}

/// Makes what a node is asked.
fn what_now<T: Send + 'static>(
    what: &impl Fn(Calls, u32) -> BoxFuture<'static, Result<T, Error>>,
    tries: u32,
) -> impl FnOnce(Calls) -> BoxFuture<'static, Result<T, Error>> {
    move |calls| what(calls, tries)
}

fn inputs(first: u32, count: u32) -> Vec<NewInput> {
    (first..first + count).map(|idx| NewInput { idx, payload: idx.to_string().into() }).collect()
}

fn number_in(piece: &Piece) -> u64 {
    let Piece::Inline(bytes) = piece else { return 0 };
    let mut last = [0; 8];
    last.copy_from_slice(&bytes[bytes.len().saturating_sub(8)..]);
    u64::from_le_bytes(last)
}
