//! Gangs: the containers of clustered functions, which are one.
//!
//! | what | how |
//! |---|---|
//! | who they are, and where | decided by the scheduler, in the state ([`shoal_state::model::Gang`]) |
//! | they reach each other | each has an interface whose packets the nodes carry: [`switch`] |
//! | each input comes to all of them | the container of rank 0 takes it as any other does, the others are given what it was given: [`feed`] |
//! | one outcome | what rank 0 brings counts. A failure of another one is the input's too, unless rank 0 is done with it |
//! | they end together | by the state: who asks one to stop asks all, and who ends takes the others along |
//! | never twice | a node that is cut off stops its own: [`alone`] |
//!
//! Caveat: what a node knows of how far a gang has come is soft. It is lost with the node's process, and so are its containers.

pub(crate) mod alone;
mod feed;
mod switch;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_calls::calls::Outcome;
use shoal_peer::{Service, Stream};
use shoal_runtime::Link;
use shoal_state::model::Task;
use shoal_state::{Command, GangId, InputId, NodeId, State, TaskId};
use tokio::time::Instant;

use crate::api::{Api, Error};
use feed::{Feeds, Kind};
pub(crate) use switch::Plug;
use switch::Switch;

/// What the node of a gang's rank 0 is asked by the nodes of the others.
const GANGS: Service = Service::new(20, "tell what the first container of a gang was given");
/// How much longer than what is waited for a node may take to answer.
const PEER_WAIT: Duration = Duration::from_secs(10);
/// Between two tries to reach the node of rank 0.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the container of rank 0 may go on with an input at which another one has failed: mostly it fails as well, and then its own
/// words count.
const FAILED_WAIT: Duration = Duration::from_secs(5);
/// How often a failure is told to the node of rank 0, should it not answer.
const FAILED_TRIES: u32 = 5;
/// The name by which a container finds its own address among those of its gang; the SDK looks it up.
const NAME: &str = "i6pn.modal.local";

/// The place of a task in its gang.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    /// The gang.
    pub(crate) gang: GangId,
    /// The place.
    pub(crate) rank: u16,
    /// Where each of the gang's tasks runs, in the order of ranks; none for those that have ended.
    pub(crate) nodes: Vec<Option<NodeId>>,
    /// What its cluster is called by all.
    cluster: [u8; 16],
}

/// Finds the place of a task; none if it is of no gang.
pub(crate) fn member(state: &State, task: TaskId) -> Option<Member> {
    let (gang, of) = state.gang(task)?;
    let node = |task: &TaskId| state.tasks.get(task).map(|task| task.node);
    Some(Member {
        gang,
        rank: u16::try_from(of.rank(task)?).ok()?,
        nodes: of.tasks.iter().map(node).collect(),
        cluster: state.cluster.as_ref().map(|cluster| cluster.id).unwrap_or_default(),
    })
}

impl Member {
    /// Returns the address of a rank: a private prefix of the cluster's own, the gang, the rank. So nobody has to give them out.
    fn address(&self, rank: u16) -> Ipv6Addr {
        let mut bytes = [0; 16];
        bytes[0] = 0xfd;
        bytes[1..6].copy_from_slice(&self.cluster[..5]);
        bytes[6..14].copy_from_slice(&self.gang.bits().to_le_bytes()[..8]);
        bytes[14..].copy_from_slice(&(rank + 1).to_be_bytes());
        bytes.into()
    }

    /// The same of the old kind, from a range that nobody on the internet has. Every gang has the same: no packet leaves its own.
    fn address_v4(rank: u16) -> Ipv4Addr {
        let [high, low] = (rank + 1).to_be_bytes();
        Ipv4Addr::new(198, 18, high, low)
    }

