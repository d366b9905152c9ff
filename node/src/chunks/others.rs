//! The other members, as far as bytes go: where they are, who answers, who sent wrong bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_peer::{Endpoint, Service, Stream};
use shoal_state::{Digest, NodeId};
use shoal_storage::replicate::Placement;
use tokio_util::sync::CancellationToken;

/// Answers at once, so that who asks knows that somebody is there.
const ALIVE: Service = Service::new(16, "say that it is there");

/// How often all members are asked whether they are there.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long after its last answer a member counts as up without being asked.
const FRESH: Duration = Duration::from_secs(5);
/// How long a member has to say that it is there.
const ALIVE_WAIT: Duration = Duration::from_millis(1500);
/// How long a member may be silent in the middle of something before it is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(2);
/// How long a member that sent wrong bytes is asked last.
const BAN: Duration = Duration::from_secs(10 * 60);
/// How many chunks are remembered of which a member sent wrong bytes. Beyond it all of them are forgotten.
const BANNED_MAX: usize = 10_000;

/// Says who the members are, this node among them, and where their peers reach them.
pub(crate) type Members = Arc<dyn Fn() -> BTreeMap<NodeId, String> + Send + Sync>;

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// When the member was first looked for.
    since: Instant,
    answered: Option<Instant>,
    failed: Option<Instant>,
}

#[derive(Debug, Default)]
struct Banned {
    until: Option<Instant>,
    chunks: HashSet<Digest>,
}

/// What a node knows of the other members. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Others {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    endpoint: Endpoint,
    members: Members,
    /// After how long without an answer somebody else is to keep what a member keeps.
    lost_after: Duration,
    seen: Mutex<HashMap<NodeId, Seen>>,
    banned: Mutex<HashMap<NodeId, Banned>>,
}

impl std::fmt::Debug for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Others").field("me", &self.inner.me).finish_non_exhaustive()
    }
}

impl Others {
    /// Knows the members of which this node is `me`, and answers them from now on that it is there.
    pub(crate) fn new(me: NodeId, endpoint: Endpoint, members: Members, lost_after: Duration) -> Self {
        endpoint.serve(ALIVE, |mut stream: Stream, _| async move {
            let Ok(Some(_)) = stream.next().await else { return };
            if let Err(error) = async { stream.send(Bytes::new()).await.and_then(|()| stream.finish()) }.await {
                tracing::debug!(%error, "a peer did not wait to hear that this node is there");
            }
        });
        Self { inner: Arc::new(Inner { me, endpoint, members, lost_after, seen: Mutex::default(), banned: Mutex::default() }) }
    }

    /// Returns this node.
    pub(crate) fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Returns the road to them.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Returns the other members with their addresses.
    pub(crate) fn all(&self) -> BTreeMap<NodeId, String> {
        let mut members = (self.inner.members)();
        members.remove(&self.inner.me);
        members
    }

    /// Returns the address of a member.
    ///
    /// # Errors
    /// When it is none any more, in words.
    pub(crate) fn address(&self, node: NodeId) -> Result<String, String> {
        (self.inner.members)().remove(&node).ok_or_else(|| format!("node {node} is no member of this cluster any more"))
    }

    /// Returns where chunks are kept: on the members, but for those that are lost.
    pub(crate) fn placement(&self, copies: usize) -> Placement {
        let lost = self.lost();
        Placement::new((self.inner.members)().into_keys().filter(|node| !lost.contains(node)), copies)
    }

    /// Returns the members that did not answer for so long that others are to keep what they keep.
    pub(crate) fn lost(&self) -> HashSet<NodeId> {
        let lost = |node: &NodeId| self.silence(*node) >= self.inner.lost_after;
        self.all().into_keys().filter(lost).collect()
    }

    /// Returns for how long a member has not answered, as far as this process knows.
    pub(crate) fn silence(&self, node: NodeId) -> Duration {
        let seen = self.inner.seen.lock();
        seen.get(&node).map_or(Duration::ZERO, |seen| seen.answered.unwrap_or(seen.since).elapsed())
    }

