//! The answers that are a no: the same on every node.

use serde::{Deserialize, Serialize};

use crate::{
    AppId, EnvironmentId, FunctionId, GangId, ImageId, MountId, NodeId, ObjectId, SandboxId, SecretId, ShardId, TaskId, TokenId, VOTERS_MAX,
};

/// Why a command changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's sentence says it")]
pub enum Refused {
    #[error("cannot set version {version}: version {active} is active, and versions only grow")]
    VersionGoesBack { version: u32, active: u32 },
    #[error("cannot apply this command: it needs version {needs}, and version {active} is active; upgrade every node first")]
    NotActive { needs: u32, active: u32 },
    #[error("environment {name:?} already exists as {id}")]
    EnvironmentExists { name: String, id: EnvironmentId },
    #[error("environment {id} does not exist")]
    NoEnvironment { id: EnvironmentId },
    #[error("token {id} does not exist")]
    NoToken { id: TokenId },
    #[error("app {id} does not exist")]
    NoApp { id: AppId },
    #[error("app {id} is stopped")]
    AppStopped { id: AppId },
    #[error("cannot deploy app {id} as {name:?}: app {holder} is deployed under that name")]
    NameHeld { id: AppId, name: String, holder: AppId },
    #[error("app {id} is not stopped: stop it before it is removed")]
    AppRuns { id: AppId },
    #[error("function {id} does not exist")]
    NoFunction { id: FunctionId },
    #[error("function {function} needs image {image}, which does not exist")]
    NoImage { function: FunctionId, image: ImageId },
    #[error("function {function} needs files {mount}, which do not exist")]
    NoMount { function: FunctionId, mount: MountId },
    #[error("secret {id} does not exist")]
    NoSecret { id: SecretId },
    #[error("node {id} is not a member of this cluster")]
    NoNode { id: NodeId },
    #[error("cannot assign task {task}: node {node} is draining")]
    NodeDrains { task: TaskId, node: NodeId },
    #[error("cannot assign task {task}: node {node} was started again since the decision")]
    OtherBoot { task: TaskId, node: NodeId },
    #[error("cannot assign task {task}: node {node} has {free_cpu_milli}m CPU and {free_memory_bytes} bytes of memory left")]
    NodeFull { task: TaskId, node: NodeId, free_cpu_milli: u32, free_memory_bytes: u64 },
    #[error("cannot assign task {task}: GPU {gpu} of node {node} is held by task {holder}")]
    GpuHeld { task: TaskId, node: NodeId, gpu: u32, holder: TaskId },
    #[error("cannot assign task {task}: node {node} has no GPU {gpu}")]
    NoGpu { task: TaskId, node: NodeId, gpu: u32 },
    #[error("cannot assign task {task}: function {function} has all of its {containers_max} containers")]
    ContainersMax { task: TaskId, function: FunctionId, containers_max: u32 },
    #[error("task {id} does not exist")]
    NoTask { id: TaskId },
    #[error("the change of task {id} is of generation {generation}; generation {current} is current")]
    OldGeneration { id: TaskId, generation: u64, current: u64 },
    #[error("{shard} is at epoch {current}: the change was made for epoch {epoch}")]
    OldEpoch { shard: ShardId, epoch: u64, current: u64 },
    #[error("{shard} has no home yet")]
    NoShard { shard: ShardId },
    #[error("{shard} cannot change so: node {node} is {is}")]
    ShardMember { shard: ShardId, node: NodeId, is: MemberIs },
    #[error("function {id} belongs to app {holder}: app {app} cannot define it")]
    OtherApp { id: FunctionId, app: AppId, holder: AppId },
    #[error("app {id} is not deployed")]
    NotDeployed { id: AppId },
    #[error("app {id} has no version {version} to go back to; versions that can come back: {kept}")]
    NoRelease { id: AppId, version: u32, kept: String },
    #[error("environment {name:?} is the default one: make another the default before it is removed")]
    EnvironmentIsDefault { name: String },
    #[error("web suffix {suffix:?} is that of environment {holder:?} already")]
    SuffixHeld { suffix: String, holder: String },
    #[error("secret {name:?} already exists as {id}")]
    SecretExists { name: String, id: SecretId },
    #[error("secret {id} was changed by somebody else meanwhile")]
    SecretChanged { id: SecretId },
    #[error("image {id} is used by function {function} of app {app}")]
    ImageUsed { id: ImageId, function: FunctionId, app: AppId },
    #[error("image {id} does not exist")]
    NoSuchImage { id: ImageId },
    #[error("files {id} are used by function {function} of app {app}")]
    MountUsed { id: MountId, function: FunctionId, app: AppId },
    #[error("files {id} are named {name:?}")]
    MountNamed { id: MountId, name: String },
    #[error("token {id} was used by node {by}: it admits one node; make another with `shoal token create --node`")]
    TokenUsed { id: TokenId, by: NodeId },
    #[error("token {id} was revoked")]
    TokenRevoked { id: TokenId },
    #[error("token {id} has expired: make another with `shoal token create --node`")]
    TokenExpired { id: TokenId },
    #[error("node {id} was removed from this cluster ({why}): wipe its data folder, and join it anew")]
    NodeRemoved { id: NodeId, why: String },
    #[error("node {id} is the only one of this cluster")]
    LastNode { id: NodeId },
    #[error("node {id} holds {count} shards of calls ({shard} is the first): drain it before it is removed")]
    NodeHoldsShards { id: NodeId, shard: ShardId, count: u32 },
    #[error("node {id} cannot be made to vote: it drains; `shoal node undrain` lets it come back")]
    DrainingVoter { id: NodeId },
    #[error("node {id} cannot be made to vote: {VOTERS_MAX} others are, and more would only be slower; demote or unpin one of them")]
    VotersMax { id: NodeId },
    #[error("node {id} is the last one that may vote: promote or unpin another one first")]
    NoVoterLeft { id: NodeId },
    #[error("function {id} is itself bound from another one: bind that one")]
    BoundAlready { id: FunctionId },
    #[error("function {id} is there already, and is not bound from function {parent}")]
    OtherParent { id: FunctionId, parent: FunctionId },
    #[error("{} {name:?} already exists as {id}", id.kind())]
    ObjectExists { name: String, id: ObjectId },
    #[error("{} {id} does not exist", id.kind())]
    NoObject { id: ObjectId },
    #[error("function {id} has no schedule")]
    NoSchedule { id: FunctionId },
    #[error("function {id} is not due at {due} ms: its schedule stands at {next} ms")]
    NotDue { id: FunctionId, due: u64, next: u64 },
    #[error("function {id} cannot be due at {next} ms after it was due at {due} ms")]
    DueBefore { id: FunctionId, due: u64, next: u64 },
    #[error("{count} firings of function {id} wait for their calls: no more are decided")]
    FiringsWait { id: FunctionId, count: usize },
    #[error("sandbox {id} does not exist")]
    NoSandbox { id: SandboxId },
    #[error("gang {id} cannot be placed so: it needs at least one container, and all of them new and of one function")]
    NotAGang { id: GangId },
    #[error("cannot assign task {task}: node {node} has {free_bytes} bytes of disk left")]
    DiskHeld { task: TaskId, node: NodeId, free_bytes: u64 },
    #[error("node {id} has {gpus} GPUs: {kinds} kinds cannot be theirs")]
    NotItsGpus { id: NodeId, gpus: u32, kinds: usize },
}

/// What a node is to a shard, where that forbids a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberIs {
    /// It orders the records.
    Home,
    /// It has every committed record.
    InSync,
    /// It has not every committed record.
    NotInSync,
    /// It has not been invited to catch up.
    NotJoining,
}

impl std::fmt::Display for MemberIs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Home => "its home",
            Self::InSync => "already in sync",
            Self::NotInSync => "not in sync",
            Self::NotJoining => "not joining",
        })
    }
}
