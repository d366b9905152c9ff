//! What a container asks of its node, over its task's own channel.
//!
//! The channel says which task asks; what a request names besides (function, input) is checked against that task. Put
//! outputs are never answered with an error for an ordinary race: containers would send them for ever.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use shoal_calls::calls::streams::{DataChunk, Direction};
use shoal_calls::calls::{LeaseRequest, Leased, LeasedInput, Outcome, Status};
use shoal_proto::modal_client as pb;
use shoal_state::model::Task;
use shoal_state::{CallId, TaskId};
use shoal_worker::log::{Entry, Stream};

use super::call::refused;
use super::error::Error;
use super::{Api, Caller, blob_uses, outcome};
use crate::build_functions::Running;
use crate::gangs;
use crate::timeouts;

/// How long a request for inputs is held before an empty answer.
const INPUTS_WAIT: Duration = Duration::from_secs(55);
/// How long a heartbeat is held for a cancellation; clients allow 15 s.
const HEARTBEAT_HELD: Duration = Duration::from_secs(14);

pub(super) fn task_of(api: &Api, caller: &Caller) -> Result<(TaskId, Task), Error> {
    let id = caller.identity.task()?;
    let state = api.local();
    let gone = || Error::Denied(format!("task {id} has ended: its channel serves nothing any more"));
    Ok((id, state.tasks.get(&id).ok_or_else(gone)?.clone()))
}

/// Returns the function of a build that the caller is, if it is one: such a task is not in the state.
fn build_function(api: &Api, caller: &Caller) -> Result<Option<Arc<Running>>, Error> {
    Ok(api.build_functions.get(caller.identity.task()?))
}

pub(super) async fn hello(api: &Api, caller: &Caller, (): ()) -> Result<(), Error> {
    if build_function(api, caller)?.is_some() {
        return Ok(());
    }
    let (id, _) = task_of(api, caller)?;
    if let Some(worker) = api.worker.get() {
        worker.hello(id).await;
    }
    Ok(())
}

pub(super) async fn heartbeat(
    api: &Api,
    caller: &Caller,
    _request: pb::ContainerHeartbeatRequest,
) -> Result<pb::ContainerHeartbeatResponse, Error> {
    if build_function(api, caller)?.is_some() {
        // Nothing cancels it but the end of its container.
        tokio::time::sleep(HEARTBEAT_HELD).await;
        return Ok(pb::ContainerHeartbeatResponse::default());
    }
    let (id, task) = task_of(api, caller)?;
    let member = gangs::member(&api.local(), id);
    if let Some(member) = member.as_ref().filter(|member| member.rank > 0) {
        let cancelled = gangs::next_cancelled(api, id, member, HEARTBEAT_HELD).await;
        let event = cancelled.and_then(|bytes| pb::CancelInputEvent::decode(bytes).ok());
        return Ok(pb::ContainerHeartbeatResponse { cancel_input_event: event });
    }
    let cancelled = api.calls.held_cancels(id, task.function, HEARTBEAT_HELD).await.map_err(refused)?;
    let event = (!cancelled.is_empty())
        .then(|| pb::CancelInputEvent { input_ids: cancelled.iter().map(ToString::to_string).collect(), ..Default::default() });
    if let (Some(member), Some(event)) = (member, &event) {
        gangs::tell_cancelled(api, &member, event.encode_to_vec().into());
    }
    Ok(pb::ContainerHeartbeatResponse { cancel_input_event: event })
}

/// Tells a container of a clustered function which it is of its gang, and where the others are.
pub(super) async fn cluster_hello(
    api: &Api,
    caller: &Caller,
    _request: pb::TaskClusterHelloRequest,
) -> Result<pb::TaskClusterHelloResponse, Error> {
    let (id, _) = task_of(api, caller)?;
    let none = || Error::Precondition(format!("task {id} is of no gang: its function is not clustered"));
    let member = gangs::member(&api.local(), id).ok_or_else(none)?;
    let (v6, v4) = member.addresses();
    Ok(pb::TaskClusterHelloResponse {
        cluster_id: member.gang.to_string(),
        cluster_rank: member.rank.into(),
        container_ips: v6.iter().map(ToString::to_string).collect(),
        container_ipv4_ips: v4.iter().map(ToString::to_string).collect(),
        ..Default::default()
    })
}

