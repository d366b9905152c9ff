//! Schedules: the leader decides what is due, and the homes of functions make the calls.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::{NewInput, OpenCall, Policy};
use shoal_scheduler::Barrier;
use shoal_state::{CallId, Command, FunctionId, Timestamp};
use shoal_timing::{called, due, firings_at};

use crate::history::Event;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::planner::leads;
use crate::world::World;

/// How often is looked.
const EVERY: Duration = Duration::from_millis(300);
/// How long the making of a call may take before it is tried again.
const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// Decides what is due, while this node leads.
pub async fn decide(world: World, node: Rc<Node>) {
    let mut barrier = Barrier::default();
    loop {
        world.time.sleep(EVERY).await;
        if leads(&world, &node, &mut barrier).await.is_none() {
            continue;
        }
        let commands = due(&world.council.local(node.me), world.timestamp());
        if !commands.is_empty() {
            let _ = world.council.propose(node.me, commands).await;
        }
    }
}

/// Makes the calls of firings whose functions are at home here.
pub async fn call_all(world: World, node: Rc<Node>) {
    loop {
        world.time.sleep(EVERY).await;
        let (state, mut made) = (world.council.local(node.me), Vec::new());
        for (id, due) in firings_at(&state, world.id(node.me)) {
            let is_made = match called(&state, id) {
                Some(_) => world.time.within(CALL_DEADLINE, make(&world, &node, id, due)).await,
                None => Some(true),
            };
            if is_made == Some(true) {
                made.push((id, due));
            }
        }
        if !made.is_empty() {
            let _ = world.council.propose(node.me, vec![Command::EndFirings { firings: made }]).await;
        }
    }
}

async fn make(world: &World, node: &Rc<Node>, id: FunctionId, due: Timestamp) -> bool {
    let Some(mut open) = OpenCall::scheduled(id, due, world.timestamp().0, Policy::default()) else { return false };
    if let Some(shard) = id.shard().filter(|_| world.has(Mutant::FiringHasNoId)) {
        open.call = CallId::derive_in(shard, &[&world.draw(1, 1 << 30).to_le_bytes()]);
    }
    let call = open.call;
    let input = NewInput { idx: 0, payload: Bytes::from_static(b"scheduled") };
    let made = node.calls.open_call_with(open, vec![input], "schedule").await.is_ok();
    if made {
        world.history.note(Event::Scheduled { function: id, due, call });
    }
    made
}
