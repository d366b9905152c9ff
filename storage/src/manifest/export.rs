//! A tree as a directory of the host, or as an archive.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use tar::{EntryType, Header};

use super::walk::host_path;
use super::{Entry, Error, Kind, Objects, Path, Result, Tree, read_content};

const SECOND_NS: i64 = 1_000_000_000;

impl Tree {
    /// Writes the tree into an empty directory of the host, with all attributes. Needs the rights of root.
    pub fn to_dir(&self, dir: &path::Path, objects: &impl Objects) -> Result<()> {
        for (path, entry) in self.iter() {
            make(dir, path, entry, objects)?;
        }
        // Backwards, so that a directory's time is set after everything is in it, and its mode when all is done.
        for (path, entry) in self.iter().rev() {
            let at = host_path(dir, path);
            let failed = |source| Error::Host { action: "set the attributes of", path: at.clone(), source };
            set_attributes(&at, entry).map_err(failed)?;
        }
        Ok(())
    }

    /// Writes the tree as an archive that [`from_tar`](super::from_tar) reads to the same tree. Sockets have no form in one
    /// and are refused.
    pub fn to_tar(&self, writer: impl Write, objects: &impl Objects) -> Result<()> {
        let mut builder = tar::Builder::new(writer);
        for (path, entry) in self.iter() {
            let failed = |source| Error::Tar { after: path.to_string(), source };
            append(&mut builder, path, entry, objects).map_err(failed)?;
        }
        builder.finish().map_err(|source| Error::Tar { after: "the end".into(), source })
    }
}

fn make(dir: &path::Path, path: &Path, entry: &Entry, objects: &impl Objects) -> Result<()> {
    let at = host_path(dir, path);
    let failed = |source| Error::Host { action: "write", path: at.clone(), source };
    let node = |kind, rdev| Ok(rustix::fs::mknodat(CWD, &at, kind, Mode::from_raw_mode(0o600), rdev)?);
    let made = match &entry.kind {
        Kind::Dir if path.is_root() => Ok(()),
        Kind::Dir => fs::create_dir(&at),
        Kind::File { size, content } => {
            let mut reader = read_content(*size, content, objects)?;
            File::create_new(&at).and_then(|mut file| io::copy(&mut reader, &mut file).map(drop))
        }
        Kind::Symlink { target } => std::os::unix::fs::symlink(OsStr::from_bytes(target), &at),
        Kind::Hardlink { to } => fs::hard_link(host_path(dir, to), &at),
        Kind::Char { rdev } => node(FileType::CharacterDevice, *rdev),
        Kind::Block { rdev } => node(FileType::BlockDevice, *rdev),
        Kind::Fifo => node(FileType::Fifo, 0),
        Kind::Socket => node(FileType::Socket, 0),
    };
    made.map_err(failed)
}

fn set_attributes(at: &path::Path, entry: &Entry) -> io::Result<()> {
    // The owner comes first: changing it clears setuid bits and capabilities.
    std::os::unix::fs::lchown(at, Some(entry.uid), Some(entry.gid))?;
    for (name, value) in &entry.xattrs {
        rustix::fs::lsetxattr(at, &name[..], value, XattrFlags::empty())?;
    }
    if !matches!(entry.kind, Kind::Symlink { .. }) {
        rustix::fs::chmodat(CWD, at, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
    }
    let time = Timespec { tv_sec: entry.mtime_ns.div_euclid(SECOND_NS), tv_nsec: entry.mtime_ns.rem_euclid(SECOND_NS) };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn append<W: Write>(builder: &mut tar::Builder<W>, path: &Path, entry: &Entry, objects: &impl Objects) -> io::Result<()> {
    append_records(builder, entry)?;
    let mut header = Header::new_gnu();
    header.set_mode(entry.mode);
    header.set_uid(entry.uid.into());
    header.set_gid(entry.gid.into());
    header.set_mtime((entry.mtime_ns / SECOND_NS).max(0) as u64);
    header.set_size(0);
    let name = OsStr::from_bytes(if path.is_root() { b"./" } else { path.as_bytes() });
    let mut device = |kind, rdev| {
        header.set_entry_type(kind);
        header.set_device_major(libc::major(rdev))?;
        header.set_device_minor(libc::minor(rdev))?;
        builder.append_data(&mut header, name, io::empty())
    };
    match &entry.kind {
        Kind::Dir => device(EntryType::Directory, 0),
        Kind::Char { rdev } => device(EntryType::Char, *rdev),
        Kind::Block { rdev } => device(EntryType::Block, *rdev),
        Kind::Fifo => device(EntryType::Fifo, 0),
        Kind::Socket => Err(io::Error::new(io::ErrorKind::Unsupported, "an archive cannot hold a socket")),
        Kind::File { size, content } => {
            header.set_entry_type(EntryType::Regular);
            header.set_size(*size);
            let reader = read_content(*size, content, objects).map_err(io::Error::other)?;
            builder.append_data(&mut header, name, reader)
        }
        Kind::Symlink { target } => {
            header.set_entry_type(EntryType::Symlink);
            builder.append_link(&mut header, name, OsStr::from_bytes(target))
        }
        Kind::Hardlink { to } => {
            header.set_entry_type(EntryType::Link);
            builder.append_link(&mut header, name, OsStr::from_bytes(to.as_bytes()))
        }
    }
}

fn append_records<W: Write>(builder: &mut tar::Builder<W>, entry: &Entry) -> io::Result<()> {
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    if entry.mtime_ns < 0 || entry.mtime_ns % SECOND_NS != 0 {
        let sign = if entry.mtime_ns < 0 { "-" } else { "" };
        let (ns, second) = (entry.mtime_ns.unsigned_abs(), SECOND_NS as u64);
        records.push(("mtime".into(), format!("{sign}{}.{:09}", ns / second, ns % second).into()));
    }
    for (name, value) in &entry.xattrs {
        let name = std::str::from_utf8(name)
            .map_err(|_| io::Error::new(io::ErrorKind::Unsupported, "an archive cannot hold an attribute whose name is not UTF-8"))?;
        records.push((format!("SCHILY.xattr.{name}"), value.clone()));
    }
    builder.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), &value[..])))
}
