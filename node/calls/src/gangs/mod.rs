//! Gangs, as far as they are about calls: each input comes to all containers of a gang, and has one outcome.
//!
//! For calls a gang is its container of rank 0, which leases inputs as any other does. The others are given what it was given, by its
//! node ([`feed`](self)); it takes its next input when all others wait for it. What it brings counts; a failure of another one is the
//! input's too, unless rank 0 is done with it. A node that is cut off stops its own ([`alone`]).
//!
//! What a node is to this is its [`Host`]; payloads are opaque bytes here as well.
//!
//! Caveat: what a node knows of how far a gang has come is soft. It is lost with the node's process, and so are its containers.

pub mod alone;
mod feed;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::model::Gang;
use shoal_state::{GangId, InputId, NodeId, State, TaskId};

use crate::Calls;
use crate::calls::Outcome;
use feed::{Feeds, Kind};

/// How much longer than what is waited for a node may take to answer.
const PEER_WAIT: Duration = Duration::from_secs(10);
/// Between two tries to reach the node of rank 0.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the container of rank 0 may go on with an input at which another one has failed: mostly it fails as well, and then its own
/// words count.
const FAILED_WAIT: Duration = Duration::from_secs(5);
/// How often a failure is told to the node of rank 0, should it not answer.
const FAILED_TRIES: u32 = 5;

/// A node that has containers of gangs.
pub trait Host {
    /// Which node it is.
    fn node(&self) -> NodeId;

    /// Returns the state as this node has applied it.
    fn local(&self) -> Arc<State>;

    /// Asks the [`Gangs::serve`] of another node, up to `patience`. Fails with words.
    fn ask(&self, node: NodeId, asked: Bytes, patience: Duration) -> impl Future<Output = Result<Bytes, String>>;

    /// Says whether a container here has not said yet that it is done with a try of an input.
    fn has(&self, task: TaskId, input: InputId, retry_count: u32) -> bool;

    /// Waits until a task is to stop, or has ended.
    fn stops(&self, task: TaskId) -> impl Future<Output = ()>;

    /// Has a task stopped. Fails with words.
    fn stop(&self, task: TaskId, why: String) -> impl Future<Output = Result<(), String>>;
}

/// The place of a task in its gang.
#[derive(Debug, Clone)]
pub struct Place {
    /// The gang.
    pub gang: GangId,
    /// The place.
    pub rank: u16,
    /// Where each of the gang's tasks runs, in the order of ranks; none for those that have ended.
    pub nodes: Vec<Option<NodeId>>,
}

impl Place {
    /// Finds the place of a task; none if it is of no gang.
    pub fn of(state: &State, task: TaskId) -> Option<Self> {
        let (gang, of) = state.gang(task)?;
        let node = |task: &TaskId| state.tasks.get(task).map(|task| task.node);
        Some(Self { gang, rank: u16::try_from(of.rank(task)?).ok()?, nodes: of.tasks.iter().map(node).collect() })
    }
}

/// What a container of another rank has of what rank 0 was given.
#[derive(Debug, Clone, Default)]
struct Cursor {
    /// The request that was answered last, by its key.
    key: String,
    /// How many were had before it.
    had: u64,
    /// It was given one.
    given: bool,
    /// The cancellations that it was told of.
    cancels: u64,
    /// What it works on, with the number of the try.
    works_on: HashMap<InputId, u32>,
}

/// What is asked of the node that has the container of rank 0.
#[derive(Debug, Serialize, Deserialize)]
enum Asked {
    /// What rank 0 was given after so many.
    Hear { gang: GangId, rank: u16, kind: Kind, had: u64, wait_ms: u64 },
    /// The container of a rank has failed at an input, or has ended meanwhile.
    Failed { gang: GangId, rank: u16, outcome: Outcome, ended: bool },
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Told {
    Heard(Option<Bytes>),
    Noted,
}

/// What came of waiting for the others of a gang.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// All of them wait for the next input.
    Ready,
    /// The gang is to stop.
    Stops,
    /// Not yet.
    NotYet,
}

/// What a container of another rank than 0 is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// This.
    Inputs(Bytes),
    /// Nothing any more.
    Stop,
    /// Nothing yet.
    Nothing,
}

