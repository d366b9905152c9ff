//! What nodes have free: filter, then score.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_gpu::{Allocation, Kind};
use shoal_state::model::Resources;
use shoal_state::{BootId, FunctionId, NodeId, State, TaskId, Timestamp};

use crate::Load;
use crate::placement::{Labels, Placement};
use crate::why::Obstacle;

/// What is free on one node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Free {
    pub(crate) cpu_milli: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) gpus: BTreeSet<u32>,
}

impl Free {
    fn obstacle(&self, needs: &Resources) -> Option<Obstacle> {
        if needs.cpu_milli > self.cpu_milli {
            Some(Obstacle::Cpu { needs_milli: needs.cpu_milli, free_milli: self.cpu_milli })
        } else if needs.memory_bytes > self.memory_bytes {
            Some(Obstacle::Memory { needs_bytes: needs.memory_bytes, free_bytes: self.memory_bytes })
        } else if needs.disk_bytes > self.disk_bytes {
            Some(Obstacle::Disk { needs_bytes: needs.disk_bytes, free_bytes: self.disk_bytes })
        } else {
            None
        }
    }

    /// Takes what fits, and these GPUs.
    fn take(&mut self, needs: &Resources, gpus: &[u32]) {
        self.cpu_milli = self.cpu_milli.saturating_sub(needs.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(needs.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(needs.disk_bytes);
        self.gpus.retain(|gpu| !gpus.contains(gpu));
    }

    fn give(&mut self, held: &Resources, gpus: &[u32]) {
        self.cpu_milli = self.cpu_milli.saturating_add(held.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_add(held.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(held.disk_bytes);
        self.gpus.extend(gpus);
    }
}

#[derive(Debug, Clone)]
struct Place {
    name: String,
    boot: BootId,
    capacity: Resources,
    free: Free,
    /// How many tasks keep a core busy with their start.
    starting: usize,
    /// What is free once the tasks that stop have ended, less what was promised of it.
    soon: Free,
    refuses: Option<Obstacle>,
    labels: Labels,
    /// Of which kind its GPUs are.
    kinds: Vec<Kind>,
    tasks: BTreeMap<FunctionId, u32>,
}

impl Place {
    fn obstacle(&self, placement: &Placement) -> Option<Obstacle> {
        self.refuses.or_else(|| placement.obstacle(&self.labels))
    }

    /// Picks GPUs of those that are free; none when they are too few. What is not said in words is a number of any kind.
    fn allocate(&self, free: &Free, needs: &Resources, placement: &Placement) -> Option<Allocation> {
        if !placement.gpus.is_empty() {
            return shoal_gpu::allocate(&placement.gpus, &self.kinds, &free.gpus);
        }
        let gpus: Vec<u32> = free.gpus.iter().copied().take(needs.gpus as usize).collect();
        (gpus.len() == needs.gpus as usize).then_some(Allocation { choice: 0, rank: 0, gpus })
    }

    /// Returns the first thing that there is too little of.
    fn lacks(&self, free: &Free, needs: &Resources, placement: &Placement) -> Option<Obstacle> {
        free.obstacle(needs).or_else(|| {
            let free_gpus = u32::try_from(free.gpus.len()).unwrap_or(u32::MAX);
            let none = self.allocate(free, needs, placement).is_none();
            none.then_some(Obstacle::Gpus { needs: needs.gpus, free: free_gpus })
        })
    }

    fn fits(&self, free: &Free, needs: &Resources, placement: &Placement) -> bool {
        self.lacks(free, needs, placement).is_none()
    }

    /// Takes room out of what will be free.
    fn take_soon(&mut self, needs: &Resources, placement: &Placement) {
        let gpus = self.allocate(&self.soon, needs, placement).map(|found| found.gpus).unwrap_or_default();
        self.soon.take(needs, &gpus);
    }

    fn may_have(&self, placement: &Placement) -> bool {
        self.obstacle(placement).is_none()
    }
}

/// A place that was taken for a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) node: NodeId,
    pub(crate) boot: BootId,
    pub(crate) gpus: Vec<u32>,
}

/// What could be stopped, or asked to end, to make room: a container, or a gang as a whole.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The task, or that of a gang's rank 0: its end is the end of all.
    pub(crate) task: TaskId,
    /// All tasks that end then.
    pub(crate) tasks: Vec<TaskId>,
    pub(crate) function: FunctionId,
    pub(crate) idle_ms: u64,
}

impl Candidate {
    pub(crate) fn new(state: &State, task: TaskId, function: FunctionId, idle_ms: u64) -> Self {
        Self { task, tasks: ends_with(state, task), function, idle_ms }
    }
}

/// Returns the tasks that end when one does: that one, or all of its gang.
pub(crate) fn ends_with(state: &State, task: TaskId) -> Vec<TaskId> {
    state.gang(task).map_or_else(|| vec![task], |(_, gang)| gang.tasks.clone())
}

/// For whom room is made: a function, what each of its containers needs, and where they may be. It is one container, or a gang.
pub(crate) type Wants<'a> = (FunctionId, &'a Resources, &'a Placement);

/// Returns all tasks that end with some candidates.
fn tasks_of<'a>(candidates: impl IntoIterator<Item = &'a Candidate>) -> Vec<TaskId> {
    candidates.into_iter().flat_map(|candidate| candidate.tasks.iter().copied()).collect()
}

/// All nodes.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    places: BTreeMap<NodeId, Place>,
    /// How many tasks of a function keep a core busy with their start, wherever.
    starting: BTreeMap<FunctionId, usize>,
}

