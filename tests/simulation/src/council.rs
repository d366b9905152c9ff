//! Consensus, played: one log of what is decided, leaders with terms, and for each node how much of it it has and has applied. Who votes is
//! an entry of it ([`config`], [`changes`]); nodes that do not are told by those that do.
//!
//! What openraft promises is taken for granted here (`raft/tests` and the power-cut rig look after that); what the rest must live with
//! is not: entries that come late, leaders that were replaced and do not know it, proposals of which nobody hears what became.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use shoal_state::{Command, Refused, State};
use tokio::sync::watch;

use crate::dice::Dice;
use crate::history::{Event, History};
use crate::net::{Net, Road};
use crate::time::{Runs, Time, WORLD};

mod changes;
mod config;

pub use changes::Change;
pub use config::Config;

/// How often leaders and followers look.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a follower believes in a leader that it does not hear.
const LEASE: Duration = Duration::from_millis(800);
/// A leader that no majority answers for so long gives up.
const GIVES_UP_AFTER: Duration = Duration::from_secs(3);
/// How long a proposal waits for a leader, and for a majority.
const PROPOSAL_WAIT: Duration = Duration::from_millis(2_500);

/// What was decided, with the term of the leader that did.
#[derive(Debug, Clone)]
struct Entry {
    term: u64,
    commands: Vec<Command>,
}

#[derive(Debug)]
struct Voter {
    /// How many entries it has, and how many it has applied.
    has: usize,
    applied: usize,
    state: State,
    term: u64,
    leader: Option<usize>,
    /// The term in which it believes to lead.
    leads: Option<u64>,
    heard: Duration,
    patience: Duration,
    /// Since when no majority answers it as a leader.
    alone: Option<Duration>,
    came: watch::Sender<usize>,
    changed: watch::Sender<usize>,
    /// Applies slowly for now.
    slow: bool,
    /// Members that a leader of this term has put behind all that, and that are not decided yet.
    tail: Option<(u64, Config)>,
    /// When others answered it last, as a leader.
    answered: BTreeMap<usize, Duration>,
}

#[derive(Debug)]
struct Inner {
    dice: Dice,
    log: Vec<Entry>,
    /// The members that were decided, and by which entries.
    configs: Vec<(usize, Config)>,
    truth: State,
    term: u64,
    leader: Option<usize>,
    voters: Vec<Voter>,
}

/// The consensus of a world. Clones are the same.
#[derive(Debug, Clone)]
pub struct Council {
    inner: Rc<RefCell<Inner>>,
    net: Net,
    runs: Runs,
    time: Time,
    history: History,
}

impl Council {
    /// Begins with what all have applied, and with these that vote.
    pub fn new(
        (nodes, voters): (usize, BTreeSet<usize>),
        first: Vec<Command>,
        then: impl FnOnce(&mut State),
        net: &Net,
        runs: &Runs,
        history: &History,
        mut dice: Dice,
    ) -> Self {
        let configs = vec![(0, Config::of(voters))];
        let mut truth = State::default();
        for command in &first {
            truth.apply(command).expect("the first commands are taken");
        }
        then(&mut truth);
        let log = vec![Entry { term: 0, commands: first }];
        let voters = (0..nodes).map(|_| Voter {
            has: log.len(),
            applied: log.len(),
            state: truth.clone(),
            term: 0,
            leader: None,
            leads: None,
            heard: Duration::ZERO,
            patience: Duration::from_millis(dice.from(200, 600)),
            alone: None,
            came: watch::channel(0).0,
            changed: watch::channel(0).0,
            slow: false,
            tail: None,
            answered: BTreeMap::new(),
        });
        let voters = voters.collect();
        let inner = Inner { dice, log, configs, truth, term: 0, leader: None, voters };
        let inner = Rc::new(RefCell::new(inner));
        let council = Self { inner, net: net.clone(), runs: runs.clone(), time: runs.time(), history: history.clone() };
        let looks = council.clone();
        runs.spawn(WORLD, async move {
            loop {
                looks.time.sleep(LOOK_EVERY).await;
                looks.look();
            }
        });
        council
    }

