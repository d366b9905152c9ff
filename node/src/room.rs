//! Room on the disk: the last of it is for what runs already.
//!
//! A node whose disk is full can neither decide nor record anything. So it looks every second how much is free, and while
//! that is too little it refuses what brings more (new apps, images, files, inputs) with a sentence that says so; what
//! runs may end, and its results are kept. Beside that a file holds a *reserve*: it is given up when the disk is all but
//! full, because others may fill it faster than this node can refuse, and taken back when there is room again.
//!
//! Before that, containers give way: what they write may leave so little that the one which takes the most is ended
//! ([`overlays_budget`]).
//!
//! A database whose writes the disk did not take stays unusable until it is opened anew; [`Room::watch`] ends when it
//! finds one, and the node starts again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use shoal_storage::kv::Kv;
use shoal_storage::store::Store;

use crate::api::Error;

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What must be free for new work, as a part of the disk, in percent …
const FREE_PERCENT: u64 = 5;
/// … but no more than this, in bytes,
const FREE_BYTES_ENOUGH: u64 = 5 << 30;
/// … and no less than this: Raft's log and the records of calls take a segment each at a time.
const FREE_BYTES_LEAST: u64 = 96 << 20;
/// Size of the reserve, in bytes.
const RESERVE_BYTES: u64 = 64 << 20;
/// The reserve is given up when less is free than this, in bytes.
const GIVE_UP_BYTES: u64 = 48 << 20;

/// Below so much, as a part of what must be free for new work, containers have written too much, in percent.
const OVERLAYS_LEAVE_PERCENT: u64 = 50;
/// Containers may always take so much of the disk, as a part of it, in percent …
const OVERLAYS_PERCENT_LEAST: u64 = 5;
/// … but no more than this, in bytes: else they would be ended because others fill it.
const OVERLAYS_BYTES_LEAST: u64 = 1 << 30;

/// Whether there is room. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    data: Arc<Path>,
    /// Why new work is refused, while it is.
    full: Arc<RwLock<Option<String>>>,
}

/// A disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    total: u64,
    free: u64,
}

impl Disk {
    fn under(dir: &Path) -> io::Result<Self> {
        let disk = rustix::fs::statvfs(dir)?;
        Ok(Self { total: disk.f_blocks * disk.f_frsize, free: disk.f_bavail * disk.f_frsize })
    }

    /// Returns how much must be free for new work.
    fn needed(self) -> u64 {
        (self.total / 100 * FREE_PERCENT).clamp(FREE_BYTES_LEAST, FREE_BYTES_ENOUGH)
    }

    /// Returns how much containers may take together that take so much now.
    fn overlays_budget(self, taken_bytes: u64) -> u64 {
        let leave = self.needed() * OVERLAYS_LEAVE_PERCENT / 100;
        let least = (self.total / 100 * OVERLAYS_PERCENT_LEAST).min(OVERLAYS_BYTES_LEAST);
        (taken_bytes + self.free).saturating_sub(leave).max(least)
    }
}

/// Returns how much containers may take of the disk together, in bytes, given how much they take: what the configuration says
/// (0 = it says nothing), or what leaves the last of the disk under `data`.
pub(crate) fn overlays_budget(data: &Path, configured_bytes: u64, taken_bytes: u64) -> io::Result<u64> {
    match configured_bytes {
        0 => Ok(Disk::under(data)?.overlays_budget(taken_bytes)),
        bytes => Ok(bytes),
    }
}

impl Room {
    /// Looks at the disk under a data folder, and sets the reserve aside if there is room for it.
    pub(crate) fn open(data: &Path) -> Self {
        let room = Self { data: data.into(), full: Arc::default() };
        room.look();
        room
    }

    /// A disk with room for everything.
    #[cfg(test)]
    pub(crate) fn plenty() -> Self {
        Self { data: Path::new("/").into(), full: Arc::default() }
    }

