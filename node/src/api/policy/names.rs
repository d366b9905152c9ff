//! What each kind of request names: the things it is about, which the limits of its caller are held against.

use std::borrow::Cow;

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_proto::task_command_router as rpb;
use shoal_state::AppId;

use crate::api::{exec_by_server, input_token, sandbox};

/// A thing that a request is about. Ids and names are as they came; what is not one of ours is the method's to refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Thing<'a> {
    /// An environment by name; empty = the default one.
    Environment(Cow<'a, str>),
    /// The environments of the cluster themselves.
    Cluster(Cow<'a, str>),
    /// An app.
    App(Cow<'a, str>),
    /// A function.
    Function(Cow<'a, str>),
    /// A class.
    Class(Cow<'a, str>),
    /// A call.
    Call(Cow<'a, str>),
    /// An input, by the token that was given out for it, with the token of its call.
    Input(Cow<'a, str>, Cow<'a, str>),
    /// A task.
    Task(Cow<'a, str>),
    /// A gang; the SDK calls it a cluster.
    Gang(Cow<'a, str>),
    /// A sandbox.
    Sandbox(Cow<'a, str>),
    /// A secret.
    Secret(Cow<'a, str>),
    /// A token.
    Token(Cow<'a, str>),
    /// A dict or a queue.
    Object(Cow<'a, str>),
}

/// What a request names.
#[diagnostic::on_unimplemented(
    message = "the policy does not know what a `{Self}` is about",
    note = "add a line for it to the table in node/src/api/policy/names.rs, and one for its method to policy/rules.rs"
)]
pub(crate) trait Names {
    /// Returns the things that the request is about, in whatever order. Empty ids name nothing.
    fn names(&self) -> Vec<Thing<'_>>;

    /// Says whether a request of a method that looks asks to create what is missing.
    fn creates(&self) -> bool {
        false
    }
}

/// Says whether a request to get something asks to create it where it is missing.
fn may_create(how: pb::ObjectCreationType) -> bool {
    how != pb::ObjectCreationType::Unspecified
}

macro_rules! names {
    ($($request:ty, $it:ident => [$($kind:ident($value:expr)),* $(,)?] $(, creates by $how:ident)?;)*) => {$(
        impl Names for $request {
            fn names(&self) -> Vec<Thing<'_>> {
                let $it = self;
                let _ = $it;
                vec![$(Thing::$kind(Cow::from($value))),*]
            }
            $(
                fn creates(&self) -> bool {
                    may_create(self.$how())
                }
            )?
        }
    )*};
}

names! {
    (), it => [];
    pb::TokenInfoGetRequest, it => [];
    pb::AuthTokenGetRequest, it => [];
    pb::TokenDeleteRequest, it => [Token(it.token_id.as_str())];
    pb::WorkspaceSetDefaultEnvironmentRequest, it => [Cluster(it.environment_name.as_str())];
    pb::EnvironmentCreateRequest, it => [Cluster(it.name.as_str())];
    pb::EnvironmentUpdateRequest, it => [Cluster(it.current_name.as_str())];
    pb::EnvironmentDeleteRequest, it => [Cluster(it.name.as_str())];
    pb::AppCreateRequest, it => [Environment(it.environment_name.as_str())];
    pb::AppGetByDeploymentNameRequest, it => [Environment(it.environment_name.as_str())];
    pb::AppListRequest, it => [Environment(it.environment_name.as_str())];
    pb::AppGetLayoutRequest, it => [App(it.app_id.as_str())];
    pb::AppGetInfoRequest, it => [App(it.app_id.as_str())];
    pb::AppGetLifecycleRequest, it => [App(it.app_id.as_str())];
    pb::AppGetTimeRangeStatsRequest, it => [App(it.app_id.as_str())];
    pb::ObjectSuggestRequest, it => [Environment(it.environment_name.as_str())];
    pb::AppHeartbeatRequest, it => [App(it.app_id.as_str())];
    pb::AppClientDisconnectRequest, it => [App(it.app_id.as_str())];
    pb::AppStopRequest, it => [App(it.app_id.as_str())];
    pb::AppDeploymentHistoryRequest, it => [App(it.app_id.as_str())];
    pb::AppRollbackRequest, it => [App(it.app_id.as_str())];
    pb::AppRolloverRequest, it => [App(it.app_id.as_str())];
    pb::AppGetTagsRequest, it => [App(it.app_id.as_str())];
    pb::AppSetTagsRequest, it => [App(it.app_id.as_str())];
    pb::AppGetLogsRequest, it => [App(it.app_id.as_str())];
    pb::AppFetchLogsRequest, it => [App(it.app_id.as_str())];
    pb::AppCountLogsRequest, it => [App(it.app_id.as_str())];
    pb::MountBatchedCheckExistenceRequest, it => [];
    pb::MountPutFileRequest, it => [];
    pb::BlobCreateRequest, it => [];
    pb::BlobGetRequest, it => [];
    pb::SecretUpdateRequest, it => [Secret(it.secret_id.as_str())];
    pb::SecretGetInfoRequest, it => [Secret(it.secret_id.as_str())];
    pb::SecretDeleteRequest, it => [Secret(it.secret_id.as_str())];
    pb::SecretListRequest, it => [Environment(it.environment_name.as_str())];
    pb::ImageJoinStreamingRequest, it => [];
    pb::ImageFromIdRequest, it => [];
    pb::ImageBuildChainGetRequest, it => [];
    pb::ImageDeleteRequest, it => [];
    pb::FunctionPrecreateRequest, it => [App(it.app_id.as_str()), Function(it.existing_function_id.as_str())];
    pb::FunctionGetRequest, it => [Environment(it.environment_name.as_str())];
    pb::FunctionGetByIdRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionListVariantsRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionGetCurrentStatsRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionGetSchedulingParamsRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionUpdateSchedulingParamsRequest, it => [Function(it.function_id.as_str())];
    pb::ClassCreateRequest, it => [App(it.app_id.as_str()), Class(it.existing_class_id.as_str())];
    pb::ClassGetRequest, it => [Environment(it.environment_name.as_str())];
    pb::FunctionMapRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionPutInputsRequest, it => [Function(it.function_id.as_str()), Call(it.function_call_id.as_str())];
    pb::FunctionFinishInputsRequest, it => [Function(it.function_id.as_str()), Call(it.function_call_id.as_str())];
    pb::FunctionGetOutputsRequest, it => [Call(it.function_call_id.as_str())];
    pb::AttemptStartRequest, it => [Function(it.function_id.as_str())];
    pb::MapCheckInputsRequest, it => [];
    pb::FunctionCallCancelRequest, it => [Call(it.function_call_id.as_str())];
    pb::FunctionCallFromIdRequest, it => [Call(it.function_call_id.as_str())];
    pb::FunctionCallFetchRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionCallCountRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionGetTimeRangeStatsRequest, it => [Function(it.function_id.as_str())];
    pb::MetricsGetInfoRequest, it => [];
    pb::FunctionGetMetricsRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionCallListRequest, it => [Function(it.function_id.as_str())];
    pb::FunctionCallGetInfoRequest, it => [Call(it.function_call_id.as_str())];
    pb::FunctionGetCallGraphRequest, it => [Call(it.function_call_id.as_str())];
    pb::TaskGetInfoRequest, it => [Task(it.task_id.as_str())];
    pb::TaskGetCommandRouterAccessRequest, it => [Task(it.task_id.as_str())];
    pb::SandboxGetTaskIdRequest, it => [Sandbox(it.sandbox_id.as_str())];
    pb::SandboxWaitRequest, it => [Sandbox(it.sandbox_id.as_str())];
    pb::SandboxTerminateRequest, it => [Sandbox(it.sandbox_id.as_str())];
    rpb::TaskExecStdioReadRequest, it => [Task(it.task_id.as_str())];
    rpb::TaskExecStdinWriteRequest, it => [Task(it.task_id.as_str())];
    rpb::TaskExecStdinWriteStreamStart, it => [Task(it.task_id.as_str())];
    rpb::TaskExecStdinStatusRequest, it => [Task(it.task_id.as_str())];
    rpb::TaskExecPollRequest, it => [Task(it.task_id.as_str())];
    rpb::TaskExecWaitRequest, it => [Task(it.task_id.as_str())];
    pb::ContainerExecGetOutputRequest, it => [Task(exec_by_server::task_of(&it.exec_id))];
    pb::ContainerExecPutInputRequest, it => [Task(exec_by_server::task_of(&it.exec_id))];
    pb::ContainerExecWaitRequest, it => [Task(exec_by_server::task_of(&it.exec_id))];
    pb::ContainerStopRequest, it => [Task(it.task_id.as_str())];
    pb::DictGetByIdRequest, it => [Object(it.dict_id.as_str())];
    pb::DictHeartbeatRequest, it => [Object(it.dict_id.as_str())];
    pb::DictDeleteRequest, it => [Object(it.dict_id.as_str())];
    pb::DictClearRequest, it => [Object(it.dict_id.as_str())];
    pb::DictLenRequest, it => [Object(it.dict_id.as_str())];
    pb::DictGetRequest, it => [Object(it.dict_id.as_str())];
    pb::DictContainsRequest, it => [Object(it.dict_id.as_str())];
    pb::DictUpdateRequest, it => [Object(it.dict_id.as_str())];
    pb::DictPopRequest, it => [Object(it.dict_id.as_str())];
    pb::DictContentsRequest, it => [Object(it.dict_id.as_str())];
    pb::DictListRequest, it => [Environment(it.environment_name.as_str())];
    pb::QueueGetByIdRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueHeartbeatRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueDeleteRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueClearRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueLenRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueGetRequest, it => [Object(it.queue_id.as_str())];
    pb::QueuePutRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueNextItemsRequest, it => [Object(it.queue_id.as_str())];
    pb::QueueListRequest, it => [Environment(it.environment_name.as_str())];
    // A task's own channel says whose these are; what they name is held against that task where they are answered.
    pb::ContainerHeartbeatRequest, it => [];
    pb::ContainerLogRequest, it => [];
    pb::TaskResultRequest, it => [];
    pb::TaskClusterHelloRequest, it => [];
    pb::ClusterGetRequest, it => [Gang(it.cluster_id.as_str())];
    pb::ClusterListRequest, it => [Environment(it.environment_name.as_str())];
    pb::FunctionGetInputsRequest, it => [];
    pb::FunctionPutOutputsRequest, it => [];
    pb::FunctionCallPutDataRequest, it => [];
    pb::FunctionGetDynamicConcurrencyRequest, it => [];
    pb::EnvironmentGetOrCreateRequest, it => [Environment(it.deployment_name.as_str())], creates by object_creation_type;
    pb::SecretGetOrCreateRequest, it => [Environment(it.environment_name.as_str()), App(it.app_id.as_str())], creates by object_creation_type;
    pb::DictGetOrCreateRequest, it => [Environment(it.environment_name.as_str())], creates by object_creation_type;
    pb::QueueGetOrCreateRequest, it => [Environment(it.environment_name.as_str())], creates by object_creation_type;
}

/// An app by itself is in one environment, whatever the default one is.
impl Names for pb::TaskListRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let app = Thing::App(self.app_id.as_str().into());
        let environment = Thing::Environment(self.environment_name.as_str().into());
        if self.environment_name.is_empty() && !self.app_id.is_empty() { vec![app] } else { vec![app, environment] }
    }
}

/// The name may be an app's id.
impl Names for pb::AppGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        match self.app_name.parse::<AppId>() {
            Ok(_) => vec![Thing::App(self.app_name.as_str().into())],
            Err(_) => vec![Thing::Environment(self.environment_name.as_str().into())],
        }
    }

    fn creates(&self) -> bool {
        may_create(self.object_creation_type())
    }
}

/// Files are of no environment, whatever the request says besides: their id is the hash of what they hold.
impl Names for pb::MountGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::App(self.app_id.as_str().into())]
    }
}

impl Names for pb::AppPublishRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let functions = self.function_ids.values().map(|id| Thing::Function(id.as_str().into()));
        let classes = self.class_ids.values().map(|id| Thing::Class(id.as_str().into()));
        [Thing::App(self.app_id.as_str().into())].into_iter().chain(functions).chain(classes).collect()
    }
}

