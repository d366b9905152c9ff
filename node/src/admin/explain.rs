//! Why things are as they are, for `shoal explain`: what each thing does or waits for, with its parts.
//!
//! An [`Explanation`] is made from the state, the load and what this node knows of its tasks, by functions without I/O;
//! the route only fetches these. What the scheduler thinks is its own sentence.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use shoal_calls::calls::{self, CallInfo, CallKind, InputInfo, InputStatus, Status};
use shoal_calls::objects::{ObjectAnswer, ObjectRequest, SILENCE_MAX_MS};
use shoal_runtime::{Disks, Way};
use shoal_scheduler::Load;
use shoal_state::{AppId, CallId, DictId, FunctionId, ImageId, NodeId, ObjectId, QueueId, ShardId, State, TaskId, Timestamp};
use shoal_worker::{Phase, PhaseTime};

use super::lists::find;
use super::undecided::latest_or_known;
use super::{Answer, Failure, check_environment, find_app};
use crate::api::{Api, environment_name, object};
use crate::images::ImageRecord;
use crate::scheduling;
use crate::tasks::{EndedTask, Known};

/// How many inputs of a call, or functions of an app, are told of one by one; the rest is counted.
const PARTS_MAX: usize = 50;

/// What `shoal explain` asks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ExplainWanted {
    /// An id, or the name an app is deployed under.
    pub(crate) of: String,
    /// The environment of the name; empty = the default one.
    pub(crate) environment: String,
}

/// What one thing does, what it waits for and why, with the things it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Explanation {
    /// `app`, `function`, `task`, `call`, `input`, `image`, `dict`, `queue` or `node`.
    pub(crate) kind: String,
    /// Its id.
    pub(crate) id: String,
    /// What people call it; empty when it has no name.
    pub(crate) name: String,
    /// Sentences.
    pub(crate) says: Vec<String>,
    /// What it consists of, or depends on.
    pub(crate) parts: Vec<Explanation>,
}

impl Explanation {
    fn new(kind: &str, id: impl ToString, name: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), id: id.to_string(), name: name.into(), says: vec![], parts: vec![] }
    }

    fn say(&mut self, sentence: impl Into<String>) {
        self.says.push(sentence.into());
    }
}

/// Explains what the request names.
pub(super) async fn explain(Shared(api): Shared<Api>, Json(wanted): Json<ExplainWanted>) -> Answer<Explanation> {
    let state = latest_or_known(&api).await;
    check_environment(&state, &wanted.environment)?;
    let now = api.now();
    let load = scheduling::load(&api, &state, now).await;
    let known = |task: TaskId| api.tasks.get(task);
    let begun = |task: TaskId| {
        let status = api.worker.get().and_then(|worker| worker.container(task));
        status.map_or_else(Begun::default, |status| Begun { phases: status.phases, way: status.way })
    };
    let about = About { state: &state, load: &load, known: &known, begun: &begun, disks: api.engine.disks(), here: api.cluster.node, now };
    let of = wanted.of.as_str();
    let found = if let Ok(id) = of.parse::<FunctionId>() {
        about.function(id)
    } else if let Ok(id) = of.parse::<TaskId>() {
        about.task(id).or_else(|| Some(about.ended(id, &api.tasks.ended(id)?)))
    } else if let Ok(id) = of.parse::<NodeId>() {
        about.node(id)
    } else if let Ok(id) = of.parse::<CallId>() {
        let info = api.calls.info(id).await.map_err(|error| of_call(id, &error))?;
        let inputs = api.calls.inputs(id).await.map_err(|error| of_call(id, &error))?;
        Some(about.call(&info, inputs))
    } else if let Ok(id) = of.parse::<ImageId>() {
        image(&api, &state, id, now).await?
    } else if let Ok(id) = of.parse::<ObjectId>() {
        let counted = object::ask(&api, ObjectRequest::Count { object: id, partition: None }).await;
        let counted = counted.map_err(|error| error.to_string());
        about.object(id, &counted)
    } else {
        let app = find_app(&state, of, &wanted.environment).and_then(|id| about.app(id));
        app.or_else(|| about.node(find(&state, of).ok()?))
    };
    found.map(Json).ok_or_else(|| absent(of))
}

