//! Functions that run while an image is built (`Image.run_function`): what their containers are, and what they ask.
//!
//! The builder runs such a container, not the worker: no task of it is in the state, and its one input lies here instead of
//! in a shard. Its program is the client's own entrypoint all the same, so it has a channel like a task's, over which it
//! asks for its input and gives its result. Everything here ends with the build.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message as _;
use prost::bytes::Bytes;
use shoal_image::build::{FunctionRun, FunctionRunner, PreparedFunction, RunnerFailure};
use shoal_proto::modal_client as pb;
use shoal_runtime::{Bind, Limits, NetworkMode};
use shoal_state::model::{Function, Task};
use shoal_state::{AppId, BootId, CallId, Digest, FunctionId, ImageId, InputId, ShardId, TaskId};

use crate::api::{Api, Error, environment_name, now, secret, transport};
use crate::arguments::{self, Variables};
use crate::images;

/// No arguments, as the client pickles them: `((), {})`.
const NO_ARGUMENTS: &[u8] = b"\x80\x04\x95\x06\x00\x00\x00\x00\x00\x00\x00)}\x94\x86\x94.";

/// The functions of builds that run on this node, by the task that each is. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct BuildFunctions {
    running: Arc<Mutex<HashMap<TaskId, Arc<Running>>>>,
}

impl BuildFunctions {
    /// Returns the function that a task is, if it is one.
    pub(crate) fn get(&self, task: TaskId) -> Option<Arc<Running>> {
        self.running.lock().get(&task).cloned()
    }

    /// Returns the app of the function that a task is, if it is one.
    pub(crate) fn app_of(&self, task: TaskId) -> Option<AppId> {
        self.get(task).map(|running| running.app)
    }
}

/// A function on its way: its input, and its result once it has given one.
pub(crate) struct Running {
    task: TaskId,
    app: AppId,
    function: FunctionId,
    input: pb::FunctionGetInputsItem,
    result: Mutex<Option<pb::GenericResult>>,
}

impl Running {
    fn new(task: TaskId, app: AppId, function: FunctionId, arguments: Bytes) -> Self {
        let shard = function.shard().unwrap_or_else(|| ShardId::of(&task.bits().to_le_bytes()));
        let name: [&[u8]; 2] = [b"the input of a build", &task.bits().to_le_bytes()];
        let (call, input) = (CallId::derive_in(shard, &name), InputId::derive_in(shard, &name));
        let item = pb::FunctionGetInputsItem {
            input_id: input.to_string(),
            input: Some(arguments),
            function_call_id: call.to_string(),
            function_call_invocation_type: pb::FunctionCallInvocationType::Sync.into(),
            attempt_token: format!("{call}/{input}/0"),
            ..Default::default()
        };
        Self { task, app, function, input: item, result: Mutex::default() }
    }

    /// Returns what the container is to do: its input until it has a result, then the word to end.
    pub(crate) fn next(&self, function: &str) -> Result<pb::FunctionGetInputsItem, Error> {
        if function != self.function.to_string() {
            return Err(Error::Denied(format!("task {} runs function {}, not {function}", self.task, self.function)));
        }
        match &*self.result.lock() {
            None => Ok(self.input.clone()),
            Some(_) => Ok(pb::FunctionGetInputsItem { kill_switch: true, ..Default::default() }),
        }
    }

    /// Takes the result of the input, or of a start that failed. The first one counts.
    pub(crate) fn ended(&self, result: pb::GenericResult) {
        self.result.lock().get_or_insert(result);
    }

    fn outcome(&self) -> Option<Result<(), String>> {
        use pb::generic_result::GenericStatus as Wire;
        let result = self.result.lock();
        let result = result.as_ref()?;
        Some(match result.status() {
            Wire::Success => Ok(()),
            _ if result.exception.is_empty() => Err("failed without saying why".to_owned()),
            Wire::InitFailure => Err(format!("could not start: {}", result.exception)),
            _ => Err(format!("raised {}", result.exception)),
        })
    }
}

/// What a function of a build holds on this node until its container is gone.
struct Held {
    functions: BuildFunctions,
    running: Arc<Running>,
    dir: PathBuf,
    _door: transport::TaskDoor,
}

