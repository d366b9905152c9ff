//! Which blobs nothing needs: those of calls that are over, and of values of dicts and queues that are gone.
//!
//! Whether a blob is named only the homes of calls and objects can say; they are asked about those that were not used for so long
//! that nobody can be about to name them. How long that is follows from what the blob holds (`unused_for`).

use std::collections::BTreeMap;

use shoal_calls::objects::{self, ObjectAnswer, ObjectRequest};
use shoal_state::{BlobId, CallId, ShardId};

use super::super::Failure;
use super::super::uses::Thing;
use crate::api::{Api, Error, blocking};

/// How long a blob is kept that no call was noted to name, in seconds: longer than any call is kept whose record may name it
/// without a note, as records of earlier versions do.
const UNNAMED_KEPT: u64 = 8 * 24 * 3600;

/// Returns how long nobody may have used a blob, in seconds, before it is asked whether anything names it.
///
/// A value of a dict or a queue is put and named by one request, and its home knows of all that is named: the time that the store
/// keeps what it promised is more than that. A client has a day from upload to use.
fn unused_for(id: BlobId, calls: &[CallId], keep: u64) -> u64 {
    match objects::is_value(id) {
        true => keep,
        false if calls.is_empty() => UNNAMED_KEPT.max(keep * 2),
        false => keep * 2,
    }
}

/// Returns the blobs of this node that nothing needs.
pub(super) async fn unneeded(api: &Api) -> Result<Vec<BlobId>, Error> {
    let blobs = api.blobs.clone();
    let all = blocking(move || blobs.all()).await.map_err(failed())?;
    unneeded_of(api, all.into_iter().map(|(id, _)| id).collect()).await
}

/// Returns those blobs that nothing needs: not used for as long as anybody could name them, and named by no call that is kept, nor by
/// a dict or a queue.
pub(crate) async fn unneeded_of(api: &Api, ids: Vec<BlobId>) -> Result<Vec<BlobId>, Error> {
    let (blobs, uses, now, keep) = (api.blobs.clone(), api.upkeep.uses.clone(), api.store.now(), api.store.keep().as_secs());
    let candidates = blocking(move || {
        let mut candidates = Vec::new();
        for id in ids {
            let last = uses.last_or_now(Thing::Blob(id), now)?;
            // Most are too young, whatever they hold.
            if last + keep > now {
                continue;
            }
            let calls = blobs.calls_of(id)?;
            if last + unused_for(id, &calls, keep) <= now {
                candidates.push((id, calls));
            }
        }
        Ok::<_, Failure>(candidates)
    });
    let mut old = Vec::new();
    for (id, calls) in candidates.await.map_err(failed())? {
        let mut named = false;
        for call in calls {
            named |= !is_forgotten(api.calls.info(call).await);
        }
        if !named {
            old.push(id);
        }
    }
    Ok(unnamed_by_objects(api, old).await)
}

fn failed<E: Into<Failure>>() -> impl FnOnce(E) -> Error {
    Error::failed("cannot read the table of blobs")
}

/// Returns those blobs that no dict or queue needs. Their ids would name its shard, whose home knows; without its answer they
/// are kept.
async fn unnamed_by_objects(api: &Api, old: Vec<BlobId>) -> Vec<BlobId> {
    let mut by_shard: BTreeMap<ShardId, Vec<BlobId>> = BTreeMap::new();
    let mut unnamed = Vec::new();
    for id in old {
        match id.shard() {
            Some(shard) => by_shard.entry(shard).or_default().push(id),
            None => unnamed.push(id),
        }
    }
    for blobs in by_shard.into_values() {
        match api.calls.object(ObjectRequest::Named { blobs: blobs.clone() }).await {
            Ok(ObjectAnswer::Blobs(named)) => unnamed.extend(blobs.into_iter().filter(|id| !named.contains(id))),
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "blobs are kept that a dict or a queue may need"),
        }
    }
    unnamed
}

/// Says whether a call is known not to exist: any other answer, or none, keeps what it names.
fn is_forgotten<T>(info: Result<T, shoal_calls::calls::Error>) -> bool {
    use shoal_calls::calls::{Error, Refused};
    matches!(info, Err(Error::Refused(Refused::NoCall { .. })))
}

/// Forgets blobs, durably, with when they were used.
pub(super) async fn forget(api: &Api, old: &[BlobId]) -> Result<(), Error> {
    let (blobs, uses, old) = (api.blobs.clone(), api.upkeep.uses.clone(), old.to_vec());
    let forgotten = blocking(move || {
        for id in &old {
            uses.forget(Thing::Blob(*id))?;
        }
        // Synced before anything is deleted: a blob that came back would be one without bytes.
        blobs.forget(&old)?;
        Ok::<_, Failure>(())
    });
    forgotten.await.map_err(Error::failed("cannot forget blobs that nothing names"))
}

#[cfg(test)]
mod tests {
    use shoal_calls::objects::value_id;
    use shoal_state::QueueId;

    use super::*;

    #[test]
    fn values_of_dicts_and_queues_are_looked_for_sooner_than_what_clients_uploaded() {
        let (day, call) = (24 * 3600, CallId::from_random(1));
        let shard = ShardId::all().next().unwrap();
        let value = value_id(QueueId::in_shard(shard, 7).into(), 8).unwrap();
        let uploaded = BlobId::from_random(7);
        assert_eq!(
            [unused_for(value, &[], day), unused_for(uploaded, &[call], day), unused_for(uploaded, &[], day)],
            [day, 2 * day, 8 * day]
        );
    }
}
