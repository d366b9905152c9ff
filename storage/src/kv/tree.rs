//! Keys and values: read, walked in order, and changed one by one or together.

use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

use super::{Error, Kv, Result};

/// Values must be shorter than this.
///
/// What sled must never see is a *page* over a quarter of its segments' size: it would go to a file that is never synced. A page
/// is a leaf of up to 17 entries, some more while threads write to it at once.
pub const VALUE_BYTES_MAX: usize = 6 << 10;

/// Keys must be shorter than this: a page of the upper levels holds up to 257 of them.
pub const KEY_BYTES_MAX: usize = 512;

/// Keys and values in key order, within a [`Kv`]. Clones share it.
#[derive(Debug, Clone)]
pub struct Tree {
    tree: sled::Tree,
    kv: Kv,
}

/// A key with its value.
pub type Pair = (Bytes, Bytes);

impl Tree {
    pub(super) fn new(tree: sled::Tree, kv: Kv) -> Self {
        Self { tree, kv }
    }

    /// Returns the value of `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let value = self.tree.get(key).map_err(self.kv.failed("read"))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Sets the value of `key`. It is readable at once, and lasts after [`Kv::sync`].
    pub fn insert(&self, key: &[u8], value: &[u8]) -> Result<()> {
        check(key, value)?;
        self.tree.insert(key, value).map_err(self.kv.failed("write"))?;
        Ok(())
    }

    /// Removes `key`; one that is not there is fine.
    pub fn remove(&self, key: &[u8]) -> Result<()> {
        self.tree.remove(key).map_err(self.kv.failed("write"))?;
        Ok(())
    }

    /// Makes all changes of the batch or, after a crash, none.
    pub fn apply(&self, batch: Batch) -> Result<()> {
        let mut of_sled = sled::Batch::default();
        for (key, change) in batch.changes {
            check(&key, change.as_deref().unwrap_or_default())?;
            match change {
                Some(value) => of_sled.insert(key, value),
                None => of_sled.remove(key),
            }
        }
        self.tree.apply_batch(of_sled).map_err(self.kv.failed("write"))
    }

    /// Walks the keys of a range in order; `.rev()` walks backwards.
    pub fn range<'k>(&self, keys: impl RangeBounds<&'k [u8]>) -> Pairs {
        let owned = |bound: Bound<&&[u8]>| bound.map(|key| key.to_vec());
        let keys = (owned(keys.start_bound()), owned(keys.end_bound()));
        self.pairs(self.tree.range(keys))
    }

    /// Walks the keys that begin with `prefix`, in order.
    pub fn prefix(&self, prefix: &[u8]) -> Pairs {
        self.pairs(self.tree.scan_prefix(prefix))
    }

    /// Returns the database this tree is part of.
    pub fn kv(&self) -> &Kv {
        &self.kv
    }

    fn pairs(&self, iter: sled::Iter) -> Pairs {
        Pairs { iter, kv: self.kv.clone() }
    }
}

/// Walks keys with their values in key order, or backwards.
pub struct Pairs {
    iter: sled::Iter,
    kv: Kv,
}

impl Pairs {
    fn owned(&self, pair: sled::Result<(sled::IVec, sled::IVec)>) -> Result<Pair> {
        let (key, value) = pair.map_err(self.kv.failed("read"))?;
        Ok((Bytes::copy_from_slice(&key), Bytes::copy_from_slice(&value)))
    }
}

impl Iterator for Pairs {
    type Item = Result<Pair>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.iter.next()?;
        Some(self.owned(pair))
    }
}

impl DoubleEndedIterator for Pairs {
    fn next_back(&mut self) -> Option<Self::Item> {
        let pair = self.iter.next_back()?;
        Some(self.owned(pair))
    }
}

impl std::fmt::Debug for Pairs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pairs").finish_non_exhaustive()
    }
}

fn check(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() < KEY_BYTES_MAX && value.len() < VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Error::TooBig { key_bytes: key.len(), value_bytes: value.len() })
}

/// Changes to one [`Tree`] that are made together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Batch {
    /// Adds "set `key` to `value`". Sizes are checked when the batch is applied.
    pub fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), Some(value.into())));
    }

    /// Adds "remove `key`".
    pub fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.changes.push((key.into(), None));
    }

    /// Says whether the batch changes nothing.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Returns how many changes the batch makes.
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}