/// What came of looking for a place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taking {
    /// This one.
    Taken(Taken),
    /// There is room, but each node that has it starts as many containers as it has cores.
    Starting,
    /// There is none.
    Full,
}

/// For so long a task that has not asked for work counts as busy with its start, in milliseconds. What takes longer
/// loads a model or waits for a network, and is no reason for others to wait.
const STARTING_MS: u64 = 10_000;

/// Returns how many containers a node starts at a time: more than it has cores would only slow each other down, and what
/// made them wanted may be done by the first.
fn starts_max(place: &Place) -> usize {
    place.capacity.cpu_milli.div_ceil(1000).max(2) as usize
}

impl Room {
    pub(crate) fn new(state: &State, load: &Load, now: Timestamp) -> Self {
        let place = |id: &NodeId, node: &shoal_state::model::Node| {
            let capacity = node.capacity;
            let free = Free {
                cpu_milli: capacity.cpu_milli,
                memory_bytes: capacity.memory_bytes,
                disk_bytes: disk_of(&capacity),
                gpus: (0..capacity.gpus).collect(),
            };
            let refuses = match id {
                _ if load.down.contains(id) => Some(Obstacle::Down),
                _ if load.doubtful.contains(id) => Some(Obstacle::Silent),
                _ => node.draining.then_some(Obstacle::Drains),
            };
            let (name, boot, soon) = (node.name.clone(), node.boot, free.clone());
            Place {
                name,
                boot,
                capacity,
                starting: 0,
                soon,
                free,
                refuses,
                labels: node.labels.clone(),
                kinds: kinds(state, *id),
                tasks: BTreeMap::new(),
            }
        };
        let mut places: BTreeMap<NodeId, Place> = state.nodes.iter().map(|(id, node)| (*id, place(id, node))).collect();
        let mut starting: BTreeMap<FunctionId, usize> = BTreeMap::new();
        for (id, task) in &state.tasks {
            let Some(place) = places.get_mut(&task.node) else { continue };
            let young = now.0.saturating_sub(task.created.0) < STARTING_MS;
            if young && task.boot == place.boot && task.stopping.is_none() && !load.asked.contains(id) {
                place.starting += 1;
                *starting.entry(task.function).or_default() += 1;
            }
            take_held(&mut place.free, &task.resources, &task.gpus);
            if task.stopping.is_none() && task.boot == place.boot && !load.gives_way(state, *id) {
                take_held(&mut place.soon, &task.resources, &task.gpus);
            }
            *place.tasks.entry(task.function).or_default() += 1;
        }
        Self { places, starting }
    }

