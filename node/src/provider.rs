//! What a task's container is to be: the node's answer to the worker's driver.
//!
//! `prepare` gathers everything a container needs (its root, its channel, its arguments, its environment), `ended` takes
//! it away again, tells the calls what became of the task's inputs, and puts the end into the log.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use shoal_calls::calls::{Lost, Outcome, Status};
use shoal_proto::modal_client as pb;
use shoal_runtime::{Bind, ContainerSpec, Exit, ExitStatus, Limits, NetworkMode};
use shoal_state::model::{Function, Resources, Task, TaskEnd};
use shoal_state::{Command, TaskId};
use shoal_worker::{ContainerPlan, Ended, Failure, Provider};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::{Api, Error, environment_name, now, secret, transport};
use crate::arguments::{self, Variables};
use crate::gangs;
use crate::images;
use crate::roots::Root;
use crate::sandboxes;
use crate::terminals;
use crate::zygotes::{self, Kind, Start, Zygotes};

/// What a running task holds on this node.
struct Held {
    _root: Root,
    _door: Option<transport::TaskDoor>,
    dir: PathBuf,
    /// What ends a sandbox in time.
    _timeout: Option<AbortOnDropHandle<()>>,
    /// What connects it with the others of its gang.
    _plug: Option<gangs::Plug>,
}

/// The node, as the worker's driver sees it.
pub(crate) struct NodeProvider {
    api: Api,
    zygotes: Zygotes,
    held: Mutex<HashMap<TaskId, Held>>,
    stop: CancellationToken,
}

