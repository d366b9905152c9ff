//! A disk that is really full: a small tmpfs. Skipped where mounting is not allowed.

use std::path::Path;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use shoal_storage::log::{self, Log, Position};
use shoal_storage::store::{self, Store};

/// A small disk, unmounted at the end.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self(dir)),
            Err(errno) => {
                eprintln!("skipped: mounting a tmpfs is not allowed here: {errno}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).expect("it was mounted");
    }
}

#[test]
fn a_log_goes_on_when_a_full_disk_has_space_again() {
    let Some(disk) = Disk::new("2m") else { return };
    let options = log::Options { segment_bytes: 256 << 10 };
    let log = Log::open(disk.path(), options).unwrap();
    let mut positions = Vec::new();
    let refused = loop {
        match log.append(&[&[7; 10_000]]) {
            Ok(new) => positions.extend(new),
            Err(error) => break error,
        }
    };
    assert!(refused.is_full(), "{refused}");
    assert!(refused.to_string().contains("set space aside for"), "{refused}");
    log.sync().unwrap();
    assert_eq!(log.scan(Position::START).filter(|record| record.is_ok()).count(), positions.len());
    log.release_before(positions[positions.len() / 2]).unwrap();
    let new = log.append(&[b"there is space again"]).unwrap()[0];
    log.sync().unwrap();
    drop(log);
    let log = Log::open(disk.path(), options).unwrap();
    assert_eq!(log.read(new).unwrap(), "there is space again");
}

#[test]
fn a_store_says_that_the_disk_is_full_and_keeps_what_it_has() {
    let Some(disk) = Disk::new("24m") else { return };
    // The check before a put sees nothing here: the write itself fails.
    let options = store::Options { disk_used_percent: |_| Ok(0), ..store::Options::default() };
    let store = Store::open(&disk.path().join("store"), options).unwrap();
    let digest = store.put(b"first").unwrap();
    store.sync().unwrap();
    let mut chunk = vec![0; 1 << 20];
    let refused = (0u32..64).find_map(|number| {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut chunk);
        store.put(&chunk).err()
    });
    let refused = refused.expect("the disk has 24 MiB");
    assert!(matches!(refused, store::Error::Full { .. }), "{refused}");
    assert_eq!(store.get(&digest).unwrap(), "first");
}

#[test]
fn a_store_stops_before_the_disk_is_full() {
    let Some(disk) = Disk::new("24m") else { return };
    let store = Store::open(&disk.path().join("store"), store::Options::default()).unwrap();
    let mut chunk = vec![0; 1 << 20];
    let mut stored = Vec::new();
    let refused = (0u32..64).find_map(|number| {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut chunk);
        store.put(&chunk).map(|digest| stored.push(digest)).err()
    });
    assert!(matches!(refused, Some(store::Error::Full { limit_percent: 90, .. })), "{refused:?}");
    store.sync().unwrap();
    drop(store);
    let store = Store::open(&disk.path().join("store"), store::Options::default()).unwrap();
    assert_eq!(store.missing(&stored).unwrap(), []);
}
