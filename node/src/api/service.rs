//! The methods of the service, each a line: who answers it. Decode, ask the policy, call one function, encode.
//!
//! A method that is added here needs its lines in [`policy`]: without, it is refused to everybody.

use std::collections::HashSet;
use std::future::Future;
use std::sync::OnceLock;

use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::modal_client_server::ModalClient;
use tonic::{Request, Response, Status};

use super::error::Error;
use super::policy::{self, Names};
use super::{
    Api, Caller, app, app_history, blob, bound, call, call_info, container, dict, environment, exec, exec_by_server, function,
    function_history, image, input_plane, logs, lookup, metrics, mount, queue, release, sandbox, scaling, secret, suggest, task, token,
    yielded,
};

type Stream<T> = tonic::codegen::BoxStream<T>;

/// Finds who calls: the layer in front put it there.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request.extensions().get::<Caller>().cloned().ok_or_else(|| Status::unauthenticated("this call did not pass the door"))
}

async fn answer<'a, Q: Names, A, F>(
    api: &'a Api,
    caller: &'a Caller,
    request: Q,
    method: impl FnOnce(&'a Api, &'a Caller, Q) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<A, Error>>,
{
    let answered = match policy::permit(api, caller, &request).await {
        Ok(()) => method(api, caller, request).await,
        Err(refused) => Err(refused),
    };
    if let Err(error) = &answered {
        api.note_refusal(Some(caller.identity), &caller.method, &caller.from, error);
    }
    Ok(Response::new(answered?))
}

/// Answers a removal. What an earlier try of the same removal took away is gone, and its answer was lost: that is no failure.
async fn remove<'a, Q: Names, F>(
    api: &'a Api,
    caller: &'a Caller,
    request: Q,
    method: impl FnOnce(&'a Api, &'a Caller, Q) -> F,
) -> Result<Response<()>, Status>
where
    F: Future<Output = Result<(), Error>>,
{
    let removing = async |api, caller: &'a Caller, request| match method(api, caller, request).await {
        Err(error) if caller.retried && error.is_absence() => Ok(()),
        done => done,
    };
    answer(api, caller, request, removing).await
}

/// Says whether a method of the schema is among those below: the others are declared, and not served yet.
pub(super) fn implements(method: &str) -> bool {
    static NAMES: OnceLock<HashSet<String>> = OnceLock::new();
    let camel = |snake: &str| snake.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect();
    NAMES.get_or_init(|| METHODS.iter().map(|name| camel(name)).collect()).contains(method)
}

macro_rules! methods {
    (
        $($name:ident: $request:ty => $response:ty, $function:path;)*
        @removals $($removal:ident: $removed:ty, $remove:path;)*
    ) => {
        /// The methods that are served, as Rust calls them.
        const METHODS: &[&str] = &[$(stringify!($name),)* $(stringify!($removal)),*];

        #[tonic::async_trait]
        impl ModalClient for Api {
            $(
                async fn $name(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                    let caller = caller(&request)?;
                    answer(self, &caller, request.into_inner(), $function).await
                }
            )*
            $(
                async fn $removal(&self, request: Request<$removed>) -> Result<Response<()>, Status> {
                    let caller = caller(&request)?;
                    remove(self, &caller, request.into_inner(), $remove).await
                }
            )*
        }
    };
}

