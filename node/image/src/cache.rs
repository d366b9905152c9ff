//! What is remembered of builds: the tree and config after a step, by the step's key.
//!
//! The node keeps these records in the replicated state, so that a step built anywhere is known everywhere. A lost
//! record costs a rebuild and nothing else.

use std::collections::HashMap;
use std::error::Error as StdError;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::Digest;
use shoal_storage::kv;

use crate::config::ImageConfig;

/// What a step led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// The whole tree after the step.
    pub manifest: Digest,
    /// The config after the step.
    pub config: ImageConfig,
}

/// Why a cache failed.
pub type CacheError = Box<dyn StdError + Send + Sync>;

/// Remembers steps.
///
/// When `put` is called the tree is durable on this node; the implementation sees to further copies.
pub trait Cache: Send + Sync {
    /// Returns what the step led to, when it is known.
    fn get(&self, key: Digest) -> BoxFuture<'_, Result<Option<LayerRecord>, CacheError>>;

    /// Remembers a step, in place of what was known.
    fn put(&self, key: Digest, record: LayerRecord) -> BoxFuture<'_, Result<(), CacheError>>;
}

/// A cache that forgets when the process ends.
#[derive(Debug, Default)]
pub struct MemoryCache {
    records: Mutex<HashMap<Digest, LayerRecord>>,
}

impl MemoryCache {
    /// Returns how many steps are known.
    pub fn len(&self) -> usize {
        self.records.lock().len()
    }

    /// Says if none is.
    pub fn is_empty(&self) -> bool {
        self.records.lock().is_empty()
    }
}

impl Cache for MemoryCache {
    fn get(&self, key: Digest) -> BoxFuture<'_, Result<Option<LayerRecord>, CacheError>> {
        let record = self.records.lock().get(&key).cloned();
        Box::pin(async move { Ok(record) })
    }

    fn put(&self, key: Digest, record: LayerRecord) -> BoxFuture<'_, Result<(), CacheError>> {
        self.records.lock().insert(key, record);
        Box::pin(async { Ok(()) })
    }
}

/// A cache in a table of this node.
#[derive(Debug, Clone)]
pub struct KvCache {
    table: kv::Tree,
}

impl KvCache {
    /// Takes a table that nothing else uses.
    pub fn new(table: kv::Tree) -> KvCache {
        KvCache { table }
    }
}

impl Cache for KvCache {
    fn get(&self, key: Digest) -> BoxFuture<'_, Result<Option<LayerRecord>, CacheError>> {
        Box::pin(async move {
            let Some(bytes) = self.table.get(key.as_bytes())? else { return Ok(None) };
            // A record of another version is as good as none.
            Ok(serde_json::from_slice(&bytes).ok())
        })
    }

    fn put(&self, key: Digest, record: LayerRecord) -> BoxFuture<'_, Result<(), CacheError>> {
        Box::pin(async move {
            self.table.insert(key.as_bytes(), &serde_json::to_vec(&record)?)?;
            let kv = self.table.kv().clone();
            tokio::task::spawn_blocking(move || kv.sync()).await??;
            Ok(())
        })
    }
}

/// Lets one task at a time work on a key.
#[derive(Debug, Default)]
pub(crate) struct KeyLocks {
    locks: Mutex<HashMap<Digest, std::sync::Weak<tokio::sync::Mutex<()>>>>,
}

impl KeyLocks {
    /// Waits for the key. The wait ends when the holder's work does, which has a deadline of its own.
    pub(crate) async fn lock(&self, key: Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock();
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&key).and_then(std::sync::Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = std::sync::Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(key, std::sync::Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
