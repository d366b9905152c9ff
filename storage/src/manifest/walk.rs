//! A directory of the host as a tree.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{self, PathBuf};

use rustix::io::Errno;

use super::{Entry, Error, Kind, Objects, Path, Result, Tree, Xattrs, put_content};

impl Tree {
    /// Reads a directory of the host with everything in it; the bytes of files are kept as objects.
    ///
    /// Owners, modes, times, extended attributes, devices and hard links are taken as they are; mounts in the directory
    /// are entered. What cannot be read is an error: nothing is left out.
    pub fn from_dir(dir: &path::Path, objects: &impl Objects) -> Result<Tree> {
        let root = dir.canonicalize().map_err(host("find", dir))?;
        let mut walk = Walk { objects, entries: BTreeMap::new(), names: HashMap::new() };
        let mut ahead = vec![(Path::root(), root)];
        while let Some((path, host_path)) = ahead.pop() {
            if walk.entry(&path, &host_path)? {
                let names = names_in(&host_path)?;
                ahead.extend(names.into_iter().rev().map(|name| (path.join(name.as_bytes()), host_path.join(name))));
            }
        }
        Ok(Tree::from_entries(walk.entries).expect("a walk in order finds a tree"))
    }
}

fn host<'a>(action: &'static str, path: &'a path::Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Host { action, path: path.to_owned(), source }
}

/// Returns the names in a directory, in order, so that the walk meets paths in the order of a tree.
fn names_in(dir: &path::Path) -> Result<Vec<OsString>> {
    let names: io::Result<Vec<_>> = fs::read_dir(dir).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    let mut names = names.map_err(host("list", dir))?;
    names.sort();
    Ok(names)
}

struct Walk<'a, O> {
    objects: &'a O,
    entries: BTreeMap<Path, Entry>,
    /// The first name of each file that has several, by device and inode.
    names: HashMap<(u64, u64), Path>,
}

impl<O: Objects> Walk<'_, O> {
    /// Takes one entry in, and says if it is a directory.
    fn entry(&mut self, path: &Path, host_path: &path::Path) -> Result<bool> {
        let found = fs::symlink_metadata(host_path).map_err(host("look at", host_path))?;
        if let Some(first) = self.first_name(path, &found) {
            let link = Entry { kind: Kind::Hardlink { to: first.clone() }, ..self.entries[&first].clone() };
            self.entries.insert(path.clone(), link);
            return Ok(false);
        }
        let entry = Entry {
            kind: self.kind(host_path, &found)?,
            mode: found.mode() & 0o7777,
            uid: found.uid(),
            gid: found.gid(),
            mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
            xattrs: xattrs(host_path)?,
        };
        let is_dir = entry.is_dir();
        self.entries.insert(path.clone(), entry);
        Ok(is_dir)
    }

    fn first_name(&mut self, path: &Path, found: &Metadata) -> Option<Path> {
        if found.is_dir() || found.nlink() < 2 {
            return None;
        }
        let first = self.names.entry((found.dev(), found.ino())).or_insert_with(|| path.clone());
        (first != path).then(|| first.clone())
    }

    fn kind(&self, host_path: &path::Path, found: &Metadata) -> Result<Kind> {
        let kind = found.file_type();
        if kind.is_dir() {
            return Ok(Kind::Dir);
        }
        if kind.is_file() {
            return self.file(host_path, found.size());
        }
        if kind.is_symlink() {
            let target = fs::read_link(host_path).map_err(host("read the link", host_path))?;
            return Ok(Kind::Symlink { target: target.into_os_string().into_vec() });
        }
        Ok(match () {
            () if kind.is_char_device() => Kind::Char { rdev: found.rdev() },
            () if kind.is_block_device() => Kind::Block { rdev: found.rdev() },
            () if kind.is_fifo() => Kind::Fifo,
            () => Kind::Socket,
        })
    }

    fn file(&self, host_path: &path::Path, expected: u64) -> Result<Kind> {
        let flags = (libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY) as _;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(host_path).map_err(host("open", host_path))?;
        let (size, content) = put_content(file, &host_path.to_string_lossy(), self.objects)?;
        if size != expected {
            return Err(Error::HostChanged { path: host_path.to_owned(), expected, found: size });
        }
        Ok(Kind::File { size, content })
    }
}

/// Puts seconds and nanoseconds together; a time that has no place in the result is cut.
pub(super) fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Reads the extended attributes of a file, or of a link itself.
fn xattrs(host_path: &path::Path) -> Result<Xattrs> {
    let fail = |error: Errno| host("read the extended attributes of", host_path)(error.into());
    let names = match grow(|buffer| rustix::fs::llistxattr(host_path, buffer)) {
        Ok(names) => names,
        Err(Errno::NOTSUP) => return Ok(Xattrs::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut xattrs = Xattrs::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match grow(|buffer| rustix::fs::lgetxattr(host_path, name, buffer)) {
            Ok(value) => drop(xattrs.insert(name.to_vec(), value)),
            // It went away since it was listed.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(fail(error)),
        }
    }
    Ok(xattrs)
}

/// Calls `read` with a buffer that grows until the answer fits.
fn grow(mut read: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < (1 << 20) => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}

/// Returns where an entry lies when its tree is a directory of the host.
pub(super) fn host_path(dir: &path::Path, path: &Path) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
}
