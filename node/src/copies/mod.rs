//! Copies: what the log names is on several nodes before the log names it, and again after one of them was lost.
//!
//! Which nodes keep a chunk follows from its digest and the members ([`shoal_storage::replicate`]): its homes. Whoever is about to
//! name something brings it to the first nodes in rank that are up ([`Copies::make`]); each member looks now and then for what it
//! is home of and lacks, and brings it from the others (`repair`).
//!
//! What names other chunks, the structure of trees, comes to every member in time: a collection must see all that is named. It is
//! a hundredth of the bytes.
//!
//! | module | holds |
//! |---|---|
//! | `blobs` | blobs of calls, given to others after a loss |
//! | `everywhere` | all members at once: what is missing, a round on each |
//! | `asks` | what nodes ask each other about what they keep |
//! | `repair` | bringing here what this node is home of and lacks |
//! | `warm` | whole images: which are here, bringing one here |
//!
//! Blobs of calls are named by records of calls, not by the state: the node that they come to keeps them whole, and so do others
//! that it gives them to.

pub(crate) mod asks;
pub(crate) mod blobs;
pub(crate) mod everywhere;
pub(crate) mod repair;
pub(crate) mod warm;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, Digest, NodeId};

use crate::chunks::{Others, PeerChunks};
use repair::{Progress, Report};

/// How long after a warning that there are fewer copies than wanted the next one comes.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How long a node may take to note a blob.
const BLOB_WAIT: Duration = Duration::from_secs(10);

/// How copies are restored.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Repair {
    /// How long a member is away, in seconds, until others make copies of what it keeps.
    pub(crate) after_seconds: u64,
    /// How often is looked for what lacks copies, in seconds.
    pub(crate) every_seconds: u64,
    /// How many bytes a second a node brings here to restore copies, on average; 0 = as many as can be had.
    pub(crate) bytes_per_second: u64,
}

impl Default for Repair {
    fn default() -> Self {
        Self { after_seconds: 15 * 60, every_seconds: 60, bytes_per_second: 64 << 20 }
    }
}

/// Makes copies. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Copies {
    inner: Arc<Inner>,
}

struct Inner {
    chunks: PeerChunks,
    wanted: usize,
    repair: Repair,
    warned: Mutex<Option<Instant>>,
    /// What the last round of repair found.
    report: Mutex<Report>,
    /// How far the round has come that goes on.
    progress: Mutex<Option<Progress>>,
    /// Held by the one who repairs.
    repairing: tokio::sync::Mutex<()>,
}

/// What came of making copies.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Made {
    /// Chunks that are neither here nor with those who are to keep them.
    pub(crate) absent: Vec<Digest>,
    /// How many chunks have fewer copies than wanted.
    pub(crate) short: usize,
    /// Why that is so.
    pub(crate) why: Vec<String>,
}

/// A chunk on its way to those who keep it.
struct Placed {
    digest: Digest,
    /// Who has not been asked to keep it, the first last.
    next: Vec<NodeId>,
    copies: usize,
}

impl Copies {
    /// Makes `wanted` copies by way of `chunks`.
    pub(crate) fn new(chunks: PeerChunks, wanted: usize, repair: Repair) -> Self {
        let (warned, report, progress, repairing) = Default::default();
        Self { inner: Arc::new(Inner { chunks, wanted, repair, warned, report, progress, repairing }) }
    }

    /// Returns the chunks of other nodes.
    pub(crate) fn chunks(&self) -> &PeerChunks {
        &self.inner.chunks
    }

    /// Returns the other members.
    pub(crate) fn others(&self) -> &Others {
        self.inner.chunks.others()
    }

    /// Says whether this node is the only member.
    pub(crate) fn is_alone(&self) -> bool {
        self.others().all().is_empty()
    }

