//! Who may call what: the policy of the whole API, in this one file.
//!
//! Three questions are asked of each call, in this order:
//!
//! 1. *Who may call this method at all?* [`rule`] has one line for each method: a client, a container, or either; and
//!    whether the method only looks, changes something, or brings something new. The door ([`super::transport`]) asks before it reads the request.
//! 2. *What does this request name?* [`Names`] says for each kind of request which environment, app, function, call,
//!    secret or task it is about. A request without an answer here does not compile.
//! 3. *Is that within the caller's limits?* [`permit`] asks when the request is read, before the method runs.
//!
//! Limits come from the token: one environment, or only looking. Containers have their task's channel instead of a token,
//! and are limited where otherwise a limited token could go round its limits through them: in an environment that some
//! token was ever limited to, they stay within it.
//!
//! What a method owes to the one task that calls it (its own function, its own inputs) is checked where it is done, in
//! [`super::container`], against the same [`Identity`].
//!
//! Images, files and blobs are of no environment: their ids are hashes, or as hard to guess.

use std::borrow::Cow;
use std::collections::BTreeSet;

use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_proto::task_command_router as rpb;
use shoal_state::model::{TokenLimits, TokenPurpose};
use shoal_state::{AppId, CallId, ClassId, EnvironmentId, FunctionId, GangId, InputId, ObjectId, QueueId, SecretId, State, TaskId};

use super::error::Error;
use super::{Api, Caller, Identity, environment, exec_by_server, input_token, sandbox};
use crate::room::Room;

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A client with a token, or a container by its channel.
    Either,
    /// A client with a token.
    Client,
    /// A container by its channel.
    Task,
}

/// What a method does, as far as its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// It changes nothing, unless the request asks to create what is missing ([`Names::creates`]).
    Look,
    /// It changes something.
    Change,
    /// It brings something new, for which there must be room.
    Add,
}

