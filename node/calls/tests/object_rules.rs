//! What single requests to dicts and queues are answered, and when, in simulated time.

use bytes::Bytes;
use shoal_calls::calls::rules::{Answer, Effect, Request, Rules};
use shoal_calls::calls::state::CallsState;
use shoal_calls::calls::{Entry, Refused};
use shoal_calls::objects::*;
use shoal_state::{BlobId, DictId, ObjectId, QueueId, ShardId};

fn shard() -> ShardId {
    ShardId::new(3).unwrap()
}

fn dict() -> DictId {
    DictId::in_shard(shard(), 1)
}

fn queue() -> QueueId {
    QueueId::in_shard(shard(), 1)
}

/// The rules of a home that syncs what it writes when it is told to.
struct Home {
    rules: Rules,
    now: u64,
    tickets: u64,
    written: u64,
    answers: Vec<(u64, Answer)>,
}

impl Home {
    fn new() -> Self {
        let mut rules = Rules::new();
        rules.enter(0, shard(), CallsState::default(), 1);
        rules.enter_objects(0, shard(), ObjectsState::default());
        let mut home = Self { rules, now: 1_000_000, tickets: 0, written: 0, answers: Vec::new() };
        for object in [dict().into(), queue().into()] {
            assert_eq!(home.done(ObjectRequest::Open { object }), ObjectAnswer::Done);
        }
        home
    }

    fn ask(&mut self, request: ObjectRequest) -> u64 {
        self.tickets += 1;
        self.rules.handle(self.now, self.tickets, Request::Object(request));
        self.take();
        self.tickets
    }

    fn take(&mut self) {
        for effect in self.rules.take_effects() {
            match effect {
                Effect::Answer { ticket, answer } => self.answers.push((ticket, answer)),
                Effect::AppendObject { index, .. } | Effect::DropObject { index, .. } => self.written = index,
                other => panic!("{other:?}"),
            }
        }
    }

    fn sync(&mut self) {
        self.rules.counted(self.now, shard(), self.written, self.written);
        self.take();
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.rules.tick(self.now);
        self.take();
    }

    fn answer(&mut self, ticket: u64) -> Option<ObjectAnswer<Place>> {
        let at = self.answers.iter().position(|(of, _)| *of == ticket)?;
        match self.answers.remove(at).1 {
            Answer::Objects { answer, .. } => Some(answer),
            other => panic!("{other:?}"),
        }
    }

    /// Asks, syncs and returns the answer.
    fn done(&mut self, request: ObjectRequest) -> ObjectAnswer<Place> {
        let ticket = self.ask(request);
        self.sync();
        self.answer(ticket).expect("it is answered")
    }

    fn refused(&mut self, request: ObjectRequest) -> Refused {
        let ticket = self.ask(request);
        match self.answers.pop() {
            Some((of, Answer::Refused(refused))) if of == ticket => refused,
            other => panic!("{other:?}"),
        }
    }
}

fn set(key: u128, name: &str, value: &str, if_not_exists: bool) -> ObjectRequest {
    let entry = NewEntry { entry: EntryKey::of(name.as_bytes()), key_bytes: name.len() as u32, value_bytes: value.len() as u32 };
    let content = Content::Inline(format!("{name}{value}").into());
    ObjectRequest::Update { dict: dict(), entries: vec![entry], content, if_not_exists, key }
}

fn has(name: &str) -> ObjectRequest {
    ObjectRequest::Has { dict: dict(), entry: EntryKey::of(name.as_bytes()) }
}

fn put(key: u128, partition: &'static str, lengths: &[u32], kept_ms: u64) -> ObjectRequest {
    let content = Content::Inline(vec![7; lengths.iter().sum::<u32>() as usize].into());
    ObjectRequest::Put { queue: queue(), partition: partition.into(), kept_ms, lengths: lengths.to_vec(), content, key }
}

fn take(key: u128, max: u32, wait_ms: u64) -> ObjectRequest {
    ObjectRequest::Take { queue: queue(), partition: Bytes::new(), max, wait_ms, key }
}

fn count(object: impl Into<ObjectId>) -> ObjectRequest {
    ObjectRequest::Count { object: object.into(), partition: None }
}