    /// Returns what a node has applied.
    pub fn local(&self, node: usize) -> State {
        self.inner.borrow().voters[node].state.clone()
    }

    /// Returns how many entries a node has applied.
    pub fn applied(&self, node: usize) -> usize {
        self.inner.borrow().voters[node].applied
    }

    /// Returns what is decided.
    pub fn truth(&self) -> State {
        self.inner.borrow().truth.clone()
    }

    /// Returns how many entries were decided before a term began.
    pub fn before_term(&self, term: u64) -> usize {
        self.inner.borrow().log.iter().take_while(|entry| entry.term < term).count()
    }

    /// Returns a watch that changes when a node applies something.
    pub fn watch(&self, node: usize) -> watch::Receiver<usize> {
        self.inner.borrow().voters[node].changed.subscribe()
    }

    /// Returns the term in which a node leads, as far as it knows.
    pub fn leads(&self, node: usize) -> Option<u64> {
        self.inner.borrow().voters[node].leads
    }

    /// Returns who leads, as far as a node knows.
    pub fn follows(&self, node: usize) -> Option<usize> {
        self.inner.borrow().voters[node].leader
    }

    /// Returns who leads.
    pub fn leader(&self) -> Option<usize> {
        self.inner.borrow().leader
    }

    /// Lets a node apply what comes slowly, or quickly again.
    pub fn slow(&self, node: usize, slow: bool) {
        self.inner.borrow_mut().voters[node].slow = slow;
    }

    /// Says whether all have applied the same, with the same states.
    pub fn agrees(&self) -> bool {
        let inner = self.inner.borrow();
        inner.voters.iter().all(|voter| voter.applied < inner.log.len() || voter.state == inner.truth)
    }

    /// A node starts: it follows nobody yet.
    pub fn start(&self, node: usize) {
        let now = self.time.now();
        let mut inner = self.inner.borrow_mut();
        let patience = Duration::from_millis(inner.dice.from(900, 1_800));
        let voter = &mut inner.voters[node];
        (voter.leads, voter.leader, voter.alone) = (None, None, None);
        (voter.heard, voter.patience) = (now, patience);
        voter.answered.clear();
    }

    /// Applies what a node gets, for as long as it runs.
    pub async fn apply(self, node: usize) {
        let mut came = self.inner.borrow().voters[node].came.subscribe();
        loop {
            let wait = {
                let mut inner = self.inner.borrow_mut();
                let (slow, lag) = (inner.voters[node].slow, inner.dice.one_in(40));
                let ms = if slow {
                    inner.dice.from(300, 3_000)
                } else if lag {
                    inner.dice.from(100, 900)
                } else {
                    inner.dice.from(1, 15)
                };
                Duration::from_millis(ms)
            };
            self.time.sleep(wait).await;
            self.apply_next(node);
            if came.changed().await.is_err() {
                return;
            }
        }
    }

    fn apply_next(&self, node: usize) {
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let voter = &mut inner.voters[node];
        for entry in &inner.log[voter.applied..voter.has] {
            for command in &entry.commands {
                let _ = voter.state.apply(command);
            }
        }
        if voter.applied != voter.has {
            voter.applied = voter.has;
            voter.changed.send_replace(voter.applied);
        }
    }

    /// Nodes that run and do not stand still, and that one reaches.
    fn reaches(&self, node: usize) -> Vec<usize> {
        let nodes = self.inner.borrow().voters.len();
        (0..nodes).filter(|other| self.is_awake(*other) && self.net.reach(node, *other)).collect()
    }

    fn is_awake(&self, node: usize) -> bool {
        self.net.is_up(node) && !self.net.owner(node).is_some_and(|owner| self.runs.is_paused(owner))
    }

