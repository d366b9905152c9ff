//! Stories about calls: requests, what is written, who is answered what, in simulated time.

use std::collections::BTreeMap;

use bytes::Bytes;
use shoal_calls::calls::record::Record;
use shoal_calls::calls::rules::{Answer, Effect, Request, Rules};
use shoal_calls::calls::state::CallsState;
use shoal_calls::calls::*;
use shoal_state::{CallId, FunctionId, InputId, ShardId, TaskId};
use shoal_stories::{Line, World};

/// One node with one shard. What is written counts as written at once, as synced when `sync` says so.
struct Node {
    rules: Rules,
    now: u64,
    log: Vec<(u64, Logged)>,
    synced: usize,
    names: BTreeMap<String, String>,
    inputs: BTreeMap<String, InputId>,
    serves: BTreeMap<TaskId, FunctionId>,
    asked: u64,
    tickets: BTreeMap<u64, String>,
}

#[derive(Clone)]
enum Logged {
    Record(Record, Bytes),
    Drop(CallId),
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

/// A pool of no shard that is at home elsewhere.
fn anyones() -> FunctionId {
    FunctionId::from_random(0)
}

impl Default for Node {
    fn default() -> Self {
        let mut rules = Rules::new();
        rules.enter(0, shard(), CallsState::default(), 1);
        let (names, inputs, serves, tickets) = Default::default();
        let mut node = Self { rules, now: 0, log: vec![], synced: 0, names, inputs, serves, asked: 0, tickets };
        node.rules.handle(0, 0, Request::ReportsComplete { shards: ShardId::all().collect() });
        node.rules.take_effects();
        node
    }
}

fn bits(word: &str) -> u128 {
    word[1..].parse().expect("a letter and a number")
}

impl Node {
    fn call(&mut self, word: &str) -> CallId {
        let call = CallId::in_shard(shard(), bits(word));
        self.names.insert(call.to_string(), word.to_owned());
        call
    }

    fn function(&mut self, word: &str) -> FunctionId {
        let function = FunctionId::from_random(bits(word));
        self.names.insert(function.to_string(), word.to_owned());
        function
    }

    fn task(&mut self, word: &str) -> TaskId {
        let task = TaskId::from_random(bits(word));
        self.names.insert(task.to_string(), word.to_owned());
        task
    }

    fn input(&self, word: &str) -> InputId {
        *self.inputs.get(word).unwrap_or_else(|| panic!("no input is called {word}"))
    }

    fn open(&mut self, line: &Line<'_>) -> Request {
        let function = self.function(line.plain[1]);
        let policy = Policy {
            retries: line.number("retries", 0) as u32,
            initial_delay_ms: line.number("delay", 0),
            max_delay_ms: line.number("max_delay", 0),
            backoff_permille: line.number("backoff", 1000) as u32,
            timeout_ms: line.number("timeout", 0),
            sync_client_retries: line.has("client_retries"),
        };
        Request::Open(OpenCall {
            call: self.call(line.plain[0]),
            function,
            pool: line.text("pool").map_or(function, |pool| self.function(pool)),
            kind: if line.has("map") { CallKind::Map } else { CallKind::Unary },
            invocation: if line.has("async") { Invocation::Async } else { Invocation::Sync },
            parent: line.text("parent").map(|input| Parent { input: self.input(input), task: None }),
            created_ms: self.now,
            policy,
        })
    }

    fn put(&mut self, line: &Line<'_>) -> Request {
        let items = line.plain[2..].iter().map(|idx| {
            let idx = idx.parse().expect("a number");
            NewInput { idx, payload: Bytes::from(format!("payload {idx}")) }
        });
        let items = items.collect();
        Request::Put { call: self.call(line.plain[0]), items, key: line.plain[1].to_owned() }
    }

    fn outcome(&self, line: &Line<'_>) -> Outcome {
        let status = match line.plain[2] {
            "success" => Status::Success,
            "failed" => Status::Failed,
            "terminated" => Status::Terminated,
            "platform" => Status::Platform,
            other => panic!("{other} is no status"),
        };
        let result = Bytes::from(line.text("result").unwrap_or_default().to_owned());
        let retry_count = line.number("try", 0) as u32;
        Outcome { input: self.input(line.plain[1]), retry_count, status, result }
    }

    /// A task serves the pool that it leased from last; `f1` when it never did.
    fn finish(&mut self, line: &Line<'_>) -> Request {
        let task = self.task(line.plain[0]);
        let pool = self.serves.get(&task).copied().unwrap_or_else(|| self.function("f1"));
        Request::Finish { from: Some((task, pool)), outcomes: vec![self.outcome(line)] }
    }

