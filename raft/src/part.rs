//! The part that a node plays: a member of consensus, in which openraft runs, or one that follows those that vote.
//!
//! One task goes from the one to the other and back, over the same files and the same state, without a new start of the process:
//!
//! - A follower becomes a member when the members that it has applied name it, or when a leader talks to it as to one.
//! - A member becomes a follower when the members that are decided do not name it any more: by its own log, or by the word of the leader,
//!   which tells a node that left before it could read so ([`Raft::invite`](crate::Raft::invite)). Members of older releases know
//!   nothing of followers: before [`FOLLOWERS_SINCE`] nobody becomes one.
//!
//! What a node is after a new start follows from its log alone. A follower touches nothing that a member's promises rest on: its votes,
//! and the entries that it said it has, unless others were decided in their place. So no moment of a change is one that must not
//! be cut short.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use shoal_state::NodeId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::append::APPEND_PATIENCE;
use crate::error::{Error, Result, Stop, with_causes};
use crate::feed::Source;
use crate::follow::{self, Follower, Means};
use crate::log::LogStore;
use crate::machine::Machine;
use crate::network::Links;
use crate::options::Tuning;
use crate::propose::{Batcher, PROPOSALS_QUEUED_MAX, Proposal};
use crate::pulse::{self, Pulse};
use crate::quorum;
use crate::read::{self, READS_QUEUED_MAX, Read};
use crate::types::{Core, Peer, StoredMembership, raft_id};

/// The version of the rules from which nodes that do not vote follow those that do. Every node that knows it can.
pub const FOLLOWERS_SINCE: u32 = 7;

/// How many wishes may wait to be looked at.
const WISHES_QUEUED_MAX: usize = 16;

/// How often is looked whether a node plays the right part, should nothing change.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long is waited between looks while entries come.
const LOOK_NOT_BEFORE: Duration = Duration::from_millis(20);

/// How long openraft may take to let go of the state.
const LET_GO_MAX: Duration = Duration::from_secs(20);

/// What a node is to the others.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    Member(Arc<Member>),
    Follower(Arc<Following>),
    /// Raft has ended here, for this reason unless [`Stop`] says more.
    Ended(String),
}

/// openraft runs.
pub(crate) struct Member {
    pub(crate) core: Core,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    pub(crate) reads: mpsc::Sender<Read>,
    pub(crate) source: Source,
}

/// The node follows.
#[derive(Debug)]
pub(crate) struct Following {
    pub(crate) follower: Follower,
    pub(crate) log: LogStore,
    pub(crate) reads: mpsc::Sender<Read>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").finish_non_exhaustive()
    }
}

impl Part {
    /// Returns the log, as long as it is open.
    pub(crate) fn log(&self) -> Option<&LogStore> {
        match self {
            Self::Member(member) => Some(&member.source.log),
            Self::Follower(following) => Some(&following.log),
            Self::Ended(_) => None,
        }
    }
}

impl Member {
    /// Returns the members by the last entry of them in its log, decided or not.
    fn effective(&self) -> StoredMembership {
        (*self.core.metrics().borrow().membership_config).clone()
    }
}

/// What somebody wants of the node's part.
#[derive(Debug)]
pub(crate) enum Wish {
    /// A leader talks to it as to a member, or it founds a cluster.
    Join { done: Option<oneshot::Sender<()>> },
    /// The leader says who the members are. The answer: whether it follows, and hears somebody.
    Invited { members: StoredMembership, answer: oneshot::Sender<bool> },
}

/// What a node has, whatever its part.
pub(crate) struct Stores {
    pub(crate) me: Peer,
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) links: Links,
    pub(crate) tuning: Tuning,
    pub(crate) stop: Stop,
}

/// The task that goes from one part to another.
pub(crate) struct Parts {
    stores: Stores,
    followers: Arc<AtomicUsize>,
    tell: watch::Sender<Part>,
    wishes: mpsc::Receiver<Wish>,
    /// What drives the node now.
    driven: Driven,
    /// The members by which this node is none any more: older ones do not call it back.
    out: StoredMembership,
}

/// What drives the state now, and ends before something else does.
enum Driven {
    /// openraft; the receiver ends when it has let go of the state.
    Member(Arc<Member>, mpsc::Receiver<std::convert::Infallible>),
    Follower(Arc<Following>, CancellationToken, JoinHandle<()>),
    Nobody,
}

/// What happened.
enum Event {
    Wish(Wish),
    /// The members that are decided do not name this member.
    Out,
    /// The members that are decided name this follower.
    In,
    Ended(String),
    Closed,
}

