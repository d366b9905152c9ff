//! The rules of calls: who gets which input when, and who is told what. Pure, with `now` as an argument.
//!
//! [`Rules`] owns the state of every shard that is at home at this node, and what is no record: the queues of the pools, who has
//! leased what, who waits for what. [`Rules::handle`] takes a [`Request`], [`Rules::tick`] lets time pass,
//! [`Rules::counted`] says that records have become safe; all of them leave [`Effect`]s: records to write, answers to give. The
//! records are applied here at once, in the order in which they will be written, and *nobody sees them* before they count.
//!
//! A request is named by a [`Ticket`]; each gets exactly one answer.

mod adopt;
mod beside;
mod cancel;
mod home;
mod objects;
mod outcome;
mod put;
mod queue;
mod read;
mod retain;
mod tasks;
mod timers;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use shoal_state::{CallId, FunctionId, InputId, NodeId, ShardId, TaskId};

use super::info::Load;
use super::model::{Millis, OpenCall};
use super::record::Record;
use super::refused::Refused;
use super::state::{Call, CallsState, Input};
use beside::Beside;
use home::{Home, Needs};
use queue::{Parked, Place, Pool};
use read::Poll;
pub use retain::{CLEARED_KEPT_MS, RESULTS_KEPT_MS};
use tasks::{Ended, Task};
use timers::{Due, TimerKey, Timers};
pub use words::{Answer, Effect, LeasedAt, OutputAt, OutputsAt, Request, Ticket};

/// How long inherited inputs are held back at most for reports of who still runs them.
pub const REPORTS_WAIT_MS: u64 = 30_000;

/// After so many tasks were lost with it, the platform gives an input up.
pub const LOST_MAX: u32 = 8;

/// How many inputs may wait in one pool, if nothing else is said. More are refused, and clients back off; where none waits, a
/// request is taken whatever it brings.
pub const INPUTS_WAITING_MAX: usize = 1_000_000;

/// How much longer than its timeout a try may take before the backstop ends it: the worker kills at the timeout, and then
/// needs time to say so.
pub const TIMEOUT_GRACE_MS: u64 = 60_000;

/// How long a running input that was cancelled may go on without a word before it gets its output anyway.
pub const CANCEL_GRACE_MS: u64 = 60_000;

/// The calls that are at home at this node.
#[derive(Debug, Default)]
pub struct Rules {
    /// In place of [`INPUTS_WAITING_MAX`].
    waiting_max: Option<usize>,
    homes: BTreeMap<ShardId, Home>,
    /// Where the other shards are, as far as known.
    elsewhere: HashMap<ShardId, NodeId>,
    pools: HashMap<FunctionId, Pool>,
    places: HashMap<InputId, Place>,
    tasks: HashMap<TaskId, Task>,
    ended: Ended,
    /// Tries of inputs without a record that tasks say they run: it was lost with an earlier home, before it counted.
    claimed: HashMap<InputId, (TaskId, u32)>,
    /// Tries that tasks work on besides what they have: few, and mostly none.
    beside: BTreeMap<(InputId, TaskId), Beside>,
    parked: HashMap<Ticket, Parked>,
    polls: HashMap<Ticket, Poll>,
    polls_of: HashMap<CallId, Vec<Ticket>>,
    /// Answers that wait for records to count: how many, and the answer.
    unanswered: HashMap<Ticket, (usize, Answer)>,
    lost: HashMap<InputId, u32>,
    of_function: HashMap<FunctionId, BTreeSet<CallId>>,
    of_pool: HashMap<FunctionId, BTreeSet<CallId>>,
    children: HashMap<InputId, BTreeSet<CallId>>,
    expiring: HashSet<CallId>,
    timers: Timers,
    waits: objects::Waits,
    next_place: u64,
    /// Shards of which something waits for a sync.
    unsynced: BTreeSet<ShardId>,
    effects: Vec<Effect>,
    load_changed: bool,
    woken: bool,
}

impl Rules {
    /// Begins with no shard at home.
    pub fn new() -> Self {
        Self::default()
    }

    /// As [`Self::new`], with another bound than [`INPUTS_WAITING_MAX`].
    pub fn bounded(waiting_max: usize) -> Self {
        Self { waiting_max: Some(waiting_max), ..Self::default() }
    }

