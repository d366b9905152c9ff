//! Tasks: what each has, what it was told, how it ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use shoal_state::{FunctionId, InputId, ShardId, TaskId};

use super::beside::Beside;
use super::{Answer, Due, LOST_MAX, LeasedAt, Rules, Ticket, TimerKey};
use crate::calls::info::TaskLoad;
use crate::calls::model::{Lost, Millis, Outcome, Status};
use crate::calls::refused::Refused;

/// How many requests for inputs a task's answers are kept of. A container asks one at a time and repeats at once.
const LEASES_KEPT: usize = 4;

/// A cancellation is told again when there is no outcome after this time. The answer to the heartbeat may have been lost, and a
/// container that was just given the input, and has not begun with it, drops its cancellation. It takes notice once: what the
/// input's own code does about it is not interrupted. Containers ask again a second after they were told.
const TOLD_AGAIN_MS: u64 = 900;

/// How many ended tasks are remembered, to tell latecomers to stop.
const ENDED_KEPT: usize = 10_000;

/// What a task is told of an input that it should not go on with.
#[derive(Debug, Clone, Copy)]
struct Cancel {
    /// When it was told last.
    told_ms: Option<Millis>,
    /// Until when it is told, where it is not sure that it has the input.
    until_ms: Option<Millis>,
}

impl Cancel {
    fn is_over(&self, now: Millis) -> bool {
        self.until_ms.is_some_and(|until| until <= now)
    }
}

/// A task that asked for work. One that ended is kept if it had something: it may live on, taken for lost by mistake.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) pool: Option<FunctionId>,
    running: BTreeSet<InputId>,
    /// The latest keys, each with what it was given: inputs with the number of their try.
    leases: VecDeque<(String, Vec<(InputId, u32)>)>,
    /// What it should not go on with.
    cancels: BTreeMap<InputId, Cancel>,
    /// When it was told last of any.
    told_ms: Option<Millis>,
    heartbeat: Option<(Ticket, TimerKey)>,
    pub(super) stopping: bool,
    idle_since_ms: Option<Millis>,
}

impl Task {
    fn new(now: Millis) -> Self {
        Self {
            pool: None,
            running: BTreeSet::new(),
            leases: VecDeque::new(),
            cancels: BTreeMap::new(),
            told_ms: None,
            heartbeat: None,
            stopping: false,
            idle_since_ms: Some(now),
        }
    }

    /// Returns how busy it is. What it works on besides counts as an input that it has: it is not idle.
    pub(super) fn load(&self, is_beside: bool) -> TaskLoad {
        let idle_since_ms = self.idle_since_ms.filter(|_| !is_beside);
        let running = self.running_count() + u32::from(is_beside);
        TaskLoad { pool: self.pool, running, idle_since_ms, used: !self.leases.is_empty() }
    }

    pub(super) fn idles_from(&mut self, now: Millis) {
        self.idle_since_ms = self.running.is_empty().then_some(now);
    }

    pub(super) fn running_count(&self) -> u32 {
        u32::try_from(self.running.len()).unwrap_or(u32::MAX)
    }

    /// Says whether it may be given an input: it would take another try for the one that it has not let go of yet.
    pub(super) fn may_have(&self, now: Millis, input: InputId) -> bool {
        self.cancels.get(&input).is_none_or(|cancel| cancel.is_over(now))
    }

    pub(super) fn begins(&mut self, input: InputId) {
        self.running.insert(input);
        self.idle_since_ms = None;
    }

    pub(super) fn done_with(&mut self, now: Millis, input: InputId) {
        self.cancels.remove(&input);
        self.running.remove(&input);
        if self.running.is_empty() && self.idle_since_ms.is_none() {
            self.idle_since_ms = Some(now);
        }
    }

    pub(super) fn remember(&mut self, key: String, inputs: Vec<(InputId, u32)>) {
        self.leases.push_back((key, inputs));
        if self.leases.len() > LEASES_KEPT {
            self.leases.pop_front();
        }
    }