    /// Brings chunks to the nodes that are to keep them: the first in rank that are up. With fewer up there are fewer copies, which
    /// is logged and repaired later. `missing` are those of them that are not here.
    pub(crate) async fn make(&self, digests: &[Digest], missing: &HashSet<Digest>) -> Made {
        if self.is_alone() {
            return Made { absent: missing.iter().copied().collect(), ..Made::default() };
        }
        let (me, up) = (self.others().me(), self.others().up().await);
        let placement = self.others().placement(self.inner.wanted);
        let mut why: Vec<String> =
            self.others().all().keys().filter(|node| !up.contains_key(node)).map(|node| format!("node {node} does not answer")).collect();
        let place = |digest: &Digest| {
            let mut next: Vec<NodeId> = placement.ranked(digest);
            next.retain(|node| up.contains_key(node) || (*node == me && !missing.contains(digest)));
            next.reverse();
            Placed { digest: *digest, next, copies: 0 }
        };
        let mut placed: Vec<Placed> = digests.iter().map(place).collect();
        loop {
            let mut of_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
            for (at, chunk) in placed.iter_mut().enumerate() {
                for _ in chunk.copies..placement.copies() {
                    match chunk.next.pop() {
                        Some(node) if node == me => chunk.copies += 1,
                        Some(node) => of_node.entry(node).or_default().push(at),
                        None => break,
                    }
                }
            }
            if of_node.is_empty() {
                break;
            }
            let given = of_node.into_iter().map(|(node, places)| {
                let digests: Vec<Digest> = places.iter().map(|at| placed[*at].digest).collect();
                async move { (places, self.inner.chunks.give(node, &digests).await) }
            });
            for (places, given) in futures::future::join_all(given).await {
                match given {
                    Ok(given) => {
                        let absent: HashSet<Digest> = given.absent.into_iter().collect();
                        places
                            .into_iter()
                            .filter(|at| !absent.contains(&placed[*at].digest))
                            .collect::<Vec<_>>()
                            .into_iter()
                            .for_each(|at| placed[at].copies += 1);
                    }
                    Err(failure) => why.push(failure),
                }
            }
        }
        let absent = |chunk: &&Placed| chunk.copies == 0 && missing.contains(&chunk.digest);
        let made = Made {
            absent: placed.iter().filter(absent).map(|chunk| chunk.digest).collect(),
            short: placed.iter().filter(|chunk| chunk.copies < placement.copies()).count(),
            why,
        };
        self.warn(&made);
        made
    }

    fn warn(&self, made: &Made) {
        let mut warned = self.inner.warned.lock();
        if made.short > 0 && warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            let why = made.why.join("; ");
            tracing::warn!(chunks = made.short, why, "what is named now has fewer copies than wanted; they are made when nodes come back");
        }
    }

    /// Gives a blob that came here to as many other nodes as are to keep it. With fewer up there are fewer copies.
    pub(crate) async fn make_of_blob(&self, id: BlobId, list: Digest, chunks: &[Digest]) {
        if self.is_alone() {
            return;
        }
        let (up, placement) = (self.others().up().await, self.others().placement(self.inner.wanted));
        let all = [&[list], chunks].concat();
        let (mut copies, mut why) = (1, Vec::new());
        for node in placement.ranked(&list).into_iter().filter(|node| up.contains_key(node)) {
            if copies >= placement.copies() {
                return;
            }
            match self.give_blob(node, id, list, &all, None).await {
                Ok(()) => copies += 1,
                Err(failure) => why.push(failure),
            }
        }
        if copies < placement.copies() {
            self.warn(&Made { absent: Vec::new(), short: all.len(), why });
        }
    }

    /// Brings all of a blob, its list of chunks included, to a node that keeps it from then on: as one that is used now, or was last
    /// used then, in seconds of the Unix clock.
    async fn give_blob(&self, node: NodeId, id: BlobId, list: Digest, all: &[Digest], used: Option<u64>) -> Result<(), String> {
        self.inner.chunks.give(node, all).await?;
        if let Some(used) = used
            && self.ask::<()>(node, &asks::Ask::KeepOldBlob { id, list, used }, BLOB_WAIT).await.is_ok()
        {
            return Ok(());
        }
        // A node of an older release knows no more than this.
        self.ask(node, &asks::Ask::KeepBlob { id, list }, BLOB_WAIT).await
    }

    /// Returns the nodes that are to keep a chunk.
    pub(crate) fn homes(&self, digests: &[Digest]) -> HashMap<NodeId, Vec<Digest>> {
        let placement = self.others().placement(self.inner.wanted);
        let mut homes: HashMap<NodeId, Vec<Digest>> = HashMap::new();
        for digest in digests {
            placement.homes(digest).into_iter().for_each(|home| homes.entry(home).or_default().push(*digest));
        }
        homes
    }

    /// Says of chunks whether this node is to keep them.
    pub(crate) fn mine(&self) -> impl Fn(&Digest) -> bool + Send + use<> {
        let (me, placement) = (self.others().me(), self.others().placement(self.inner.wanted));
        move |digest| placement.is_home(me, digest)
    }

    /// Returns those of these chunks, which this node is not to keep, that all of their homes have and keep.
    pub(crate) async fn are_kept(&self, digests: Vec<Digest>) -> HashSet<Digest> {
        let me = self.others().me();
        let asked = self.homes(&digests).into_iter().map(|(home, of_home)| async move {
            // Who has become home of something meanwhile must keep it.
            if home == me {
                return of_home;
            }
            match self.inner.chunks.lacks(home, &of_home).await {
                Ok(lacks) => lacks,
                Err(error) => {
                    tracing::debug!(%home, error, "what a node keeps cannot be found out");
                    of_home
                }
            }
        });
        let lacking: HashSet<Digest> = futures::future::join_all(asked).await.into_iter().flatten().collect();
        digests.into_iter().filter(|digest| !lacking.contains(digest)).collect()
    }
}
