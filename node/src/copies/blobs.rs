//! Copies of blobs that were lost with a node, made again by the nodes that are left.
//!
//! Blobs are named by records of calls and not by the state, so no node can tell what it lacks. Who has a blob whole asks the others
//! whether they do; when there are too few, the first in rank of those that have it gives it to the first in rank of those that do
//! not. That is done when members came or were lost, and now and then.
//!
//! What nothing needs is given to nobody, and what is given is as old there as here: a collection goes from node to node at different
//! hours, and each would else bring back what the other has just forgotten, for ever.
//!
//! Caveat: while a member is away and does not count as lost yet, nothing is done: it may have what seems to be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use shoal_state::{BlobId, Digest, NodeId};
use shoal_storage::replicate::Placement;
use tokio_util::sync::CancellationToken;

use super::asks::Ask;
use super::{BLOB_WAIT, Copies};
use crate::api::{Api, Blobs, blocking};
use crate::upkeep::Thing;
use crate::upkeep::gc::blobs::unneeded_of;

/// How often is looked whether members came or were lost.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How often a round is done though none did.
const ANYWAY: Duration = Duration::from_secs(3600);
/// How many blobs are asked about at a time.
const AT_ONCE: usize = 2048;

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    /// Blobs that this node gave to others.
    pub(crate) given: usize,
    /// Blobs of this node that still have fewer copies than wanted.
    pub(crate) short: usize,
}

/// Returns which of these blobs are not whole here.
pub(super) fn lacking(blobs: &Blobs, ids: &[BlobId]) -> io::Result<Vec<bool>> {
    ids.iter().map(|id| Ok(!blobs.is_whole(*id)?)).collect()
}

/// Says to whom this node gives a blob: nobody where there are enough that have it, or where another is to give it. Pure.
fn receiver(ranked: &[NodeId], me: NodeId, holders: &BTreeSet<NodeId>, up: &BTreeSet<NodeId>, copies: usize) -> Option<NodeId> {
    let first = ranked.iter().find(|node| holders.contains(node));
    if holders.len() >= copies || first != Some(&me) {
        return None;
    }
    ranked.iter().find(|node| up.contains(node) && !holders.contains(node)).copied()
}

impl Copies {
    /// Gives blobs of this node to others until there are as many copies as wanted. None where a member is away that may come back.
    async fn restore_blobs(&self, api: &Api) -> io::Result<Option<Restored>> {
        let (me, up) = (self.others().me(), self.others().up().await);
        // Afterwards: whoever has just answered is not lost, and so has a rank.
        let (lost, placement) = (self.others().lost(), self.others().placement(self.inner.wanted));
        let all = self.others().all();
        if all.keys().any(|node| !up.contains_key(node) && !lost.contains(node)) {
            return Ok(None);
        }
        let up: BTreeSet<NodeId> = up.into_keys().collect();
        let (of, mut done) = (api.blobs.clone(), Restored::default());
        let here = blocking(move || of.all()).await?;
        for some in here.chunks(AT_ONCE) {
            let holders = self.holders(&api.blobs, some.iter().map(|(id, _)| *id).collect(), &up).await?;
            let wanted = some.iter().zip(&holders).filter_map(|((id, list), holders)| {
                let node = receiver(&placement.ranked(list), me, holders, &up, placement.copies())?;
                Some((*id, (*list, node)))
            });
            let mut wanted: BTreeMap<BlobId, (Digest, NodeId)> = wanted.collect();
            if wanted.is_empty() {
                continue;
            }
            for id in unneeded_of(api, wanted.keys().copied().collect()).await.map_err(io::Error::other)? {
                wanted.remove(&id);
            }
            for (id, (list, node)) in wanted {
                match self.restore_blob(api, node, id, list).await {
                    Ok(()) => done.given += 1,
                    Err(error) => {
                        done.short += 1;
                        tracing::debug!(blob = %id, %node, error, "a blob cannot be given");
                    }
                }
            }
        }
        Ok(Some(done))
    }