    /// Takes the cancellations that it has not been told of, or long ago.
    fn untold(&mut self, now: Millis) -> Vec<InputId> {
        let mut untold = Vec::new();
        self.cancels.retain(|_, cancel| !cancel.is_over(now));
        for (input, cancel) in &mut self.cancels {
            if cancel.told_ms.is_none_or(|at| now >= at + TOLD_AGAIN_MS) {
                cancel.told_ms = Some(now);
                self.told_ms = Some(now);
                untold.push(*input);
            }
        }
        untold
    }
}

/// The tasks that ended last.
#[derive(Debug, Default)]
pub(super) struct Ended {
    order: VecDeque<TaskId>,
    /// Each with the shard of its pool.
    tasks: HashMap<TaskId, Option<ShardId>>,
}

impl Ended {
    pub(super) fn contains(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    /// Forgets those of a shard that leaves. Some may live on, taken for lost by mistake: should the shard come back, their nodes say so.
    fn forget(&mut self, shard: ShardId) {
        let Self { order, tasks } = self;
        tasks.retain(|_, of| *of != Some(shard));
        order.retain(|task| tasks.contains_key(task));
    }

    /// Returns the one that is forgotten for it.
    fn insert(&mut self, task: TaskId, shard: Option<ShardId>) -> Option<TaskId> {
        if self.tasks.insert(task, shard).is_none() {
            self.order.push_back(task);
        }
        let oldest = (self.order.len() > ENDED_KEPT).then(|| self.order.pop_front())??;
        self.tasks.remove(&oldest);
        Some(oldest)
    }
}

impl Rules {
    pub(super) fn task_mut(&mut self, now: Millis, task: TaskId) -> &mut Task {
        self.tasks.entry(task).or_insert_with(|| Task::new(now))
    }

    /// Returns what the task was given for this key before, as far as it still has it.
    pub(super) fn leased_before(&self, task: TaskId, key: &str) -> Vec<LeasedAt> {
        let Some(known) = self.tasks.get(&task) else { return Vec::new() };
        let inputs = known.leases.iter().rev().find(|(of, _)| of == key).map(|(_, inputs)| &inputs[..]);
        let has = |(input, _): &&(InputId, u32)| known.running.contains(input);
        let same_try = |(input, retry_count): &(InputId, u32)| self.leased_at(*input).filter(|at| at.retry_count == *retry_count);
        inputs.unwrap_or_default().iter().filter(has).filter_map(same_try).collect()
    }

    pub(super) fn undelivered(&mut self, now: Millis, ticket: Ticket, task: TaskId, key: &str) -> Result<(), Refused> {
        for leased in self.leased_before(task, key) {
            self.back_in_queue(now, leased.input);
        }
        self.answer(ticket, Answer::Done);
        Ok(())
    }

    /// Says whether a task has reason to leave inputs alone that nobody cancelled: it is to stop, or was told of the cancellation
    /// of another one. Inputs of a batch are cancelled together, and functions that are not async only with their container.
    pub(super) fn is_interrupted(&self, now: Millis, task: TaskId) -> bool {
        let told = |task: &Task| task.told_ms.is_some_and(|at| now <= at + super::CANCEL_GRACE_MS);
        self.tasks.get(&task).is_some_and(|task| task.stopping || told(task))
    }

    /// Notes that a task is done with an input that was taken from it. The next try of it may come to it from then on.
    pub(super) fn has_let_go(&mut self, now: Millis, task: TaskId, input: InputId) {
        let Some(known) = self.tasks.get_mut(&task) else { return };
        if known.cancels.remove(&input).is_some()
            && let Some(pool) = known.pool
        {
            self.serve(now, pool);
        }
    }

    /// Takes back an input that a task was given and does not know of: its answer has no room for it.
    pub fn give_back(&mut self, now: Millis, input: InputId) {
        self.back_in_queue(now, input);
    }

