//! A world: some nodes, their network, what they decide, clients and faults, all from one seed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use shoal_state::imbl::OrdMap;
use shoal_state::model::{App, AppLayout, AppState, Definition, Environment, Function, Image, Node as Registered, Resources, Scaling};
use shoal_state::model::{Deployment, Lasting, NewRelease, NewSchedule, Period, Publish, Timing};
use shoal_state::{
    AppId, BootId, CallId, Command, DictId, Digest, EnvironmentId, FunctionId, ImageId, NodeId, QueueId, ShardId, State, Timestamp,
    VERSION_KNOWN,
};

use crate::council::Council;
use crate::dice::Dice;
use crate::extras::Extra;
use crate::ground::BEGAN_MS;
use crate::history::{Event, History};
use crate::mutant::Mutant;
use crate::net::{self, Net};
use crate::node::{self, Node};
use crate::time::{Owner, Runs, Time, WORLD};
use crate::{clients, faults, gangs, ground, operators};

/// So long a healed world may take until all clients have what they wanted.
const HEALS_WITHIN: Duration = Duration::from_secs(120);

/// The shards that things happen in. The others stay where they were at first.
pub fn shards() -> [ShardId; 3] {
    [3, 70, 200].map(|number| ShardId::new(number).expect("there are so many"))
}

/// The function whose calls are in a shard.
pub fn function(shard: ShardId) -> FunctionId {
    FunctionId::in_shard(shard, 1)
}

/// The queue in a shard.
pub fn queue(shard: ShardId) -> QueueId {
    QueueId::in_shard(shard, 2)
}

/// The dict in a shard.
pub fn dict(shard: ShardId) -> DictId {
    DictId::in_shard(shard, 3)
}

fn capacity() -> Resources {
    Resources { cpu_milli: 4_000, memory_bytes: 16 << 30, ..Resources::default() }
}

/// What the state says of a start of a node.
pub fn registered(number: u64, boot: BootId) -> Registered {
    Registered::new(format!("n{number}"), boot, capacity(), Timestamp(BEGAN_MS))
}

/// Where a node is with its processes.
#[derive(Debug, Default)]
struct Place {
    node: Option<Rc<Node>>,
    owner: Owner,
    starts: u64,
    /// It is out of the cluster for good.
    departed: bool,
}

/// What clients know of each other's calls.
pub type Known = BTreeMap<CallId, bool>;

/// Everything. Clones are the same.
#[derive(Debug, Clone)]
pub struct World(Rc<Inner>);

/// What a world is made of.
#[derive(Debug)]
pub struct Inner {
    /// From which all follows.
    pub seed: u64,
    /// How many nodes there are.
    pub size: usize,
    /// How many of them, the first ones, are there from the beginning.
    founders: usize,
    mutant: Option<Mutant>,
    extras: BTreeSet<Extra>,
    ids: Vec<NodeId>,
    root: tempfile::TempDir,
    places: RefCell<Vec<Place>>,
    dice: RefCell<Dice>,
    /// Who runs what.
    pub runs: Runs,
    /// The time.
    pub time: Time,
    /// The wires.
    pub net: Net,
    /// What is decided.
    pub council: Council,
    /// What happened.
    pub history: History,
    /// The calls that clients were told are open, and whether they last.
    pub calls: RefCell<Known>,
    healed: RefCell<bool>,
    busy: RefCell<BTreeMap<u64, &'static str>>,
}

