//! Calls, from the caller's side: open one, put inputs, read outputs, cancel.
//!
//! The rules are in `shoal-calls`; here the wire is read and written. Arguments and results pass through as the bytes
//! that came.

use std::time::Duration;

use prost::Message as _;
use shoal_calls::calls::{self, CallKind, Entry, Invocation, NewInput, OpenCall, Output, Parent, Policy, PutInput, RetryInput, Status};
use shoal_proto::modal_client as pb;
use shoal_state::model::{AppState, Function};
use shoal_state::{CallId, FunctionId, InputId, State, Timestamp};

use super::error::Error;
use super::{Api, Caller, Identity, blob_uses, bound, function, input_token, yielded};

/// How long a read of outputs may be held, whatever the client asks.
const OUTPUTS_WAIT_MAX: Duration = Duration::from_secs(55);
/// Outputs in one answer when the client names no number.
const OUTPUTS_MAX: usize = 1000;
/// How many inputs of a map may be under way.
pub(super) const INPUTS_OUTSTANDING: u32 = 1000;

/// Turns what the rules say into what the API says.
pub(super) fn refused(error: calls::Error) -> Error {
    match error {
        calls::Error::Refused(refused) => match refused {
            calls::Refused::TooMany { .. } => Error::Exhausted(refused.to_string()),
            calls::Refused::TooLong { .. } => Error::Invalid(refused.to_string()),
            calls::Refused::NoCall { .. } | calls::Refused::NoInput { .. } | calls::Refused::NoShard { .. } => {
                Error::NotFound(refused.to_string())
            }
            calls::Refused::NoObject { .. } => Error::NotFound(refused.to_string()),
            calls::Refused::QueueFull { .. } => Error::Exhausted(refused.to_string()),
            calls::Refused::OfAnotherPool { .. } => Error::Denied(refused.to_string()),
            calls::Refused::NotHome { .. } => Error::Heals(refused.to_string()),
            other => Error::Precondition(other.to_string()),
        },
        // The same request again finds what this one may have done.
        passing @ (calls::Error::Away { .. }
        | calls::Error::Unconfirmed { .. }
        | calls::Error::Late { .. }
        | calls::Error::FewCopies { .. }
        // The node starts anew.
        | calls::Error::Ended { .. }) => Error::Heals(passing.to_string()),
        failed => Error::Failed { attempted: "cannot keep records of a call".to_owned(), source: failed.into() },
    }
}

fn policy(function: &Function) -> Policy {
    Policy {
        retries: function.retries.count,
        initial_delay_ms: u64::from(function.retries.delay_initial_ms),
        max_delay_ms: u64::from(function.retries.delay_max_ms),
        backoff_permille: function.retries.backoff_milli,
        timeout_ms: function.timeout_ms,
        sync_client_retries: false,
    }
}

fn inputs(items: &[pb::FunctionPutInputsItem]) -> Result<Vec<NewInput>, Error> {
    let one = |item: &pb::FunctionPutInputsItem| {
        let payload = item.input.clone().unwrap_or_default();
        if payload.len() > calls::PAYLOAD_BYTES_MAX {
            return Err(Error::Invalid(format!("input {} has {} bytes; larger than 2 MiB must be a blob", item.idx, payload.len())));
        }
        let idx = u32::try_from(item.idx).map_err(|_| Error::Invalid(format!("{} cannot be the place of an input", item.idx)))?;
        Ok(NewInput { idx, payload })
    };
    items.iter().map(one).collect()
}

/// Returns how many bytes inputs have.
fn bytes_of(items: &[pb::FunctionPutInputsItem]) -> usize {
    items.iter().filter_map(|item| item.input.as_ref()).map(bytes::Bytes::len).sum()
}

