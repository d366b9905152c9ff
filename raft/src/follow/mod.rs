//! A node that is no member of consensus follows those that vote: it is told what is decided, and applies that.
//!
//! It works on the same log, snapshots and state as a member, and does to them nothing that a member would not: what is decided takes the
//! place of what was not. So it can become a member at any time, once its log is on disk, and back. What it writes is synced by
//! and by: it can be told again.
//!
//! Whom it follows is decided in [`choice`], what it writes down is in [`keep`].

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use shoal_state::NodeId;
use tokio::io::AsyncWriteExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::error::Stop;
use crate::feed::{Follow, Word};
use crate::log::{self, LogStore};
use crate::machine::{self, Machine, blocking};
use crate::network::{Transport, decode, encode};
use crate::pulse::Pulse;
use crate::snapshot::SnapshotData;
use crate::types::{LogId, Peer, StoredMembership};

mod choice;
mod keep;

use choice::{Choice, Next, Trouble};
use keep::{Keep, Taken};

/// How long the way to a voter may take to open.
const OPEN_PATIENCE: Duration = Duration::from_secs(3);
/// A node that wakes up so much later than it wanted to stood still itself.
const STOOD_STILL: Duration = Duration::from_millis(300);
/// The pause after a voter was left, so that one that ends all it begins is not asked all the time.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a node that knows no voter looks whether it knows one; it is told when it is invited.
const NOBODY_PAUSE: Duration = Duration::from_secs(60);

/// What a follower knows of the rest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fed {
    /// Who tells it what is decided; none while it looks for one.
    pub(crate) by: Option<NodeId>,
    pub(crate) leader: Option<Peer>,
    pub(crate) term: u64,
}

/// What cannot go on here.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("cannot write a snapshot that another node sends")]
    Write(#[source] Arc<std::io::Error>),
    #[error(
        "node {by} says that entry {here} of the log was decided, where this node was told of another one before; remove this node's folder and let it join anew"
    )]
    Differs { by: NodeId, here: LogId },
}

/// How the follower is spoken to.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) fed: watch::Receiver<Fed>,
    /// The members, as the leader said when it invited this node.
    invited: watch::Sender<StoredMembership>,
    /// Up to where somebody here knows the log to be decided.
    wanted: watch::Sender<u64>,
    /// Since when this node follows.
    pub(crate) since: Instant,
}

impl Follower {
    /// Takes the leader's word about the members, and says whether a voter is heard already.
    pub(crate) fn invite(&self, members: StoredMembership) -> bool {
        self.invited.send_if_modified(|known| {
            let newer = members.log_id() > known.log_id();
            if newer {
                *known = members;
            }
            newer
        });
        self.fed.borrow().by.is_some()
    }

    /// Notes that the log is known to be decided up to here.
    pub(crate) fn want(&self, index: u64) {
        self.wanted.send_if_modified(|known| (*known < index).then(|| *known = index).is_some());
    }
}

/// What following needs.
#[derive(Debug, Clone)]
pub(crate) struct Means {
    pub(crate) me: NodeId,
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) stop: Stop,
    /// A snapshot is made after this many entries …
    pub(crate) snapshot_every: u64,
    /// … and so many that it holds already are kept.
    pub(crate) entries_kept: u64,
}

/// Follows from now on, until `over`; `known`: the members, by the word of a leader. The handle ends when nothing here is touched any
/// more.
pub(crate) fn start(means: Means, known: StoredMembership, over: CancellationToken) -> Result<(Follower, JoinHandle<()>), Error> {
    let (tell, fed) = watch::channel(Fed::default());
    let (invited, members) = watch::channel(known);
    let (wanted, decided) = watch::channel(0);
    let keep = Keep::open(means.clone())?;
    let run = Run {
        choice: Choice::new(means.me),
        began: Instant::now(),
        keep,
        means,
        tell,
        members,
        decided,
        elsewhere: StoredMembership::default(),
        receiving: None,
    };
    let task = tokio::spawn(run.run(over));
    Ok((Follower { fed, invited, wanted, since: Instant::now() }, task))
}