impl FunctionRun for Held {
    fn outcome(&self) -> Option<Result<(), String>> {
        self.running.outcome()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut functions = self.functions.running.lock();
        if functions.get(&self.running.task).is_some_and(|known| Arc::ptr_eq(known, &self.running)) {
            functions.remove(&self.running.task);
        }
        drop(functions);
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Runs one function of a build.
pub(crate) struct Runner {
    api: Api,
    function: FunctionId,
    arguments: Bytes,
}

impl Runner {
    /// Makes a runner of a function with the arguments that the client sent, if any.
    pub(crate) fn new(api: Api, function: FunctionId, arguments: Option<Bytes>) -> Self {
        Self { api, function, arguments: arguments.unwrap_or_else(no_arguments) }
    }

    async fn prepare(&self, key: Digest) -> Result<PreparedFunction, Error> {
        let api = &self.api;
        let state = api.local();
        let absent = || Error::NotFound(format!("Function '{}' not found", self.function));
        let function = state.functions.get(&self.function).ok_or_else(absent)?.clone();
        let (base_id, base) = images::image_of(&state, &function)?;
        let record = images::read_record(api, &base).await?;
        let python = record.metadata.python_path.clone().ok_or_else(|| images::no_python(base_id))?;
        let over = images::over(api, &state, &function, &base, &record).await?;

        let (_, id) = images::build_log(ImageId::derive(&[key.as_bytes()]));
        let task = task_of(api, &function, self.function);
        let encoded = arguments::encode(api, &state, id, &task, &function).await?;
        let dir = api.config.data.join("run/tasks").join(id.to_string());
        std::fs::create_dir_all(&dir)
            .and_then(|()| std::fs::write(dir.join(arguments::ARGUMENTS), encoded))
            .map_err(Error::failed(format!("cannot write the arguments of task {id}")))?;
        let running = Arc::new(Running::new(id, function.app, self.function, self.arguments.clone()));
        let door = transport::serve_task(api.clone(), id, &dir.join(arguments::SOCKET))
            .map_err(Error::failed(format!("cannot open the channel of task {id}")))?;
        api.build_functions.running.lock().insert(id, Arc::clone(&running));
        let held = Held { functions: api.build_functions.clone(), running, dir: dir.clone(), _door: door };

        let variables = Variables {
            image: &record.config.env,
            secrets: secret::open_all(api, &state, &function.secrets)?,
            image_id: base_id.to_string(),
            environment: environment_name(&state, function.app),
            egress: api.config.egress().env(),
        };
        api.upkeep.secrets_used(&function.secrets, now().0 / 1000);
        let entrypoint = record.config.entrypoint.clone().unwrap_or_default();
        let program = [python.as_str(), "-u", "-m", "modal._container_entrypoint"].map(str::to_owned);
        Ok(PreparedFunction {
            over,
            argv: entrypoint.into_iter().chain(program).collect(),
            env: arguments::environment(Some(id), variables).into_iter().collect(),
            cwd: record.config.workdir.clone().unwrap_or_else(|| arguments::WORKDIR.to_owned()),
            binds: vec![Bind { source: dir, target: arguments::TASK_DIR.to_owned(), read_only: false }],
            limits: limits(&function),
            network: if function.block_network { NetworkMode::NodeOnly } else { NetworkMode::Nat },
            startup: Duration::from_millis(function.startup_timeout_ms),
            timeout: Duration::from_millis(function.timeout_ms),
            run: Box::new(held),
        })
    }
}

fn no_arguments() -> Bytes {
    let input = pb::FunctionInput {
        args_oneof: Some(pb::function_input::ArgsOneof::Args(NO_ARGUMENTS.into())),
        data_format: pb::DataFormat::Pickle.into(),
        ..Default::default()
    };
    input.encode_to_vec().into()
}

impl FunctionRunner for Runner {
    fn prepare(&self, image: Digest) -> BoxFuture<'_, Result<PreparedFunction, RunnerFailure>> {
        async move { Runner::prepare(self, image).await.map_err(|error| tonic::Status::from(error).message().to_owned().into()) }.boxed()
    }
}

/// The task that the container takes itself for; none of it is in the state.
fn task_of(api: &Api, function: &Function, id: FunctionId) -> Task {
    let nobody = Task::new((id, function.app), (api.cluster.node, BootId::from_random(0)), now());
    Task { generation: 0, resources: function.resources, ..nobody }
}

/// What the function asked for. A request is no limit: builds have their own.
fn limits(function: &Function) -> Limits {
    let some = |value: u64| (value > 0).then_some(value);
    let resources = function.resources;
    Limits {
        cpu_millis: some(resources.cpu_milli_max.into()),
        cpu_request_millis: some(resources.cpu_milli.into()),
        memory_bytes: some(resources.memory_bytes_max),
        disk_bytes: some(resources.disk_bytes),
        shm_bytes: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(status: pb::generic_result::GenericStatus, exception: &str) -> pb::GenericResult {
        pb::GenericResult { status: status.into(), exception: exception.to_owned(), ..Default::default() }
    }

    #[test]
    fn the_input_is_given_until_there_is_a_result_and_the_first_result_counts() {
        use pb::generic_result::GenericStatus as Wire;
        let function = FunctionId::from_random(7);
        let running = Running::new(TaskId::from_random(1), AppId::from_random(2), function, Bytes::from_static(b"x"));
        let asked = || running.next(&function.to_string()).unwrap();
        assert_eq!(asked().input_id, asked().input_id, "a lost answer is given again");
        assert!(!asked().kill_switch && running.outcome().is_none());
        assert!(running.next("fu-other").is_err());
        running.ended(result(Wire::Failure, "ValueError('x')"));
        running.ended(result(Wire::Success, ""));
        assert!(asked().kill_switch);
        assert_eq!(running.outcome(), Some(Err("raised ValueError('x')".to_owned())));
    }
}
