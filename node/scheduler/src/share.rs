//! Who has how much of the cluster. Pure.
//!
//! What a function has counts by what it has the most of, as a part of what there is: a function with every GPU and one core in a
//! hundred has all. An app has what its functions have. Where room is scarce, the app that has the least comes first, and within an
//! app the function that has the least.

use std::collections::BTreeMap;

use shoal_state::model::{Resources, Task};
use shoal_state::{AppId, FunctionId, State};

use crate::Load;

/// A part of the cluster, in millionths.
pub(crate) type Share = u64;

const WHOLE: u128 = 1_000_000;

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    cpu_milli: u64,
    memory_bytes: u64,
    gpus: u64,
}

impl Held {
    fn add(&mut self, more: &Resources) {
        self.cpu_milli += u64::from(more.cpu_milli);
        self.memory_bytes += more.memory_bytes;
        self.gpus += u64::from(more.gpus);
    }

    fn without(mut self, less: &Resources) -> Self {
        self.cpu_milli = self.cpu_milli.saturating_sub(less.cpu_milli.into());
        self.memory_bytes = self.memory_bytes.saturating_sub(less.memory_bytes);
        self.gpus = self.gpus.saturating_sub(less.gpus.into());
        self
    }

    fn with(mut self, more: &Resources) -> Self {
        self.add(more);
        self
    }
}

fn larger(one: &Resources, other: &Resources) -> Resources {
    Resources {
        cpu_milli: one.cpu_milli.max(other.cpu_milli),
        memory_bytes: one.memory_bytes.max(other.memory_bytes),
        gpus: one.gpus.max(other.gpus),
        ..Resources::default()
    }
}

/// Returns what containers have together.
pub(crate) fn sum<'a>(held: impl Iterator<Item = &'a Resources>) -> Resources {
    held.fold(Resources::default(), |all, more| Resources {
        cpu_milli: all.cpu_milli.saturating_add(more.cpu_milli),
        memory_bytes: all.memory_bytes.saturating_add(more.memory_bytes),
        gpus: all.gpus.saturating_add(more.gpus),
        ..Resources::default()
    })
}

/// Returns what so many of the same need.
pub(crate) fn times(needs: &Resources, count: u32) -> Resources {
    Resources {
        cpu_milli: needs.cpu_milli.saturating_mul(count),
        memory_bytes: needs.memory_bytes.saturating_mul(count.into()),
        gpus: needs.gpus.saturating_mul(count),
        ..Resources::default()
    }
}

/// What each function and app has: tasks that are to stay.
#[derive(Debug)]
pub(crate) struct Shares {
    all: Held,
    functions: BTreeMap<FunctionId, Held>,
    apps: BTreeMap<AppId, Held>,
}

impl Shares {
    pub(crate) fn new(state: &State, load: &Load) -> Self {
        let mut all = Held::default();
        state.nodes.values().for_each(|node| all.add(&node.capacity));
        let mut shares = Self { all, functions: BTreeMap::new(), apps: BTreeMap::new() };
        for (id, task) in &state.tasks {
            if task.stopping.is_none() && !load.gives_way(state, *id) {
                shares.take(task.function, task.app, &task.resources);
            }
        }
        shares
    }

    /// Notes that a function gets a container more.
    pub(crate) fn take(&mut self, function: FunctionId, app: AppId, resources: &Resources) {
        self.functions.entry(function).or_default().add(resources);
        self.apps.entry(app).or_default().add(resources);
    }

    /// Notes that a task is to go.
    pub(crate) fn give(&mut self, task: &Task) {
        let less = |held: Option<&mut Held>| held.map(|held| *held = held.without(&task.resources));
        less(self.functions.get_mut(&task.function));
        less(self.apps.get_mut(&task.app));
    }

    /// Returns what the app of a function has, and the function itself.
    pub(crate) fn of(&self, function: FunctionId, app: AppId) -> (Share, Share) {
        (self.share(self.app(app)), self.share(self.function(function)))
    }

    /// Says whether a function may have what a container, or a gang, of another one has: it has no more than that one then. That one may
    /// not have it back, so two never take it from each other again and again.
    pub(crate) fn may_take_from(&self, (function, app, needs): (FunctionId, AppId, &Resources), (from, held): (&Task, &Resources)) -> bool {
        let (mine, theirs) =
            if app == from.app { (self.function(function), self.function(from.function)) } else { (self.app(app), self.app(from.app)) };
        let left = theirs.without(&larger(needs, held));
        function != from.function && self.share(mine.with(needs)) <= self.share(left)
    }

    /// Says whether a function that has nothing may take turns with another one, however much it needs: its app has no more than that
    /// one's.
    pub(crate) fn may_take_turns(&self, (function, app): (FunctionId, AppId), from: &Task) -> bool {
        let (mine, theirs) = (self.share(self.app(app)), self.share(self.app(from.app)));
        function != from.function && self.share(self.function(function)) == 0 && (app == from.app || mine <= theirs)
    }

    fn app(&self, app: AppId) -> Held {
        self.apps.get(&app).copied().unwrap_or_default()
    }

    fn function(&self, function: FunctionId) -> Held {
        self.functions.get(&function).copied().unwrap_or_default()
    }

    fn share(&self, held: Held) -> Share {
        let part = |held: u64, all: u64| u128::from(held) * WHOLE / u128::from(all.max(1));
        let most = part(held.cpu_milli, self.all.cpu_milli).max(part(held.memory_bytes, self.all.memory_bytes));
        u64::try_from(most.max(part(held.gpus, self.all.gpus))).unwrap_or(u64::MAX)
    }
}