methods! {
    client_hello: () => pb::ClientHelloResponse, token::hello;
    workspace_name_lookup: () => pb::WorkspaceNameLookupResponse, token::workspace;
    workspace_settings: () => pb::WorkspaceSettingsResponse, environment::settings;
    workspace_set_default_environment: pb::WorkspaceSetDefaultEnvironmentRequest => (), environment::set_default;
    token_info_get: pb::TokenInfoGetRequest => pb::TokenInfoGetResponse, token::info;
    auth_token_get: pb::AuthTokenGetRequest => pb::AuthTokenGetResponse, token::short_lived;
    token_delete: pb::TokenDeleteRequest => (), token::delete;
    environment_get_or_create: pb::EnvironmentGetOrCreateRequest => pb::EnvironmentGetOrCreateResponse, environment::get_or_create;
    environment_create: pb::EnvironmentCreateRequest => (), environment::create;
    environment_update: pb::EnvironmentUpdateRequest => pb::EnvironmentListItem, environment::update;
    environment_list: () => pb::EnvironmentListResponse, environment::list;
    app_create: pb::AppCreateRequest => pb::AppCreateResponse, app::create;
    app_get_or_create: pb::AppGetOrCreateRequest => pb::AppGetOrCreateResponse, app::get_or_create;
    app_get_by_deployment_name: pb::AppGetByDeploymentNameRequest => pb::AppGetByDeploymentNameResponse, app::by_name;
    app_get_layout: pb::AppGetLayoutRequest => pb::AppGetLayoutResponse, app::get_layout;
    app_get_info: pb::AppGetInfoRequest => pb::AppGetInfoResponse, app::info;
    app_get_lifecycle: pb::AppGetLifecycleRequest => pb::AppGetLifecycleResponse, app::get_lifecycle;
    app_get_time_range_stats: pb::AppGetTimeRangeStatsRequest => pb::AppGetTimeRangeStatsResponse, app_history::stats;
    object_suggest: pb::ObjectSuggestRequest => pb::ObjectSuggestResponse, suggest::names;
    app_publish: pb::AppPublishRequest => pb::AppPublishResponse, release::publish;
    app_heartbeat: pb::AppHeartbeatRequest => (), app::heartbeat;
    app_client_disconnect: pb::AppClientDisconnectRequest => (), app::disconnect;
    app_stop: pb::AppStopRequest => (), app::stop_request;
    app_list: pb::AppListRequest => pb::AppListResponse, app::list;
    app_deployment_history: pb::AppDeploymentHistoryRequest => pb::AppDeploymentHistoryResponse, release::history;
    app_rollback: pb::AppRollbackRequest => pb::AppRollbackResponse, release::rollback;
    app_rollover: pb::AppRolloverRequest => pb::AppRolloverResponse, release::rollover;
    app_get_tags: pb::AppGetTagsRequest => pb::AppGetTagsResponse, app::get_tags;
    app_set_tags: pb::AppSetTagsRequest => (), app::set_tags;
    mount_get_or_create: pb::MountGetOrCreateRequest => pb::MountGetOrCreateResponse, mount::get_or_create;
    mount_batched_check_existence: pb::MountBatchedCheckExistenceRequest => pb::MountBatchedCheckExistenceResponse, mount::check;
    mount_put_file: pb::MountPutFileRequest => pb::MountPutFileResponse, mount::put_file;
    blob_create: pb::BlobCreateRequest => pb::BlobCreateResponse, blob::create;
    blob_get: pb::BlobGetRequest => pb::BlobGetResponse, blob::get_url;
    secret_get_or_create: pb::SecretGetOrCreateRequest => pb::SecretGetOrCreateResponse, secret::get_or_create;
    secret_update: pb::SecretUpdateRequest => (), secret::update;
    secret_get_info: pb::SecretGetInfoRequest => pb::SecretGetInfoResponse, secret::info;
    secret_list: pb::SecretListRequest => pb::SecretListResponse, secret::list;
    function_precreate: pb::FunctionPrecreateRequest => pb::FunctionPrecreateResponse, function::precreate;
    function_create: pb::FunctionCreateRequest => pb::FunctionCreateResponse, function::create;
    function_bind_params: pb::FunctionBindParamsRequest => pb::FunctionBindParamsResponse, bound::bind;
    function_list_variants: pb::FunctionListVariantsRequest => pb::FunctionListVariantsResponse, bound::list;
    function_get: pb::FunctionGetRequest => pb::FunctionGetResponse, lookup::function_get;
    function_get_by_id: pb::FunctionGetByIdRequest => pb::FunctionGetByIdResponse, function::get_by_id;
    function_get_current_stats: pb::FunctionGetCurrentStatsRequest => pb::FunctionStats, function::current_stats;
    function_get_scheduling_params: pb::FunctionGetSchedulingParamsRequest => pb::FunctionGetSchedulingParamsResponse, scaling::get;
    function_update_scheduling_params: pb::FunctionUpdateSchedulingParamsRequest => pb::FunctionUpdateSchedulingParamsResponse, scaling::update;
    class_create: pb::ClassCreateRequest => pb::ClassCreateResponse, function::class_create;
    class_get: pb::ClassGetRequest => pb::ClassGetResponse, lookup::class_get;
    app_get_logs: pb::AppGetLogsRequest => Stream<pb::TaskLogsBatch>, logs::follow;
    app_fetch_logs: pb::AppFetchLogsRequest => pb::AppFetchLogsResponse, logs::fetch;
    function_map: pb::FunctionMapRequest => pb::FunctionMapResponse, call::map;
    function_put_inputs: pb::FunctionPutInputsRequest => pb::FunctionPutInputsResponse, call::put_inputs;
    function_finish_inputs: pb::FunctionFinishInputsRequest => (), call::finish_inputs;
    function_retry_inputs: pb::FunctionRetryInputsRequest => pb::FunctionRetryInputsResponse, call::retry_inputs;
    function_get_outputs: pb::FunctionGetOutputsRequest => pb::FunctionGetOutputsResponse, call::get_outputs;
    attempt_start: pb::AttemptStartRequest => pb::AttemptStartResponse, input_plane::start;
    attempt_await: pb::AttemptAwaitRequest => pb::AttemptAwaitResponse, input_plane::wait;
    attempt_retry: pb::AttemptRetryRequest => pb::AttemptRetryResponse, input_plane::retry;
    map_start_or_continue: pb::MapStartOrContinueRequest => pb::MapStartOrContinueResponse, input_plane::map;
    map_await: pb::MapAwaitRequest => pb::MapAwaitResponse, input_plane::map_outputs;
    map_check_inputs: pb::MapCheckInputsRequest => pb::MapCheckInputsResponse, input_plane::check_inputs;
    function_call_cancel: pb::FunctionCallCancelRequest => (), call::cancel;
    function_call_from_id: pb::FunctionCallFromIdRequest => pb::FunctionCallFromIdResponse, call::from_id;
    function_call_fetch: pb::FunctionCallFetchRequest => pb::FunctionCallFetchResponse, function_history::fetch;
    function_call_count: pb::FunctionCallCountRequest => pb::FunctionCallCountResponse, function_history::count;
    metrics_get_info: pb::MetricsGetInfoRequest => pb::MetricsGetInfoResponse, metrics::info;
    function_get_metrics: pb::FunctionGetMetricsRequest => pb::FunctionGetMetricsResponse, metrics::of_function;
    function_get_time_range_stats: pb::FunctionGetTimeRangeStatsRequest => pb::FunctionGetTimeRangeStatsResponse, function_history::stats;
    function_call_list: pb::FunctionCallListRequest => pb::FunctionCallListResponse, call_info::list;
    function_call_get_info: pb::FunctionCallGetInfoRequest => pb::FunctionCallGetInfoResponse, call_info::get;
    function_get_call_graph: pb::FunctionGetCallGraphRequest => pb::FunctionGetCallGraphResponse, call_info::graph;
    function_call_get_data_out: pb::FunctionCallGetDataRequest => Stream<pb::DataChunk>, yielded::data_out;
    container_hello: () => (), container::hello;
    container_heartbeat: pb::ContainerHeartbeatRequest => pb::ContainerHeartbeatResponse, container::heartbeat;
    function_start_pty_shell: () => (), container::connect_terminal;
    container_log: pb::ContainerLogRequest => (), container::log;
    task_result: pb::TaskResultRequest => (), container::task_result;
    task_cluster_hello: pb::TaskClusterHelloRequest => pb::TaskClusterHelloResponse, container::cluster_hello;
    cluster_get: pb::ClusterGetRequest => pb::ClusterGetResponse, task::gang;
    cluster_list: pb::ClusterListRequest => pb::ClusterListResponse, task::gangs;
    function_get_inputs: pb::FunctionGetInputsRequest => pb::FunctionGetInputsResponse, container::get_inputs;
    function_put_outputs: pb::FunctionPutOutputsRequest => (), container::put_outputs;
    function_call_get_data_in: pb::FunctionCallGetDataRequest => Stream<pb::DataChunk>, container::data_in;
    function_call_put_data_out: pb::FunctionCallPutDataRequest => (), container::put_data_out;
    function_get_dynamic_concurrency: pb::FunctionGetDynamicConcurrencyRequest => pb::FunctionGetDynamicConcurrencyResponse, scaling::concurrency;
    image_get_or_create: pb::ImageGetOrCreateRequest => pb::ImageGetOrCreateResponse, image::get_or_create;
    image_join_streaming: pb::ImageJoinStreamingRequest => Stream<pb::ImageJoinStreamingResponse>, image::join;
    image_from_id: pb::ImageFromIdRequest => pb::ImageFromIdResponse, image::from_id;
    image_build_chain_get: pb::ImageBuildChainGetRequest => pb::ImageBuildChainGetResponse, image::build_chain;
    app_count_logs: pb::AppCountLogsRequest => pb::AppCountLogsResponse, logs::count;
    task_list: pb::TaskListRequest => pb::TaskListResponse, task::list;
    task_get_info: pb::TaskGetInfoRequest => pb::TaskGetInfoResponse, task::info;
    task_get_command_router_access: pb::TaskGetCommandRouterAccessRequest => pb::TaskGetCommandRouterAccessResponse, exec::access;
    container_exec: pb::ContainerExecRequest => pb::ContainerExecResponse, exec_by_server::start;
    container_exec_get_output: pb::ContainerExecGetOutputRequest => Stream<pb::RuntimeOutputBatch>, exec_by_server::output;
    container_exec_put_input: pb::ContainerExecPutInputRequest => (), exec_by_server::put;
    container_exec_wait: pb::ContainerExecWaitRequest => pb::ContainerExecWaitResponse, exec_by_server::wait;
    container_stop: pb::ContainerStopRequest => pb::ContainerStopResponse, task::stop;
    sandbox_create: pb::SandboxCreateRequest => pb::SandboxCreateResponse, sandbox::create;
    sandbox_create_v2: pb::SandboxCreateV2Request => pb::SandboxCreateV2Response, sandbox::create_v2;
    sandbox_get_task_id: pb::SandboxGetTaskIdRequest => pb::SandboxGetTaskIdResponse, sandbox::task_id;
    sandbox_get_task_id_v2: pb::SandboxGetTaskIdRequest => pb::SandboxGetTaskIdResponse, sandbox::task_id;
    sandbox_wait: pb::SandboxWaitRequest => pb::SandboxWaitResponse, sandbox::wait;
    sandbox_wait_v2: pb::SandboxWaitRequest => pb::SandboxWaitResponse, sandbox::wait;
    sandbox_terminate: pb::SandboxTerminateRequest => pb::SandboxTerminateResponse, sandbox::terminate;
    sandbox_terminate_v2: pb::SandboxTerminateRequest => pb::SandboxTerminateResponse, sandbox::terminate;
    sandbox_get_command_router_access: pb::SandboxGetCommandRouterAccessRequest => pb::SandboxGetCommandRouterAccessResponse, sandbox::access;
    dict_get_or_create: pb::DictGetOrCreateRequest => pb::DictGetOrCreateResponse, dict::get_or_create;
    dict_get_by_id: pb::DictGetByIdRequest => pb::DictGetByIdResponse, dict::get_by_id;
    dict_heartbeat: pb::DictHeartbeatRequest => (), dict::heartbeat;
    dict_list: pb::DictListRequest => pb::DictListResponse, dict::list;
    dict_clear: pb::DictClearRequest => (), dict::clear;
    dict_get: pb::DictGetRequest => pb::DictGetResponse, dict::get;
    dict_contains: pb::DictContainsRequest => pb::DictContainsResponse, dict::contains;
    dict_len: pb::DictLenRequest => pb::DictLenResponse, dict::len;
    dict_update: pb::DictUpdateRequest => pb::DictUpdateResponse, dict::update;
    dict_pop: pb::DictPopRequest => pb::DictPopResponse, dict::pop;
    dict_contents: pb::DictContentsRequest => Stream<pb::DictEntry>, dict::contents;
    queue_get_or_create: pb::QueueGetOrCreateRequest => pb::QueueGetOrCreateResponse, queue::get_or_create;
    queue_get_by_id: pb::QueueGetByIdRequest => pb::QueueGetByIdResponse, queue::get_by_id;
    queue_heartbeat: pb::QueueHeartbeatRequest => (), queue::heartbeat;
    queue_list: pb::QueueListRequest => pb::QueueListResponse, queue::list;
    queue_clear: pb::QueueClearRequest => (), queue::clear;
    queue_len: pb::QueueLenRequest => pb::QueueLenResponse, queue::len;
    queue_put: pb::QueuePutRequest => (), queue::put;
    queue_get: pb::QueueGetRequest => pb::QueueGetResponse, queue::get;
    queue_next_items: pb::QueueNextItemsRequest => pb::QueueNextItemsResponse, queue::next_items;
    @removals
    environment_delete: pb::EnvironmentDeleteRequest, environment::delete;
    secret_delete: pb::SecretDeleteRequest, secret::delete;
    image_delete: pb::ImageDeleteRequest, image::delete;
    dict_delete: pb::DictDeleteRequest, dict::delete;
    queue_delete: pb::QueueDeleteRequest, queue::delete;
}
