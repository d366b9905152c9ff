//! What a leader sees to of the members of consensus, and the end of a node that is out of the cluster: the loops of the binary around the
//! product's own rules.

use std::rc::Rc;
use std::time::Duration;

use shoal_members::voters::{Reach, Step, Wanted, Watch, alive, next};
use shoal_raft::Status;
use shoal_state::imbl::OrdMap;
use shoal_state::{Command, NodeId, State};

use crate::council::Change;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::World;

/// How often a leader looks.
const EVERY: Duration = Duration::from_millis(300);
/// The pause after a change that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(2);
/// How long a voter may be gone until another one votes in its place: ten minutes where nobody says otherwise, and here it must happen.
const GONE_AFTER: Duration = Duration::from_secs(5);
/// When nothing could be decided for so long the others are asked whether they still want a node.
const UNDECIDED_MAX: Duration = Duration::from_secs(8);
/// How often a node looks whether it is out, and how long others have to take over what only it could tell them.
const LOOKS_EVERY: Duration = Duration::from_secs(2);
const FAREWELL: Duration = Duration::from_secs(1);

/// Brings the members of consensus to what the state wants, while this node leads.
pub async fn run(world: World, node: Rc<Node>) {
    let mut watch = Watch::default();
    loop {
        world.time.sleep(EVERY).await;
        if world.council.leads(node.me).is_none() {
            watch.clear();
            continue;
        }
        let (mut status, state) = (world.council.status(node.me), world.council.local(node.me));
        if status.voters.iter().all(|voter| voter.node != world.id(node.me)) {
            continue;
        }
        let alive = alive(&state, |other| node.silent(&world, world.net.number(other)));
        let mut reach = watch.look(&status, alive, GONE_AFTER, world.time.instant());
        let wanted = wanted(&world, &state, &mut status, &mut reach);
        let Some(step) = next(&wanted, &status, &reach) else { continue };
        tracing::debug!(node = node.me, ?step, "the members of consensus are to change");
        if take(&world, &node, step).await.is_err() {
            world.time.sleep(FAILED_PAUSE).await;
        }
    }
}

fn wanted(world: &World, state: &State, status: &mut Status, reach: &mut Reach) -> Wanted {
    let mut state = state.clone();
    if world.has(Mutant::ForgetsBegunChanges) {
        status.changing_to = None;
    }
    if world.has(Mutant::ChangesVotersBlindly) {
        reach.there = state.members.keys().copied().collect();
        reach.ready = reach.there.clone();
    }
    if world.has(Mutant::SeesNoZones) {
        state.nodes =
            state.nodes.iter().map(|(id, node)| (*id, shoal_state::model::Node { labels: OrdMap::new(), ..node.clone() })).collect();
    }
    Wanted::of(&state)
}

async fn take(world: &World, node: &Rc<Node>, step: Step) -> Result<(), String> {
    let number = |id: NodeId| world.net.number(id);
    let change = match step {
        Step::Vote(voters) => Change::Vote(voters.into_iter().map(number).collect()),
        Step::Learn(peer) => Change::Learn(number(peer.node)),
        Step::Forget(node) => Change::Forget(number(node)),
        Step::Version(version) => return world.council.propose(node.me, vec![Command::SetVersion { version }]).await.map(drop),
        Step::Address(peer) => return Err(format!("{} has not moved", peer.node)),
    };
    world.council.change(node.me, change).await
}

/// Stops a node for good once it is out of the cluster, and the others need its vote no more or refuse it.
pub async fn depart(world: World, node: Rc<Node>) {
    let (me, id) = (node.me, world.id(node.me));
    loop {
        world.time.sleep(LOOKS_EVERY).await;
        let is_removed = world.council.local(me).removed.contains_key(&id);
        let is_refused = || (0..world.size).any(|other| other != me && world.net.reach(me, other) && world.council.refuses(other, me));
        let is_undecided = || world.council.undecided(me) > UNDECIDED_MAX;
        if is_removed && world.council.has_no_vote(me) || is_undecided() && is_refused() {
            break;
        }
    }
    world.time.sleep(FAREWELL).await;
    world.depart(me);
}
