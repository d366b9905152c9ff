//! When things were last used, so that what was not used for the longest time goes first, and people see what nobody needs.
//!
//! Kept in a table of this node, a minute is exact enough. It is brought to the disk once a minute and when the node stops; a
//! thing whose time a crash took away counts as used when it is next looked at. Each node knows of its own uses; [`last_anywhere`] asks
//! all.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, Digest, ImageId, MountId, SecretId};
use shoal_storage::kv::{self, Kv, Tree};

use crate::api::{Api, blocking};
use crate::copies::asks::Ask;

/// How exact the times are, in seconds: a use so soon after another is not written down.
const EXACT_SECONDS: u64 = 60;

/// How many times are remembered to save writes. Beyond it all are forgotten, and written again when they change.
const RECENT_MAX: usize = 10_000;

/// How long another node may take to say when things were last used there.
const ANSWER_WAIT: Duration = Duration::from_secs(3);

/// Something that is kept because it may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Thing {
    /// An image.
    Image(ImageId),
    /// The result of a build step, by its key.
    Layer(Digest),
    /// A set of files.
    Mount(MountId),
    /// An uploaded blob.
    Blob(BlobId),
    /// A secret; it is kept however long nobody used it.
    Secret(SecretId),
}

/// What the keys of secrets begin with.
const SECRET: u8 = b's';

impl Thing {
    fn key(&self) -> Vec<u8> {
        let key = |kind: u8, id: &[u8]| [&[kind], id].concat();
        match self {
            Self::Image(id) => key(b'i', &id.bits().to_le_bytes()),
            Self::Layer(digest) => key(b'l', digest.as_bytes()),
            Self::Mount(id) => key(b'm', &id.bits().to_le_bytes()),
            Self::Blob(id) => key(b'b', &id.bits().to_le_bytes()),
            Self::Secret(id) => key(SECRET, &id.bits().to_le_bytes()),
        }
    }
}

/// Returns when each of some things was last used on any node that answers, in seconds of the Unix clock; none where none knows of it.
pub(crate) async fn last_anywhere(api: &Api, things: Vec<Thing>) -> Vec<Option<u64>> {
    if things.is_empty() {
        return Vec::new();
    }
    let (count, ask, uses) = (things.len(), Ask::Uses(things.clone()), api.upkeep.uses.clone());
    let here = blocking(move || uses.last_of_all(things));
    let (here, (others, _)) = tokio::join!(here, api.copies.ask_all::<Vec<Option<u64>>>(&ask, ANSWER_WAIT));
    let here = here.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot look up when things were used here");
        vec![None; count]
    });
    latest(others.into_values().chain([here]))
}

/// Returns the latest of what was told of each thing.
fn latest(told: impl IntoIterator<Item = Vec<Option<u64>>>) -> Vec<Option<u64>> {
    told.into_iter().fold(Vec::new(), |mut last, told| {
        last.resize(last.len().max(told.len()), None);
        last.iter_mut().zip(told).for_each(|(last, told)| *last = (*last).max(told));
        last
    })
}

/// The table of last uses. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Uses {
    table: Tree,
    recent: Arc<Mutex<HashMap<Thing, u64>>>,
    /// Something was noted that may not be on the disk yet.
    unsynced: Arc<AtomicBool>,
}

impl Uses {
    /// Keeps times in a table of `kv`.
    pub(crate) fn open(kv: &Kv) -> Result<Self, kv::Error> {
        Ok(Self { table: kv.tree("last-uses")?, recent: Arc::default(), unsynced: Arc::default() })
    }

    /// Notes that something is used at this time, in seconds of the Unix clock. What cannot be noted counts as used later on.
    pub(crate) fn touch(&self, thing: Thing, now: u64) {
        {
            let mut recent = self.recent.lock();
            if recent.get(&thing).is_some_and(|last| now < last + EXACT_SECONDS) {
                return;
            }
            if recent.len() >= RECENT_MAX {
                recent.clear();
            }
            recent.insert(thing, now);
        }
        if let Err(error) = self.table.insert(&thing.key(), &now.to_le_bytes()) {
            tracing::warn!(?thing, %error, "cannot note when something was used");
        }
        self.unsynced.store(true, Ordering::Relaxed);
    }

