//! The one owner of this node's containers, and the handle that others hold.

mod engines;
mod keyboard;
mod life;
mod owner;
mod pipes;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_runtime::Container;
use shoal_state::{AppId, BootId, CallId, InputId, NodeId, State, TaskId};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use engines::{ContainerPlan, Engines, Failure, Provider, Running};
pub use keyboard::Keyboard;
pub use status::{ContainerStatus, Ended, Phase, PhaseTime};

use crate::log::LogStore;
use owner::{Owner, Request};

/// How many requests may wait for the owner. It never waits itself, so they only queue for a moment; who asks waits.
const REQUESTS_MAX: usize = 256;

/// How long [`Handle::shutdown`] waits for the cluster to take the reports. Tasks whose report it does not take end with
/// "node restarted" after the next start.
pub const REPORT_WAIT: Duration = Duration::from_secs(2);

/// Who this node is, and how patient.
#[derive(Debug, Clone)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// This start of it.
    pub boot: BootId,
    /// How long a container has for its exit hooks once it was asked to stop.
    pub grace: Duration,
    /// The same when its whole app was stopped.
    pub grace_app_stopped: Duration,
    /// How long the pipes of a container that has ended may still give output.
    pub drain: Duration,
    /// How long a container may take until its program says hello. The time that a function allows for its start begins
    /// there: before, the node and the client are at work, and none of the user's code.
    pub hello_wait: Duration,
}

impl Config {
    /// The usual patience.
    pub fn new(node: NodeId, boot: BootId) -> Self {
        let seconds = Duration::from_secs;
        Self { node, boot, grace: seconds(30), grace_app_stopped: seconds(10), drain: seconds(5), hello_wait: seconds(60) }
    }
}

/// What inputs and calls the tasks have now, for the tags of log lines.
type Inputs = Arc<Mutex<BTreeMap<TaskId, (InputId, CallId)>>>;

/// Makes this node's containers match the state, as long as it is held. When it is dropped all work stops at once;
/// [`Handle::shutdown`] ends it in order.
#[derive(Debug)]
pub struct Driver {
    handle: Handle,
    owner: JoinHandle<()>,
}

/// What others may ask of the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    statuses: watch::Receiver<BTreeMap<TaskId, ContainerStatus>>,
    inputs: Inputs,
}

/// Containers of an app did not end in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} containers of app {app} are still there after {waited:?}: {}", tasks.len(), list(tasks))]
pub struct StillThere {
    /// The app.
    pub app: AppId,
    /// The tasks, and what they are doing.
    pub tasks: Vec<(TaskId, Phase)>,
    /// How long they were waited for.
    pub waited: Duration,
}

fn list(tasks: &[(TaskId, Phase)]) -> String {
    let tasks: Vec<String> = tasks.iter().map(|(task, phase)| format!("{task} is {phase}")).collect();
    tasks.join(", ")
}

impl Driver {
    /// Starts the driver. `state` gives the newest state this node has; `changed` wakes the driver whenever it changed.
    ///
    /// What the engine had of a former start of this node must be cleaned by now.
    pub fn start<T: Send + Sync + 'static>(
        config: Config,
        state: impl Fn() -> Arc<State> + Send + Sync + 'static,
        changed: watch::Receiver<T>,
        engines: Arc<dyn Engines>,
        provider: Arc<dyn Provider>,
        logs: LogStore,
    ) -> Self {
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let (published, statuses) = watch::channel(BTreeMap::new());
        let inputs = Inputs::default();
        let handle = Handle { requests, statuses, inputs: inputs.clone() };
        let owner = Owner::new(config, state, engines, provider, logs, inputs, published);
        Self { handle, owner: tokio::spawn(owner.run(changed, received)) }
    }

    /// Returns a handle.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.owner.abort();
    }
}

