//! Calls by the other door: what clients call by attempts, since its function has a routing region.
//!
//! Calls, rules and shards are those of [`call`]; what differs is how a client names them. A region leads nowhere else: each node
//! answers for all of them, so the door is the address at which the client is already. Containers come by their own channel
//! whatever a function says.

use std::str::FromStr as _;

use prost::Message as _;
use shoal_calls::calls::{Entry, RetryInput};
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::generic_result::GenericStatus;
use shoal_state::{CallId, InputId};

use super::error::Error;
use super::{Api, Caller, Identity, call};

/// How functions said where they are to be called before there was a setting for it.
const REGION_OPTION: &str = "input_plane_region";

/// Returns the region that a function is called through, if it names one.
pub(super) fn region(view: &pb::Function) -> Option<String> {
    [Some(&view.routing_region), view.experimental_options.get(REGION_OPTION)]
        .into_iter()
        .flatten()
        .find(|region| !region.is_empty())
        .cloned()
}

/// Tells a client where to call a function that names a region.
pub(super) fn offer(caller: &Caller, metadata: &mut pb::FunctionHandleMetadata) {
    if metadata.input_plane_region.is_some() && matches!(caller.identity, Identity::Client(_)) && !caller.authority.is_empty() {
        metadata.input_plane_url = Some(format!("http://{}", caller.authority));
    }
    metadata.method_handle_metadata.values_mut().for_each(|method| offer(caller, method));
}

/// As [`offer`], for all methods of a class.
pub(super) fn offer_class(caller: &Caller, class: &mut pb::ClassHandleMetadata) {
    let methods = class.methods.iter_mut().filter_map(|method| method.function_handle_metadata.as_mut());
    methods.chain(class.class_function_metadata.as_mut()).for_each(|metadata| offer(caller, metadata));
}

/// An input as clients name it here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Attempt {
    call: CallId,
    input: InputId,
    /// The number of the try that the client asked for last, 0 if none.
    count: u32,
}

impl Attempt {
    fn read(token: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = token.split('/').collect();
        let [call, input, count] = parts[..] else { return Err(not_ours(token)) };
        Ok(Self { call: call.parse()?, input: input.parse()?, count: u32::from_str(count).map_err(|_| not_ours(token))? })
    }

    fn token(self) -> String {
        format!("{}/{}/{}", self.call, self.input, self.count)
    }
}

fn not_ours(token: &str) -> Error {
    Error::Invalid(format!("{token:?} is not the token of an attempt that this cluster gave out"))
}

async fn open(
    api: &Api,
    caller: &Caller,
    (function_id, parent_input_id): (String, String),
    kind: pb::FunctionCallType,
    inputs: Vec<pb::FunctionPutInputsItem>,
) -> Result<(CallId, Vec<String>), Error> {
    let request = pb::FunctionMapRequest {
        function_id,
        parent_input_id,
        function_call_type: kind.into(),
        function_call_invocation_type: pb::FunctionCallInvocationType::Sync.into(),
        pipelined_inputs: inputs,
        ..Default::default()
    };
    let opened = call::map(api, caller, request).await?;
    let id: CallId = opened.function_call_id.parse()?;
    Ok((id, first_attempts(id, opened.pipelined_inputs)?))
}

fn first_attempts(call: CallId, put: Vec<pb::FunctionPutInputsResponseItem>) -> Result<Vec<String>, Error> {
    put.into_iter().map(|item| Ok(Attempt { call, input: item.input_id.parse()?, count: 0 }.token())).collect()
}

pub(super) async fn start(api: &Api, caller: &Caller, request: pb::AttemptStartRequest) -> Result<pb::AttemptStartResponse, Error> {
    let input = request.input.ok_or_else(|| Error::Invalid("this attempt has no input".to_owned()))?;
    let of = (request.function_id, request.parent_input_id);
    let (_, tokens) = open(api, caller, of, pb::FunctionCallType::Unary, vec![input]).await?;
    Ok(pb::AttemptStartResponse {
        attempt_token: tokens.into_iter().next().unwrap_or_default(),
        retry_policy: Some(pb::FunctionRetryPolicy::default()),
    })
}

pub(super) async fn wait(api: &Api, caller: &Caller, request: pb::AttemptAwaitRequest) -> Result<pb::AttemptAwaitResponse, Error> {
    let attempt = Attempt::read(&request.attempt_token)?;
    let outputs = pb::FunctionGetOutputsRequest {
        function_call_id: attempt.call.to_string(),
        timeout: request.timeout_secs,
        last_entry_id: Entry::default().to_string(),
        clear_on_success: true,
        requested_at: request.requested_at,
        ..Default::default()
    };
    let found = call::get_outputs(api, caller, outputs).await?.outputs;
    let of_attempt = |item: &pb::FunctionGetOutputsItem| item.retry_count == attempt.count;
    Ok(pb::AttemptAwaitResponse { output: found.into_iter().rfind(of_attempt) })
}

/// Has an input run again, by the next number that its tries have.
async fn again(api: &Api, caller: &Caller, item: pb::FunctionPutInputsItem, token: &str) -> Result<String, Error> {
    let before = Attempt::read(token)?;
    let retry = RetryInput { input: before.input, retry_count: 0, payload: item.input.unwrap_or_default() };
    let retried = api.calls.retry_inputs(vec![retry], &format!("{} {token}", caller.key())).await.map_err(call::refused)?;
    let count = retried.first().map_or(before.count, |(_, count)| *count);
    Ok(Attempt { count, ..before }.token())
}

