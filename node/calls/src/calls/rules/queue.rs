//! Pools: which inputs wait, which tasks wait for them, and who gets what.
//!
//! Inputs are served in the order in which they were put. An input keeps its place in that order through a lost task and a
//! retry, so it then stands before younger ones. Of the tasks that wait, the one with the fewest inputs is served, and of these the
//! one that asked last: the others may become idle enough to be stopped.

use std::collections::{BTreeMap, BTreeSet};

use shoal_state::{FunctionId, InputId, ShardId, TaskId};

use super::{Answer, Due, LeasedAt, Rules, Ticket, TimerKey};
use crate::calls::info::{InputStatus, PoolLoad};
use crate::calls::model::{LeaseRequest, Millis, Status};
use crate::calls::refused::Refused;

/// Where an input without an output stands.
///
/// Small, as most inputs of many wait: what only few need is apart.
#[derive(Debug)]
pub(super) enum Place {
    /// Inherited, or new while reports are waited for; a task may turn out to run it.
    Held { order: u64 },
    /// For a task.
    Waiting { order: u64 },
    /// For the time of its next try.
    Delayed(Box<Delayed>),
    /// At a task.
    Running(Box<Running>),
}

/// An input that waits for its next try.
#[derive(Debug)]
pub(super) struct Delayed {
    order: u64,
    timer: TimerKey,
    due_ms: Millis,
}

/// An input at a task.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) order: u64,
    pub(super) task: TaskId,
    pub(super) since_ms: Millis,
    timeout: Option<TimerKey>,
    /// Set once the input is cancelled.
    pub(super) backstop: Option<TimerKey>,
}

impl Place {
    pub(super) fn order(&self) -> u64 {
        match self {
            Self::Held { order } | Self::Waiting { order } => *order,
            Self::Delayed(delayed) => delayed.order,
            Self::Running(running) => running.order,
        }
    }

    /// Returns where an input stands that a task may turn out to run.
    pub(super) fn unclaimed(&self, is_late: bool) -> Option<u64> {
        match self {
            Self::Held { order } => Some(*order),
            Self::Waiting { order } => (!is_late).then_some(*order),
            Self::Delayed(_) | Self::Running(_) => None,
        }
    }

    pub(super) fn status(&self) -> InputStatus {
        match self {
            Self::Held { .. } | Self::Waiting { .. } => InputStatus::Waiting,
            Self::Delayed(delayed) => InputStatus::Delayed { due_ms: delayed.due_ms },
            Self::Running(running) => InputStatus::Running { task: running.task, since_ms: running.since_ms },
        }
    }
}

/// The inputs of one function.
#[derive(Debug, Default)]
pub(super) struct Pool {
    waiting: BTreeMap<u64, InputId>,
    held: BTreeMap<u64, InputId>,
    delayed: BTreeSet<InputId>,
    running: u32,
    parked: BTreeSet<Ticket>,
    /// How long the latest inputs were running, on a moving average.
    input_ms: Option<Millis>,
}

impl Pool {
    pub(super) fn waiting_count(&self) -> usize {
        self.waiting.len() + self.held.len() + self.delayed.len()
    }

    /// Takes in how long an input was running: the latest count the most.
    fn ran(&mut self, took_ms: Millis) {
        self.input_ms = Some(self.input_ms.map_or(took_ms, |average| (3 * average + took_ms) / 4));
    }

    fn is_empty(&self) -> bool {
        self.waiting_count() == 0 && self.running == 0 && self.parked.is_empty()
    }

    /// Returns the inputs that no task has.
    pub(super) fn idle(&self) -> Vec<InputId> {
        self.waiting.values().chain(self.held.values()).chain(&self.delayed).copied().collect()
    }
}

/// A task's request for inputs that waits for some.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) request: LeaseRequest,
    timer: TimerKey,
    linger: Linger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linger {
    NotBegun,
    Until(TimerKey),
    Over,
}

impl Rules {
    pub(super) fn pool_load(&self, pool: &Pool) -> PoolLoad {
        let oldest = pool.waiting.values().chain(pool.held.values()).next();
        PoolLoad {
            waiting: count(pool.waiting.len() + pool.held.len()),
            delayed: count(pool.delayed.len()),
            running: pool.running,
            oldest_waiting_ms: oldest.and_then(|input| self.known(*input)).map(|(_, input, _)| input.due_ms),
            parked: count(pool.parked.len()),
            input_ms: pool.input_ms,
        }
    }

    pub(super) fn new_order(&mut self) -> u64 {
        self.next_place += 1;
        self.next_place
    }

    /// Places an input where it waits for reports.
    pub(super) fn hold(&mut self, input: InputId, order: Option<u64>) {
        let Some(pool) = self.known(input).map(|(_, _, call)| call.open.pool) else { return };
        let order = order.unwrap_or_else(|| self.new_order());
        self.load_changed = true;
        self.pools.entry(pool).or_default().held.insert(order, input);
        self.places.insert(input, Place::Held { order });
    }