/// The gangs that have containers here. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gangs {
    calls: Calls,
    feeds: Feeds,
    cursors: Arc<Mutex<HashMap<TaskId, Cursor>>>,
}

impl Gangs {
    /// Begins without any.
    pub fn new(calls: &Calls) -> Self {
        Self { calls: calls.clone(), feeds: Feeds::new(calls.ground.clone()), cursors: Arc::default() }
    }

    /// Forgets a task that has ended. Returns what it worked on, each with the number of the try.
    pub fn forget(&self, id: TaskId, place: &Place) -> HashMap<InputId, u32> {
        if place.rank == 0 {
            self.feeds.forget(place.gang);
        }
        self.cursors.lock().remove(&id).map(|cursor| cursor.works_on).unwrap_or_default()
    }

    /// Notes that a task is done with an input.
    pub fn done(&self, id: TaskId, input: InputId) {
        if let Some(cursor) = self.cursors.lock().get_mut(&id) {
            cursor.works_on.remove(&input);
        }
    }

    /// Notes what a task was given.
    pub fn works_on(&self, id: TaskId, input: InputId, retry_count: u32) {
        self.cursors.lock().entry(id).or_default().works_on.insert(input, retry_count);
    }

    /// Waits until all others of a gang wait for the next input: none is to be given out before.
    pub async fn all_wait(&self, host: &impl Host, id: TaskId, place: &Place, wait: Duration) -> Waited {
        tokio::select! {
            biased;
            ready = self.feeds.all_wait(place.gang, place.nodes.len(), wait) => if ready { Waited::Ready } else { Waited::NotYet },
            () = host.stops(id) => Waited::Stops,
        }
    }

    /// Gives the others what rank 0 was given.
    pub fn tell(&self, place: &Place, inputs: Bytes) {
        self.feeds.tell(place.gang, Kind::Inputs, inputs);
    }

    /// Tells the others what rank 0 should not go on with.
    pub fn tell_cancelled(&self, place: &Place, cancelled: Bytes) {
        self.feeds.tell(place.gang, Kind::Cancels, cancelled);
    }

    /// Waits for what rank 0 was given; `key` tells a request from the next.
    pub async fn next(&self, host: &impl Host, id: TaskId, place: &Place, key: &str, wait: Duration) -> Given {
        let had = {
            let mut cursors = self.cursors.lock();
            let cursor = cursors.entry(id).or_default();
            if cursor.key != key {
                cursor.had += u64::from(std::mem::take(&mut cursor.given));
                key.clone_into(&mut cursor.key);
            }
            cursor.had
        };
        let heard = tokio::select! {
            biased;
            heard = self.hear(host, place, Kind::Inputs, had, wait) => heard,
            () = host.stops(id) => return Given::Stop,
        };
        let Some(inputs) = heard else { return Given::Nothing };
        if let Some(cursor) = self.cursors.lock().get_mut(&id).filter(|cursor| cursor.key == key) {
            cursor.given = true;
        }
        Given::Inputs(inputs)
    }

    /// Waits for what a container of another rank than 0 should not go on with.
    pub async fn next_cancelled(&self, host: &impl Host, id: TaskId, place: &Place, wait: Duration) -> Option<Bytes> {
        let had = self.cursors.lock().entry(id).or_default().cancels;
        let heard = tokio::select! {
            biased;
            heard = self.hear(host, place, Kind::Cancels, had, wait) => heard?,
            () = host.stops(id) => return None,
        };
        self.cursors.lock().entry(id).or_default().cancels += 1;
        Some(heard)
    }

    /// Asks what rank 0 was told after `had`, again and again while its node cannot be reached: what becomes of it the state says.
    async fn hear(&self, host: &impl Host, place: &Place, kind: Kind, had: u64, wait: Duration) -> Option<Bytes> {
        let until = self.now() + wait;
        loop {
            let left = until.saturating_duration_since(self.now());
            if left.is_zero() {
                return None;
            }
            let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            let asked = Asked::Hear { gang: place.gang, rank: place.rank, kind, had, wait_ms };
            match self.ask(host, place, &asked, left).await {
                Ok(Told::Heard(Some(heard))) => return Some(heard),
                Ok(_) => {}
                Err(why) => tracing::debug!(gang = %place.gang, why, "cannot hear what the first container of a gang was given"),
            }
            self.sleep(AGAIN.min(until.saturating_duration_since(self.now()))).await;
        }
    }

