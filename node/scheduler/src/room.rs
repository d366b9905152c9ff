//! What nodes have free: filter, then score.

mod evict;
mod place;

use std::collections::BTreeMap;

use shoal_state::model::Resources;
use shoal_state::{BootId, FunctionId, NodeId, State, Timestamp};

pub(crate) use self::evict::{Candidate, ends_with};
pub(crate) use self::place::{Free, disk_of};
use self::place::{Place, held_by, kinds, score, starts_max};
use crate::Load;
use crate::placement::Placement;
use crate::why::Obstacle;

/// A place that was taken for a task.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) node: NodeId,
    pub(crate) boot: BootId,
    pub(crate) gpus: Vec<u32>,
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
            place.free.take(&task.resources, &task.gpus);
            if task.stopping.is_none() && task.boot == place.boot && !load.gives_way(state, *id) {
                place.soon.take(&task.resources, &task.gpus);
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

    /// Says how many containers all nodes that may have them could hold, were they empty.
    pub(crate) fn holds(&self, needs: &Resources, placement: &Placement) -> u64 {
        let may = self.places.values().filter(|place| placement.obstacle(&place.labels).is_none());
        may.map(|place| held_by(place, needs, placement)).sum()
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

/// Says how many containers all nodes on which they may run could hold, were they empty.
pub fn holds(state: &State, needs: &Resources, placement: &Placement) -> u64 {
    Room::new(state, &Load::default(), Timestamp(0)).holds(needs, &placement.within(state))
}