    fn lease(&mut self, line: &Line<'_>) -> Request {
        let (task, pool) = (self.task(line.plain[0]), self.function(line.plain[1]));
        self.serves.insert(task, pool);
        Request::Lease(LeaseRequest {
            pool,
            task,
            max: line.number("max", 1) as u32,
            wait_ms: line.number("wait", 0),
            linger_ms: line.number("linger", 0),
            key: line.text("key").map_or_else(|| format!("key {}", self.asked), str::to_owned),
        })
    }

    fn request(&mut self, line: &Line<'_>) -> Request {
        let plain = &line.plain;
        let result = Bytes::from(line.text("result").unwrap_or_default().to_owned());
        match line.verb {
            "open" => self.open(line),
            "put" => self.put(line),
            "finish_inputs" => Request::FinishInputs { call: self.call(plain[0]) },
            "retry" => {
                let retry_count = line.number("try", 0) as u32;
                let item = RetryInput { input: self.input(plain[0]), retry_count, payload: result };
                Request::Retry { items: vec![item], key: plain[1].to_owned() }
            }
            "outputs" => Request::Outputs {
                call: self.call(plain[0]),
                after: line.text("after").unwrap_or("0-0").parse().expect("an entry"),
                max: line.number("max", 100) as usize,
                wait_ms: line.number("wait", 0),
                clear: line.has("clear"),
                only: line.text("only").map(|only| only.parse().map(|idx| idx..=idx).expect("a number")),
            },
            "lease" => self.lease(line),
            "undelivered" => Request::Undelivered { task: self.task(plain[0]), key: plain[1].to_owned() },
            "finish" => self.finish(line),
            "lost" if line.has("crashed") => {
                Request::TaskLost { task: self.task(plain[0]), pool: anyones(), lost: Lost::Crashed { result } }
            }
            "lost" => Request::TaskLost { task: self.task(plain[0]), pool: anyones(), lost: Lost::Platform { result } },
            "stop" => Request::StopTask { task: self.task(plain[0]), pool: anyones() },
            "fail_pool" => Request::FailPool { pool: self.function(plain[0]), status: Status::InitFailed, result },
            "cancel" => Request::CancelCall { call: self.call(plain[0]) },
            "cancel_input" => Request::CancelInputs { inputs: vec![self.input(plain[0])] },
            "cancel_pool" => Request::CancelPools { pools: vec![self.function(plain[0])] },
            "heartbeat" => Request::HeldCancels { task: self.task(plain[0]), pool: anyones(), wait_ms: line.number("wait", 0) },
            "adopt" => {
                let inputs = plain[2..].iter().map(|input| (self.input(input), line.number("try", 0) as u32)).collect();
                Request::Adopt { task: self.task(plain[0]), pool: self.function(plain[1]), inputs }
            }
            "reports_complete" => Request::ReportsComplete { shards: ShardId::all().collect() },
            "info" => Request::Info { call: self.call(plain[0]) },
            "inputs" => Request::Inputs { call: self.call(plain[0]) },
            "calls_of" => Request::CallsOf { function: self.function(plain[0]) },
            "children" => Request::Children { input: self.input(plain[0]) },
            other => panic!("{other} is no command"),
        }
    }