impl NodeProvider {
    /// Plans containers of the node that `api` is of, which stops with `stop`.
    pub(crate) fn new(api: Api, zygotes: Zygotes, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { api, zygotes, held: Mutex::default(), stop })
    }

    async fn plan(&self, id: TaskId, task: &Task) -> Result<ContainerPlan, Error> {
        let state = self.api.local();
        let absent = || Error::NotFound(format!("Function '{}' not found", task.function));
        let function = state.functions.get(&task.function).ok_or_else(absent)?;
        if sandboxes::of_task(&state, task).is_some() {
            let planned = sandboxes::plan(&self.api, &state, id, task, function).await?;
            let dir = self.api.config.data.join("run/tasks").join(id.to_string());
            let held = Held { _root: planned.root, _door: None, dir, _timeout: Some(planned.timeout), _plug: None };
            self.held.lock().insert(id, held);
            return Ok(planned.plan);
        }
        let (image_id, image) = images::image_of(&state, function)?;
        let record = images::read_record(&self.api, &image).await?;
        if image.manifest.is_some() && record.metadata.python_path.is_none() {
            return Err(images::no_python(image_id));
        }
        let base = images::base(&self.api, &state, function, &image, &record).await?;
        let files = images::files(&state, function);
        self.api.touched.starts(&[&base[..], &files].concat()).await;
        let root = self.api.roots.get(&base, &files, record.config.path().to_owned()).await?;
        self.api.touched.started(base[0], &root);
        let python = root.python.ok_or_else(|| images::no_python(image_id))?;
        let secrets = secret::open_all(&self.api, &state, &function.secrets)?;
        self.api.upkeep.secrets_used(&function.secrets, now().0 / 1000);
        let dir = self.api.config.data.join("run/tasks").join(id.to_string());
        let arguments = arguments::encode(&self.api, &state, id, task, function).await?;
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join(arguments::ARGUMENTS), arguments))
            .map_err(Error::failed(format!("cannot write the arguments of task {id}")))?;
        let door = transport::serve_task(self.api.clone(), id, &dir.join(arguments::SOCKET))
            .map_err(Error::failed(format!("cannot open the channel of task {id}")))?;

        let entrypoint = record.config.entrypoint.clone().unwrap_or_default();
        let has_entrypoint = !entrypoint.is_empty();
        let program = [python, "-u", "-m", "modal._container_entrypoint"].map(str::to_owned);
        let mut spec = ContainerSpec::new(&root.dir, entrypoint.into_iter().chain(program));
        spec.cwd = record.config.workdir.clone().unwrap_or_else(|| arguments::WORKDIR.to_owned());
        let (_, view) = arguments::definition(&self.api, task, function).await?;
        let terminal = terminals::of_function(&view);
        spec.terminal = terminal.map(terminals::size);
        let mut given = record.config.env.clone();
        given.extend(terminal.into_iter().flat_map(terminals::variables));
        let variables = |image, secrets| Variables {
            image,
            secrets,
            image_id: image_id.to_string(),
            environment: environment_name(&state, task.app),
            egress: self.api.config.egress().env(),
        };
        spec.env = arguments::environment(Some(id), variables(&given, secrets));
        spec.binds.push(arguments::own_folder(&self.api.config));
        spec.own = Some(Bind { source: dir.clone(), target: arguments::TASK_DIR.to_owned(), read_only: false });
        spec.hostname = zygotes::HOSTNAME.to_owned();
        spec.limits = limits(function, state.nodes.get(&self.api.cluster.node).map(|node| node.capacity));
        spec.network = if function.block_network { NetworkMode::NodeOnly } else { NetworkMode::Nat };
        spec.limits.disk_bytes = spec.limits.disk_bytes.or(Some(self.api.config.disk.overlay_bytes).filter(|bytes| *bytes > 0));
        let plug = match gangs::member(&state, id) {
            Some(member) => {
                let connected = self.api.gangs.connect(&member);
                let (link, plug) = connected.map_err(Error::failed(format!("cannot connect task {id} with its gang")))?;
                spec.link = Some(link);
                Some(plug)
            }
            None => None,
        };
        let env = arguments::environment(None, variables(&record.config.env, BTreeMap::new()));
        let kind = Kind { base, path: record.config.path().to_owned(), python, env };
        let start = match has_entrypoint {
            true => Start::Plain("its image has an entrypoint of its own".to_owned()),
            false if spec.terminal.is_some() => Start::Plain("its program has a terminal".to_owned()),
            false => self.zygotes.start(&kind, &spec.env, &spec.cwd, &root),
        };
        match start {
            Start::From(snapshot) => spec.snapshot = Some(snapshot),
            Start::Plain(why) => self.api.tasks.starts_plain(id, why),
        }
        self.held.lock().insert(id, Held { _root: root, _door: Some(door), dir, _timeout: None, _plug: plug });
        let mut plan = ContainerPlan::new(spec);
        plan.startup_timeout = Some(Duration::from_millis(function.startup_timeout_ms));
        Ok(plan)
    }

    async fn end(&self, id: TaskId, generation: u64, end: &Ended) -> Result<(), Error> {
        if let Some(held) = self.held.lock().remove(&id) {
            let _ = std::fs::remove_dir_all(&held.dir);
        }
        let (state, known) = (self.api.local(), self.api.tasks.forget(id));
        let Some(task) = state.tasks.get(&id) else { return Ok(()) };
        if let Some((sandbox, _)) = sandboxes::of_task(&state, task) {
            let ended = TaskEnd { at: now(), how: end.how.clone() };
            self.api.tasks.remember(id, task, ended.clone());
            let first = Command::EndSandbox { id: sandbox, end: sandboxes::end_of(end) };
            return known_already(id, self.api.propose_all(vec![first, Command::EndTask { id, generation, end: ended }]).await);
        }
        let stopping = task.stopping.is_some();
        if let Some(member) = gangs::member(&state, id) {
            self.leave_gang(id, task, &member, end, known.as_ref().is_some_and(|known| known.dismissed)).await;
        }
        let took_input = known.as_ref().is_some_and(|known| known.works_on.is_some());
        let dismissed = known.as_ref().is_some_and(|known| known.dismissed);
        let lost = if stopping || !is_own_doing(end, dismissed) {
            Lost::Platform { result: platform_failure(&end.how) }
        } else {
            Lost::Crashed { result: result(pb::generic_result::GenericStatus::Failure, &crash(end)) }
        };
        self.api
            .calls
            .task_lost(id, task.function, lost)
            .await
            .map_err(Error::failed(format!("cannot give up the inputs of task {id}")))?;
        let ended_by_order = stopping || self.stop.is_cancelled();
        if !ended_by_order && did_not_start(end, took_input, dismissed) {
            self.start_failed(task, end, known.map(|known| known.notes).unwrap_or_default()).await?;
        }
        let ended = TaskEnd { at: now(), how: end.how.clone() };
        self.api.tasks.remember(id, task, ended.clone());
        known_already(id, self.api.propose(Command::EndTask { id, generation, end: ended }).await)
    }

    /// A container of a gang has ended: what it worked on fails with it if that was its own doing.
    async fn leave_gang(&self, id: TaskId, task: &Task, member: &gangs::Member, end: &Ended, dismissed: bool) {
        let works_on = self.api.gangs.forget(id, member);
        if member.rank == 0 || task.stopping.is_some() {
            return;
        }
        if is_own_doing(end, dismissed) {
            for (input, retry_count) in works_on {
                let said = result(pb::generic_result::GenericStatus::Failure, &format!("rank {}: {}", member.rank, crash(end)));
                gangs::failed(&self.api, member, Outcome { input, retry_count, status: Status::Failed, result: said }, true).await;
            }
        }
        if end.exit.is_some_and(|exit| exit.success()) && self.is_single_use(task) {
            // It is done. The one of rank 0 may not be, and would be told to stop when this one has ended.
            let longest = self.api.local().functions.get(&task.function).map_or(0, |function| function.timeout_ms);
            let _ = tokio::time::timeout(Duration::from_millis(longest), gangs::stops(&self.api, id)).await;
        }
    }

    fn is_single_use(&self, task: &Task) -> bool {
        self.api.local().functions.get(&task.function).is_some_and(|function| function.single_use)
    }

    /// A container that ended before it took an input: the next one waits, and when it was the container's own doing,
    /// what waits fails with it.
    async fn start_failed(&self, task: &Task, end: &Ended, notes: Vec<String>) -> Result<(), Error> {
        self.api.crashes.failed(task.function, now());
        if !notes.is_empty() {
            // Its own report of why failed what waited already.
            return Ok(());
        }
        let why = end.why.clone().unwrap_or_else(|| end.how.clone());
        let said = result(pb::generic_result::GenericStatus::InitFailure, &format!("the container could not start: {why}"));
        let failed = self.api.calls.fail_pool(task.function, Status::InitFailed, said).await;
        failed.map_err(Error::failed(format!("cannot fail what waits for function {}", task.function)))
    }
}

