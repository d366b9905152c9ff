//! The leader plans: the plan is the real one, what it starts from is told by homes.

use std::rc::Rc;
use std::time::Duration;

use shoal_scheduler::{Barrier, Load, Placement, Yields, plan};
use shoal_state::{State, Timestamp};

use crate::extras::Extra;
use crate::gangs;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::World;

/// How often the leader plans.
const EVERY: Duration = Duration::from_millis(150);

/// Plans while this node leads.
pub async fn run(world: World, node: Rc<Node>) {
    let (mut barrier, mut yields, mut noted) = (Barrier::default(), Yields::default(), 0);
    loop {
        world.time.sleep(EVERY).await;
        let leads =
            if world.has(Mutant::PlansBeforeTheBarrier) { world.council.leads(node.me) } else { leads(&world, &node, &mut barrier).await };
        let Some(term) = leads else {
            yields.clear();
            continue;
        };
        if noted != term {
            noted = term;
            let (applied, before_term) = (world.council.applied(node.me), world.council.before_term(term));
            world.history.note(Event::Planned { node: node.me, term, applied, before_term });
        }
        round(&world, &node, term, &mut yields).await;
    }
}

/// Returns the term in which this node leads, once it has everything that was decided before.
pub async fn leads(world: &World, node: &Rc<Node>, barrier: &mut Barrier) -> Option<u64> {
    let term = world.council.leads(node.me)?;
    if !barrier.is_passed(term) {
        if world.council.read_latest(node.me).await.is_err() || world.council.leads(node.me) != Some(term) {
            return None;
        }
        barrier.pass(term);
    }
    Some(term)
}

async fn round(world: &World, node: &Rc<Node>, term: u64, yields: &mut Yields) {
    let (state, now) = (world.council.local(node.me), world.timestamp());
    let load = Load { yielding: yields.tasks(), ..reported(world, node, &state, now) };
    let mut plan = plan(&state, &load, now, &mut || world.bits());
    let told = yields.take_up(&state, &plan, world.time.instant());
    plan.stop_idle_only(&node.calls.stop_tasks(told).await);
    // Another may lead by now.
    if !plan.commands.is_empty() && world.council.leads(node.me) == Some(term) {
        let _ = world.council.propose(node.me, plan.commands).await;
    }
}

/// Adds to what homes report what is known of nodes, and of the clustered function.
fn reported(world: &World, node: &Rc<Node>, state: &State, now: Timestamp) -> Load {
    let gangs = world.there_are(Extra::Gangs);
    Load {
        placements: gangs.then(|| (gangs::function(), Placement { gang: Some(gangs::SIZE), ..Placement::default() })).into_iter().collect(),
        down: node.gone(world, state),
        doubtful: state.nodes.keys().copied().filter(|id| node.is_doubtful(world, world.net.number(*id))).collect(),
        ..node.load(world, state).reported(state, now)
    }
}
