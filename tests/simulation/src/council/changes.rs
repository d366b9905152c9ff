//! Changes of those that take part, as openraft makes them: new members hold from when a leader puts them behind its log, and are decided
//! once a majority of them has that, in a change of voters of the old and of the new ones. A leader may fall anywhere on the way: whoever
//! is elected then either has what it began, and goes on with it, or has not, and nobody has.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_raft::{Follower, Peer, Status};
use shoal_state::NodeId;

use super::{Config, Council, Entry, Inner, LOOK_EVERY};
use crate::history::Event;

/// How long a change may take until whoever asked for it is told that it has not come through.
const CHANGE_WAIT: Duration = Duration::from_secs(60);
/// Whom a leader has heard within this time it was in touch with when it began a change. A little more than the rules ask for: between their
/// look and the change some time passes.
const TOUCH: Duration = Duration::from_millis(4_000);

/// A change of the members.
#[derive(Debug, Clone)]
pub enum Change {
    /// One gets the log.
    Learn(usize),
    /// One that does not vote takes part no more.
    Forget(usize),
    /// These vote. Those that did and do not any more go on to have the log, unless the leader leaves with them.
    Vote(BTreeSet<usize>),
}

impl Inner {
    /// Returns the members by the last word that a node has of them.
    pub(super) fn config(&self, node: usize) -> &Config {
        let voter = &self.voters[node];
        voter.tail.as_ref().map_or_else(|| self.decided_config(voter.has), |(_, config)| config)
    }

    /// Returns the members by so many entries.
    fn decided_config(&self, has: usize) -> &Config {
        let (_, config) = self.configs.iter().rev().find(|(at, _)| *at < has).unwrap_or(&self.configs[0]);
        config
    }

    /// Returns the last that a node has, by which voters judge whose log goes further.
    pub(super) fn last(&self, node: usize) -> (u64, usize) {
        let voter = &self.voters[node];
        match &voter.tail {
            Some((term, _)) => (*term, voter.has + 1),
            None => (self.log[voter.has - 1].term, voter.has),
        }
    }

    /// A node gets all that the leader has.
    pub(super) fn copy(&mut self, leader: usize, to: usize) {
        let (far, tail) = (self.log.len(), self.voters[leader].tail.clone());
        let voter = &mut self.voters[to];
        if voter.has < far {
            voter.has = far;
            voter.came.send_replace(far);
        }
        voter.tail = tail;
    }
}

impl Council {
    /// Has the members that a leader put behind the log decided, once enough of them have them.
    pub(super) fn settle(&self, inner: &mut Inner, leader: usize, reached: &[usize]) {
        let Some((began, config)) = inner.voters[leader].tail.clone() else { return };
        let has = |node: usize| reached.contains(&node) && inner.voters[node].tail.as_ref().is_some_and(|(term, _)| *term == began);
        let holders: Vec<usize> = (0..inner.voters.len()).filter(|node| config.has(*node) && has(*node)).collect();
        if !config.decides(|voter| holders.contains(&voter)) {
            return;
        }
        self.decide_members(inner, leader, began, config.clone());
        if !config.votes(leader) {
            inner.voters[leader].leads = None;
            inner.leader = None;
        }
    }

    /// Puts members into the log; whoever had them behind it has that much of it.
    pub(super) fn decide_members(&self, inner: &mut Inner, by: usize, began: u64, config: Config) {
        let at = inner.log.len();
        for voter in inner.voters.iter_mut().filter(|voter| voter.has == at) {
            if voter.tail.take_if(|(term, _)| *term == began).is_some() {
                voter.has = at + 1;
                voter.came.send_replace(voter.has);
            }
        }
        inner.configs.push((at, config.clone()));
        inner.log.push(Entry { term: began, commands: vec![] });
        self.history.note(Event::MembersDecided { by, config });
    }

    /// Those that take no part are told by one that votes, unless it knows that they are out of the cluster.
    pub(super) fn feed(&self) {
        let now = self.time.now();
        let nodes = self.inner.borrow().voters.len();
        let config = {
            let inner = self.inner.borrow();
            let far = inner.log.len();
            inner.leader.map_or_else(|| inner.decided_config(far), |leader| inner.config(leader)).clone()
        };
        for node in (0..nodes).filter(|node| !config.has(*node) && self.is_awake(*node)) {
            let tells = |voter: &usize| {
                let is_there = config.votes(*voter) && self.is_awake(*voter) && self.net.reach(node, *voter);
                is_there && self.inner.borrow().voters[*voter].leader.is_some() && !self.refuses(*voter, node)
            };
            let Some(voter) = (1..nodes).map(|step| (node + step) % nodes).find(tells) else { continue };
            let mut inner = self.inner.borrow_mut();
            let (has, term, leader) = (inner.voters[voter].has, inner.voters[voter].term, inner.voters[voter].leader);
            let told = &mut inner.voters[node];
            (told.leader, told.heard, told.leads, told.term) = (leader, now, None, told.term.max(term));
            if told.has < has {
                (told.has, told.tail) = (has, None);
                told.came.send_replace(has);
            }
        }
    }