impl std::ops::Deref for World {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// What is there before anything happens.
fn first(ids: &[NodeId], extras: &BTreeSet<Extra>) -> Vec<Command> {
    let (app, environment, image, at) =
        (AppId::from_random(1), EnvironmentId::from_random(1), ImageId::from_random(1), Timestamp(BEGAN_MS));
    let mut commands = vec![
        Command::SetVersion { version: VERSION_KNOWN },
        Command::CreateEnvironment { environment: Environment::new(environment, "main", at) },
        Command::CreateApp { id: app, app: App::new(environment, AppState::Initializing, at) },
        Command::PutImage {
            id: image,
            image: Image { key: Digest::of(b"i"), manifest: Some(Digest::of(b"m")), record: Definition::default(), built: at },
        },
    ];
    for (number, id) in (0..).zip(ids) {
        commands.push(Command::PutNode { id: *id, node: registered(number, BootId::from_random(number.into())) });
    }
    commands.push(Command::InitShards { home: ids[0] });
    let mut layout = AppLayout::default();
    for shard in shards() {
        let tag = format!("f{shard}");
        let scaling = Scaling { containers_max: 4, scaledown_ms: 6_000, ..Scaling::default() };
        let resources = Resources { cpu_milli: 1_000, memory_bytes: 1 << 30, ..Resources::default() };
        let put = Function { image: Some(image), scaling, resources, ..Function::new(app, tag.clone(), at) };
        commands.push(Command::PutFunction { id: function(shard), function: Box::new(put) });
        layout.functions.insert(tag, function(shard));
    }
    if extras.contains(&Extra::Gangs) {
        commands.push(gangs::put(app, image, at));
        layout.functions.insert("gang".to_owned(), gangs::function());
    }
    commands.push(Command::PublishApp { id: app, layout, deployment: None, detached: true });
    commands.extend(scheduled(environment, image));
    commands
}

/// A deployed app with a function that is called every few seconds.
fn scheduled(environment: EnvironmentId, image: ImageId) -> Vec<Command> {
    let (app, at, request) = (AppId::from_random(2), Timestamp(BEGAN_MS), Digest::of(b"deploy"));
    let id = FunctionId::in_shard(shards()[1], 4);
    let timing = Timing::Period(Period { nanos: 3_000_000_000, ..Period::default() });
    let next = shoal_timing::next_after(&timing, at, at).expect("a time");
    let resources = Resources { cpu_milli: 100, memory_bytes: 1 << 30, ..Resources::default() };
    let function = Function { image: Some(image), resources, ..Function::new(app, "every", at) };
    let deployment = Deployment { version: 0, name: "timed".to_owned(), tag: String::new(), at, client_version: String::new() };
    let release = NewRelease { deployment, by: String::new(), commit: vec![], request };
    let layout = AppLayout { functions: [("every".to_owned(), id)].into_iter().collect(), ..AppLayout::default() };
    let publish = Publish { layout, definitions: OrdMap::new(), tags: OrdMap::new(), lasting: Lasting::Deployed(release), at };
    vec![
        Command::CreateApp { id: app, app: App::new(environment, AppState::Initializing, at) },
        Command::PutFunction { id, function: Box::new(function) },
        Command::StageSchedules { app, request, at, schedules: [(id, NewSchedule { timing, next })].into_iter().collect() },
        Command::Publish { id: app, publish: Box::new(publish) },
    ]
}

fn admit(state: &mut State, ids: &[NodeId]) {
    for id in ids {
        state.members.insert(*id, operators::member());
    }
}

/// Lets connections come and go.
async fn connect(world: World) {
    loop {
        let is_awake = |node: &usize| world.net.owner(*node).is_some_and(|owner| !world.runs.is_paused(owner));
        world.net.look((0..world.size).filter(is_awake).collect());
        world.time.sleep(net::LOOK_EVERY).await;
    }
}

impl World {
    /// Makes the world of a seed, with these things in it besides.
    pub fn new(seed: u64, mutant: Option<Mutant>, extras: BTreeSet<Extra>) -> Self {
        let mut dice = Dice::new(seed, 1);
        let founders = usize::try_from(dice.from(3, 5)).unwrap_or(3);
        let (later, voters) = operators::beginning(seed, founders, extras.contains(&Extra::Voters));
        let size = founders + later;
        let ids: Vec<NodeId> = (1..=size as u128).map(NodeId::from_random).collect();
        let runs = Runs::new(Dice::new(seed, 2));
        let time = runs.time();
        let net = Net::new(time.clone(), runs.inbox(), ids.clone(), Dice::new(seed, 3));
        if extras.contains(&Extra::Detours) {
            net.go_around(Dice::new(seed, 13), mutant == Some(Mutant::NoWayAround));
        }
        let history = History::new(&time);
        let (there, mut commands) = (&ids[..founders], first(&ids[..founders], &extras));
        commands.extend(operators::tokens(founders..size));
        let (voters, admit) = ((0..voters.min(founders)).collect(), |state: &mut State| admit(state, there));
        let council = Council::new((size, voters), commands, admit, &net, &runs, &history, Dice::new(seed, 4));
        let places = RefCell::new((0..size).map(|_| Place::default()).collect());
        let root = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder for the nodes");
        let (dice, calls, healed, busy) = (RefCell::new(dice), RefCell::default(), RefCell::new(false), RefCell::default());
        Self(Rc::new(Inner {
            seed,
            size,
            founders,
            mutant,
            extras,
            ids,
            root,
            places,
            dice,
            runs,
            time,
            net,
            council,
            history,
            calls,
            healed,
            busy,
        }))
    }

    /// Runs it to its end, and returns what happened.
    pub fn run(&self) -> Vec<(Duration, Event)> {
        for node in 0..self.founders {
            self.start(node, false);
        }
        if self.there_are(Extra::Detours) {
            self.runs.spawn(WORLD, connect(self.clone()));
        }
        self.runs.spawn(WORLD, faults::run(self.clone()));
        if self.there_are(Extra::Voters) {
            self.runs.spawn(WORLD, operators::run(self.clone()));
            self.runs.spawn(WORLD, operators::wait_for_the_end(self.clone()));
        }
        for client in 0..clients::COUNT {
            self.busy.borrow_mut().insert(client, "start");
            self.runs.spawn(WORLD, clients::run(self.clone(), client));
        }
        let is_over = || {
            let healed = *self.healed.borrow();
            healed && self.busy.borrow().is_empty() || self.time.now() > faults::LAST + HEALS_WITHIN
        };
        self.runs.run_until(is_over);
        for (client, at) in self.busy.borrow().iter() {
            self.history.note(Event::ClientStuck { client: *client, at });
        }
        self.end();
        self.history.take()
    }

