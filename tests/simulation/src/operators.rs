//! Operators of a world in which others vote by and by: they label nodes, wish that some vote or not, let nodes join and take one out. In
//! the end somebody waits until those vote that are to.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_members::removal::judge;
use shoal_state::model::{Member, Token, TokenPurpose, Voting};
use shoal_state::{Command, Digest, NodeId, Refused, State, TaskId, Timestamp, TokenId, VERSION_KNOWN};

use crate::dice::Dice;
use crate::faults::LAST;
use crate::ground::BEGAN_MS;
use crate::history::Event;
use crate::world::World;

/// As whom the one that waits in the end counts among those that want something.
pub const WAITS: u64 = 1_000;
/// Why the containers of a node are stopped that an operator takes out.
pub const BEING_REMOVED: &str = "its node is being removed";
/// The label of a node that names its failure domain.
const ZONE: &str = "zone";
/// How long a command is proposed again.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the records of calls may take to leave a node, and its containers to end.
const VACATE_WAIT: Duration = Duration::from_secs(60);
/// So long a healed world may take until those vote that are to.
const SETTLES_WITHIN: Duration = Duration::from_secs(40);
/// Nothing has changed for so many looks: it is settled.
const SETTLED: u32 = 12;

/// How many nodes of a world join later, and which of the others vote at first.
pub fn beginning(seed: u64, founders: usize, there_are: bool) -> (usize, usize) {
    if !there_are {
        return (0, founders);
    }
    let mut dice = Dice::new(seed, 11);
    let few = |number: u64| usize::try_from(number).unwrap_or(1);
    (few(dice.from(1, 2)), few(dice.from(1, 3)))
}

fn token(node: usize) -> TokenId {
    TokenId::from_random(node as u128 + 1)
}

/// The tokens of nodes that join later.
pub fn tokens(nodes: std::ops::Range<usize>) -> Vec<Command> {
    let made = |node| Token {
        secret_hash: Digest::of(b"secret"),
        purpose: TokenPurpose::Node,
        label: format!("n{node}"),
        created: Timestamp(BEGAN_MS),
        expires: None,
        revoked: None,
    };
    nodes.map(|node| Command::CreateToken { id: token(node), token: made(node) }).collect()
}

/// What the state knows of a member.
pub fn member() -> Member {
    Member { address: String::new(), version: VERSION_KNOWN, release: String::new(), joined: Timestamp(BEGAN_MS) }
}

struct Operators {
    world: World,
    dice: Dice,
    later: Vec<usize>,
    removed: bool,
    kept_out: Option<NodeId>,
}

/// Does one thing after the other while there are faults.
pub async fn run(world: World) {
    let (dice, later) = (Dice::new(world.seed, 12), world.joining().rev().collect());
    let mut operators = Operators { world: world.clone(), dice, later, removed: false, kept_out: None };
    for node in 0..world.size {
        operators.label(node).await;
    }
    while world.time.now() < LAST {
        let rest = operators.dice.from(1_000, 4_000);
        world.time.sleep(Duration::from_millis(rest)).await;
        let node = operators.any();
        match operators.dice.below(9) {
            0 | 1 => operators.label(node).await,
            2..5 => operators.wish(node).await,
            5..7 => operators.join().await,
            _ => operators.remove(node).await,
        }
    }
}

/// Waits, once the world is whole, until nothing changes any more.
pub async fn wait_for_the_end(world: World) {
    world.does(WAITS, "waits until those vote that are to");
    let (mut since, mut quiet, mut before) = (None, 0, world.council.members());
    while quiet < SETTLED {
        world.time.sleep(Duration::from_millis(500)).await;
        let members = world.council.members();
        let stays = world.is_healed() && members == before && members.next.is_none() && world.council.leader().is_some();
        quiet = if stays { quiet + 1 } else { 0 };
        before = members;
        if world.is_healed() && world.time.now() > *since.get_or_insert(world.time.now()) + SETTLES_WITHIN {
            break;
        }
    }
    let truth = world.council.truth();
    let zone = |id: &NodeId| truth.nodes.get(id).and_then(|node| node.labels.get(ZONE)).cloned().unwrap_or_default();
    let nodes = truth.members.keys().map(|id| (world.net.number(*id), zone(id), truth.voting.get(id).copied()));
    world.history.note(Event::MembersFinal { config: world.council.members(), nodes: nodes.collect() });
    world.done(WAITS);
}

