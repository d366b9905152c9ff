//! What the state holds: the registry, the shards, and the decisions.

use std::fmt;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{AppId, BootId, ClassId, Digest, EnvironmentId, FunctionId, ImageId, MountId, NodeId, SecretId};

mod bound;
mod fresh;
mod gang;
mod member;
mod object;
mod release;
mod sandbox;
mod schedule;

pub use bound::{Bound, Changes};
pub use gang::Gang;
pub use member::{Cluster, Member, Removed, Voting};
pub use object::Object;
pub use release::{
    AppNotes, EnvironmentChange, EnvironmentSettings, Lasting, NewRelease, Publish, Release, ReleaseContents, ReleaseKind, SecretNotes,
    pinned_id,
};
pub use sandbox::{Sandbox, SandboxEnd, SandboxEndBy};
pub use schedule::{NewSchedule, Period, Schedule, StagedSchedules, Timing};

/// Milliseconds since 1970-01-01 UTC, chosen by the proposer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

/// Bytes that the log carries by digest when they are large.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Definition {
    /// At most [`Definition::INLINE_BYTES_MAX`] bytes.
    Inline(#[serde(with = "serde_bytes")] Vec<u8>),
    /// The digest of one chunk, which was durable before the command was proposed.
    Stored(Digest),
}

impl Definition {
    /// The largest definition that the log carries itself, in bytes.
    pub const INLINE_BYTES_MAX: usize = 4096;
}

impl Default for Definition {
    fn default() -> Self {
        Self::Inline(Vec::new())
    }
}

/// A namespace of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Its id.
    pub id: EnvironmentId,
    /// Its name; `main` is the default.
    pub name: String,
    /// What its web endpoints' labels end with.
    pub webhook_suffix: String,
    /// When it was created.
    pub created: Timestamp,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenPurpose {
    /// Calls of clients.
    Client,
    /// The join of one node.
    Node,
    /// Calls of clients, within limits. Since version 2 of the rules.
    Limited(TokenLimits),
}

/// What a client's token may be used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLimits {
    /// The only environment that it may use; none = all.
    pub environment: Option<EnvironmentId>,
    /// It may look, and change nothing.
    pub reads_only: bool,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The hash of the secret, salted with the token's id.
    pub secret_hash: Digest,
    /// What it is for.
    pub purpose: TokenPurpose,
    /// What its maker called it.
    pub label: String,
    /// When it was created.
    pub created: Timestamp,
    /// When it stops being valid.
    pub expires: Option<Timestamp>,
    /// When it was revoked.
    pub revoked: Option<Timestamp>,
}

/// Where an app is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AppState {
    /// Being set up by a client.
    Initializing,
    /// Lives as long as its client.
    Ephemeral,
    /// Was ephemeral, and lives on without its client.
    Detached,
    /// Deployed under a name.
    Deployed,
    /// Stopped.
    Stopped,
}

/// An app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// Its environment.
    pub environment: EnvironmentId,
    /// The name it is deployed under, empty for an ephemeral app.
    pub name: String,
    /// What the client calls it.
    pub description: String,
    /// Where it is in its life.
    pub state: AppState,
    /// When it was created.
    pub created: Timestamp,
    /// When and why it was stopped.
    pub stopped: Option<(Timestamp, String)>,
    /// Its functions and classes by tag, as last published.
    pub layout: AppLayout,
    /// Its deployments, oldest first.
    pub deployments: imbl::Vector<Deployment>,
}

/// What a publish sets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLayout {
    /// Functions by tag.
    pub functions: OrdMap<String, FunctionId>,
    /// Classes by tag.
    pub classes: OrdMap<String, ClassId>,
}

/// One `modal deploy`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Counts from 1.
    pub version: u32,
    /// The name it was deployed under.
    pub name: String,
    /// The user's tag.
    pub tag: String,
    /// When it was published.
    pub at: Timestamp,
    /// The client's version.
    pub client_version: String,
}

/// How many containers a function may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaling {
    /// Containers that run even with nothing to do.
    pub containers_min: u32,
    /// The most containers; 0 = the cluster's limit.
    pub containers_max: u32,
    /// Spare containers while the function is busy.
    pub containers_buffer: u32,
    /// How long an idle container waits for the next input, in milliseconds.
    pub scaledown_ms: u64,
}

/// What a container of a function may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// CPU that is set aside, in thousandths of a core.
    pub cpu_milli: u32,
    /// The most CPU, in thousandths of a core; 0 = the default burst.
    pub cpu_milli_max: u32,
    /// Memory that is set aside, in bytes.
    pub memory_bytes: u64,
    /// The most memory, in bytes; 0 = the node's default.
    pub memory_bytes_max: u64,
    /// Writable disk that is set aside, in bytes; 0 = the node's default, and of a node: it has not said.
    pub disk_bytes: u64,
    /// Number of GPUs.
    pub gpus: u32,
}

/// How a failed input is tried again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retries {
    /// How often, after the first try.
    pub count: u32,
    /// Before the first retry, in milliseconds.
    pub delay_initial_ms: u32,
    /// The longest delay, in milliseconds.
    pub delay_max_ms: u32,
    /// The delay's factor per retry, in thousandths.
    pub backoff_milli: u32,
}