    /// Places an input where it waits for a task, or for its time first. The caller serves the pool afterwards.
    pub(super) fn enqueue(&mut self, now: Millis, input: InputId, order: Option<u64>) {
        let Some((_, known, call)) = self.known(input) else { return };
        let (due_ms, pool) = (known.due_ms, call.open.pool);
        let order = order.unwrap_or_else(|| self.new_order());
        let pool = self.pools.entry(pool).or_default();
        self.load_changed = true;
        let place = if due_ms > now {
            pool.delayed.insert(input);
            Place::Delayed(Box::new(Delayed { order, timer: self.timers.set(due_ms, Due::Retry(input)), due_ms }))
        } else {
            self.woken |= pool.waiting.is_empty() && pool.parked.is_empty();
            pool.waiting.insert(order, input);
            Place::Waiting { order }
        };
        self.places.insert(input, place);
    }

    /// Takes an input from where it stands, and returns where that was.
    pub(super) fn unplace(&mut self, now: Millis, input: InputId, pool: FunctionId) -> Option<Place> {
        let place = self.places.remove(&input)?;
        self.load_changed = true;
        let queue = self.pools.entry(pool).or_default();
        match &place {
            Place::Held { order } => drop(queue.held.remove(order)),
            Place::Waiting { order } => drop(queue.waiting.remove(order)),
            Place::Delayed(delayed) => {
                queue.delayed.remove(&input);
                self.timers.unset(delayed.timer);
            }
            Place::Running(running) => {
                queue.running -= 1;
                queue.ran(now.saturating_sub(running.since_ms));
                for timer in running.timeout.iter().chain(&running.backstop) {
                    self.timers.unset(*timer);
                }
                if let Some(task) = self.tasks.get_mut(&running.task) {
                    task.done_with(now, input);
                }
            }
        }
        self.tidy(pool);
        Some(place)
    }

    fn tidy(&mut self, pool: FunctionId) {
        if self.pools.get(&pool).is_some_and(Pool::is_empty) {
            self.pools.remove(&pool);
        }
    }

    /// Marks an input as running at a task.
    pub(super) fn start(&mut self, now: Millis, input: InputId, order: u64, task: TaskId) {
        let Some((_, _, call)) = self.known(input) else { return };
        let (pool, timeout_ms) = (call.open.pool, call.open.policy.timeout_ms);
        let at = now.saturating_add(timeout_ms).saturating_add(super::TIMEOUT_GRACE_MS);
        let timeout = (timeout_ms > 0).then(|| self.timers.set(at, Due::Timeout(input)));
        let running = Running { order, task, since_ms: now, timeout, backstop: None };
        self.places.insert(input, Place::Running(Box::new(running)));
        self.pools.entry(pool).or_default().running += 1;
        self.task_mut(now, task).begins(input);
        self.load_changed = true;
    }

    /// Sets the time at which a cancelled running input is ended without its task. Returns the task.
    pub(super) fn set_backstop(&mut self, now: Millis, input: InputId) -> Option<TaskId> {
        let Some(Place::Running(running)) = self.places.get_mut(&input) else { return None };
        if running.backstop.is_none() {
            running.backstop = Some(self.timers.set(now + super::CANCEL_GRACE_MS, Due::CancelBackstop(input)));
        }
        Some(running.task)
    }

    pub(super) fn lease(&mut self, now: Millis, ticket: Ticket, request: LeaseRequest) -> Result<(), Refused> {
        let (task, pool) = (request.task, request.pool);
        self.pool_is_here(pool)?;
        if self.ended.contains(task) || self.tasks.get(&task).is_some_and(|task| task.stopping) {
            self.answer(ticket, Answer::Stop);
            return Ok(());
        }
        self.task_mut(now, task).pool = Some(pool);
        let again = self.leased_before(task, &request.key);
        if !again.is_empty() {
            self.answer(ticket, Answer::Leased(again));
            return Ok(());
        }
        self.replace_parked(&request);
        let wait_ms = request.wait_ms;
        let timer = self.timers.set(now.saturating_add(wait_ms), Due::Lease(ticket));
        self.parked.insert(ticket, Parked { request, timer, linger: Linger::NotBegun });
        self.pools.entry(pool).or_default().parked.insert(ticket);
        self.load_changed = true;
        self.serve(now, pool);
        if wait_ms == 0 {
            self.lease_late(ticket);
        }
        Ok(())
    }

    /// Answers an earlier request of the same task with the same key: its connection is gone.
    fn replace_parked(&mut self, request: &LeaseRequest) {
        let same = |parked: &Parked| parked.request.task == request.task && parked.request.key == request.key;
        let parked = self.pools.get(&request.pool).map(|pool| &pool.parked);
        let earlier = parked.and_then(|parked| parked.iter().copied().find(|ticket| same(&self.parked[ticket])));
        if let Some(earlier) = earlier {
            self.lease_late(earlier);
        }
    }

    /// Answers a request for inputs with none, if it still waits.
    pub(super) fn lease_late(&mut self, ticket: Ticket) {
        if self.unpark(ticket).is_some() {
            self.answer(ticket, Answer::Leased(Vec::new()));
        }
    }