    fn look(&self) {
        self.lead();
        self.elect();
        self.feed();
    }

    /// The leader is heard; those that believe to lead and are answered by nobody give up.
    fn lead(&self) {
        let (now, nodes) = (self.time.now(), self.inner.borrow().voters.len());
        for node in (0..nodes).filter(|node| self.is_awake(*node)) {
            let reached = self.reaches(node);
            let Some(term) = self.leads(node) else { continue };
            let heard_by: Vec<usize> = (0..nodes).filter(|other| self.is_awake(*other) && self.net.passes(node, *other)).collect();
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            // Whoever knows of a later term says so.
            let latest = reached.iter().map(|other| inner.voters[*other].term).max().unwrap_or(term);
            if latest > term {
                inner.voters[node].leads = None;
                inner.voters[node].term = latest;
                continue;
            }
            let config = inner.config(node).clone();
            inner.voters[node].answered.extend(reached.iter().map(|other| (*other, now)));
            let majority = config.decides(|voter| reached.contains(&voter));
            let alone = inner.voters[node].alone.get_or_insert(now);
            if majority {
                inner.voters[node].alone = None;
            } else if now.saturating_sub(*alone) >= GIVES_UP_AFTER {
                inner.voters[node].leads = None;
                continue;
            }
            for other in heard_by.into_iter().filter(|other| config.has(*other)) {
                let voter = &mut inner.voters[other];
                if voter.term > term {
                    continue;
                }
                (voter.term, voter.leader, voter.heard) = (term, Some(node), now);
                if other != node {
                    voter.leads = None;
                }
                if term == inner.term && reached.contains(&other) {
                    inner.copy(node, other);
                }
            }
            if term == inner.term {
                self.settle(inner, node, &reached);
            }
        }
    }

    /// Those that hear no leader for long stand; with a majority that hears none either, one is elected.
    fn elect(&self) {
        let (now, nodes) = (self.time.now(), self.inner.borrow().voters.len());
        for node in 0..nodes {
            let stands = {
                let inner = self.inner.borrow();
                let voter = &inner.voters[node];
                self.is_awake(node)
                    && inner.config(node).votes(node)
                    && voter.leads.is_none()
                    && now.saturating_sub(voter.heard) >= voter.patience
            };
            if !stands {
                continue;
            }
            let reached = self.reaches(node);
            let mut inner = self.inner.borrow_mut();
            let inner = &mut *inner;
            inner.voters[node].patience = Duration::from_millis(inner.dice.from(900, 1_800));
            let free = |other: &usize| now.saturating_sub(inner.voters[*other].heard) >= LEASE.min(inner.voters[*other].patience);
            let votes: Vec<usize> = reached.into_iter().filter(free).collect();
            // One with less of the log than a voter does not get its vote.
            let (has, config) = (inner.voters[node].has, inner.config(node).clone());
            let votes = votes.into_iter().filter(|other| config.votes(*other) && inner.last(*other) <= inner.last(node));
            let votes: Vec<usize> = votes.collect();
            if !config.decides(|voter| votes.contains(&voter)) {
                continue;
            }
            assert_eq!(has, inner.log.len(), "a majority has all that was decided");
            inner.term += 1;
            let term = inner.term;
            if let Some((began, config)) = inner.voters[node].tail.clone() {
                // What a leader before it began is decided by its election.
                self.decide_members(inner, node, began, config);
            }
            inner.log.push(Entry { term, commands: vec![] });
            for other in votes {
                let voter = &mut inner.voters[other];
                (voter.term, voter.heard, voter.leads, voter.has, voter.tail) = (term, now, None, inner.log.len(), None);
                voter.came.send_replace(voter.has);
            }
            inner.leader = Some(node);
            let leader = &mut inner.voters[node];
            (leader.leads, leader.leader, leader.alone) = (Some(term), Some(node), None);
            self.history.note(Event::Elected { node, term });
        }
    }

