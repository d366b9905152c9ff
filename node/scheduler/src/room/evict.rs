//! Making room: what is to end for others, and who was promised what ends.

use shoal_state::model::Resources;
use shoal_state::{FunctionId, NodeId, State, TaskId};

use super::Room;
use super::place::Place;
use crate::placement::Placement;

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

impl Room {
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

    /// Promises what tasks that stop will free; returns the node.
    fn promise_one(&mut self, needs: &Resources, placement: &Placement) -> Option<NodeId> {
        let (id, place) =
            self.places.iter_mut().find(|(_, place)| place.may_have(placement) && place.fits(&place.soon, needs, placement))?;
        place.take_soon(needs, placement);
        Some(*id)
    }

    /// Notes that tasks are going to stop.
    pub(crate) fn stop(&mut self, state: &State, tasks: &[TaskId]) {
        for task in tasks.iter().filter_map(|task| state.tasks.get(task)) {
            if let Some(place) = self.places.get_mut(&task.node) {
                place.soon.give(&task.resources, &task.gpus);
            }
        }
    }
}
