//! What this node's disk holds, and for how long: logs, chunks, what is only kept because it may be used again.
//!
//! | module | holds |
//! |---|---|
//! | `uses` | when things were last used |
//! | `named` | what the state names of the chunk store |
//! | `gc` | collecting: forgetting what was not used for long, deleting what nothing names |
//! | `check` | proving that everything is whole |
//! | `offline` | the same of a node that does not run |
//!
//! The loop here only asks the clock: old lines of logs are dropped every minute, and the chunk store is collected once a day,
//! and sooner when it takes more of the disk than its budget.
//!
//! What containers write into their own roots has a budget too, which the engine keeps (`room::overlays_budget`): it is pinned for
//! as long as a container runs, and gone with it, so containers end where other things are forgotten.
//!
//! Caveats: uses are known to the node on which they happen.

pub(crate) mod check;
pub(crate) mod gc;
mod named;
pub(crate) mod offline;
pub(crate) mod uses;

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_state::{Digest, SecretId};
use shoal_storage::keep::{Looked, Promises};
use shoal_storage::kv::{self, Kv};
use shoal_storage::store::Store;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Error, blocking};
use crate::copies::Copies;
pub(crate) use named::Named;
pub(crate) use uses::{Thing, Uses, last_anywhere};

/// Why something about the disk could not be found out.
pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long the structure of a tree that is on other nodes is waited for.
const STRUCTURE_WAIT: Duration = Duration::from_secs(60);

/// How often is looked for what is too old or too much.
const EVERY: Duration = Duration::from_secs(60);
/// How long chunks that nothing names may lie there, with room for them, until they are deleted.
const COLLECT_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How long after a collection that could not bring the store below its budget the next is tried.
const PATIENCE: Duration = Duration::from_secs(3600);
/// Without a budget of its own the chunk store may fill the disk up to this, in percent.
const DISK_PERCENT: u64 = 80;

/// What keeps the disk in order. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Upkeep {
    /// When things were last used.
    pub(crate) uses: Uses,
    /// Promises that what is about to be named stays.
    promises: Promises,
    /// Makes copies of it.
    copies: Copies,
    /// Held by the one who collects.
    collecting: Arc<tokio::sync::Mutex<()>>,
}

impl Upkeep {
    /// Keeps `store` in order, with a table of `kv`.
    pub(crate) fn open(store: Store, kv: &Kv, copies: Copies) -> Result<Self, kv::Error> {
        Ok(Self { uses: Uses::open(kv)?, promises: Promises::new(store), copies, collecting: Arc::default() })
    }

    /// Notes that a container is about to start with these secrets.
    pub(crate) fn secrets_used(&self, ids: &[SecretId], now_seconds: u64) {
        ids.iter().for_each(|id| self.uses.touch(Thing::Secret(*id), now_seconds));
    }

    /// Makes sure that a tree is whole, stays, and is on as many nodes as can be, before the state names it.
    pub(crate) async fn promise(&self, tree: Digest) -> Result<(), Error> {
        let looked = self.look(tree).await?;
        let mut absent = looked.structure.clone();
        if absent.is_empty() {
            absent = self.copies.make(&looked.found, &looked.missing.iter().copied().collect()).await.absent;
            if !absent.is_empty() {
                // Some node may have them that is not to keep them.
                self.copies.chunks().bring(absent.clone()).await;
                let store = self.copies.chunks().store().clone();
                let again = absent.clone();
                let missing = blocking(move || store.missing(&again)).await.map_err(Error::failed("cannot look for chunks"))?;
                absent = self.copies.make(&absent, &missing.into_iter().collect()).await.absent;
            }
        }
        match absent.first() {
            None => {
                self.promises.remember(&looked);
                Ok(())
            }
            Some(first) => Err(Error::Unavailable(format!(
                "{} chunks of tree {tree} are gone ({first} among them): they were not used for long, and deleted while this was made, or are on nodes that do not answer; try again",
                absent.len()
            ))),
        }
    }

    /// Looks through a tree whose structure is here afterwards, as far as it can be had, and promises what is here of it.
    async fn look(&self, tree: Digest) -> Result<Looked, Error> {
        let deadline = Instant::now() + STRUCTURE_WAIT;
        let mut known = Vec::new();
        loop {
            let promises = self.promises.clone();
            let looked = blocking(move || promises.look(&tree)).await;
            let looked = looked.map_err(Error::failed(format!("cannot make sure that tree {tree} stays")))?;
            if looked.structure.is_empty() || looked.structure == known || Instant::now() >= deadline {
                return Ok(looked);
            }
            self.copies.chunks().bring(looked.structure.clone()).await;
            known = looked.structure;
        }
    }
}

/// Returns how much the chunk store may take of the disk, in bytes.
pub(crate) fn budget_bytes(api: &Api) -> Result<u64, Error> {
    let configured = api.config.disk.chunks_bytes;
    if configured > 0 {
        return Ok(configured);
    }
    let dir = &api.config.data;
    let disk = rustix::fs::statvfs(dir).map_err(Error::failed(format!("cannot look at the disk under {}", dir.display())))?;
    let own = api.store.disk_bytes().map_err(Error::failed("cannot measure the chunk store"))?;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    Ok(automatic_budget(own, used * disk.f_frsize, (used + disk.f_bavail) * disk.f_frsize))
}

/// What others leave of [`DISK_PERCENT`] of the disk.
fn automatic_budget(own_bytes: u64, used_bytes: u64, disk_bytes: u64) -> u64 {
    let others = used_bytes.saturating_sub(own_bytes);
    (disk_bytes / 100 * DISK_PERCENT).saturating_sub(others)
}

/// Looks until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    // Of this process: a node that comes up over its budget collects at once, others a day later.
    let (started, mut collected) = (Instant::now(), None::<Instant>);
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => break,
        }
        let (logs, now_ns) = (api.logs.clone(), api.now().0.saturating_mul(1_000_000));
        if let Err(error) = blocking(move || logs.tidy(now_ns)).await {
            tracing::warn!(%error, "cannot drop old lines of logs");
        }
        sync_uses(&api).await;
        let patient = collected.is_none_or(|last| last.elapsed() >= PATIENCE.min(api.store.keep()));
        if collected.unwrap_or(started).elapsed() >= COLLECT_EVERY || (patient && is_over(&api)) {
            collected = Some(Instant::now());
            let done = match budget_bytes(&api) {
                Ok(budget) => gc::collect(&api, budget, false).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(done) if done.disk_bytes > done.budget_bytes => tracing::warn!(
                    disk_bytes = done.disk_bytes,
                    budget_bytes = done.budget_bytes,
                    "the chunk store takes more than its budget, and all of it is needed or was used lately"
                ),
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "cannot collect what nothing needs"),
            }
        }
    }
    sync_uses(&api).await;
}

async fn sync_uses(api: &Api) {
    let uses = api.upkeep.uses.clone();
    if let Err(error) = blocking(move || uses.sync()).await {
        tracing::warn!(%error, "cannot bring to the disk when things were last used");
    }
}

fn is_over(api: &Api) -> bool {
    let (Ok(budget), Ok(taken)) = (budget_bytes(api), api.store.disk_bytes()) else { return false };
    taken > budget
}

#[cfg(test)]
mod tests {
    use super::automatic_budget;

    #[test]
    fn without_a_budget_the_store_leaves_a_fifth_of_the_disk_free() {
        assert_eq!(automatic_budget(10, 30, 100), 60, "others have 20 of the 80");
        assert_eq!(automatic_budget(10, 95, 100), 0, "others have more than that");
        assert_eq!(automatic_budget(0, 0, 1000), 800);
    }
}