impl Handle {
    /// Returns the containers of this node, those included that are being made or whose end is being reported.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.statuses.borrow().values().cloned().collect()
    }

    /// Returns one container of this node.
    pub fn container(&self, task: TaskId) -> Option<ContainerStatus> {
        self.statuses.borrow().get(&task).cloned()
    }

    /// Returns a task's container as the engine knows it, for exec and ports; `None` before it was created.
    pub async fn engine_container(&self, task: TaskId) -> Option<Arc<Container>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.requests.send(Request::Container { task, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Returns who types into the terminal of a task's program; `None` when it has none, or is gone.
    pub async fn keyboard(&self, task: TaskId) -> Option<Arc<Keyboard>> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.requests.send(Request::Keyboard { task, reply }).await.ok()?;
        answer.await.ok()?
    }

    /// Waits until a task's program runs, at most so long, and returns its container; `None` when it does not run by then, or has
    /// ended.
    pub async fn running(&self, task: TaskId, wait: Duration) -> Option<Arc<Container>> {
        let mut statuses = self.statuses.clone();
        let phase = |all: &BTreeMap<TaskId, ContainerStatus>| all.get(&task).map(|status| status.phase);
        let begun = statuses.wait_for(|all| phase(all) >= Some(Phase::Loading));
        let now = tokio::time::timeout(wait, begun).await.ok()?.ok().and_then(|all| phase(&all))?;
        if now >= Phase::Dying { None } else { self.engine_container(task).await }
    }

    /// Ends a container at once. `why` becomes the end of its task: "killed: …". Nothing happens when there is none.
    pub async fn kill(&self, task: TaskId, why: impl Into<String>) {
        let _ = self.requests.send(Request::Kill { task, why: why.into() }).await;
    }

    /// Notes that a task's program is there, and begins with the user's code. The startup timeout runs from here.
    pub async fn hello(&self, task: TaskId) {
        let _ = self.requests.send(Request::Hello { task }).await;
    }

    /// Notes that a task's program has asked for its first input. Until then the startup timeout runs.
    pub async fn ready(&self, task: TaskId) {
        let _ = self.requests.send(Request::Ready { task }).await;
    }

    /// Puts a sentence for the user among what a task has printed. Nothing happens when it is not here.
    pub async fn say(&self, task: TaskId, sentence: impl Into<String>) {
        let _ = self.requests.send(Request::Say { task, sentence: sentence.into() }).await;
    }

    /// Sets what the lines that a task prints from now on are tagged with; `None` when it has no input, or several.
    pub fn set_input(&self, task: TaskId, input: Option<(InputId, CallId)>) {
        let mut inputs = self.inputs.lock();
        match input {
            Some(input) => inputs.insert(task, input),
            None => inputs.remove(&task),
        };
    }

    /// Waits until no container of an app is left here, and all they printed is in the log store.
    ///
    /// # Errors
    /// When some are left after `wait`.
    pub async fn wait_until_app_gone(&self, app: AppId, wait: Duration) -> Result<(), StillThere> {
        let mut statuses = self.statuses.clone();
        let left = |all: &BTreeMap<TaskId, ContainerStatus>| -> Vec<(TaskId, Phase)> {
            let of_app = all.values().filter(|status| status.app == app && status.phase != Phase::Ended);
            of_app.map(|status| (status.task, status.phase)).collect()
        };
        let gone = tokio::time::timeout(wait, statuses.wait_for(|all| left(all).is_empty())).await.is_ok();
        if gone {
            return Ok(());
        }
        let tasks = left(&self.statuses.borrow());
        Err(StillThere { app, tasks, waited: wait })
    }

    /// Stops all containers, with this grace, and makes no more. Returns when they are gone and their ends reported; or
    /// later than the grace by what force may take, and no longer than [`REPORT_WAIT`] after they are gone.
    pub async fn shutdown(&self, grace: Duration) {
        let _ = self.requests.send(Request::Shutdown { grace }).await;
        let mut statuses = self.statuses.clone();
        let none_left = statuses.wait_for(|all| all.values().all(|status| status.phase == Phase::Ended));
        let _ = tokio::time::timeout(grace + life::DEATH_WAIT, none_left).await;
        let _ = tokio::time::timeout(REPORT_WAIT, statuses.wait_for(BTreeMap::is_empty)).await;
    }
}