/// An end that the state refuses was known to it.
fn known_already(id: TaskId, proposed: Result<(), Error>) -> Result<(), Error> {
    match proposed {
        Err(Error::Refused(refused)) => {
            tracing::debug!(task = %id, %refused, "the end of a task was known already");
            Ok(())
        }
        other => other,
    }
}

/// Says whether a container never came to ask for inputs, which may be so of the next one too.
fn did_not_start(end: &Ended, took_input: bool, dismissed: bool) -> bool {
    // A task of an earlier start of this node has no phases here: its end says nothing of its function.
    !took_input && !dismissed && !end.phases.is_empty()
}

/// Says whether a container ended by what its program did, and with it what it had. `dismissed` says that it was told that nothing
/// more comes for it.
fn is_own_doing(end: &Ended, dismissed: bool) -> bool {
    // One of an earlier start of this node has no phases.
    let Some(exit) = end.exit.as_ref().filter(|_| !end.phases.is_empty()) else { return false };
    // It ended once it was done with what it had: what is still leased to it never reached it.
    let obeyed = dismissed && exit.status == ExitStatus::Code(0);
    // Ended by this node, because it stops or the task moved, unless that was for what it took.
    let ended_by_node = end.why.is_some() && !exit.oom && exit.disk.is_none();
    !obeyed && !ended_by_node
}

