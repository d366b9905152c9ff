//! A node of the world: the calls that it keeps, as they are, and around them what the binary does besides: it tells them what is
//! decided, copies records, tells others how it is, sees to its shards, runs containers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select;
use shoal_calls::Calls;
use shoal_calls::calls::copies::{self, Outbox};
use shoal_calls::calls::{Load, Options};
use shoal_calls::shards::hearing::Hearing;
use shoal_calls::shards::members::DROPPED_AFTER;
use shoal_calls::shards::presence::Awake;
use shoal_calls::shards::told::{News, Told};
use shoal_calls::shards::{Ack, Append, Counted, Mark, Replicas};
use shoal_state::{BootId, Command, NodeId, ShardId, State, TaskId};

use crate::dice::Dice;
use crate::extras::Extra;
use crate::ground::Played;
use crate::mutant::Mutant;
use crate::net::{self, Net, Way};
use crate::time::Owner;
use crate::world::{World, registered, shards};
use crate::{gangs, homes, members, planner, schedules, worker};

/// Size of a segment of a node's log.
pub const SEGMENT_BYTES: u64 = 64 << 10;

/// How often a node says that it lives.
const REPORT_EVERY: Duration = Duration::from_millis(300);
/// How long a node that could not be reached is left alone.
const REST: Duration = Duration::from_millis(200);

/// What one node last told another.
#[derive(Debug, Clone)]
struct Heard {
    at: Duration,
    load: Arc<Load>,
    suspect: BTreeMap<ShardId, Mark>,
}

/// One start of a node.
#[derive(Debug)]
pub struct Node {
    /// Its number.
    pub me: usize,
    /// What it runs as.
    pub owner: Owner,
    /// This start of its process.
    pub boot: BootId,
    /// Its calls.
    pub calls: Calls,
    /// The way of its records to others.
    pub outbox: Outbox,
    /// The gangs that have containers here.
    pub gangs: gangs::Here,
    ground: Played,
    heard: RefCell<BTreeMap<usize, Heard>>,
    hearing: RefCell<Hearing<(u64, u64)>>,
    awake: Cell<Awake>,
    /// The shards here that may miss records.
    pub suspect: RefCell<BTreeMap<ShardId, Mark>>,
    /// The containers that run here.
    pub containers: RefCell<BTreeMap<TaskId, worker::Container>>,
}

/// The way of records to others, of a home that does not wait for their word.
struct Hasty {
    outbox: Outbox,
    net: Net,
    me: usize,
}

impl Replicas for Hasty {
    fn send(&mut self, to: NodeId, append: Append) {
        let (shard, epoch, end) = (append.shard, append.epoch, append.end());
        self.outbox.send(to, append);
        let far = Counted { written: end.index, synced: end.index };
        self.net.here(self.me, |calls| Box::pin(async move { drop(calls.acked(to, vec![Ack { shard, epoch, far }]).await) }));
    }

    fn sync(&mut self, to: NodeId) {
        self.outbox.sync(to);
    }
}