fn put_answer(put: Vec<PutInput>) -> Vec<pb::FunctionPutInputsResponseItem> {
    let one = |put: PutInput| pb::FunctionPutInputsResponseItem {
        idx: i32::try_from(put.idx).unwrap_or(i32::MAX),
        input_id: put.input.to_string(),
        input_jwt: input_token::make(put.idx, put.input),
    };
    put.into_iter().map(one).collect()
}

fn parent(caller: &Caller, input: &str) -> Result<Option<Parent>, Error> {
    if input.is_empty() {
        return Ok(None);
    }
    let task = if let Identity::Task(task) = caller.identity { Some(task) } else { None };
    Ok(Some(Parent { input: input.parse()?, task }))
}

/// Refuses a client's call of what an app had in an earlier version and has no more. What still runs of that version may go on.
async fn must_be_published(api: &Api, caller: &Caller, id: FunctionId, function: &Function) -> Result<(), Error> {
    let published = |state: &State| {
        let (app, id) = (state.apps.get(&function.app).filter(|app| app.state == AppState::Deployed), function.parent.unwrap_or(id));
        app.is_none_or(|app| app.layout.functions.values().any(|other| *other == id) || state.pinned_version(function.app, id).is_some())
    };
    if !matches!(caller.identity, Identity::Client(_)) {
        return Ok(());
    }
    let state = api.read_latest_unless(published).await?;
    match state.apps.get(&function.app).filter(|_| !published(&state)) {
        None => Ok(()),
        Some(app) => {
            let (kind, name) = function.tag.strip_suffix(".*").map_or(("function", &*function.tag), |class| ("class", class));
            let version = app.deployments.last().map_or(0, |last| last.version);
            Err(Error::NotFound(format!(
                "App '{}' has no {kind} '{name}' any more: its version {version} was deployed without it; `modal app history {}` shows what changed when",
                app.name, app.name
            )))
        }
    }
}

pub(super) async fn map(api: &Api, caller: &Caller, request: pb::FunctionMapRequest) -> Result<pb::FunctionMapResponse, Error> {
    use pb::FunctionCallInvocationType as Wire;
    let (id, function) = function::find(api, &request.function_id).await?;
    super::app::must_live(api, function.app).await?;
    must_be_published(api, caller, id, &function).await?;
    bound::note_use(api, id, &function).await?;
    if let Identity::Client(_) = caller.identity {
        api.lifecycle.called(function.app);
    }
    let shard = id.shard().ok_or_else(|| Error::Invalid(format!("function {id} names no shard")))?;
    let key = caller.key();
    let call = CallId::derive_in(shard, &[&caller.identity.scope(), key.as_bytes()]);
    let open = OpenCall {
        call,
        function: id,
        pool: id,
        kind: if request.function_call_type() == pb::FunctionCallType::Map { CallKind::Map } else { CallKind::Unary },
        invocation: match request.function_call_invocation_type() {
            Wire::Async => Invocation::Async,
            Wire::AsyncLegacy => Invocation::AsyncLegacy,
            _ => Invocation::Sync,
        },
        parent: parent(caller, &request.parent_input_id)?,
        created_ms: api.now().0,
        policy: policy(&function),
    };
    let _room = api.intake.enter(bytes_of(&request.pipelined_inputs)).await?;
    blob_uses::note_inputs(api, call, &request.pipelined_inputs).await?;
    let put = api.calls.open_call_with(open, inputs(&request.pipelined_inputs)?, &key).await.map_err(refused)?;
    Ok(pb::FunctionMapResponse {
        function_call_id: call.to_string(),
        pipelined_inputs: put_answer(put),
        retry_policy: Some(pb::FunctionRetryPolicy::default()),
        function_call_jwt: input_token::make(0, call),
        sync_client_retries_enabled: false,
        max_inputs_outstanding: INPUTS_OUTSTANDING,
    })
}

/// What Python's pickle makes of no arguments, positional and by name.
const NO_ARGUMENTS: &[u8] = b"\x80\x04)}\x86.";