    /// Takes a shard that is at home here from now on, with the state that its records gave. `next` is the index of its next record.
    ///
    /// Inputs without an output are held back until [`Request::ReportsComplete`], or for [`REPORTS_WAIT_MS`].
    pub fn enter(&mut self, now: Millis, shard: ShardId, state: CallsState, next: u64) {
        let mut home = Home { state, next, inherited: next.saturating_sub(1), ..Home::default() };
        home.await_outputs();
        if !home.synced.outputs.is_empty() {
            self.unsynced.insert(shard);
        }
        home.reports = Some(self.timers.set(now + REPORTS_WAIT_MS, Due::Reports(shard)));
        for call in home.state.calls() {
            self.of_function.entry(call.open.function).or_default().insert(call.open.call);
            self.of_pool.entry(call.open.pool).or_default().insert(call.open.call);
            if let Some(parent) = call.open.parent {
                self.children.entry(parent.input).or_default().insert(call.open.call);
            }
        }
        let mut inherited: Vec<_> =
            home.state.inputs().filter(|(_, input)| input.output.is_none()).map(|(id, input)| (input.payload, id)).collect();
        inherited.sort();
        let over: Vec<CallId> = home.state.calls().filter(|call| call.unfinished() == 0).map(|call| call.open.call).collect();
        self.homes.insert(shard, home);
        self.elsewhere.remove(&shard);
        for (_, input) in inherited {
            self.hold(input, None);
        }
        for call in over {
            self.plan_expiry(call);
        }
        self.load_changed = true;
    }

    /// Gives up a shard that is not at home here any more. Who waits for it is told.
    pub fn leave(&mut self, now: Millis, shard: ShardId, home: Option<NodeId>) {
        match home {
            Some(node) => self.elsewhere.insert(shard, node),
            None => self.elsewhere.remove(&shard),
        };
        let Some(mut left) = self.homes.remove(&shard) else { return };
        self.unsynced.remove(&shard);
        if let Some(timer) = left.reports {
            self.timers.unset(timer);
        }
        let inputs: Vec<InputId> = left.state.inputs().map(|(id, _)| id).collect();
        for (input, pool) in inputs.into_iter().filter_map(|id| Some((id, pool_of(&left.state, id)?))) {
            self.unplace(now, input, pool);
            self.lost.remove(&input);
        }
        for call in left.state.calls() {
            self.forget_names(&call.open);
            for ticket in self.polls_of.remove(&call.open.call).unwrap_or_default() {
                self.drop_poll(ticket, self.not_home(shard, call.open.call.to_string()));
            }
        }
        self.leave_tasks(shard);
        self.leave_objects(shard, &left.objects);
        for mark in [&mut left.written, &mut left.synced] {
            for ticket in std::mem::take(&mut mark.answers).into_values().flatten() {
                if self.unanswered.remove(&ticket).is_some() {
                    let refused = self.not_home(shard, "what was just written".to_owned());
                    self.answer(ticket, Answer::Refused(refused));
                }
            }
        }
        self.load_changed = true;
    }

    /// Returns the state of a shard that is at home here.
    pub fn state(&self, shard: ShardId) -> Option<&CallsState> {
        self.homes.get(&shard).map(|home| &home.state)
    }

    /// Notes that a shard's log got records of others: its next record has this index.
    pub fn skip_to(&mut self, shard: ShardId, next: u64) {
        if let Some(home) = self.homes.get_mut(&shard) {
            home.next = next;
        }
    }