impl Names for pb::ImageGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let image = self.image.as_ref();
        let registry = image.and_then(|image| image.image_registry_config.as_ref()).map(|config| config.secret_id.as_str());
        let secrets = image.map(|image| image.secret_ids.as_slice()).unwrap_or_default().iter().map(String::as_str);
        let things = secrets.chain(registry).map(|id| Thing::Secret(id.into()));
        things.chain([Thing::App(self.app_id.as_str().into()), Thing::Function(self.build_function_id.as_str().into())]).collect()
    }
}

/// The function's secrets are inside its definition, in one place or the other.
impl Names for pb::FunctionCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let data = self.function_data.as_ref().and_then(|bytes| pb::FunctionData::decode(bytes.clone()).ok()).unwrap_or_default();
        let ranked = data.ranked_functions.into_iter().filter_map(|choice| choice.function);
        let functions = ranked.chain(self.function.clone()).filter_map(|bytes| pb::Function::decode(bytes).ok());
        let secrets = functions.flat_map(|function| function.secret_ids).map(|id| Thing::Secret(id.into()));
        let itself = [Thing::App(self.app_id.as_str().into()), Thing::Function(self.existing_function_id.as_str().into())];
        itself.into_iter().chain(secrets).collect()
    }
}

/// Returns what a new sandbox is about: its app, and the secrets that it is given.
fn of_sandbox<'a>(app: &'a str, sandbox: Option<&'a pb::Sandbox>, sources: &'a [pb::SecretSource]) -> Vec<Thing<'a>> {
    let named = sandbox.map(|sandbox| sandbox.secret_ids.as_slice()).unwrap_or_default();
    let secrets = sandbox::secrets_of(named, sources).map(|id| Thing::Secret(id.into()));
    [Thing::App(app.into())].into_iter().chain(secrets).collect()
}

