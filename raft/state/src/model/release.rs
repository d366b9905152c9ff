//! What deployments, tags and renames need, since version 2 of the rules: kept beside the things that version 1 knows,
//! because those are written by position.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use super::{AppLayout, Deployment, Function, Timestamp};
use crate::{AppId, DefinitionId, Digest, FunctionId, ShardId};

/// What is said of an app and decides nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppNotes {
    /// The user's tags.
    pub tags: OrdMap<String, String>,
    /// Whose token created it.
    pub created_by: String,
    /// Whose token stopped it; empty while it lives, or when it ended by itself.
    pub stopped_by: String,
}

/// What made a version of an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReleaseKind {
    /// A client deployed it.
    Standard,
    /// An older version was made the newest again.
    Rollback,
    /// The newest version was deployed again, for fresh containers.
    Rollover,
}

/// Who makes a release, beyond what [`Deployment`] has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRelease {
    /// Version 0: the state counts.
    pub deployment: Deployment,
    /// Whose token deployed it.
    pub by: String,
    /// The state of the user's repository: the SDK's message as it was received, empty when unknown.
    #[serde(with = "serde_bytes")]
    pub commit: Vec<u8>,
    /// Names the request: the same one again makes no second version.
    pub request: Digest,
}

/// One version of a deployed app, with all that answers calls in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// As in [`Deployment::version`].
    pub version: u32,
    /// What made it.
    pub kind: ReleaseKind,
    /// The version whose contents it has, when it is not a standard one.
    pub of: Option<u32>,
    /// Whose token deployed it.
    pub by: String,
    /// See [`NewRelease::commit`].
    #[serde(with = "serde_bytes")]
    pub commit: Vec<u8>,
    /// See [`NewRelease::request`].
    pub request: Digest,
    /// What it consists of; `None` when it is too old to come back.
    pub contents: Option<ReleaseContents>,
}

/// What an app consists of at one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseContents {
    /// Its functions and classes by tag.
    pub layout: AppLayout,
    /// The functions as they were.
    pub functions: OrdMap<FunctionId, Function>,
}

/// Returns the id of a function as it was in an older version of its app: it is another one, with containers of its own.
pub fn pinned_id(of: FunctionId, version: u32) -> FunctionId {
    let (name, version) = (of.to_string(), version.to_le_bytes());
    FunctionId::derive_in(of.shard().unwrap_or_else(|| ShardId::of(name.as_bytes())), &[b"pinned", name.as_bytes(), &version])
}

/// How long a published app lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lasting {
    /// As before.
    Same,
    /// As long as its client.
    Ephemeral,
    /// Without its client, and without a name.
    Detached,
    /// Under a name.
    Deployed(NewRelease),
}

/// What a publish brings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The app's functions and classes by tag.
    pub layout: AppLayout,
    /// Which staged definition of each function it takes.
    pub definitions: OrdMap<FunctionId, DefinitionId>,
    /// The user's tags; empty = those it has.
    pub tags: OrdMap<String, String>,
    /// How long it lives.
    pub lasting: Lasting,
    /// When it was published.
    pub at: Timestamp,
}

/// Settings of an environment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentSettings {
    /// The image builder version; empty = the cluster's.
    pub builder_version: String,
}

/// What is to change of an environment; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentChange {
    /// Its new name.
    pub name: Option<String>,
    /// What its web endpoints' labels end with.
    pub webhook_suffix: Option<String>,
    /// See [`EnvironmentSettings::builder_version`].
    pub builder_version: Option<String>,
}

/// What is said of a secret beyond its content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretNotes {
    /// When it was created.
    pub created: Timestamp,
    /// Whose token created it.
    pub created_by: String,
    /// The app that it belongs to, and ends with.
    pub app: Option<AppId>,
}
