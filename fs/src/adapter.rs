//! The FUSE protocol: decode, ask one function, encode.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyXattr,
    Request,
};
use shoal_storage::chunk::pieces;
use shoal_storage::manifest::Kind;

use crate::errno;
use crate::layout::Inode;
use crate::reads::Reads;
use crate::view::{Refused, View};

/// How long the kernel keeps what it is told: trees never change.
const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// Numbers are never given twice, so there is only one generation.
const GENERATION: Generation = Generation(0);

/// How many requests that nobody waits for (read-ahead) the kernel may send at once.
const BACKGROUND_MAX: u16 = 64;

/// What `statfs` counts in.
const BLOCK_BYTES: u32 = 4096;

/// The longest name, as on other file systems.
const NAME_BYTES_MAX: u32 = 255;

#[derive(Clone)]
pub(crate) struct Adapter {
    pub(crate) view: Arc<View>,
    pub(crate) reads: Arc<Reads>,
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_NO_OPEN_SUPPORT
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
        config.add_capabilities(wanted & config.capabilities()).expect("what is there can be asked for");
        config.set_max_background(BACKGROUND_MAX).expect("the number is not zero");
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.view.lookup(parent.0, name.as_bytes()) {
            Ok(found) => reply.entry(&TTL, &attr(found.ino, &found.inode), GENERATION),
            // The kernel remembers that there is no such name.
            Err(Refused::NotFound) => reply.entry(&TTL, &nothing(), GENERATION),
            Err(refused) => reply.error(errno::refused(refused)),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.view.inode(ino.0) {
            Ok(inode) => reply.attr(&TTL, &attr(ino.0, &inode)),
            Err(refused) => reply.error(errno::refused(refused)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.view.read_link(ino.0) {
            Ok(inode) => reply.data(link_text(&inode)),
            Err(refused) => reply.error(errno::refused(refused)),
        }
    }

    /// Opening means nothing here, so the kernel is told not to ask: it opens files by itself and keeps their pages.
    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno::unsupported());
    }

    /// As for files: the kernel opens directories by itself and keeps their listings. A sandbox opens every directory on the
    /// way to a file, more than a hundred of them in its start. The listing of the top directory, where trees come and go, is
    /// taken from the kernel with each of them.
    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(errno::unsupported());
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let inode = match self.view.file(ino.0) {
            Ok(inode) => inode,
            Err(refused) => return reply.error(errno::refused(refused)),
        };
        let range = offset..offset.saturating_add(size.into());
        let chunks = pieces(inode.entry.content_bytes(), range).map(|piece| piece.number);
        let last = chunks.inspect(|chunk| self.view.touch(&inode, *chunk)).last();
        let answer = |result: Result<&[u8], _>| match result {
            Ok(bytes) => reply.data(bytes),
            Err(error) => reply.error(errno::read(&error)),
        };
        self.reads.read(inode.clone(), offset, size, request.pid(), Box::new(answer));
        last.into_iter().for_each(|last| self.reads.read_ahead(&inode, last));
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.view.list(ino.0, offset, &mut |offset, name, found| {
            reply.add(INodeNo(found.ino), offset, file_type(&found.inode), OsStr::from_bytes(name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(refused) => reply.error(errno::refused(refused)),
        }
    }

    fn readdirplus(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self.view.list(ino.0, offset, &mut |offset, name, found| {
            let attr = attr(found.ino, &found.inode);
            reply.add(INodeNo(found.ino), offset, OsStr::from_bytes(name), &TTL, &attr, GENERATION)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(refused) => reply.error(errno::refused(refused)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let totals = self.view.totals();
        let blocks = totals.content_bytes.div_ceil(BLOCK_BYTES.into());
        reply.statfs(blocks, 0, 0, totals.entries, 0, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES);
    }

    /// Answers "no such attribute" rather than "unsupported": the kernel would not ask again for trees bound later.
    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.view.xattr(ino.0, name.as_bytes()), size, reply);
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.view.xattr_names(ino.0), size, reply);
    }

    /// Nothing is written, so there is nothing to flush when a file is closed.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(errno::unsupported());
    }

    /// Programs ask whether a file is a terminal this way.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_bytes: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(errno::unsupported());
    }

    /// The kernel then knows by itself that files have no holes.
    fn lseek(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _offset: i64, _whence: i32, reply: ReplyLseek) {
        reply.error(errno::unsupported());
    }
}

fn reply_xattr(value: Result<Vec<u8>, Refused>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(errno::refused(Refused::AttributeTooLong)),
        Ok(value) => reply.data(&value),
        Err(refused) => reply.error(errno::refused(refused)),
    }
}

fn link_text(inode: &Inode) -> &[u8] {
    match &inode.entry.kind {
        Kind::Symlink { target } => target,
        _ => &[],
    }
}

fn file_type(inode: &Inode) -> FileType {
    match inode.entry.kind {
        Kind::Dir => FileType::Directory,
        Kind::File { .. } => FileType::RegularFile,
        Kind::Symlink { .. } => FileType::Symlink,
        Kind::Char { .. } => FileType::CharDevice,
        Kind::Block { .. } => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
        Kind::Hardlink { .. } => unreachable!("inodes are made of the first name of an entry"),
    }
}

fn attr(ino: u64, inode: &Inode) -> FileAttr {
    let entry = &inode.entry;
    let (size, rdev) = match &entry.kind {
        Kind::File { size, .. } => (*size, 0),
        Kind::Symlink { target } => (target.len() as u64, 0),
        Kind::Dir => (u64::from(BLOCK_BYTES), 0),
        // The kernel's own 32-bit form, which is the lower half of what makedev returns.
        Kind::Char { rdev } | Kind::Block { rdev } => (0, *rdev as u32),
        _ => (0, 0),
    };
    let time = system_time(entry.mtime_ns);
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(inode),
        perm: entry.mode as u16,
        nlink: inode.nlink,
        uid: entry.uid,
        gid: entry.gid,
        rdev,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The attributes of a name that does not exist: number 0 says so.
fn nothing() -> FileAttr {
    attr(0, &Inode::absent())
}

fn system_time(ns: i64) -> SystemTime {
    let distance = Duration::from_nanos(ns.unsigned_abs());
    if ns < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}
