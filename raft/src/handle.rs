//! The handle by which the rest of the node proposes, reads and watches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use openraft::error::Fatal;
use shoal_state::{Command, NodeId, State};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, Result};
use crate::forward::Forward;
use crate::network::{self, Declined, Index, Proposed, Request, Unsent};
use crate::options::Options;
use crate::propose::{Failure, Outcome, Piece, Proposal};
use crate::read::Read;
use crate::route::{Route, replaced, route, route_by};
use crate::runtime::{Running, Thread};
use crate::types::{Answer, Peer};
use crate::view::{Applied, Notice};

/// How long [`Raft::propose`] waits for its answers.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`Raft::read_latest`] waits for its confirmation.
pub const READ_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`Raft::shutdown`] waits.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);

/// How long a way to the leader that failed is left alone, unless another leader shows up before.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// How long a leader that was replaced may take to say what became of commands that were sent to it. It may be gone.
const REPLACED_WAIT: Duration = Duration::from_millis(500);

/// A node's part in the cluster's consensus. Clones share it.
///
/// Raft runs on a thread of its own; all methods may be called from any runtime. Dropping the last clone ends it, and
/// loses nothing that was acknowledged; [`Raft::shutdown`] also waits for it.
#[derive(Debug, Clone)]
pub struct Raft {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) me: Peer,
    pub(crate) running: Running,
    thread: Thread,
}

