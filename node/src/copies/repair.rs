//! Bringing here what this node is home of and lacks: after another was lost, after this one was away or its disk lost something,
//! after something was named while too few nodes were up.
//!
//! Each member cares for its own part. A round looks through all that the state names, so it is done only when something has
//! changed, and now and then without a reason. What a round brought stays when it is broken off.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use shoal_state::{Digest, NodeId, State};
use shoal_storage::keep::Survey;
use shoal_storage::manifest::Part;
use shoal_storage::replicate::Placement;
use shoal_storage::store::Store;
use tokio_util::sync::CancellationToken;

use super::Copies;
use crate::api::{Api, blocking};
use crate::upkeep::{Failure, Named};

/// How often a round is done though nothing has changed: a disk may have lost something.
const ANYWAY: Duration = Duration::from_secs(3600);
/// How many chunks are brought at a time: after each the rate is held.
const AT_ONCE: usize = 1024;
/// After how many objects who looks through them says so.
const TELL_EVERY: u64 = 1024;
/// How deep the structure of trees can be: so often more of it is found.
const DEPTH_MAX: usize = 64;

/// What a round of repair found and did, on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// When it ended, in seconds of the Unix clock; 0 = there was none yet.
    pub(crate) at_seconds: u64,
    /// How many objects the state names, chunks of files among them, as far as their structure could be had.
    pub(crate) named: u64,
    /// How many of them this node is to keep.
    pub(crate) mine: u64,
    /// How many of these it still lacks.
    pub(crate) lacking: u64,
    /// One of those.
    pub(crate) first: Option<Digest>,
    /// How many chunks the round brought here, and their length in bytes.
    pub(crate) brought: u64,
    /// Their length, in bytes.
    pub(crate) brought_bytes: u64,
    /// Objects whose contents name others and that no node had that could be asked: what they name is not counted.
    pub(crate) unread: u64,
    /// How many objects each member is to keep.
    pub(crate) homes: BTreeMap<NodeId, u64>,
}

/// How far a round of repair has come that goes on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// How many objects it has looked for. It looks for all of them again when it brought some.
    pub(crate) looked: u64,
    /// How many chunks it has brought.
    pub(crate) brought: u64,
    /// Their length, in bytes.
    pub(crate) brought_bytes: u64,
    /// How many it is to bring yet, as far as it knows.
    pub(crate) left: u64,
    /// It waits, to bring no more bytes a second than it may.
    pub(crate) rests: bool,
}

/// A round that goes on, as long as this is there.
struct Round<'a> {
    of: &'a Copies,
}

impl<'a> Round<'a> {
    fn begin(of: &'a Copies) -> Self {
        *of.inner.progress.lock() = Some(Progress::default());
        Self { of }
    }

    fn note(&self, note: impl FnOnce(&mut Progress)) {
        if let Some(progress) = &mut *self.of.inner.progress.lock() {
            note(progress);
        }
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        *self.of.inner.progress.lock() = None;
    }
}

/// What was found of all that is named.
struct Found {
    named: u64,
    mine: u64,
    lacking: Vec<Digest>,
    unread: Vec<Digest>,
    homes: BTreeMap<NodeId, u64>,
}

/// Looks through all that is named; what is lacking here is listed, structure first. `looked` hears now and then of how many more
/// objects were looked for.
fn look(store: &Store, named: &Named, placement: &Placement, me: NodeId, looked: impl Fn(u64)) -> Result<Found, Failure> {
    let mut survey = Survey::new(store.clone());
    let (mut mine, mut structure, mut chunks) = (0, Vec::new(), Vec::new());
    let mut homes: BTreeMap<NodeId, u64> = BTreeMap::new();
    let (mut failed, mut seen) = (None, 0);
    let mut see = |digest: Digest, part: Part| {
        seen += 1;
        if seen % TELL_EVERY == 0 {
            looked(TELL_EVERY);
        }
        let of = placement.homes(&digest);
        let is_mine = of.contains(&me);
        of.into_iter().for_each(|home| *homes.entry(home).or_default() += 1);
        mine += u64::from(is_mine);
        match store.has(&digest) {
            Ok(true) => {}
            Ok(false) if part != Part::Chunk => structure.push(digest),
            Ok(false) if is_mine => chunks.push(digest),
            Ok(false) => {}
            Err(error) => failed = Some(error),
        }
    };
    named.definitions.iter().for_each(|digest| survey.chunk(*digest, &mut see));
    for needs in named.all() {
        needs.record.iter().for_each(|record| survey.chunk(*record, &mut see));
        needs.tree.iter().try_for_each(|tree| survey.tree(*tree, &mut see))?;
    }
    let (named, unread) = (survey.len() as u64, survey.unread);
    structure.append(&mut chunks);
    failed.map_or(Ok(Found { named, mine, lacking: structure, unread, homes }), |error| Err(error.into()))
}