fn absent(of: &str) -> Failure {
    let hint = match of.get(..3) {
        Some(TaskId::PREFIX) => "it ended long ago, or before this node was started last, or never was; `shoal logs` has what it printed",
        Some(AppId::PREFIX) => "there is no app with this id; `shoal app list` shows them",
        Some(ImageId::PREFIX) => "there is no image with this id; `shoal image list` shows them",
        Some(NodeId::PREFIX) => "there is no node with this id; `shoal node list` shows them",
        Some(FunctionId::PREFIX | DictId::PREFIX | QueueId::PREFIX) => "there is none with this id",
        _ => {
            "expected the id of a function (fu-…), task (ta-…), app (ap-…), call (fc-…), image (im-…), dict (di-…), queue (qu-…) or node (no-…), or the name of a deployed app or of a node"
        }
    };
    Failure(StatusCode::NOT_FOUND, format!("cannot explain {of:?}: {hint}"))
}

fn of_call(id: CallId, error: &calls::Error) -> Failure {
    let code = match error {
        calls::Error::Refused(calls::Refused::NotHome { .. }) => StatusCode::SERVICE_UNAVAILABLE,
        calls::Error::Refused(_) => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Failure(code, format!("cannot explain call {id}: {error}"))
}

async fn image(api: &Api, state: &State, id: ImageId, now: Timestamp) -> Result<Option<Explanation>, Failure> {
    let Some(image) = state.images.get(&id) else { return Ok(None) };
    let record: ImageRecord = serde_json::from_slice(&api.definition(&image.record).await?).unwrap_or_default();
    let mut told = Explanation::new("image", id, "");
    let ago = lasted(since(now, image.built.0));
    match image.manifest {
        Some(manifest) => told.say(format!("built {ago} ago; its tree is {manifest}")),
        None => told.say(format!("its build failed {ago} ago: {}", record.failure.as_deref().unwrap_or("nobody wrote down why"))),
    }
    if let Some(python) = &record.metadata.python_version_info {
        told.say(format!("has {python} with {} packages", record.metadata.python_packages.len()));
    }
    Ok(Some(told))
}

/// How a container began.
#[derive(Default)]
struct Begun {
    /// When it came how far.
    phases: Vec<PhaseTime>,
    way: Option<Way>,
}

/// Everything that explanations are made from.
struct About<'a> {
    state: &'a State,
    load: &'a Load,
    known: &'a (dyn Fn(TaskId) -> Option<Known> + Sync),
    /// How a task's container began; nothing for one that is not of this node.
    begun: &'a (dyn Fn(TaskId) -> Begun + Sync),
    /// What containers take of this node's disk.
    disks: Disks,
    here: NodeId,
    now: Timestamp,
}

