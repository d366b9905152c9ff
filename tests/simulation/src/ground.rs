//! What the calls of a node stand on here: virtual time, and a disk that forgets what was not synced when its machine restarts.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_calls::calls::Ground;
use shoal_storage::log::{self, Log, Position};

use crate::dice::Dice;
use crate::time::{Inbox, Owner, Time};

/// When worlds begin, in milliseconds since 1970.
pub const BEGAN_MS: u64 = 1_800_000_000_000;

#[derive(Debug)]
struct Disk {
    dice: Dice,
    log: Option<Log>,
    /// It says that it has synced what it has not.
    lies: bool,
}

/// The ground of one start of a node. Clones are the same.
#[derive(Debug, Clone)]
pub struct Played {
    time: Time,
    inbox: Inbox,
    owner: Owner,
    disk: Arc<Mutex<Disk>>,
}

impl Played {
    /// Begins with a disk that has nothing to sync.
    pub fn new(time: Time, inbox: Inbox, owner: Owner, dice: Dice, lies: bool) -> Self {
        Self { time, inbox, owner, disk: Arc::new(Mutex::new(Disk { dice, log: None, lies })) }
    }

    /// The node has ended: lets its log go, and returns up to where it is on the disk.
    pub fn end(&self) -> Option<Position> {
        let log = self.disk.lock().log.take();
        log.map(|log| log.synced())
    }
}

impl Ground for Played {
    fn now(&self) -> Instant {
        self.time.instant()
    }

    fn wall_ms(&self) -> u64 {
        BEGAN_MS + u64::try_from(self.time.now().as_millis()).unwrap_or(0)
    }

    fn sleep_until(&self, at: Instant) -> BoxFuture<'static, ()> {
        Box::pin(self.time.sleep_until(at))
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inbox.leave(self.owner, task);
    }

    fn sync(&self, log: &Log) -> BoxFuture<'static, log::Result<()>> {
        let mut disk = self.disk.lock();
        disk.log = Some(log.clone());
        let takes = if disk.dice.one_in(15) { disk.dice.from(10_000, 300_000) } else { disk.dice.from(200, 4_000) };
        let (wait, log, lies) = (self.time.sleep(Duration::from_micros(takes)), log.clone(), disk.lies);
        Box::pin(async move {
            wait.await;
            if lies { Ok(()) } else { log.sync() }
        })
    }
}

/// A machine has restarted: of what was not synced some or all is lost, from the end.
pub fn forget(dir: &Path, synced: Option<Position>, dice: &mut Dice) {
    if let Some(synced) = synced {
        let log = Log::open(dir, log::Options { segment_bytes: crate::node::SEGMENT_BYTES }).expect("the log opens");
        let loose: Vec<Position> =
            log.scan(synced).map(|record| record.expect("it can be read").0).filter(|position| *position >= synced).collect();
        if let Some(from) = dice.pick(&loose) {
            log.truncate(from).expect("its end is cut");
        }
    }
    // The folder knows another start of the machine than this one.
    std::fs::write(dir.with_extension("boot"), "another start").expect("the note is written");
}