fn numbers(answer: Option<ObjectAnswer<Place>>) -> Vec<u32> {
    match answer {
        Some(ObjectAnswer::Found(found)) => found.iter().map(|found| found.at.number).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_is_answered_before_it_is_synced_not_even_to_who_looks() {
    let mut home = Home::new();
    let (first, second, look) = (home.ask(set(1, "a", "1", true)), home.ask(set(2, "a", "2", true)), home.ask(has("a")));
    assert!(home.answers.is_empty());
    home.sync();
    let answers = [first, second, look].map(|ticket| home.answer(ticket));
    // Of two that race one wins; who looked saw it.
    assert_eq!(answers, [true, false, true].map(|yes| Some(ObjectAnswer::Bool(yes))));
}

#[test]
fn a_request_that_comes_again_is_answered_as_it_was_and_does_nothing() {
    let mut home = Home::new();
    home.done(put(1, "", &[1, 2, 3], PARTITION_KEPT_MS));
    home.done(put(1, "", &[1, 2, 3], PARTITION_KEPT_MS));
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 3, partitions: 1 });
    let first = home.done(take(2, 2, 0));
    assert_eq!(home.done(take(2, 2, 0)), first);
    home.done(set(3, "a", "1", false));
    let pop = || ObjectRequest::Pop { dict: dict(), entry: EntryKey::of(b"a"), key: 4 };
    let popped = home.done(pop());
    assert!(matches!(&popped, ObjectAnswer::Found(found) if found.len() == 1));
    // Meanwhile another put it there.
    home.done(set(5, "a", "2", false));
    assert_eq!((home.done(pop()), home.done(has("a"))), (popped, ObjectAnswer::Bool(true)));
    home.pass(ANSWERS_KEPT_MS);
    assert_eq!(numbers(Some(home.done(take(2, 2, 0)))), [2], "it is a new request after so long");
}

#[test]
fn who_waits_is_served_in_turn_and_once() {
    let mut home = Home::new();
    let (first, second, third) = (home.ask(take(1, 2, 5000)), home.ask(take(2, 9, 5000)), home.ask(take(3, 1, 5000)));
    home.pass(4000);
    home.done(put(10, "", &[1, 1, 1], PARTITION_KEPT_MS));
    assert_eq!((numbers(home.answer(first)), numbers(home.answer(second))), (vec![0, 1], vec![2]));
    assert!(home.answer(third).is_none());
    // The request comes again while the first one still waits: that one is for nobody.
    let again = home.ask(take(3, 1, 5000));
    home.sync();
    assert_eq!(numbers(home.answer(third)), [0_u32; 0]);
    // Who is gone gets nothing.
    let gone = home.ask(take(4, 1, 5000));
    home.rules.abandon(gone);
    home.pass(4999);
    assert!(home.answer(again).is_none());
    home.pass(1);
    assert_eq!(numbers(home.answer(again)), [0_u32; 0]);
    home.done(put(11, "", &[1], PARTITION_KEPT_MS));
    assert!(home.answer(gone).is_none());
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 1, partitions: 1 });
}

#[test]
fn a_reader_of_a_queue_goes_on_where_it_was_and_waits_for_more() {
    let mut home = Home::new();
    home.done(put(1, "", &[1, 1], PARTITION_KEPT_MS));
    let peek = |after, wait_ms| ObjectRequest::Peek { queue: queue(), partition: Bytes::new(), after, wait_ms };
    let ObjectAnswer::Found(found) = home.done(peek(Entry::default(), 0)) else { panic!("items") };
    let last = found.last().unwrap().at;
    assert_eq!(numbers(Some(home.done(peek(found[0].at, 0)))), [1]);
    let waits = home.ask(peek(last, 1000));
    home.sync();
    assert!(home.answer(waits).is_none());
    home.done(put(2, "", &[1], PARTITION_KEPT_MS));
    assert_eq!(numbers(home.answer(waits)), [0]);
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 3, partitions: 1 });
}

#[test]
fn a_partition_ends_at_its_time_and_a_put_makes_it_longer() {
    let mut home = Home::new();
    home.done(put(1, "", &[1], 1000));
    home.done(put(2, "p", &[1], PARTITION_KEPT_MS));
    home.pass(900);
    home.done(put(3, "", &[1], 1000));
    home.pass(999);
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 3, partitions: 2 });
    home.pass(1);
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 1, partitions: 1 });
    home.pass(PARTITION_KEPT_MS);
    assert_eq!(home.done(count(queue())), ObjectAnswer::Count { items: 0, partitions: 0 });
}

#[test]
fn an_entry_that_nobody_uses_goes_and_one_that_is_read_stays() {
    let mut home = Home::new();
    home.done(set(1, "read", "", false));
    home.done(set(2, "left", "", false));
    home.pass(ENTRY_KEPT_MS - SWEEP_EVERY_MS);
    home.done(has("read"));
    // What was read is noted in the log, in case another node becomes home.
    for _ in 0..3 {
        home.pass(SWEEP_EVERY_MS);
        home.sync();
    }
    assert_eq!((home.done(has("read")), home.done(has("left"))), (ObjectAnswer::Bool(true), ObjectAnswer::Bool(false)));
}

#[test]
fn a_full_partition_says_so_and_another_has_room() {
    let mut home = Home::new();
    home.done(put(1, "", &[0; ITEMS_MAX], PARTITION_KEPT_MS));
    let refused = home.refused(put(2, "", &[0], PARTITION_KEPT_MS));
    assert!(matches!(&refused, Refused::QueueFull { .. }) && refused.to_string().contains("5000 items"), "{refused}");
    assert_eq!(home.done(put(3, "p", &[0], PARTITION_KEPT_MS)), ObjectAnswer::Done);
    home.done(take(4, 1, 0));
    assert_eq!(home.done(put(5, "", &[0], PARTITION_KEPT_MS)), ObjectAnswer::Done);
}