    /// Takes the best place that has room now.
    ///
    /// CPU work is spread: the node whose CPU is the least used afterwards, and one without GPUs if there is one. GPU
    /// work is packed: the node with the fewest GPUs left over, so that whole nodes stay free for large requests.
    pub(crate) fn take(&mut self, function: FunctionId, needs: &Resources, placement: &Placement) -> Taking {
        let able: Vec<_> =
            self.places.iter().filter(|(_, place)| place.may_have(placement) && place.fits(&place.free, needs, placement)).collect();
        let calm = able.iter().filter(|(_, place)| place.starting < starts_max(place));
        let best = calm.filter_map(|(id, place)| Some((score(place, function, needs, placement)?, **id))).min();
        let Some((_, best)) = best else { return if able.is_empty() { Taking::Full } else { Taking::Starting } };
        self.take_at(best, function, needs, placement).map_or(Taking::Full, Taking::Taken)
    }

    fn take_at(&mut self, node: NodeId, function: FunctionId, needs: &Resources, placement: &Placement) -> Option<Taken> {
        let place = self.places.get_mut(&node)?;
        let gpus = place.allocate(&place.free, needs, placement)?.gpus;
        place.starting += 1;
        *self.starting.entry(function).or_default() += 1;
        place.take_soon(needs, placement);
        *place.tasks.entry(function).or_default() += 1;
        place.free.take(needs, &gpus);
        Some(Taken { node, boot: place.boot, gpus })
    }

    /// Says whether another gang of a function may start beside those of its own that do: no more of their containers than all nodes start
    /// at a time. Others' starts are no reason to wait: a gang that waited for a calm moment on all of its nodes might wait for ever.
    pub(crate) fn is_calm_for_gang(&self, function: FunctionId, placement: &Placement) -> bool {
        let starting = self.starting.get(&function).copied().unwrap_or_default();
        let may = self.places.values().filter(|place| place.may_have(placement));
        starting == 0 || starting + placement.at_once() as usize <= may.map(starts_max).sum()
    }

    /// Takes places for all containers of a gang, or none; then it says for how many there are some.
    pub(crate) fn take_gang(&mut self, function: FunctionId, needs: &Resources, placement: &Placement) -> Result<Vec<Taken>, u32> {
        let mut with = self.clone();
        let mut taken = Vec::new();
        for fits in 0..placement.at_once() {
            let able = with.places.iter().filter(|(_, place)| place.may_have(placement) && place.fits(&place.free, needs, placement));
            let best = able.filter_map(|(id, place)| Some((score(place, function, needs, placement)?, *id))).min();
            let (_, best) = best.ok_or(fits)?;
            taken.push(with.take_at(best, function, needs, placement).ok_or(fits)?);
        }
        *self = with;
        Ok(taken)
    }

    /// Promises a gang what tasks that stop will free; returns one of its nodes.
    fn promise_gang(&mut self, function: FunctionId, needs: &Resources, placement: &Placement) -> Option<NodeId> {
        let mut later = self.clone();
        for place in later.places.values_mut() {
            place.free = place.soon.clone();
        }
        let taken = later.take_gang(function, needs, placement).ok()?;
        for taken in &taken {
            if let Some(place) = self.places.get_mut(&taken.node) {
                place.take_soon(needs, placement);
            }
        }
        taken.first().map(|taken| taken.node)
    }

    /// Chooses what is to end so that a container, or a whole gang, will fit, and none without which it would; returns a node, and the
    /// task of each. The room is promised. `None` when the end of all candidates would not help.
    pub(crate) fn evict(&mut self, state: &State, wants: Wants<'_>, candidates: &[Candidate]) -> Option<(NodeId, Vec<TaskId>)> {
        match wants.2.gang {
            Some(_) => self.evict_for_gang(state, wants, candidates),
            None => self.evict_for_one(state, wants, candidates),
        }
    }

    fn evict_for_gang(
        &mut self,
        state: &State,
        (function, needs, placement): Wants<'_>,
        all: &[Candidate],
    ) -> Option<(NodeId, Vec<TaskId>)> {
        let with = |room: &Self, chosen: &[&Candidate]| {
            let mut room = room.clone();
            room.stop(state, &tasks_of(chosen.iter().copied()));
            room.promise_gang(function, needs, placement).map(|node| (room, node))
        };
        let all: Vec<&Candidate> = all.iter().collect();
        // The more of them end the more fits, so the first that are enough are found by halves.
        with(self, &all)?;
        let numbers: Vec<usize> = (1..=all.len()).collect();
        let enough = numbers.partition_point(|count| with(self, &all[..*count]).is_none()) + 1;
        let mut chosen = all[..enough.min(all.len())].to_vec();
        for candidate in chosen.clone() {
            let fewer: Vec<&Candidate> = chosen.iter().copied().filter(|other| other.task != candidate.task).collect();
            if with(self, &fewer).is_some() {
                chosen = fewer;
            }
        }
        let (room, node) = with(self, &chosen)?;
        *self = room;
        Some((node, chosen.iter().map(|candidate| candidate.task).collect()))
    }