    /// Returns the addresses of all, in the order of ranks.
    pub(crate) fn addresses(&self) -> (Vec<Ipv6Addr>, Vec<Ipv4Addr>) {
        let ranks = || (0..u16::try_from(self.nodes.len()).unwrap_or(u16::MAX)).take(self.nodes.len());
        (ranks().map(|rank| self.address(rank)).collect(), ranks().map(Self::address_v4).collect())
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

/// The gangs that have containers here. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gangs {
    switch: Switch,
    feeds: Feeds,
    cursors: Arc<Mutex<HashMap<TaskId, Cursor>>>,
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

impl Gangs {
    /// Begins without any.
    pub(crate) fn new(peers: &crate::peers::Peers, raft: &shoal_raft::Raft) -> Self {
        Self { switch: Switch::new(peers.endpoint.clone(), raft.clone()), feeds: Feeds::default(), cursors: Arc::default() }
    }

    /// Makes the interface of a task towards the others of its gang, which lasts as long as what is returned beside it.
    pub(crate) fn connect(&self, member: &Member) -> std::io::Result<(Link, Plug)> {
        let (address, address_v4) = (member.address(member.rank), Member::address_v4(member.rank));
        let (link, outside) = Link::new((address, switch::PREFIX_BITS), (address_v4, switch::PREFIX_BITS_V4), NAME)?;
        Ok((link, self.switch.plug(member, address, outside)?))
    }

    /// Forgets a task that has ended. Returns what it worked on, each with the number of the try.
    pub(crate) fn forget(&self, id: TaskId, member: &Member) -> HashMap<InputId, u32> {
        if member.rank == 0 {
            self.feeds.forget(member.gang);
        }
        self.cursors.lock().remove(&id).map(|cursor| cursor.works_on).unwrap_or_default()
    }

    /// Notes that a task is done with an input.
    pub(crate) fn done(&self, id: TaskId, input: InputId) {
        if let Some(cursor) = self.cursors.lock().get_mut(&id) {
            cursor.works_on.remove(&input);
        }
    }

    /// Notes what a task was given.
    pub(crate) fn works_on(&self, id: TaskId, input: InputId, retry_count: u32) {
        self.cursors.lock().entry(id).or_default().works_on.insert(input, retry_count);
    }
}

/// Answers for the gangs whose rank 0 is here, and carries their packets, from now on.
pub(crate) fn serve(api: &Api) {
    api.gangs.switch.serve(&api.peers.endpoint);
    let served = api.clone();
    api.peers.endpoint.serve(GANGS, move |stream, _| answer(stream, served.clone()));
}

async fn answer(mut stream: Stream, api: Api) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let done = match postcard::from_bytes(&asked) {
        Err(error) => stream.fail(&error.to_string()).await,
        Ok(asked) => {
            let from = stream.peer();
            let told = tokio::select! {
                told = here(&api, from, asked) => told,
                () = stream.closed() => return,
            };
            stream.send(written(&told)).await.and_then(|()| stream.finish())
        }
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a node did not wait for what the first container of a gang was given");
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

async fn here(api: &Api, from: NodeId, asked: Asked) -> Told {
    match asked {
        Asked::Hear { gang, rank, kind, had, wait_ms } => {
            let state = api.local();
            if !is_on(&state, gang, rank, from) || !is_on(&state, gang, 0, api.cluster.node) {
                return Told::Heard(None);
            }
            Told::Heard(api.gangs.feeds.hear(gang, rank, kind, had, Duration::from_millis(wait_ms)).await)
        }
        Asked::Failed { gang, rank, outcome, ended } => {
            if is_on(&api.local(), gang, rank, from) {
                failed_here(api, gang, rank, outcome, ended).await;
            }
            Told::Noted
        }
    }
}

/// Asks the node of a gang's rank 0.
async fn ask(api: &Api, member: &Member, asked: Asked, patience: Duration) -> Result<Told, Error> {
    let node = member.nodes.first().copied().flatten();
    let gone = || Error::Unavailable(format!("the first container of gang {} has ended", member.gang));
    let node = node.ok_or_else(gone)?;
    if node == api.cluster.node {
        return Ok(here(api, node, asked).await);
    }
    let address = api.local().members.get(&node).map(|member| member.address.clone()).ok_or_else(gone)?;
    let answer = api.peers.endpoint.call(node, &address, GANGS, written(&asked), patience + PEER_WAIT).await;
    let answer = answer.map_err(|error| Error::Unavailable(error.to_string()))?;
    postcard::from_bytes(&answer).map_err(Error::failed(format!("cannot understand what node {node} says of gang {}", member.gang)))
}

/// Waits until a task is to stop, or has ended.
pub(crate) async fn stops(api: &Api, id: TaskId) {
    let mut changes = api.cluster.raft().watch();
    while api.local().tasks.get(&id).is_some_and(|task| task.stopping.is_none()) {
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// What came of waiting for the others of a gang.
pub(crate) enum Waited {
    /// All of them wait for the next input.
    Ready,
    /// The gang is to stop.
    Stops,
    /// Not yet.
    NotYet,
}

/// Waits until all others of a gang wait for the next input: none is to be given out before.
pub(crate) async fn all_wait(api: &Api, id: TaskId, member: &Member, wait: Duration) -> Waited {
    tokio::select! {
        ready = api.gangs.feeds.all_wait(member.gang, member.nodes.len(), wait) => if ready { Waited::Ready } else { Waited::NotYet },
        () = stops(api, id) => Waited::Stops,
    }
}

/// Gives the others what rank 0 was given.
pub(crate) fn tell(api: &Api, member: &Member, inputs: Bytes) {
    api.gangs.feeds.tell(member.gang, Kind::Inputs, inputs);
}

/// Tells the others what rank 0 should not go on with.
pub(crate) fn tell_cancelled(api: &Api, member: &Member, cancelled: Bytes) {
    api.gangs.feeds.tell(member.gang, Kind::Cancels, cancelled);
}

/// What a container of another rank than 0 is given.
pub(crate) enum Given {
    /// This.
    Inputs(Bytes),
    /// Nothing any more.
    Stop,
    /// Nothing yet.
    Nothing,
}

/// Waits for what rank 0 was given; `key` tells a request from the next.
pub(crate) async fn next(api: &Api, id: TaskId, member: &Member, key: &str, wait: Duration) -> Given {
    let had = {
        let mut cursors = api.gangs.cursors.lock();
        let cursor = cursors.entry(id).or_default();
        if cursor.key != key {
            cursor.had += u64::from(std::mem::take(&mut cursor.given));
            key.clone_into(&mut cursor.key);
        }
        cursor.had
    };
    let heard = tokio::select! {
        heard = hear(api, member, Kind::Inputs, had, wait) => heard,
        () = stops(api, id) => return Given::Stop,
    };
    let Some(inputs) = heard else { return Given::Nothing };
    if let Some(cursor) = api.gangs.cursors.lock().get_mut(&id).filter(|cursor| cursor.key == key) {
        cursor.given = true;
    }
    Given::Inputs(inputs)
}

/// Waits for what a container of another rank than 0 should not go on with.
pub(crate) async fn next_cancelled(api: &Api, id: TaskId, member: &Member, wait: Duration) -> Option<Bytes> {
    let had = api.gangs.cursors.lock().entry(id).or_default().cancels;
    let heard = tokio::select! {
        heard = hear(api, member, Kind::Cancels, had, wait) => heard?,
        () = stops(api, id) => return None,
    };
    api.gangs.cursors.lock().entry(id).or_default().cancels += 1;
    Some(heard)
}

/// Asks what rank 0 was told after `had`, again and again while its node cannot be reached: what becomes of it the state says.
async fn hear(api: &Api, member: &Member, kind: Kind, had: u64, wait: Duration) -> Option<Bytes> {
    let until = Instant::now() + wait;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let asked = Asked::Hear { gang: member.gang, rank: member.rank, kind, had, wait_ms };
        match ask(api, member, asked, left).await {
            Ok(Told::Heard(Some(heard))) => return Some(heard),
            Ok(_) => {}
            Err(error) => tracing::debug!(gang = %member.gang, %error, "cannot hear what the first container of a gang was given"),
        }
        tokio::time::sleep(AGAIN.min(until.saturating_duration_since(Instant::now()))).await;
    }
}

/// Says that a container of another rank than 0 has failed at an input, or has ended meanwhile.
pub(crate) async fn failed(api: &Api, member: &Member, outcome: Outcome, ended: bool) {
    for _ in 0..FAILED_TRIES {
        let asked = Asked::Failed { gang: member.gang, rank: member.rank, outcome: outcome.clone(), ended };
        match ask(api, member, asked, FAILED_WAIT).await {
            Ok(_) => return,
            Err(error) => tracing::warn!(gang = %member.gang, %error, "cannot tell that a container of a gang has failed"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn failed_here(api: &Api, gang: GangId, rank: u16, outcome: Outcome, ended: bool) {
    let state = api.local();
    let Some(first) = state.gangs.get(&gang).and_then(shoal_state::model::Gang::first) else { return };
    let Some(task) = state.tasks.get(&first).cloned() else { return };
    let input = outcome.input;
    let until = Instant::now() + if ended { Duration::ZERO } else { FAILED_WAIT };
    while api.tasks.has(first, input, outcome.retry_count) && Instant::now() < until {
        tokio::time::sleep(AGAIN).await;
    }
    if !api.tasks.has(first, input, outcome.retry_count) {
        return;
    }
    if let Err(error) = api.calls.finish(Some((first, task.function)), vec![outcome]).await {
        tracing::warn!(%gang, %input, %error, "cannot write that a container of a gang has failed");
    }
    stop(api, first, &task, format!("the container of rank {rank} has failed at input {input}")).await;
}

/// Stops a gang: what rank 0 still does with an input that has failed would never end by itself.
async fn stop(api: &Api, first: TaskId, task: &Task, why: String) {
    if let Err(error) = api.calls.stop_task(first, task.function).await {
        tracing::warn!(task = %first, %error, "cannot keep inputs from a task that is to stop");
    }
    if let Err(error) = api.propose(Command::StopTask { id: first, why }).await {
        tracing::debug!(task = %first, %error, "a gang that is to stop has ended already");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_follow_from_the_gang_and_the_rank() {
        let mut member = Member { gang: GangId::from_random(0x0102_0304_0506_0708_090a), rank: 1, nodes: vec![None; 3], cluster: [7; 16] };
        let (v6, v4) = member.addresses();
        assert_eq!(v6[0].to_string(), "fd07:707:707:a09:807:605:403:1");
        assert_eq!((v6.len(), v4[2].to_string()), (3, "198.18.0.3".to_owned()));
        member.gang = GangId::from_random(2);
        assert!(!member.addresses().0.contains(&v6[0]));
    }
}