    /// Returns the members that are up, of those that can be asked now. Takes no longer than [`ALIVE_WAIT`].
    pub(crate) async fn up(&self) -> BTreeMap<NodeId, String> {
        let asked =
            self.all().into_iter().map(|(node, address)| async move { self.is_up(node, &address).await.then_some((node, address)) });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Says whether a member answers: now, or lately.
    async fn is_up(&self, node: NodeId, address: &str) -> bool {
        let now = Instant::now();
        let known = {
            let mut seen = self.inner.seen.lock();
            let seen = seen.entry(node).or_insert(Seen { since: now, answered: None, failed: None });
            match (seen.answered, seen.failed) {
                // Whoever looks at all of them finds it once it is back.
                (answered, Some(failed)) if answered.is_none_or(|answered| answered < failed) => Some(false),
                (Some(answered), _) if answered.elapsed() < FRESH => Some(true),
                _ => None,
            }
        };
        match known {
            Some(known) => known,
            None => self.look(node, address).await,
        }
    }

    /// Asks a member whether it is there, and notes the answer.
    pub(crate) async fn look(&self, node: NodeId, address: &str) -> bool {
        let answer = self.inner.endpoint.call(node, address, ALIVE, Bytes::from_static(b"?"), ALIVE_WAIT).await;
        match &answer {
            Ok(_) => self.answered(node),
            // A release that does not know the question is there all the same.
            Err(shoal_peer::Error::Failed { .. }) => self.answered(node),
            Err(_) => self.failed(node),
        }
        matches!(answer, Ok(_) | Err(shoal_peer::Error::Failed { .. }))
    }

    /// Notes that a member has answered.
    pub(crate) fn answered(&self, node: NodeId) {
        self.note(node, |seen| seen.answered = Some(Instant::now()));
    }

    /// Notes that a member did not answer: it is left alone for a moment.
    pub(crate) fn failed(&self, node: NodeId) {
        self.note(node, |seen| seen.failed = Some(Instant::now()));
    }

    fn note(&self, node: NodeId, note: impl FnOnce(&mut Seen)) {
        let mut seen = self.inner.seen.lock();
        note(seen.entry(node).or_insert_with(|| Seen { since: Instant::now(), answered: None, failed: None }));
    }

    /// Asks all members now and then whether they are there, and forgets those that are none any more, until `stop`.
    pub(crate) async fn look_at_all(self, stop: CancellationToken) {
        loop {
            let all = self.all();
            let asked = futures::future::join_all(all.iter().map(|(node, address)| self.look(*node, address)));
            tokio::select! {
                _ = asked => {}
                () = stop.cancelled() => return,
            }
            self.inner.seen.lock().retain(|node, _| all.contains_key(node));
            self.inner.banned.lock().retain(|node, _| all.contains_key(node));
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Waits for something that a member does, up to `patience`, and no longer than it takes to find out that it is gone.
    ///
    /// # Errors
    /// When it did not come, in words.
    pub(crate) async fn wait<T>(
        &self,
        node: NodeId,
        what: &str,
        patience: Duration,
        work: impl Future<Output = shoal_peer::Result<T>>,
    ) -> Result<T, String> {
        let (mut work, until) = (std::pin::pin!(work), Instant::now() + patience);
        loop {
            match tokio::time::timeout(SILENCE.min(patience), &mut work).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) => {
                    if !matches!(error, shoal_peer::Error::Failed { .. }) {
                        self.failed(node);
                    }
                    return Err(error.to_string());
                }
                Err(_) if Instant::now() >= until => return Err(format!("waited {patience:?} for node {node} to {what}")),
                Err(_) => {
                    let address = self.address(node)?;
                    if !self.look(node, &address).await {
                        return Err(format!("node {node} does not answer any more: it was to {what}"));
                    }
                }
            }
        }
    }

    /// Notes that a member sent other bytes than a chunk has: it is not asked for that chunk again, and for others last.
    pub(crate) fn ban(&self, node: NodeId, chunk: Digest) {
        let mut banned = self.inner.banned.lock();
        let banned = banned.entry(node).or_default();
        if banned.chunks.len() >= BANNED_MAX {
            banned.chunks.clear();
        }
        banned.chunks.insert(chunk);
        banned.until = Some(Instant::now() + BAN);
    }

    /// Says whether a member may be asked for a chunk.
    pub(crate) fn may_have(&self, node: NodeId, chunk: &Digest) -> bool {
        self.inner.banned.lock().get(&node).is_none_or(|banned| !banned.chunks.contains(chunk))
    }

    /// Returns the members that sent wrong bytes lately.
    pub(crate) fn distrusted(&self) -> HashSet<NodeId> {
        let banned = self.inner.banned.lock();
        banned.iter().filter(|(_, banned)| banned.until.is_some_and(|until| until > Instant::now())).map(|(node, _)| *node).collect()
    }
}