    /// Handles a request. Its answer comes now or later, as an [`Effect`].
    pub fn handle(&mut self, now: Millis, ticket: Ticket, request: Request) {
        let answered = match request {
            Request::Open(open) => self.open(ticket, open),
            Request::Put { call, items, key } => self.put(now, ticket, call, items, &key),
            Request::OpenWith { open, items, key } => {
                let call = open.call;
                self.opened(open).and_then(|_| self.put(now, ticket, call, items, &key))
            }
            Request::FinishInputs { call } => self.finish_inputs(now, ticket, call),
            Request::Retry { items, key } => self.retry(now, ticket, items, &key),
            Request::Outputs { call, after, max, wait_ms, clear, only } => {
                self.outputs(now, ticket, call, Poll::new(call, after, max, clear, only), wait_ms)
            }
            Request::Lease(request) => self.lease(now, ticket, request),
            Request::Undelivered { task, key } => self.undelivered(now, ticket, task, &key),
            Request::Finish { from, outcomes } => self.finish(now, ticket, from, outcomes),
            Request::TaskLost { task, pool, lost } => self.task_lost(now, ticket, (task, pool), &lost),
            Request::StopTask { task, pool } => self.stop_task(now, ticket, task, pool),
            Request::FailPool { pool, status, result } => self.fail_pool(now, ticket, pool, status, &result),
            Request::CancelCall { call } => self.cancel_call(now, ticket, call),
            Request::CancelInputs { inputs } => self.cancel_inputs(now, ticket, &inputs),
            Request::CancelPools { pools } => self.cancel_pools(now, ticket, &pools),
            Request::HeldCancels { task, pool, wait_ms } => self.held_cancels(now, ticket, (task, pool), wait_ms),
            Request::Adopt { task, pool, inputs } => self.adopt(now, ticket, task, pool, &inputs),
            Request::ReportsComplete { shards } => self.reports_complete(now, ticket, &shards),
            Request::Info { call } => self.info(ticket, call),
            Request::CallOf { input } => self.call_of(ticket, input),
            Request::Inputs { call } => self.inputs(ticket, call),
            Request::CallsOf { function } => self.calls_of(ticket, function),
            Request::Children { input } => self.children_of(ticket, input),
            Request::Object(request) => self.object(now, ticket, request),
        };
        if let Err(refused) = answered {
            self.answer(ticket, Answer::Refused(refused));
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Millis) {
        while let Some(due) = self.timers.take_due(now) {
            match due {
                Due::Poll(ticket) => self.poll_late(now, ticket),
                Due::Lease(ticket) => {
                    // Who waits for a batch gets what there is: its next request would begin to wait anew.
                    self.lingered(now, ticket);
                    self.lease_late(ticket);
                }
                Due::Linger(ticket) => self.lingered(now, ticket),
                Due::Heartbeat(task) => self.heartbeat_late(task),
                Due::Retry(input) => self.retry_due(now, input),
                Due::Timeout(input) => self.timed_out(now, input),
                Due::CancelBackstop(input) => self.cancel_late(now, input),
                Due::Expire(call) => self.expire(now, call),
                Due::Reports(shard) => self.release_held(now, shard),
                Due::Items(ticket) => self.items_late(ticket),
                Due::Objects(shard) => self.objects_due(now, shard),
            }
        }
    }

    /// Returns when [`Self::tick`] has something to do next.
    pub fn next_at(&self) -> Option<Millis> {
        self.timers.next_at()
    }

    /// Notes how far the records of a shard count: gives the answers and shows the outputs that waited for it.
    pub fn counted(&mut self, now: Millis, shard: ShardId, written: u64, synced: u64) {
        for (durable, index) in [(false, written), (true, synced)] {
            let Some(home) = self.homes.get_mut(&shard) else { return };
            let mark = home.mark_mut(durable);
            if index <= mark.index {
                continue;
            }
            mark.index = index;
            let later = mark.answers.split_off(&(index + 1));
            let ready = std::mem::replace(&mut mark.answers, later);
            let shown = mark.outputs.partition_point(|(at, _)| *at <= index);
            let calls: BTreeSet<CallId> = mark.outputs.drain(..shown).map(|(_, call)| call).collect();
            if durable && mark.answers.is_empty() && mark.outputs.is_empty() {
                self.unsynced.remove(&shard);
            }
            for ticket in ready.into_values().flatten() {
                self.one_less(ticket);
            }
            for call in calls {
                self.wake_polls(now, call);
            }
            if durable {
                self.objects_synced(shard);
            }
        }
    }

    /// Says whether something waits for a sync.
    pub fn wants_sync(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Takes what is to be done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Says whether [`Self::load`] would differ from before, and whether a pool without a waiting task got its first input; then
    /// forgets both.
    pub fn take_load_changes(&mut self) -> (bool, bool) {
        (std::mem::take(&mut self.load_changed), std::mem::take(&mut self.woken))
    }

    /// Returns how busy everything is.
    pub fn load(&self) -> Load {
        let pools = self.pools.iter().map(|(id, pool)| (*id, self.pool_load(pool))).collect();
        let beside = self.all_beside();
        let live = self.tasks.iter().filter(|(id, _)| !self.ended.contains(**id));
        let tasks = live.map(|(id, task)| (*id, task.load(beside.contains(id)))).collect();
        let known = self.homes.iter().filter(|(_, home)| home.reports.is_none());
        Load { pools, tasks, homes: known.map(|(shard, _)| *shard).collect() }
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.effects.push(Effect::Answer { ticket, answer });
    }

    /// Answers once all these records count.
    fn answer_after(&mut self, ticket: Ticket, needs: &[Needs], answer: Answer) {
        let mut waits = 0;
        for Needs { shard, index, durable } in needs {
            let Some(home) = self.homes.get_mut(shard) else { continue };
            let mark = home.mark_mut(*durable);
            if *index > mark.index {
                mark.answers.entry(*index).or_default().push(ticket);
                waits += 1;
                if *durable {
                    self.unsynced.insert(*shard);
                }
            }
        }
        match waits {
            0 => self.answer(ticket, answer),
            _ => drop(self.unanswered.insert(ticket, (waits, answer))),
        }
    }

    fn one_less(&mut self, ticket: Ticket) {
        let Some((waits, _)) = self.unanswered.get_mut(&ticket) else { return };
        *waits -= 1;
        if *waits == 0
            && let Some((_, answer)) = self.unanswered.remove(&ticket)
        {
            self.answer(ticket, answer);
        }
    }

    /// Applies a record and leaves it to be written. Returns its index. The shard must be at home here.
    fn append(&mut self, shard: ShardId, record: Record, payload: Bytes) -> u64 {
        let home = self.homes.get_mut(&shard).expect("who appends has looked the call up");
        let index = home.next;
        home.next += 1;
        home.state.apply(index, &record);
        if let Record::Outcome { call, .. } = &record
            && let Some(durable) = home.state.call(*call).map(|call| call.open.invocation.durable())
        {
            home.mark_mut(durable).outputs.push_back((index, *call));
            if durable {
                self.unsynced.insert(shard);
            }
        }
        self.tell_of(&record);
        self.effects.push(Effect::Append { shard, index, record, payload });
        index
    }

    /// Refuses what belongs to the home of a pool, where that is known to be another node.
    fn pool_is_here(&self, pool: FunctionId) -> Result<(), Refused> {
        match pool.shard().filter(|shard| self.elsewhere.contains_key(shard)) {
            Some(shard) => Err(self.not_home(shard, format!("function {pool}"))),
            None => Ok(()),
        }
    }

    fn not_home(&self, shard: ShardId, what: String) -> Refused {
        Refused::NotHome { shard, what, home: self.elsewhere.get(&shard).copied() }
    }

    /// Finds the home of an id that names this shard.
    fn home_of(&self, shard: Option<ShardId>, what: impl Fn() -> String) -> Result<(ShardId, &Home), Refused> {
        let shard = shard.ok_or_else(|| Refused::NoShard { id: what() })?;
        let home = self.homes.get(&shard).ok_or_else(|| self.not_home(shard, what()))?;
        Ok((shard, home))
    }

    fn call(&self, id: CallId) -> Result<(ShardId, &Call), Refused> {
        let (shard, home) = self.home_of(id.shard(), || id.to_string())?;
        Ok((shard, home.state.call(id).ok_or(Refused::NoCall { call: id })?))
    }

    /// Finds an input and its call; none when either is forgotten.
    fn input(&self, id: InputId) -> Result<Option<(ShardId, &Input, &Call)>, Refused> {
        let (shard, home) = self.home_of(id.shard(), || id.to_string())?;
        let Some(input) = home.state.input(id) else { return Ok(None) };
        Ok(home.state.call(input.call).map(|call| (shard, input, call)))
    }

    /// As [`Self::input`], for what is known to be at home here.
    fn known(&self, id: InputId) -> Option<(ShardId, &Input, &Call)> {
        self.input(id).ok().flatten()
    }

    fn forget_names(&mut self, open: &OpenCall) {
        forget_in(&mut self.of_function, open.function, open.call);
        forget_in(&mut self.of_pool, open.pool, open.call);
        if let Some(parent) = open.parent {
            forget_in(&mut self.children, parent.input, open.call);
        }
    }
}

fn forget_in<K: Eq + std::hash::Hash>(map: &mut HashMap<K, BTreeSet<CallId>>, key: K, call: CallId) {
    if let Some(calls) = map.get_mut(&key) {
        calls.remove(&call);
        if calls.is_empty() {
            map.remove(&key);
        }
    }
}

fn pool_of(state: &CallsState, input: InputId) -> Option<FunctionId> {
    let input = state.input(input)?;
    state.call(input.call).map(|call| call.open.pool)
}