/// Says to whoever waits for an input why its container ended.
fn crash(end: &Ended) -> String {
    match end.exit {
        Some(exit) if exit.oom => "the container ran out of memory and was killed; give the function more with memory=".to_owned(),
        Some(Exit { disk: Some(over), .. }) => {
            format!("the container was killed: {over}; let it write less, or the node have more for containers (disk.overlays_bytes)")
        }
        _ => format!("the container ended while it worked: {}", end.how),
    }
}

/// Returns what an input gets that the platform gives up.
pub(crate) fn platform_failure(why: &str) -> bytes::Bytes {
    result(pb::generic_result::GenericStatus::InternalFailure, why)
}

fn result(status: pb::generic_result::GenericStatus, exception: &str) -> bytes::Bytes {
    let result = pb::GenericResult { status: status.into(), exception: exception.to_owned(), ..Default::default() };
    pb::FunctionPutOutputsItem { result: Some(result.encode_to_vec().into()), ..Default::default() }.encode_to_vec().into()
}

/// Where a function sets no limit of memory, what the node has for containers is one: it goes on when a container takes all.
pub(crate) fn limits(function: &Function, node: Option<Resources>) -> Limits {
    let resources = function.resources;
    let some = |value: u64| (value > 0).then_some(value);
    Limits {
        cpu_millis: some(resources.cpu_milli_max.into()),
        cpu_request_millis: some(resources.cpu_milli.into()),
        memory_bytes: some(resources.memory_bytes_max).or(node.map(|capacity| capacity.memory_bytes)),
        disk_bytes: some(resources.disk_bytes),
        shm_bytes: Some(arguments::shm_bytes()),
    }
}

impl Provider for NodeProvider {
    fn prepare(&self, id: TaskId, task: Task) -> BoxFuture<'_, Result<ContainerPlan, Failure>> {
        async move { self.plan(id, &task).await.map_err(|error| tonic::Status::from(error).message().to_owned().into()) }.boxed()
    }

    fn distrust(&self, snapshot: &Path) {
        self.zygotes.distrust(snapshot);
    }

    fn is_to_end(&self, readers: &[u32], patience: Duration) {
        self.api.roots.hurry(readers, patience);
    }

    fn ended(&self, id: TaskId, generation: u64, end: Ended) -> BoxFuture<'_, Result<(), Failure>> {
        async move { self.end(id, generation, &end).await.map_err(|error| tonic::Status::from(error).message().to_owned().into()) }.boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use shoal_worker::{Phase, PhaseTime};

    use super::*;

    fn ended(code: i32, why: Option<&str>) -> Ended {
        let exit = Exit { status: ExitStatus::Code(code), oom: false, disk: None };
        let phases = vec![PhaseTime { phase: Phase::Preparing, after: Duration::ZERO }];
        Ended { exit: Some(exit), why: why.map(str::to_owned), how: String::new(), phases }
    }

    #[test]
    fn what_the_platform_ended_is_no_crash_of_the_function() {
        assert!(is_own_doing(&ended(0, None), false), "a program that ends in mid-input");
        assert!(is_own_doing(&ended(1, None), true));
        assert!(!is_own_doing(&ended(0, None), true), "it did as it was told");
        assert!(!is_own_doing(&ended(0, Some("the node stops")), false));
        assert!(!is_own_doing(&Ended { exit: None, ..ended(0, None) }, false));
        assert!(!is_own_doing(&Ended { phases: vec![], ..ended(1, None) }, false), "one of an earlier start");
        let mut greedy = ended(137, Some("it took too much"));
        greedy.exit.as_mut().unwrap().oom = true;
        assert!(is_own_doing(&greedy, false));
    }

    #[test]
    fn what_was_told_that_nothing_comes_for_it_had_started() {
        assert!(did_not_start(&ended(0, None), false, false));
        assert!(did_not_start(&Ended { exit: None, ..ended(0, Some("no such secret")) }, false, false));
        assert!(!did_not_start(&ended(0, None), false, true), "it was not needed any more before it had anything to do");
        assert!(!did_not_start(&ended(1, None), true, false));
        assert!(!did_not_start(&Ended { phases: vec![], ..ended(1, None) }, false, false), "one of an earlier start");
    }
}
