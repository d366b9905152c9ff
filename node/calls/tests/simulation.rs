//! Calls under faults, in simulated time, from a seed: requests that are repeated, tasks that vanish, records that count late, restarts
//! of the process and of the machine.
//!
//! What must hold (each has a `check_…` below): what was acknowledged survives; an input has one output for each try; a
//! reader's cursor skips nothing; no input is given to two live tasks, nor twice to one; everything ends.
//!
//! `SIMULATION_SEED=n cargo test -p shoal-calls --test simulation` replays one; `SIMULATION_SEEDS=n` runs that many.

mod dice;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use shoal_calls::calls::record::Record;
use shoal_calls::calls::rules::{Answer, Effect, Request, Rules};
use shoal_calls::calls::state::CallsState;
use shoal_calls::calls::*;
use shoal_state::{CallId, FunctionId, InputId, ShardId, TaskId};

use dice::Dice;

#[derive(Clone)]
enum Logged {
    Record(Record, Bytes),
    Drop(CallId),
}

/// What an unanswered request was about.
#[derive(Clone)]
enum Asked {
    Open(CallId),
    Put(CallId),
    Finish(TaskId, Outcome),
    Cancel(CallId),
    Lease(TaskId, String),
    Read(CallId, Entry),
    Heartbeat(TaskId),
    Other,
}

struct Called {
    open: OpenCall,
    acked: bool,
    cancelled: bool,
    keys: u64,
    /// Inputs that were acknowledged.
    inputs: BTreeSet<InputId>,
    /// Where the one reader stands that reads on and on, and what it was given.
    cursor: Entry,
    given: BTreeMap<InputId, (u32, Entry)>,
}

#[derive(Default)]
struct Seen {
    /// The output of an input's try, as anyone saw it first.
    outputs: HashMap<(InputId, u32), (Entry, Bytes)>,
    /// Tries whose outcome was acknowledged.
    ended: BTreeSet<(InputId, u32)>,
    /// Which key gave an input's try to a task.
    leased: HashMap<(TaskId, InputId, u32), String>,
}

struct World {
    seed: u64,
    dice: Dice,
    now: u64,
    rules: Rules,
    log: Vec<(u64, Logged)>,
    next: u64,
    written: usize,
    synced: usize,
    asked: HashMap<u64, Asked>,
    tickets: u64,
    calls: BTreeMap<CallId, Called>,
    tasks: BTreeMap<TaskId, BTreeMap<InputId, u32>>,
    last_lease: BTreeMap<TaskId, String>,
    made: u64,
    /// Cancelled inputs that their tasks end next.
    ended_later: Vec<(TaskId, InputId, u32)>,
    seen: Seen,
}

fn shard() -> ShardId {
    ShardId::new(3).unwrap()
}

