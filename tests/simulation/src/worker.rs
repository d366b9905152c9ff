//! Containers: a node runs those that the state gives it, each takes inputs and brings outcomes until it is told to stop, dies, or its
//! node does.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use shoal_calls::Error;
use shoal_calls::calls::{LeaseRequest, Leased, LeasedInput, Lost, Outcome, Status};
use shoal_calls::gangs::{Host as _, Place};
use shoal_state::model::{Task, TaskEnd};
use shoal_state::{Command, FunctionId, InputId, TaskId};
use tokio::sync::watch;

use crate::extras::Extra;
use crate::gangs::Side;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::World;

mod gang;
mod generator;

pub use generator::yielding;

/// How often a node looks at its tasks, should nothing change.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a container waits until it repeats what failed.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// How long a container waits for inputs until it asks again.
const INPUTS_WAIT: Duration = Duration::from_secs(3);
/// How long a container waits to hear that an input of it is cancelled, and until it asks again.
const LISTENS_FOR: Duration = Duration::from_secs(5);
const LISTENS_EVERY: Duration = Duration::from_secs(1);
/// What an input says that is worked on until it is cancelled, or for a long time.
pub const LONG: &[u8] = b"long";
const LONG_MS: u64 = 45_000;

/// What a container was told not to go on with. What it hears of an input that it has not begun with it forgets.
type Cancels = watch::Sender<BTreeSet<InputId>>;

/// A container that runs: how it is told to end at once.
#[derive(Debug)]
pub struct Container {
    kill: watch::Sender<bool>,
}

impl Container {
    /// Ends it at once.
    pub fn kill(&self) {
        self.kill.send_replace(true);
    }
}

/// Runs the containers of a node, for as long as it runs.
pub async fn run(world: World, node: Rc<Node>) {
    let mut changed = world.council.watch(node.me);
    let me = world.id(node.me);
    let mut ending = BTreeSet::new();
    loop {
        let state = world.council.local(node.me);
        for (id, task) in state.tasks.iter().filter(|(_, task)| task.node == me) {
            if task.boot != node.boot {
                // It ended with the process before.
                if ending.insert(*id) {
                    world.runs.spawn(node.owner, end(world.clone(), node.clone(), *id, task.clone(), "node restarted"));
                }
            } else if !node.containers.borrow().contains_key(id) && ending.insert(*id) {
                let (kill, killed) = watch::channel(false);
                node.containers.borrow_mut().insert(*id, Container { kill });
                world.runs.spawn(node.owner, container(world.clone(), node.clone(), *id, task.clone(), killed));
            }
        }
        for (id, container) in node.containers.borrow().iter() {
            if !state.tasks.contains_key(id) {
                container.kill();
            }
        }
        world.time.within(LOOK_EVERY, changed.changed()).await;
    }
}

/// Runs one container to its end.
async fn container(world: World, node: Rc<Node>, id: TaskId, task: Task, mut killed: watch::Receiver<bool>) {
    let (start_ms, dies) = (world.draw(100, 900), world.draw(0, 7) == 0);
    world.time.sleep(Duration::from_millis(start_ms)).await;
    let (side, place) = (Side { world: world.clone(), node: node.clone() }, Place::of(&world.council.local(node.me), id));
    if place.is_some() && *killed.borrow() {
        return ended(world, node, id, task, "killed before it began").await;
    }
    world.history.note(Event::ContainerBegan { task: id, node: node.me });
    let (how, is_own_doing) = {
        let cancels = Cancels::default();
        let hears = world.there_are(Extra::Cancels) || place.is_some();
        let listens = async {
            if hears && !world.has(Mutant::DeafToCancels) {
                listen(&world, &node, id, &task, &cancels).await;
            }
            std::future::pending::<()>().await;
        };
        let works = Box::pin(async {
            let works = async {
                match place {
                    Some(_) => gang::work(&side, id, &task).await,
                    None => work(&world, &node, id, &task, &cancels).await,
                }
            };
            drop(select(Box::pin(works), Box::pin(listens)).await);
        });
        let over = Box::pin(async {
            let killed = Box::pin(killed.wait_for(|killed| *killed));
            match place {
                Some(_) => drop(select(killed, Box::pin(told_to_stop(&side, id))).await),
                None => drop(killed.await),
            }
        });
        let lives = if dies { world.draw(2_000, 20_000) } else { 3_600_000 };
        let dies = Box::pin(world.time.sleep(Duration::from_millis(lives)));
        match select(works, select(over, dies)).await {
            Either::Left(_) => ("exit code 0", false),
            Either::Right((by, _)) => ("killed", matches!(by, Either::Right(_))),
        }
    };
    world.history.note(Event::ContainerEnded { task: id, node: node.me });
    if let Some(place) = &place {
        gang::leave(&side, id, place, is_own_doing).await;
    }
    ended(world, node, id, task, how).await;
}

