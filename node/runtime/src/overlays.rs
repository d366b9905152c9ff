//! The disks of containers, all together.
//!
//! What a container changes in its root lies in a file without a name that only its sandbox has open
//! ([`Overlay::Disk`](crate::Overlay)), so its size is read where the kernel shows a process's files. While all of them together are over
//! their budget, the container that takes the most is ended: that gives the most space back, at once, and leaves those alone
//! that write little.
//!
//! Caveat: a container that writes faster than [`FASTEST_BYTES`] a second gets past the budget by what it writes until the
//! next look.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::mpsc::WeakSender, task::JoinHandle};

use crate::{ContainerId, OverDisk, blocking, container::Order};

/// How much containers are taken to write in a second at most, in bytes: it says when to look again.
const FASTEST_BYTES: u64 = 2 << 30;
/// The longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The shortest: a look costs some microseconds for each container.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The unit in which the kernel counts what a file takes of the disk, in bytes.
const BLOCK_BYTES: u64 = 512;

/// Says how much containers may take together, in bytes, given how much they take.
pub(crate) type Budget = Arc<dyn Fn(u64) -> io::Result<u64> + Send + Sync>;

/// What containers take of the disk together, and how much they may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Disks {
    /// What they take, in bytes.
    pub taken_bytes: u64,
    /// How much they may take, in bytes; `None` while nothing bounds them.
    pub budget_bytes: Option<u64>,
}

/// The overlays of an engine's containers.
#[derive(Default)]
pub(crate) struct Overlays {
    watched: Mutex<BTreeMap<ContainerId, Watched>>,
    seen: Mutex<Disks>,
    watching: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Overlays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overlays").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// One container.
#[derive(Clone)]
struct Watched {
    sandbox: i32,
    /// Where its overlay was found the last time.
    place: Option<Place>,
    /// How to end it. Weak: whoever watches a container does not keep it.
    orders: WeakSender<Order>,
    /// It was told to end for this.
    is_ending: bool,
}

/// Where the kernel shows an overlay.
#[derive(Clone)]
struct Place {
    path: PathBuf,
    inode: u64,
}

impl Overlays {
    /// Watches a container until [`Self::leave`].
    pub(crate) fn enter(&self, id: ContainerId, sandbox: i32, orders: WeakSender<Order>) {
        self.watched.lock().insert(id, Watched { sandbox, place: None, orders, is_ending: false });
    }

    pub(crate) fn leave(&self, id: ContainerId) {
        self.watched.lock().remove(&id);
    }

    /// What was seen by the last look.
    pub(crate) fn seen(&self) -> Disks {
        *self.seen.lock()
    }

    /// Looks after the containers whose overlays lie in `dir`, until [`Self::close`].
    pub(crate) fn watch(self: &Arc<Self>, dir: PathBuf, budget: Budget) {
        let overlays = Arc::downgrade(self);
        let watching = tokio::spawn(async move {
            while let Some(overlays) = overlays.upgrade() {
                let (dir, budget) = (dir.clone(), budget.clone());
                let pause = blocking(move || overlays.look(&dir, &budget)).await;
                tokio::time::sleep(pause).await;
            }
        });
        if let Some(former) = self.watching.lock().replace(watching) {
            former.abort();
        }
    }

    /// Watches no more.
    pub(crate) fn close(&self) {
        if let Some(watching) = self.watching.lock().take() {
            watching.abort();
        }
    }

    /// Looks once, and ends a container if it must; returns when to look again.
    fn look(&self, dir: &Path, budget: &Budget) -> Duration {
        let disks = self.measure(dir);
        let taken_bytes: u64 = disks.iter().map(|disk| disk.bytes).sum();
        let budget_bytes = match budget(taken_bytes) {
            Ok(budget) => budget,
            Err(error) => {
                tracing::warn!(%error, "cannot find out how much of the disk containers may take");
                return PAUSE_MAX;
            }
        };
        *self.seen.lock() = Disks { taken_bytes, budget_bytes: Some(budget_bytes) };
        if let Some((id, over)) = choose(&disks, budget_bytes) {
            self.end(id, over);
        }
        pause(taken_bytes, budget_bytes)
    }

    /// Measures all overlays. The lock is not held meanwhile: a disk may hang.
    fn measure(&self, dir: &Path) -> Vec<Disk> {
        let mut watched = self.watched.lock().clone();
        let measured: Vec<Disk> = watched.iter_mut().map(|(id, one)| one.measure(*id, dir)).collect();
        let mut now = self.watched.lock();
        for (id, one) in watched {
            if let Some(known) = now.get_mut(&id) {
                known.place = one.place;
            }
        }
        measured
    }