/// Calls a function without arguments for a time of its schedule. The same time again is the same call.
pub(crate) async fn open_scheduled(api: &Api, id: FunctionId, function: &Function, due: Timestamp) -> Result<CallId, Error> {
    let open = OpenCall::scheduled(id, due, api.now().0, policy(function));
    let open = open.ok_or_else(|| Error::Invalid(format!("function {id} names no shard")))?;
    let call = open.call;
    let input = pb::FunctionInput {
        args_oneof: Some(pb::function_input::ArgsOneof::Args(NO_ARGUMENTS.into())),
        data_format: pb::DataFormat::Pickle.into(),
        ..Default::default()
    };
    let input = NewInput { idx: 0, payload: input.encode_to_vec().into() };
    api.calls.open_call_with(open, vec![input], "schedule").await.map_err(refused)?;
    Ok(call)
}

pub(super) async fn put_inputs(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionPutInputsRequest,
) -> Result<pb::FunctionPutInputsResponse, Error> {
    let call: CallId = request.function_call_id.parse()?;
    let _room = api.intake.enter(bytes_of(&request.inputs)).await?;
    blob_uses::note_inputs(api, call, &request.inputs).await?;
    let put = api.calls.put_inputs(call, inputs(&request.inputs)?, &caller.key()).await.map_err(refused)?;
    Ok(pb::FunctionPutInputsResponse { inputs: put_answer(put) })
}

pub(super) async fn finish_inputs(api: &Api, _caller: &Caller, request: pb::FunctionFinishInputsRequest) -> Result<(), Error> {
    api.calls.finish_inputs(request.function_call_id.parse()?).await.map_err(refused)
}

pub(super) async fn retry_inputs(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionRetryInputsRequest,
) -> Result<pb::FunctionRetryInputsResponse, Error> {
    let (mut retries, mut places) = (Vec::new(), Vec::new());
    for item in request.inputs {
        let (idx, input) = input_token::read::<InputId>(&item.input_jwt)?;
        retries.push(RetryInput { input, retry_count: item.retry_count, payload: item.input.unwrap_or_default() });
        places.push(idx);
    }
    let retried = api.calls.retry_inputs(retries, &caller.key()).await.map_err(refused)?;
    let tokens = retried.into_iter().zip(places).map(|((input, _), idx)| input_token::make(idx, input));
    Ok(pb::FunctionRetryInputsResponse { input_jwts: tokens.collect() })
}

/// What a task brings along with an output, kept with the result: the record's bytes are `PutOutputsItem`.
fn output_item(output: Output) -> pb::FunctionGetOutputsItem {
    let brought = pb::FunctionPutOutputsItem::decode(output.result).unwrap_or_default();
    let made = || {
        let status = match output.status {
            Status::Terminated => pb::generic_result::GenericStatus::Terminated,
            Status::TimedOut => pb::generic_result::GenericStatus::Timeout,
            _ => pb::generic_result::GenericStatus::InternalFailure,
        };
        let exception = match output.status {
            Status::Terminated => "the input was cancelled",
            Status::TimedOut => "the input took longer than its function's timeout",
            _ => "the input's containers were lost",
        };
        pb::GenericResult { status: status.into(), exception: exception.to_owned(), ..Default::default() }.encode_to_vec().into()
    };
    // What a container says of a cancelled input is nothing but that it is.
    let result = brought.result.filter(|result| !result.is_empty() && output.status != Status::Terminated);
    pb::FunctionGetOutputsItem {
        result: Some(result.unwrap_or_else(made)),
        idx: i32::try_from(output.idx).unwrap_or(i32::MAX),
        input_id: output.input.to_string(),
        data_format: brought.data_format,
        task_id: output.task.map(|task| task.to_string()).unwrap_or_default(),
        input_started_at: brought.input_started_at,
        output_created_at: super::seconds(shoal_state::Timestamp(output.at_ms)),
        // Maps take an output of another try than they count for a stale one.
        retry_count: output.client_count,
        ..Default::default()
    }
}