/// A container of a gang is told to stop, and does in a moment.
async fn told_to_stop(side: &Side, id: TaskId) {
    side.stops(id).await;
    side.world.time.sleep(Duration::from_millis(side.world.draw(50, 2_000))).await;
}

async fn ended(world: World, node: Rc<Node>, id: TaskId, task: Task, how: &str) {
    end(world.clone(), node.clone(), id, task, how).await;
    node.containers.borrow_mut().remove(&id);
}

/// A container is gone: its inputs go elsewhere, and the state hears of it.
async fn end(world: World, node: Rc<Node>, id: TaskId, task: Task, how: &str) {
    let lost = || Lost::Platform { result: Bytes::from_static(b"its container is gone") };
    while node.calls.task_lost(id, task.function, lost()).await.is_err() {
        world.time.sleep(AGAIN_AFTER).await;
    }
    let command = || Command::EndTask { id, generation: task.generation, end: TaskEnd { at: world.timestamp(), how: how.to_owned() } };
    while world.council.propose(node.me, vec![command()]).await.is_err() {
        world.time.sleep(AGAIN_AFTER).await;
    }
}

/// Hears which inputs are cancelled, for ever.
async fn listen(world: &World, node: &Rc<Node>, id: TaskId, task: &Task, cancels: &Cancels) {
    loop {
        if let Ok(inputs) = node.calls.held_cancels(id, task.function, LISTENS_FOR).await {
            cancels.send_modify(|known| known.extend(inputs));
        }
        world.time.sleep(LISTENS_EVERY).await;
    }
}

/// Takes inputs until there is nothing more for it.
async fn work(world: &World, node: &Rc<Node>, id: TaskId, task: &Task, cancels: &Cancels) {
    let mut number = 0;
    loop {
        number += 1;
        let wait_ms = u64::try_from(INPUTS_WAIT.as_millis()).unwrap_or(u64::MAX);
        let request = || LeaseRequest { pool: task.function, task: id, max: 2, wait_ms, linger_ms: 0, key: format!("{id}-{number}") };
        let leased = loop {
            match node.calls.lease(request()).await {
                Ok(leased) => break leased,
                Err(_) => world.time.sleep(AGAIN_AFTER).await,
            }
        };
        match leased {
            Leased::Stop => return,
            Leased::Inputs(inputs) if inputs.is_empty() => {}
            Leased::Inputs(inputs) => do_them(world, node, (id, task), inputs, cancels).await,
        }
    }
}

async fn do_them(world: &World, node: &Rc<Node>, (id, task): (TaskId, &Task), inputs: Vec<LeasedInput>, cancels: &Cancels) {
    for LeasedInput { input, retry_count, .. } in &inputs {
        world.history.note(Event::RunBegan { task: id, node: node.me, input: *input, retry_count: *retry_count });
    }
    for LeasedInput { call, input, retry_count, payload, .. } in inputs {
        let ms = if world.draw(0, 9) == 0 { world.draw(2_000, 9_000) } else { world.draw(10, 600) };
        let ms = if &payload[..] == LONG { LONG_MS } else { ms };
        cancels.send_modify(BTreeSet::clear);
        let mut told = cancels.subscribe();
        let is_cancelled = {
            let cancelled = std::pin::pin!(told.wait_for(|told| told.contains(&input)));
            let works = generator::work(world, node, (id, call, retry_count), &payload, Duration::from_millis(ms));
            matches!(select(cancelled, Box::pin(works)).await, Either::Left(_))
        };
        let status = if is_cancelled {
            world.history.note(Event::RunStopped { task: id, input });
            Status::Terminated
        } else {
            world.history.note(Event::WorkDone { task: id, input });
            if world.draw(0, 9) == 0 { Status::Failed } else { Status::Success }
        };
        let result = Bytes::from(format!("{input} {retry_count} by {id}"));
        let outcome = || Outcome { input, retry_count, status, result: result.clone() };
        finish(world, node, (id, task.function), outcome).await;
        world.history.note(Event::RunEnded { task: id, input, retry_count });
    }
}

/// Brings an outcome until it counts, or is dropped.
async fn finish(world: &World, node: &Rc<Node>, from: (TaskId, FunctionId), outcome: impl Fn() -> Outcome) {
    loop {
        match node.calls.finish(Some(from), vec![outcome()]).await {
            Ok(()) => return,
            Err(Error::Refused(why)) => return tracing::debug!(task = %from.0, %why, outcome = ?outcome(), "an outcome is not taken"),
            Err(_) => world.time.sleep(AGAIN_AFTER).await,
        }
    }
}