/// Starts the process of a node.
pub async fn start(world: World, me: usize, owner: Owner) {
    let boot = BootId::from_random(owner.into());
    world.net.came(me, owner, None);
    world.council.start(me);
    let apply = world.council.clone().apply(me);
    world.runs.spawn(owner, apply);
    // It says that it is there, and knows the latest of what is decided before it goes on.
    let number = me as u64;
    let register = || vec![Command::PutNode { id: world.id(me), node: registered(number, boot) }];
    while world.council.propose(me, register()).await.is_err() || world.council.read_latest(me).await.is_err() {
        world.time.sleep(REST).await;
    }
    let outbox = Outbox::default();
    let dice = Dice::new(world.seed, owner);
    let ground = Played::new(world.time.clone(), world.runs.inbox(), owner, dice, world.has(Mutant::LyingDisk));
    let options = Options { segment_bytes: SEGMENT_BYTES, ..Options::new(world.dir(me), world.id(me)) };
    let peers: Box<dyn Replicas> = match world.has(Mutant::AckedWhenSent) {
        true => Box::new(Hasty { outbox: outbox.clone(), net: world.net.clone(), me }),
        false => Box::new(outbox.clone()),
    };
    let (calls, owns) = Calls::on(&options, Some(peers), Arc::new(ground.clone())).expect("the calls open");
    calls.set_road(Arc::new(Way { net: world.net.clone(), me }));
    world.runs.spawn(owner, owns);
    let node = Node {
        me,
        owner,
        boot,
        gangs: gangs::Here::new(&calls),
        calls,
        outbox,
        ground,
        heard: RefCell::default(),
        hearing: RefCell::new(Hearing::new(world.id(me))),
        awake: Cell::new(Awake::new(REPORT_EVERY, world.time.instant())),
        suspect: RefCell::default(),
        containers: RefCell::default(),
    };
    let node = Rc::new(node);
    world.set_node(me, &node);
    world.net.came(me, owner, Some(&node.calls));
    let mut told = Told::default();
    configure(&world, &node, &mut told).await;
    homes::tell_suspects(&node).await;
    world.runs.spawn(owner, follow(world.clone(), node.clone(), told));
    for other in (0..world.size).filter(|other| *other != me) {
        world.runs.spawn(owner, copy(world.clone(), node.clone(), other));
        world.runs.spawn(owner, tell(world.clone(), node.clone(), other));
    }
    world.runs.spawn(owner, homes::run(world.clone(), node.clone()));
    world.runs.spawn(owner, planner::run(world.clone(), node.clone()));
    world.runs.spawn(owner, schedules::decide(world.clone(), node.clone()));
    world.runs.spawn(owner, schedules::call_all(world.clone(), node.clone()));
    world.runs.spawn(owner, stay_awake(world.clone(), node.clone()));
    if world.net.goes_around() {
        world.runs.spawn(owner, look_at_acknowledged(world.clone(), node.clone()));
    }
    if world.there_are(Extra::Gangs) {
        world.runs.spawn(owner, gangs::stop_when_alone(world.clone(), node.clone()));
    }
    if world.there_are(Extra::Voters) {
        world.runs.spawn(owner, members::run(world.clone(), node.clone()));
        world.runs.spawn(owner, members::depart(world.clone(), node.clone()));
    }
    let runs = world.runs.clone();
    runs.spawn(owner, worker::run(world, node));
}

/// Tells the calls what is decided about shards, for as long as the node runs.
async fn follow(world: World, node: Rc<Node>, mut told: Told) {
    let mut changed = world.council.watch(node.me);
    while changed.changed().await.is_ok() {
        configure(&world, &node, &mut told).await;
    }
}

async fn configure(world: &World, node: &Rc<Node>, told: &mut Told) {
    let state = world.council.local(node.me);
    node.calls.take_up(&state);
    if world.has(Mutant::AnswersUnconfirmed) {
        node.calls.confirm_answers(false);
    }
    let News { mut changed, came_home: mut came } = told.take(world.id(node.me), &state);
    changed.retain(|(shard, _)| shards().contains(shard));
    came.retain(|shard| shards().contains(shard));
    if changed.is_empty() || node.calls.configure(changed).await.is_err() || came.is_empty() {
        return;
    }
    let is_lost = |other: &NodeId| node.is_lost(world, world.net.number(*other));
    let (lost, members): (Vec<NodeId>, Vec<NodeId>) = state.members.keys().copied().partition(is_lost);
    let (calls, asks) = (node.calls.clone(), !world.has(Mutant::AsksNobodyWhatRuns));
    world.runs.spawn(node.owner, async move {
        let _ =
            if asks { calls.take_over(came, &members, lost, |_| std::future::pending()).await } else { calls.reports_complete(came).await };
    });
}

/// Copies records to another node, for as long as this one runs.
async fn copy(world: World, node: Rc<Node>, to: usize) {
    loop {
        // Where there are connections, it shows by and by that one leads to nobody.
        if (world.net.goes_around() || world.net.reach(node.me, to))
            && let Some(road) = world.net.road(node.me, to).await
            && let Some(other) = world.node(to)
        {
            let (here, there) = road.stream();
            let (home, calls) = (world.id(node.me), other.calls.clone());
            world.runs.spawn(other.owner, async move { drop(copies::keep(home, there, &calls).await) });
            drop(other);
            let copies = Box::pin(copies::copy(world.id(to), here, &node.calls, &node.outbox));
            drop(select(copies, Box::pin(road.outdated())).await);
        }
        world.time.sleep(REST).await;
    }
}

/// Says that the node is awake, for as long as it runs and is.
async fn stay_awake(world: World, node: Rc<Node>) {
    loop {
        world.time.sleep(REPORT_EVERY).await;
        let mut awake = node.awake.get();
        awake.is_awake(world.time.instant());
        node.awake.set(awake);
    }
}

