//! The life of one container, from the decision until its end is reported.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use shoal_runtime::{Exit, Way};
use shoal_state::TaskId;
use shoal_state::model::Task;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::engines::{ContainerPlan, Engines, Provider, Running};
use super::keyboard::Keyboard;
use super::pipes::Printer;
use super::status::{Ended, Phase, PhaseTime, how};
use crate::log::Stream;

/// How long a killed container may take until it is given up and cleaned in the background.
pub(super) const DEATH_WAIT: Duration = Duration::from_secs(20);
/// How long a read of a container's file may wait once it is to stop. Its exit hooks may need files; what has not come by then does not
/// come soon, and would take all of the grace.
pub(super) const ENDING_READ_WAIT: Duration = Duration::from_secs(2);
/// Between two attempts to report an end, or to take down what does not go.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a container that does not go is taken down.
const DESTROY_TRIES: u32 = 10;

/// What a container is told. Later orders are stricter than earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// Run.
    #[default]
    Run,
    /// End within this time.
    Stop { why: String, grace: Duration },
    /// End now.
    Kill { why: String },
}

impl Order {
    fn why(&self) -> Option<&str> {
        match self {
            Self::Run => None,
            Self::Stop { why, .. } | Self::Kill { why } => Some(why),
        }
    }
}

/// What became of a container.
enum Tried {
    Ended(Ended),
    /// It could not go on from this snapshot.
    SnapshotFailed(PathBuf),
}

/// Why a program does not run.
enum NotStarted {
    Failed(String),
    Stopped(String),
}

/// What the owner is told.
pub(super) enum News {
    Entered(TaskId, PhaseTime),
    /// With who types into its terminal, if it has one.
    Made(TaskId, Arc<dyn Running>, Option<Arc<Keyboard>>),
}

/// Everything that one life needs.
pub(super) struct Life {
    pub(super) id: TaskId,
    pub(super) task: Task,
    pub(super) engines: Arc<dyn Engines>,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) printer: Printer,
    pub(super) drain: Duration,
    pub(super) hello_wait: Duration,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) hello: watch::Receiver<bool>,
    pub(super) ready: watch::Receiver<bool>,
    pub(super) news: mpsc::Sender<News>,
    pub(super) began: Instant,
    pub(super) phases: Vec<PhaseTime>,
}

impl Life {
    /// Lives. Returns when the end was reported.
    pub(super) async fn run(mut self) {
        let mut end = match self.prepare().await {
            Ok(plan) => self.contain(plan).await,
            Err(why) => Ended::without_container(&why),
        };
        let stopped = matches!(*self.orders.borrow(), Order::Stop { .. }) && !end.how.starts_with("killed");
        if !stopped && end.exit.is_none_or(|exit| !exit.success()) {
            self.printer.say(&format!("container ended: {}", end.how));
        }
        self.enter(Phase::Ended).await;
        end.phases = std::mem::take(&mut self.phases);
        report(&*self.provider, self.id, self.task.generation, end).await;
    }

    async fn enter(&mut self, phase: Phase) {
        let entered = PhaseTime { phase, after: self.began.elapsed() };
        self.phases.push(entered);
        let _ = self.news.send(News::Entered(self.id, entered)).await;
    }

    /// Waits for the provider, unless the task is stopped before.
    async fn prepare(&mut self) -> Result<ContainerPlan, String> {
        self.enter(Phase::Preparing).await;
        let prepared = tokio::select! {
            prepared = self.provider.prepare(self.id, self.task.clone()) => prepared,
            why = told_to_end(&mut self.orders) => return Err(format!("stopped before it started: {why}")),
        };
        prepared.map_err(|failure| format!("cannot prepare the container: {}", in_full(&*failure)))
    }

    /// Makes the container, lets it live, and takes it down.
    async fn contain(&mut self, mut plan: ContainerPlan) -> Ended {
        match self.try_contain(&plan).await {
            Tried::Ended(end) => end,
            Tried::SnapshotFailed(snapshot) => {
                self.provider.distrust(&snapshot);
                plan.spec.snapshot = None;
                match self.try_contain(&plan).await {
                    Tried::Ended(end) => end,
                    Tried::SnapshotFailed(_) => Ended::without_container("it was to go on from a snapshot that it was not given"),
                }
            }
        }
    }