/// A function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Function {
    /// The app it belongs to.
    pub app: AppId,
    /// Its tag in the app: its name, `Class.*` for a class's function.
    pub tag: String,
    /// The SDK's message as it was received, empty when only the id is known so far.
    pub definition: Definition,
    /// Its image; `None` when only the id is known so far.
    pub image: Option<ImageId>,
    /// Files over the image, the first under the later ones.
    pub mounts: Vec<MountId>,
    /// Secrets, later ones win.
    pub secrets: Vec<SecretId>,
    /// What each container may use.
    pub resources: Resources,
    /// How many containers there may be.
    pub scaling: Scaling,
    /// How failed inputs are tried again.
    pub retries: Retries,
    /// The longest an input may run, in milliseconds.
    pub timeout_ms: u64,
    /// The longest a container may take to start, in milliseconds.
    pub startup_timeout_ms: u64,
    /// Inputs that one container takes at a time; at least 1.
    pub inputs_concurrent: u32,
    /// Inputs in a batch; 0 = no batching.
    pub batch_max: u32,
    /// How long a batch waits to be full, in milliseconds.
    pub batch_wait_ms: u64,
    /// A container serves one input and ends.
    pub single_use: bool,
    /// A container reaches nothing but its node's API.
    pub block_network: bool,
    /// Runs once, to make an image.
    pub builder: bool,
    /// For a bound function: the function it was bound from.
    pub parent: Option<FunctionId>,
    /// For a bound function: the serialized parameters.
    #[serde(with = "serde_bytes")]
    pub parameters: Vec<u8>,
    /// When it was created.
    pub created: Timestamp,
}

/// A class: its methods are run by the function tagged `NAME.*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Class {
    /// Its id.
    pub id: ClassId,
    /// The app it belongs to.
    pub app: AppId,
    /// The SDK's message as it was received.
    pub definition: Definition,
}

/// The outcome of an image build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The canonical cache identity of the definition it was built from.
    pub key: Digest,
    /// The root of its tree; `None` when the build failed.
    pub manifest: Option<Digest>,
    /// Its configuration and metadata, or the failure, as JSON.
    pub record: Definition,
    /// When the build ended.
    pub built: Timestamp,
}

/// The result of one build step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The root of the tree after the step.
    pub manifest: Digest,
    /// The configuration after the step, as JSON.
    pub record: Definition,
}

/// A set of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The root of its tree.
    pub manifest: Digest,
    /// The SHA-256 that clients compare, in hexadecimal.
    pub content_sha256: String,
}

/// A secret, sealed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Its environment.
    pub environment: EnvironmentId,
    /// Its name; empty for one that belongs to an app.
    pub name: String,
    /// The names of its variables.
    pub keys: Vec<String>,
    /// Its variables, sealed with the cluster's key.
    #[serde(with = "serde_bytes")]
    pub sealed: Vec<u8>,
    /// A keyed hash of its content: equal contents give equal hashes.
    pub content_hash: Digest,
    /// When it was last written.
    pub updated: Timestamp,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What people call it.
    pub name: String,
    /// This start of its process.
    pub boot: BootId,
    /// What containers may use in all.
    pub capacity: Resources,
    /// Labels for placement.
    pub labels: OrdMap<String, String>,
    /// Where peers and clients reach it.
    pub address: String,
    /// Takes no new tasks.
    pub draining: bool,
    /// When it was started.
    pub started: Timestamp,
}

/// Who holds a shard. See ARCHITECTURE.md, data plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Counts changes; a record of another epoch is refused.
    pub epoch: u64,
    /// Orders the records.
    pub home: NodeId,
    /// Have every committed record; sorted, the home included.
    pub in_sync: Vec<NodeId>,
    /// Are catching up; sorted.
    pub joining: Vec<NodeId>,
}

/// A change of who holds a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardChange {
    /// A member of `in_sync` becomes the home; the others must join again.
    Promote(NodeId),
    /// A node begins to catch up.
    Invite(NodeId),
    /// A node that has caught up becomes a member.
    Join(NodeId),
    /// A member that is not the home leaves.
    Drop(NodeId),
    /// A node stops catching up.
    Abort(NodeId),
}

/// A container that the cluster decided to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What it runs.
    pub function: FunctionId,
    /// The app it belongs to.
    pub app: AppId,
    /// Where it runs.
    pub node: NodeId,
    /// The node's start that it was assigned to; after another start it is lost.
    pub boot: BootId,
    /// Counts assignments; late changes of an older one are refused.
    pub generation: u64,
    /// What it holds.
    pub resources: Resources,
    /// Which GPUs it holds.
    pub gpus: Vec<u32>,
    /// When it was decided.
    pub created: Timestamp,
    /// Why it is to stop, once it is.
    pub stopping: Option<String>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEnd {
    /// When its container was gone.
    pub at: Timestamp,
    /// In words: `exit code 0`, `killed: out of memory`, `node restarted`.
    pub how: String,
}

impl fmt::Display for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Initializing => "initializing",
            Self::Ephemeral => "ephemeral",
            Self::Detached => "ephemeral (detached)",
            Self::Deployed => "deployed",
            Self::Stopped => "stopped",
        })
    }
}