    /// Returns which nodes have each of these blobs whole.
    async fn holders(&self, blobs: &Blobs, of: Vec<BlobId>, up: &BTreeSet<NodeId>) -> io::Result<Vec<BTreeSet<NodeId>>> {
        let (own, ids) = (blobs.clone(), of.clone());
        let absent_here = blocking(move || lacking(&own, &ids)).await?;
        let asked = up.iter().map(|node| {
            let ask = Ask::LacksBlobs(of.clone());
            async move { (*node, self.ask::<Vec<bool>>(*node, &ask, BLOB_WAIT).await) }
        });
        let mut absent: BTreeMap<NodeId, Vec<bool>> = [(self.others().me(), absent_here)].into();
        for (node, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(answer) if answer.len() == of.len() => drop(absent.insert(node, answer)),
                Ok(_) => return Err(io::Error::other(format!("node {node} did not answer for each blob"))),
                // A node of a release that does not know the question, or one that has just gone.
                Err(error) => return Err(io::Error::other(format!("node {node} does not say which blobs it has: {error}"))),
            }
        }
        let have = |number: usize| absent.iter().filter(move |(_, absent)| !absent[number]).map(|(node, _)| *node).collect();
        Ok((0..of.len()).map(have).collect())
    }

    async fn restore_blob(&self, api: &Api, node: NodeId, id: BlobId, list: Digest) -> Result<(), String> {
        let (of, uses, now, began) = (api.blobs.clone(), api.upkeep.uses.clone(), api.store.now(), Instant::now());
        let known = blocking(move || Ok::<_, io::Error>((of.list(id)?, uses.last_or_now(Thing::Blob(id), now).map_err(io::Error::other)?)));
        let (found, used) = known.await.map_err(|error| error.to_string())?;
        let chunks = found.ok_or("its list of chunks is not here any more")?;
        self.give_blob(node, id, list, &[&[list], &chunks.chunks[..]].concat(), Some(used)).await?;
        self.hold_rate(chunks.size, began).await;
        Ok(())
    }
}

/// Restores copies of blobs whenever members came or were lost, until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut done: Option<(Placement, Instant)> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.cancelled() => return,
        }
        let placement = api.copies.others().placement(api.copies.inner.wanted);
        let same = done.as_ref().is_some_and(|(of, when)| *of == placement && when.elapsed() < ANYWAY);
        if same || api.copies.is_alone() {
            continue;
        }
        let restored = tokio::select! {
            restored = api.copies.restore_blobs(&api) => restored,
            () = stop.cancelled() => return,
        };
        match restored {
            Ok(None) => {}
            Ok(Some(Restored { given, short })) => {
                if given + short > 0 {
                    tracing::info!(given, short, "gave blobs to nodes that are to have them since others were lost");
                }
                if short == 0 {
                    done = Some((placement, Instant::now()));
                }
            }
            Err(error) => tracing::debug!(%error, "cannot find out which blobs lack copies; it is tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(numbers: &[u128]) -> Vec<NodeId> {
        numbers.iter().map(|number| NodeId::from_random(*number)).collect()
    }

    #[test]
    fn one_of_those_that_have_a_blob_gives_it_to_the_next_that_has_not() {
        let ranked = ids(&[3, 1, 4, 2]);
        let set = |numbers: &[u128]| ids(numbers).into_iter().collect::<BTreeSet<_>>();
        let receives = |me: u128, holders: &[u128], up: &[u128]| receiver(&ranked, ids(&[me])[0], &set(holders), &set(up), 2);
        assert_eq!(receives(1, &[1, 2], &[2, 3, 4]), None, "there are enough");
        assert_eq!(receives(1, &[1], &[2, 3, 4]), Some(ids(&[3])[0]));
        assert_eq!(receives(1, &[1], &[2, 4]), Some(ids(&[4])[0]), "the first is not up");
        assert_eq!(receives(2, &[2], &[]), None, "nobody is there");
        let three = |me| receiver(&ranked, ids(&[me])[0], &set(&[1, 2]), &set(&[1, 2, 3, 4]), 3);
        assert_eq!((three(1), three(2)), (Some(ids(&[3])[0]), None), "one of them gives it");
    }
}