/// Gives a container of another rank than 0 the inputs that rank 0 was given.
async fn inputs_of_first(api: &Api, caller: &Caller, id: TaskId, member: &gangs::Member) -> Result<pb::FunctionGetInputsResponse, Error> {
    let given = match gangs::next(api, id, member, &caller.key(), INPUTS_WAIT).await {
        gangs::Given::Inputs(bytes) => pb::FunctionGetInputsResponse::decode(bytes)
            .map_err(Error::failed("cannot decode what the first container of a gang was given"))?,
        gangs::Given::Stop => stop_response(api, id),
        gangs::Given::Nothing => pb::FunctionGetInputsResponse::default(),
    };
    note_given(api, id, &given)?;
    for input in given.inputs.iter().filter(|input| !input.input_id.is_empty()) {
        api.gangs.works_on(id, input.input_id.parse()?, input.retry_count);
    }
    Ok(given)
}

/// Says that nothing more comes.
fn stop_response(api: &Api, id: TaskId) -> pb::FunctionGetInputsResponse {
    api.tasks.dismissed(id);
    let inputs = vec![pb::FunctionGetInputsItem { kill_switch: true, ..Default::default() }];
    pb::FunctionGetInputsResponse { inputs, ..Default::default() }
}

/// Notes what a task works on from now on.
fn note_given(api: &Api, id: TaskId, given: &pb::FunctionGetInputsResponse) -> Result<(), Error> {
    let Some(first) = given.inputs.first().filter(|first| !first.input_id.is_empty()) else { return Ok(()) };
    let (input, call) = (first.input_id.parse()?, first.function_call_id.parse()?);
    api.tasks.works_on(id, input, call);
    if let Some(worker) = api.worker.get() {
        worker.set_input(id, Some((input, call)));
    }
    Ok(())
}

fn item(leased: LeasedInput) -> pb::FunctionGetInputsItem {
    use pb::FunctionCallInvocationType as Wire;
    let invocation = match leased.invocation {
        shoal_calls::calls::Invocation::Sync => Wire::Sync,
        shoal_calls::calls::Invocation::Async => Wire::Async,
        shoal_calls::calls::Invocation::AsyncLegacy => Wire::AsyncLegacy,
    };
    pb::FunctionGetInputsItem {
        input_id: leased.input.to_string(),
        input: Some(leased.payload),
        function_call_id: leased.call.to_string(),
        function_call_invocation_type: invocation.into(),
        retry_count: leased.retry_count,
        function_map_idx: i32::try_from(leased.idx).ok(),
        attempt_token: format!("{}/{}/{}", leased.call, leased.input, leased.retry_count),
        ..Default::default()
    }
}

pub(super) async fn get_inputs(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionGetInputsRequest,
) -> Result<pb::FunctionGetInputsResponse, Error> {
    if let Some(running) = build_function(api, caller)? {
        return Ok(pb::FunctionGetInputsResponse { inputs: vec![running.next(&request.function_id)?], ..Default::default() });
    }
    let (id, task) = task_of(api, caller)?;
    if request.function_id != task.function.to_string() {
        return Err(Error::Denied(format!("task {id} serves function {}, not {}", task.function, request.function_id)));
    }
    if api.tasks.hello(id)
        && let Some(worker) = api.worker.get()
    {
        worker.ready(id).await;
    }
    let member = gangs::member(&api.local(), id);
    match &member {
        Some(member) if member.rank > 0 => return inputs_of_first(api, caller, id, member).await,
        Some(member) => match gangs::all_wait(api, id, member, INPUTS_WAIT).await {
            gangs::Waited::Ready => {}
            gangs::Waited::Stops => return Ok(stop_response(api, id)),
            gangs::Waited::NotYet => return Ok(pb::FunctionGetInputsResponse::default()),
        },
        None => {}
    }
    let lease = LeaseRequest {
        pool: task.function,
        task: id,
        max: request.batch_max_size.max(1),
        wait_ms: u64::try_from(INPUTS_WAIT.as_millis()).unwrap_or(u64::MAX),
        linger_ms: request.batch_linger_ms,
        key: caller.key(),
    };
    let leased = match api.calls.lease(lease).await.map_err(refused)? {
        Leased::Stop => return Ok(stop_response(api, id)),
        Leased::Inputs(inputs) => inputs,
    };
    timeouts::watch(api, id, &task, &leased);
    let given = pb::FunctionGetInputsResponse { inputs: leased.into_iter().map(item).collect(), ..Default::default() };
    if !given.inputs.is_empty() {
        note_given(api, id, &given)?;
        api.crashes.works(task.function);
        if let Some(member) = &member {
            gangs::tell(api, member, given.encode_to_vec().into());
        }
    }
    Ok(given)
}

