//! What the log carries: commands. A command is a decision that was taken elsewhere; it brings its ids, times and
//! digests along, so that applying it needs nothing but the state.
//!
//! Commands are encoded by position and variant number: **new variants go at the end, fields are never added to an old
//! variant**. A new variant is active only after [`Command::SetVersion`], see [`Command::since`].

use serde::{Deserialize, Serialize};

use crate::model::{
    App, AppLayout, Bound, Class, Cluster, Deployment, Environment, EnvironmentChange, Function, Image, Layer, Member, Mount, NewRelease,
    NewSchedule, Node, Object, Publish, ReleaseKind, Sandbox, SandboxEnd, Scaling, Secret, ShardChange, Task, TaskEnd, Token, TokenPurpose,
    Voting,
};
use crate::{
    AppId, DefinitionId, Digest, EnvironmentId, FunctionId, GangId, ImageId, MountId, NodeId, ObjectId, SandboxId, SecretId, ShardId,
    TaskId, Timestamp, TokenId,
};

/// The newest version of the rules that this build knows. See the version gate in ARCHITECTURE.md.
pub const VERSION_KNOWN: u32 = 7;

/// One decision.
#[expect(missing_docs, reason = "the fields are what the sentence of their variant names")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Activates the rules and variants up to a version. Proposed when every member reports that it knows it.
    SetVersion { version: u32 },
    /// Adds a node, or tells of its new start, addresses and capacity.
    PutNode { id: NodeId, node: Node },
    /// Takes a node out of placement (`drain`), or back in.
    DrainNode { id: NodeId, draining: bool },
    /// Creates an environment unless one of its name exists.
    CreateEnvironment { environment: Environment },
    /// Adds a token.
    CreateToken { id: TokenId, token: Token },
    /// Ends a token for good; its id stays, so that a late user is told what happened.
    RevokeToken { id: TokenId, at: Timestamp },
    /// Creates an app; nothing happens when the id exists.
    CreateApp { id: AppId, app: App },
    /// Sets an app's functions and classes and its lasting state.
    PublishApp { id: AppId, layout: AppLayout, deployment: Option<Deployment>, detached: bool },
    /// Stops an app: its tasks are to end, nothing new starts.
    StopApp { id: AppId, at: Timestamp, why: String },
    /// Forgets a stopped app with its functions and classes.
    RemoveApp { id: AppId },
    /// Creates a function or replaces its definition.
    PutFunction { id: FunctionId, function: Box<Function> },
    /// Changes how many containers a function may have, without a new definition.
    ScaleFunction { id: FunctionId, scaling: Scaling },
    /// Creates a class.
    PutClass { class: Class },
    /// Records a finished build, or a failed one.
    PutImage { id: ImageId, image: Image },
    /// Records the result of one build step under its cache key.
    PutLayer { key: Digest, layer: Layer },
    /// Records a set of files.
    PutMount { id: MountId, mount: Mount },
    /// Gives a set of files a name of its own, for all environments.
    NameMount { name: String, id: MountId },
    /// Creates or replaces a secret.
    PutSecret { id: SecretId, secret: Secret },
    /// Deletes a secret.
    RemoveSecret { id: SecretId },
    /// Gives every shard that has no home yet to a node.
    InitShards { home: NodeId },
    /// Changes who holds a shard; compare-and-set on the epoch.
    ChangeShard { shard: ShardId, epoch: u64, change: ShardChange },
    /// Decides that a task runs on a node.
    Assign { id: TaskId, task: Task },
    /// Asks a task to stop: no new inputs, exit hooks, then the end.
    StopTask { id: TaskId, why: String },
    /// Records that a task's container is gone; frees what it held.
    EndTask { id: TaskId, generation: u64, end: TaskEnd },
    /// Sets a cluster-wide setting; an empty value removes it.
    SetSetting { key: String, value: String },
    /// Creates a function, or keeps a new definition of a published one for the next publish.
    StageFunction { id: FunctionId, definition: DefinitionId, function: Box<Function> },
    /// Makes what was created for an app the version that answers calls, all of it at once.
    Publish { id: AppId, publish: Box<Publish> },
    /// Makes an old version of a deployed app the newest again; `of` = the newest: the same again, with fresh containers.
    Redeploy { id: AppId, of: u32, kind: ReleaseKind, release: Box<NewRelease> },
    /// Says who created or stopped an app, and replaces its tags; what is absent stays.
    NoteApp { id: AppId, created_by: Option<String>, stopped_by: Option<String>, tags: Option<imbl::OrdMap<String, String>> },
    /// Renames an environment or changes its settings.
    UpdateEnvironment { id: EnvironmentId, change: EnvironmentChange },
    /// Stops and removes everything in an environment, and the environment.
    RemoveEnvironment { id: EnvironmentId, at: Timestamp, why: String },
    /// Creates a secret (`expected` = none), or replaces one whose content is as expected.
    WriteSecret { id: SecretId, secret: Box<Secret>, app: Option<AppId>, by: String, expected: Option<Digest> },
    /// Forgets an image that no function needs which may run.
    RemoveImage { id: ImageId },
    /// Forgets results of build steps.
    RemoveLayers { keys: Vec<Digest> },
    /// Forgets a set of files that no function needs which may run, and that has no name.
    RemoveMount { id: MountId },
    /// Names the cluster; nothing happens when it has a name.
    FoundCluster { cluster: Cluster },
    /// Makes a node a member by a token that is used up by it, or tells of a member's new start.
    AdmitNode { id: NodeId, member: Member, token: Option<TokenId>, at: Timestamp },
    /// Takes a node out of the cluster for good, with the tasks that it ran.
    RemoveNode { id: NodeId, at: Timestamp, why: String },
    /// Replaces the labels of a node.
    LabelNode { id: NodeId, labels: imbl::OrdMap<String, String> },
    /// Decides of a node's vote; none = the leader says.
    SetVoting { id: NodeId, voting: Option<Voting> },
    /// Starts the cluster anew with one survivor: the other members are out for good, and what they held is the survivor's.
    RecoverCluster { survivor: NodeId, generation: u32, at: Timestamp },
    /// Makes a function of another one; of one that is there its use is noted.
    BindFunction { id: FunctionId, bound: Box<Bound> },
    /// Notes that a bound function is used.
    UseBound { id: FunctionId, at: Timestamp },
    /// Forgets those of the bound functions that nobody used after a time and that have no tasks.
    ForgetBound { ids: Vec<FunctionId>, unused_since: Timestamp },
    /// Says that a dict or a queue exists; nothing happens when the id does.
    CreateObject { id: ObjectId, object: Object },
    /// Says that a dict or a queue exists no more.
    RemoveObject { id: ObjectId },
    /// Brings the schedules of an app's next deployment, by that deployment's request.
    StageSchedules { app: AppId, request: Digest, at: Timestamp, schedules: imbl::OrdMap<FunctionId, NewSchedule> },
    /// Decides that a function is called for the time at which its schedule stands, and which is the next.
    Fire { id: FunctionId, due: Timestamp, next: Timestamp },
    /// Notes that firings have their calls.
    EndFirings { firings: Vec<(FunctionId, Timestamp)> },
    /// Sets a schedule's next time anew: it came from a clock that was wrong.
    Reschedule { id: FunctionId, from: Timestamp, next: Timestamp },
    /// Creates a sandbox, with the function of the same number that its container needs; nothing happens when the id is there.
    CreateSandbox { id: SandboxId, sandbox: Box<Sandbox>, function: Box<Function> },
    /// Ends a sandbox, and asks its container to stop; the first end counts.
    EndSandbox { id: SandboxId, end: SandboxEnd },
    /// Forgets sandboxes that have ended and whose containers are gone.
    ForgetSandboxes { ids: Vec<SandboxId> },
    /// Decides where the containers of a clustered function run, in the order of their ranks: all of them, or none.
    AssignGang { id: GangId, tasks: Vec<(TaskId, Task)> },
    /// Says of which kind each GPU of a node is, in the order of their numbers.
    PutGpus { id: NodeId, kinds: Vec<String> },
    /// Puts a function of an app in place as it was in an older version, under an id of its own; nothing happens when it is there.
    PinFunction { app: AppId, of: FunctionId, version: u32, at: Timestamp },
}

