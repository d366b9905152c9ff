//! What calls stand on: time, the disk's syncs, and somebody who runs what goes on beside. A node has its [`Machine`]; where time,
//! network and disks are played, so is this.

use std::fmt::Debug;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::future::{BoxFuture, Either, select};
use shoal_storage::log::{self, Log};

use super::model::Millis;

/// Gives calls their time, and what takes time.
pub trait Ground: Debug + Send + Sync + 'static {
    /// Returns the time, which only grows.
    fn now(&self) -> Instant;

    /// Returns the time in milliseconds since 1970. It is asked for once, and counted on by [`Self::now`].
    fn wall_ms(&self) -> Millis;

    /// Waits until then.
    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()>;

    /// Runs something beside.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Begins a sync of a log, and waits until what was written before is on the disk.
    fn sync(&self, log: &Log) -> BoxFuture<'static, log::Result<()>>;
}

/// The time of the machine, its disks, and the runtime that this is called in.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine;

impl Ground for Machine {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wall_ms(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(0)
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn sync(&self, log: &Log) -> BoxFuture<'static, log::Result<()>> {
        Box::pin(log.sync_async())
    }
}

impl dyn Ground {
    /// Waits for so long.
    pub(crate) fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        self.sleep_until(self.now() + wait)
    }

    /// Waits for something, up to `wait`; none if it did not come.
    pub(crate) async fn within<F: Future>(&self, wait: Duration, what: F) -> Option<F::Output> {
        let late = self.sleep(wait);
        match select(pin!(what), late).await {
            Either::Left((found, _)) => Some(found),
            Either::Right(_) => None,
        }
    }
}