impl Names for pb::SandboxCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        of_sandbox(&self.app_id, self.definition.as_ref(), &[])
    }
}

impl Names for pb::SandboxCreateV2Request {
    fn names(&self) -> Vec<Thing<'_>> {
        of_sandbox(&self.app_id, self.definition.as_ref(), &self.secret_sources)
    }
}

impl Names for pb::SandboxGetCommandRouterAccessRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        use pb::sandbox_get_command_router_access_request::Target;
        match &self.target {
            Some(Target::SandboxId(id)) => vec![Thing::Sandbox(id.as_str().into())],
            Some(Target::TaskId(id)) => vec![Thing::Task(id.as_str().into())],
            None => vec![],
        }
    }
}

/// The process gets the variables of the secrets.
impl Names for rpb::TaskExecStartRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let secrets = sandbox::secrets_of(&self.secret_ids, &self.secret_sources).map(|id| Thing::Secret(id.into()));
        [Thing::Task(self.task_id.as_str().into())].into_iter().chain(secrets).collect()
    }
}

impl Names for pb::ContainerExecRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let secrets = self.secret_ids.iter().map(|id| Thing::Secret(id.as_str().into()));
        [Thing::Task(self.task_id.as_str().into())].into_iter().chain(secrets).collect()
    }
}