/// Looks what the others acknowledge, for as long as the node runs.
async fn look_at_acknowledged(world: World, node: Rc<Node>) {
    loop {
        world.time.sleep(net::LOOK_EVERY).await;
        let acknowledged = world.net.acknowledged(node.me).into_iter().map(|(other, acknowledged)| (world.id(other), acknowledged));
        node.hearing.borrow_mut().look_at_acknowledged(acknowledged, node.clock(&world));
    }
}

/// Tells another node how this one is, for as long as it runs.
async fn tell(world: World, node: Rc<Node>, to: usize) {
    let mut road = None;
    loop {
        if road.is_none() {
            road = world.net.road(node.me, to).await;
        }
        let load = node.calls.load().borrow().clone();
        let hears = node.hearing.borrow().hears(node.clock(&world));
        let suspect = node.suspect.borrow().clone();
        let came = match &road {
            Some(road) => road.there().await,
            None => false,
        };
        let is_good = |road: &net::Road| {
            let through = road.through().map(|node| world.id(node));
            came && !road.is_outdated() && node.hearing.borrow().is_good_way(through, node.clock(&world))
        };
        road = road.filter(is_good);
        if came
            && let Some(other) = world.node(to)
            && !world.runs.is_paused(other.owner)
        {
            let at = other.clock(&world);
            other.hearing.borrow_mut().hear(world.id(node.me), hears, at);
            other.heard.borrow_mut().insert(node.me, Heard { at, load, suspect });
        }
        world.time.sleep(REPORT_EVERY).await;
    }
}

impl Node {
    /// Lets the disk go, and returns up to where the log is on it.
    pub fn end(&self) -> Option<shoal_storage::log::Position> {
        self.ground.end()
    }

    /// Returns for how long it has been awake.
    fn clock(&self, world: &World) -> Duration {
        self.awake.get().clock(world.time.instant())
    }

    /// Returns for how long another node was out of reach.
    pub fn silent(&self, world: &World, other: usize) -> Duration {
        self.hearing.borrow().silent(world.id(other), self.clock(world))
    }

    /// Says whether another node counts as lost.
    pub fn is_lost(&self, world: &World, other: usize) -> bool {
        if world.has(Mutant::BelievesNobodyElse) {
            return self.silent(world, other) >= DROPPED_AFTER;
        }
        self.hearing.borrow().is_lost(world.id(other), self.clock(world))
    }

    /// Says whether another node has been silent for a moment, and is not lost.
    pub fn is_doubtful(&self, world: &World, other: usize) -> bool {
        self.hearing.borrow().is_doubtful(world.id(other), self.clock(world))
    }

    /// Says whether this node has heard no other member for a moment, and cannot decide alone.
    pub fn hears_nobody(&self, world: &World, state: &State) -> bool {
        let me = world.id(self.me);
        let decides_alone = || world.council.status(self.me).voters.iter().all(|voter| voter.node == me);
        self.hearing.borrow().hears_nobody(state.members.keys().copied(), self.clock(world)) && !decides_alone()
    }

    /// Returns the nodes that count as lost.
    pub fn gone(&self, world: &World, state: &State) -> BTreeSet<NodeId> {
        state.nodes.keys().copied().filter(|id| self.is_lost(world, world.net.number(*id))).collect()
    }

    /// Says whether another node has said that it hears this one.
    pub fn is_heard_by(&self, world: &World, other: usize) -> bool {
        self.hearing.borrow().is_heard_by(world.id(other))
    }

    /// Forgets what others told.
    pub fn forget_heard(&self, world: &World) {
        self.heard.borrow_mut().clear();
        *self.hearing.borrow_mut() = Hearing::new(world.id(self.me));
    }

    /// Returns where a shard's records may miss some, and how far they go there.
    pub fn suspects(&self, world: &World, shard: ShardId) -> BTreeMap<NodeId, Mark> {
        let own = self.suspect.borrow().get(&shard).map(|mark| (world.id(self.me), *mark));
        let heard = self.heard.borrow();
        own.into_iter().chain(heard.iter().filter_map(|(node, heard)| Some((world.id(*node), *heard.suspect.get(&shard)?)))).collect()
    }

    /// Returns how busy the calls are at all homes, as far as they have told.
    pub fn load(&self, world: &World, state: &State) -> Load {
        let own = self.calls.load().borrow().clone();
        let heard = self.heard.borrow();
        let clock = self.clock(world);
        let fresh = heard.iter().filter(|(_, heard)| clock.saturating_sub(heard.at) < DROPPED_AFTER);
        let told = fresh.map(|(node, heard)| (world.id(*node), &*heard.load)).chain([(world.id(self.me), &*own)]);
        Load::at_homes(state, told)
    }
}
