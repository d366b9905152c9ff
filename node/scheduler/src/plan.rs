//! The decisions: which tasks to stop, which to start where.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_state::model::{AppState, Function, Resources, Task};
use shoal_state::{Command, FunctionId, GangId, NodeId, State, TaskId, Timestamp};

use crate::demand::{self, Pool};
use crate::placement::Placement;
use crate::room::{Candidate, Room, Taken, Taking, ends_with};
use crate::share::{Shares, sum, times};
use crate::why::{Obstacle, gpus_there};
use crate::{Load, Why};

/// How many tasks one plan starts. The rest waits for the next plan, so that one entry of the log stays small.
pub const ASSIGNS_MAX: usize = 128;

/// A container that was idle for less (milliseconds) is not stopped for a function that has more of the cluster already: the next
/// call of one that is called now and then finds it, instead of waiting until another one gives way again.
const IDLE_KEPT_MS: u64 = 10_000;

/// A container that is younger (milliseconds) is not asked to give way to a function that needs more than a fair part, such as the only
/// GPU: those take turns, and starts cost time.
const TURN_MS: u64 = 20_000;
/// The version of the rules from which gangs are placed.
const GANGS_SINCE: u32 = 7;

/// What the leader should propose.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `StopTask`, `Assign` and `AssignGang`, the stops first.
    pub commands: Vec<Command>,
    /// Tasks that are to get no more inputs, and so end once they are done with those that they have: others wait that have less
    /// of the cluster. What they run is not touched. Of a gang, which gives way as a whole, it is the one of rank 0.
    pub yields: Vec<TaskId>,
    /// Those of the tasks to stop that are stopped because they have no input.
    pub idle: BTreeSet<TaskId>,
    /// Functions that get fewer containers than their work asks for, and why; sorted by function.
    pub waiting: Vec<(FunctionId, Why)>,
}

impl Plan {
    /// Leaves out the stops of idle tasks that are not among these: where it is not known that they get no more inputs, they may have
    /// been given some since they were reported idle.
    pub fn stop_idle_only(&mut self, told: &BTreeSet<TaskId>) {
        let idle = &self.idle;
        self.commands.retain(|command| match command {
            Command::StopTask { id, .. } => told.contains(id) || !idle.contains(id),
            _ => true,
        });
    }
}

/// One function that should have more containers.
struct Need<'a> {
    id: FunctionId,
    function: &'a Function,
    placement: Placement,
    missing: u64,
    /// How many of them are missing if all nodes are up of which that is in doubt. The others get what is free, and nobody makes room for
    /// them.
    sure: u64,
    oldest_waiting_ms: u64,
}

/// What one function has that takes inputs: containers, or gangs as their containers of rank 0.
struct Serving<'a> {
    id: FunctionId,
    function: &'a Function,
    tasks: Vec<(TaskId, &'a Task)>,
}

/// Decides what should change now.
///
/// `ids` gives 128 random bits a call. Scarce room is given one container at a time, to the app that has the least of the cluster,
/// in it to the function that has the least, and among equals to the one whose oldest input has waited longest. Idle containers of
/// others make room for work that waits. Where there are none, a function that has more than its share is asked for a container,
/// which ends by itself when its inputs have.
pub fn plan(state: &State, load: &Load, now: Timestamp, ids: &mut dyn FnMut() -> u128) -> Plan {
    let mut planner = Planner {
        state,
        load,
        now,
        room: Room::new(state, load, now),
        shares: Shares::new(state, load),
        stops: BTreeMap::new(),
        yields: BTreeSet::new(),
        idle_stops: BTreeSet::new(),
        idle: Vec::new(),
        serving: Vec::new(),
        waiting: BTreeMap::new(),
    };
    let mut needs: Vec<Need<'_>> = state.functions.iter().filter_map(|(id, function)| planner.look_at(*id, function)).collect();
    planner.idle.sort_by_key(|idle| (Reverse(idle.idle_ms), idle.task));
    let assigns = planner.place(&mut needs, ids);
    let stops = planner.stops.into_iter().map(|(id, why)| Command::StopTask { id, why });
    let commands = stops.chain(assigns).collect();
    let yields = planner.yields.into_iter().collect();
    Plan { commands, yields, idle: planner.idle_stops, waiting: planner.waiting.into_iter().collect() }
}

struct Planner<'a> {
    state: &'a State,
    load: &'a Load,
    now: Timestamp,
    room: Room,
    shares: Shares,
    stops: BTreeMap<TaskId, String>,
    yields: BTreeSet<TaskId>,
    idle_stops: BTreeSet<TaskId>,
    /// Idle tasks that may be stopped for the sake of others.
    idle: Vec<Candidate>,
    /// What each function has that takes inputs.
    serving: Vec<Serving<'a>>,
    waiting: BTreeMap<FunctionId, Why>,
}