    fn end(&self, id: ContainerId, over: OverDisk) {
        let mut watched = self.watched.lock();
        let Some(one) = watched.get_mut(&id) else { return };
        // A queue that is full is tried again by the next look.
        one.is_ending = one.orders.upgrade().is_some_and(|orders| orders.try_send(Order::Kill(Some(over))).is_ok());
        if one.is_ending {
            tracing::warn!(container = %id, "a container is killed: {over}");
        }
    }
}

impl Watched {
    fn measure(&mut self, id: ContainerId, dir: &Path) -> Disk {
        let known = self.place.as_ref().and_then(|place| fs::metadata(&place.path).ok().filter(|found| found.ino() == place.inode));
        let found = known.or_else(|| {
            let (path, found) = find(self.sandbox, dir)?;
            self.place = Some(Place { path, inode: found.ino() });
            Some(found)
        });
        Disk { id, bytes: found.map_or(0, |found| found.blocks() * BLOCK_BYTES), is_ending: self.is_ending }
    }
}

/// Finds the file in `dir` that a process has open.
fn find(process: i32, dir: &Path) -> Option<(PathBuf, fs::Metadata)> {
    let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let mut paths = files.flatten().map(|file| file.path());
    let path = paths.find(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(dir)))?;
    let found = fs::metadata(&path).ok()?;
    Some((path, found))
}

/// What a container takes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    id: ContainerId,
    bytes: u64,
    is_ending: bool,
}

/// Returns which container must end, and why. What those take that end already is as good as free.
fn choose(disks: &[Disk], budget_bytes: u64) -> Option<(ContainerId, OverDisk)> {
    let staying = || disks.iter().filter(|disk| !disk.is_ending);
    let all_bytes: u64 = staying().map(|disk| disk.bytes).sum();
    let largest = staying().filter(|disk| disk.bytes > 0).max_by_key(|disk| (disk.bytes, disk.id))?;
    let over = OverDisk { own_bytes: largest.bytes, all_bytes, budget_bytes };
    (all_bytes > budget_bytes).then_some((largest.id, over))
}

/// Returns how long nothing can happen: until what is left of the budget could be used up.
fn pause(taken_bytes: u64, budget_bytes: u64) -> Duration {
    let left_bytes = budget_bytes.saturating_sub(taken_bytes);
    Duration::from_millis(left_bytes.saturating_mul(1000) / FASTEST_BYTES).clamp(PAUSE_MIN, PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Tag;

    fn disk(number: u64, bytes: u64) -> Disk {
        Disk { id: ContainerId::new(Tag::of(Path::new("/a")), number), bytes, is_ending: false }
    }

    #[test]
    fn the_container_that_takes_the_most_ends_and_no_more_than_must() {
        let disks = [disk(1, 40), disk(2, 50), disk(3, 20)];
        assert_eq!(choose(&disks, 110), None);
        let over = OverDisk { own_bytes: 50, all_bytes: 110, budget_bytes: 100 };
        assert_eq!(choose(&disks, 100), Some((disks[1].id, over)));
        let ending = [disks[0], Disk { is_ending: true, ..disks[1] }, disks[2]];
        assert_eq!(choose(&ending, 100), None, "one that ends gives its space back");
        assert_eq!(choose(&ending, 59).map(|(id, _)| id), Some(disks[0].id));
        assert_eq!(choose(&[disk(1, 0)], 0), None, "one that has written nothing is not to blame");
        assert_eq!(choose(&[], 0), None);
    }

    #[test]
    fn the_nearer_the_budget_the_sooner_is_looked_again() {
        assert_eq!(pause(0, 100 << 30), PAUSE_MAX);
        assert_eq!(pause(0, FASTEST_BYTES / 4), Duration::from_millis(250));
        assert_eq!([pause(10, 10), pause(20, 10)], [PAUSE_MIN; 2]);
    }

    #[test]
    fn a_file_without_a_name_is_found_with_the_process_that_has_it_open() {
        use std::io::Write;
        let dir = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(find(own, dir.path()).is_none());
        let path = dir.path().join("overlay");
        let mut file = fs::File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all(&[1; 100_000]).unwrap();
        file.sync_all().unwrap();
        // Sparse: only what was written counts.
        file.set_len(1 << 40).unwrap();
        let found = find(own, dir.path()).unwrap().1;
        let taken = found.blocks() * BLOCK_BYTES;
        assert!((100_000..1_000_000).contains(&taken), "{taken}");
    }
}