/// Returns the rule of a method, by its name without the service. A method without a rule is not served.
pub(crate) fn rule(method: &str) -> Option<(Who, Does)> {
    Some(match method {
        "ContainerHello"
        | "ContainerHeartbeat"
        | "ContainerLog"
        | "TaskResult"
        | "TaskClusterHello"
        | "FunctionGetInputs"
        | "FunctionPutOutputs"
        | "FunctionCallGetDataIn"
        | "FunctionCallPutDataOut"
        | "FunctionGetDynamicConcurrency"
        | "FunctionStartPtyShell" => (Who::Task, Does::Change),

        "TokenInfoGet" | "WorkspaceSettings" => (Who::Client, Does::Look),

        "AppStop"
        | "AppRollback"
        | "AppRollover"
        | "AppClientDisconnect"
        | "AppHeartbeat"
        | "EnvironmentCreate"
        | "EnvironmentUpdate"
        | "EnvironmentDelete"
        | "WorkspaceSetDefaultEnvironment"
        | "TokenDelete" => (Who::Client, Does::Change),

        "ClientHello"
        | "WorkspaceNameLookup"
        | "AuthTokenGet"
        | "EnvironmentGetOrCreate"
        | "EnvironmentList"
        | "AppGetOrCreate"
        | "AppGetByDeploymentName"
        | "AppGetLayout"
        | "AppGetInfo"
        | "AppGetLifecycle"
        | "AppList"
        | "AppDeploymentHistory"
        | "AppGetTags"
        | "AppGetLogs"
        | "AppFetchLogs"
        | "AppCountLogs"
        | "BlobGet"
        | "SecretGetOrCreate"
        | "SecretGetInfo"
        | "SecretList"
        | "ImageJoinStreaming"
        | "ImageFromId"
        | "ImageBuildChainGet"
        | "FunctionGet"
        | "FunctionGetById"
        | "FunctionGetCurrentStats"
        | "FunctionListVariants"
        | "FunctionGetSchedulingParams"
        | "ClassGet"
        | "FunctionCallFromId"
        | "FunctionCallList"
        | "FunctionCallFetch"
        | "FunctionCallCount"
        | "FunctionGetTimeRangeStats"
        | "FunctionCallGetInfo"
        | "FunctionGetCallGraph"
        | "FunctionCallGetDataOut"
        | "TaskList"
        | "TaskGetInfo"
        | "ClusterGet"
        | "ClusterList"
        | "SandboxGetTaskId"
        | "SandboxGetTaskIdV2"
        | "SandboxWait"
        | "SandboxWaitV2"
        | "DictGetOrCreate"
        | "DictGetById"
        | "DictList"
        | "DictGet"
        | "DictContains"
        | "DictLen"
        | "DictContents"
        | "QueueGetOrCreate"
        | "QueueGetById"
        | "QueueList"
        | "QueueLen"
        | "QueueNextItems" => (Who::Either, Does::Look),

        "AppCreate"
        | "AppPublish"
        | "MountGetOrCreate"
        | "MountPutFile"
        | "BlobCreate"
        | "SecretUpdate"
        | "ImageGetOrCreate"
        | "FunctionCreate"
        | "FunctionBindParams"
        | "ClassCreate"
        | "FunctionMap"
        | "FunctionPutInputs"
        | "FunctionRetryInputs"
        | "SandboxCreate"
        | "SandboxCreateV2"
        | "AttemptStart"
        | "AttemptRetry"
        | "MapStartOrContinue"
        | "DictUpdate"
        | "QueuePut" => (Who::Either, Does::Add),

        "AppSetTags"
        | "MountBatchedCheckExistence"
        | "SecretDelete"
        | "ImageDelete"
        | "FunctionPrecreate"
        | "FunctionUpdateSchedulingParams"
        | "FunctionFinishInputs"
        | "FunctionGetOutputs"
        | "AttemptAwait"
        | "MapAwait"
        | "MapCheckInputs"
        | "FunctionCallCancel"
        | "ContainerStop"
        | "TaskGetCommandRouterAccess"
        | "SandboxTerminate"
        | "SandboxTerminateV2"
        | "SandboxGetCommandRouterAccess"
        | "ContainerExec"
        | "ContainerExecGetOutput"
        | "ContainerExecPutInput"
        | "ContainerExecWait"
        | "TaskExecStart"
        | "TaskExecStdioRead"
        | "TaskExecStdinWrite"
        | "TaskExecStdinWriteStream"
        | "TaskExecStdinStatus"
        | "TaskExecPoll"
        | "TaskExecWait"
        | "DictHeartbeat"
        | "DictDelete"
        | "DictClear"
        | "DictPop"
        | "QueueHeartbeat"
        | "QueueDelete"
        | "QueueClear"
        | "QueueGet" => (Who::Either, Does::Change),

        _ => return None,
    })
}

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
    note = "add a line for it to the table in node/src/api/policy.rs, and one for its method to `rule`"
)]
pub(crate) trait Names {
    /// Returns the things that the request is about, in whatever order. Empty ids name nothing.
    fn names(&self) -> Vec<Thing<'_>>;

    /// Says whether a request of a method that looks asks to create what is missing.
    fn creates(&self) -> bool {
        false
    }
}

macro_rules! names {
    ($($request:ty, $it:ident => [$($kind:ident($value:expr)),* $(,)?];)*) => {$(
        impl Names for $request {
            fn names(&self) -> Vec<Thing<'_>> {
                let $it = self;
                let _ = $it;
                vec![$(Thing::$kind(Cow::from($value))),*]
            }
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
}

impl Names for pb::EnvironmentGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::Environment(self.deployment_name.as_str().into())]
    }

    fn creates(&self) -> bool {
        self.object_creation_type() != pb::ObjectCreationType::Unspecified
    }
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
        self.object_creation_type() != pb::ObjectCreationType::Unspecified
    }
}

impl Names for pb::SecretGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::Environment(self.environment_name.as_str().into()), Thing::App(self.app_id.as_str().into())]
    }

    fn creates(&self) -> bool {
        self.object_creation_type() != pb::ObjectCreationType::Unspecified
    }
}

impl Names for pb::DictGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::Environment(self.environment_name.as_str().into())]
    }

    fn creates(&self) -> bool {
        self.object_creation_type() != pb::ObjectCreationType::Unspecified
    }
}

