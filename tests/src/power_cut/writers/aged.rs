//! A chunk store whose clock is ours: what is promised ends when a writer says so.

use std::sync::atomic::{AtomicU64, Ordering};

use shoal_storage::store::Options;

/// Longer than any promise, in seconds.
pub(super) const PROMISES_END: u64 = 26 * 60 * 60;

/// The clock of the store, in seconds.
pub(super) static NOW: AtomicU64 = AtomicU64::new(1_000_000);

/// How it is kept: its packs are small, so that there are many.
pub(super) fn options() -> Options {
    let clock = || NOW.load(Ordering::Relaxed);
    Options { pack_bytes: 200 << 10, clock, disk_used_percent: |_| Ok(0), ..Options::default() }
}
