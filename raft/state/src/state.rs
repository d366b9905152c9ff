//! The state machine: the registry, the shards, and the decisions, changed by commands and by nothing else.
//!
//! Policy is not here: `scheduler::plan` prefers, `apply` only refuses, item by item, what can't be. Each command
//! either changes the state and says what changed, or is refused and changes nothing.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};

use crate::model::{
    App, AppNotes, Bound, Class, Cluster, Environment, EnvironmentSettings, Function, Gang, Image, Layer, Member, Mount, Node, Object,
    Release, Removed, Sandbox, Schedule, Secret, SecretNotes, Shard, StagedSchedules, Task, Token, Voting,
};
use crate::{
    AppId, ClassId, Command, DefinitionId, Digest, EnvironmentId, Event, FunctionId, GangId, ImageId, MountId, NodeId, ObjectId, Refused,
    SandboxId, SecretId, ShardId, TaskId, Timestamp, TokenId,
};

mod apps;
mod bound;
mod environments;
mod gangs;
mod layout;
mod members;
mod nodes;
mod objects;
mod parts;
mod releases;
mod sandboxes;
mod schedules;
mod secrets;
mod shards;
mod tasks;
mod tokens;

pub use environments::SETTING_DEFAULT;
pub use members::VOTERS_MAX;
pub use releases::{HISTORY_KEPT, RELEASES_KEPT};

/// Everything that nodes agree on. A clone is free: the maps share their nodes.
///
/// New fields go at the end and into `state/layout.rs`, with the version of the rules that adds them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    version: u32,
    /// Environments.
    pub environments: OrdMap<EnvironmentId, Environment>,
    /// Tokens, revoked ones included.
    pub tokens: OrdMap<TokenId, Token>,
    /// Apps, stopped ones included until they are removed.
    pub apps: OrdMap<AppId, App>,
    /// Which app is deployed under a name.
    pub deployed: OrdMap<(EnvironmentId, String), AppId>,
    /// Functions.
    pub functions: OrdMap<FunctionId, Function>,
    /// Classes.
    pub classes: OrdMap<ClassId, Class>,
    /// Images, failed builds included.
    pub images: OrdMap<ImageId, Image>,
    /// Results of build steps by cache key.
    pub layers: OrdMap<Digest, Layer>,
    /// Sets of files.
    pub mounts: OrdMap<MountId, Mount>,
    /// Sets of files with names of their own.
    pub named_mounts: OrdMap<String, MountId>,
    /// Secrets.
    pub secrets: OrdMap<SecretId, Secret>,
    /// Nodes.
    pub nodes: OrdMap<NodeId, Node>,
    /// Who holds each shard.
    pub shards: OrdMap<ShardId, Shard>,
    /// Live tasks.
    pub tasks: OrdMap<TaskId, Task>,
    /// Live tasks by function: what placement asks most.
    pub tasks_of: OrdMap<FunctionId, OrdSet<TaskId>>,
    /// Cluster-wide settings.
    pub settings: OrdMap<String, String>,
    /// What is said of apps.
    pub app_notes: OrdMap<AppId, AppNotes>,
    /// What published functions are to be from the next publish on.
    pub staged: OrdMap<(FunctionId, DefinitionId), Function>,
    /// Versions of deployed apps, the oldest first.
    pub releases: OrdMap<AppId, Vector<Release>>,
    /// Settings of environments that have any.
    pub environment_settings: OrdMap<EnvironmentId, EnvironmentSettings>,
    /// What is said of secrets.
    pub secret_notes: OrdMap<SecretId, SecretNotes>,
    /// The cluster; none until it is named.
    pub cluster: Option<Cluster>,
    /// The nodes that belong to it.
    pub members: OrdMap<NodeId, Member>,
    /// The nodes that did once.
    pub removed: OrdMap<NodeId, Removed>,
    /// Which node a token has admitted.
    pub tokens_used: OrdMap<TokenId, NodeId>,
    /// What operators have decided of nodes' votes.
    pub voting: OrdMap<NodeId, Voting>,
    /// What was bound from functions, by parent.
    pub bound: OrdMap<FunctionId, OrdMap<FunctionId, Bound>>,
    /// The dicts and queues that there are.
    pub objects: OrdMap<ObjectId, Arc<Object>>,
    /// When functions of deployed apps are called by the cluster itself.
    pub schedules: OrdMap<FunctionId, Schedule>,
    /// Schedules that wait for the deployment they came with.
    pub staged_schedules: OrdMap<(AppId, Digest), StagedSchedules>,
    /// Firings whose calls are yet to be made: of which function, and for which time.
    pub firings: OrdSet<(FunctionId, Timestamp)>,
    /// Sandboxes; for a while those too that have ended.
    pub sandboxes: OrdMap<SandboxId, Sandbox>,
    /// The gangs of clustered functions, each for as long as any of them is there.
    pub gangs: OrdMap<GangId, Gang>,
    /// Of which gang a live task is.
    pub gang_of: OrdMap<TaskId, GangId>,
    /// Of which kind the GPUs of nodes are, in the order of their numbers.
    pub gpus: OrdMap<NodeId, Vec<String>>,
    object_names: objects::ObjectNames,
}

type Applied = Result<Vec<Event>, Refused>;

impl State {
    /// Returns the active version of the rules. A new cluster begins with version 1.
    pub fn version(&self) -> u32 {
        self.version.max(1)
    }