impl Parts {
    /// Begins with the part that the node's files tell of.
    pub(crate) async fn begin(stores: Stores) -> Result<(Self, watch::Receiver<Part>, mpsc::Sender<Wish>)> {
        let (wish, wishes) = mpsc::channel(WISHES_QUEUED_MAX);
        let (tell, part) = watch::channel(Part::Ended("it has not begun yet".to_owned()));
        let out = StoredMembership::default();
        let mut parts = Self { stores, followers: Arc::default(), tell, wishes, driven: Driven::Nobody, out };
        let in_log = parts.stores.log.last_membership().map_err(|error| Error::Stopped { why: with_causes(&error) })?;
        let members = in_log.unwrap_or_else(|| parts.stores.machine.membership());
        match names(&members, parts.me()) {
            true => parts.join().await?,
            false => parts.follow()?,
        }
        Ok((parts, part, wish))
    }

    /// Serves until `closing`.
    pub(crate) async fn run(mut self, mut closing: watch::Receiver<bool>) {
        loop {
            let event = tokio::select! {
                event = Self::next(&self.stores, &self.driven, &self.out, &mut self.wishes) => event,
                _ = closing.wait_for(|close| *close) => Event::Closed,
            };
            let done = match event {
                Event::Wish(wish) => self.grant(wish).await,
                Event::Out => {
                    self.out = self.stores.machine.membership();
                    self.leave().await
                }
                Event::In => self.join().await,
                Event::Ended(why) => {
                    self.tell.send_replace(Part::Ended(why));
                    self.driven = Driven::Nobody;
                    Ok(())
                }
                Event::Closed => break,
            };
            if let Err(error) = done {
                self.stores.stop.because(&error);
                self.end().await;
                self.tell.send_replace(Part::Ended(error.to_string()));
            }
        }
        self.end().await;
        self.tell.send_replace(Part::Ended("it was shut down".to_owned()));
    }

    fn me(&self) -> NodeId {
        self.stores.me.node
    }