    pub(super) fn unpark(&mut self, ticket: Ticket) -> Option<LeaseRequest> {
        let parked = self.parked.remove(&ticket)?;
        self.timers.unset(parked.timer);
        if let Linger::Until(timer) = parked.linger {
            self.timers.unset(timer);
        }
        if let Some(pool) = self.pools.get_mut(&parked.request.pool) {
            pool.parked.remove(&ticket);
        }
        self.tidy(parked.request.pool);
        self.load_changed = true;
        Some(parked.request)
    }

    pub(super) fn lingered(&mut self, now: Millis, ticket: Ticket) {
        let Some(parked) = self.parked.get_mut(&ticket) else { return };
        parked.linger = Linger::Over;
        let pool = parked.request.pool;
        self.serve(now, pool);
    }

    /// Gives waiting inputs to waiting tasks.
    pub(super) fn serve(&mut self, now: Millis, pool: FunctionId) {
        while let Some(ticket) = self.next_served(now, pool) {
            let Some(request) = self.unpark(ticket) else { return };
            let Some(queue) = self.pools.get_mut(&pool) else { return };
            let max = request.max.max(1) as usize;
            let task = self.tasks.get(&request.task);
            let may_have = |id: &InputId| task.is_none_or(|task| task.may_have(now, *id));
            let taken: Vec<(u64, InputId)> =
                queue.waiting.iter().filter(|(_, id)| may_have(id)).take(max).map(|(order, id)| (*order, *id)).collect();
            for (order, input) in &taken {
                queue.waiting.remove(order);
                self.places.remove(input);
            }
            for (order, input) in &taken {
                self.start(now, *input, *order, request.task);
            }
            let leased: Vec<LeasedAt> = taken.iter().filter_map(|(_, input)| self.leased_at(*input)).collect();
            let tries = leased.iter().map(|at| (at.input, at.retry_count)).collect();
            self.task_mut(now, request.task).remember(request.key, tries);
            self.answer(ticket, Answer::Leased(leased));
        }
    }

    /// Chooses the waiting request that is served next; begins the wait of those that want fuller batches.
    fn next_served(&mut self, now: Millis, pool: FunctionId) -> Option<Ticket> {
        let queue = self.pools.get(&pool)?;
        let waiting = queue.waiting.len();
        if waiting == 0 {
            return None;
        }
        let mut best = None;
        for ticket in &queue.parked {
            let Some(parked) = self.parked.get_mut(ticket) else { continue };
            let Parked { request, linger, .. } = parked;
            if request.linger_ms > 0 && waiting < request.max as usize && *linger != Linger::Over {
                if *linger == Linger::NotBegun {
                    *linger = Linger::Until(self.timers.set(now.saturating_add(request.linger_ms), Due::Linger(*ticket)));
                }
                continue;
            }
            let task = self.tasks.get(&request.task);
            if task.is_some_and(|task| !queue.waiting.values().any(|input| task.may_have(now, *input))) {
                continue;
            }
            let busy = task.map_or(0, |task| task.running_count());
            let rank = (busy, std::cmp::Reverse(*ticket));
            if best.is_none_or(|best| rank < best) {
                best = Some(rank);
            }
        }
        best.map(|(_, ticket)| ticket.0)
    }

    pub(super) fn leased_at(&self, input: InputId) -> Option<LeasedAt> {
        let (_, known, call) = self.known(input)?;
        Some(LeasedAt {
            call: known.call,
            input,
            idx: known.idx,
            retry_count: known.retry_count,
            invocation: call.open.invocation,
            function: call.open.function,
            payload: known.payload,
        })
    }

    /// Lets the next try of an input begin.
    pub(super) fn retry_due(&mut self, now: Millis, input: InputId) {
        let Some(pool) = self.known(input).map(|(_, _, call)| call.open.pool) else { return };
        if let Some(Place::Delayed(delayed)) = self.places.get(&input) {
            let order = delayed.order;
            self.unplace(now, input, pool);
            self.enqueue(now, input, Some(order));
            self.serve(now, pool);
        }
    }

    /// Lets a shard's inherited inputs be leased.
    pub(super) fn release_held(&mut self, now: Millis, shard: ShardId) {
        let Some(home) = self.homes.get_mut(&shard) else { return };
        if let Some(timer) = home.reports.take() {
            self.timers.unset(timer);
        }
        home.let_go.clear();
        self.load_changed = true;
        let held = |(id, place): (&InputId, &Place)| match place {
            Place::Held { order } if id.shard() == Some(shard) => Some((*order, *id)),
            _ => None,
        };
        let mut held: Vec<(u64, InputId)> = self.places.iter().filter_map(held).collect();
        held.sort_unstable();
        let mut pools = BTreeSet::new();
        for (order, input) in held {
            let Some((_, known, call)) = self.known(input) else { continue };
            let (pool, id, attempt, cancelled) = (call.open.pool, known.call, known.retry_count, known.cancelled);
            if cancelled {
                self.end_together(now, id, &[(input, attempt)], Status::Terminated, &bytes::Bytes::new());
                continue;
            }
            self.unplace(now, input, pool);
            self.enqueue(now, input, Some(order));
            pools.insert(pool);
        }
        for pool in pools {
            self.serve(now, pool);
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