impl About<'_> {
    fn app(&self, id: AppId) -> Option<Explanation> {
        let app = self.state.apps.get(&id)?;
        let name = if app.name.is_empty() { &app.description } else { &app.name };
        let mut told = Explanation::new("app", id, name.as_str());
        let created = lasted(since(self.now, app.created.0));
        told.say(format!("{} in environment {}, created {created} ago", app.state, environment_name(self.state, id)));
        if let Some((at, why)) = &app.stopped {
            told.say(format!("stopped {} ago: {why}", lasted(since(self.now, at.0))));
        }
        let functions: Vec<FunctionId> = self.state.functions.iter().filter(|(_, f)| f.app == id).map(|(id, _)| *id).collect();
        told.parts.extend(functions.iter().take(PARTS_MAX).filter_map(|id| self.function(*id)));
        if functions.len() > PARTS_MAX {
            told.say(format!("{} of its {} functions are told of here", PARTS_MAX, functions.len()));
        }
        Some(told)
    }

    fn function(&self, id: FunctionId) -> Option<Explanation> {
        let function = self.state.functions.get(&id)?;
        let mut told = Explanation::new("function", id, function.tag.as_str());
        told.say(shoal_scheduler::explain(self.state, self.load, id, self.now));
        told.says.extend(self.bound(id));
        told.says.extend(self.schedule(id));
        told.says.extend(self.home(id.shard(), "its calls are"));
        let tasks = self.state.tasks_of.get(&id).into_iter().flatten();
        told.parts.extend(tasks.take(PARTS_MAX).filter_map(|task| self.task(*task)));
        Some(told)
    }

    /// Says when a function is called by its schedule.
    fn schedule(&self, id: FunctionId) -> Option<String> {
        let schedule = self.state.schedules.get(&id)?;
        let shown = |at| shoal_timing::local(&schedule.timing, at).unwrap_or_else(|| "never".to_owned());
        let last = schedule.last.map_or_else(|| "not called by it yet".to_owned(), |last| format!("last for {}", shown(last)));
        let waiting = match self.state.firings_of(id) {
            0 => String::new(),
            count => format!("; {count} of its calls are yet to be made, by the home of the function's calls"),
        };
        Some(format!("called by {}: {last}, next at {}{waiting}", shoal_timing::describe(&schedule.timing), shown(schedule.next)))
    }

    /// Says what a function was bound from, or how many were bound from it.
    fn bound(&self, id: FunctionId) -> Option<String> {
        let Some(bound) = self.state.bound_of(id) else {
            let count = self.state.bound.get(&id)?.len();
            return Some(format!("{count} functions with parameters or options of their own are bound from it"));
        };
        let own = match (bound.parameters.is_empty(), bound.options.is_empty()) {
            (false, false) => "parameters and options",
            (false, true) => "parameters",
            _ => "options",
        };
        let made = lasted(since(self.now, bound.created.0));
        Some(format!("bound from {} with {own} of its own, {made} ago", bound.parent))
    }

    /// Tells of a dict or a queue, with what its home says of its contents.
    fn object(&self, id: ObjectId, counted: &Result<ObjectAnswer, String>) -> Option<Explanation> {
        let object = self.state.objects.get(&id)?;
        let mut told = Explanation::new(&id.kind().to_lowercase(), id, object.name.as_str());
        let ago = lasted(since(self.now, object.created.0));
        told.say(format!("created {ago} ago by {}", object.created_by));
        if object.name.is_empty() {
            let minutes = SILENCE_MAX_MS / 60_000;
            told.say(format!("it is ephemeral: it ends when nobody has used it for {minutes} min, nor said that it is used"));
        }
        told.say(match (counted, id) {
            (Ok(ObjectAnswer::Count { items, .. }), ObjectId::Dict(_)) => format!("has {items} entries"),
            (Ok(ObjectAnswer::Count { items, partitions }), ObjectId::Queue(_)) => format!("has {items} items in {partitions} partitions"),
            (Ok(_), _) => "nothing is known of what it holds".to_owned(),
            (Err(why), _) => format!("nothing is known of what it holds now: {why}"),
        });
        told.says.extend(self.home(id.shard(), "what it holds is"));
        Some(told)
    }

    /// Says where what is in a shard is at home, where there is a choice.
    fn home(&self, id: Option<ShardId>, what: &str) -> Option<String> {
        let shard = self.state.shards.get(&id?).filter(|_| self.state.members.len() > 1)?;
        let name = |node: &NodeId| self.state.nodes.get(node).map_or_else(|| node.to_string(), |node| node.name.clone());
        let copies: Vec<String> = shard.in_sync.iter().filter(|node| **node != shard.home).map(name).collect();
        let copies = if copies.is_empty() { "nowhere yet".to_owned() } else { copies.join(", ") };
        Some(format!("{what} at home at node {}, with a copy at {copies}", name(&shard.home)))
    }

    fn task(&self, id: TaskId) -> Option<Explanation> {
        let task = self.state.tasks.get(&id)?;
        let mut told = Explanation::new("task", id, "");
        let node = self.state.nodes.get(&task.node).map_or("a node that is gone", |node| node.name.as_str());
        told.say(format!("runs {} on node {node}, decided {} ago", self.named(task.function), lasted(since(self.now, task.created.0))));
        let gpus = if task.gpus.is_empty() { String::new() } else { format!(" and GPUs {:?}", task.gpus) };
        told.say(format!("holds {}m CPU and {} memory{gpus}", task.resources.cpu_milli, mebibytes(task.resources.memory_bytes)));
        if let Some(why) = &task.stopping {
            told.say(format!("is to stop: {why}"));
        }
        let (begun, known) = ((self.begun)(id), (self.known)(id));
        if let Some(last) = begun.phases.last() {
            told.say(format!("its container is {}{}", last.phase, beginning(&begun.phases)));
        }
        if let Some(way) = begun.way {
            told.say(way_of(way, known.as_ref().and_then(|known| known.plain.as_deref())));
        }
        match known {
            Some(known) => told.says.extend(progress(&known)),
            None if task.node == self.here => told.say("is starting: its program has not asked for anything yet"),
            None => told.say(format!("how far it has come is known to node {node} only")),
        }
        Some(told)
    }

    /// Tells of a task of this node that is no more.
    fn ended(&self, id: TaskId, task: &EndedTask) -> Explanation {
        let mut told = Explanation::new("task", id, "");
        let lived = lasted(since(task.end.at, task.created.0));
        told.say(format!(
            "ran {}, and ended {} ago, {lived} after it was decided",
            self.named(task.function),
            lasted(since(self.now, task.end.at.0))
        ));
        told.say(format!("its container ended: {}", task.end.how));
        told.say(format!("`shoal logs {id}` has what it printed"));
        told
    }

    fn node(&self, id: NodeId) -> Option<Explanation> {
        let node = self.state.nodes.get(&id)?;
        let mut told = Explanation::new("node", id, node.name.as_str());
        let (cpu_milli, memory_bytes) = self.state.free(id);
        told.say(format!("at {}, started {} ago", node.address, lasted(since(self.now, node.started.0))));
        let capacity = &node.capacity;
        told.say(format!(
            "{cpu_milli}m of {}m CPU and {} of {} memory are free",
            capacity.cpu_milli,
            mebibytes(memory_bytes),
            mebibytes(capacity.memory_bytes)
        ));
        if let Some(budget_bytes) = self.disks.budget_bytes.filter(|_| id == self.here) {
            let taken = mebibytes(self.disks.taken_bytes);
            told.say(format!("containers take {taken} of its disk, and {} is what they may take", mebibytes(budget_bytes)));
        }
        if node.draining {
            told.say("drains: it takes no new tasks");
        }
        let tasks = self.state.tasks.iter().filter(|(_, task)| task.node == id);
        told.parts.extend(tasks.take(PARTS_MAX).filter_map(|(task, _)| self.task(*task)));
        Some(told)
    }

    fn call(&self, info: &CallInfo, mut inputs: Vec<InputInfo>) -> Explanation {
        let mut told = Explanation::new("call", info.open.call, self.named(info.open.function));
        let kind = if info.open.kind == CallKind::Map { "a map" } else { "one call" };
        let opened = lasted(since(self.now, info.open.created_ms));
        told.say(format!(
            "{kind} of {}, opened {opened} ago: {} input{}, {} without an output, {} succeeded",
            self.named(info.open.function),
            info.inputs,
            if info.inputs == 1 { "" } else { "s" },
            info.unfinished,
            info.ended.succeeded
        ));
        if info.cancelled {
            told.say("it was cancelled");
        } else if info.inputs == 0 && !info.inputs_finished {
            told.say("it waits for its client, which has not put an input yet");
        } else if info.open.kind == CallKind::Map && !info.inputs_finished {
            told.say("its client may put more inputs");
        }
        inputs.sort_by_key(|input| (matches!(input.status, InputStatus::Done(_)), input.idx));
        if inputs.len() > PARTS_MAX {
            told.say(format!("{} of its {} inputs are told of here, those without an output first", PARTS_MAX, inputs.len()));
        }
        told.parts.extend(inputs.iter().take(PARTS_MAX).map(|input| self.input(input)));
        if info.unfinished > 0 {
            told.parts.extend(self.function(info.open.pool));
        }
        told
    }

    fn input(&self, info: &InputInfo) -> Explanation {
        let mut told = Explanation::new("input", info.input, format!("number {}", info.idx));
        told.say(match info.status {
            InputStatus::Waiting => "waits for a container".to_owned(),
            InputStatus::Delayed { due_ms } => format!("waits {} for its next try", lasted(due_ms.saturating_sub(self.now.0))),
            InputStatus::Running { task, since_ms } => format!("runs in task {task} for {}", lasted(since(self.now, since_ms))),
            InputStatus::Done(status) => outcome(status).to_owned(),
        });
        if info.retry_count > 0 {
            told.say(format!("was tried again {} time{}", info.retry_count, if info.retry_count == 1 { "" } else { "s" }));
        }
        told
    }

    fn named(&self, id: FunctionId) -> String {
        let function = self.state.functions.get(&id);
        function.map_or_else(|| format!("function {id}"), |function| format!("{} ({id})", function.tag))
    }
}