/// Reads how an attempt ended from the result that the container made.
fn status(result: &pb::GenericResult) -> Status {
    use pb::generic_result::GenericStatus as Wire;
    match result.status() {
        Wire::Success => Status::Success,
        Wire::Terminated => Status::Terminated,
        Wire::Timeout => Status::TimedOut,
        Wire::InitFailure => Status::InitFailed,
        Wire::InternalFailure => Status::Platform,
        _ => Status::Failed,
    }
}

fn result_of(output: &pb::FunctionPutOutputsItem) -> Result<pb::GenericResult, Error> {
    pb::GenericResult::decode(output.result.clone().unwrap_or_default())
        .map_err(|error| Error::Invalid(format!("the result of input {} cannot be decoded: {error}", output.input_id)))
}

pub(super) async fn put_outputs(api: &Api, caller: &Caller, request: pb::FunctionPutOutputsRequest) -> Result<(), Error> {
    if let Some(running) = build_function(api, caller)? {
        return request.outputs.iter().try_for_each(|output| result_of(output).map(|result| running.ended(result)));
    }
    let (id, task) = task_of(api, caller)?;
    if let Some(member) = gangs::member(&api.local(), id).filter(|member| member.rank > 0) {
        return outputs_of_other(api, id, &member, request).await;
    }
    let mut outcomes = Vec::new();
    for output in request.outputs {
        let result = result_of(&output)?;
        let input = output.input_id.parse()?;
        blob_uses::note_result(api, input, &result).await?;
        api.tasks.done(id, input);
        outcomes.push(Outcome {
            input,
            retry_count: output.retry_count,
            status: status(&result),
            result: outcome::record(&output, &result),
        });
    }
    api.calls.finish(Some((id, task.function)), outcomes).await.map_err(refused)
}

/// The outcome of rank 0 counts; that another one has failed is the input's failure too.
async fn outputs_of_other(api: &Api, id: TaskId, member: &gangs::Member, request: pb::FunctionPutOutputsRequest) -> Result<(), Error> {
    for output in request.outputs {
        let (result, input) = (result_of(&output)?, output.input_id.parse()?);
        api.gangs.done(id, input);
        let status = status(&result);
        if matches!(status, Status::Success | Status::Terminated) {
            continue;
        }
        blob_uses::note_result(api, input, &result).await?;
        let outcome = Outcome { input, retry_count: output.retry_count, status, result: outcome::record(&output, &result) };
        let (api, member) = (api.clone(), member.clone());
        // The container goes on meanwhile: mostly rank 0 fails as well.
        tokio::spawn(async move { gangs::failed(&api, &member, outcome, false).await });
    }
    Ok(())
}

pub(super) async fn log(api: &Api, caller: &Caller, request: pb::ContainerLogRequest) -> Result<(), Error> {
    if build_function(api, caller)?.is_some() {
        // The lines of builds are what their containers print.
        return Ok(());
    }
    let (id, task) = task_of(api, caller)?;
    let line = |line: pb::TaskLogs| Entry {
        timestamp_ns: super::now().0 * 1_000_000,
        stream: u8::try_from(line.file_descriptor).ok().and_then(Stream::of_fd).unwrap_or(Stream::System),
        app: task.app,
        task: id,
        function: task.function,
        input: line.input_id.parse().ok(),
        call: line.function_call_id.parse().ok(),
        data: line.data,
    };
    let (logs, lines) = (api.logs.clone(), request.logs.into_iter().map(line).collect::<Vec<_>>());
    super::blocking(move || logs.append_all(&lines)).await.map_err(Error::failed(format!("cannot keep what task {id} logs")))
}