impl Names for pb::QueueGetOrCreateRequest {
    fn names(&self) -> Vec<Thing<'_>> {
        vec![Thing::Environment(self.environment_name.as_str().into())]
    }

    fn creates(&self) -> bool {
        self.object_creation_type() != pb::ObjectCreationType::Unspecified
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
    use pb::secret_source::Source;
    let kept = sandbox.map(|sandbox| sandbox.secret_ids.as_slice()).unwrap_or_default().iter().map(String::as_str);
    let more = sources.iter().filter_map(|source| match &source.source {
        Some(Source::SecretId(id)) => Some(id.as_str()),
        _ => None,
    });
    let secrets = kept.chain(more).map(|id| Thing::Secret(id.into()));
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
        use pb::secret_source::Source;
        let sources = self.secret_sources.iter().filter_map(|source| match &source.source {
            Some(Source::SecretId(id)) => Some(id.as_str()),
            _ => None,
        });
        let secrets = self.secret_ids.iter().map(String::as_str).chain(sources).map(|id| Thing::Secret(id.into()));
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

/// Checks a caller against the rule of a method, before the request is read.
pub(crate) fn admit(state: &State, room: &Room, method: &str, identity: Identity) -> Result<(), Error> {
    let Some((who, does)) = rule(method) else {
        return Err(Error::Unimplemented(format!("Shoal does not serve {method} yet")));
    };
    match (who, identity) {
        (Who::Client, Identity::Task(task)) => {
            return Err(Error::Denied(format!("{method} may not be called from a container (task {task}); call it from a client")));
        }
        (Who::Task, Identity::Client(_)) => {
            return Err(Error::Denied(format!("{method} is for containers: it is answered on a task's own channel only")));
        }
        _ => {}
    }
    if does != Does::Look && limits(state, identity).reads_only {
        return Err(only_looks(identity, method));
    }
    if does == Does::Add { room.check() } else { Ok(()) }
}

fn only_looks(identity: Identity, method: &str) -> Error {
    Error::Denied(format!(
        "{identity} is for looking alone (purpose reader), and {method} changes something: use another token, or make one on a node with `shoal token create`"
    ))
}

/// Checks what a request names against the limits of its caller, before the method runs.
pub(crate) async fn permit(api: &Api, caller: &Caller, request: &impl Names) -> Result<(), Error> {
    // A function of a build is no task of the state.
    let build = if let Identity::Task(task) = caller.identity { api.build_functions.app_of(task) } else { None };
    let limits = match build {
        Some(app) => limits_of_code(&api.local(), Some(app)),
        None => limits(&api.local(), caller.identity),
    };
    if request.creates() {
        if limits.reads_only {
            return Err(only_looks(caller.identity, &caller.method));
        }
        api.room.check()?;
    }
    let Some(own) = limits.environment else { return Ok(()) };
    for thing in request.names() {
        if matches!((&thing, caller.identity), (Thing::Token(id), Identity::Client(itself)) if *id == itself.to_string()) {
            continue;
        }
        if let Some(other) = place(api, &thing).await?
            && other != Place::In(own)
        {
            return Err(outside(&api.local(), caller.identity, own, &thing, other));
        }
    }
    Ok(())
}

/// Where a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    In(EnvironmentId),
    /// In no single one.
    Everywhere,
}

/// Finds where a thing is; `None` when there is no such thing, which the method will say.
async fn place(api: &Api, thing: &Thing<'_>) -> Result<Option<Place>, Error> {
    let function = match thing {
        Thing::Cluster(_) | Thing::Token(_) => return Ok(Some(Place::Everywhere)),
        Thing::Environment(name) => {
            let state = api.read_latest_unless(|state| state.environment_named(name).is_some()).await?;
            return Ok(Some(Place::In(environment::find(&state, name)?.id)));
        }
        Thing::Call(id) => call_of(api, id.parse().ok()).await,
        Thing::Input(input, call) => {
            let call = input_token::read::<CallId>(call)?.1;
            let input: InputId = input_token::read(input)?.1;
            let inputs = api.calls.inputs(call).await.unwrap_or_default();
            if !inputs.iter().any(|info| info.input == input) {
                return Err(Error::NotFound(format!("input {input} is not one of call {call}")));
            }
            call_of(api, Some(call)).await
        }
        _ => None,
    };
    let find = |state: &State| place_in(state, thing, function);
    Ok(find(&*api.read_latest_unless(|state| find(state).is_some()).await?))
}

async fn call_of(api: &Api, call: Option<CallId>) -> Option<FunctionId> {
    Some(api.calls.info(call?).await.ok()?.open.function)
}