    fn end(&self) {
        for node in 0..self.size {
            self.runs.end(self.owner(node));
            self.net.went(node);
        }
        self.runs.clear();
        for place in self.places.borrow_mut().iter_mut() {
            if let Some(node) = place.node.take() {
                node.end();
            }
        }
    }

    /// Says whether a bug is back.
    pub fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Says whether there is this in the world.
    pub fn there_are(&self, extra: Extra) -> bool {
        self.extras.contains(&extra)
    }

    /// Returns the nodes that join later.
    pub fn joining(&self) -> std::ops::Range<usize> {
        self.founders..self.size
    }

    /// Returns the id of a node.
    pub fn id(&self, node: usize) -> NodeId {
        self.ids[node]
    }

    /// Returns the folder of a node's calls.
    pub fn dir(&self, node: usize) -> PathBuf {
        self.root.path().join(node.to_string())
    }

    /// Returns the present start of a node, once it has calls.
    pub fn node(&self, node: usize) -> Option<Rc<Node>> {
        self.places.borrow()[node].node.clone()
    }

    /// Returns as what a node runs.
    pub fn owner(&self, node: usize) -> Owner {
        self.places.borrow()[node].owner
    }

    /// Notes that a node has calls.
    pub fn set_node(&self, me: usize, node: &Rc<Node>) {
        self.places.borrow_mut()[me].node = Some(node.clone());
    }

    /// Returns the time as a timestamp.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp(BEGAN_MS + u64::try_from(self.time.now().as_millis()).unwrap_or(0))
    }

    /// Draws a number.
    pub fn draw(&self, first: u64, last: u64) -> u64 {
        self.dice.borrow_mut().from(first, last)
    }

    /// Draws the bits of an id.
    pub fn bits(&self) -> u128 {
        self.dice.borrow_mut().bits()
    }

    /// Cuts a wire in one way, or mends it.
    pub fn cut(&self, from: usize, to: usize, cut: bool) {
        self.net.cut(from, to, cut);
        if self.there_are(Extra::Detours) {
            self.history.note(Event::Wire { from, to, cut });
        }
    }

    /// Says whether there are no more faults.
    pub fn is_healed(&self) -> bool {
        *self.healed.borrow()
    }

    /// There are no more faults from here on.
    pub fn heal(&self) {
        *self.healed.borrow_mut() = true;
        self.history.note(Event::Healed);
    }

    /// Notes what a client does.
    pub fn does(&self, client: u64, what: &'static str) {
        self.busy.borrow_mut().insert(client, what);
    }

    /// Notes that a client has all that it wanted.
    pub fn done(&self, client: u64) {
        self.busy.borrow_mut().remove(&client);
        self.history.note(Event::ClientDone { client });
    }

    /// Returns how many clients want something still.
    pub fn busy(&self) -> usize {
        self.busy.borrow().len()
    }

    /// Starts the process of a node.
    pub fn start(&self, me: usize, machine_restarted: bool) {
        let owner = {
            let mut places = self.places.borrow_mut();
            let place = &mut places[me];
            if place.departed {
                return;
            }
            place.starts += 1;
            place.owner = (me as u64 + 1) * 1_000 + place.starts;
            place.owner
        };
        self.history.note(Event::NodeStarted { node: me, id: self.id(me), machine_restarted });
        self.runs.spawn(owner, node::start(self.clone(), me, owner));
    }

    /// A node that is out of the cluster stops, and does not start again.
    pub fn depart(&self, me: usize) {
        self.places.borrow_mut()[me].departed = true;
        self.history.note(Event::Departed { node: me });
        let world = self.clone();
        self.runs.spawn(WORLD, async move { world.stop(me, false).await });
    }

    /// Ends the process of a node, and lets its machine restart if that is said. May be started again in a moment.
    pub async fn stop(&self, me: usize, machine: bool) {
        self.net.went(me);
        self.runs.end(self.owner(me));
        let node = self.places.borrow_mut()[me].node.take();
        self.history.note(Event::NodeStopped { node: me });
        self.time.sleep(Duration::from_millis(1)).await;
        let synced = node.as_ref().and_then(|node| node.end());
        drop(node);
        if machine && self.dir(me).exists() {
            let mut dice = Dice::new(self.seed, self.owner(me) + 7);
            ground::forget(&self.dir(me), synced, &mut dice);
        }
    }
}
