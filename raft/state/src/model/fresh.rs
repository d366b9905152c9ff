//! What things are before anything more is known of them: who makes one says what differs.

use imbl::{OrdMap, Vector};

use super::{App, AppLayout, AppState, Definition, Environment, Function, Node, Resources, Retries, Scaling, Task, Timestamp};
use crate::{AppId, BootId, EnvironmentId, FunctionId, NodeId};

impl Environment {
    /// An environment whose web endpoints' labels end with nothing of its own.
    pub fn new(id: EnvironmentId, name: impl Into<String>, created: Timestamp) -> Self {
        Self { id, name: name.into(), webhook_suffix: String::new(), created }
    }
}

impl App {
    /// An app without a name, without functions and never deployed.
    pub fn new(environment: EnvironmentId, state: AppState, created: Timestamp) -> Self {
        let (name, description, stopped) = Default::default();
        Self { environment, name, description, state, created, stopped, layout: AppLayout::default(), deployments: Vector::new() }
    }
}

impl Function {
    /// How long an input may run, and a container start, when nobody says, in milliseconds: what the SDK says.
    pub const TIMEOUT_MS: u64 = 300_000;

    /// A function of which only its place is known: it asks for nothing, and takes one input at a time.
    pub fn new(app: AppId, tag: impl Into<String>, created: Timestamp) -> Self {
        Self {
            app,
            tag: tag.into(),
            definition: Definition::default(),
            image: None,
            mounts: Vec::new(),
            secrets: Vec::new(),
            resources: Resources::default(),
            scaling: Scaling::default(),
            retries: Retries::default(),
            timeout_ms: Self::TIMEOUT_MS,
            startup_timeout_ms: Self::TIMEOUT_MS,
            inputs_concurrent: 1,
            batch_max: 0,
            batch_wait_ms: 0,
            single_use: false,
            block_network: false,
            builder: false,
            parent: None,
            parameters: Vec::new(),
            created,
        }
    }
}

impl Node {
    /// A node that takes tasks, without labels and an address.
    pub fn new(name: impl Into<String>, boot: BootId, capacity: Resources, started: Timestamp) -> Self {
        Self { name: name.into(), boot, capacity, labels: OrdMap::new(), address: String::new(), draining: false, started }
    }
}

impl Task {
    /// The first assignment of a task that holds nothing, of a function of this app, to this start of a node.
    pub fn new((function, app): (FunctionId, AppId), (node, boot): (NodeId, BootId), created: Timestamp) -> Self {
        Self { function, app, node, boot, generation: 1, resources: Resources::default(), gpus: Vec::new(), created, stopping: None }
    }
}