/// A program asks whoever runs its app to type into its terminal.
pub(super) async fn connect_terminal(api: &Api, caller: &Caller, (): ()) -> Result<(), Error> {
    let id = caller.identity.task()?;
    let keyboard = match api.worker.get() {
        Some(worker) => worker.keyboard(id).await,
        None => None,
    };
    let none = || Error::Precondition(format!("container {id} has no terminal: its app is not run by `modal run -i`"));
    super::blocking(move || keyboard.map(|keyboard| keyboard.connect())).await.ok_or_else(none)
}

/// Start-up broke: the process exits with 0 after this, so what waits must fail with this very result.
pub(super) async fn task_result(api: &Api, caller: &Caller, request: pb::TaskResultRequest) -> Result<(), Error> {
    let bytes = request.result.unwrap_or_default();
    let result = pb::GenericResult::decode(bytes.clone()).unwrap_or_default();
    if let Some(running) = build_function(api, caller)? {
        if !bytes.is_empty() && result.status() != pb::generic_result::GenericStatus::Success {
            running.ended(result);
        }
        return Ok(());
    }
    let (id, task) = task_of(api, caller)?;
    if result.status() == pb::generic_result::GenericStatus::Success || bytes.is_empty() {
        return Ok(());
    }
    api.tasks.note(id, format!("start-up failed: {}", result.exception));
    let outcome = pb::FunctionPutOutputsItem { result: Some(bytes), data_format: pb::DataFormat::Pickle.into(), ..Default::default() };
    api.calls.fail_pool(task.function, Status::InitFailed, outcome::record(&outcome, &result)).await.map_err(refused)
}

/// How long a container that puts data out faster than it is read is held.
const DATA_ROOM_WAIT: Duration = Duration::from_secs(50);

pub(super) async fn data_in(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionCallGetDataRequest,
) -> Result<tonic::codegen::BoxStream<pb::DataChunk>, Error> {
    let key = super::yielded::data_key(api, request.call_info.as_ref(), Direction::In).await?;
    own_call(api, caller, key.call).await?;
    Ok(super::yielded::read_data(api, key, request.last_index))
}

/// Refuses a call that the task's function was never given.
async fn own_call(api: &Api, caller: &Caller, call: CallId) -> Result<(), Error> {
    let (id, task) = task_of(api, caller)?;
    let of = api.calls.info(call).await.map_err(refused)?.open.pool;
    if of == task.function {
        return Ok(());
    }
    Err(Error::Denied(format!("call {call} is not one of function {}, which task {id} serves", task.function)))
}

pub(super) async fn put_data_out(api: &Api, caller: &Caller, request: pb::FunctionCallPutDataRequest) -> Result<(), Error> {
    use pb::function_call_put_data_request::CallInfo;
    let key = match &request.call_info {
        Some(CallInfo::AttemptToken(token)) => super::yielded::data_of_attempt(token, Direction::Out)?,
        Some(CallInfo::FunctionCallId(id)) => super::yielded::data_of_call(api, id, Direction::Out).await?,
        None => return Err(Error::Invalid("these data name no call".to_owned())),
    };
    own_call(api, caller, key.call).await?;
    let id = caller.identity.task()?;
    if gangs::member(&api.local(), id).is_some_and(|member| member.rank > 0) {
        // The data of rank 0 are those of the call.
        return Ok(());
    }
    let chunks = request.data_chunks.into_iter().map(|chunk| DataChunk { index: chunk.index, data: chunk.encode_to_vec().into() });
    let put = api.calls.put_data(&key, chunks.collect(), DATA_ROOM_WAIT).await;
    put.map_err(|error| Error::Unavailable(error.to_string()))
}