    /// Says how many containers all nodes that may have them could hold, were they empty.
    pub(crate) fn holds(&self, needs: &Resources, placement: &Placement) -> u64 {
        let may = self.places.values().filter(|place| placement.obstacle(&place.labels).is_none());
        may.map(|place| held_by(place, needs, placement)).sum()
    }

    /// Promises what tasks that stop will free; returns the node.
    fn promise_one(&mut self, needs: &Resources, placement: &Placement) -> Option<NodeId> {
        let (id, place) =
            self.places.iter_mut().find(|(_, place)| place.may_have(placement) && place.fits(&place.soon, needs, placement))?;
        place.take_soon(needs, placement);
        Some(*id)
    }

    /// As [`Self::evict`], for one container: the fewest, then those that come first.
    fn evict_for_one(
        &mut self,
        state: &State,
        (_, needs, placement): Wants<'_>,
        candidates: &[Candidate],
    ) -> Option<(NodeId, Vec<TaskId>)> {
        let choose = |(id, place): (&NodeId, &Place)| {
            let mut soon = place.soon.clone();
            let mut chosen = Vec::new();
            for (number, candidate) in candidates.iter().enumerate() {
                if place.fits(&soon, needs, placement) {
                    break;
                }
                let of = candidate.tasks.iter().filter_map(|task| state.tasks.get(task));
                let here: Vec<_> = of.filter(|task| task.node == *id).collect();
                if here.is_empty() {
                    continue;
                }
                here.into_iter().for_each(|task| soon.give(&task.resources, &task.gpus));
                chosen.push(number);
            }
            (place.may_have(placement) && place.fits(&soon, needs, placement)).then_some((chosen.len(), *id, chosen))
        };
        let (_, node, chosen) = self.places.iter().filter_map(choose).min()?;
        let chosen: Vec<&Candidate> = chosen.into_iter().map(|number| &candidates[number]).collect();
        self.stop(state, &tasks_of(chosen.iter().copied()));
        self.places.get_mut(&node)?.take_soon(needs, placement);
        Some((node, chosen.into_iter().map(|candidate| candidate.task).collect()))
    }

    /// Promises what tasks that stop will free, to a container or to all of a gang; returns the node, or one of them.
    pub(crate) fn promise(&mut self, (function, needs, placement): Wants<'_>) -> Option<NodeId> {
        if placement.gang.is_some() { self.promise_gang(function, needs, placement) } else { self.promise_one(needs, placement) }
    }

    /// Notes that tasks are going to stop.
    pub(crate) fn stop(&mut self, state: &State, tasks: &[TaskId]) {
        for task in tasks.iter().filter_map(|task| state.tasks.get(task)) {
            if let Some(place) = self.places.get_mut(&task.node) {
                place.soon.give(&task.resources, &task.gpus);
            }
        }
    }

    pub(crate) fn name(&self, node: NodeId) -> String {
        self.places.get(&node).map_or_else(|| node.to_string(), |place| place.name.clone())
    }

    /// Says for each node what is in the way.
    pub(crate) fn obstacles(&self, needs: &Resources, placement: &Placement) -> Vec<(String, Obstacle)> {
        let of = |place: &Place| {
            place.obstacle(placement).or_else(|| place.lacks(&place.free, needs, placement)).map(|obstacle| (place.name.clone(), obstacle))
        };
        self.places.values().filter_map(of).collect()
    }

    /// Says how much each node that may have it has when it is empty.
    pub(crate) fn capacities(&self, placement: &Placement) -> Vec<(String, Resources)> {
        self.places
            .values()
            .filter(|place| placement.obstacle(&place.labels).is_none())
            .map(|place| (place.name.clone(), place.capacity))
            .collect()
    }

