//! One shard on four nodes under faults, from a seed: messages that are late or lost, nodes that are cut off, killed or restarted with
//! their machines, members that change all the time, a leader that takes the living for lost.
//!
//! The logs, the rules and the decisions are the real ones; time, the network and Raft are played. What must hold:
//!
//! - `acked_survives`: a record that was acknowledged is in the log of every later home. One that was only written may be lost
//!   when the machines of all that had it restart at once; one that was synced never is.
//! - `no_two_homes_ack`: no two nodes acknowledge different records with one index.
//! - in the end, when everybody is back, one home takes records and two nodes have them.
//!
//! `REPLICATION_SEED=n cargo test -p shoal-calls --test replication` replays one; `REPLICATION_SEEDS=n` runs that many.

mod dice;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_calls::shards::members::{Facts, next, successor};
use shoal_calls::shards::record::HEADER_BYTES;
use shoal_calls::shards::{Ack, Append, Counted, Draft, Kind, Mark, Options, Replicas, Role, Shards, StoreError};
use shoal_state::model::{Node as Registered, Resources, Shard, ShardChange};
use shoal_state::{BootId, Command, NodeId, ShardId, State, Timestamp, VERSION_KNOWN};

use dice::Dice;

const NODES: usize = 4;
const STEPS: u64 = 1500;
const SEEDS: u64 = 150;