    /// Puts an input that a task has back where it stood in the queue.
    pub(super) fn back_in_queue(&mut self, now: Millis, input: InputId) {
        let Some(pool) = self.known(input).map(|(_, _, call)| call.open.pool) else { return };
        if let Some(place) = self.unplace(now, input, pool) {
            self.enqueue(now, input, Some(place.order()));
            self.serve(now, pool);
        }
    }

    pub(super) fn task_lost(
        &mut self,
        now: Millis,
        ticket: Ticket,
        (task, pool): (TaskId, FunctionId),
        lost: &Lost,
    ) -> Result<(), Refused> {
        self.pool_is_here(pool)?;
        if let Some(oldest) = self.ended.insert(task, pool.shard()) {
            self.forget_task(oldest);
        }
        self.claimed.retain(|_, (by, _)| *by != task);
        self.stop_waiting(task);
        let interrupted = self.is_interrupted(now, task);
        let running = self.tasks.get_mut(&task).map(|known| {
            known.pool = Some(pool);
            std::mem::take(&mut known.running)
        });
        self.load_changed |= running.is_some();
        let may_live = matches!(lost, Lost::Platform { .. });
        let mut needs = Vec::new();
        for input in running.unwrap_or_default() {
            let lost = match lost {
                // A cancellation may end a container that has other inputs: that is no failure of theirs.
                Lost::Crashed { result } if interrupted => &Lost::Platform { result: result.clone() },
                lost => lost,
            };
            let retry_count = self.known(input).map(|(_, known, _)| known.retry_count);
            needs.extend(self.lost_input(now, task, input, lost));
            if let Some(retry_count) = retry_count.filter(|_| may_live) {
                self.works_beside(now, task, input, Beside { retry_count, is_reported: false });
            }
        }
        let is_told = self.tasks.get(&task).is_some_and(|known| !known.cancels.is_empty());
        if !may_live || !is_told && !self.all_beside().contains(&task) {
            self.forget_task(task);
        }
        self.answer_after(ticket, &needs, Answer::Done);
        Ok(())
    }

    fn forget_task(&mut self, task: TaskId) {
        self.heartbeat_late(task);
        self.tasks.remove(&task);
        self.beside.retain(|(_, of), _| *of != task);
    }

    fn lost_input(&mut self, now: Millis, task: TaskId, input: InputId, lost: &Lost) -> Option<super::Needs> {
        let (_, known, _) = self.known(input)?;
        let (retry_count, cancelled) = (known.retry_count, known.cancelled);
        let outcome = |status, result: &Bytes| Outcome { input, retry_count, status, result: result.clone() };
        if cancelled {
            return self.resolve(now, Some(task), outcome(Status::Terminated, &Bytes::new()));
        }
        let result = match lost {
            Lost::Crashed { result } => return self.resolve(now, Some(task), outcome(Status::Failed, result)),
            Lost::Platform { result } => result,
        };
        let times = self.lost.entry(input).or_default();
        *times += 1;
        if *times >= LOST_MAX {
            return self.resolve(now, Some(task), outcome(Status::Platform, result));
        }
        match self.has_beside(input, retry_count) {
            Some(other) => self.goes_to(now, input, other),
            None => self.back_in_queue(now, input),
        }
        None
    }

    /// Gives an input that a lost task had to one that works on it besides.
    fn goes_to(&mut self, now: Millis, input: InputId, task: TaskId) {
        let Some(pool) = self.known(input).map(|(_, _, call)| call.open.pool) else { return };
        if let Some(place) = self.unplace(now, input, pool) {
            self.beside.remove(&(input, task));
            self.start(now, input, place.order(), task);
        }
    }

    /// Tells whatever request of the task waits that there is nothing more to come.
    fn stop_waiting(&mut self, task: TaskId) {
        let mut parked: Vec<Ticket> =
            self.parked.iter().filter(|(_, parked)| parked.request.task == task).map(|(ticket, _)| *ticket).collect();
        parked.sort_unstable();
        for ticket in parked {
            self.unpark(ticket);
            self.answer(ticket, Answer::Stop);
        }
        self.heartbeat_late(task);
    }

