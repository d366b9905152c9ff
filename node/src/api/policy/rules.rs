//! Who may call each method, and what it does: one line for each.

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
    /// It changes nothing, unless the request asks to create what is missing (`Names::creates`).
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
        | "AppGetTimeRangeStats"
        | "ObjectSuggest"
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
        | "MetricsGetInfo"
        | "FunctionGetMetrics"
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
