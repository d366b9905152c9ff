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

/// What was found of all that is named.
struct Found {
    named: u64,
    mine: u64,
    lacking: Vec<Digest>,
    unread: Vec<Digest>,
    homes: BTreeMap<NodeId, u64>,
}

/// Looks through all that is named; what is lacking here is listed, structure first.
fn look(store: &Store, named: &Named, placement: &Placement, me: NodeId) -> Result<Found, Failure> {
    let mut survey = Survey::new(store.clone());
    let (mut mine, mut structure, mut chunks) = (0, Vec::new(), Vec::new());
    let mut homes: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut failed = None;
    let mut see = |digest: Digest, part: Part| {
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
        let store = self.inner.chunks.store().clone();
        let (mut brought, mut brought_bytes) = (0, 0);
        let mut last = None;
        for _ in 0..DEPTH_MAX {
            let (of, all, placement) = (store.clone(), named.clone(), self.others().placement(self.inner.wanted));
            let me = self.others().me();
            let found = blocking(move || look(&of, &all, &placement, me)).await?;
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
            for some in found.lacking.chunks(AT_ONCE) {
                let began = Instant::now();
                let came = self.inner.chunks.bring(some.to_vec()).await;
                (brought, brought_bytes) = (brought + came.chunks, brought_bytes + came.bytes);
                self.hold_rate(came.bytes, began).await;
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

/// How many copies of objects are missing in the cluster, as far as it can be found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// How many, of those that are known of.
    pub(crate) copies: u64,
    /// How many nodes have not looked yet for what they are to keep.
    pub(crate) unseen: usize,
    /// Why, in sentences: who is away, who has not caught up.
    pub(crate) why: Vec<String>,
}

impl Missing {
    /// Returns how many are missing; none while nobody knows.
    pub(crate) fn known(&self) -> Option<u64> {
        (self.unseen == 0 || self.copies > 0).then_some(self.copies)
    }
}

/// How long a member may take to tell what its last round found.
const REPORT_WAIT: Duration = Duration::from_secs(3);
/// How long a round of repair on another member may take.
const REPAIR_WAIT: Duration = Duration::from_secs(3600);

impl Copies {
    /// Finds out how many copies are missing.
    pub(crate) async fn missing(&self) -> Missing {
        if self.is_alone() {
            return Missing::default();
        }
        let (mut reports, silent) = self.ask_all::<Report>(&super::asks::Ask::Report, REPORT_WAIT).await;
        reports.insert(self.others().me(), self.report());
        Self::count(&reports, silent)
    }

    /// Lets all members that are up do a round of repair; returns what each did, and who could not be asked.
    pub(crate) async fn repair_all(&self, state: &State) -> (BTreeMap<NodeId, Report>, Missing) {
        let ((mut reports, silent), mine) =
            tokio::join!(self.ask_all::<Report>(&super::asks::Ask::Repair, REPAIR_WAIT), self.repair(state));
        reports.insert(self.others().me(), mine);
        let missing = Self::count(&reports, silent);
        (reports, missing)
    }

    fn count(reports: &BTreeMap<NodeId, Report>, silent: impl IntoIterator<Item = NodeId>) -> Missing {
        let unseen = reports.values().filter(|report| report.at_seconds == 0).count();
        let mut missing = Missing { unseen, ..Missing::default() };
        if unseen > 0 {
            missing.why.push(format!("{unseen} of {} nodes have not looked yet for what they are to keep", reports.len()));
        }
        for (node, report) in reports {
            missing.copies += report.lacking;
            match report {
                Report { at_seconds: 0, .. } => {}
                Report { lacking: 0, .. } => {}
                Report { lacking, mine, .. } => {
                    missing.why.push(format!("node {node} lacks {lacking} of {mine} objects that it is to keep"))
                }
            }
        }
        for node in silent {
            let kept = reports.values().filter_map(|report| report.homes.get(&node)).max().copied().unwrap_or(0);
            missing.copies += kept;
            missing.why.push(format!("node {node} does not answer; it is to keep {kept} objects"));
        }
        missing
    }
}

#[cfg(test)]
mod tests;
