//! Dicts and queues of one shard on three nodes, in simulated time, from a seed: the rules are the real ones; what each node
//! has of the log, how far it is synced, and who is home is played.
//!
//! What must hold:
//!
//! - `nothing_lost_nothing_back`: whoever becomes home sees exactly what the records up to its last one say, though most of
//!   them were dropped long ago: no value is lost that is current, and none comes back that was overwritten or removed.
//! - `values_are_there`: each value that can be seen stands in a record that the home's log has.
//! - `once`: a request that comes again is answered as it was.
//! - `no_leak`: in the end, when all is emptied and answers are forgotten, few records are left.
//!
//! `OBJECTS_SEED=n cargo test -p shoal-calls --test objects` replays one; `OBJECTS_SEEDS=n` runs that many.

mod dice;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use shoal_calls::calls::Entry;
use shoal_calls::calls::rules::{Answer, Effect, Request, Rules};
use shoal_calls::calls::state::CallsState;
use shoal_calls::objects::record::ObjectRecord;
use shoal_calls::objects::*;
use shoal_state::{DictId, ObjectId, QueueId, ShardId};

use dice::Dice;

const NODES: usize = 3;
const STEPS: u64 = 600;
const SEEDS: u64 = 150;
const HOUR: u64 = 3600 * 1000;

fn shard() -> ShardId {
    ShardId::new(3).unwrap()
}

fn dict() -> DictId {
    DictId::in_shard(shard(), 1)
}

fn queue() -> QueueId {
    QueueId::in_shard(shard(), 1)
}

/// A record of the log, or the death of one.
#[derive(Debug, Clone)]
enum Logged {
    Record(ObjectRecord, Bytes),
    Drop(u128),
}

/// What one node has of the log.
#[derive(Debug, Clone, Default)]
struct Copy {
    live: BTreeMap<u64, (u128, ObjectRecord, Bytes)>,
    upto: u64,
}

impl Copy {
    fn take(&mut self, index: u64, logged: &Logged) {
        match logged {
            Logged::Record(record, payload) => {
                let owner = ObjectRecord::owner(record.object(), index);
                self.live.insert(index, (owner, record.clone(), payload.clone()));
            }
            Logged::Drop(owner) => self.live.retain(|_, (of, _, _)| of != owner),
        }
        self.upto = index;
    }
}

/// What the records say, all of them, however old.
#[derive(Debug, Default, PartialEq, Eq)]
struct Model {
    entries: BTreeMap<EntryKey, Vec<u8>>,
    partitions: BTreeMap<Bytes, VecDeque<(Entry, Vec<u8>)>>,
}

impl Model {
    fn of<'a>(history: impl Iterator<Item = (&'a u64, &'a Logged)>) -> Self {
        let mut model = Self::default();
        for (index, logged) in history {
            if let Logged::Record(record, payload) = logged {
                model.apply(*index, record, payload);
            }
        }
        model.partitions.retain(|_, items| !items.is_empty());
        model
    }

    fn apply(&mut self, index: u64, record: &ObjectRecord, payload: &Bytes) {
        match record {
            ObjectRecord::Updated { entries, .. } => {
                let mut at = 0;
                for (new, set) in entries {
                    let (value, end) = (at + new.key_bytes as usize, at + (new.key_bytes + new.value_bytes) as usize);
                    if *set {
                        self.entries.insert(new.entry, payload[value..end].to_vec());
                    }
                    at = end;
                }
            }
            ObjectRecord::Removed { entries, .. } => entries.iter().for_each(|entry| drop(self.entries.remove(entry))),
            ObjectRecord::Put { partition, lengths, .. } => {
                let (mut at, items) = (0, self.partitions.entry(partition.clone()).or_default());
                for (number, bytes) in (0..).zip(lengths) {
                    items.push_back((Entry { index, number }, payload[at..at + *bytes as usize].to_vec()));
                    at += *bytes as usize;
                }
            }
            ObjectRecord::Taken { partition, upto, .. } => {
                self.partitions.entry(partition.clone()).or_default().retain(|(at, _)| at > upto);
            }
            ObjectRecord::Cleared { object: ObjectId::Dict(_), .. } | ObjectRecord::Closed { object: ObjectId::Dict(_), .. } => {
                self.entries.clear();
            }
            ObjectRecord::Cleared { partition: Some(partition), .. } => drop(self.partitions.remove(partition)),
            ObjectRecord::Cleared { .. } | ObjectRecord::Closed { .. } => self.partitions.clear(),
            ObjectRecord::Opened { .. } | ObjectRecord::Touched { .. } => {}
        }
    }
}