/// Notes that whoever waits for a call is there, where that is in doubt.
async fn note_client(api: &Api, caller: &Caller, call: CallId) {
    if matches!(caller.identity, Identity::Client(_))
        && api.lifecycle.misses_anyone()
        && let Ok(info) = api.calls.info(call).await
        && let Some(function) = api.local().functions.get(&info.open.function)
    {
        api.lifecycle.called(function.app);
    }
}

pub(super) async fn get_outputs(
    api: &Api,
    caller: &Caller,
    request: pb::FunctionGetOutputsRequest,
) -> Result<pb::FunctionGetOutputsResponse, Error> {
    let call: CallId = request.function_call_id.parse()?;
    note_client(api, caller, call).await;
    let after: Entry = request.last_entry_id.parse().map_err(|error: calls::NotAnEntry| Error::Invalid(error.to_string()))?;
    let max = usize::try_from(request.max_values).ok().filter(|max| *max > 0).unwrap_or(OUTPUTS_MAX);
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(OUTPUTS_WAIT_MAX);
    let clear = request.clear_on_success;
    let outputs = match (request.start_idx, request.end_idx) {
        (Some(first), Some(last)) => {
            let idx = |idx: i32| u32::try_from(idx).map_err(|_| Error::Invalid(format!("an output's index cannot be {idx}")));
            api.calls.outputs_of(call, idx(first)?..=idx(last)?, wait, clear).await
        }
        _ => api.calls.outputs(call, after, max, wait, clear).await,
    };
    let outputs = outputs.map_err(refused)?;
    if let Some(first) = request.start_idx
        && outputs.items.is_empty()
        && outputs.unfinished == 0
    {
        let inputs = api.calls.info(call).await.map_err(refused)?.inputs;
        if u32::try_from(first).is_ok_and(|first| first >= inputs) {
            return Err(Error::Invalid(format!("call {call} has no output {first}: it has {inputs} inputs, counted from 0")));
        }
    }
    if let [Output { status, .. }] = &outputs.items[..]
        && *status != Status::Success
    {
        yielded::taken(api, call).await?;
    }
    let items: Vec<pb::FunctionGetOutputsItem> = outputs.items.into_iter().map(output_item).collect();
    Ok(pb::FunctionGetOutputsResponse {
        idxs: items.iter().map(|item| item.idx).collect(),
        outputs: items,
        last_entry_id: outputs.last.to_string(),
        num_unfinished_inputs: i32::try_from(outputs.unfinished).unwrap_or(i32::MAX),
    })
}

pub(super) async fn cancel(api: &Api, _caller: &Caller, request: pb::FunctionCallCancelRequest) -> Result<(), Error> {
    let call: CallId = request.function_call_id.parse()?;
    let cancelled = api.calls.cancel_call(call).await.map_err(refused)?;
    if request.terminate_containers {
        for (task, _) in cancelled.running {
            let stop = shoal_state::Command::StopTask { id: task, why: format!("call {call} was cancelled with its containers") };
            if let Err(error) = api.propose(stop).await {
                tracing::info!(%task, %error, "a task to be stopped has ended already");
            }
        }
    }
    Ok(())
}

pub(super) async fn from_id(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionCallFromIdRequest,
) -> Result<pb::FunctionCallFromIdResponse, Error> {
    let call: CallId = request.function_call_id.parse()?;
    let info = api.calls.info(call).await.map_err(refused)?;
    let function: FunctionId = info.open.function;
    let app = api.local().functions.get(&function).map(|function| function.app.to_string()).unwrap_or_default();
    Ok(pb::FunctionCallFromIdResponse {
        function_call_id: call.to_string(),
        num_inputs: i32::try_from(info.inputs).unwrap_or(i32::MAX),
        metadata: Some(pb::FunctionCallHandleMetadata { app_id: app, function_id: function.to_string() }),
    })
}