impl Raft {
    /// Opens a node's Raft, with everything that was acknowledged before, and starts it.
    ///
    /// A folder that was never used holds no cluster: see [`Raft::bootstrap_alone`]. Until a leader is known, the state
    /// may be older than it was before a restart: [`Raft::read_latest`] waits for what is missing.
    pub async fn open(options: Options) -> Result<Self> {
        let me = Peer { node: options.node, address: options.address.clone() };
        let (thread, running) = Thread::start(options).await?;
        Ok(Self { inner: Arc::new(Inner { me, running, thread }) })
    }

    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.inner.me.node
    }

    /// Returns the state as this node has applied it: maybe a little old, without waiting. A clone is free.
    pub fn local(&self) -> State {
        self.inner.running.view.state()
    }

    /// Watches how far the state of this node is. What changed is in the state, hints are in [`Raft::notices`].
    pub fn watch(&self) -> watch::Receiver<Applied> {
        self.inner.running.view.watch()
    }

    /// Listens to what comes of commands. A listener that lags is told so and reads the state instead.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.inner.running.view.notices()
    }

    /// Proposes commands and waits for their answers, one each and in order, up to [`PROPOSE_DEADLINE`].
    ///
    /// They are applied in order, but not as one unit: others' commands may come between. On a node that does not lead
    /// they travel to the leader, and the state here includes them when this returns, if it can within the deadline.
    pub async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Answer>> {
        self.propose_by(&commands, Instant::now() + PROPOSE_DEADLINE).await
    }

    /// Proposes commands as [`Raft::propose`] does, with a deadline of the caller's.
    pub async fn propose_by(&self, commands: &[Command], deadline: Instant) -> Result<Vec<Answer>> {
        let pieces = commands.iter().map(Piece::new).collect::<Result<Vec<_>>>()?;
        if pieces.is_empty() {
            return Ok(vec![]);
        }
        let mut attempt = Attempt::new(self, deadline);
        loop {
            let way = route(&self.inner.running.core);
            let outcome = match &way {
                Route::Here => self.submit(pieces.clone(), deadline).await?,
                Route::There(leader) => self.forward(leader, &pieces, &mut attempt).await?,
                Route::Nowhere => Err(Failure::NotLeader),
            };
            match outcome {
                Ok((answers, index)) => {
                    // The answers stand whether or not this node catches up in time.
                    let _ = self.reach(index, deadline).await;
                    return Ok(answers);
                }
                Err(Failure::NotLeader) => attempt.pause(&way).await?,
                Err(Failure::Interrupted { answered }) => return Err(Error::Interrupted { answered, commands: commands.len() }),
                Err(Failure::Stopped) => return Err(self.stop_error()),
            }
        }
    }

    /// Returns a state that holds everything acknowledged anywhere before this call, waiting up to [`READ_DEADLINE`].
    pub async fn read_latest(&self) -> Result<State> {
        self.read_latest_by(Instant::now() + READ_DEADLINE).await
    }

    /// Reads as [`Raft::read_latest`] does, with a deadline of the caller's.
    pub async fn read_latest_by(&self, deadline: Instant) -> Result<State> {
        let attempt = Attempt::new(self, deadline);
        let index = loop {
            let way = route(&self.inner.running.core);
            match self.confirm(false, deadline).await.ok_or_else(|| attempt.unconfirmed())? {
                Ok(index) => break index,
                Err(Declined::Stopped { .. }) if way == Route::Here => return Err(self.stop_error()),
                Err(_) => attempt.pause(&way).await?,
            }
        };
        self.reach(index, deadline).await.ok_or_else(|| attempt.unconfirmed())?;
        Ok(self.local())
    }

    /// Answers a message that a peer's transport brought. The error is for this node's log: the peer gets none.
    pub async fn answer(&self, request: Bytes) -> Result<Bytes> {
        let bad = |why: network::BadMessage| Error::BadMessage { why: why.to_string() };
        match network::decode(&request).map_err(bad)? {
            Request::Propose { commands, patience } => {
                let answer: Proposed = self.propose_for_peer(commands, Instant::now() + patience).await;
                Ok(network::encode(&answer))
            }
            Request::ProposeAll { calls, patience } => {
                let deadline = Instant::now() + patience;
                let answers = join_all(calls.into_iter().map(|commands| self.propose_for_peer(commands, deadline))).await;
                Ok(network::encode(&answers as &Vec<Proposed>))
            }
            Request::ReadIndex => {
                let confirmed = self.confirm(true, Instant::now() + READ_DEADLINE).await;
                Ok(network::encode(&confirmed.unwrap_or(Err(Declined::Unanswered)) as &Index))
            }
            Request::Core(request) => {
                self.inner.running.heard.note_question();
                Ok(network::serve(&self.inner.running.core, request).await)
            }
        }
    }

    /// Waits until Raft has stopped on this node, by a shutdown or because it cannot go on, and says why.
    pub async fn stopped(&self) -> Error {
        let mut metrics = self.inner.running.core.metrics();
        // An error says that it is gone, which is what was waited for.
        let _ = metrics.wait_for(|metrics| metrics.running_state.is_err()).await;
        self.stop_error()
    }

    /// Stops Raft on this node and waits until its files are closed, up to [`SHUTDOWN_DEADLINE`].
    pub async fn shutdown(&self) {
        let ending = async {
            if let Err(error) = self.inner.running.core.shutdown().await {
                tracing::error!(%error, "Raft did not end well");
            }
            self.inner.thread.end().await;
        };
        if timeout(SHUTDOWN_DEADLINE, ending).await.is_err() {
            tracing::error!("waited {SHUTDOWN_DEADLINE:?} for Raft to close its files; what was acknowledged is on disk");
        }
    }

    /// Says that Raft has stopped, and why.
    pub(crate) fn stop_error(&self) -> Error {
        Error::Stopped { why: self.why_stopped() }
    }

    pub(crate) fn why_stopped(&self) -> String {
        let running = &self.inner.running;
        running.stop.why(|| match &running.core.metrics().borrow().running_state {
            Err(Fatal::Stopped) => "it was shut down".into(),
            Err(fatal) => format!("{fatal}; this node's log says more"),
            Ok(()) => "one of its tasks has ended; this node's log says more".into(),
        })
    }

    /// Hands commands to this node's queue.
    async fn submit(&self, pieces: Vec<Piece>, deadline: Instant) -> Result<Outcome> {
        let began = Instant::now();
        let commands = pieces.len();
        let (reply, answer) = oneshot::channel();
        let sent = timeout_at(deadline, self.inner.running.proposals.send(Proposal { pieces, reply })).await;
        match sent {
            Err(_) => return Err(Error::Busy { waited: began.elapsed() }),
            Ok(Err(_)) => return Ok(Err(Failure::Stopped)),
            Ok(Ok(())) => {}
        }
        let answered = timeout_at(deadline, answer).await;
        answered
            .map_err(|_| Error::Unanswered { commands, waited: began.elapsed() })
            .map(|outcome| outcome.unwrap_or(Err(Failure::Stopped)))
    }

    /// Sends commands to the leader.
    async fn forward(&self, leader: &Peer, pieces: &[Piece], attempt: &mut Attempt<'_>) -> Result<Outcome> {
        let deadline = attempt.deadline;
        if Instant::now() >= deadline {
            // Nothing is sent any more: the caller hears why nothing was before.
            return Ok(Err(Failure::NotLeader));
        }
        let commands = pieces.iter().map(Piece::bytes).collect();
        let unanswered = || Error::Unanswered { commands: pieces.len(), waited: attempt.began.elapsed() };
        let (reply, answer) = oneshot::channel();
        let forward = Forward { leader: leader.clone(), commands, deadline, reply };
        match timeout_at(deadline, self.inner.running.forwards.send(forward)).await {
            Err(_) => return Err(Error::Busy { waited: attempt.began.elapsed() }),
            Ok(Err(_)) => return Ok(Err(Failure::Stopped)),
            Ok(Ok(())) => {}
        }
        let given_up = async {
            replaced(&self.inner.running.core, leader.node).await;
            tokio::time::sleep(REPLACED_WAIT).await;
        };
        let answered = tokio::select! {
            answered = timeout_at(deadline, answer) => answered,
            () = given_up => return Err(unanswered()),
        };
        let proposed = match answered {
            Err(_) | Ok(Ok(Err(Unsent::Lost { .. }))) => return Err(unanswered()),
            Ok(Ok(Err(Unsent::Unreachable { why }))) => {
                attempt.unreachable = Some((leader.node, why));
                return Ok(Err(Failure::NotLeader));
            }
            Ok(Err(_)) => return Ok(Err(Failure::Stopped)),
            Ok(Ok(Ok(proposed))) => proposed,
        };
        match proposed {
            Ok(answers) => Ok(Ok(answers)),
            Err(Declined::NotLeader) => Ok(Err(Failure::NotLeader)),
            Err(Declined::Interrupted { answered }) => Ok(Err(Failure::Interrupted { answered })),
            Err(Declined::VersionUnknown { version }) => Err(Error::VersionUnknown { version }),
            Err(Declined::Unanswered | Declined::Stopped { .. }) => Err(unanswered()),
        }
    }

    /// Proposes what another node passed on. It is not passed on again.
    async fn propose_for_peer(&self, commands: Vec<Bytes>, deadline: Instant) -> Proposed {
        let pieces = commands.into_iter().map(Piece::from_bytes).collect::<Result<Vec<_>>>();
        let pieces = pieces.map_err(|error| match error {
            Error::VersionUnknown { version } => Declined::VersionUnknown { version },
            other => Declined::Stopped { why: other.to_string() },
        })?;
        match self.submit(pieces, deadline).await {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(Failure::NotLeader)) | Err(Error::Busy { .. }) => Err(Declined::NotLeader),
            Ok(Err(Failure::Interrupted { answered })) => Err(Declined::Interrupted { answered }),
            Ok(Err(Failure::Stopped)) => Err(Declined::Stopped { why: self.stop_error().to_string() }),
            Err(_) => Err(Declined::Unanswered),
        }
    }

    /// Waits for a round that began after this call; `None` at the deadline.
    async fn confirm(&self, from_peer: bool, deadline: Instant) -> Option<Index> {
        let stopped = || Err(Declined::Stopped { why: self.stop_error().to_string() });
        let (reply, answer) = oneshot::channel();
        match timeout_at(deadline, self.inner.running.reads.send(Read { from_peer, reply })).await {
            Err(_) => None,
            Ok(Err(_)) => Some(stopped()),
            Ok(Ok(())) => Some(timeout_at(deadline, answer).await.ok()?.unwrap_or_else(|_| stopped())),
        }
    }

    /// Waits until this node has applied the entry at `index`; `None` at the deadline.
    async fn reach(&self, index: u64, deadline: Instant) -> Option<()> {
        let mut applied = self.watch();
        timeout_at(deadline, applied.wait_for(|applied| applied.index >= index)).await.ok()?.ok().map(drop)
    }
}