    /// Changes the members, where a node leads that votes and no other change is under way. An error says nothing of what becomes of it.
    pub async fn change(&self, leader: usize, change: Change) -> Result<(), String> {
        if let Change::Vote(new) = &change {
            // A change from some to others is two steps, the first of which has both.
            let now = self.inner.borrow().config(leader).clone();
            let begun = now.next.clone();
            if now.next.is_none() && now.voters == *new {
                return Ok(());
            }
            if begun.as_ref() != Some(new) {
                let voters = begun.unwrap_or(now.voters);
                let learners = now.learners.iter().copied().filter(|node| !new.contains(node)).collect();
                self.put(leader, Config { voters, next: Some(new.clone()), learners }).await?;
                let rest = Duration::from_millis(self.inner.borrow_mut().dice.from(1, 60));
                self.time.sleep(rest).await;
            }
            let now = self.inner.borrow().config(leader).clone();
            if now.next.as_ref() != Some(new) {
                return Err("another change came between".to_owned());
            }
            let left = now.all_voters().into_iter().filter(|node| !new.contains(node) && new.contains(&leader));
            let learners = now.learners.iter().copied().chain(left).collect();
            return self.put(leader, Config { voters: new.clone(), next: None, learners }).await;
        }
        let mut config = self.inner.borrow().config(leader).clone();
        match change {
            Change::Learn(node) => drop(config.learners.insert(node)),
            Change::Forget(node) => drop(config.learners.remove(&node)),
            Change::Vote(_) => {}
        }
        self.put(leader, config).await
    }

    /// Puts members behind a leader's log, and waits until they are decided.
    async fn put(&self, leader: usize, config: Config) -> Result<(), String> {
        let Some(term) = self.leads(leader) else { return Err("it does not lead".to_owned()) };
        let now = self.time.now();
        {
            let mut inner = self.inner.borrow_mut();
            if inner.term != term || inner.voters[leader].has != inner.log.len() {
                return Err("another one leads".to_owned());
            }
            if inner.voters[leader].tail.is_some() || !inner.config(leader).votes(leader) {
                return Err("a change is under way, or it votes no more".to_owned());
            }
            let old = inner.config(leader).clone();
            let answered = inner.voters[leader].answered.iter().filter(|(_, at)| now.saturating_sub(**at) <= TOUCH);
            let there = answered.map(|(node, _)| *node).chain([leader]).collect();
            self.history.note(Event::MembersBegun { by: leader, old, new: config.clone(), there });
            inner.voters[leader].tail = Some((term, config));
        }
        let decided = || {
            let inner = self.inner.borrow();
            match (&inner.voters[leader].tail, inner.voters[leader].term == term) {
                (Some((began, _)), true) if *began == term && inner.voters[leader].leads == Some(term) => None,
                (None, true) => Some(Ok(())),
                _ => Some(Err("another one leads".to_owned())),
            }
        };
        let mut waited = Duration::ZERO;
        loop {
            if let Some(decided) = decided() {
                return decided;
            }
            if waited >= CHANGE_WAIT {
                return Err("no majority of the old and the new voters has it".to_owned());
            }
            self.time.sleep(LOOK_EVERY).await;
            waited += LOOK_EVERY;
        }
    }

    /// Says whether a node lets another one in no more: it is out of the cluster, and its vote is not needed.
    pub fn refuses(&self, by: usize, node: usize) -> bool {
        let inner = self.inner.borrow();
        inner.voters[by].state.removed.contains_key(&self.net.id(node)) && !inner.config(by).votes(node)
    }

    /// Says whether it is decided for good that a node has no vote.
    pub fn has_no_vote(&self, node: usize) -> bool {
        let inner = self.inner.borrow();
        !inner.config(node).votes(node) && !inner.decided_config(inner.voters[node].has).votes(node)
    }

    /// Returns since when a node has heard of no leader, or as a leader of no majority.
    pub fn undecided(&self, node: usize) -> Duration {
        let (now, inner) = (self.time.now(), self.inner.borrow());
        let voter = &inner.voters[node];
        let since = if voter.leads.is_some() { voter.alone.unwrap_or(now) } else { voter.heard };
        now.saturating_sub(since)
    }

    /// Returns how consensus stands as a leader sees it.
    pub fn status(&self, node: usize) -> Status {
        let (now, inner) = (self.time.now(), self.inner.borrow());
        let config = inner.config(node);
        let id = |node: &usize| self.net.id(*node);
        let peers = |nodes: &BTreeSet<usize>| nodes.iter().map(|node| Peer { node: id(node), address: String::new() }).collect();
        let voter = &inner.voters[node];
        let follower = |other: usize| Follower {
            node: self.net.id(other),
            matched: inner.voters[other].has as u64,
            heard: voter.answered.get(&other).map(|at| now.saturating_sub(*at)),
        };
        let others = config.all_voters().into_iter().chain(config.learners.iter().copied()).filter(|other| *other != node);
        let changing_to = config.next.as_ref().map(|next| next.iter().map(id).collect::<Vec<NodeId>>());
        Status {
            term: voter.term,
            applied: voter.applied as u64,
            last_log: voter.has as u64,
            changing_to,
            followers: others.map(follower).collect(),
            version: voter.state.version(),
            ..Status::of_leader(self.net.id(node), peers(&config.all_voters()), peers(&config.learners))
        }
    }

    /// Returns who takes part, by what is decided.
    pub fn members(&self) -> Config {
        let inner = self.inner.borrow();
        inner.decided_config(inner.log.len()).clone()
    }
}
