//! Making and ending mounts.
//!
//! The mount is made here and not by `fuser`, so that it can be ended by force, by its own number, and without a busy
//! file holding it up.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{Error, Result};

/// The type that mounts of this crate show, by which leftovers are known.
const FS_TYPE: &str = "fuse.shoal";

/// Where the kernel lists FUSE connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// How far the kernel reads ahead, in KiB: as far as one chunk.
const READ_AHEAD_KB: u32 = 1024;

/// How many mounts upon each other are taken for leftovers. More than that is somebody's doing.
const LEFTOVERS_MAX: usize = 64;

/// A mount that is there until it is ended.
#[derive(Debug)]
pub(crate) struct Mounted {
    pub(crate) mountpoint: PathBuf,
}

/// The kernel's number of a FUSE connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    device: u64,
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(rustix::io::Errno) -> Error + 'a {
    move |errno| Error::Mount { action, path: path.to_owned(), source: errno.into() }
}

/// Makes the mount point if it is missing, takes leftovers off it, and mounts. The kernel then waits for a server at
/// the returned descriptor.
pub(crate) fn mount(mountpoint: &Path) -> Result<(Mounted, OwnedFd)> {
    let mountpoint = absolute(mountpoint)?;
    unmount_at(&mountpoint)?;
    fs::create_dir_all(&mountpoint).map_err(|source| fail("make the mount point", &mountpoint, source))?;
    let device = Path::new("/dev/fuse");
    let file = OpenOptions::new().read(true).write(true).open(device).map_err(|source| fail("open", device, source))?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other", file.as_raw_fd());
    let options = std::ffi::CString::new(options).expect("options have no NUL");
    rustix::mount::mount("shoal", &mountpoint, FS_TYPE, MountFlags::RDONLY, options.as_c_str())
        .map_err(failed("mount trees at", &mountpoint))?;
    Ok((Mounted { mountpoint }, file.into()))
}

fn fail(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Mount { action, path: path.to_owned(), source }
}

/// Returns the path without links. Only what is above the mount point is looked at: a dead mount answers nothing.
fn absolute(mountpoint: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(mountpoint).map_err(|source| fail("find", mountpoint, source))?;
    let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else { return Ok(whole) };
    fs::create_dir_all(parent).map_err(|source| fail("make the folder of the mount point", parent, source))?;
    let parent = parent.canonicalize().map_err(|source| fail("find", parent, source))?;
    Ok(parent.join(name))
}

/// Takes off what a process that is there no more left mounted at a mount point of trees, and says how many mounts it were.
///
/// # Errors
/// When the kernel does not take one off.
pub fn unmount_leftovers(mountpoint: &Path) -> Result<usize> {
    match mountpoint.parent() {
        Some(parent) if parent.exists() => unmount_at(&absolute(mountpoint)?),
        _ => Ok(0),
    }
}

fn unmount_at(mountpoint: &Path) -> Result<usize> {
    let list = Path::new("/proc/self/mountinfo");
    let mounts = fs::read(list).map_err(|source| fail("read", list, source))?;
    let leftovers = mounts.split(|byte| *byte == b'\n').filter(|line| is_leftover(line, mountpoint)).count();
    for _ in 0..leftovers.min(LEFTOVERS_MAX) {
        tracing::info!(mountpoint = %mountpoint.display(), "a former process left a mount; it is taken off");
        detach(mountpoint)?;
    }
    Ok(leftovers.min(LEFTOVERS_MAX))
}

/// Reads a line of mountinfo: `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [OPTIONAL]... - TYPE SOURCE OPTIONS`.
fn is_leftover(line: &[u8], mountpoint: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let mut fields = line.split(|byte| *byte == b' ');
    let at = fields.nth(4).map(unescape);
    let kind = fields.skip_while(|field| *field != b"-").nth(1);
    at.as_deref() == Some(mountpoint.as_os_str().as_bytes()) && kind == Some(FS_TYPE.as_bytes())
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Takes a mount out of the folder tree at once. It lives on for those who have files of it open.
fn detach(mountpoint: &Path) -> Result<()> {
    rustix::mount::unmount(mountpoint, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed("unmount", mountpoint))
}

impl Mounted {
    /// Returns the number of the connection. A server must be answering.
    pub(crate) fn connection(&self) -> Result<Connection> {
        let found = fs::metadata(&self.mountpoint).map_err(|source| fail("look at", &self.mountpoint, source))?;
        Ok(Connection { device: found.dev() })
    }

    /// Ends the mount: nobody finds it any more, and whoever has files of it open gets errors.
    pub(crate) fn end(&self) -> Result<()> {
        let flags = UnmountFlags::DETACH | UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
        rustix::mount::unmount(&self.mountpoint, flags).map_err(failed("unmount", &self.mountpoint))
    }
}

impl Connection {
    /// Lets the kernel read ahead as far as one chunk, so that requests are long. Where this is not allowed, reads are
    /// only slower.
    pub(crate) fn raise_read_ahead(self) {
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(self.device), minor(self.device));
        if let Err(error) = fs::write(&path, READ_AHEAD_KB.to_string()) {
            tracing::warn!(path, %error, "read-ahead stays short");
        }
    }

    /// Fails all requests that are on their way and all that would come: the last resort when a server hangs. A process
    /// that waits for one can be killed again.
    pub(crate) fn abort(self) -> Result<()> {
        let dir = Path::new(CONNECTIONS);
        let abort = dir.join(minor(self.device).to_string()).join("abort");
        if !abort.exists() {
            rustix::mount::mount("none", dir, "fusectl", MountFlags::empty(), None).map_err(failed("mount fusectl at", dir))?;
        }
        fs::write(&abort, "1").map_err(|source| fail("abort the connection by", &abort, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_known_by_place_and_type() {
        let line = br"36 35 0:98 / /mnt/a\040b\134c ro,nosuid shared:1 master:2 - fuse.shoal shoal ro,user_id=0";
        assert!(is_leftover(line, Path::new(r"/mnt/a b\c")));
        assert!(!is_leftover(line, Path::new("/mnt/a")));
        let other = br"36 35 0:98 / /mnt/x rw - ext4 /dev/vda rw";
        assert!(!is_leftover(other, Path::new("/mnt/x")) && !is_leftover(b"", Path::new("")));
    }
}