    /// Takes the effects until there are none, and tells them.
    fn settle(&mut self, told: &mut Vec<String>) {
        loop {
            let effects = self.rules.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::Append { index, record, payload, .. } => {
                        self.name_input(&record);
                        told.push(format!("  {index}: {}", about_record(&record)));
                        self.log.push((index, Logged::Record(record, payload)));
                    }
                    Effect::Drop { index, call, .. } => {
                        told.push(format!("  {index}: dropped {call}"));
                        self.log.push((index, Logged::Drop(call)));
                    }
                    Effect::Answer { ticket, answer } => told.extend(self.tell_answer(ticket, &answer)),
                    of_objects => panic!("no dict or queue was asked for: {of_objects:?}"),
                }
            }
            self.count();
        }
    }

    fn count(&mut self) {
        let index = |count: usize| count.checked_sub(1).map_or(0, |last| self.log[last].0);
        let (written, synced) = (index(self.log.len()), index(self.synced));
        self.rules.counted(self.now, shard(), written, synced);
    }

    fn name_input(&mut self, record: &Record) {
        if let Record::Input { call, input, idx, .. } = record {
            let name = format!("{}.{idx}", self.names[&call.to_string()]);
            self.names.insert(input.to_string(), name.clone());
            self.inputs.insert(name, *input);
        }
    }

    fn tell_answer(&mut self, ticket: u64, answer: &Answer) -> Option<String> {
        let asked = self.tickets.remove(&ticket)?;
        let payload = |index: u64| {
            let logged = self.log.iter().find(|(at, _)| *at == index);
            match logged {
                Some((_, Logged::Record(_, payload))) => String::from_utf8_lossy(payload).into_owned(),
                _ => panic!("record {index} is not there"),
            }
        };
        let answer = match answer {
            Answer::Refused(refused) => format!("refused: {refused}"),
            Answer::Leased(leased) if leased.is_empty() => "nothing".to_owned(),
            Answer::Leased(leased) => {
                let told = leased.iter().map(|at| format!("{} try {} {:?}", at.input, at.retry_count, payload(at.payload)));
                told.collect::<Vec<_>>().join(", ")
            }
            Answer::Outputs(found) => {
                let items = found
                    .items
                    .iter()
                    .map(|at| format!("{} try {} {:?} {:?}, ", at.input, at.retry_count, at.status, payload(at.entry.index)));
                format!("{}last {}, {} unfinished", items.collect::<String>(), found.last, found.unfinished)
            }
            Answer::Infos(infos) => {
                let told = infos.iter().map(|info| {
                    format!("{}: {} of {} unfinished, {} succeeded", info.open.call, info.unfinished, info.inputs, info.ended.succeeded)
                });
                told.collect::<Vec<_>>().join("; ")
            }
            Answer::Inputs(inputs) => {
                let told = inputs.iter().map(|info| format!("{} try {} {:?}", info.input, info.retry_count, info.status));
                told.collect::<Vec<_>>().join("; ")
            }
            other => format!("{other:?}"),
        };
        Some(format!("{asked} => {answer}"))
    }

    /// Starts from the first `count` records of the log.
    fn restart(&mut self, count: usize) {
        self.log.truncate(count);
        self.synced = count;
        let mut state = CallsState::default();
        for (index, logged) in &self.log {
            match logged {
                Logged::Record(record, _) => state.apply(*index, record),
                Logged::Drop(call) => drop(state.forget(*call)),
            }
        }
        self.rules = Rules::new();
        self.tickets.clear();
        let next = self.log.last().map_or(1, |(index, _)| index + 1);
        self.rules.enter(self.now, shard(), state, next);
    }
}

fn about_record(record: &Record) -> String {
    match record {
        Record::Opened(open) => format!("opened {}", open.call),
        Record::Input { input, .. } => format!("put {input}"),
        Record::InputsFinished { call, .. } => format!("inputs of {call} finished"),
        Record::Retried { input, retry_count, due_ms, .. } => format!("{input} begins try {retry_count} at {due_ms}"),
        Record::Outcome { of, status, .. } => {
            let of: Vec<String> = of.iter().map(|(input, retry_count)| format!("{input} try {retry_count}")).collect();
            format!("{} ended {status:?}", of.join(", "))
        }
        Record::Cancelled { call, inputs, .. } if inputs.is_empty() => format!("cancelled {call}"),
        Record::Cancelled { inputs, .. } => format!("cancelled {inputs:?}"),
        Record::Cleared { call, .. } => format!("cleared {call}"),
    }
}

impl World for Node {
    fn run(&mut self, line: &Line<'_>) -> Vec<String> {
        let mut told = Vec::new();
        match line.verb {
            "at" => {
                self.now = line.plain[0].parse().expect("a time");
                self.rules.tick(self.now);
            }
            "sync" => {
                self.synced = self.log.len();
                self.count();
            }
            "restart" => {
                self.restart(self.log.len());
                // Else the other members have to say first what they have.
                if !line.has("unconfirmed") {
                    self.count();
                }
            }
            "confirmed" => self.count(),
            "power_cut" => {
                self.restart(self.synced);
                self.count();
            }
            "load" => {
                let function = self.function(line.plain[0]);
                let load = self.rules.load().pools.get(&function).copied().unwrap_or_default();
                told.push(format!("{load:?}"));
            }
            _ => {
                self.asked += 1;
                let ticket = self.asked;
                let shown: Vec<&str> = std::iter::once(line.verb).chain(line.plain.first().copied()).collect();
                self.tickets.insert(ticket, shown.join(" "));
                let request = self.request(line);
                self.rules.handle(self.now, ticket, request);
                self.settle(&mut told);
                if self.tickets.contains_key(&ticket) {
                    told.push(format!("{} waits", shown.join(" ")));
                }
            }
        }
        self.settle(&mut told);
        let mut told = told.join("\n");
        for (id, name) in &self.names {
            told = told.replace(id, name);
        }
        told.lines().map(str::to_owned).collect()
    }
}

#[test]
fn calls_behave_as_the_stories_say() {
    shoal_stories::check::<Node>(&crate::golden("calls"), 8);
}