    /// Refuses new work while there is no room for it.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.full.read().as_ref() {
            Some(why) => Err(Error::Precondition(why.clone())),
            None => Ok(()),
        }
    }

    /// Looks again and again; returns why this node must start anew, when it must.
    pub(crate) async fn watch(self, kv: Kv, store: Store) -> String {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (room, kv, store) = (self.clone(), kv.clone(), store.clone());
            let looked = tokio::task::spawn_blocking(move || {
                room.look();
                let broken = kv.broken().map(|error| error.to_string());
                broken.or_else(|| store.broken().map(|error| error.to_string()))
            });
            if let Ok(Some(why)) = looked.await {
                return format!("a write did not reach the disk, and what was to be written is not known to be there: {why}");
            }
        }
    }

    fn look(&self) {
        let disk = match Disk::under(&self.data) {
            Ok(disk) => disk,
            Err(error) => {
                tracing::warn!(%error, data = %self.data.display(), "cannot see how full the disk is");
                return;
            }
        };
        let why = (disk.free < disk.needed()).then(|| self.sentence(disk));
        let before = self.full.read().is_some();
        if why.is_some() != before {
            match &why {
                Some(why) => tracing::error!(why, "new work is refused"),
                None => tracing::info!(free_mib = disk.free >> 20, "there is room on the disk again"),
            }
        }
        *self.full.write() = why;
        if let Err(error) = self.keep_reserve(disk) {
            tracing::debug!(%error, "cannot set the reserve aside");
        }
    }

    fn sentence(&self, disk: Disk) -> String {
        format!(
            "the disk under {} has {} MiB left of {} MiB, and this node keeps the last {} MiB for what runs already: free some space (`shoal store gc`, `shoal image rm`) or make the disk larger; this is noticed within a second",
            self.data.display(),
            disk.free >> 20,
            disk.total >> 20,
            disk.needed() >> 20
        )
    }

    fn reserve(&self) -> PathBuf {
        self.data.join("reserve")
    }

    /// Gives the reserve up when the disk is all but full, and takes it back when there is plenty of room.
    fn keep_reserve(&self, disk: Disk) -> io::Result<()> {
        let path = self.reserve();
        let held = fs::metadata(&path).is_ok_and(|found| found.len() == RESERVE_BYTES);
        if held && disk.free < GIVE_UP_BYTES {
            tracing::error!(bytes = RESERVE_BYTES, "the disk is all but full: the reserve is given up");
            return fs::remove_file(&path);
        }
        if !held && disk.free >= disk.needed() + RESERVE_BYTES {
            let file = File::create(&path)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_disk_must_be_free_within_bounds() {
        let needed = |total| Disk { total, free: 0 }.needed();
        assert_eq!(needed(20 << 30), (20u64 << 30) / 100 * 5, "five percent of an ordinary disk");
        assert_eq!(needed(10 << 40), FREE_BYTES_ENOUGH, "a large disk need not be empty");
        assert_eq!(needed(1 << 30), FREE_BYTES_LEAST);
    }

    #[test]
    fn containers_may_fill_the_disk_but_for_its_last_and_are_not_ended_for_what_others_write() {
        let budget = |free, taken| Disk { total: 100 << 30, free }.overlays_budget(taken);
        let leave = FREE_BYTES_ENOUGH / 2;
        assert_eq!(budget(40 << 30, 10 << 30), (50 << 30) - leave, "what is free and what they have");
        assert_eq!(budget(leave, 10 << 30), 10 << 30, "they may keep what they have, and take no more");
        assert!(budget(leave - 1, 10 << 30) < 10 << 30);
        assert_eq!(budget(0, 1000), OVERLAYS_BYTES_LEAST, "others filled it");
        assert_eq!(Disk { total: 10_000, free: 0 }.overlays_budget(0), 500, "a small disk");
        assert!(Disk { total: 100 << 30, free: leave }.needed() > leave, "new work is refused before");
        assert_eq!(overlays_budget(Path::new("/nonexistent"), 7, 1000).unwrap(), 7);
    }

    #[test]
    fn the_reserve_goes_when_it_is_needed_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room { data: dir.path().into(), full: Arc::default() };
        let disk = |free| Disk { total: 1 << 30, free };
        room.keep_reserve(disk(FREE_BYTES_LEAST + RESERVE_BYTES)).unwrap();
        assert_eq!(fs::metadata(room.reserve()).unwrap().len(), RESERVE_BYTES);
        room.keep_reserve(disk(GIVE_UP_BYTES)).unwrap();
        assert!(room.reserve().exists());
        room.keep_reserve(disk(GIVE_UP_BYTES - 1)).unwrap();
        assert!(!room.reserve().exists());
        room.keep_reserve(disk(FREE_BYTES_LEAST)).unwrap();
        assert!(!room.reserve().exists(), "there is no room for it yet");
    }

    #[test]
    fn a_full_disk_is_told_with_the_cure() {
        let room = Room { data: Path::new("/srv/shoal").into(), full: Arc::default() };
        assert!(room.check().is_ok());
        *room.full.write() = Some(room.sentence(Disk { total: 1 << 30, free: 5 << 20 }));
        let said = room.check().unwrap_err().to_string();
        assert!(said.contains("/srv/shoal has 5 MiB left of 1024 MiB") && said.contains("free some space"), "{said}");
    }
}