struct Run {
    means: Means,
    choice: Choice,
    began: Instant,
    keep: Keep,
    tell: watch::Sender<Fed>,
    members: watch::Receiver<StoredMembership>,
    decided: watch::Receiver<u64>,
    /// The members, by the word of a voter that sent this node elsewhere.
    elsewhere: StoredMembership,
    /// The snapshot that is on its way here.
    receiving: Option<SnapshotData>,
}

impl Run {
    async fn run(mut self, over: CancellationToken) {
        if let Err(error) = self.go_round(&over).await {
            self.means.stop.because(&error);
        }
        self.tell.send_replace(Fed::default());
    }

    async fn go_round(&mut self, over: &CancellationToken) -> Result<(), Error> {
        loop {
            self.look_at_members();
            match self.choice.next(self.now()) {
                Next::Follow(node) => {
                    self.choice.begin(node, self.now());
                    let Some(why) = self.follow(node, over).await? else { return self.keep.end().await };
                    tracing::info!(%node, %why, "a voter is not followed any more");
                    self.choice.left(self.now(), why);
                    self.receiving = None;
                    self.tell.send_if_modified(|fed| fed.by.take().is_some());
                    sleep(PAUSE).await;
                }
                Next::Wait(wait) => self.wait(wait, over).await,
                Next::Nobody => self.wait(NOBODY_PAUSE, over).await,
            }
            if over.is_cancelled() {
                return self.keep.end().await;
            }
        }
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits, since nobody is left to follow for now, or until somebody is named.
    async fn wait(&mut self, wait: Duration, over: &CancellationToken) {
        // What it knew of a leader may hold no more.
        self.tell.send_if_modified(|fed| fed.leader.take().is_some());
        tokio::select! {
            () = sleep(wait) => {}
            Ok(()) = self.members.changed() => {}
            () = over.cancelled() => {}
        }
    }

    /// Returns the members by the last word of them that this node has.
    fn members(&mut self) -> StoredMembership {
        let (applied, told) = (self.means.machine.membership(), self.members.borrow_and_update().clone());
        let known = [applied, told, self.elsewhere.clone()];
        known.into_iter().max_by_key(|members| *members.log_id()).unwrap_or_default()
    }

    fn look_at_members(&mut self) {
        let members = self.members();
        let voters = members.voter_ids().filter_map(|id| members.membership().get_node(&id).map(|peer| peer.node));
        self.choice.vote(voters.collect::<Vec<_>>());
    }

    fn peer(&mut self, node: NodeId) -> Option<Peer> {
        let members = self.members();
        members.nodes().find(|(_, peer)| peer.node == node).map(|(_, peer)| peer.clone())
    }

    /// Follows one voter until it is to be left, and says why; nothing where all is over. What was begun with a word is always finished.
    async fn follow(&mut self, node: NodeId, over: &CancellationToken) -> Result<Option<Trouble>, Error> {
        let Some(peer) = self.peer(node) else { return Ok(Some(Trouble::VotesNot)) };
        let request = encode(&Follow { after: self.keep.applied() });
        let transport = self.means.transport.clone();
        let opened = tokio::select! {
            opened = timeout(OPEN_PATIENCE, transport.follow(&peer, request)) => opened,
            () = over.cancelled() => return Ok(None),
        };
        let mut feed = match opened {
            Err(_) => return Ok(Some(Trouble::Silent)),
            Ok(Err(why)) => {
                tracing::debug!(%node, %why, "a voter cannot be followed");
                return Ok(Some(Trouble::Broken));
            }
            Ok(Ok(feed)) => feed,
        };
        loop {
            let look = self.began + self.choice.look_again();
            let word = tokio::select! {
                word = feed.next() => Some(word),
                () = sleep_until(look) => None,
                () = over.cancelled() => return Ok(None),
                Ok(()) = self.decided.changed() => {
                    let decided = *self.decided.borrow_and_update();
                    self.choice.decided(self.now(), decided);
                    None
                }
                Ok(()) = self.members.changed() => {
                    self.look_at_members();
                    None
                }
            };
            // Where this node stood still, what came meanwhile is heard first.
            if Instant::now() > look + STOOD_STILL {
                self.choice.stood_still(self.now());
            }
            let trouble = match word {
                Some(Some(Ok(bytes))) => self.hear(&peer, &bytes).await?,
                Some(Some(Err(why))) => {
                    tracing::debug!(%node, %why, "a voter is not heard any more");
                    Some(Trouble::Broken)
                }
                Some(None) => Some(Trouble::Broken),
                None => None,
            };
            if let Some(why) = trouble.or_else(|| self.choice.leave(self.now())) {
                return Ok(Some(why));
            }
        }
    }

    /// Does what a voter's word asks for; says why it is to be left, if so.
    async fn hear(&mut self, from: &Peer, bytes: &[u8]) -> Result<Option<Trouble>, Error> {
        let word = match decode::<Word>(bytes) {
            Ok(word) => word,
            Err(why) => {
                tracing::warn!(node = %from.node, %why, "what a voter says cannot be understood");
                return Ok(Some(Trouble::Broken));
            }
        };
        match word {
            Word::Stands { pulse, applied } => self.stands(from, pulse, applied),
            Word::Entries(entries) => {
                let last = entries.last().map_or(0, |entry| entry.log_id.index);
                match self.keep.take(entries).await? {
                    Taken::Applied { members } => {
                        self.choice.told(self.now(), last);
                        if members {
                            self.look_at_members();
                        }
                    }
                    Taken::OutOfOrder => {
                        tracing::warn!(node = %from.node, last, "a voter tells entries that do not follow those that are here");
                        return Ok(Some(Trouble::Broken));
                    }
                }
            }
            Word::Snapshot => {
                let folder = self.means.machine.folder().clone();
                self.receiving = Some(blocking(move || folder.receive()).await?);
                self.choice.told(self.now(), 0);
            }
            Word::Piece(piece) => return self.receive(&piece).await,
            Word::Elsewhere { members } => {
                if members.log_id() > self.elsewhere.log_id() {
                    self.elsewhere = members;
                }
                return Ok(Some(Trouble::VotesNot));
            }
            Word::Differs { here } => return Err(Error::Differs { by: from.node, here }),
        }
        Ok(None)
    }

    fn stands(&mut self, from: &Peer, pulse: Pulse, applied: u64) {
        let own = self.keep.applied().map_or(0, |id| id.index);
        self.choice.stands(self.now(), pulse.in_touch, pulse.leader.as_ref().map(|leader| leader.node), applied);
        self.choice.decided(self.now(), own);
        // Who takes this node for the leader has not heard yet that it is none any more.
        let leader = pulse.leader.filter(|leader| pulse.in_touch && leader.node != self.means.me);
        let now = Fed { by: Some(from.node), leader, term: pulse.term };
        self.tell.send_if_modified(|fed| (*fed != now).then(|| *fed = now).is_some());
    }

    async fn receive(&mut self, piece: &[u8]) -> Result<Option<Trouble>, Error> {
        let Some(mut data) = self.receiving.take() else { return Ok(Some(Trouble::Broken)) };
        let failed = |error| Error::Write(Arc::new(error));
        if piece.is_empty() {
            data.flush().await.map_err(failed)?;
            self.keep.install(data).await?;
            self.look_at_members();
            let applied = self.keep.applied().map_or(0, |id| id.index);
            tracing::info!(applied, "the state was taken over from a voter's snapshot");
            self.choice.told(self.now(), applied);
        } else {
            data.write_all(piece).await.map_err(failed)?;
            self.receiving = Some(data);
            self.choice.told(self.now(), 0);
        }
        Ok(None)
    }
}