    async fn next(stores: &Stores, driven: &Driven, out: &StoredMembership, wishes: &mut mpsc::Receiver<Wish>) -> Event {
        let mut applied = stores.machine.view().watch();
        let changed = async {
            loop {
                let now = (stores.machine.membership(), stores.machine.view().version());
                let turns = match driven {
                    Driven::Member(member, _) => is_out(&now.0, &member.effective(), stores.me.node) && now.1 >= FOLLOWERS_SINCE,
                    Driven::Follower(..) => names(&now.0, stores.me.node) && now.0.log_id() > out.log_id(),
                    Driven::Nobody => false,
                };
                if turns {
                    return;
                }
                // Time passes too: what openraft says of the members may come after what was applied. Of many entries the last is enough.
                let _ = timeout(LOOK_EVERY, applied.changed()).await;
                sleep(LOOK_NOT_BEFORE).await;
            }
        };
        let ended = async {
            match driven {
                Driven::Member(member, _) => {
                    // These change seldom, the others with each entry. Nobody tells them any more once openraft has ended, and why
                    // was told before.
                    let mut metrics = member.core.server_metrics();
                    while metrics.changed().await.is_ok() {}
                    match &member.core.metrics().borrow().running_state {
                        Ok(()) => "its task has ended".to_owned(),
                        Err(openraft::error::Fatal::Stopped) => "it was shut down".to_owned(),
                        Err(fatal) => format!("{fatal}; this node's log says more"),
                    }
                }
                Driven::Follower(..) => {
                    stores.stop.given().await;
                    stores.stop.why(String::new)
                }
                Driven::Nobody => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(wish) = wishes.recv() => Event::Wish(wish),
            () = changed => if matches!(driven, Driven::Member(..)) { Event::Out } else { Event::In },
            why = ended => Event::Ended(why),
        }
    }

    async fn grant(&mut self, wish: Wish) -> Result<()> {
        match wish {
            Wish::Join { done } => {
                if let Driven::Follower(..) = &self.driven {
                    self.join().await?;
                }
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
            Wish::Invited { members, answer } => {
                if names(&members, self.me()) {
                    return Ok(());
                }
                if let Driven::Member(member, _) = &self.driven {
                    let leads = member.core.metrics().borrow().state.is_leader();
                    if leads || members.log_id() < member.effective().log_id() {
                        return Ok(());
                    }
                    self.out = members.clone();
                    self.leave().await?;
                }
                if let Driven::Follower(following, ..) = &self.driven {
                    let _ = answer.send(following.follower.invite(members));
                }
            }
        }
        Ok(())
    }

    /// Becomes a member: whatever the log holds is on disk before openraft counts on it.
    async fn join(&mut self) -> Result<()> {
        self.end().await;
        let failed = |error: &dyn std::error::Error| Error::Stopped { why: with_causes(error) };
        let applied = self.stores.machine.applied();
        let ready = self.stores.log.blocking(move |log| {
            applied.map_or(Ok(()), |applied| log.begin_behind(applied))?;
            log.sync()
        });
        ready.await.map_err(|error| failed(&error))?;
        let Stores { me, log, machine, links, tuning, stop } = &self.stores;
        let config = tuning.config().map_err(|error| failed(&*error))?;
        let (lent, returned) = machine.lent();
        let core = Core::new(raft_id(me.node), Arc::new(config), links.clone(), log.clone(), lent).await;
        let ended = |fatal: &dyn std::fmt::Display| Error::Stopped { why: stop.why(|| fatal.to_string()) };
        let core = core.map_err(|fatal| ended(&fatal))?;
        // The first answer shows that it has started: from here on, its metrics tell what was found on disk.
        core.with_raft_state(|_| ()).await.map_err(|fatal| ended(&fatal))?;
        let heard = links.heard.clone();
        let (proposals, proposed) = mpsc::channel(PROPOSALS_QUEUED_MAX);
        let (reads, asked) = mpsc::channel(READS_QUEUED_MAX);
        let (told, pulse) = watch::channel(Pulse::default());
        tokio::spawn(quorum::watch(core.clone(), links.clone(), tuning.heartbeat, tuning.quorum_lost));
        tokio::spawn(pulse::watch(core.clone(), heard, me.clone(), told));
        tokio::spawn(Batcher::new(core.clone(), machine.view(), proposed).run());
        tokio::spawn(read::run(read::Way::Member(core.clone()), links.clone(), asked));
        let source = Source { log: log.clone(), machine: machine.clone(), pulse, followers: self.followers.clone() };
        let member = Arc::new(Member { core, proposals, reads, source });
        self.driven = Driven::Member(member.clone(), returned);
        self.tell.send_replace(Part::Member(member));
        tracing::info!("this node is a member of consensus");
        Ok(())
    }

    /// Ends membership, and follows.
    async fn leave(&mut self) -> Result<()> {
        self.end().await;
        self.follow()
    }

    fn follow(&mut self) -> Result<()> {
        let Stores { me, log, machine, links, tuning, stop } = &self.stores;
        let means = Means {
            me: me.node,
            log: log.clone(),
            machine: machine.clone(),
            transport: links.transport.clone(),
            stop: stop.clone(),
            snapshot_every: tuning.snapshot_every,
            entries_kept: tuning.entries_kept,
        };
        let over = CancellationToken::new();
        let (follower, task) = follow::start(means, self.out.clone(), over.clone()).map_err(|error| {
            stop.because(&error);
            Error::Stopped { why: with_causes(&error) }
        })?;
        let (reads, asked) = mpsc::channel(READS_QUEUED_MAX);
        tokio::spawn(read::run(read::Way::Follower(follower.fed.clone()), links.clone(), asked));
        let following = Arc::new(Following { follower, log: log.clone(), reads });
        self.driven = Driven::Follower(following.clone(), over, task);
        self.tell.send_replace(Part::Follower(following));
        tracing::info!("this node follows those that vote");
        Ok(())
    }

    /// Ends what drives the state, and waits until it has let go of it.
    async fn end(&mut self) {
        match std::mem::replace(&mut self.driven, Driven::Nobody) {
            Driven::Member(member, mut returned) => {
                if let Err(error) = member.core.shutdown().await {
                    tracing::error!(%error, "Raft did not end well");
                }
                drop(member);
                if timeout(LET_GO_MAX, returned.recv()).await.is_err() {
                    // Two that apply entries would make another state: this process must end.
                    self.stores.stop.because(&Error::Stopped { why: format!("waited {LET_GO_MAX:?} for openraft to let go of the state") });
                    std::future::pending::<()>().await;
                }
            }
            Driven::Follower(_, over, task) => {
                over.cancel();
                let _ = task.await;
            }
            Driven::Nobody => {}
        }
    }
}

/// Says whether a message of a leader to a member makes a member of one that follows.
pub(crate) fn calls_back(following: &Following, machine: &Machine, is_vote: bool) -> bool {
    let young = machine.applied().is_none() || machine.view().version() < FOLLOWERS_SINCE;
    // Messages that were on their way when it left have arrived by then.
    young || (!is_vote && following.follower.since + APPEND_PATIENCE < Instant::now())
}

fn names(members: &StoredMembership, node: NodeId) -> bool {
    members.membership().get_node(&raft_id(node)).is_some()
}

/// Says whether members that are decided leave a node out, and nobody is about to take it in.
fn is_out(decided: &StoredMembership, effective: &StoredMembership, node: NodeId) -> bool {
    decided.log_id().is_some() && !names(decided, node) && !names(effective, node)
}
