//! The folders of an engine, and who may have them.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::mount::MountFlags;

use crate::{Error, Result};

pub(crate) fn root_of(run_dir: &Path) -> PathBuf {
    run_dir.join("runsc")
}

pub(super) fn bundles_of(run_dir: &Path) -> PathBuf {
    run_dir.join("bundles")
}

/// The number by which the kernel names a filesystem in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Makes sure that what is written in a folder never reaches a disk, as it does where /run is an ordinary folder:
/// descriptions of containers, and what runsc notes of them, hold environments, and those hold secrets.
pub(super) fn keep_in_memory(folder: &Path) -> Result<()> {
    make_dir(folder)?;
    let found = rustix::fs::statfs(folder).map_err(|errno| Error::file("look at", folder)(errno.into()))?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("shoal-run", folder, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(|errno| Error::file("mount a filesystem in memory at", folder)(errno.into()))
}

/// Makes a folder and returns its path without symbolic links.
pub(super) fn make_dir(path: &Path) -> Result<PathBuf> {
    let made = match fs::create_dir_all(path) {
        // Another engine that closes has just removed the folder that both shared.
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
        made => made,
    };
    made.map_err(Error::file("create", path))?;
    path.canonicalize().map_err(Error::file("find", path))
}

pub(crate) fn take_lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("lock");
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: state_dir.into() }),
        Err(fs::TryLockError::Error(source)) => Err(Error::file("lock", &path)(source)),
    }
}