/// Says how far a task of this node has come.
fn progress(known: &Known) -> Vec<String> {
    let mut says = vec![match known.hello {
        Some(hello) => {
            let ms = u64::try_from(hello.elapsed().as_millis()).unwrap_or(u64::MAX);
            format!("its program asked for work first {} ago", lasted(ms))
        }
        None => "is starting: its program has not asked for anything yet".to_owned(),
    }];
    says.extend(known.works_on.map(|(input, call)| format!("was given input {input} of call {call} last")));
    says.extend(known.notes.iter().cloned());
    says
}

fn outcome(status: Status) -> &'static str {
    match status {
        Status::Success => "returned",
        Status::Failed => "failed: the function raised an exception or its container died",
        Status::TimedOut => "failed: it took longer than the function's timeout",
        Status::Terminated => "was cancelled",
        Status::InitFailed => "failed: its container could not start",
        Status::Platform => "failed: its containers were lost",
    }
}

fn since(now: Timestamp, then_ms: u64) -> u64 {
    now.0.saturating_sub(then_ms)
}

/// Writes a time span, given in milliseconds, for people.
fn lasted(ms: u64) -> String {
    match ms / 1000 {
        0..=119 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Says how long each phase of a container's beginning took.
fn beginning(phases: &[PhaseTime]) -> String {
    let took = phases.windows(2).filter(|pair| pair[0].phase < Phase::Ready);
    let took: Vec<String> = took.map(|pair| format!("{} {} ms", pair[0].phase, (pair[1].after - pair[0].after).as_millis())).collect();
    if took.is_empty() { String::new() } else { format!(": {}", took.join(", ")) }
}

/// Says in which way a container began, and why not in the quickest.
fn way_of(way: Way, plain: Option<&str>) -> String {
    let why = plain.map_or_else(String::new, |why| format!(": {why}"));
    match way {
        Way::Restored => "it went on from its image's zygote, with the client loaded".to_owned(),
        Way::Ahead => format!("it started in a sandbox made ahead, without a zygote{why}"),
        Way::Made => format!("it started in a sandbox made for it, without a zygote{why}"),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests;