/// Finds where a thing of the state is. `function` is that of a call or an input.
fn place_in(state: &State, thing: &Thing<'_>, function: Option<FunctionId>) -> Option<Place> {
    let of_app = |id: AppId| state.apps.get(&id).map(|app| Place::In(app.environment));
    let of_function = |id: FunctionId| of_app(state.functions.get(&id)?.app);
    match thing {
        Thing::App(id) => of_app(id.parse().ok()?),
        Thing::Function(id) => of_function(id.parse().ok()?),
        Thing::Class(id) => of_app(state.classes.get(&id.parse::<ClassId>().ok()?)?.app),
        Thing::Task(id) => of_app(state.tasks.get(&id.parse::<TaskId>().ok()?)?.app),
        Thing::Gang(id) => of_function(state.gangs.get(&id.parse::<GangId>().ok()?)?.function),
        Thing::Sandbox(id) => of_app(state.sandboxes.get(&sandbox::parse(id).ok()?)?.app),
        Thing::Secret(id) => Some(Place::In(state.secrets.get(&id.parse::<SecretId>().ok()?)?.environment)),
        Thing::Object(id) => Some(Place::In(state.objects.get(&id.parse::<ObjectId>().ok()?)?.environment)),
        Thing::Call(_) | Thing::Input(..) => of_function(function?),
        Thing::Environment(_) | Thing::Cluster(_) | Thing::Token(_) => None,
    }
}

fn outside(state: &State, identity: Identity, own: EnvironmentId, thing: &Thing<'_>, place: Place) -> Error {
    let name = |id: &EnvironmentId| state.environments.get(id).map_or_else(|| format!("{id} (deleted)"), |found| found.name.clone());
    let own = name(&own);
    let limited = match identity {
        Identity::Client(_) => format!("{identity} is limited to environment '{own}'"),
        Identity::Task(_) => format!("{identity} runs in environment '{own}', which tokens are limited to, and is limited to it too"),
    };
    let cure = format!("choose '{own}' with `--env {own}` or MODAL_ENVIRONMENT={own}");
    Error::Denied(match (thing, place) {
        (Thing::Environment(_), Place::In(other)) => {
            let other = name(&other);
            format!("{limited} and may not use '{other}': {cure}, or make a token for '{other}' on a node with `shoal token create`")
        }
        (_, Place::In(other)) => {
            let (what, other) = (what(thing), name(&other));
            format!(
                "{limited} and may not use {what}, which is in '{other}': make a token for '{other}' on a node with `shoal token create`"
            )
        }
        (_, Place::Everywhere) => {
            let what = what(thing);
            format!("{limited} and may not change {what}: use a token without limits, from `shoal token create` on a node")
        }
    })
}

fn what(thing: &Thing<'_>) -> String {
    match thing {
        Thing::Environment(name) => format!("environment '{name}'"),
        Thing::Cluster(name) => format!("which environments there are ('{name}')"),
        Thing::App(id) => format!("app {id}"),
        Thing::Function(id) => format!("function {id}"),
        Thing::Class(id) => format!("class {id}"),
        Thing::Call(id) => format!("call {id}"),
        Thing::Input(..) => "this input".to_owned(),
        Thing::Task(id) => format!("container {id}"),
        Thing::Gang(id) => format!("cluster {id}"),
        Thing::Sandbox(id) => format!("sandbox {id}"),
        Thing::Secret(id) => format!("secret {id}"),
        Thing::Token(id) => format!("token {id}"),
        Thing::Object(id) => format!("{} {id}", if id.starts_with(QueueId::PREFIX) { "queue" } else { "dict" }),
    }
}

/// Returns the limits of a caller.
pub(crate) fn limits(state: &State, identity: Identity) -> TokenLimits {
    match identity {
        Identity::Client(id) => match state.tokens.get(&id).map(|token| token.purpose) {
            Some(TokenPurpose::Limited(limits)) => limits,
            _ => TokenLimits::default(),
        },
        Identity::Task(id) => limits_of_code(state, state.tasks.get(&id).map(|task| task.app)),
    }
}

/// Returns the limits of code that runs for an app.
fn limits_of_code(state: &State, app: Option<AppId>) -> TokenLimits {
    let own = app.and_then(|app| state.apps.get(&app)).map(|app| app.environment);
    TokenLimits { environment: own.filter(|own| fenced(state).contains(own)), reads_only: false }
}

/// Returns the environments that a token with which code can be brought was ever limited to.
fn fenced(state: &State) -> BTreeSet<EnvironmentId> {
    let limits = state.tokens.values().filter_map(|token| match token.purpose {
        TokenPurpose::Limited(limits) if !limits.reads_only => limits.environment,
        _ => None,
    });
    limits.collect()
}

#[cfg(test)]
mod tests;
