//! Gangs: the containers of clustered functions, which are one.
//!
//! | what | how |
//! |---|---|
//! | who they are, and where | decided by the scheduler, in the state ([`shoal_state::model::Gang`]) |
//! | they reach each other | each has an interface whose packets the nodes carry: [`switch`] |
//! | each input comes to all of them, and has one outcome | what rank 0 was given and brings counts: [`shoal_calls::gangs`] |
//! | they end together | by the state: who asks one to stop asks all, and who ends takes the others along |
//! | never twice | a node that is cut off stops its own: [`alone`] |
//!
//! Caveat: what a node knows of how far a gang has come is soft. It is lost with the node's process, and so are its containers.

pub(crate) mod alone;
mod switch;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::Calls;
use shoal_calls::calls::Outcome;
use shoal_calls::gangs::{self as rules, Host, Place};
use shoal_peer::{Service, Stream};
use shoal_runtime::Link;
use shoal_state::{Command, InputId, NodeId, State, TaskId};

use crate::api::Api;
pub(crate) use shoal_calls::gangs::{Given, Waited};
pub(crate) use switch::Plug;
use switch::Switch;

/// What the node of a gang's rank 0 is asked by the nodes of the others.
const GANGS: Service = Service::new(20, "tell what the first container of a gang was given");
/// The name by which a container finds its own address among those of its gang; the SDK looks it up.
const NAME: &str = "i6pn.modal.local";

/// A task's place in its gang, and where the gang's containers reach each other.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    place: Place,
    /// What its cluster is called by all.
    cluster: [u8; 16],
}

impl Deref for Member {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

/// Finds the place of a task; none if it is of no gang.
pub(crate) fn member(state: &State, task: TaskId) -> Option<Member> {
    let cluster = state.cluster.as_ref().map(|cluster| cluster.id).unwrap_or_default();
    Some(Member { place: Place::of(state, task)?, cluster })
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

/// The gangs that have containers here. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gangs {
    switch: Switch,
    inputs: rules::Gangs,
}

impl Gangs {
    /// Begins without any.
    pub(crate) fn new(peers: &crate::peers::Peers, raft: &shoal_raft::Raft, calls: &Calls) -> Self {
        Self { switch: Switch::new(peers.endpoint.clone(), raft.clone()), inputs: rules::Gangs::new(calls) }
    }

    /// Makes the interface of a task towards the others of its gang, which lasts as long as what is returned beside it.
    pub(crate) fn connect(&self, member: &Member) -> std::io::Result<(Link, Plug)> {
        let (address, address_v4) = (member.address(member.rank), Member::address_v4(member.rank));
        let (link, outside) = Link::new((address, switch::PREFIX_BITS), (address_v4, switch::PREFIX_BITS_V4), NAME)?;
        Ok((link, self.switch.plug(member, address, outside)?))
    }

    /// Forgets a task that has ended. Returns what it worked on, each with the number of the try.
    pub(crate) fn forget(&self, id: TaskId, member: &Member) -> HashMap<InputId, u32> {
        self.inputs.forget(id, member)
    }

    /// Notes that a task is done with an input.
    pub(crate) fn done(&self, id: TaskId, input: InputId) {
        self.inputs.done(id, input);
    }

    /// Notes what a task was given.
    pub(crate) fn works_on(&self, id: TaskId, input: InputId, retry_count: u32) {
        self.inputs.works_on(id, input, retry_count);
    }
}

impl Host for Api {
    fn node(&self) -> NodeId {
        self.cluster.node
    }

    fn local(&self) -> Arc<State> {
        Self::local(self)
    }

    async fn ask(&self, node: NodeId, asked: Bytes, patience: Duration) -> Result<Bytes, String> {
        let address = Self::local(self).members.get(&node).map(|member| member.address.clone());
        let address = address.ok_or_else(|| format!("node {node} is no member of this cluster any more"))?;
        self.peers.endpoint.call(node, &address, GANGS, asked, patience).await.map_err(|error| error.to_string())
    }

    fn has(&self, task: TaskId, input: InputId, retry_count: u32) -> bool {
        self.tasks.has(task, input, retry_count)
    }

    async fn stops(&self, task: TaskId) {
        let mut changes = self.cluster.raft().watch();
        while Self::local(self).tasks.get(&task).is_some_and(|task| task.stopping.is_none()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn stop(&self, task: TaskId, why: String) -> Result<(), String> {
        self.propose(Command::StopTask { id: task, why }).await.map_err(|error| error.to_string())
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
    let from = stream.peer();
    let told = tokio::select! {
        told = api.gangs.inputs.serve(&api, from, asked) => told,
        () = stream.closed() => return,
    };
    let done = match told {
        Ok(told) => stream.send(told).await.and_then(|()| stream.finish()),
        Err(why) => stream.fail(&why).await,
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a node did not wait for what the first container of a gang was given");
    }
}

/// Waits until a task is to stop, or has ended.
pub(crate) async fn stops(api: &Api, id: TaskId) {
    Host::stops(api, id).await;
}

/// Waits until all others of a gang wait for the next input: none is to be given out before.
pub(crate) async fn all_wait(api: &Api, id: TaskId, member: &Member, wait: Duration) -> Waited {
    api.gangs.inputs.all_wait(api, id, member, wait).await
}

/// Gives the others what rank 0 was given.
pub(crate) fn tell(api: &Api, member: &Member, inputs: Bytes) {
    api.gangs.inputs.tell(member, inputs);
}

/// Tells the others what rank 0 should not go on with.
pub(crate) fn tell_cancelled(api: &Api, member: &Member, cancelled: Bytes) {
    api.gangs.inputs.tell_cancelled(member, cancelled);
}

/// Waits for what rank 0 was given; `key` tells a request from the next.
pub(crate) async fn next(api: &Api, id: TaskId, member: &Member, key: &str, wait: Duration) -> Given {
    api.gangs.inputs.next(api, id, member, key, wait).await
}

/// Waits for what a container of another rank than 0 should not go on with.
pub(crate) async fn next_cancelled(api: &Api, id: TaskId, member: &Member, wait: Duration) -> Option<Bytes> {
    api.gangs.inputs.next_cancelled(api, id, member, wait).await
}

/// Says that a container of another rank than 0 has failed at an input, or has ended meanwhile.
pub(crate) async fn failed(api: &Api, member: &Member, outcome: Outcome, ended: bool) {
    api.gangs.inputs.failed(api, member, outcome, ended).await;
}

#[cfg(test)]
mod tests {
    use shoal_state::GangId;

    use super::*;

    #[test]
    fn addresses_follow_from_the_gang_and_the_rank() {
        let place = Place { gang: GangId::from_random(0x0102_0304_0506_0708_090a), rank: 1, nodes: vec![None; 3] };
        let mut member = Member { place, cluster: [7; 16] };
        let (v6, v4) = member.addresses();
        assert_eq!(v6[0].to_string(), "fd07:707:707:a09:807:605:403:1");
        assert_eq!((v6.len(), v4[2].to_string()), (3, "198.18.0.3".to_owned()));
        member.place.gang = GangId::from_random(2);
        assert!(!member.addresses().0.contains(&v6[0]));
    }
}
