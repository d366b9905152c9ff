//! What the driver needs from the node: what a container is to be, and what makes it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use shoal_runtime::{Container, ContainerSpec, Engine, Exit, Result, Stdio, Way};
use shoal_state::TaskId;
use shoal_state::model::Task;

use super::status::Ended;

/// A failure whose kind the driver does not need to know: it is written down, and tried again or not.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a task's container is to be.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    /// Root, program, environment, binds, limits, network.
    pub spec: ContainerSpec,
    /// How long the program may take from [`Handle::hello`](super::Handle::hello) until [`Handle::ready`](super::Handle::ready);
    /// `None`: for ever.
    pub startup_timeout: Option<Duration>,
    /// The signal that asks it to stop: SIGINT for functions, SIGTERM for servers and sandboxes.
    pub stop_signal: i32,
}

impl ContainerPlan {
    /// A plan for a function's container, without a startup timeout.
    pub fn new(spec: ContainerSpec) -> Self {
        Self { spec, startup_timeout: None, stop_signal: libc::SIGINT }
    }
}

/// The node, as the driver sees it.
pub trait Provider: Send + Sync + 'static {
    /// Gets ready what a task's container needs (its image, its socket, its arguments), and says what it is to be.
    ///
    /// Is dropped half-way when the task is stopped. A failure ends the task, with the error's text.
    fn prepare(&self, id: TaskId, task: Task) -> BoxFuture<'_, Result<ContainerPlan, Failure>>;

    /// Reports that a task has ended: its container, if it had one, is gone, and all it printed is in the log store.
    ///
    /// Takes away what `prepare` made, and proposes `EndTask` for this generation. It is called again after a failure,
    /// as long as the state has the task.
    fn ended(&self, id: TaskId, generation: u64, end: Ended) -> BoxFuture<'_, Result<(), Failure>>;

    /// Is told that a container could not go on from its snapshot. It is started without.
    fn distrust(&self, snapshot: &Path) {
        let _ = snapshot;
    }

    /// Is told that processes which read a container's files are to end: a read waits no longer than this from now on.
    fn is_to_end(&self, readers: &[u32], patience: Duration) {
        let _ = (readers, patience);
    }
}

/// Makes containers.
pub trait Engines: Send + Sync + 'static {
    /// Makes a container up to the point where `start` runs its program. Nothing is left behind by a failure.
    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Arc<dyn Running>>>;
}

/// A container. See [`Container`], whose methods these are.
pub trait Running: Send + Sync + 'static {
    /// In which way it begins.
    fn way(&self) -> Way {
        Way::Made
    }
    /// The host processes that read its files.
    fn readers(&self) -> Vec<u32> {
        Vec::new()
    }
    /// Hands out our ends of the program's streams.
    fn take_stdio(&self) -> Option<Stdio>;
    /// Runs the program.
    fn start(&self) -> BoxFuture<'_, Result<()>>;
    /// Sends a signal to the program.
    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<()>>;
    /// Sends a signal to the processes in the foreground of the program's terminal.
    fn interrupt(&self, signal: i32) -> BoxFuture<'_, Result<()>> {
        self.signal(signal)
    }
    /// Waits for the end.
    fn exit(&self) -> BoxFuture<'_, Result<Exit>>;
    /// Kills it by all means.
    fn kill(&self) -> BoxFuture<'_, Result<Exit>>;
    /// Takes it down until nothing is left.
    fn destroy(&self) -> BoxFuture<'_, Result<()>>;
    /// The engine's own container, if it is one.
    fn container(self: Arc<Self>) -> Option<Arc<Container>>;
}

impl Engines for Engine {
    fn create(&self, spec: ContainerSpec) -> BoxFuture<'_, Result<Arc<dyn Running>>> {
        async move {
            let container: Arc<dyn Running> = Arc::new(Engine::create(self, spec).await?);
            Ok(container)
        }
        .boxed()
    }
}

impl Running for Container {
    fn way(&self) -> Way {
        self.timings().way
    }

    fn readers(&self) -> Vec<u32> {
        Container::readers(self)
    }

    fn take_stdio(&self) -> Option<Stdio> {
        Container::take_stdio(self)
    }

    fn start(&self) -> BoxFuture<'_, Result<()>> {
        Container::start(self).boxed()
    }

    fn signal(&self, signal: i32) -> BoxFuture<'_, Result<()>> {
        Container::signal(self, signal, false).boxed()
    }

    fn interrupt(&self, signal: i32) -> BoxFuture<'_, Result<()>> {
        Container::interrupt(self, signal).boxed()
    }

    fn exit(&self) -> BoxFuture<'_, Result<Exit>> {
        Container::exit(self).boxed()
    }

    fn kill(&self) -> BoxFuture<'_, Result<Exit>> {
        self.stop(libc::SIGKILL, Duration::ZERO).boxed()
    }

    fn destroy(&self) -> BoxFuture<'_, Result<()>> {
        Container::destroy(self).boxed()
    }

    fn container(self: Arc<Self>) -> Option<Arc<Container>> {
        Some(self)
    }
}
