//! The leader plans: the plan is the real one, what it starts from is told by homes.

use std::rc::Rc;
use std::time::Duration;

use shoal_scheduler::{Barrier, Load, Placement, plan};
use shoal_state::{Command, State, Timestamp};

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
    let (mut barrier, mut noted) = (Barrier::default(), 0);
    loop {
        world.time.sleep(EVERY).await;
        let Some(term) = world.council.leads(node.me) else { continue };
        if !barrier.is_passed(term) && !world.has(Mutant::PlansBeforeTheBarrier) {
            if world.council.read_latest(node.me).await.is_err() || world.council.leads(node.me) != Some(term) {
                continue;
            }
            barrier.pass(term);
        }
        if noted != term {
            noted = term;
            let (applied, before_term) = (world.council.applied(node.me), world.council.before_term(term));
            world.history.note(Event::Planned { node: node.me, term, applied, before_term });
        }
        round(&world, &node).await;
    }
}

async fn round(world: &World, node: &Rc<Node>) {
    let (state, now) = (world.council.local(node.me), world.timestamp());
    let load = reported(world, node, &state, now);
    let mut plan = plan(&state, &load, now, &mut || world.bits());
    let stops = plan.commands.iter().filter_map(|command| match command {
        Command::StopTask { id, .. } => Some((*id, state.tasks.get(id)?.function)),
        _ => None,
    });
    plan.stop_idle_only(&node.calls.stop_tasks(stops.collect()).await);
    if !plan.commands.is_empty() {
        let _ = world.council.propose(node.me, plan.commands).await;
    }
}

/// Adds to what homes report what is known of nodes, and of the clustered function.
fn reported(world: &World, node: &Rc<Node>, state: &State, now: Timestamp) -> Load {
    let gangs = world.there_are(Extra::Gangs);
    Load {
        placements: gangs.then(|| (gangs::function(), Placement { gang: Some(gangs::SIZE), ..Placement::default() })).into_iter().collect(),
        down: node.gone(world, state),
        ..node.load(world, state).reported(state, now)
    }
}
