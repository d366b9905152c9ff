//! The decisions: which tasks to stop, which to start where.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_state::model::{AppState, Function, Task};
use shoal_state::{Command, FunctionId, State, TaskId, Timestamp};

use crate::demand::{self, Pool};
use crate::placement::Placement;
use crate::room::{Candidate, Room, Taken, Taking};
use crate::{Load, Why};

/// How many tasks one plan starts. The rest waits for the next plan, so that one entry of the log stays small.
pub const ASSIGNS_MAX: usize = 128;

/// What the leader should propose.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `StopTask` and `Assign`, the stops first.
    pub commands: Vec<Command>,
    /// Functions that get fewer containers than their work asks for, and why; sorted by function.
    pub waiting: Vec<(FunctionId, Why)>,
}

/// One function that should have more containers.
struct Need<'a> {
    id: FunctionId,
    function: &'a Function,
    placement: Placement,
    missing: u64,
    oldest_waiting_ms: u64,
}

/// Decides what should change now.
///
/// `ids` gives 128 random bits a call. Scarce room is given one container at a time, in rounds, beginning with the
/// function whose oldest input has waited longest. Idle containers of others make room for work that waits.
pub fn plan(state: &State, load: &Load, now: Timestamp, ids: &mut dyn FnMut() -> u128) -> Plan {
    let mut planner =
        Planner { state, load, now, room: Room::new(state, load, now), stops: BTreeMap::new(), idle: Vec::new(), waiting: BTreeMap::new() };
    let mut needs: Vec<Need<'_>> = state.functions.iter().filter_map(|(id, function)| planner.look_at(*id, function)).collect();
    needs.sort_by_key(|need| (Reverse(need.oldest_waiting_ms), need.id));
    planner.idle.sort_by_key(|idle| (Reverse(idle.idle_ms), idle.task));
    let assigns = planner.place(&mut needs, ids);
    let stops = planner.stops.into_iter().map(|(id, why)| Command::StopTask { id, why });
    Plan { commands: stops.chain(assigns).collect(), waiting: planner.waiting.into_iter().collect() }
}

struct Planner<'a> {
    state: &'a State,
    load: &'a Load,
    now: Timestamp,
    room: Room,
    stops: BTreeMap<TaskId, String>,
    /// Idle tasks that may be stopped for the sake of others.
    idle: Vec<Candidate>,
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
        let wanted = demand::wanted(self.state, self.load, id, function, &pool);
        if self.load.pools.contains_key(&id) {
            self.scale_down(id, function, &pool, wanted);
        }
        let missing = wanted.saturating_sub(pool.serving.len() as u64);
        if missing == 0 {
            return None;
        }
        if let Some(why) = self.obstacle(id, function) {
            self.waiting.insert(id, why);
            return None;
        }
        let containers_max = demand::containers_max(function);
        let may = u64::from(containers_max).saturating_sub(pool.held() as u64);
        if may < missing {
            self.waiting.insert(id, Why::ContainersMax { containers_max });
        }
        let oldest_waiting_ms = self.load.pools.get(&id).map_or(0, |load| load.oldest_waiting_ms);
        let placement = self.load.placements.get(&id).map(|placement| placement.within(self.state)).unwrap_or_default();
        Some(Need { id, function, placement, missing: missing.min(may), oldest_waiting_ms })
    }

    /// Stops what is to be replaced as soon as it has no input.
    fn replace(&mut self, pool: &Pool<'_>) {
        let idle: Vec<_> = pool.outgoing.iter().filter(|(task, _, _)| self.load.idle_since.contains_key(task)).collect();
        for (task, _, why) in idle {
            self.room.stop(self.state, &[*task]);
            self.stops.insert(*task, (*why).to_owned());
        }
    }

    fn scale_down(&mut self, id: FunctionId, function: &Function, pool: &Pool<'_>, wanted: u64) {
        let spare = usize::try_from((pool.serving.len() as u64).saturating_sub(wanted)).unwrap_or(usize::MAX);
        let mut stopped = BTreeSet::new();
        for (task, idle_ms) in demand::idle_too_long(self.load, function, pool, self.now).into_iter().take(spare) {
            self.room.stop(self.state, &[task]);
            self.stops.insert(task, format!("idle for {} s", idle_ms / 1000));
            stopped.insert(task);
        }
        let left = spare - stopped.len();
        let idle = demand::idle(self.load, pool, self.now).into_iter().filter(|(task, _)| !stopped.contains(task)).take(left);
        self.idle.extend(idle.map(|(task, idle_ms)| Candidate { task, function: id, idle_ms }));
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

    /// Gives room, one container a function and round.
    fn place(&mut self, needs: &mut [Need<'_>], ids: &mut dyn FnMut() -> u128) -> Vec<Command> {
        let mut assigns = Vec::new();
        while needs.iter().any(|need| need.missing > 0) {
            for need in needs.iter_mut().filter(|need| need.missing > 0) {
                if assigns.len() == ASSIGNS_MAX {
                    self.waiting.insert(need.id, Why::NextPlan);
                    need.missing = 0;
                    continue;
                }
                match self.room.take(need.id, &need.function.resources, &need.placement) {
                    Taking::Taken(taken) => {
                        need.missing -= 1;
                        assigns.push(assign(TaskId::from_random(ids()), need, taken, self.now));
                    }
                    Taking::Starting => {
                        self.waiting.insert(need.id, Why::NextPlan);
                        need.missing = 0;
                    }
                    Taking::Full => {
                        let why = self.make_room(need);
                        self.waiting.insert(need.id, why);
                        need.missing = 0;
                    }
                }
            }
        }
        assigns
    }

    /// Finds room in what stops already, or stops idle containers of others. One container's worth a plan and function.
    fn make_room(&mut self, need: &Need<'_>) -> Why {
        let needs = need.function.resources;
        if self.state.nodes.is_empty() {
            return Why::NoNodes;
        }
        if let Some(why) = need.placement.nowhere(self.state) {
            return Why::Nowhere { why };
        }
        let nodes = self.room.obstacles(&needs, &need.placement);
        if self.room.never_fits(&needs, &need.placement) {
            return Why::NeverFits { needs, nodes: self.room.capacities(&need.placement) };
        }
        if let Some(node) = self.room.promise(&needs, &need.placement) {
            return Why::RoomSoon { node: self.room.name(node) };
        }
        let others: Vec<Candidate> = std::mem::take(&mut self.idle);
        let (own, others): (Vec<_>, Vec<_>) = others.into_iter().partition(|idle| idle.function == need.id);
        let evicted = self.room.evict(self.state, &needs, &need.placement, &others);
        self.idle = others.into_iter().chain(own).collect();
        let Some((node, tasks)) = evicted else { return Why::NoRoom { needs, nodes } };
        self.idle.retain(|idle| !tasks.contains(&idle.task));
        self.idle.sort_by_key(|idle| (Reverse(idle.idle_ms), idle.task));
        for task in tasks {
            self.stops.insert(task, format!("idle, makes room for {}", need.id));
        }
        Why::RoomSoon { node: self.room.name(node) }
    }
}

fn assign(id: TaskId, need: &Need<'_>, taken: Taken, now: Timestamp) -> Command {
    let decided = Task::new((need.id, need.function.app), (taken.node, taken.boot), now);
    let task = Task { resources: need.function.resources, gpus: taken.gpus, ..decided };
    Command::Assign { id, task }
}