#[test]
fn a_closed_object_is_gone_for_all_who_ask_and_wait() {
    let mut home = Home::new();
    let waits = home.ask(take(1, 1, 5000));
    home.done(ObjectRequest::Close { object: queue().into() });
    assert!(matches!(home.answers.pop(), Some((of, Answer::Refused(Refused::NoObject { .. }))) if of == waits));
    assert!(matches!(home.refused(put(2, "", &[1], 1)), Refused::NoObject { .. }));
    assert_eq!(home.done(ObjectRequest::All), ObjectAnswer::Objects(vec![dict().into()]));
    assert_eq!(home.done(ObjectRequest::Close { object: queue().into() }), ObjectAnswer::Done);
}

#[test]
fn an_ephemeral_object_of_which_nothing_is_heard_is_named() {
    let mut home = Home::new();
    let silent = |home: &mut Home| home.done(ObjectRequest::Silent { objects: vec![dict().into(), queue().into()] });
    home.pass(SILENCE_MAX_MS - 1);
    home.done(ObjectRequest::Beat { object: queue().into() });
    assert_eq!(silent(&mut home), ObjectAnswer::Objects(vec![]));
    home.pass(1);
    assert_eq!(silent(&mut home), ObjectAnswer::Objects(vec![dict().into()]));
}

#[test]
fn a_blob_is_named_as_long_as_an_entry_or_an_answer_needs_it() {
    let mut home = Home::new();
    let set_blob = |number: u128, of: &str| {
        let entry = NewEntry { entry: EntryKey::of(of.as_bytes()), key_bytes: 1, value_bytes: 9_000_000 };
        let content = Content::Blob(blob(number));
        ObjectRequest::Update { dict: dict(), entries: vec![entry], content, if_not_exists: false, key: number }
    };
    let put_blob = |number: u128, of: &str, kept_ms: u64| {
        let (partition, content) = (Bytes::copy_from_slice(of.as_bytes()), Content::Blob(blob(number)));
        ObjectRequest::Put { queue: queue(), partition, kept_ms, lengths: vec![900_000, 900_000], content, key: number }
    };
    // One for each way in which a value can end.
    home.done(set_blob(1, "overwritten"));
    home.done(set_blob(2, "popped"));
    home.done(set_blob(3, "unused"));
    home.done(put_blob(4, "taken", 1 << 40));
    home.done(put_blob(5, "over", ANSWERS_KEPT_MS / 2));
    home.done(put_blob(6, "left", 1 << 40));
    let get = ObjectRequest::Get { dict: dict(), entry: EntryKey::of(b"overwritten") };
    let ObjectAnswer::Found(found) = home.done(get) else { panic!("found") };
    assert_eq!((found[0].piece.blob, found[0].piece.bytes), (Some(blob(1)), 9_000_001));
    home.done(set(11, "overwritten", "1", false));
    home.done(ObjectRequest::Pop { dict: dict(), entry: EntryKey::of(b"popped"), key: 12 });
    home.done(ObjectRequest::Take { queue: queue(), partition: "taken".into(), max: 1, wait_ms: 0, key: 14 });
    assert_eq!(home.named(1..=6), [1, 2, 3, 4, 5, 6], "answers need them");
    home.later(ANSWERS_KEPT_MS);
    assert_eq!(home.named(1..=6), [3, 4, 6], "of one the second item is left");
    home.done(ObjectRequest::Take { queue: queue(), partition: "taken".into(), max: 1, wait_ms: 0, key: 15 });
    home.later(ANSWERS_KEPT_MS);
    assert_eq!(home.named(1..=6), [3, 6]);
    home.later(ENTRY_KEPT_MS + SWEEP_EVERY_MS);
    assert_eq!(home.named(1..=6), [6], "nobody used it");
    home.done(set_blob(7, "cleared"));
    home.done(ObjectRequest::Clear { object: dict().into(), partition: None, key: 17 });
    home.later(ANSWERS_KEPT_MS);
    assert_eq!(home.named(1..=7), [6]);
    home.done(ObjectRequest::Close { object: queue().into() });
    home.later(0);
    assert_eq!(home.named(1..=7), [] as [u128; 0], "its queue is gone");
}

fn blob(number: u128) -> BlobId {
    BlobId::in_shard(shard(), number)
}

impl Home {
    /// Lets time pass, and what is due then be synced.
    fn later(&mut self, ms: u64) {
        self.pass(ms);
        for _ in 0..4 {
            self.sync();
        }
    }

    /// Returns which blobs are named; only a home that is one yet may say so.
    fn named(&mut self, numbers: std::ops::RangeInclusive<u128>) -> Vec<u128> {
        let ticket = self.ask(ObjectRequest::Named { blobs: numbers.map(blob).collect() });
        let at = self.answers.iter().position(|(of, _)| *of == ticket).expect("answered at once");
        let Answer::Objects { looked: true, answer: ObjectAnswer::Blobs(named), .. } = self.answers.remove(at).1 else { panic!("blobs") };
        named.iter().map(|named| named.bits() - blob(0).bits()).collect()
    }
}
