//! The state machine: the registry, the shards, and the decisions, changed by commands and by nothing else.
//!
//! Policy is not here: `scheduler::plan` prefers, `apply` only refuses, item by item, what can't be. Each command
//! either changes the state and says what changed, or is refused and changes nothing.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet, Vector};

use crate::model::{
    App, AppLayout, AppNotes, AppState, Bound, Class, Cluster, Deployment, Environment, EnvironmentSettings, Function, Gang, Image, Layer,
    Member, Mount, Node, Object, Release, Removed, Sandbox, Schedule, Secret, SecretNotes, Shard, ShardChange, StagedSchedules, Task,
    TaskEnd, Token, TokenLimits, TokenPurpose, Voting,
};
use crate::refused::MemberIs;
use crate::{
    AppId, ClassId, Command, DefinitionId, Digest, EnvironmentId, Event, FunctionId, GangId, ImageId, MountId, NodeId, ObjectId, Refused,
    SandboxId, SecretId, ShardId, TaskId, Timestamp, TokenId,
};

mod bound;
mod environments;
mod gangs;
mod layout;
mod members;
mod objects;
mod parts;
mod releases;
mod sandboxes;
mod schedules;
mod secrets;

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

/// From this version of the rules on, disk that tasks set aside is counted.
const DISK_SINCE: u32 = 7;

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

    fn put_node(&mut self, id: NodeId, node: &Node) -> Applied {
        self.not_removed(id)?;
        let old = self.nodes.get(&id);
        let draining = old.is_some_and(|old| old.draining);
        // What operators have said of it outlives its restart.
        let labels = old.map_or_else(|| node.labels.clone(), |old| old.labels.clone());
        self.nodes.insert(id, Node { draining: draining || node.draining, labels, ..node.clone() });
        Ok(vec![Event::NodesChanged, Event::TasksChanged(id)])
    }

    fn drain_node(&mut self, id: NodeId, draining: bool) -> Applied {
        self.nodes.get_mut(&id).ok_or(Refused::NoNode { id })?.draining = draining;
        Ok(vec![Event::NodesChanged])
    }

    fn put_gpus(&mut self, id: NodeId, kinds: &[String]) -> Applied {
        let gpus = self.nodes.get(&id).ok_or(Refused::NoNode { id })?.capacity.gpus;
        if usize::try_from(gpus) != Ok(kinds.len()) {
            return Err(Refused::NotItsGpus { id, gpus, kinds: kinds.len() });
        }
        match kinds.is_empty() {
            true => drop(self.gpus.remove(&id)),
            false => drop(self.gpus.insert(id, kinds.to_vec())),
        }
        Ok(vec![Event::NodesChanged])
    }

    fn create_environment(&mut self, environment: &Environment) -> Applied {
        if let Some(held) = self.environment_named(&environment.name) {
            if held.id == environment.id {
                return Ok(vec![]);
            }
            return Err(Refused::EnvironmentExists { name: environment.name.clone(), id: held.id });
        }
        // Its name was another when it was created under this id.
        if let Some(renamed) = self.environments.get(&environment.id) {
            return Err(Refused::EnvironmentExists { name: renamed.name.clone(), id: renamed.id });
        }
        self.environments.insert(environment.id, environment.clone());
        Ok(vec![Event::RegistryChanged])
    }

    fn create_token(&mut self, id: TokenId, token: &Token) -> Applied {
        if let TokenPurpose::Limited(TokenLimits { environment: Some(environment), .. }) = token.purpose
            && !self.environments.contains_key(&environment)
        {
            return Err(Refused::NoEnvironment { id: environment });
        }
        if !self.tokens.contains_key(&id) {
            self.tokens.insert(id, token.clone());
        }
        Ok(vec![Event::TokensChanged])
    }

    fn revoke_token(&mut self, id: TokenId, at: Timestamp) -> Applied {
        let token = self.tokens.get_mut(&id).ok_or(Refused::NoToken { id })?;
        token.revoked.get_or_insert(at);
        Ok(vec![Event::TokensChanged])
    }

    fn create_app(&mut self, id: AppId, app: &App) -> Applied {
        if self.apps.contains_key(&id) {
            return Ok(vec![]);
        }
        if !self.environments.contains_key(&app.environment) {
            return Err(Refused::NoEnvironment { id: app.environment });
        }
        if app.state == AppState::Deployed {
            self.hold_name(id, app.environment, &app.name)?;
        }
        self.apps.insert(id, app.clone());
        Ok(vec![Event::AppChanged(id)])
    }

    /// Gives an app its name, or says who has it.
    fn hold_name(&mut self, id: AppId, environment: EnvironmentId, name: &str) -> Result<(), Refused> {
        let place = (environment, name.to_owned());
        match self.deployed.get(&place) {
            Some(holder) if *holder != id => Err(Refused::NameHeld { id, name: name.to_owned(), holder: *holder }),
            _ => {
                self.deployed.insert(place, id);
                Ok(())
            }
        }
    }

    fn live_app(&mut self, id: AppId) -> Result<&mut App, Refused> {
        match self.apps.get_mut(&id) {
            None => Err(Refused::NoApp { id }),
            Some(app) if app.state == AppState::Stopped => Err(Refused::AppStopped { id }),
            Some(app) => Ok(app),
        }
    }

    fn publish_app(&mut self, id: AppId, layout: &AppLayout, deployment: Option<&Deployment>, detached: bool) -> Applied {
        let environment = self.live_app(id)?.environment;
        if let Some(missing) = layout.functions.values().find(|function| !self.functions.contains_key(*function)) {
            return Err(Refused::NoFunction { id: *missing });
        }
        if let Some(deployment) = deployment {
            self.hold_name(id, environment, &deployment.name)?;
        }
        let app = self.live_app(id)?;
        app.layout = layout.clone();
        match deployment {
            Some(deployment) => {
                app.name.clone_from(&deployment.name);
                app.state = AppState::Deployed;
                let version = app.deployments.last().map_or(0, |last| last.version) + 1;
                app.deployments.push_back(Deployment { version, ..deployment.clone() });
            }
            None => app.state = if detached { AppState::Detached } else { AppState::Ephemeral },
        }
        Ok(vec![Event::AppChanged(id)])
    }

    fn stop_app(&mut self, id: AppId, at: Timestamp, why: &str) -> Applied {
        let app = self.apps.get_mut(&id).ok_or(Refused::NoApp { id })?;
        if app.state == AppState::Stopped {
            return Ok(vec![]);
        }
        if app.state == AppState::Deployed {
            self.deployed.remove(&(app.environment, app.name.clone()));
        }
        app.state = AppState::Stopped;
        app.stopped = Some((at, why.to_owned()));
        self.forget_staged(id);
        self.forget_schedules_of(id);
        self.forget_secrets_of(id);
        let mut events = vec![Event::AppChanged(id)];
        let tasks: Vec<TaskId> = self.tasks.iter().filter(|(_, task)| task.app == id).map(|(task, _)| *task).collect();
        for task in tasks {
            events.extend(self.stop_task(task, why)?);
        }
        self.end_sandboxes_of(id, at, why);
        Ok(events)
    }

    fn remove_app(&mut self, id: AppId) -> Applied {
        let app = self.apps.get(&id).ok_or(Refused::NoApp { id })?;
        if app.state != AppState::Stopped || self.tasks.values().any(|task| task.app == id) {
            return Err(Refused::AppRuns { id });
        }
        self.forget_app(id);
        Ok(vec![Event::AppChanged(id)])
    }

    /// Takes away an app with all that belongs to it.
    fn forget_app(&mut self, id: AppId) {
        self.apps.remove(&id);
        self.app_notes.remove(&id);
        self.releases.remove(&id);
        self.forget_staged(id);
        self.forget_schedules_of(id);
        self.forget_secrets_of(id);
        let functions: Vec<FunctionId> = self.functions.iter().filter(|(_, function)| function.app == id).map(|(id, _)| *id).collect();
        let classes: Vec<ClassId> = self.classes.values().filter(|class| class.app == id).map(|class| class.id).collect();
        functions.iter().for_each(|id| drop((self.functions.remove(id), self.bound.remove(id))));
        classes.iter().for_each(|id| drop(self.classes.remove(id)));
        self.forget_sandboxes_of(id);
    }

    fn put_function(&mut self, id: FunctionId, function: &Function) -> Applied {
        self.live_app(function.app)?;
        self.has_parts(id, function)?;
        let mut events = Vec::new();
        self.define(id, function.clone(), &mut events);
        Ok(events)
    }

    /// Refuses a function whose image, files or secrets are not there.
    fn has_parts(&self, id: FunctionId, function: &Function) -> Result<(), Refused> {
        if let Some(image) = function.image
            && !self.images.contains_key(&image)
        {
            return Err(Refused::NoImage { function: id, image });
        }
        if let Some(mount) = function.mounts.iter().find(|mount| !self.mounts.contains_key(*mount)) {
            return Err(Refused::NoMount { function: id, mount: *mount });
        }
        if let Some(secret) = function.secrets.iter().find(|secret| !self.secrets.contains_key(*secret)) {
            return Err(Refused::NoSecret { id: *secret });
        }
        Ok(())
    }

    fn put_class(&mut self, class: &Class) -> Applied {
        self.live_app(class.app)?;
        self.classes.insert(class.id, class.clone());
        Ok(vec![Event::RegistryChanged])
    }

    fn put_secret(&mut self, id: SecretId, secret: &Secret) -> Applied {
        if !self.environments.contains_key(&secret.environment) {
            return Err(Refused::NoEnvironment { id: secret.environment });
        }
        self.secrets.insert(id, secret.clone());
        Ok(vec![Event::RegistryChanged])
    }

    fn init_shards(&mut self, home: NodeId) -> Applied {
        if !self.nodes.contains_key(&home) {
            return Err(Refused::NoNode { id: home });
        }
        let mut events = Vec::new();
        for shard in ShardId::all() {
            if !self.shards.contains_key(&shard) {
                self.shards.insert(shard, Shard { epoch: 1, home, in_sync: vec![home], joining: vec![] });
                events.push(Event::ShardChanged(shard));
            }
        }
        Ok(events)
    }

    fn change_shard(&mut self, id: ShardId, epoch: u64, change: ShardChange) -> Applied {
        let shard = self.shards.get(&id).ok_or(Refused::NoShard { shard: id })?;
        if shard.epoch != epoch {
            return Err(Refused::OldEpoch { shard: id, epoch, current: shard.epoch });
        }
        let next = changed(id, shard, change)?;
        self.shards.insert(id, next);
        Ok(vec![Event::ShardChanged(id)])
    }

    fn assign(&mut self, id: TaskId, task: &Task) -> Applied {
        if self.tasks.contains_key(&id) {
            return Ok(vec![]);
        }
        let function = self.functions.get(&task.function).ok_or(Refused::NoFunction { id: task.function })?;
        match self.apps.get(&task.app) {
            None => return Err(Refused::NoApp { id: task.app }),
            Some(app) if app.state == AppState::Stopped => return Err(Refused::AppStopped { id: task.app }),
            Some(_) => {}
        }
        let containers_max = function.scaling.containers_max;
        let running = self.tasks_of.get(&task.function).map_or(0, OrdSet::len);
        if containers_max > 0 && running >= usize::try_from(containers_max).unwrap_or(usize::MAX) {
            return Err(Refused::ContainersMax { task: id, function: task.function, containers_max });
        }
        self.fits(id, task)?;
        self.tasks.insert(id, task.clone());
        self.tasks_of.entry(task.function).or_default().insert(id);
        Ok(vec![Event::TasksChanged(task.node)])
    }

    /// Refuses a task that asks for what its node has not, or has given away.
    fn fits(&self, id: TaskId, task: &Task) -> Result<(), Refused> {
        let node = self.nodes.get(&task.node).ok_or(Refused::NoNode { id: task.node })?;
        if node.draining {
            return Err(Refused::NodeDrains { task: id, node: task.node });
        }
        if node.boot != task.boot {
            return Err(Refused::OtherBoot { task: id, node: task.node });
        }
        let (free_cpu_milli, free_memory_bytes) = self.free(task.node);
        if task.resources.cpu_milli > free_cpu_milli || task.resources.memory_bytes > free_memory_bytes {
            return Err(Refused::NodeFull { task: id, node: task.node, free_cpu_milli, free_memory_bytes });
        }
        if self.version() >= DISK_SINCE {
            let free_bytes = self.free_disk(task.node);
            if task.resources.disk_bytes > free_bytes {
                return Err(Refused::DiskHeld { task: id, node: task.node, free_bytes });
            }
        }
        for gpu in &task.gpus {
            if *gpu >= node.capacity.gpus {
                return Err(Refused::NoGpu { task: id, node: task.node, gpu: *gpu });
            }
            if let Some((holder, _)) = self.tasks.iter().find(|(_, held)| held.node == task.node && held.gpus.contains(gpu)) {
                return Err(Refused::GpuHeld { task: id, node: task.node, gpu: *gpu, holder: *holder });
            }
        }
        Ok(())
    }

    fn stop_task(&mut self, id: TaskId, why: &str) -> Applied {
        let mut events = self.stop_alone(id, why)?;
        for other in self.others_of(id) {
            events.extend(self.stop_alone(other, why)?);
        }
        Ok(events)
    }

    fn stop_alone(&mut self, id: TaskId, why: &str) -> Applied {
        let task = self.tasks.get_mut(&id).ok_or(Refused::NoTask { id })?;
        if task.stopping.is_some() {
            return Ok(vec![]);
        }
        task.stopping = Some(why.to_owned());
        Ok(vec![Event::TasksChanged(task.node)])
    }

    fn end_task(&mut self, id: TaskId, generation: u64, end: &TaskEnd) -> Applied {
        let task = self.tasks.get(&id).ok_or(Refused::NoTask { id })?;
        if task.generation != generation {
            return Err(Refused::OldGeneration { id, generation, current: task.generation });
        }
        let (function, node, app) = (task.function, task.node, task.app);
        self.tasks.remove(&id);
        if let Some(tasks) = self.tasks_of.get_mut(&function) {
            tasks.remove(&id);
            if tasks.is_empty() {
                self.tasks_of.remove(&function);
            }
        }
        self.sandbox_task_ended(function, end);
        let mut events = vec![Event::TasksChanged(node)];
        events.extend(self.gang_task_ended(id, &end.how));
        self.forget_if_homeless(app);
        Ok(events)
    }

    /// Returns the CPU (thousandths of a core) and the memory (bytes) of a node that no task holds.
    pub fn free(&self, node: NodeId) -> (u32, u64) {
        let Some(capacity) = self.nodes.get(&node).map(|node| node.capacity) else { return (0, 0) };
        let held = self.tasks.values().filter(|task| task.node == node);
        held.fold((capacity.cpu_milli, capacity.memory_bytes), |(cpu, memory), task| {
            (cpu.saturating_sub(task.resources.cpu_milli), memory.saturating_sub(task.resources.memory_bytes))
        })
    }

    /// Returns the disk of a node that no task has set aside, in bytes; as much as there can be for a node that has not said how much
    /// it has.
    pub fn free_disk(&self, node: NodeId) -> u64 {
        let Some(capacity) = self.nodes.get(&node).map(|node| node.capacity.disk_bytes) else { return 0 };
        if capacity == 0 {
            return u64::MAX;
        }
        let held = self.tasks.values().filter(|task| task.node == node).map(|task| task.resources.disk_bytes);
        held.fold(capacity, u64::saturating_sub)
    }

    /// Finds an environment by name; the empty name means the default one.
    pub fn environment_named(&self, name: &str) -> Option<&Environment> {
        if name.is_empty() {
            return self.environment_default();
        }
        self.environments.values().find(|environment| environment.name == name)
    }

    /// Finds the app that is deployed under a name.
    pub fn app_deployed(&self, environment: EnvironmentId, name: &str) -> Option<AppId> {
        self.deployed.get(&(environment, name.to_owned())).copied()
    }

    /// Finds a secret by name.
    pub fn secret_named(&self, environment: EnvironmentId, name: &str) -> Option<(SecretId, &Secret)> {
        let named = |secret: &&Secret| secret.environment == environment && secret.name == name;
        self.secrets.iter().find(|(_, secret)| !name.is_empty() && named(secret)).map(|(id, secret)| (*id, secret))
    }
}