impl Operators {
    fn any(&mut self) -> usize {
        usize::try_from(self.dice.below(self.world.size as u64)).unwrap_or(0)
    }

    /// Has a command decided, by any node that is there.
    async fn decide(&mut self, command: Command) -> Option<Result<(), Refused>> {
        let began = self.world.time.now();
        while self.world.time.now() < began + PATIENCE {
            let by = self.any();
            if self.world.net.is_up(by)
                && let Ok(answers) = self.world.council.propose(by, vec![command.clone()]).await
            {
                return answers.into_iter().next();
            }
            self.world.time.sleep(Duration::from_millis(300)).await;
        }
        None
    }

    async fn label(&mut self, node: usize) {
        let zone = self.dice.pick(&["a", "b", "c", ""]).unwrap_or_default();
        let labels = [(ZONE.to_owned(), zone.to_owned())].into_iter().collect();
        let id = self.world.id(node);
        self.decide(Command::LabelNode { id, labels }).await;
    }

    async fn wish(&mut self, node: usize) {
        // One at a time does not vote by a wish: else few are left that may.
        if let Some(id) = self.kept_out.take() {
            self.decide(Command::SetVoting { id, voting: None }).await;
        }
        let (id, voting) = (self.world.id(node), self.dice.pick(&[None, Some(Voting::Must), Some(Voting::MustNot)]).flatten());
        if voting == Some(Voting::MustNot) {
            self.kept_out = Some(id);
        }
        self.decide(Command::SetVoting { id, voting }).await;
    }

    async fn join(&mut self) {
        let Some(node) = self.later.pop() else { return };
        let (id, at) = (self.world.id(node), self.world.timestamp());
        match self.decide(Command::AdmitNode { id, member: member(), token: Some(token(node)), at }).await {
            Some(Ok(())) => self.world.start(node, false),
            // Nobody has said whether it is in.
            _ => self.later.push(node),
        }
    }

    /// Takes a node out as `shoal node remove` does: it is looked at what is left, its shards leave it, its containers end, and it is removed.
    async fn remove(&mut self, node: usize) {
        let (id, by) = (self.world.id(node), self.any());
        // The first one is at home in all shards that nothing happens in.
        if self.removed || node == 0 || !self.world.net.is_up(by) {
            return;
        }
        let state = self.world.council.local(by);
        let status = self.world.council.status(by);
        let votes = |id: &NodeId| status.voters.iter().any(|peer| peer.node == *id);
        let answers = |id: &&NodeId| self.world.net.reach(by, self.world.net.number(**id));
        let lets_in: BTreeMap<NodeId, bool> = state.members.keys().filter(answers).map(|id| (*id, votes(id))).collect();
        if !state.members.contains_key(&id) || judge(&state, &status, &lets_in, id).is_err() {
            return;
        }
        let holds = |state: &State| state.shards_on(id).next().is_some();
        let runs =
            |state: &State| -> Vec<TaskId> { state.tasks.iter().filter(|(_, task)| task.node == id).map(|(task, _)| *task).collect() };
        if holds(&state) || !runs(&state).is_empty() {
            self.decide(Command::DrainNode { id, draining: true }).await;
            let deadline = self.world.time.now() + VACATE_WAIT;
            if !self.until(by, deadline, |state| !holds(state)).await {
                return;
            }
            for task in runs(&self.world.council.local(by)) {
                self.decide(Command::StopTask { id: task, why: BEING_REMOVED.to_owned() }).await;
            }
            if !self.until(by, deadline, |state| runs(state).is_empty()).await {
                return;
            }
        }
        let at = self.world.timestamp();
        let removed = self.decide(Command::RemoveNode { id, at, why: "removed by an operator".to_owned() }).await;
        self.removed = matches!(removed, Some(Ok(())));
    }

    /// Waits until the state is as it should be, as a node knows it; false at the deadline.
    async fn until(&self, by: usize, deadline: Duration, is_so: impl Fn(&State) -> bool) -> bool {
        while !is_so(&self.world.council.local(by)) {
            if self.world.time.now() > deadline {
                return false;
            }
            self.world.time.sleep(Duration::from_millis(500)).await;
        }
        true
    }
}