    /// Brings to the disk what was noted since the last time.
    pub(crate) fn sync(&self) -> Result<(), kv::Error> {
        if self.unsynced.swap(false, Ordering::Relaxed) {
            self.table.kv().sync().inspect_err(|_| self.unsynced.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    }

    /// Returns when something was last used, in seconds of the Unix clock; none when that was never noted.
    pub(crate) fn last(&self, thing: Thing) -> Result<Option<u64>, kv::Error> {
        let value = self.table.get(&thing.key())?;
        Ok(value.and_then(|value| Some(u64::from_le_bytes(value[..].try_into().ok()?))))
    }

    /// Returns of each thing what [`Self::last`] does.
    pub(crate) fn last_of_all(&self, things: Vec<Thing>) -> Result<Vec<Option<u64>>, kv::Error> {
        things.into_iter().map(|thing| self.last(thing)).collect()
    }

    /// Returns when something was last used; what was never noted is used now.
    pub(crate) fn last_or_now(&self, thing: Thing, now: u64) -> Result<u64, kv::Error> {
        let last = self.last(thing)?;
        if last.is_none() {
            self.touch(thing, now);
        }
        Ok(last.unwrap_or(now))
    }

    /// Forgets something that is gone.
    pub(crate) fn forget(&self, thing: Thing) -> Result<(), kv::Error> {
        self.recent.lock().remove(&thing);
        self.table.remove(&thing.key())
    }

    /// Forgets secrets that are gone. Those that are `there` stay.
    pub(crate) fn forget_secrets(&self, there: impl Fn(SecretId) -> bool) -> Result<(), kv::Error> {
        for pair in self.table.prefix(&[SECRET]) {
            let (key, _) = pair?;
            let id = key.get(1..).and_then(|bits| Some(SecretId::from_random(u128::from_le_bytes(bits.try_into().ok()?))));
            match id {
                Some(id) if there(id) => {}
                Some(id) => self.forget(Thing::Secret(id))?,
                None => self.table.remove(&key)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_use_on_any_node_counts() {
        assert_eq!(latest([vec![Some(5), None, Some(1)], vec![], vec![Some(3), None, Some(8)]]), [Some(5), None, Some(8)]);
        assert_eq!(latest([]), []);
    }

    #[test]
    fn the_last_use_is_kept_over_a_restart_and_what_was_never_seen_is_used_now() {
        let dir = tempfile::tempdir().unwrap();
        let (image, layer) = (Thing::Image(ImageId::from_random(1)), Thing::Layer(Digest::of(b"1")));
        let kv = Kv::open(dir.path()).unwrap();
        let uses = Uses::open(&kv).unwrap();
        uses.touch(image, 1000);
        uses.touch(image, 1000 + EXACT_SECONDS - 1);
        assert_eq!(uses.last(image).unwrap(), Some(1000), "soon after: not written");
        uses.touch(image, 1000 + EXACT_SECONDS);
        assert_eq!(uses.last_or_now(layer, 5000).unwrap(), 5000);
        kv.sync().unwrap();
        drop((uses, kv));
        let uses = Uses::open(&Kv::open(dir.path()).unwrap()).unwrap();
        assert_eq!(uses.last(image).unwrap(), Some(1000 + EXACT_SECONDS));
        assert_eq!(uses.last_or_now(layer, 9000).unwrap(), 5000, "once looked at, its time counts");
        uses.forget(layer).unwrap();
        assert_eq!(uses.last(layer).unwrap(), None);
    }

    #[test]
    fn what_was_noted_is_on_the_disk_after_a_sync_and_secrets_are_forgotten_when_they_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let [kept, gone] = [1, 2].map(SecretId::from_random);
        let kv = Kv::open(dir.path()).unwrap();
        let uses = Uses::open(&kv).unwrap();
        [kept, gone].iter().for_each(|id| uses.touch(Thing::Secret(*id), 1000));
        uses.touch(Thing::Image(ImageId::from_random(2)), 1000);
        uses.sync().unwrap();
        // The files as they are now are what a process that is killed leaves behind.
        let killed = tempfile::tempdir().unwrap();
        for name in ["conf", "db", "READY"] {
            std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
        }
        let uses = Uses::open(&Kv::open(killed.path()).unwrap()).unwrap();
        uses.forget_secrets(|id| id == kept).unwrap();
        let last = |thing| uses.last(thing).unwrap();
        assert_eq!((last(Thing::Secret(kept)), last(Thing::Secret(gone))), (Some(1000), None));
        assert_eq!(last(Thing::Image(ImageId::from_random(2))), Some(1000), "another kind with the same number");
    }
}