impl Copies {
    /// Returns what the last round of repair found.
    pub(crate) fn report(&self) -> Report {
        self.inner.report.lock().clone()
    }

    /// Returns how far the round of repair has come that goes on; none when none does.
    pub(crate) fn progress(&self) -> Option<Progress> {
        *self.inner.progress.lock()
    }

    /// Does a round of repair for what `state` names. One at a time; another waits for it.
    pub(crate) async fn repair(&self, state: &State) -> Report {
        let _alone = self.inner.repairing.lock().await;
        match self.round(&Named::of(state)).await {
            Ok(report) => {
                *self.inner.report.lock() = report.clone();
                report
            }
            Err(error) => {
                tracing::warn!(error = &*error as &dyn std::error::Error, "cannot look for what lacks copies");
                self.report()
            }
        }
    }

    async fn round(&self, named: &Named) -> Result<Report, Failure> {
        let (store, round) = (self.inner.chunks.store().clone(), Round::begin(self));
        let (mut brought, mut brought_bytes) = (0, 0);
        let mut last = None;
        for _ in 0..DEPTH_MAX {
            let (of, all, placement) = (store.clone(), named.clone(), self.others().placement(self.inner.wanted));
            let me = self.others().me();
            let copies = self.clone();
            let looked = move |more| {
                if let Some(progress) = &mut *copies.inner.progress.lock() {
                    progress.looked += more;
                }
            };
            let found = blocking(move || look(&of, &all, &placement, me, looked)).await?;
            // As long as more comes, more of what is named is seen.
            if found.lacking.is_empty() || last.as_ref() == Some(&found.lacking) || self.is_alone() {
                let (now, lacking, unread) = (store.now(), found.lacking.len() as u64, found.unread.len() as u64);
                return Ok(Report {
                    at_seconds: now,
                    named: found.named,
                    mine: found.mine,
                    lacking,
                    first: found.lacking.first().copied(),
                    brought,
                    brought_bytes,
                    unread,
                    homes: found.homes,
                });
            }
            for (done, some) in found.lacking.chunks(AT_ONCE).enumerate() {
                let began = Instant::now();
                round.note(|progress| progress.left = (found.lacking.len() - done * AT_ONCE) as u64);
                let one = |bytes| {
                    round.note(|progress| {
                        progress.brought += 1;
                        progress.brought_bytes += bytes;
                        progress.left = progress.left.saturating_sub(1);
                    });
                };
                let came = self.inner.chunks.bring_telling(some.to_vec(), one).await;
                (brought, brought_bytes) = (brought + came.chunks, brought_bytes + came.bytes);
                round.note(|progress| progress.rests = true);
                self.hold_rate(came.bytes, began).await;
                round.note(|progress| progress.rests = false);
            }
            last = Some(found.lacking);
        }
        Err("the structure of a tree is too deep".into())
    }

    pub(super) async fn hold_rate(&self, bytes: u64, began: Instant) {
        if let Some(millis) = (bytes * 1000).checked_div(self.inner.repair.bytes_per_second) {
            tokio::time::sleep(Duration::from_millis(millis).saturating_sub(began.elapsed())).await;
        }
    }
}

/// How soon a node looks after nodes came or went: what they are to keep must not wait for the next round.
const MOVED_WAIT: Duration = Duration::from_secs(2);

/// Repairs whenever something has changed, until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut done: Option<(Named, Placement, Instant)> = None;
    loop {
        let copies = &api.copies;
        let round = Duration::from_secs(copies.inner.repair.every_seconds.max(1));
        let began = Instant::now();
        while began.elapsed() < round {
            tokio::select! {
                () = tokio::time::sleep(MOVED_WAIT.min(round)) => {}
                () = stop.cancelled() => return,
            }
            let placement = copies.others().placement(copies.inner.wanted);
            if !copies.is_alone() && done.as_ref().is_none_or(|(_, at, _)| *at != placement) {
                break;
            }
        }
        let state = api.local();
        let (named, placement) = (Named::of(&state), copies.others().placement(copies.inner.wanted));
        let same = done.as_ref().is_some_and(|(last, at, when)| *last == named && *at == placement && when.elapsed() < ANYWAY);
        if same && copies.report().lacking == 0 {
            continue;
        }
        tokio::select! {
            report = copies.repair(&state) => {
                if report.brought > 0 || report.lacking > 0 {
                    let Report { brought, brought_bytes, lacking, unread, .. } = report;
                    tracing::info!(brought, brought_bytes, lacking, unread, "looked for what this node is to keep");
                }
            }
            () = stop.cancelled() => return,
        }
        done = Some((named, placement, Instant::now()));
    }
}

#[cfg(test)]
mod tests;
