//! The handle by which the rest of the node proposes, reads and watches.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use shoal_state::{Command, NodeId, State};
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, Result};
use crate::feed::{self, Follow};
use crate::forward::Forward;
use crate::network::{self, CoreRequest, Declined, Feed, Index, Invited, Proposed, Request, Transport, Unsent};
use crate::options::Options;
use crate::part::{Member, Part, Wish, calls_back};
use crate::propose::{Failure, Outcome, Piece, Proposal};
use crate::read::Read;
use crate::route::{Route, replaced, replaced_in, route, route_by, route_of};
use crate::runtime::{Running, Thread};
use crate::types::{Answer, Peer, StoredMembership};
use crate::view::{Applied, Notice};

/// How long [`Raft::propose`] waits for its answers.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`Raft::read_latest`] waits for its confirmation.
pub const READ_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`Raft::shutdown`] waits.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);

/// How long a node may take to follow that is told to.
const INVITE_DEADLINE: Duration = Duration::from_secs(5);

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
    transport: Arc<dyn Transport>,
    thread: Thread,
}

impl Raft {
    /// Opens a node's Raft, with everything that was acknowledged before, and starts it.
    ///
    /// A folder that was never used holds no cluster: see [`Raft::bootstrap_alone`]. Until a leader is known, the state
    /// may be older than it was before a restart: [`Raft::read_latest`] waits for what is missing.
    pub async fn open(options: Options) -> Result<Self> {
        let me = Peer { node: options.node, address: options.address.clone() };
        let transport = options.transport.clone();
        let (thread, running) = Thread::start(options).await?;
        Ok(Self { inner: Arc::new(Inner { me, running, transport, thread }) })
    }

    /// Returns this node's id.
    pub fn node(&self) -> NodeId {
        self.inner.me.node
    }

