//! One node: what is free there, whether something fits, and how well.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use shoal_gpu::{Allocation, Kind};
use shoal_state::model::Resources;
use shoal_state::{BootId, FunctionId, NodeId, State};

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
    pub(super) fn obstacle(&self, needs: &Resources) -> Option<Obstacle> {
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
    pub(super) fn take(&mut self, needs: &Resources, gpus: &[u32]) {
        self.cpu_milli = self.cpu_milli.saturating_sub(needs.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_sub(needs.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(needs.disk_bytes);
        self.gpus.retain(|gpu| !gpus.contains(gpu));
    }

    pub(super) fn give(&mut self, held: &Resources, gpus: &[u32]) {
        self.cpu_milli = self.cpu_milli.saturating_add(held.cpu_milli);
        self.memory_bytes = self.memory_bytes.saturating_add(held.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(held.disk_bytes);
        self.gpus.extend(gpus);
    }
}

#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) boot: BootId,
    pub(super) capacity: Resources,
    pub(super) free: Free,
    /// How many tasks keep a core busy with their start.
    pub(super) starting: usize,
    /// What is free once the tasks that stop have ended, less what was promised of it.
    pub(super) soon: Free,
    pub(super) refuses: Option<Obstacle>,
    pub(super) labels: Labels,
    /// Of which kind its GPUs are.
    pub(super) kinds: Vec<Kind>,
    pub(super) tasks: BTreeMap<FunctionId, u32>,
}

impl Place {
    pub(super) fn obstacle(&self, placement: &Placement) -> Option<Obstacle> {
        self.refuses.or_else(|| placement.obstacle(&self.labels))
    }

    /// Picks GPUs of those that are free; none when they are too few. What is not said in words is a number of any kind.
    pub(super) fn allocate(&self, free: &Free, needs: &Resources, placement: &Placement) -> Option<Allocation> {
        if !placement.gpus.is_empty() {
            return shoal_gpu::allocate(&placement.gpus, &self.kinds, &free.gpus);
        }
        let gpus: Vec<u32> = free.gpus.iter().copied().take(needs.gpus as usize).collect();
        (gpus.len() == needs.gpus as usize).then_some(Allocation { choice: 0, rank: 0, gpus })
    }

    /// Returns the first thing that there is too little of.
    pub(super) fn lacks(&self, free: &Free, needs: &Resources, placement: &Placement) -> Option<Obstacle> {
        free.obstacle(needs).or_else(|| {
            let free_gpus = u32::try_from(free.gpus.len()).unwrap_or(u32::MAX);
            let none = self.allocate(free, needs, placement).is_none();
            none.then_some(Obstacle::Gpus { needs: needs.gpus, free: free_gpus })
        })
    }

    pub(super) fn fits(&self, free: &Free, needs: &Resources, placement: &Placement) -> bool {
        self.lacks(free, needs, placement).is_none()
    }

    /// Takes room out of what will be free.
    pub(super) fn take_soon(&mut self, needs: &Resources, placement: &Placement) {
        let gpus = self.allocate(&self.soon, needs, placement).map(|found| found.gpus).unwrap_or_default();
        self.soon.take(needs, &gpus);
    }

    pub(super) fn may_have(&self, placement: &Placement) -> bool {
        self.obstacle(placement).is_none()
    }
}

/// Returns how many containers a node starts at a time: more than it has cores would only slow each other down, and what
/// made them wanted may be done by the first.
pub(super) fn starts_max(place: &Place) -> usize {
    place.capacity.cpu_milli.div_ceil(1000).max(2) as usize
}

/// Returns the disk that a node has for containers, in bytes; one that does not say is taken to have enough.
pub(crate) fn disk_of(capacity: &Resources) -> u64 {
    if capacity.disk_bytes == 0 { u64::MAX } else { capacity.disk_bytes }
}

/// Says how many containers fit in so much.
pub(super) fn held_by(place: &Place, needs: &Resources, placement: &Placement) -> u64 {
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

/// The choice of GPUs and how well it is served, GPUs left over, CPU left over, containers of the function.
pub(super) type Score = ((usize, usize), usize, Reverse<u64>, u32);

/// Returns of which kinds the GPUs of a node are.
pub(super) fn kinds(state: &State, node: NodeId) -> Vec<Kind> {
    state.gpus.get(&node).into_iter().flatten().map(|kind| Kind::new(kind)).collect()
}

/// Lower is better. Integers only, so that every leader chooses alike.
pub(super) fn score(place: &Place, function: FunctionId, needs: &Resources, placement: &Placement) -> Option<Score> {
    let found = place.allocate(&place.free, needs, placement)?;
    let gpus_left = place.free.gpus.len().saturating_sub(found.gpus.len());
    let gpus = if !found.gpus.is_empty() { gpus_left } else { usize::from(place.capacity.gpus > 0) };
    let left = u64::from(place.free.cpu_milli.saturating_sub(needs.cpu_milli));
    let left_permille = left * 1000 / u64::from(place.capacity.cpu_milli.max(1));
    Some(((found.choice, found.rank), gpus, Reverse(left_permille), place.tasks.get(&function).copied().unwrap_or_default()))
}