impl Names for pb::FunctionBindParamsRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let secrets = self.function_options.as_ref().map(|options| options.secret_ids.as_slice()).unwrap_or_default();
        let secrets = secrets.iter().map(|id| Thing::Secret(id.as_str().into()));
        [Thing::Function(self.function_id.as_str().into())].into_iter().chain(secrets).collect()
    }
}

impl Names for pb::FunctionRetryInputsRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        let call = || Cow::from(self.function_call_jwt.as_str());
        self.inputs.iter().map(|item| Thing::Input(item.input_jwt.as_str().into(), call())).collect()
    }
}

/// Says what the token of an attempt names: its call, and that its input is one of it.
fn attempt(token: &str) -> Thing<'_> {
    let mut parts = token.split('/');
    let (call, input) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Thing::Input(input_token::make(0, input).into(), input_token::make(0, call).into())
}

impl Names for pb::AttemptAwaitRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::Call(self.attempt_token.split('/').next().unwrap_or_default().into())]
    }
}

impl Names for pb::AttemptRetryRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![attempt(&self.attempt_token)]
    }
}

impl Names for pb::MapStartOrContinueRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        use pb::map_start_or_continue_request::CallInfo;
        let call = self.call_info.as_ref().map(|(CallInfo::FunctionCallId(id) | CallInfo::MapToken(id))| id.as_str());
        let of = [Thing::Function(self.function_id.as_str().into()), Thing::Call(call.unwrap_or_default().into())];
        let again = self.items.iter().map(|item| item.attempt_token()).filter(|token| !token.is_empty());
        of.into_iter().chain(again.map(attempt)).collect()
    }
}

impl Names for pb::MapAwaitRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        use pb::map_await_request::CallInfo;
        let call = self.call_info.as_ref().map(|(CallInfo::FunctionCallId(id) | CallInfo::MapToken(id))| id.as_str());
        vec![Thing::Call(call.unwrap_or_default().into())]
    }
}

impl Names for pb::FunctionCallGetDataRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        use pb::function_call_get_data_request::CallInfo;
        let call = match &self.call_info {
            Some(CallInfo::FunctionCallId(id)) => id.as_str(),
            Some(CallInfo::AttemptToken(token)) => token.split('/').next().unwrap_or_default(),
            None => "",
        };
        vec![Thing::Call(call.into())]
    }
}