/// Returns a shard after a change, one epoch later.
fn changed(id: ShardId, shard: &Shard, change: ShardChange) -> Result<Shard, Refused> {
    let refuse = |node, is| Err(Refused::ShardMember { shard: id, node, is });
    let mut next = shard.clone();
    next.epoch += 1;
    match change {
        ShardChange::Promote(node) => {
            if !shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::NotInSync);
            }
            next.home = node;
            next.in_sync = vec![node];
            next.joining.clear();
        }
        ShardChange::Invite(node) => {
            if shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::InSync);
            }
            insert_sorted(&mut next.joining, node);
        }
        ShardChange::Join(node) => {
            if !shard.joining.contains(&node) {
                return refuse(node, MemberIs::NotJoining);
            }
            next.joining.retain(|joining| *joining != node);
            insert_sorted(&mut next.in_sync, node);
        }
        ShardChange::Drop(node) => {
            if shard.home == node {
                return refuse(node, MemberIs::Home);
            }
            if !shard.in_sync.contains(&node) {
                return refuse(node, MemberIs::NotInSync);
            }
            next.in_sync.retain(|member| *member != node);
        }
        ShardChange::Abort(node) => {
            if !shard.joining.contains(&node) {
                return refuse(node, MemberIs::NotJoining);
            }
            next.joining.retain(|joining| *joining != node);
        }
    }
    Ok(next)
}

fn insert_sorted(nodes: &mut Vec<NodeId>, node: NodeId) {
    if let Err(place) = nodes.binary_search(&node) {
        nodes.insert(place, node);
    }
}
