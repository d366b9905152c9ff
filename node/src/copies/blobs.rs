//! Copies of blobs that were lost with a node, made again by the nodes that are left.
//!
//! Blobs are named by records of calls and not by the state, so no node can tell what it lacks. Who has a blob whole asks the others
//! whether they do; when there are too few, the first in rank of those that have it gives it to the first in rank of those that do
//! not. That is done when members came or were lost, and now and then.
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
    pub(crate) async fn restore_blobs(&self, blobs: &Blobs) -> io::Result<Option<Restored>> {
        let (me, up) = (self.others().me(), self.others().up().await);
        // Afterwards: whoever has just answered is not lost, and so has a rank.
        let (lost, placement) = (self.others().lost(), self.others().placement(self.inner.wanted));
        let all = self.others().all();
        if all.keys().any(|node| !up.contains_key(node) && !lost.contains(node)) {
            return Ok(None);
        }
        let up: BTreeSet<NodeId> = up.into_keys().collect();
        let (of, mut done) = (blobs.clone(), Restored::default());
        let here = blocking(move || of.all()).await?;
        for some in here.chunks(AT_ONCE) {
            let of: Vec<BlobId> = some.iter().map(|(id, _)| *id).collect();
            let (own, ids) = (blobs.clone(), of.clone());
            let absent_here = blocking(move || lacking(&own, &ids)).await?;
            let asked = up.iter().map(|node| {
                let ask = Ask::LacksBlobs(of.clone());
                async move { (*node, self.ask::<Vec<bool>>(*node, &ask, BLOB_WAIT).await) }
            });
            let mut absent: BTreeMap<NodeId, Vec<bool>> = [(me, absent_here)].into();
            for (node, answer) in futures::future::join_all(asked).await {
                match answer {
                    Ok(answer) if answer.len() == of.len() => drop(absent.insert(node, answer)),
                    Ok(_) => return Err(io::Error::other(format!("node {node} did not answer for each blob"))),
                    // A node of a release that does not know the question, or one that has just gone.
                    Err(error) => return Err(io::Error::other(format!("node {node} does not say which blobs it has: {error}"))),
                }
            }
            for (number, (id, list)) in some.iter().enumerate() {
                let holders: BTreeSet<NodeId> = absent.iter().filter(|(_, absent)| !absent[number]).map(|(node, _)| *node).collect();
                let Some(node) = receiver(&placement.ranked(list), me, &holders, &up, placement.copies()) else { continue };
                match self.restore_blob(blobs, node, *id, *list).await {
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

    async fn restore_blob(&self, blobs: &Blobs, node: NodeId, id: BlobId, list: Digest) -> Result<(), String> {
        let (of, began) = (blobs.clone(), Instant::now());
        let found = blocking(move || of.list(id)).await.map_err(|error| error.to_string())?;
        let chunks = found.ok_or("its list of chunks is not here any more")?;
        self.give_blob(node, id, list, &[&[list], &chunks.chunks[..]].concat()).await?;
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
            restored = api.copies.restore_blobs(&api.blobs) => restored,
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