impl<'a> Planner<'a> {
    /// Scales one function down; returns what it needs to be scaled up.
    fn look_at(&mut self, id: FunctionId, function: &'a Function) -> Option<Need<'a>> {
        let pool = demand::pool(self.state, self.load, id);
        let live = self.state.apps.get(&function.app).is_some_and(|app| app.state != AppState::Stopped);
        if !live {
            let why = || "app stopped".to_owned();
            pool.serving.iter().for_each(|(task, _)| drop(self.stops.insert(*task, why())));
            return None;
        }
        self.replace(&pool);
        self.give_up(&pool);
        let wanted = demand::wanted(self.state, self.load, id, function, &pool);
        if self.load.pools.contains_key(&id) {
            self.scale_down(id, function, &pool, wanted);
        }
        let mut missing = wanted.saturating_sub(pool.serving.len() as u64);
        let sure = missing.saturating_sub(pool.doubtful as u64);
        let (at_once, held) = (demand::at_once(self.load, id), pool.held() as u64);
        if at_once > 1 {
            // A gang that may run still must not run twice: none is started ahead.
            missing = sure;
        }
        let lost = pool.lost as u64;
        if !pool.serving.is_empty() {
            self.serving.push(Serving { id, function, tasks: pool.serving });
        }
        if missing > 0
            && let Some(node) = self.unfenced(id)
        {
            // It may run still, and must not run twice.
            missing = missing.saturating_sub(lost);
            self.waiting.insert(id, Why::Fencing { node });
        }
        if missing == 0 {
            return None;
        }
        if let Some(why) = self.obstacle(id, function) {
            self.waiting.insert(id, why);
            return None;
        }
        let containers_max = demand::containers_max(function);
        let may = u64::from(containers_max / at_once).saturating_sub(held);
        if may < sure.min(missing) {
            self.waiting.insert(id, Why::ContainersMax { containers_max });
        }
        let oldest_waiting_ms = self.load.pools.get(&id).map_or(0, |load| load.oldest_waiting_ms);
        let placement = self.load.placements.get(&id).map(|placement| placement.within(self.state)).unwrap_or_default();
        Some(Need { id, function, placement, missing: missing.min(may), sure: sure.min(missing).min(may), oldest_waiting_ms })
    }

    /// Stops what is to be replaced as soon as it has no input.
    fn replace(&mut self, pool: &Pool<'_>) {
        let idle: Vec<_> = pool.outgoing.iter().filter(|(task, _, _)| self.load.idle_since.contains_key(task)).collect();
        for (task, _, why) in idle {
            self.stop(*task, (*why).to_owned());
        }
    }

    /// Asks those to stop whose gang has lost a container.
    fn give_up(&mut self, pool: &Pool<'_>) {
        for (task, node) in &pool.broken {
            self.stops.insert(*task, format!("node {} of its gang is down", self.room.name(*node)));
        }
    }

    /// Returns a node that is down and may run containers of gangs of a function still: for so long the state has them.
    fn unfenced(&self, id: FunctionId) -> Option<String> {
        let tasks = self.state.tasks_of.get(&id).into_iter().flatten().filter(|task| self.state.gang_of.contains_key(*task));
        let mut nodes = tasks.filter_map(|task| self.state.tasks.get(task)).map(|task| task.node);
        nodes.find(|node| self.load.down.contains(node)).map(|node| self.room.name(node))
    }

    /// Stops an idle task, and with it all of its gang.
    fn stop(&mut self, task: TaskId, why: String) {
        let all = ends_with(self.state, task);
        self.room.stop(self.state, &all);
        self.idle_stops.insert(task);
        self.stops.insert(task, why);
    }

    fn scale_down(&mut self, id: FunctionId, function: &Function, pool: &Pool<'_>, wanted: u64) {
        let spare = usize::try_from((pool.serving.len() as u64).saturating_sub(wanted)).unwrap_or(usize::MAX);
        let mut stopped = BTreeSet::new();
        for (task, idle_ms) in demand::idle_too_long(self.load, function, pool, self.now).into_iter().take(spare) {
            self.stop(task, format!("idle for {} s", idle_ms / 1000));
            stopped.insert(task);
        }
        let left = spare - stopped.len();
        let idle = demand::idle(self.load, pool, self.now).into_iter().filter(|(task, _)| !stopped.contains(task)).take(left);
        self.idle.extend(idle.map(|(task, idle_ms)| Candidate::new(self.state, task, id, idle_ms)));
    }

    /// Says what keeps a function from having any new container.
    fn obstacle(&self, id: FunctionId, function: &Function) -> Option<Why> {
        let Some(image) = function.image else { return Some(Why::NotDefined) };
        match self.state.images.get(&image) {
            None => return Some(Why::NoImage { image }),
            Some(record) if record.manifest.is_none() => return Some(Why::ImageFailed { image }),
            Some(_) => {}
        }
        if self.load.unread.contains(&id) {
            return Some(Why::NotRead);
        }
        let until = *self.load.held_until.get(&id)?;
        (self.now < until).then_some(Why::Held { until, now: self.now })
    }

    /// Gives room, one container or gang at a time, to whoever has the least.
    fn place(&mut self, needs: &mut [Need<'a>], ids: &mut dyn FnMut() -> u128) -> Vec<Command> {
        let (mut assigns, mut placed) = (Vec::new(), 0);
        while let Some(need) = self.next(needs) {
            let at_once = need.placement.at_once();
            if placed > 0 && placed + at_once as usize > ASSIGNS_MAX {
                self.waiting.insert(need.id, Why::NextPlan);
                need.missing = 0;
                continue;
            }
            placed += at_once as usize;
            let found = match need.placement.gang {
                Some(_) => self.place_gang(need, ids),
                None => match self.room.take(need.id, &need.function.resources, &need.placement) {
                    Taking::Taken(taken) => Ok(Command::Assign { id: TaskId::from_random(ids()), task: task(need, taken, self.now) }),
                    Taking::Starting => Err(Why::NextPlan),
                    Taking::Full if need.sure == 0 => {
                        need.missing = 0;
                        continue;
                    }
                    Taking::Full => Err(self.make_room(need, 0)),
                },
            };
            match found {
                Ok(assign) => {
                    need.missing -= 1;
                    need.sure = need.sure.saturating_sub(1);
                    (0..at_once).for_each(|_| self.shares.take(need.id, need.function.app, &need.function.resources));
                    assigns.push(assign);
                }
                Err(why) => {
                    self.waiting.insert(need.id, why);
                    need.missing = 0;
                }
            }
        }
        assigns
    }

    /// Returns whose turn it is.
    fn next<'n>(&self, needs: &'n mut [Need<'a>]) -> Option<&'n mut Need<'a>> {
        let turn = |need: &&mut Need<'a>| (self.shares.of(need.id, need.function.app), Reverse(need.oldest_waiting_ms), need.id);
        needs.iter_mut().filter(|need| need.missing > 0).min_by_key(turn)
    }

    /// Gives room to all containers of a gang, or says why there is none.
    fn place_gang(&mut self, need: &Need<'_>, ids: &mut dyn FnMut() -> u128) -> Result<Command, Why> {
        if self.state.version() < GANGS_SINCE {
            return Err(Why::OldNodes);
        }
        if !self.room.is_calm_for_gang(need.id, &need.placement) {
            return Err(Why::NextPlan);
        }
        match self.room.take_gang(need.id, &need.function.resources, &need.placement) {
            Ok(taken) => {
                let tasks = taken.into_iter().map(|taken| (TaskId::from_random(ids()), task(need, taken, self.now)));
                Ok(Command::AssignGang { tasks: tasks.collect(), id: GangId::from_random(ids()) })
            }
            Err(fits) => Err(self.make_room(need, fits)),
        }
    }

    /// Notes that idle containers make room.
    fn evicted(&mut self, id: FunctionId, node: NodeId, tasks: Vec<TaskId>) -> Why {
        self.idle.retain(|idle| !tasks.contains(&idle.task));
        self.idle.sort_by_key(|idle| (Reverse(idle.idle_ms), idle.task));
        for task in tasks {
            self.goes(task);
            self.idle_stops.insert(task);
            self.stops.insert(task, format!("idle, makes room for {id}"));
        }
        Why::RoomSoon { node: self.room.name(node) }
    }

    /// Finds room in what stops already, stops idle containers of others, or asks busy ones to give way; `fits` of a gang's containers
    /// have room now. One container's, or gang's, worth a plan and function.
    fn make_room(&mut self, need: &Need<'_>, fits: u32) -> Why {
        let needs = need.function.resources;
        if self.state.nodes.is_empty() {
            return Why::NoNodes;
        }
        if let Some(why) = need.placement.nowhere(self.state) {
            return Why::Nowhere { why };
        }
        if let Some(never) = self.never(need) {
            return never;
        }
        let nodes = self.room.obstacles(&needs, &need.placement);
        let wants = (need.id, &needs, &need.placement);
        if let Some(node) = self.room.promise(wants) {
            return Why::RoomSoon { node: self.room.name(node) };
        }
        let idle = std::mem::take(&mut self.idle);
        let may_have = |idle: &Candidate| idle.function != need.id && (idle.idle_ms >= IDLE_KEPT_MS || self.is_fair(need, idle, 0));
        let (others, own): (Vec<_>, Vec<_>) = idle.into_iter().partition(may_have);
        let evicted = self.room.evict(self.state, wants, &others);
        self.idle = others.into_iter().chain(own).collect();
        if let Some((node, tasks)) = evicted {
            return self.evicted(need.id, node, tasks);
        }
        self.idle.sort_by_key(|idle| (Reverse(idle.idle_ms), idle.task));
        self.give_way(need).unwrap_or_else(|| match need.placement.gang {
            Some(_) => Why::NoRoomForGang { size: need.placement.at_once(), fits, needs, nodes },
            None => {
                let choices = need.placement.gpus.clone();
                let is_gpus = !choices.is_empty() && nodes.iter().any(|(_, obstacle)| matches!(obstacle, Obstacle::Gpus { .. }));
                if is_gpus { Why::NoGpus { choices, nodes } } else { Why::NoRoom { needs, nodes } }
            }
        })
    }

    /// Says why no nodes could hold what a function needs, however empty they were.
    fn never(&self, need: &Need<'_>) -> Option<Why> {
        let (needs, placement) = (need.function.resources, &need.placement);
        if placement.gang.is_some() {
            let (size, holds) = (placement.at_once(), self.room.holds(&needs, placement));
            return (holds < u64::from(size)).then_some(Why::GangNeverFits { size, needs, holds });
        }
        if !self.room.never_fits(&needs, placement) {
            return None;
        }
        if !placement.gpus.is_empty() && !self.room.have_gpus(placement) {
            return Some(Why::NeverGpus { choices: placement.gpus.clone(), there: gpus_there(self.state) });
        }
        Some(Why::NeverFits { needs, nodes: self.room.capacities(placement) })
    }

    /// Says whether a function may have the place of a container, or of a gang: it has no more of the cluster then than that one's, or
    /// has nothing and that one had its turn.
    fn is_fair(&self, need: &Need<'_>, from: &Candidate, turn_ms: u64) -> bool {
        let Some(task) = self.state.tasks.get(&from.task) else { return false };
        let held = sum(from.tasks.iter().filter_map(|task| self.state.tasks.get(task)).map(|task| &task.resources));
        let (id, app, needs) = (need.id, need.function.app, times(&need.function.resources, need.placement.at_once()));
        let had_its_turn = self.now.0.saturating_sub(task.created.0) >= turn_ms;
        self.shares.may_take_from((id, app, &needs), (task, &held)) || (had_its_turn && self.shares.may_take_turns((id, app), task))
    }

    /// Asks busy containers, or gangs, of those that have the most to give way.
    fn give_way(&mut self, need: &Need<'_>) -> Option<Why> {
        let mut busy: Vec<(&Task, Candidate)> = Vec::new();
        for Serving { id, function, tasks } in &self.serving {
            let asked = tasks.iter().filter(|(task, _)| self.yields.contains(task)).count();
            if *id == need.id || !demand::may_yield(self.state, self.load, *id, function, tasks.len() - asked) {
                continue;
            }
            let stays = tasks.iter().filter(|(task, _)| !self.stops.contains_key(task) && !self.yields.contains(task));
            let candidates = stays.map(|(task, of)| (*of, Candidate::new(self.state, *task, *id, 0)));
            busy.extend(candidates.filter(|(_, candidate)| self.is_fair(need, candidate, TURN_MS)));
        }
        // The youngest first: it has done the least of what it does, should that be long.
        busy.sort_by_key(|(task, of)| (Reverse(self.shares.of(task.function, task.app)), Reverse(task.created), of.task));
        let candidates: Vec<Candidate> = busy.into_iter().map(|(_, candidate)| candidate).collect();
        let (node, tasks) = self.room.evict(self.state, (need.id, &need.function.resources, &need.placement), &candidates)?;
        let function = candidates.iter().find(|candidate| tasks.contains(&candidate.task))?.function;
        for task in tasks {
            self.goes(task);
            self.yields.insert(task);
        }
        Some(Why::GivesWay { function, node: self.room.name(node) })
    }

    /// Notes that a task, and with it all of its gang, has nothing any more.
    fn goes(&mut self, task: TaskId) {
        let all = ends_with(self.state, task);
        all.iter().filter_map(|task| self.state.tasks.get(task)).for_each(|task| self.shares.give(task));
    }
}

fn task(need: &Need<'_>, taken: Taken, now: Timestamp) -> Task {
    let decided = Task::new((need.id, need.function.app), (taken.node, taken.boot), now);
    // Another choice than the first may be of another number.
    let gpus = u32::try_from(taken.gpus.len()).unwrap_or(u32::MAX);
    Task { resources: Resources { gpus, ..need.function.resources }, gpus: taken.gpus, ..decided }
}
