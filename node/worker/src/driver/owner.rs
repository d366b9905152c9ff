//! The loop that owns the containers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_runtime::Container;
use shoal_state::model::Task;
use shoal_state::{State, TaskId, Timestamp};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::engines::{Engines, Provider, Running};
use super::keyboard::Keyboard;
use super::life::{Life, News, Order, report};
use super::pipes::Printer;
use super::status::{ContainerStatus, Ended, Phase};
use super::{Config, Inputs};
use crate::log::LogStore;
use crate::steps::{self, Step, Tasks};

/// How much news of lives may wait for the owner. Lives wait when it is full; the owner never waits for them.
const NEWS_MAX: usize = 1024;
/// The state is looked at again after this time even if nothing woke the loop.
const TICK: Duration = Duration::from_secs(5);

/// What others ask.
#[derive(Debug)]
pub(super) enum Request {
    Kill { task: TaskId, why: String },
    Hello { task: TaskId },
    Ready { task: TaskId },
    Say { task: TaskId, sentence: String },
    Container { task: TaskId, reply: oneshot::Sender<Option<Arc<Container>>> },
    Keyboard { task: TaskId, reply: oneshot::Sender<Option<Arc<Keyboard>>> },
    Shutdown { grace: Duration },
}

/// One container, or a task whose end is being reported.
struct Held {
    generation: u64,
    life: steps::Life,
    status: ContainerStatus,
    orders: watch::Sender<Order>,
    hello: watch::Sender<bool>,
    ready: watch::Sender<bool>,
    container: Option<Arc<dyn Running>>,
    keyboard: Option<Arc<Keyboard>>,
    running: AbortHandle,
}

/// The owner.
pub(super) struct Owner<S> {
    config: Config,
    state: S,
    engines: Arc<dyn Engines>,
    provider: Arc<dyn Provider>,
    logs: LogStore,
    inputs: Inputs,
    held: BTreeMap<TaskId, Held>,
    published: watch::Sender<BTreeMap<TaskId, ContainerStatus>>,
    lives: JoinSet<TaskId>,
    news: mpsc::Sender<News>,
    received: mpsc::Receiver<News>,
    stopping: bool,
}