    async fn try_contain(&mut self, plan: &ContainerPlan) -> Tried {
        self.enter(Phase::Creating).await;
        let container = match self.engines.create(plan.spec.clone()).await {
            Ok(container) => container,
            Err(error) => return Tried::Ended(Ended::without_container(&format!("cannot create the container: {}", in_full(&error)))),
        };
        // What is typed goes to the container until this returns.
        let (mut pumps, mut typing, mut keyboard) = (JoinSet::new(), JoinSet::new(), None);
        if let Some(stdio) = container.take_stdio() {
            if let Some(terminal) = stdio.stdin.filter(|_| plan.spec.terminal.is_some()) {
                let (typed, types) = Keyboard::of(container.clone(), terminal, self.printer.clone());
                keyboard = Some(typed);
                typing.spawn(types);
            }
            pumps.spawn(self.printer.clone().pump(stdio.stdout, Stream::Stdout, keyboard.clone()));
            pumps.spawn(self.printer.clone().pump(stdio.stderr, Stream::Stderr, None));
        }
        let _ = self.news.send(News::Made(self.id, container.clone(), keyboard)).await;
        let end = match self.start(&*container).await {
            Ok(()) => self.live_and_end(&*container, plan).await,
            Err(NotStarted::Failed(error)) => match &plan.spec.snapshot {
                Some(snapshot) if container.way() == Way::Restored => {
                    tracing::warn!(task = %self.id, snapshot = %snapshot.display(), %error, "a snapshot cannot be restored: starting without it");
                    self.destroy(&container).await;
                    return Tried::SnapshotFailed(snapshot.clone());
                }
                _ => Ended::without_container(&format!("cannot start the container: {error}")),
            },
            Err(NotStarted::Stopped(why)) => Ended::without_container(&why),
        };
        self.enter(Phase::Draining).await;
        // The pipes end with the container, so after a failed start it has to go first.
        if end.exit.is_none() {
            self.destroy(&container).await;
        }
        let drained = timeout(self.drain, async { while pumps.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            self.printer.say("output may be missing: the container's pipes did not end");
        }
        if end.exit.is_some() {
            self.destroy(&container).await;
        }
        Tried::Ended(end)
    }

    async fn start(&mut self, container: &dyn Running) -> Result<(), NotStarted> {
        if let Some(why) = self.orders.borrow().why() {
            return Err(NotStarted::Stopped(format!("stopped before it started: {why}")));
        }
        self.enter(Phase::Starting).await;
        tokio::select! {
            started = container.start() => started.map_err(|error| NotStarted::Failed(in_full(&error))),
            why = told_to_end(&mut self.orders) => Err(NotStarted::Stopped(format!("stopped while it started: {why}"))),
        }
    }

    async fn live_and_end(&mut self, container: &dyn Running, plan: &ContainerPlan) -> Ended {
        self.enter(Phase::Loading).await;
        let (exit, why, killed) = match self.live(container, plan).await {
            Some(exit) => (exit, None, false),
            None => self.end(container, plan).await,
        };
        let how = match exit {
            Ok(exit) => how(exit, why.as_deref(), killed),
            Err(ref error) => format!("its exit status is lost: {error}"),
        };
        Ended { exit: exit.ok(), why, how, phases: Vec::new() }
    }

    /// Waits until the container ends by itself; `None` when it is to be ended.
    async fn live(&mut self, container: &dyn Running, plan: &ContainerPlan) -> Option<Result<Exit, String>> {
        let mut deadline = plan.startup_timeout.map(|timeout| Instant::now() + self.hello_wait + timeout);
        let (mut silent, mut loading) = (true, true);
        loop {
            tokio::select! {
                // A container that ended by itself did so, even if it was told to a moment later.
                biased;
                exit = container.exit() => return Some(exit.map_err(|error| in_full(&error))),
                _ = told_to_end(&mut self.orders) => return None,
                () = became_true(&mut self.hello), if silent && loading => {
                    silent = false;
                    deadline = plan.startup_timeout.map(|timeout| Instant::now() + timeout);
                }
                () = became_true(&mut self.ready), if loading => {
                    loading = false;
                    self.enter(Phase::Ready).await;
                }
                () = until(deadline), if loading => return None,
            }
        }
    }

    /// Ends the container: by its signal and grace, then by force. Returns how, why, and whether by force.
    async fn end(&mut self, container: &dyn Running, plan: &ContainerPlan) -> (Result<Exit, String>, Option<String>, bool) {
        let mut order = self.orders.borrow_and_update().clone();
        if order == Order::Run {
            let hello_wait = if *self.hello.borrow() { Duration::ZERO } else { self.hello_wait };
            let waited = hello_wait + plan.startup_timeout.unwrap_or_default();
            order = Order::Kill { why: format!("it did not start within {} s", waited.as_secs_f32()) };
        }
        let why = order.why().map(str::to_owned);
        let asked = Instant::now();
        if let Order::Stop { .. } = order {
            self.enter(Phase::Stopping).await;
            self.provider.is_to_end(&container.readers(), ENDING_READ_WAIT);
            if let Err(error) = container.signal(plan.stop_signal).await {
                tracing::warn!(task = %self.id, %error, "cannot ask a container to stop");
            }
        }
        while let Order::Stop { grace, .. } = order {
            tokio::select! {
                exit = container.exit() => return (exit.map_err(|error| in_full(&error)), why, false),
                _ = sleep_until(asked + grace) => break,
                changed = self.orders.changed() => match changed {
                    Ok(()) => order = self.orders.borrow_and_update().clone(),
                    Err(_) => break,
                },
            }
        }
        let why = match order {
            Order::Stop { why, grace } => format!("it did not stop within {} s ({why})", grace.as_secs_f32()),
            Order::Kill { why } => why,
            Order::Run => String::new(),
        };
        self.enter(Phase::Dying).await;
        // It hears of no signal in the middle of a read.
        self.provider.is_to_end(&container.readers(), Duration::ZERO);
        let exit = match timeout(DEATH_WAIT, container.kill()).await {
            Ok(exit) => exit.map_err(|error| in_full(&error)),
            Err(_) => Err(format!("it did not die within {DEATH_WAIT:?}")),
        };
        (exit, Some(why), true)
    }

    /// Takes the container down. What does not go is tried again in the background: the task's end must not wait for it.
    async fn destroy(&self, container: &Arc<dyn Running>) {
        self.provider.is_to_end(&container.readers(), Duration::ZERO);
        let Err(error) = container.destroy().await else { return };
        tracing::warn!(task = %self.id, %error, "a container is not gone yet");
        let (container, task) = (container.clone(), self.id);
        tokio::spawn(async move {
            for _ in 0..DESTROY_TRIES {
                sleep(AGAIN).await;
                if container.destroy().await.is_ok() {
                    return;
                }
            }
            tracing::error!(%task, "a container is left behind until the node restarts");
        });
    }
}

/// Reports an end until it is taken. The owner drops this when the state no longer has the task.
pub(super) async fn report(provider: &dyn Provider, id: TaskId, generation: u64, end: Ended) {
    while let Err(failure) = provider.ended(id, generation, end.clone()).await {
        tracing::warn!(task = %id, error = %in_full(&*failure), "cannot report the end of a task, trying again");
        sleep(AGAIN).await;
    }
}

async fn told_to_end(orders: &mut watch::Receiver<Order>) -> String {
    match orders.wait_for(|order| *order != Order::Run).await {
        Ok(order) => order.why().unwrap_or_default().to_owned(),
        Err(_) => "the node stops".to_owned(),
    }
}

async fn became_true(told: &mut watch::Receiver<bool>) {
    if told.wait_for(|told| *told).await.is_err() {
        std::future::pending().await
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Writes an error with its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