    pub(super) fn stop_task(&mut self, now: Millis, ticket: Ticket, task: TaskId, pool: FunctionId) -> Result<(), Refused> {
        self.pool_is_here(pool)?;
        if !self.ended.contains(task) {
            self.task_mut(now, task).stopping = true;
        }
        self.stop_waiting(task);
        self.answer(ticket, Answer::Done);
        Ok(())
    }

    pub(super) fn held_cancels(
        &mut self,
        now: Millis,
        ticket: Ticket,
        (task, pool): (TaskId, FunctionId),
        wait_ms: u64,
    ) -> Result<(), Refused> {
        self.pool_is_here(pool)?;
        self.heartbeat_late(task);
        // One that ended and had nothing is told nothing.
        if self.ended.contains(task) && !self.tasks.contains_key(&task) {
            self.answer(ticket, Answer::HeldCancels(Vec::new()));
            return Ok(());
        }
        let untold = self.task_mut(now, task).untold(now);
        // What it is told of no more it may be given.
        self.serve(now, pool);
        if !untold.is_empty() || wait_ms == 0 {
            self.answer(ticket, Answer::HeldCancels(untold));
            return Ok(());
        }
        let timer = self.timers.set(now.saturating_add(wait_ms), Due::Heartbeat(task));
        self.task_mut(now, task).heartbeat = Some((ticket, timer));
        Ok(())
    }

    pub(super) fn heartbeat_late(&mut self, task: TaskId) {
        let held = self.tasks.get_mut(&task).and_then(|task| task.heartbeat.take());
        if let Some((ticket, timer)) = held {
            self.timers.unset(timer);
            self.answer(ticket, Answer::HeldCancels(Vec::new()));
        }
    }

    /// Tells a task, by its heartbeat, not to go on with an input.
    pub(super) fn tell_cancelled(&mut self, now: Millis, task: TaskId, input: InputId) {
        self.tell_until(now, task, input, None);
    }

    /// As [`Self::tell_cancelled`], until this time.
    pub(super) fn tell_until(&mut self, now: Millis, task: TaskId, input: InputId, until_ms: Option<Millis>) {
        let Some(known) = self.tasks.get_mut(&task) else { return };
        known.cancels.entry(input).or_insert(Cancel { told_ms: None, until_ms });
        let Some((ticket, timer)) = known.heartbeat.take() else { return };
        let untold = known.untold(now);
        self.timers.unset(timer);
        self.answer(ticket, Answer::HeldCancels(untold));
    }

    /// Gives up the tasks whose pool is in a shard that has left: its new home learns of them from their nodes.
    pub(super) fn leave_tasks(&mut self, shard: ShardId) {
        self.ended.forget(shard);
        self.leave_beside(shard);
        self.claimed.retain(|input, _| input.shard() != Some(shard));
        let is_of = |pool: FunctionId| pool.shard() == Some(shard);
        let mut parked: Vec<(Ticket, FunctionId)> = self
            .parked
            .iter()
            .filter(|(_, parked)| is_of(parked.request.pool))
            .map(|(ticket, parked)| (*ticket, parked.request.pool))
            .collect();
        parked.sort_unstable();
        for (ticket, pool) in parked {
            self.unpark(ticket);
            self.answer(ticket, Answer::Refused(self.not_home(shard, format!("function {pool}"))));
        }
        let mut tasks: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| task.pool.is_some_and(is_of)).map(|(task, _)| *task).collect();
        tasks.sort_unstable();
        for task in tasks {
            let held = self.tasks.remove(&task).and_then(|task| task.heartbeat);
            if let Some((ticket, timer)) = held {
                self.timers.unset(timer);
                self.answer(ticket, Answer::Refused(self.not_home(shard, format!("task {task}"))));
            }
        }
    }
}