    /// True when a node that may have it has GPUs of a choice.
    pub(crate) fn have_gpus(&self, placement: &Placement) -> bool {
        let may = |place: &&Place| placement.obstacle(&place.labels).is_none();
        self.places.values().filter(may).any(|place| shoal_gpu::fits(&placement.gpus, &place.kinds))
    }

    /// True when no node could ever hold this, however empty it were.
    pub(crate) fn never_fits(&self, needs: &Resources, placement: &Placement) -> bool {
        let could = |place: &Place| {
            let has = place.capacity;
            placement.obstacle(&place.labels).is_none()
                && needs.cpu_milli <= has.cpu_milli
                && needs.memory_bytes <= has.memory_bytes
                && needs.disk_bytes <= disk_of(&has)
                && (if placement.gpus.is_empty() { needs.gpus <= has.gpus } else { shoal_gpu::fits(&placement.gpus, &place.kinds) })
        };
        !self.places.values().any(could)
    }
}

/// Returns the disk that a node has for containers, in bytes; one that does not say is taken to have enough.
pub(crate) fn disk_of(capacity: &Resources) -> u64 {
    if capacity.disk_bytes == 0 { u64::MAX } else { capacity.disk_bytes }
}

/// Says how many containers all nodes on which they may run could hold, were they empty.
pub fn holds(state: &State, needs: &Resources, placement: &Placement) -> u64 {
    Room::new(state, &Load::default(), Timestamp(0)).holds(needs, &placement.within(state))
}

/// Says how many containers fit in so much.
fn held_by(place: &Place, needs: &Resources, placement: &Placement) -> u64 {
    let capacity = &place.capacity;
    let mut free: BTreeSet<u32> = (0..capacity.gpus).collect();
    let mut by_gpus = 0;
    while !placement.gpus.is_empty()
        && let Some(found) = shoal_gpu::allocate(&placement.gpus, &place.kinds, &free).filter(|found| !found.gpus.is_empty())
    {
        free.retain(|gpu| !found.gpus.contains(gpu));
        by_gpus += 1;
    }
    if placement.gpus.iter().any(|choice| choice.count == 0) {
        by_gpus = u64::MAX;
    }
    let times = |has: u64, needs: u64| has.checked_div(needs).unwrap_or(u64::MAX);
    times(capacity.cpu_milli.into(), needs.cpu_milli.into())
        .min(times(capacity.memory_bytes, needs.memory_bytes))
        .min(times(disk_of(capacity), needs.disk_bytes))
        .min(if placement.gpus.is_empty() { times(capacity.gpus.into(), needs.gpus.into()) } else { by_gpus })
        .min(u64::from(u32::MAX))
}

fn take_held(free: &mut Free, held: &Resources, gpus: &[u32]) {
    free.cpu_milli = free.cpu_milli.saturating_sub(held.cpu_milli);
    free.memory_bytes = free.memory_bytes.saturating_sub(held.memory_bytes);
    free.disk_bytes = free.disk_bytes.saturating_sub(held.disk_bytes);
    free.gpus.retain(|gpu| !gpus.contains(gpu));
}

/// The choice of GPUs and how well it is served, GPUs left over, CPU left over, containers of the function.
type Score = ((usize, usize), usize, Reverse<u64>, u32);

/// Returns of which kinds the GPUs of a node are.
fn kinds(state: &State, node: NodeId) -> Vec<Kind> {
    state.gpus.get(&node).into_iter().flatten().map(|kind| Kind::new(kind)).collect()
}

/// Lower is better. Integers only, so that every leader chooses alike.
fn score(place: &Place, function: FunctionId, needs: &Resources, placement: &Placement) -> Option<Score> {
    let found = place.allocate(&place.free, needs, placement)?;
    let gpus_left = place.free.gpus.len().saturating_sub(found.gpus.len());
    let gpus = if !found.gpus.is_empty() { gpus_left } else { usize::from(place.capacity.gpus > 0) };
    let left = u64::from(place.free.cpu_milli.saturating_sub(needs.cpu_milli));
    let left_permille = left * 1000 / u64::from(place.capacity.cpu_milli.max(1));
    Some(((found.choice, found.rank), gpus, Reverse(left_permille), place.tasks.get(&function).copied().unwrap_or_default()))
}
