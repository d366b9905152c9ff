//! Gangs: the containers of a clustered function. Who gets which input, and what of theirs counts, the real rules say.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use shoal_calls::Calls;
use shoal_calls::gangs::alone::{EVERY, Hearing};
use shoal_calls::gangs::{Gangs, Host};
use shoal_state::model::{Function, Resources, Scaling};
use shoal_state::{AppId, Command, FunctionId, ImageId, InputId, NodeId, State, TaskId, Timestamp};
use tokio::sync::oneshot;

use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::{World, shards};

/// How many containers a gang has.
pub const SIZE: u32 = 2;

/// The clustered function.
pub fn function() -> FunctionId {
    FunctionId::in_shard(shards()[2], 5)
}

/// Makes the clustered function: there is one gang of it at a time, and each of its containers is on a node of its own.
pub fn put(app: AppId, image: ImageId, at: Timestamp) -> Command {
    let scaling = Scaling { containers_max: SIZE, scaledown_ms: 6_000, ..Scaling::default() };
    let resources = Resources { cpu_milli: 200, memory_bytes: 9 << 30, ..Resources::default() };
    let put = Function { image: Some(image), scaling, resources, ..Function::new(app, "gang", at) };
    Command::PutFunction { id: function(), function: Box::new(put) }
}

/// What a node knows of the gangs that have containers on it.
#[derive(Debug)]
pub struct Here {
    /// The rules.
    pub rules: Gangs,
    /// The tries that containers of rank 0 are not done with.
    pub has: RefCell<BTreeSet<(TaskId, InputId, u32)>>,
}

impl Here {
    /// Begins without any.
    pub fn new(calls: &Calls) -> Self {
        Self { rules: Gangs::new(calls), has: RefCell::default() }
    }
}

/// A node, as the rules of gangs see it.
#[derive(Debug, Clone)]
pub struct Side {
    /// Where it is.
    pub world: World,
    /// Itself.
    pub node: Rc<Node>,
}

impl Side {
    /// Has another node answer, with what comes of that brought back.
    async fn carried(&self, to: usize, asked: Bytes) -> Option<Result<Bytes, String>> {
        let (world, from) = (self.world.clone(), self.node.me);
        let road = world.net.road(from, to).await?;
        if !road.there().await {
            // That a connection is gone is noticed; a message that is lost is not.
            return if world.net.goes_around() { None } else { std::future::pending().await };
        }
        let other = Self { world: world.clone(), node: world.node(to)? };
        let (mut reply, answer) = oneshot::channel();
        world.runs.spawn(other.node.owner, async move {
            let asker = other.world.id(from);
            let told = {
                let serves = Box::pin(other.node.gangs.rules.serve(&other, asker, asked));
                match select(serves, Box::pin(reply.closed())).await {
                    Either::Left((told, _)) => told,
                    // Whoever asked is gone.
                    Either::Right(_) => return,
                }
            };
            if road.back().await {
                let _ = reply.send(told);
            }
        });
        answer.await.ok()
    }

    /// Says whether this node hears a leader, which hears it.
    fn hears_leader(&self) -> bool {
        if self.world.council.leads(self.node.me).is_some() {
            return true;
        }
        let leader = self.world.council.follows(self.node.me);
        leader.is_some_and(|leader| {
            leader != self.node.me && !self.node.is_lost(&self.world, leader) && self.node.is_heard_by(&self.world, leader)
        })
    }
}

impl Host for Side {
    fn node(&self) -> NodeId {
        self.world.id(self.node.me)
    }

    fn local(&self) -> Arc<State> {
        Arc::new(self.world.council.local(self.node.me))
    }

    async fn ask(&self, node: NodeId, asked: Bytes, patience: Duration) -> Result<Bytes, String> {
        let asking = self.carried(self.world.net.number(node), asked);
        let answered = self.world.time.within(patience, asking).await;
        answered.flatten().unwrap_or_else(|| Err("no answer".to_owned()))
    }

    fn has(&self, task: TaskId, input: InputId, retry_count: u32) -> bool {
        self.node.gangs.has.borrow().contains(&(task, input, retry_count))
    }

    async fn stops(&self, task: TaskId) {
        let mut changed = self.world.council.watch(self.node.me);
        let runs = || self.world.council.local(self.node.me).tasks.get(&task).is_some_and(|task| task.stopping.is_none());
        while runs() && changed.changed().await.is_ok() {}
    }

    async fn stop(&self, task: TaskId, why: String) -> Result<(), String> {
        let answers = self.world.council.propose(self.node.me, vec![Command::StopTask { id: task, why }]).await?;
        answers.into_iter().try_for_each(|answer| answer.map_err(|refused| refused.to_string()))
    }
}

/// Stops this node's containers of gangs while it hears no leader, for as long as it runs.
pub async fn stop_when_alone(world: World, node: Rc<Node>) {
    let side = Side { world: world.clone(), node };
    let mut hearing = Hearing::new(world.time.instant());
    loop {
        world.time.sleep(EVERY).await;
        if hearing.look(side.hears_leader(), world.time.instant()).is_some() && !world.has(Mutant::GangGoesOnAlone) {
            let state = world.council.local(side.node.me);
            let containers = side.node.containers.borrow();
            containers.iter().filter(|(task, _)| state.gang_of.contains_key(*task)).for_each(|(_, container)| container.kill());
        }
    }
}