fn pool(number: u64) -> FunctionId {
    FunctionId::from_random(number.into())
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rules = Rules::new();
        rules.enter(1_000, shard(), CallsState::default(), 1);
        Self {
            seed,
            dice: Dice::new(seed),
            now: 1_000,
            rules,
            log: vec![],
            next: 1,
            written: 0,
            synced: 0,
            asked: HashMap::new(),
            tickets: 0,
            calls: BTreeMap::new(),
            tasks: BTreeMap::new(),
            last_lease: BTreeMap::new(),
            made: 0,
            ended_later: vec![],
            seen: Seen::default(),
        }
    }

    fn ask(&mut self, asked: Asked, request: Request) {
        self.tickets += 1;
        self.asked.insert(self.tickets, asked);
        self.rules.handle(self.now, self.tickets, request);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let effects = self.rules.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Append { index, record, payload, .. } => self.write(index, Logged::Record(record, payload)),
                    Effect::Drop { index, call, .. } => self.write(index, Logged::Drop(call)),
                    Effect::Answer { ticket, answer } => {
                        let asked = self.asked.remove(&ticket).expect("a request is answered once");
                        self.answered(asked, answer);
                    }
                    of_objects => panic!("seed {}: no dict or queue was asked for: {of_objects:?}", self.seed),
                }
            }
        }
    }

    fn write(&mut self, index: u64, logged: Logged) {
        assert_eq!(index, self.next, "seed {}: the rules know the next index", self.seed);
        self.next += 1;
        if let Logged::Drop(call) = &logged {
            self.calls.remove(call);
        }
        self.log.push((index, logged));
    }

    /// Lets records count, some or all of those that do not yet.
    fn count(&mut self, all: bool) {
        let more = |dice: &mut Dice, from: usize, to: usize| match all {
            true => to,
            false => from + dice.below((to - from) as u64 + 1) as usize,
        };
        self.written = more(&mut self.dice, self.written, self.log.len());
        self.synced = if self.dice.chance(2) || all { more(&mut self.dice, self.synced, self.written) } else { self.synced };
        let index = |count: usize| count.checked_sub(1).map_or(0, |last| self.log[last].0);
        let (written, synced) = (index(self.written), index(self.synced));
        self.rules.counted(self.now, shard(), written, synced);
        self.settle();
    }

    fn payload(&self, index: u64) -> Bytes {
        let at = self.log.binary_search_by_key(&index, |(at, _)| *at).expect("an answer names a record that is there");
        match &self.log[at].1 {
            Logged::Record(_, payload) => payload.clone(),
            Logged::Drop(_) => panic!("seed {}: record {index} has no payload", self.seed),
        }
    }

    fn answered(&mut self, asked: Asked, answer: Answer) {
        let seed = self.seed;
        match (asked, answer) {
            (Asked::Open(call), Answer::Done) => self.called(call).acked = true,
            (Asked::Put(call), Answer::Put(put)) => self.called(call).inputs.extend(put.iter().map(|put| put.input)),
            (Asked::Cancel(call), Answer::Cancelled(_)) => self.called(call).cancelled = true,
            // What was told to end, and was not cancelled, runs again.
            (Asked::Finish(_, outcome), Answer::Done) if outcome.status == Status::Terminated => {}
            (Asked::Finish(_, outcome), Answer::Done) => drop(self.seen.ended.insert((outcome.input, outcome.retry_count))),
            (Asked::Lease(task, key), Answer::Leased(leased)) => {
                for at in leased {
                    self.check_lease(task, &key, at.input, at.retry_count);
                    assert_eq!(self.payload(at.payload), at.idx.to_string(), "seed {seed}: the payload is the input's own");
                    if let Some(running) = self.tasks.get_mut(&task) {
                        running.insert(at.input, at.retry_count);
                    }
                }
            }
            (Asked::Lease(task, _), Answer::Stop) => drop(self.tasks.remove(&task)),
            (Asked::Heartbeat(task), Answer::HeldCancels(inputs)) => {
                for input in inputs {
                    let attempt = self.tasks.get_mut(&task).and_then(|running| running.remove(&input));
                    if let Some(attempt) = attempt {
                        self.ended_later.push((task, input, attempt));
                    }
                }
            }
            (Asked::Read(call, from), Answer::Outputs(found)) => {
                for at in &found.items {
                    self.check_output(at.input, at.retry_count, at.entry);
                }
                let called = self.calls.get_mut(&call).expect("it is there");
                assert!(found.last >= from, "seed {seed}: a cursor only moves forward");
                if from == called.cursor {
                    called.cursor = found.last;
                    for at in &found.items {
                        called.given.insert(at.input, (at.retry_count, at.entry));
                    }
                }
            }
            (Asked::Open(call) | Asked::Put(call) | Asked::Cancel(call) | Asked::Read(call, _), Answer::Refused(refused)) => {
                let known = self.calls.get(&call).is_some_and(|called| called.acked);
                assert!(!known || matches!(refused, Refused::OneInput { .. }), "seed {seed}: {call} is there, not: {refused}");
            }
            (_, _) => {}
        }
    }

    fn called(&mut self, call: CallId) -> &mut Called {
        self.calls.get_mut(&call).expect("a call that was asked about")
    }

    /// No input is given to two live tasks, nor twice to one except as the answer to the same request.
    fn check_lease(&mut self, task: TaskId, key: &str, input: InputId, attempt: u32) {
        let elsewhere = self.tasks.iter().find(|(other, running)| **other != task && running.get(&input) == Some(&attempt));
        assert!(elsewhere.is_none(), "seed {}: {input} try {attempt} goes to {task} while {elsewhere:?} has it", self.seed);
        let before = self.seen.leased.insert((task, input, attempt), key.to_owned());
        assert!(before.is_none_or(|before| before == key), "seed {}: {input} goes to {task} twice", self.seed);
    }

    /// An input's try has one output, for every reader and for ever, and its record counts.
    fn check_output(&mut self, input: InputId, attempt: u32, entry: Entry) {
        let result = self.payload(entry.index);
        let at = self.log.binary_search_by_key(&entry.index, |(at, _)| *at).expect("it is there");
        let durable =
            self.rules.state(shard()).and_then(|state| state.call(state.input(input)?.call).map(|call| call.open.invocation.durable()));
        let counted = if durable == Some(true) { self.synced } else { self.written };
        assert!(at < counted, "seed {}: an output is shown before it counts", self.seed);
        let first = self.seen.outputs.entry((input, attempt)).or_insert((entry, result.clone()));
        assert_eq!(*first, (entry, result), "seed {}: {input} try {attempt} has two outputs", self.seed);
    }

    fn step(&mut self) {
        match self.dice.below(100) {
            0..8 => self.open(),
            8..24 => self.put(),
            24..50 => self.lease(),
            50..72 => self.finish_some(),
            72..82 => self.read(),
            82..85 => self.lose_task(),
            85..87 => self.cancel(),
            87..90 => self.heartbeat(),
            90..92 => self.retry(),
            92..97 => self.pass(),
            97..98 => self.crash(),
            _ => self.count(true),
        }
        self.count(false);
        for (task, input, attempt) in std::mem::take(&mut self.ended_later) {
            self.finish(task, input, attempt, Status::Terminated);
        }
    }

    fn open(&mut self) {
        self.made += 1;
        let known: Vec<CallId> = self.calls.keys().copied().collect();
        if let Some(again) = self.dice.pick(&known).filter(|_| self.dice.0.is_multiple_of(3)) {
            let open = self.calls[&again].open.clone();
            return self.ask(Asked::Open(again), Request::Open(open));
        }
        let call = CallId::derive_in(shard(), &[&self.made.to_le_bytes()]);
        let policy = Policy {
            retries: self.dice.below(3) as u32,
            initial_delay_ms: self.dice.below(2) * 300,
            backoff_permille: 2000,
            timeout_ms: self.dice.below(2) * 5_000,
            ..Policy::default()
        };
        let open = OpenCall {
            call,
            function: pool(self.made % 2),
            pool: pool(self.made % 2),
            kind: if self.dice.chance(3) { CallKind::Unary } else { CallKind::Map },
            invocation: if self.dice.chance(2) { Invocation::Async } else { Invocation::Sync },
            parent: None,
            created_ms: self.now,
            policy,
        };
        let (inputs, given) = (BTreeSet::new(), BTreeMap::new());
        let cursor = Entry::default();
        self.calls.insert(call, Called { open: open.clone(), acked: false, cancelled: false, keys: 0, inputs, cursor, given });
        self.ask(Asked::Open(call), Request::Open(open));
    }

    fn any_call(&mut self) -> Option<CallId> {
        let calls: Vec<CallId> = self.calls.keys().copied().collect();
        self.dice.pick(&calls)
    }

    fn put(&mut self) {
        let Some(call) = self.any_call() else { return };
        let again = self.dice.chance(4);
        let called = self.called(call);
        called.keys += u64::from(!again);
        let (number, unary) = (called.keys.max(1), called.open.kind == CallKind::Unary);
        // The same key always comes with the same inputs.
        let count = if unary { 1 } else { number % 4 + 1 };
        let items = (0..count).map(|at| (number * 10 + at) as u32).map(|idx| NewInput { idx, payload: idx.to_string().into() });
        let request = Request::Put { call, items: items.collect(), key: format!("k{number}") };
        self.ask(Asked::Put(call), request);
    }

    fn lease(&mut self) {
        let tasks: Vec<TaskId> = self.tasks.keys().copied().collect();
        let task = match self.dice.pick(&tasks) {
            Some(task) if tasks.len() > 4 || self.dice.chance(2) => task,
            _ => {
                self.made += 1;
                TaskId::from_random(self.made.into())
            }
        };
        self.lease_for(task);
    }

    fn lease_for(&mut self, task: TaskId) {
        self.tasks.entry(task).or_default();
        self.made += 1;
        let again = self.last_lease.get(&task).cloned().filter(|_| self.dice.0.is_multiple_of(3));
        let key = again.unwrap_or_else(|| self.made.to_string());
        self.last_lease.insert(task, key.clone());
        let request = LeaseRequest {
            pool: pool((task.bits() % 2) as u64),
            task,
            max: self.dice.below(3) as u32 + 1,
            wait_ms: self.dice.below(2) * 500,
            linger_ms: self.dice.below(2) * self.dice.below(50),
            key: key.clone(),
        };
        self.ask(Asked::Lease(task, key), Request::Lease(request));
    }

    fn finish_some(&mut self) {
        let all = self.tasks.iter().flat_map(|(task, running)| running.iter().map(|(input, attempt)| (*task, *input, *attempt)));
        let all: Vec<(TaskId, InputId, u32)> = all.collect();
        let Some((task, input, attempt)) = self.dice.pick(&all) else { return };
        let status = self.dice.pick(&[Status::Success, Status::Success, Status::Failed, Status::TimedOut]).unwrap();
        // Some are brought again, as a container does when the answer was lost.
        if !self.dice.chance(5) {
            self.tasks.get_mut(&task).expect("it has it").remove(&input);
        }
        self.finish(task, input, attempt, status);
    }

    fn finish(&mut self, task: TaskId, input: InputId, retry_count: u32, status: Status) {
        self.made += 1;
        let result = Bytes::from(format!("{task} {} {}", self.made, self.now));
        let outcome = Outcome { input, retry_count, status, result };
        self.bring(task, outcome);
    }

    fn bring(&mut self, task: TaskId, outcome: Outcome) {
        if outcome.status == Status::Terminated {
            // It gives it up, and may get it again when nobody cancelled it.
            self.seen.leased.remove(&(task, outcome.input, outcome.retry_count));
        }
        let from = Some((task, pool((task.bits() % 2) as u64)));
        let request = Request::Finish { from, outcomes: vec![outcome.clone()] };
        self.ask(Asked::Finish(task, outcome), request);
    }

    fn read(&mut self) {
        let Some(call) = self.any_call() else { return };
        let cursor = self.calls[&call].cursor;
        let after = if self.dice.chance(3) { Entry::default() } else { cursor };
        let (max, wait_ms) = (self.dice.below(4) as usize + 1, self.dice.below(2) * 400);
        self.ask(Asked::Read(call, after), Request::Outputs { call, after, max, wait_ms, clear: false, only: None });
    }

    fn lose_task(&mut self) {
        let tasks: Vec<TaskId> = self.tasks.keys().copied().collect();
        let Some(task) = self.dice.pick(&tasks) else { return };
        self.tasks.remove(&task);
        let result = Bytes::from_static(b"lost");
        let lost = if self.dice.chance(3) { Lost::Crashed { result } } else { Lost::Platform { result } };
        self.ask(Asked::Other, Request::TaskLost { task, pool: pool(0), lost });
    }

    fn cancel(&mut self) {
        let Some(call) = self.any_call() else { return };
        self.ask(Asked::Cancel(call), Request::CancelCall { call });
    }

    fn heartbeat(&mut self) {
        let tasks: Vec<TaskId> = self.tasks.keys().copied().collect();
        let Some(task) = self.dice.pick(&tasks) else { return };
        let wait_ms = self.dice.below(2) * 1_000;
        self.ask(Asked::Heartbeat(task), Request::HeldCancels { task, pool: pool(0), wait_ms });
    }

    fn retry(&mut self) {
        let Some(call) = self.any_call() else { return };
        let inputs: Vec<InputId> = self.calls[&call].inputs.iter().copied().collect();
        let Some(input) = self.dice.pick(&inputs) else { return };
        let key = format!("r{}", self.dice.below(3));
        let item = RetryInput { input, retry_count: 0, payload: Bytes::new() };
        self.ask(Asked::Other, Request::Retry { items: vec![item], key });
    }

    fn pass(&mut self) {
        self.now += self.dice.below(400);
        self.rules.tick(self.now);
        self.settle();
    }

    /// The process ends, and all that is written survives; or another member is promoted, which has all that counts and perhaps
    /// more; or the machine restarts, and what is synced survives and perhaps more. Containers may live on in the first case.
    fn crash(&mut self) {
        let kind = self.dice.below(3);
        let machine = kind == 2;
        let least = [self.log.len(), self.written, self.synced][kind as usize];
        let keep = least + self.dice.below((self.log.len() - least) as u64 + 1) as usize;
        self.log.truncate(keep);
        self.next = self.log.last().map_or(0, |(index, _)| *index) + 1 + u64::from(machine) * 1_000_000;
        (self.written, self.synced) = (keep, keep);
        let asked = std::mem::take(&mut self.asked);
        for (task, input, attempt) in std::mem::take(&mut self.ended_later) {
            self.tasks.entry(task).or_default().insert(input, attempt);
        }
        let state = self.rebuild();
        self.check_survivors(&state, machine);
        self.rules = Rules::new();
        self.rules.enter(self.now, shard(), state, self.next);
        let last = self.log.last().map_or(0, |(index, _)| *index);
        self.rules.counted(self.now, shard(), last, last);
        if kind == 0 && self.dice.chance(2) {
            self.tasks_live_on(asked);
        } else {
            self.tasks.clear();
        }
        self.ask(Asked::Other, Request::ReportsComplete { shards: vec![shard()] });
    }

    /// Tasks say what they run, and what they have no answer about; then they bring that again.
    fn tasks_live_on(&mut self, asked: HashMap<u64, Asked>) {
        let mut asked: Vec<(u64, Asked)> = asked.into_iter().collect();
        asked.sort_by_key(|(ticket, _)| *ticket);
        let mut again = Vec::new();
        for (_, asked) in asked {
            if let Asked::Finish(task, outcome) = asked
                && self.tasks.contains_key(&task)
            {
                again.push((task, outcome));
            }
        }
        for (task, running) in self.tasks.clone() {
            let unanswered = again.iter().filter(|(of, _)| *of == task);
            let unanswered = unanswered.map(|(_, outcome)| (outcome.input, outcome.retry_count));
            let inputs = running.into_iter().chain(unanswered).collect();
            self.ask(Asked::Other, Request::Adopt { task, pool: pool((task.bits() % 2) as u64), inputs });
        }
        for (task, outcome) in again {
            self.bring(task, outcome);
        }
    }

    fn rebuild(&self) -> CallsState {
        let mut state = CallsState::default();
        for (index, logged) in &self.log {
            match logged {
                Logged::Record(record, _) => state.apply(*index, record),
                Logged::Drop(call) => drop(state.forget(*call)),
            }
        }
        state
    }

    /// What was acknowledged is there: of async calls always, of sync calls unless the machine restarted.
    fn check_survivors(&mut self, state: &CallsState, machine: bool) {
        let seed = self.seed;
        let may_lose = |called: &Called| machine && !called.open.invocation.durable();
        for (id, called) in &mut self.calls {
            if may_lose(called) {
                let there = |input: &InputId| state.input(*input).is_some();
                called.inputs.retain(there);
                called.acked &= state.call(*id).is_some();
                called.cancelled &= state.call(*id).is_some_and(|call| call.cancelled);
                let has = |input: &InputId| state.input(*input).and_then(|input| input.output).map(|(entry, _)| entry);
                called.given.retain(|input, (_, entry)| has(input) == Some(*entry));
                let of_call = |input: &InputId| state.input(*input).is_none_or(|input| input.call == *id);
                self.seen.outputs.retain(|(input, _), (entry, _)| !of_call(input) || has(input) == Some(*entry));
                self.seen.ended.retain(|(input, _)| !of_call(input));
                continue;
            }
            assert!(!called.acked || state.call(*id).is_some(), "seed {seed}: call {id} was acknowledged and is lost");
            for input in &called.inputs {
                assert!(state.input(*input).is_some(), "seed {seed}: input {input} was acknowledged and is lost");
            }
            let cancelled = state.call(*id).is_some_and(|call| call.cancelled);
            assert!(!called.cancelled || cancelled, "seed {seed}: the cancellation of {id} is lost");
        }
        for (input, attempt) in &self.seen.ended {
            let Some(known) = state.input(*input) else { continue };
            let over = known.retry_count > *attempt || known.output.is_some();
            let sync = state.call(known.call).is_some_and(|call| !call.open.invocation.durable());
            // Outcomes of tries that never were are acknowledged and dropped.
            assert!(over || (machine && sync) || *attempt > known.retry_count, "seed {seed}: an outcome of {input} is lost");
        }
    }

    /// Everything ends once tasks work and nothing fails, and the reader with the cursor has all of it.
    fn check_everything_ends(&mut self) {
        self.count(true);
        for round in 0..4_000 {
            self.now += 500;
            self.rules.tick(self.now);
            self.settle();
            self.count(true);
            let running: Vec<(TaskId, InputId, u32)> =
                self.tasks.iter().flat_map(|(task, running)| running.iter().map(|(input, attempt)| (*task, *input, *attempt))).collect();
            for (task, input, attempt) in running {
                self.tasks.get_mut(&task).expect("it has it").remove(&input);
                self.finish(task, input, attempt, Status::Success);
            }
            for (task, input, attempt) in std::mem::take(&mut self.ended_later) {
                self.finish(task, input, attempt, Status::Terminated);
            }
            for number in 0..2 {
                self.lease_for(TaskId::from_random(1_000_000_000 + number));
            }
            let calls: Vec<CallId> = self.calls.keys().copied().collect();
            for call in calls {
                let after = self.calls[&call].cursor;
                let request = Request::Outputs { call, after, max: 100, wait_ms: 0, clear: false, only: None };
                self.ask(Asked::Read(call, after), request);
            }
            let state = self.rules.state(shard()).expect("it is at home");
            if round > 100 && state.inputs().all(|(_, input)| input.output.is_some()) {
                break;
            }
        }
        self.check_all_given();
    }

    fn check_all_given(&mut self) {
        let state = self.rules.state(shard()).expect("it is at home");
        for (input, known) in state.inputs() {
            let (entry, _) =
                known.output.unwrap_or_else(|| panic!("seed {}: {input} never ends: {known:?}; {:?}", self.seed, self.rules.load()));
            let Some(called) = self.calls.get(&known.call) else { continue };
            let given = called.given.get(&input);
            assert_eq!(given, Some(&(known.retry_count, entry)), "seed {}: a cursor skipped {input}", self.seed);
        }
        assert!(self.rules.load().pools.values().all(|load| load.waiting + load.delayed + load.running == 0));
    }
}

fn run(seed: u64) {
    let mut world = World::new(seed);
    for _ in 0..600 {
        world.step();
    }
    world.check_everything_ends();
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn calls_keep_their_promises_under_faults() {
    if let Some(seed) = number("SIMULATION_SEED") {
        return run(seed);
    }
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(150) {
        run(seed);
    }
}