/// The tries of one call to get something done by the leader.
struct Attempt<'a> {
    raft: &'a Raft,
    began: Instant,
    deadline: Instant,
    /// The leader that could not be reached the last time, and why.
    unreachable: Option<(NodeId, String)>,
}

impl<'a> Attempt<'a> {
    fn new(raft: &'a Raft, deadline: Instant) -> Self {
        Self { raft, began: Instant::now(), deadline, unreachable: None }
    }

    /// Waits for another way to the leader, or a little; at the deadline, says what was waited for.
    async fn pause(&self, tried: &Route) -> Result<()> {
        let mut metrics = self.raft.inner.running.core.metrics();
        if metrics.borrow().running_state.is_err() {
            return Err(self.raft.stop_error());
        }
        if Instant::now() >= self.deadline {
            return Err(self.given_up());
        }
        let until = self.deadline.min(Instant::now() + RETRY_AFTER);
        let _ = timeout_at(until, metrics.wait_for(|metrics| metrics.running_state.is_err() || route_by(metrics) != *tried)).await;
        Ok(())
    }

    fn given_up(&self) -> Error {
        let waited = self.began.elapsed();
        match self.unreachable.clone() {
            Some((leader, why)) => Error::LeaderUnreachable { waited, leader, why },
            None => Error::NoLeader { waited, voters: self.raft.voters() },
        }
    }

    fn unconfirmed(&self) -> Error {
        Error::Unconfirmed { waited: self.began.elapsed() }
    }
}