    /// Returns the state as this node has applied it: maybe a little old, without waiting.
    pub fn local(&self) -> Arc<State> {
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
            let way = route(&self.part());
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
                Err(Failure::Stopped) if self.has_ended() => return Err(self.stop_error()),
                // It left consensus with this in its hands.
                Err(Failure::Stopped) => {
                    return Err(Error::Unanswered { commands: commands.len(), waited: attempt.began.elapsed() });
                }
            }
        }
    }

    /// Returns a state that holds everything acknowledged anywhere before this call, waiting up to [`READ_DEADLINE`].
    pub async fn read_latest(&self) -> Result<Arc<State>> {
        self.read_latest_by(Instant::now() + READ_DEADLINE).await
    }

    /// Reads as [`Raft::read_latest`] does, with a deadline of the caller's.
    pub async fn read_latest_by(&self, deadline: Instant) -> Result<Arc<State>> {
        let attempt = Attempt::new(self, deadline);
        let index = loop {
            let way = route(&self.part());
            match self.confirm(false, deadline).await.ok_or_else(|| attempt.unconfirmed())? {
                Ok(index) => break index,
                Err(Declined::Stopped { .. }) if self.has_ended() => return Err(self.stop_error()),
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
            Request::Core(request) => match self.part() {
                Part::Member(member) => Ok(network::serve(&member.core, &self.inner.running.heard, request).await),
                Part::Follower(following) => {
                    let is_vote = matches!(request, CoreRequest::Vote(_));
                    if calls_back(&following, &self.inner.running.machine, is_vote) {
                        // Where others wait, it is called again.
                        let _ = self.inner.running.wishes.try_send(Wish::Join { done: None });
                    }
                    Err(Error::NotAMember)
                }
                Part::Ended(_) => Err(self.stop_error()),
            },
            Request::Invite { members } => {
                let answer: Invited = self.be_invited(members).await.ok_or(Declined::Unanswered);
                Ok(network::encode(&answer))
            }
        }
    }

    async fn be_invited(&self, members: StoredMembership) -> Option<bool> {
        let (answer, answered) = oneshot::channel();
        self.inner.running.wishes.try_send(Wish::Invited { members, answer }).ok()?;
        timeout(READ_DEADLINE, answered).await.ok()?.ok()
    }

    /// Tells a member's follower what is decided, as it asked; see [`Transport::follow`]. Whoever carries the messages drops them when the
    /// follower listens no more.
    ///
    /// # Errors
    /// When the request makes no sense here. The error is for this node's log: the peer gets none.
    pub fn feed(&self, request: &Bytes) -> Result<Feed> {
        let asked: Follow = network::decode(request).map_err(|why| Error::BadMessage { why: why.to_string() })?;
        let words = match self.part() {
            Part::Member(member) => feed::tell(member.source.clone(), asked),
            Part::Follower(_) => stream::iter([feed::elsewhere(&self.inner.running.machine)]).boxed(),
            Part::Ended(_) => return Err(self.stop_error()),
        };
        Ok(words.map(Ok).boxed())
    }

    /// Tells a node that is no member of consensus who the members are, so that it follows those that vote; says whether it hears one of
    /// them by now. Only the leader's word counts there.
    pub async fn invite(&self, peer: &Peer) -> Result<bool> {
        let failed = |why: String| Error::Membership { why: format!("node {} cannot be told to follow: {why}", peer.node) };
        let request = network::encode(&Request::Invite { members: self.inner.running.machine.membership() });
        let reply = timeout(INVITE_DEADLINE, self.inner.transport.call(peer, request, INVITE_DEADLINE)).await;
        let reply = reply.map_err(|_| failed("it does not answer".into()))?.map_err(|unsent| failed(unsent.to_string()))?;
        let answer = network::decode::<Invited>(&reply).map_err(|why| failed(why.to_string()))?;
        answer.map_err(|_| failed("it takes itself for a member by a later word".into()))
    }

    /// Waits until Raft has stopped on this node, by a shutdown or because it cannot go on, and says why.
    pub async fn stopped(&self) -> Error {
        let mut part = self.inner.running.part.clone();
        tokio::select! {
            // An error says that it is gone, which is what was waited for.
            _ = part.wait_for(|part| matches!(part, Part::Ended(_))) => {}
            () = self.inner.running.stop.given() => {}
        }
        self.stop_error()
    }

    /// Stops Raft on this node and waits until its files are closed, up to [`SHUTDOWN_DEADLINE`].
    pub async fn shutdown(&self) {
        if timeout(SHUTDOWN_DEADLINE, self.inner.thread.end()).await.is_err() {
            tracing::error!("waited {SHUTDOWN_DEADLINE:?} for Raft to close its files; what was acknowledged is on disk");
        }
    }

    /// Returns what this node is to the others now.
    pub(crate) fn part(&self) -> Part {
        self.inner.running.part.borrow().clone()
    }

    /// Returns openraft and what goes with it, where it runs.
    pub(crate) fn member(&self) -> Option<Arc<Member>> {
        match self.part() {
            Part::Member(member) => Some(member),
            Part::Follower(_) | Part::Ended(_) => None,
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.inner.running.stop.get().is_some() || matches!(self.part(), Part::Ended(_))
    }

    /// Says that Raft has stopped, and why.
    pub(crate) fn stop_error(&self) -> Error {
        Error::Stopped { why: self.why_stopped() }
    }

    pub(crate) fn why_stopped(&self) -> String {
        let ended = || match self.part() {
            Part::Ended(why) => why,
            Part::Member(_) | Part::Follower(_) => "one of its tasks has ended; this node's log says more".into(),
        };
        self.inner.running.stop.why(ended)
    }

    /// Hands commands to this node's queue.
    async fn submit(&self, pieces: Vec<Piece>, deadline: Instant) -> Result<Outcome> {
        let began = Instant::now();
        let commands = pieces.len();
        let member = match self.part() {
            Part::Member(member) => member,
            Part::Follower(_) => return Ok(Err(Failure::NotLeader)),
            Part::Ended(_) => return Ok(Err(Failure::Stopped)),
        };
        let (reply, answer) = oneshot::channel();
        let sent = timeout_at(deadline, member.proposals.send(Proposal { pieces, reply })).await;
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
            match self.part() {
                Part::Member(member) => replaced(&member.core, leader.node).await,
                Part::Follower(following) => replaced_in(&following.follower.fed, leader.node).await,
                Part::Ended(_) => {}
            }
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
        let reads = match self.part() {
            Part::Member(member) => member.reads.clone(),
            Part::Follower(following) => following.reads.clone(),
            Part::Ended(_) => return Some(stopped()),
        };
        let (reply, answer) = oneshot::channel();
        match timeout_at(deadline, reads.send(Read { from_peer, reply })).await {
            Err(_) => None,
            Ok(Err(_)) => Some(stopped()),
            Ok(Ok(())) => Some(timeout_at(deadline, answer).await.ok()?.unwrap_or_else(|_| stopped())),
        }
    }

    /// Waits until this node has applied the entry at `index`; `None` at the deadline.
    async fn reach(&self, index: u64, deadline: Instant) -> Option<()> {
        if let Part::Follower(following) = self.part() {
            following.follower.want(index);
        }
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
        if self.raft.has_ended() {
            return Err(self.raft.stop_error());
        }
        if Instant::now() >= self.deadline {
            return Err(self.given_up());
        }
        let until = self.deadline.min(Instant::now() + RETRY_AFTER);
        let another = async {
            match self.raft.part() {
                Part::Member(member) => {
                    let mut metrics = member.core.server_metrics();
                    // An error says that it has ended: there is another way then, if any.
                    let _ = metrics.wait_for(|metrics| route_by(metrics) != *tried).await;
                }
                Part::Follower(following) => {
                    let mut fed = following.follower.fed.clone();
                    let _ = fed.wait_for(|fed| route_of(fed) != *tried).await;
                }
                Part::Ended(_) => {}
            }
        };
        let _ = timeout_at(until, another).await;
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