    /// Applies one command. Total and deterministic: equal states and commands give equal answers on every node.
    pub fn apply(&mut self, command: &Command) -> Applied {
        if command.since() > self.version() && !matches!(command, Command::SetVersion { .. }) {
            return Err(Refused::NotActive { needs: command.since(), active: self.version() });
        }
        match command {
            Command::SetVersion { version } => self.set_version(*version),
            Command::PutNode { id, node } => self.put_node(*id, node),
            Command::DrainNode { id, draining } => self.drain_node(*id, *draining),
            Command::CreateEnvironment { environment } => self.create_environment(environment),
            Command::CreateToken { id, token } => self.create_token(*id, token),
            Command::RevokeToken { id, at } => self.revoke_token(*id, *at),
            Command::CreateApp { id, app } => self.create_app(*id, app),
            Command::PublishApp { id, layout, deployment, detached } => self.publish_app(*id, layout, deployment.as_ref(), *detached),
            Command::StopApp { id, at, why } => self.stop_app(*id, *at, why),
            Command::RemoveApp { id } => self.remove_app(*id),
            Command::PutFunction { id, function } => self.put_function(*id, function),
            Command::ScaleFunction { id, scaling } => {
                let function = self.functions.get_mut(id).ok_or(Refused::NoFunction { id: *id })?;
                function.scaling = *scaling;
                Ok(vec![Event::FunctionChanged(*id)])
            }
            Command::PutClass { class } => self.put_class(class),
            Command::PutImage { id, image } => {
                self.images.insert(*id, image.clone());
                Ok(vec![Event::ImageChanged(*id)])
            }
            Command::PutLayer { key, layer } => {
                self.layers.insert(*key, layer.clone());
                Ok(vec![])
            }
            Command::PutMount { id, mount } => {
                self.mounts.insert(*id, mount.clone());
                Ok(vec![Event::RegistryChanged])
            }
            Command::NameMount { name, id } => {
                self.named_mounts.insert(name.clone(), *id);
                Ok(vec![Event::RegistryChanged])
            }
            Command::PutSecret { id, secret } => self.put_secret(*id, secret),
            Command::RemoveSecret { id } => self.remove_secret(*id),
            Command::InitShards { home } => self.init_shards(*home),
            Command::ChangeShard { shard, epoch, change } => self.change_shard(*shard, *epoch, *change),
            Command::Assign { id, task } => self.assign(*id, task),
            Command::StopTask { id, why } => self.stop_task(*id, why),
            Command::EndTask { id, generation, end } => self.end_task(*id, *generation, end),
            Command::SetSetting { key, value } => {
                if value.is_empty() {
                    self.settings.remove(key);
                } else {
                    self.settings.insert(key.clone(), value.clone());
                }
                Ok(vec![Event::RegistryChanged])
            }
            Command::StageFunction { id, definition, function } => self.stage_function(*id, *definition, function),
            Command::Publish { id, publish } => self.publish(*id, publish),
            Command::PinFunction { app, of, version, at } => self.pin_function(*app, *of, *version, *at),
            Command::Redeploy { id, of, kind, release } => self.redeploy(*id, *of, *kind, release),
            Command::NoteApp { id, created_by, stopped_by, tags } => {
                self.note_app(*id, created_by.as_ref(), stopped_by.as_ref(), tags.as_ref())
            }
            Command::UpdateEnvironment { id, change } => self.update_environment(*id, change),
            Command::RemoveEnvironment { id, at, why } => self.remove_environment(*id, *at, why),
            Command::WriteSecret { id, secret, app, by, expected } => self.write_secret(*id, secret, *app, by, *expected),
            Command::RemoveImage { id } => self.remove_image(*id),
            Command::RemoveLayers { keys } => self.remove_layers(keys),
            Command::RemoveMount { id } => self.remove_mount(*id),
            Command::FoundCluster { cluster } => self.found_cluster(cluster),
            Command::AdmitNode { id, member, token, at } => self.admit_node(*id, member, *token, *at),
            Command::RemoveNode { id, at, why } => self.remove_node(*id, *at, why),
            Command::LabelNode { id, labels } => self.label_node(*id, labels),
            Command::SetVoting { id, voting } => self.set_voting(*id, *voting),
            Command::RecoverCluster { survivor, generation, at } => self.recover_cluster(*survivor, *generation, *at),
            Command::BindFunction { id, bound } => self.bind_function(*id, bound),
            Command::UseBound { id, at } => self.use_bound(*id, *at),
            Command::ForgetBound { ids, unused_since } => self.forget_bound(ids, *unused_since),
            Command::CreateObject { id, object } => self.create_object(*id, object),
            Command::RemoveObject { id } => self.remove_object(*id),
            Command::StageSchedules { app, request, at, schedules } => self.stage_schedules(*app, *request, *at, schedules),
            Command::Fire { id, due, next } => self.fire(*id, *due, *next),
            Command::EndFirings { firings } => self.end_firings(firings),
            Command::Reschedule { id, from, next } => self.reschedule(*id, *from, *next),
            Command::CreateSandbox { id, sandbox, function } => self.create_sandbox(*id, sandbox, function),
            Command::EndSandbox { id, end } => self.end_sandbox(*id, end),
            Command::ForgetSandboxes { ids } => self.forget_sandboxes(ids),
            Command::AssignGang { id, tasks } => self.assign_gang(*id, tasks),
            Command::PutGpus { id, kinds } => self.put_gpus(*id, kinds),
        }
    }

    fn set_version(&mut self, version: u32) -> Applied {
        let active = self.version();
        if version < active {
            return Err(Refused::VersionGoesBack { version, active });
        }
        self.version = version;
        Ok(vec![Event::VersionChanged])
    }
}