fn id(node: usize) -> NodeId {
    NodeId::from_random(node as u128 + 1)
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

/// What travels between two nodes.
#[derive(Debug, Clone)]
enum Message {
    Append(Append),
    Sync,
    Ack(Ack),
    /// Records were refused; with where the log ends.
    Starved(Mark),
}

/// Messages under way, in order for each pair, and the pairs that are cut off from each other.
#[derive(Debug, Default)]
struct Net {
    ways: BTreeMap<(usize, usize), VecDeque<Message>>,
    cut: BTreeSet<(usize, usize)>,
}

impl Net {
    fn is_cut(&self, one: usize, other: usize) -> bool {
        self.cut.contains(&(one.min(other), one.max(other)))
    }

    fn send(&mut self, from: usize, to: usize, message: Message) {
        if !self.is_cut(from, to) {
            self.ways.entry((from, to)).or_default().push_back(message);
        }
    }
}

/// A node's way into the net.
struct Wire {
    me: usize,
    net: Arc<Mutex<Net>>,
}

impl Wire {
    fn put(&self, to: NodeId, message: Message) {
        let to = (0..NODES).find(|node| id(*node) == to).expect("a node of this world");
        self.net.lock().send(self.me, to, message);
    }
}

impl Replicas for Wire {
    fn send(&mut self, to: NodeId, append: Append) {
        self.put(to, Message::Append(append));
    }

    fn sync(&mut self, to: NodeId) {
        self.put(to, Message::Sync);
    }
}

/// A node: its log while it runs, and what its disk would hold after the machine restarts.
struct Node {
    shards: Option<Shards>,
    dir: PathBuf,
    synced: PathBuf,
    /// How much of the history it has heard.
    heard: usize,
    /// It hears nothing of Raft for now.
    deaf: bool,
    /// The machine was started anew, and the shard may miss records because of it.
    machine_restarted: bool,
}

/// An acknowledged record: its index, what it says, and whether it was synced then.
type Told = BTreeMap<u64, (u64, bool)>;

struct World {
    seed: u64,
    dice: Dice,
    _root: tempfile::TempDir,
    nodes: Vec<Node>,
    net: Arc<Mutex<Net>>,
    state: State,
    history: Vec<Shard>,
    told: Told,
    made: u64,
    /// How often a home was replaced.
    promoted: u32,
    /// How many bytes of records a node is fed at once.
    feed_bytes: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let mut state = State::default();
        let mut apply = |command| drop(state.apply(&command).expect("it is taken"));
        apply(Command::SetVersion { version: VERSION_KNOWN });
        let node = Registered::new("n", BootId::from_random(1), Resources::default(), Timestamp(0));
        apply(Command::PutNode { id: id(0), node });
        apply(Command::InitShards { home: id(0) });
        let history = vec![state.shards[&shard()].clone()];
        let node = |number: usize| {
            let dir = root.path().join(number.to_string());
            Node { shards: None, synced: dir.with_extension("synced"), dir, heard: 0, deaf: false, machine_restarted: false }
        };
        let nodes = (0..NODES).map(node).collect();
        let dice = Dice::new(seed);
        let mut world = Self {
            seed,
            dice,
            _root: root,
            nodes,
            net: Arc::default(),
            state,
            history,
            told: Told::new(),
            made: 0,
            promoted: 0,
            feed_bytes: 200,
        };
        for node in 0..NODES {
            world.start(node);
        }
        world
    }

    fn any_node(&mut self) -> usize {
        self.dice.below(NODES as u64) as usize
    }

    fn shards(&mut self, node: usize) -> &mut Shards {
        self.nodes[node].shards.as_mut().expect("the node runs")
    }

    fn runs(&self, node: usize) -> bool {
        self.nodes[node].shards.is_some()
    }

    fn reaches(&self, one: usize, other: usize) -> bool {
        self.runs(one) && self.runs(other) && (one == other || !self.net.lock().is_cut(one, other))
    }

    fn start(&mut self, node: usize) {
        let machine_restarted = self.nodes[node].machine_restarted;
        let options = Options { node: id(node), machine_restarted, segment_bytes: 64 << 10, min_copies: 1 };
        let wire = Wire { me: node, net: self.net.clone() };
        let shards = Shards::open(&self.nodes[node].dir, &options, Some(Box::new(wire)), |_, _| ()).unwrap();
        self.nodes[node].shards = Some(shards);
        self.keep_synced(node);
        // It reads the latest state before it begins.
        let last = self.history.len() - 1;
        self.hear(node, last);
    }

    /// What is on the disk now is there after a restart of the machine.
    fn keep_synced(&self, node: usize) {
        let Node { dir, synced, .. } = &self.nodes[node];
        let _ = std::fs::remove_dir_all(synced);
        copy_folder(dir, synced);
    }

    fn stop(&mut self, node: usize, machine: bool) {
        self.nodes[node].shards = None;
        let mut net = self.net.lock();
        net.ways.retain(|(from, to), _| *from != node && *to != node);
        drop(net);
        if machine {
            let Node { dir, synced, .. } = &self.nodes[node];
            std::fs::remove_dir_all(dir).unwrap();
            copy_folder(synced, dir);
            self.nodes[node].machine_restarted = true;
        }
        for other in (0..NODES).filter(|other| *other != node) {
            self.lose_way(other, node);
        }
    }

    /// A home learns that what it sent may not have come.
    fn lose_way(&mut self, node: usize, to: usize) {
        if self.runs(node) {
            self.shards(node).gone(id(to));
        }
    }

    /// Tells a node of the members up to a place in the history.
    fn hear(&mut self, node: usize, upto: usize) {
        self.nodes[node].heard = upto;
        let config = self.history[upto].clone();
        let epoch = self.shards(node).replica(shard()).config().epoch;
        let comes_home = config.home == id(node) && epoch < config.epoch;
        let was_home = self.shards(node).replica(shard()).role() == Role::Home;
        let alone = config.in_sync == [id(node)];
        let all_suspect = comes_home && self.shards(node).replica(shard()).role() == Role::Suspect;
        let role = self.shards(node).adopt(shard(), config).unwrap();
        self.nodes[node].machine_restarted &= role == Role::Suspect;
        if role == Role::Home && comes_home && !was_home {
            // Whose machine restarted while nobody else had the records has lost what was not synced.
            self.check_survival(node, all_suspect || alone);
        }
    }

    /// `acked_survives`: what was acknowledged is in the log of a new home.
    fn check_survival(&mut self, node: usize, may_lack_unsynced: bool) {
        let log = self.log(node);
        let lacks = |(index, (value, _)): &(&u64, &(u64, bool))| log.get(index) != Some(value);
        let lost: Vec<(u64, bool)> = self.told.iter().filter(lacks).map(|(index, (_, synced))| (*index, *synced)).collect();
        for (index, synced) in lost {
            assert!(
                may_lack_unsynced && !synced,
                "seed {}: node {node} is home and lacks record {index}, which was acknowledged",
                self.seed
            );
            self.told.remove(&index);
        }
    }

    /// What a node's log says: records by index.
    fn log(&mut self, node: usize) -> BTreeMap<u64, u64> {
        let shards = self.shards(node);
        let calls = shards.index_of(shard()).iter().filter(|slot| slot.header.kind == Kind::Calls);
        let value = |bytes: Bytes| u64::from_le_bytes(bytes[HEADER_BYTES..HEADER_BYTES + 8].try_into().unwrap());
        calls.map(|slot| (slot.header.mark.index, value(shards.log().read(slot.position).unwrap()))).collect()
    }

    /// Acknowledges what counts at a home, as a client would be told.
    fn acknowledge(&mut self, node: usize) {
        if self.shards(node).replica(shard()).role() != Role::Home {
            return;
        }
        let Counted { written, synced } = self.shards(node).replica(shard()).counted();
        for (index, value) in self.log(node) {
            if index > written {
                continue;
            }
            let (known, known_synced) = self.told.entry(index).or_insert((value, false));
            // `no_two_homes_ack`
            assert_eq!(*known, value, "seed {}: record {index} was acknowledged twice, with different contents", self.seed);
            *known_synced |= index <= synced;
        }
    }

    fn propose_record(&mut self, node: usize) {
        self.made += 1;
        let body = [Bytes::copy_from_slice(&self.made.to_le_bytes()), Bytes::new()];
        let draft = Draft { shard: shard(), kind: Kind::Calls, owner: u128::from(self.made), body };
        match self.shards(node).append(&[draft]) {
            Ok(_) => self.acknowledge(node),
            Err(StoreError::Refused(_)) => {}
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    /// Syncs a node's log, and has the members sync theirs if it is a home.
    fn sync(&mut self, node: usize) {
        let unsynced = self.shards(node).take_unsynced();
        self.shards(node).ask_sync(&unsynced);
        self.keep_synced(node);
        for (shard, mark) in unsynced {
            self.shards(node).synced(shard, mark);
        }
        self.acknowledge(node);
        for home in (0..NODES).filter(|home| *home != node) {
            for ack in self.shards(node).take_untold(id(home)) {
                self.net.lock().send(node, home, Message::Ack(ack));
            }
        }
    }

    /// Delivers the next message of some way on which there is one.
    fn deliver_any(&mut self) {
        let ways: Vec<(usize, usize)> = self.net.lock().ways.iter().filter(|(_, way)| !way.is_empty()).map(|(way, _)| *way).collect();
        if let Some((from, to)) = self.dice.pick(&ways) {
            self.deliver(from, to);
        }
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let Some(message) = self.net.lock().ways.get_mut(&(from, to)).and_then(VecDeque::pop_front) else { return };
        if !self.runs(to) {
            return;
        }
        match message {
            Message::Append(append) => {
                let answer = match self.shards(to).receive(&append) {
                    Ok(ack) => Message::Ack(ack),
                    Err(StoreError::Refused(_)) => Message::Starved(self.shards(to).replica(shard()).tail()),
                    Err(error) => panic!("seed {}: {error}", self.seed),
                };
                self.net.lock().send(to, from, answer);
            }
            Message::Sync => self.sync(to),
            Message::Ack(ack) => {
                // Of another epoch it says nothing.
                let _ = self.shards(to).acked(id(from), ack.shard, ack.epoch, ack.far);
                self.acknowledge(to);
            }
            Message::Starved(tail) => {
                self.shards(to).starved(id(from), shard());
                self.feed(to, from, tail);
            }
        }
    }

    fn feed(&mut self, home: usize, to: usize, tail: Mark) {
        if self.shards(home).replica(shard()).role() != Role::Home {
            return;
        }
        let feed_bytes = self.feed_bytes;
        let append = self.shards(home).feed(id(to), shard(), tail, feed_bytes).unwrap();
        self.net.lock().send(home, to, Message::Append(append));
    }

    /// A home asks the nodes that are to have its records and are not sent them how far they are.
    fn ask_the_starved(&mut self, home: usize) {
        let view = self.view(home);
        if view.role != Role::Home {
            return;
        }
        for node in (0..NODES).filter(|node| *node != home) {
            let keeps = view.config.in_sync.contains(&id(node)) || view.config.joining.contains(&id(node));
            if keeps && !view.fed.contains(&id(node)) && self.reaches(home, node) {
                let tail = self.shards(node).replica(shard()).tail();
                self.feed(home, node, tail);
            }
        }
    }

    fn view(&mut self, node: usize) -> shoal_calls::shards::ShardView {
        self.shards(node).view(shard())
    }

    fn suspects(&mut self) -> BTreeMap<NodeId, Mark> {
        let running: Vec<usize> = (0..NODES).filter(|node| self.runs(*node)).collect();
        let views: Vec<_> = running.into_iter().map(|node| (id(node), self.view(node))).collect();
        views.into_iter().filter(|(_, view)| view.role == Role::Suspect).map(|(node, view)| (node, view.tail)).collect()
    }

    fn facts(&mut self, me: usize, settled: bool) -> Facts {
        let up: BTreeSet<NodeId> = (0..NODES).filter(|node| self.reaches(me, *node)).map(id).collect();
        let gone = (0..NODES).map(id).filter(|node| !up.contains(node));
        let silent: Vec<_> = gone.collect();
        let mut for_how_long = || Duration::from_secs(1 + self.dice.below(4));
        let silent = silent.into_iter().map(|node| (node, for_how_long())).collect();
        Facts { settled: if settled { up.clone() } else { BTreeSet::new() }, up, silent }
    }

    /// A home sees to its members. `answered` says whether it hears what Raft decided.
    fn decide(&mut self, home: usize, settled: bool, answered: bool) {
        let (view, facts, suspects) = (self.view(home), self.facts(home, settled), self.suspects());
        let Some(change) = next(&view, id(home), &suspects, &facts) else { return };
        let epoch = view.config.epoch;
        if self.shards(home).ask(shard(), epoch, change).is_err() || !answered && self.dice.chance(2) {
            return;
        }
        let refused = self.decided(epoch, change).is_err();
        if refused && answered && self.state.shards[&shard()].epoch == epoch {
            self.shards(home).change_refused(shard(), epoch);
        }
    }

    /// Raft decides.
    fn decided(&mut self, epoch: u64, change: ShardChange) -> Result<(), shoal_state::Refused> {
        self.state.apply(&Command::ChangeShard { shard: shard(), epoch, change })?;
        self.history.push(self.state.shards[&shard()].clone());
        Ok(())
    }

    /// The leader replaces homes that it takes for lost, rightly or not.
    fn replace_lost(&mut self, lost: &BTreeSet<usize>) {
        let current = self.state.shards[&shard()].clone();
        let suspects = self.suspects();
        let is_lost = |node: NodeId| (0..NODES).any(|number| id(number) == node && (lost.contains(&number) || !self.runs(number)));
        if let Some(node) = successor(&current, is_lost, &suspects) {
            self.decided(current.epoch, ShardChange::Promote(node)).unwrap();
            self.promoted += 1;
        }
    }

    fn step(&mut self) {
        // Much happens at the home, or what was it.
        let config = &self.history[self.nodes[0].heard];
        let home = (0..NODES).find(|node| id(*node) == config.home).expect("a node of this world");
        let (one, other) = (if self.dice.chance(2) { home } else { self.any_node() }, self.any_node());
        match self.dice.below(100) {
            0..40 => self.deliver_any(),
            40..52 if self.runs(one) => self.propose_record(one),
            52..60 if self.runs(one) => self.sync(one),
            60..72 if self.runs(one) && !self.nodes[one].deaf => {
                let (heard, last) = (self.nodes[one].heard, self.history.len() - 1);
                let upto = heard + self.dice.below((last - heard) as u64 + 1) as usize;
                self.hear(one, upto);
                self.acknowledge(one);
            }
            72..84 if self.runs(one) => {
                let (settled, answered) = (self.dice.chance(2), !self.dice.chance(4));
                self.decide(one, settled, answered);
            }
            84..95 if self.runs(one) => self.ask_the_starved(one),
            95..96 => {
                // Mostly the home, which may well be alive.
                let home = self.state.shards[&shard()].home;
                let home = (0..NODES).find(|node| id(*node) == home).expect("a node of this world");
                let lost = [BTreeSet::new(), BTreeSet::from([one]), BTreeSet::from([home])];
                let which = self.dice.below(3) as usize;
                self.replace_lost(&lost[which]);
            }
            96..97 if one != other => {
                let pair = (one.min(other), one.max(other));
                let mut net = self.net.lock();
                if net.cut.remove(&pair) {
                    return;
                }
                net.cut.insert(pair);
                net.ways.retain(|(from, to), _| (*from.min(to), *from.max(to)) != pair);
                drop(net);
                self.lose_way(one, other);
                self.lose_way(other, one);
            }
            97..98 if self.runs(one) => {
                let machine = self.dice.chance(2);
                self.stop(one, machine);
                if self.dice.chance(2) {
                    self.start(one);
                }
            }
            98..99 if !self.runs(one) => self.start(one),
            99..100 => self.nodes[one].deaf = !self.nodes[one].deaf,
            _ => {}
        }
    }

    /// Everybody comes back, and what was asked for is done.
    fn heal(&mut self) {
        self.feed_bytes = 1 << 20;
        self.net.lock().cut.clear();
        for node in 0..NODES {
            if !self.runs(node) {
                self.start(node);
            }
        }
        for _ in 0..25 {
            for node in 0..NODES {
                let last = self.history.len() - 1;
                self.nodes[node].deaf = false;
                self.hear(node, last);
                self.acknowledge(node);
                self.ask_the_starved(node);
                self.sync(node);
            }
            for (from, to) in (0..NODES).flat_map(|from| (0..NODES).map(move |to| (from, to))) {
                for _ in 0..50 {
                    self.deliver(from, to);
                }
            }
            for node in 0..NODES {
                self.decide(node, true, true);
            }
            self.replace_lost(&BTreeSet::new());
        }
    }

    fn run(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.heal();
        let config = self.state.shards[&shard()].clone();
        assert_eq!(config.in_sync.len(), 2, "seed {}: {config:?}", self.seed);
        let home = (0..NODES).find(|node| id(*node) == config.home).unwrap();
        let told = self.told.len();
        self.propose_record(home);
        self.heal();
        assert!(self.told.len() > told, "seed {}: the home {home} takes no record any more", self.seed);
        self.check_survival(home, false);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn what_was_acknowledged_survives_faults() {
    let seeds = match number("REPLICATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("REPLICATION_SEEDS").unwrap_or(SEEDS),
    };
    let (mut told, mut promoted) = (0, 0);
    for seed in seeds.clone() {
        let mut world = World::new(seed);
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.run()));
        if let Err(panic) = ran {
            eprintln!("replay it by: REPLICATION_SEED={seed} cargo test -p shoal-calls --test replication");
            std::panic::resume_unwind(panic);
        }
        told += world.told.len();
        promoted += world.promoted;
    }
    println!("{} seeds: {told} records acknowledged, {promoted} homes replaced", seeds.clone().count());
    assert!(seeds.count() == 1 || (told > 0 && promoted > 0), "nothing happened in these worlds");
}