pub(super) async fn retry(api: &Api, caller: &Caller, request: pb::AttemptRetryRequest) -> Result<pb::AttemptRetryResponse, Error> {
    let attempt_token = again(api, caller, request.input.unwrap_or_default(), &request.attempt_token).await?;
    Ok(pb::AttemptRetryResponse { attempt_token })
}

pub(super) async fn map(
    api: &Api,
    caller: &Caller,
    request: pb::MapStartOrContinueRequest,
) -> Result<pb::MapStartOrContinueResponse, Error> {
    use pb::map_start_or_continue_request::CallInfo;
    let known = request.call_info.map(|(CallInfo::FunctionCallId(id) | CallInfo::MapToken(id))| id).unwrap_or_default();
    let function_id = request.function_id;
    let (old, new): (Vec<_>, Vec<_>) = request.items.into_iter().partition(|item| !item.attempt_token().is_empty());
    if known.is_empty() && !old.is_empty() {
        return Err(Error::Invalid("a map that begins cannot repeat inputs: they are of another one".to_owned()));
    }
    let mut attempt_tokens = Vec::with_capacity(old.len() + new.len());
    for item in old {
        let token = item.attempt_token().to_owned();
        attempt_tokens.push(again(api, caller, item.input.unwrap_or_default(), &token).await?);
    }
    let inputs: Vec<_> = new.into_iter().filter_map(|item| item.input).collect();
    let call = if known.is_empty() {
        let of = (function_id.clone(), request.parent_input_id);
        let (call, tokens) = open(api, caller, of, pb::FunctionCallType::Map, inputs).await?;
        attempt_tokens.extend(tokens);
        call
    } else {
        let call: CallId = known.parse()?;
        if !inputs.is_empty() {
            let more = pb::FunctionPutInputsRequest { function_id: function_id.clone(), function_call_id: known, inputs };
            attempt_tokens.extend(first_attempts(call, call::put_inputs(api, caller, more).await?.inputs)?);
        }
        call
    };
    Ok(pb::MapStartOrContinueResponse {
        map_token: call.to_string(),
        function_id,
        function_call_id: call.to_string(),
        max_inputs_outstanding: call::INPUTS_OUTSTANDING,
        attempt_tokens,
        retry_policy: Some(pb::FunctionRetryPolicy::default()),
    })
}

/// Lets a client take the end of an input that was lost too often for a failure: it was run again as often as it is, and what
/// is told to be an internal failure is sent again by maps for ever.
fn settled(mut item: pb::FunctionGetOutputsItem) -> pb::FunctionGetOutputsItem {
    let result = item.result.as_ref().and_then(|bytes| pb::GenericResult::decode(bytes.clone()).ok());
    if let Some(mut result) = result.filter(|result| result.status() == GenericStatus::InternalFailure) {
        result.set_status(GenericStatus::Failure);
        item.result = Some(result.encode_to_vec().into());
    }
    item
}

pub(super) async fn map_outputs(api: &Api, caller: &Caller, request: pb::MapAwaitRequest) -> Result<pb::MapAwaitResponse, Error> {
    use pb::map_await_request::CallInfo;
    let outputs = pb::FunctionGetOutputsRequest {
        function_call_id: request.call_info.map(|(CallInfo::FunctionCallId(id) | CallInfo::MapToken(id))| id).unwrap_or_default(),
        timeout: request.timeout,
        last_entry_id: request.last_entry_id,
        requested_at: request.requested_at,
        ..Default::default()
    };
    let found = call::get_outputs(api, caller, outputs).await?;
    let outputs = found.outputs.into_iter().map(settled).collect();
    Ok(pb::MapAwaitResponse { outputs, last_entry_id: found.last_entry_id })
}

/// Says that nothing was lost: the node itself has inputs run again whose containers are.
pub(super) async fn check_inputs(
    _api: &Api,
    _caller: &Caller,
    request: pb::MapCheckInputsRequest,
) -> Result<pb::MapCheckInputsResponse, Error> {
    Ok(pb::MapCheckInputsResponse { lost: vec![false; request.attempt_tokens.len()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_read_back_and_nothing_else_is_one() {
        let attempt = Attempt { call: CallId::from_random(1), input: InputId::from_random(2), count: 3 };
        assert_eq!(Attempt::read(&attempt.token()).unwrap(), attempt);
        for other in ["", "fc-1", &attempt.call.to_string(), &format!("{}/x", attempt.token()), &attempt.token().replace("/3", "/-1")] {
            assert!(Attempt::read(other).is_err(), "{other}");
        }
    }

    #[test]
    fn the_region_is_that_of_the_setting_or_of_the_older_option() {
        let option = || [(REGION_OPTION.to_owned(), "old".to_owned())].into();
        let of = |routing_region: &str, experimental_options| {
            region(&pb::Function { routing_region: routing_region.to_owned(), experimental_options, ..Default::default() })
        };
        assert_eq!(of("", [].into()), None);
        assert_eq!([of("", option()), of("new", option())], ["old", "new"].map(|region| Some(region.to_owned())));
    }

    #[test]
    fn what_was_lost_too_often_is_a_failure_and_the_rest_stays_as_it_is() {
        let item = |status: GenericStatus| {
            let result = pb::GenericResult { status: status.into(), exception: "why".to_owned(), ..Default::default() };
            settled(pb::FunctionGetOutputsItem { result: Some(result.encode_to_vec().into()), ..Default::default() })
        };
        let read = |item: pb::FunctionGetOutputsItem| pb::GenericResult::decode(item.result.unwrap()).unwrap();
        let (lost, timed_out) = (read(item(GenericStatus::InternalFailure)), read(item(GenericStatus::Timeout)));
        assert_eq!((lost.status(), &*lost.exception, timed_out.status()), (GenericStatus::Failure, "why", GenericStatus::Timeout));
    }
}