    /// Says whether a node decides: it leads the latest term, and a majority answers it.
    fn decides(&self, node: usize, term: u64) -> bool {
        let (latest, leader, config) = {
            let inner = self.inner.borrow();
            (inner.term, inner.leader, inner.config(node).clone())
        };
        let reached = self.reaches(node);
        latest == term && leader == Some(node) && self.is_awake(node) && config.decides(|voter| reached.contains(&voter))
    }

    /// Waits until a node decides; false if it does not.
    async fn until_it_decides(&self, node: usize) -> bool {
        let mut waited = Duration::ZERO;
        while waited < PROPOSAL_WAIT {
            let Some(term) = self.leads(node) else { return false };
            if self.decides(node, term) {
                return true;
            }
            self.time.sleep(LOOK_EVERY * 2).await;
            waited += LOOK_EVERY * 2;
        }
        false
    }

    /// Finds the leader as a node knows it, and carries something to it. Returns the way on which it went.
    async fn to_leader(&self, node: usize) -> Result<Road, String> {
        let mut waited = Duration::ZERO;
        loop {
            let known = self.inner.borrow().voters[node].leader;
            if let Some(leader) = known {
                if self.refuses(leader, node) {
                    return Err("it is out of the cluster".to_owned());
                }
                let road = self.net.road(node, leader).await.ok_or("the leader is not reached")?;
                return if road.there().await && self.net.is_up(leader) { Ok(road) } else { Err("lost".to_owned()) };
            }
            if waited >= PROPOSAL_WAIT {
                return Err("nobody leads".to_owned());
            }
            self.time.sleep(LOOK_EVERY).await;
            waited += LOOK_EVERY;
        }
    }

    /// Has commands decided that a node proposes. An error says nothing of what became of them.
    pub async fn propose(&self, node: usize, commands: Vec<Command>) -> Result<Vec<Result<(), Refused>>, String> {
        let road = self.to_leader(node).await?;
        let leader = road.to();
        if !self.until_it_decides(leader).await {
            return Err("the leader decides nothing".to_owned());
        }
        let answers = self.commit(node, leader, commands);
        if road.back().await { Ok(answers) } else { Err("the answer is lost".to_owned()) }
    }

    fn commit(&self, by: usize, leader: usize, commands: Vec<Command>) -> Vec<Result<(), Refused>> {
        let reached = self.reaches(leader);
        let mut inner = self.inner.borrow_mut();
        let inner = &mut *inner;
        let config = inner.config(leader).clone();
        if inner.voters[leader].tail.is_some() {
            reached.iter().filter(|other| config.has(**other)).for_each(|other| inner.copy(leader, *other));
            self.settle(inner, leader, &reached);
        }
        let answers: Vec<Result<(), Refused>> = commands.iter().map(|command| inner.truth.apply(command).map(drop)).collect();
        for (command, answer) in commands.iter().zip(&answers) {
            self.history.note(Event::Decided { by, command: Box::new(command.clone()), taken: answer.is_ok() });
        }
        inner.log.push(Entry { term: inner.term, commands });
        for other in reached.into_iter().filter(|other| config.has(*other)) {
            let voter = &mut inner.voters[other];
            voter.has = inner.log.len();
            voter.came.send_replace(voter.has);
        }
        answers
    }

    /// Waits until a node has applied all that is decided.
    pub async fn read_latest(&self, node: usize) -> Result<(), String> {
        let road = self.to_leader(node).await?;
        if !self.until_it_decides(road.to()).await || !road.back().await {
            return Err("nobody says how far all is".to_owned());
        }
        let far = self.inner.borrow().log.len();
        let mut changed = self.watch(node);
        let has = async {
            while self.applied(node) < far {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        self.time.within(Duration::from_secs(5), has).await.ok_or_else(|| "what is decided does not come".to_owned())
    }
}