    /// Says that a container of another rank than 0 has failed at an input, or has ended meanwhile.
    pub async fn failed(&self, host: &impl Host, place: &Place, outcome: Outcome, ended: bool) {
        for _ in 0..FAILED_TRIES {
            let asked = Asked::Failed { gang: place.gang, rank: place.rank, outcome: outcome.clone(), ended };
            match self.ask(host, place, &asked, FAILED_WAIT).await {
                Ok(_) => return,
                Err(why) => tracing::warn!(gang = %place.gang, why, "cannot tell that a container of a gang has failed"),
            }
            self.sleep(AGAIN).await;
        }
    }

    /// Asks the node of a gang's rank 0.
    async fn ask(&self, host: &impl Host, place: &Place, asked: &Asked, patience: Duration) -> Result<Told, String> {
        let node = place.nodes.first().copied().flatten();
        let node = node.ok_or_else(|| format!("the first container of gang {} has ended", place.gang))?;
        let answer = match node == host.node() {
            true => self.serve(host, node, written(asked)).await?,
            false => host.ask(node, written(asked), patience + PEER_WAIT).await?,
        };
        postcard::from_bytes(&answer).map_err(|error| format!("cannot understand what node {node} says of gang {}: {error}", place.gang))
    }

    /// Answers what a node asks about a gang whose rank 0 is here. Fails with words if it cannot be understood.
    pub async fn serve(&self, host: &impl Host, from: NodeId, asked: Bytes) -> Result<Bytes, String> {
        let asked: Asked = postcard::from_bytes(&asked).map_err(|error| error.to_string())?;
        let told = match asked {
            Asked::Hear { gang, rank, kind, had, wait_ms } => {
                let state = host.local();
                let knows = is_on(&state, gang, rank, from) && is_on(&state, gang, 0, host.node());
                drop(state);
                Told::Heard(match knows {
                    true => self.feeds.hear(gang, rank, kind, had, Duration::from_millis(wait_ms)).await,
                    false => None,
                })
            }
            Asked::Failed { gang, rank, outcome, ended } => {
                if is_on(&host.local(), gang, rank, from) {
                    self.failed_here(host, gang, rank, outcome, ended).await;
                }
                Told::Noted
            }
        };
        Ok(written(&told))
    }

    async fn failed_here(&self, host: &impl Host, gang: GangId, rank: u16, outcome: Outcome, ended: bool) {
        let state = host.local();
        let Some(first) = state.gangs.get(&gang).and_then(Gang::first) else { return };
        let Some(pool) = state.tasks.get(&first).map(|task| task.function) else { return };
        drop(state);
        let input = outcome.input;
        let until = self.now() + if ended { Duration::ZERO } else { FAILED_WAIT };
        while host.has(first, input, outcome.retry_count) && self.now() < until {
            self.sleep(AGAIN).await;
        }
        if !host.has(first, input, outcome.retry_count) {
            return;
        }
        if let Err(error) = self.calls.finish(Some((first, pool)), vec![outcome]).await {
            tracing::warn!(%gang, %input, %error, "cannot write that a container of a gang has failed");
        }
        // What rank 0 still does with an input that has failed would never end by itself.
        if let Err(error) = self.calls.stop_task(first, pool).await {
            tracing::warn!(task = %first, %error, "cannot keep inputs from a task that is to stop");
        }
        if let Err(why) = host.stop(first, format!("the container of rank {rank} has failed at input {input}")).await {
            tracing::debug!(task = %first, why, "a gang that is to stop has ended already");
        }
    }

    fn now(&self) -> Instant {
        self.calls.ground.now()
    }

    async fn sleep(&self, wait: Duration) {
        self.calls.ground.sleep(wait).await;
    }
}

fn written(told: &impl Serialize) -> Bytes {
    postcard::to_stdvec(told).expect("what nodes tell each other can be written").into()
}

/// Says whether the container of a rank runs on a node.
fn is_on(state: &State, gang: GangId, rank: u16, node: NodeId) -> bool {
    let task = state.gangs.get(&gang).and_then(|gang| gang.tasks.get(usize::from(rank)));
    task.and_then(|task| state.tasks.get(task)).is_some_and(|task| task.node == node)
}