impl Command {
    /// Returns the version from which this variant is understood.
    pub fn since(&self) -> u32 {
        match self {
            Self::StageFunction { .. }
            | Self::Publish { .. }
            | Self::Redeploy { .. }
            | Self::NoteApp { .. }
            | Self::UpdateEnvironment { .. }
            | Self::RemoveEnvironment { .. }
            | Self::WriteSecret { .. }
            | Self::RemoveImage { .. }
            | Self::RemoveLayers { .. }
            | Self::RemoveMount { .. } => 2,
            Self::FoundCluster { .. } | Self::AdmitNode { .. } | Self::RemoveNode { .. } | Self::LabelNode { .. } => 3,
            Self::SetVoting { .. } | Self::RecoverCluster { .. } => 4,
            Self::BindFunction { .. } | Self::UseBound { .. } | Self::ForgetBound { .. } => 5,
            Self::CreateObject { .. } | Self::RemoveObject { .. } => 5,
            Self::StageSchedules { .. } | Self::Fire { .. } | Self::EndFirings { .. } | Self::Reschedule { .. } => 6,
            Self::CreateSandbox { .. } | Self::EndSandbox { .. } | Self::ForgetSandboxes { .. } => 6,
            Self::AssignGang { .. } | Self::PutGpus { .. } | Self::PinFunction { .. } => 7,
            Self::CreateToken { token, .. } if matches!(token.purpose, TokenPurpose::Limited(_)) => 2,
            _ => 1,
        }
    }
}

/// Tells drivers where to look. Events only wake somebody up; the state is the truth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The active version changed.
    VersionChanged,
    /// A node was added, changed, or drains.
    NodesChanged,
    /// Tokens changed.
    TokensChanged,
    /// An app was created, published or stopped.
    AppChanged(AppId),
    /// A function was created or changed.
    FunctionChanged(FunctionId),
    /// An image was recorded.
    ImageChanged(ImageId),
    /// Tasks of a node changed.
    TasksChanged(NodeId),
    /// A shard has another home, members or epoch.
    ShardChanged(ShardId),
    /// Something else of the registry changed.
    RegistryChanged,
}