struct World {
    seed: u64,
    dice: Dice,
    now: u64,
    rules: Rules,
    home: usize,
    nodes: Vec<Copy>,
    /// The log as the home has ordered it, with all that was dropped since.
    history: BTreeMap<u64, Logged>,
    synced: u64,
    tickets: u64,
    /// Requests by ticket, and what requests were answered by their keys.
    asked: HashMap<u64, (ObjectRequest, u64)>,
    answered: HashMap<u128, (ObjectRequest, ObjectAnswer<Place>, u64)>,
    promoted: u32,
    dropped: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            seed,
            dice: Dice::new(seed),
            now: 1000 * HOUR,
            rules: Rules::new(),
            home: 0,
            nodes: vec![Copy::default(); NODES],
            history: BTreeMap::new(),
            synced: 0,
            tickets: 0,
            asked: HashMap::new(),
            answered: HashMap::new(),
            promoted: 0,
            dropped: 0,
        };
        world.enter();
        world.ask(ObjectRequest::Open { object: dict().into() });
        world.ask(ObjectRequest::Open { object: queue().into() });
        world
    }

    fn enter(&mut self) {
        let mut state = ObjectsState::default();
        for (index, (_, record, _)) in &self.nodes[self.home].live {
            state.apply(*index, record);
        }
        self.rules = Rules::new();
        let next = self.nodes[self.home].upto + 1;
        self.rules.enter(self.now, shard(), CallsState::default(), next);
        self.rules.enter_objects(self.now, shard(), state);
        self.rules.counted(self.now, shard(), self.synced, self.synced);
        self.settle();
    }

    fn ask(&mut self, request: ObjectRequest) {
        self.tickets += 1;
        self.asked.insert(self.tickets, (request.clone(), self.now));
        self.rules.handle(self.now, self.tickets, Request::Object(request));
        self.settle();
    }

    /// Writes what the rules want written to the home's log, and looks at what they answer.
    fn settle(&mut self) {
        for effect in self.rules.take_effects() {
            let (index, logged) = match effect {
                Effect::AppendObject { index, record, payload, .. } => (index, Logged::Record(record, payload)),
                Effect::DropObject { index, owner, .. } => {
                    self.dropped += 1;
                    (index, Logged::Drop(owner))
                }
                Effect::Answer { ticket, answer } => {
                    self.hear(ticket, answer);
                    continue;
                }
                other => panic!("seed {}: {other:?}", self.seed),
            };
            assert_eq!(index, self.nodes[self.home].upto + 1, "seed {}: a record has another index", self.seed);
            self.nodes[self.home].take(index, &logged);
            self.history.insert(index, logged);
        }
    }

    fn hear(&mut self, ticket: u64, answer: Answer) {
        let Some((request, at)) = self.asked.remove(&ticket) else { return };
        let Answer::Objects { answer, .. } = answer else { return };
        let key = match &request {
            ObjectRequest::Update { key, .. } | ObjectRequest::Pop { key, .. } => *key,
            ObjectRequest::Put { key, .. } | ObjectRequest::Take { key, .. } | ObjectRequest::Clear { key, .. } => *key,
            _ => return,
        };
        // What did nothing may do something when it comes again: nobody saw the first one's answer then.
        let did_nothing = matches!(&answer, ObjectAnswer::Found(found) if found.is_empty()) || answer == ObjectAnswer::Bool(false);
        if let Some((_, before, _)) = self.answered.get(&key) {
            // `once`
            assert_eq!(*before, answer, "seed {}: {request:?} was answered differently when it came again", self.seed);
        } else if !did_nothing && !matches!(request, ObjectRequest::Clear { .. }) {
            self.answered.insert(key, (request, answer, at));
        }
    }

    /// Other nodes get some of what they lack; what all have counts.
    fn replicate(&mut self, fully: bool) {
        let tail = self.nodes[self.home].upto;
        for node in (0..NODES).filter(|node| *node != self.home) {
            let from = self.nodes[node].upto;
            let upto = if fully { tail } else { from + self.dice.below(tail - from + 1) };
            for (index, logged) in self.history.range(from + 1..upto + 1) {
                self.nodes[node].take(*index, logged);
            }
        }
        self.synced = self.synced.max(self.nodes.iter().map(|node| node.upto).min().unwrap());
        self.rules.counted(self.now, shard(), self.synced, self.synced);
        self.settle();
    }

    /// Another node becomes home with what it has. The others are cut back to it, get what they lack, and hear what died.
    fn promote(&mut self) {
        self.promoted += 1;
        self.home = self.dice.below(NODES as u64) as usize;
        let upto = self.nodes[self.home].upto;
        self.history.split_off(&(upto + 1));
        self.check();
        let home = self.nodes[self.home].clone();
        for node in &mut self.nodes {
            node.live.retain(|index, _| *index <= upto && home.live.contains_key(index));
            for (index, found) in home.live.range(node.upto + 1..) {
                node.live.insert(*index, found.clone());
            }
            node.upto = upto;
        }
        self.synced = upto;
        self.asked.clear();
        self.enter();
        // What was answered is known to whoever is home.
        let keys: Vec<u128> = self.answered.keys().copied().collect();
        if let Some(key) = self.dice.pick(&keys) {
            self.again(key);
        }
    }

    fn again(&mut self, key: u128) {
        let (request, _, at) = self.answered[&key].clone();
        if at + ANSWERS_KEPT_MS > self.now {
            self.ask(request);
            self.replicate(true);
        }
    }

    /// `nothing_lost_nothing_back`, `values_are_there`: as the home's log says it, built anew, and as its rules see it.
    fn check(&mut self) {
        let copy = &self.nodes[self.home];
        let mut rebuilt = ObjectsState::default();
        for (index, (_, record, _)) in &copy.live {
            rebuilt.apply(*index, record);
        }
        let expected = Model::of(self.history.iter());
        let seen = self.seen(&rebuilt, &expected);
        assert_eq!(seen, expected, "seed {}: the log of node {} says something else", self.seed, self.home);
    }

    fn check_rules(&mut self) {
        let expected = Model::of(self.history.iter());
        let seen = self.seen(self.rules.objects(shard()).unwrap(), &expected);
        assert_eq!(seen, expected, "seed {}: the rules see something else", self.seed);
    }

    fn seen(&self, state: &ObjectsState, expected: &Model) -> Model {
        let copy = &self.nodes[self.home];
        let read = |found: &Found<Place>| {
            let place = found.piece;
            let (_, _, payload) = copy.live.get(&place.record).unwrap_or_else(|| panic!("seed {}: no record for {found:?}", self.seed));
            let from = place.offset as usize + found.key_bytes as usize;
            payload[from..(place.offset + place.bytes) as usize].to_vec()
        };
        let entries = state.page(dict().into(), None, true, usize::MAX, u64::MAX);
        let mut model = Model { entries: entries.iter().map(|found| (found.entry, read(found))).collect(), ..Model::default() };
        assert_eq!(model.entries.len() as u64, state.count(dict().into(), None).0, "seed {}", self.seed);
        for name in (0..3).map(partition).chain(expected.partitions.keys().cloned()).collect::<BTreeSet<_>>() {
            let items = state.items(queue().into(), &name, Entry::default(), usize::MAX, u64::MAX);
            if !items.is_empty() {
                model.partitions.insert(name, items.iter().map(|found| (found.at, read(found))).collect());
            }
        }
        let items: usize = model.partitions.values().map(VecDeque::len).sum();
        assert_eq!(items as u64, state.count(queue().into(), None).0, "seed {}", self.seed);
        model
    }

    fn step(&mut self) {
        self.now += self.dice.below(2000);
        self.rules.tick(self.now);
        self.settle();
        let key = u128::from(self.tickets) + 1;
        match self.dice.below(100) {
            0..25 => {
                let request = self.update(key);
                self.ask(request);
            }
            25..35 => {
                let entry = self.entry().0;
                self.ask(ObjectRequest::Pop { dict: dict(), entry, key });
            }
            35..50 => {
                let request = self.put(key);
                self.ask(request);
            }
            50..62 => {
                let (max, wait_ms) = (1 + self.dice.below(4) as u32, self.dice.below(2) * 5000);
                let partition = partition(self.dice.below(3));
                self.ask(ObjectRequest::Take { queue: queue(), partition, max, wait_ms, key });
            }
            62..64 => {
                let object = if self.dice.chance(2) { dict().into() } else { queue().into() };
                let partition = self.dice.chance(2).then(|| partition(1));
                self.ask(ObjectRequest::Clear { object, partition, key });
            }
            64..70 => {
                let entry = self.entry().0;
                self.ask(ObjectRequest::Get { dict: dict(), entry });
            }
            70..88 => self.replicate(false),
            88..92 => {
                let keys: Vec<u128> = self.answered.keys().copied().collect();
                if let Some(key) = self.dice.pick(&keys) {
                    self.again(key);
                }
            }
            92..95 => self.promote(),
            95..97 => self.now += self.dice.below(ANSWERS_KEPT_MS * 2),
            97..98 => self.now += self.dice.below(30 * HOUR),
            98..99 => self.now += self.dice.below(ENTRY_KEPT_MS),
            _ => self.check_rules(),
        }
    }

    fn entry(&mut self) -> (EntryKey, Bytes) {
        let key = Bytes::from(format!("key {}", self.dice.below(8)));
        (EntryKey::of(&key), key)
    }

    fn update(&mut self, key: u128) -> ObjectRequest {
        let (mut entries, mut content) = (Vec::new(), Vec::new());
        for _ in 0..=self.dice.below(3) {
            let (entry, name) = self.entry();
            let value = vec![self.tickets as u8; self.dice.below(9) as usize];
            entries.push(NewEntry { entry, key_bytes: name.len() as u32, value_bytes: value.len() as u32 });
            content.extend([&name[..], &value].concat());
        }
        let if_not_exists = self.dice.chance(3);
        ObjectRequest::Update { dict: dict(), entries, content: Content::Inline(content.into()), if_not_exists, key }
    }

    fn put(&mut self, key: u128) -> ObjectRequest {
        let lengths: Vec<u32> = (0..=self.dice.below(4)).map(|_| self.dice.below(9) as u32).collect();
        let content = vec![self.tickets as u8; lengths.iter().sum::<u32>() as usize];
        let kept_ms = 1 + self.dice.below(PARTITION_KEPT_MS);
        let partition = partition(self.dice.below(3));
        ObjectRequest::Put { queue: queue(), partition, kept_ms, lengths, content: Content::Inline(content.into()), key }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.check_rules();
        self.promote();
        for object in [dict().into(), queue().into()] {
            self.ask(ObjectRequest::Close { object });
        }
        for _ in 0..20 {
            self.now += ANSWERS_KEPT_MS;
            self.rules.tick(self.now);
            self.settle();
            self.replicate(true);
        }
        // `no_leak`
        let left = &self.nodes[self.home].live;
        assert!(left.is_empty(), "seed {}: {left:?} are left of what was closed", self.seed);
        assert_eq!(self.rules.objects(shard()).unwrap().records(), 0, "seed {}", self.seed);
    }
}

fn partition(number: u64) -> Bytes {
    Bytes::from("p".repeat(number as usize))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn what_records_say_is_kept_through_moves_and_drops() {
    let seeds = match number("OBJECTS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OBJECTS_SEEDS").unwrap_or(SEEDS),
    };
    let (mut promoted, mut dropped, mut answered) = (0, 0, 0);
    for seed in seeds.clone() {
        let mut world = World::new(seed);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        if let Err(panic) = ran {
            eprintln!("replay it by: OBJECTS_SEED={seed} cargo test -p shoal-calls --test objects");
            std::panic::resume_unwind(panic);
        }
        promoted += world.promoted;
        dropped += world.dropped;
        answered += world.answered.len();
    }
    assert!(seeds.count() == 1 || (promoted > 0 && dropped > 0 && answered > 0), "nothing happened in these worlds");
}

#[test]
fn an_owner_is_like_no_other() {
    let owners: BTreeSet<u128> =
        (0..100).flat_map(|index| [dict().into(), queue().into()].map(|id| ObjectRecord::owner(id, index))).collect();
    assert_eq!(owners.len(), 200);
}
