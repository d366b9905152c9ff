//! Calls, for people: how far one has come, which a function has, and who called whom.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use prost::Message as _;
use shoal_calls::calls::{CallInfo, Counts, Entry, InputInfo, InputStatus, Status};
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::generic_result::GenericStatus;
use shoal_state::{CallId, FunctionId, InputId, TaskId, Timestamp};

use super::call::refused;
use super::error::Error;
use super::{Api, Caller, function, seconds};

/// How many calls of a function are listed, the newest ones.
const LISTED_MAX: usize = 1_000;
/// How many inputs a graph of calls shows; beyond it the graph says that it is cut.
const GRAPH_INPUTS_MAX: usize = 1_000;
/// How many calls a graph is followed up to the one that began it.
const GRAPH_HEIGHT_MAX: usize = 1_000;
/// How many outcomes are read at once to learn which tasks they are from. Their results are read with them.
const OUTCOMES_AT_ONCE: usize = 50;

pub(super) async fn get(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionCallGetInfoRequest,
) -> Result<pb::FunctionCallGetInfoResponse, Error> {
    let call: CallId = request.function_call_id.parse()?;
    let info = api.calls.info(call).await.map_err(refused)?;
    if !request.function_id.is_empty() && request.function_id.parse::<FunctionId>()? != info.open.function {
        return Err(Error::NotFound(format!("function {} has no call {call}", request.function_id)));
    }
    Ok(pb::FunctionCallGetInfoResponse { info: Some(counted(&info)) })
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::FunctionCallListRequest) -> Result<pb::FunctionCallListResponse, Error> {
    let (id, _) = function::find(api, &request.function_id).await?;
    let calls = api.calls.calls_of(id).await.map_err(refused)?;
    Ok(pb::FunctionCallListResponse { function_calls: calls.iter().rev().take(LISTED_MAX).map(counted).collect() })
}

/// A call with its inputs counted by what became of them.
fn counted(info: &CallInfo) -> pb::FunctionCallInfo {
    let category = |total: u32| Some(pb::InputCategoryInfo { total: number(total), latest: vec![] });
    let Counts { succeeded, failed, timed_out, cancelled } = info.ended;
    let created_at = seconds(Timestamp(info.open.created_ms));
    pb::FunctionCallInfo {
        function_call_id: info.open.call.to_string(),
        created_at,
        scheduled_at: created_at,
        pending_inputs: category(info.unfinished),
        failed_inputs: category(failed),
        succeeded_inputs: category(succeeded),
        timeout_inputs: category(timed_out),
        cancelled_inputs: category(cancelled),
        total_inputs: number(info.inputs),
        ..Default::default()
    }
}

fn number(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Follows a call up to the one that began it all, then everything that this one caused, breadth first.
pub(super) async fn graph(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionGetCallGraphRequest,
) -> Result<pb::FunctionGetCallGraphResponse, Error> {
    let asked: CallId = request.function_call_id.parse()?;
    let mut graph = pb::FunctionGetCallGraphResponse::default();
    let mut names = Names::default();
    let mut next = std::collections::VecDeque::from([beginning(api, asked).await?]);
    let mut seen = HashSet::new();
    while let Some(info) = next.pop_front() {
        if !seen.insert(info.open.call) {
            continue;
        }
        let room = GRAPH_INPUTS_MAX - graph.inputs.len();
        let inputs = api.calls.inputs(info.open.call).await.map_err(refused)?;
        graph.truncated |= inputs.len() > room;
        let tasks = tasks_of(api, info.open.call, &inputs).await?;
        for input in inputs.into_iter().take(room) {
            next.extend(api.calls.children_of(input.input).await.map_err(refused)?);
            graph.inputs.push(node(&info, input, &tasks));
        }
        let (function_name, module_name) = names.of(api, info.open.function).await;
        graph.function_calls.push(pb::FunctionCallCallGraphInfo {
            function_call_id: info.open.call.to_string(),
            parent_input_id: info.open.parent.map(|parent| parent.input.to_string()).unwrap_or_default(),
            function_name,
            module_name,
        });
    }
    Ok(graph)
}

/// Finds the call at the top: one that no input made, or whose maker is forgotten.
async fn beginning(api: &Api, call: CallId) -> Result<CallInfo, Error> {
    let mut info = api.calls.info(call).await.map_err(refused)?;
    for _ in 0..GRAPH_HEIGHT_MAX {
        let Some(parent) = info.open.parent else { break };
        match api.calls.call_of(parent.input).await {
            Ok(above) => info = above,
            Err(_) => break,
        }
    }
    Ok(info)
}

/// Finds which task brought each outcome.
async fn tasks_of(api: &Api, call: CallId, inputs: &[InputInfo]) -> Result<HashMap<InputId, TaskId>, Error> {
    let mut tasks = HashMap::new();
    let mut after = Entry::default();
    while tasks.len() < inputs.len().min(GRAPH_INPUTS_MAX) {
        let outputs = api.calls.outputs(call, after, OUTCOMES_AT_ONCE, Duration::ZERO, false).await.map_err(refused)?;
        if outputs.items.is_empty() {
            break;
        }
        after = outputs.last;
        tasks.extend(outputs.items.into_iter().filter_map(|output| Some((output.input, output.task?))));
    }
    Ok(tasks)
}

fn node(call: &CallInfo, input: InputInfo, tasks: &HashMap<InputId, TaskId>) -> pb::InputCallGraphInfo {
    let (status, task) = match input.status {
        InputStatus::Done(status) => (ended(status), tasks.get(&input.input).copied()),
        InputStatus::Running { task, .. } => (GenericStatus::Unspecified, Some(task)),
        InputStatus::Waiting | InputStatus::Delayed { .. } => (GenericStatus::Unspecified, None),
    };
    pb::InputCallGraphInfo {
        input_id: input.input.to_string(),
        status: status.into(),
        function_call_id: call.open.call.to_string(),
        task_id: task.map(|task| task.to_string()).unwrap_or_default(),
    }
}

fn ended(status: Status) -> GenericStatus {
    match status {
        Status::Success => GenericStatus::Success,
        Status::Failed | Status::Platform => GenericStatus::Failure,
        Status::TimedOut => GenericStatus::Timeout,
        Status::Terminated => GenericStatus::Terminated,
        Status::InitFailed => GenericStatus::InitFailure,
    }
}

/// Names of functions, each looked up once.
#[derive(Default)]
struct Names {
    known: HashMap<FunctionId, (String, String)>,
}

impl Names {
    /// Returns a function's name and its module's; empty for a function that is gone.
    async fn of(&mut self, api: &Api, id: FunctionId) -> (String, String) {
        if let Some(names) = self.known.get(&id) {
            return names.clone();
        }
        let names = Self::look_up(api, id).await.unwrap_or_default();
        self.known.insert(id, names.clone());
        names
    }

    async fn look_up(api: &Api, id: FunctionId) -> Option<(String, String)> {
        let function = api.local().functions.get(&id)?.clone();
        let view = pb::Function::decode(function::definition(api, id, &function).await.ok()?).ok()?;
        Some((function.tag, view.module_name))
    }
}
