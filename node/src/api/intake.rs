//! How much of what clients put may be in this node's memory on its way to the disk.
//!
//! A request with inputs is read whole before it is written to the log, and may hold a hundred mebibytes; clients that map over large
//! inputs send many of them. What is beyond the bound waits a little, and is then refused as too much at once: clients wait and
//! send it again, as they do when too many inputs of a function wait.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;

/// How many bytes of inputs are on their way at once, in KiB. One request is always let in.
const ON_THEIR_WAY_KIB_MAX: u32 = 512 << 10;

/// How long a request waits for those before it.
const WAIT: Duration = Duration::from_secs(10);

/// Lets requests with inputs in; clones share the bound.
#[derive(Clone, Debug)]
pub(crate) struct Intake {
    room: Arc<Semaphore>,
    kib_max: u32,
    wait: Duration,
}

impl Default for Intake {
    fn default() -> Self {
        Self::new(ON_THEIR_WAY_KIB_MAX, WAIT)
    }
}

impl Intake {
    fn new(kib_max: u32, wait: Duration) -> Self {
        Self { room: Arc::new(Semaphore::new(kib_max as usize)), kib_max, wait }
    }

    /// Waits until there is room for so many bytes of inputs. There is none for others until what is returned is dropped.
    pub(crate) async fn enter(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.kib_max);
        let room = self.room.clone().acquire_many_owned(kib);
        match tokio::time::timeout(self.wait, room).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(Error::Exhausted(format!(
                "cannot take {bytes} bytes of inputs: {} MiB of inputs are on their way to this node's disk already, and it did not \
                 get through them in {:?}; send them again later, or fewer at once",
                self.kib_max >> 10,
                self.wait
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_too_much_at_once_is_refused_and_let_in_later() {
        let intake = Intake::new(2048, Duration::from_millis(5));
        let first = intake.enter(1 << 20).await.unwrap();
        let second = intake.enter(1000 << 10).await.unwrap();
        let refused = intake.enter(100 << 10).await.unwrap_err();
        assert!(matches!(&refused, Error::Exhausted(why) if why.contains("2 MiB")), "{refused}");
        drop(second);
        drop(intake.enter(100 << 10).await.unwrap());
        drop(first);
        // Larger than all: it is let in alone.
        let all = intake.enter(1 << 30).await.unwrap();
        assert!(intake.enter(1).await.is_err());
        drop(all);
        assert!(intake.enter(0).await.is_ok());
    }
}