impl<S: Fn() -> Arc<State> + Send + Sync + 'static> Owner<S> {
    pub(super) fn new(
        config: Config,
        state: S,
        engines: Arc<dyn Engines>,
        provider: Arc<dyn Provider>,
        logs: LogStore,
        inputs: Inputs,
        published: watch::Sender<BTreeMap<TaskId, ContainerStatus>>,
    ) -> Self {
        let (news, received) = mpsc::channel(NEWS_MAX);
        let (held, lives) = (BTreeMap::new(), JoinSet::new());
        Self { config, state, engines, provider, logs, inputs, held, published, lives, news, received, stopping: false }
    }

    /// Runs until the driver is dropped.
    pub(super) async fn run<T>(mut self, mut changed: watch::Receiver<T>, mut requests: mpsc::Receiver<Request>) {
        let mut tick = tokio::time::interval(TICK);
        // A closed watch must not spin: the tick goes on.
        let mut watching = true;
        loop {
            self.converge();
            self.publish();
            tokio::select! {
                woken = changed.changed(), if watching => watching = woken.is_ok(),
                Some(request) = requests.recv() => self.answer(request),
                Some(news) = self.received.recv() => self.note(news),
                Some(ended) = self.lives.join_next_with_id() => self.bury(ended),
                _ = tick.tick() => {}
            }
        }
    }

    fn converge(&mut self) {
        let mut desired = steps::tasks(&(self.state)(), self.config.node, self.config.boot);
        if self.stopping {
            desired.retain(|task, _| self.held.contains_key(task));
        }
        let actual = self.held.iter().map(|(task, held)| (*task, (held.generation, held.life))).collect();
        for step in steps::steps(&desired, &actual) {
            self.carry_out(step, &desired);
        }
    }

    fn carry_out(&mut self, step: Step, desired: &Tasks) {
        match step {
            Step::Start { task } => {
                if let Some((assigned, _)) = desired.get(&task) {
                    self.begin(task, assigned.clone());
                }
            }
            Step::End { task, why } => {
                if let Some((assigned, _)) = desired.get(&task) {
                    self.report_only(task, assigned.clone(), &why);
                }
            }
            Step::Stop { task, why, app_stopped } => {
                let grace = if app_stopped { self.config.grace_app_stopped } else { self.config.grace };
                self.order(task, steps::Life::Stops { app_stopped }, Order::Stop { why, grace });
            }
            Step::Kill { task } => {
                let why = "the cluster no longer knows the task".to_owned();
                self.order(task, steps::Life::Dies, Order::Kill { why });
            }
            Step::Forget { task } => {
                if let Some(held) = self.held.remove(&task) {
                    held.running.abort();
                    self.inputs.lock().remove(&task);
                }
            }
        }
    }

    fn order(&mut self, task: TaskId, life: steps::Life, order: Order) {
        if let Some(held) = self.held.get_mut(&task) {
            held.life = life;
            held.orders.send_replace(order);
        }
    }

    /// Begins the life of a container.
    fn begin(&mut self, id: TaskId, task: Task) {
        let (orders, told) = watch::channel(Order::Run);
        let (hello, said_hello) = watch::channel(false);
        let (ready, became_ready) = watch::channel(false);
        let printer = self.printer(id, &task);
        let life = Life {
            id,
            task: task.clone(),
            engines: self.engines.clone(),
            provider: self.provider.clone(),
            printer,
            drain: self.config.drain,
            hello_wait: self.config.hello_wait,
            orders: told,
            hello: said_hello,
            ready: became_ready,
            news: self.news.clone(),
            began: Instant::now(),
            phases: Vec::new(),
        };
        let running = self.lives.spawn(async move {
            life.run().await;
            id
        });
        let status = status_of(id, &task, Phase::Preparing);
        let life = steps::Life::Runs;
        self.held
            .insert(id, Held { generation: task.generation, life, status, orders, hello, ready, container: None, keyboard: None, running });
    }

    fn printer(&self, id: TaskId, task: &Task) -> Printer {
        Printer { id, task: task.clone(), logs: self.logs.clone(), inputs: self.inputs.clone() }
    }

    /// Reports the end of a task that has no container.
    fn report_only(&mut self, id: TaskId, task: Task, why: &str) {
        let (provider, generation, end) = (self.provider.clone(), task.generation, Ended::without_container(why));
        let running = self.lives.spawn(async move {
            report(&*provider, id, generation, end).await;
            id
        });
        let (orders, hello, ready) = (watch::Sender::new(Order::Run), watch::Sender::new(false), watch::Sender::new(false));
        let status = status_of(id, &task, Phase::Ended);
        let life = steps::Life::Ended;
        self.held.insert(id, Held { generation, life, status, orders, hello, ready, container: None, keyboard: None, running });
    }

    fn note(&mut self, news: News) {
        match news {
            News::Entered(task, entered) => {
                let Some(held) = self.held.get_mut(&task) else { return };
                held.status.phase = entered.phase;
                held.status.phases.push(entered);
                if entered.phase == Phase::Ended {
                    held.life = steps::Life::Ended;
                    held.container = None;
                    held.keyboard = None;
                }
            }
            News::Made(task, container, keyboard) => {
                if let Some(held) = self.held.get_mut(&task) {
                    held.status.way = Some(container.way());
                    held.status.readers = container.readers();
                    held.container = Some(container);
                    held.keyboard = keyboard;
                }
            }
        }
    }

    /// A life that broke off by a fault of this program still has to be reported, or its task would stay for ever.
    fn bury(&mut self, ended: Result<(tokio::task::Id, TaskId), tokio::task::JoinError>) {
        let Err(broken) = ended else { return };
        if broken.is_cancelled() {
            return;
        }
        let found = self.held.iter().find(|(_, held)| held.running.id() == broken.id()).map(|(task, _)| *task);
        let Some(task) = found else { return };
        tracing::error!(%task, error = %broken, "the care of a container broke off");
        let state = (self.state)();
        let held = self.held.remove(&task);
        if let Some(container) = held.and_then(|held| held.container) {
            tokio::spawn(async move { drop(container.destroy().await) });
        }
        if let Some(assigned) = state.tasks.get(&task) {
            self.report_only(task, assigned.clone(), "the node failed to take care of the container");
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::Kill { task, why } => {
                if self.held.get(&task).is_some_and(|held| held.life != steps::Life::Ended) {
                    self.order(task, steps::Life::Dies, Order::Kill { why });
                }
            }
            Request::Hello { task } => {
                if let Some(held) = self.held.get(&task) {
                    held.hello.send_replace(true);
                }
            }
            Request::Ready { task } => {
                if let Some(held) = self.held.get(&task) {
                    held.ready.send_replace(true);
                }
            }
            Request::Say { task, sentence } => {
                if let Some(assigned) = self.held.contains_key(&task).then(|| (self.state)().tasks.get(&task).cloned()).flatten() {
                    self.printer(task, &assigned).say(&sentence);
                }
            }
            Request::Container { task, reply } => {
                let container = self.held.get(&task).and_then(|held| held.container.clone());
                let _ = reply.send(container.and_then(|container| container.container()));
            }
            Request::Keyboard { task, reply } => {
                let _ = reply.send(self.held.get(&task).and_then(|held| held.keyboard.clone()));
            }
            Request::Shutdown { grace } => {
                self.stopping = true;
                let running: Vec<TaskId> =
                    self.held.iter().filter(|(_, held)| held.life == steps::Life::Runs).map(|(task, _)| *task).collect();
                for task in running {
                    let why = "the node stops".to_owned();
                    self.order(task, steps::Life::Stops { app_stopped: true }, Order::Stop { why, grace });
                }
            }
        }
    }

    fn publish(&self) {
        let statuses = || self.held.iter().map(|(task, held)| (*task, held.status.clone())).collect();
        self.published.send_if_modified(|published| {
            let same = published.len() == self.held.len()
                && self.held.iter().all(|(task, held)| published.get(task).is_some_and(|status| *status == held.status));
            if !same {
                *published = statuses();
            }
            !same
        });
    }
}

fn status_of(id: TaskId, task: &Task, phase: Phase) -> ContainerStatus {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    ContainerStatus { task: id, app: task.app, function: task.function, phase, since, phases: Vec::new(), way: None, readers: Vec::new() }
}
