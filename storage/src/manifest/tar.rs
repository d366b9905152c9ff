//! A tar archive as the changes of a layer.
//!
//! Both ways to say that something is gone are understood: a name `.wh.NAME` or `.wh..wh..opq` beside it (layers of
//! registries), and a character device 0,0 or the attribute `trusted.overlay.opaque` (the upper directory of an overlay).
//!
//! Caveats: access control lists in text form (`SCHILY.acl`) are left out, as are attributes in libarchive's form. An archive
//! that ends without its end marker is taken as whole: whoever made it must vouch for its length.

use std::collections::HashSet;
use std::io::{self, Read};

use tar::EntryType;

use super::archive::{Archive, Member, number};
use super::walk::nanoseconds;
use super::{Change, Entry, Error, Kind, Objects, Path, Result, Xattrs, put_content};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Names with this prefix were a union file system's own bookkeeping.
const WHITEOUT_OWN: &[u8] = b".wh..wh.";

/// Reads an archive as a layer, in the order of its members. The bytes of files are kept as objects.
///
/// The reader is read to its end. Directories above a member need not be in the archive.
pub fn from_tar(reader: impl Read, objects: &impl Objects) -> Result<Vec<Change>> {
    let mut archive = Archive::new(reader);
    let mut layer = Layer::default();
    let mut after = String::from("(the beginning)");
    let read = |source, after: &String| Error::Tar { after: after.clone(), source };
    while let Some(member) = archive.next().map_err(|source| read(source, &after))? {
        after = String::from_utf8_lossy(&member.path).into_owned();
        let refuse = |why: String| Error::TarEntry { entry: after.clone(), why };
        layer.take(&member, &mut archive, objects).map_err(|problem| match problem {
            Problem::Refused(why) => refuse(why),
            Problem::Header(source) => refuse(format!("has a header that cannot be read: {source}")),
            Problem::Failed(error) => error,
        })?;
    }
    Ok(layer.changes)
}

/// A layer as far as it is read.
#[derive(Default)]
struct Layer {
    changes: Vec<Change>,
    /// Devices that stand for something gone. An overlay makes one and links it to all other places.
    gone: HashSet<Path>,
}

enum Problem {
    Refused(String),
    Header(io::Error),
    Failed(Error),
}

impl From<io::Error> for Problem {
    fn from(source: io::Error) -> Self {
        Self::Header(source)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn refused(why: &str) -> Problem {
    Problem::Refused(why.into())
}

impl Layer {
    fn take(&mut self, member: &Member, archive: &mut Archive<impl Read>, objects: &impl Objects) -> Result<(), Problem> {
        let path = Path::parse(&member.path).map_err(|bad| Problem::Refused(bad.to_string()))?;
        if let Some(change) = whiteout(&path)? {
            self.changes.extend(change);
            return Ok(());
        }
        let Some(kind) = kind(member, archive, objects)? else { return Ok(()) };
        let mut xattrs = xattrs(member);
        let overlay = Overlay::take_from(&mut xattrs)?;
        if overlay.whiteout || self.is_gone(&kind) {
            self.gone.insert(path.clone());
            self.changes.push(Change::Remove(path));
            return Ok(());
        }
        if overlay.opaque && kind == Kind::Dir {
            self.changes.push(Change::Opaque(path.clone()));
        }
        self.gone.remove(&path);
        self.changes.push(Change::Put(path, entry(member, kind, xattrs)?));
        Ok(())
    }

    fn is_gone(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Char { rdev } => *rdev == 0,
            Kind::Hardlink { to } => self.gone.contains(to),
            _ => false,
        }
    }
}

/// Reads a name that stands for something gone. `Some(None)` is a name without a meaning.
fn whiteout(path: &Path) -> Result<Option<Option<Change>>, Problem> {
    let Some((name, parent)) = path.name().zip(path.parent()) else { return Ok(None) };
    if name == WHITEOUT_OPAQUE {
        return Ok(Some(Some(Change::Opaque(parent))));
    }
    if name.starts_with(WHITEOUT_OWN) {
        return Ok(Some(None));
    }
    let Some(gone) = name.strip_prefix(WHITEOUT) else { return Ok(None) };
    match super::is_name(gone) {
        true => Ok(Some(Some(Change::Remove(parent.join(gone))))),
        false => Err(refused("is a whiteout of nothing")),
    }
}

/// Says what a member is; None for what is no part of a tree.
fn kind(member: &Member, archive: &mut Archive<impl Read>, objects: &impl Objects) -> Result<Option<Kind>, Problem> {
    if member.records.keys().any(|key| key.starts_with(b"GNU.sparse.")) {
        return Err(refused("is a sparse file in PAX form, which is not supported: store it as a whole"));
    }
    let kind = match member.header.entry_type() {
        // Archives older than POSIX have no type for directories.
        EntryType::Regular if member.path.ends_with(b"/") => Kind::Dir,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let (size, content) = put_content(archive, &String::from_utf8_lossy(&member.path), objects)?;
            Kind::File { size, content }
        }
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink if member.link.contains(&0) => return Err(refused("is a link with a NUL byte")),
        EntryType::Symlink => Kind::Symlink { target: member.link.clone() },
        EntryType::Link => Kind::Hardlink { to: Path::parse(&member.link).map_err(|bad| Problem::Refused(bad.to_string()))? },
        EntryType::Char => Kind::Char { rdev: rdev(member)? },
        EntryType::Block => Kind::Block { rdev: rdev(member)? },
        EntryType::Fifo => Kind::Fifo,
        other if other.as_byte() == b'V' => return Ok(None),
        other => return Err(Problem::Refused(format!("has type {:?}, which is not supported", char::from(other.as_byte())))),
    };
    Ok(Some(kind))
}

fn rdev(member: &Member) -> Result<u64, Problem> {
    let (major, minor) = (member.header.device_major()?, member.header.device_minor()?);
    Ok(libc::makedev(major.unwrap_or(0), minor.unwrap_or(0)))
}

fn entry(member: &Member, kind: Kind, xattrs: Xattrs) -> Result<Entry, Problem> {
    let owner = |key: &[u8], in_header: io::Result<u64>| -> Result<u32, Problem> {
        let id = number(&member.records, key)?.map_or(in_header, Ok)?;
        u32::try_from(id).map_err(|_| Problem::Refused(format!("has owner {id}, which is too large")))
    };
    let header = &member.header;
    Ok(Entry {
        kind,
        mode: header.mode()? & 0o7777,
        uid: owner(b"uid", header.uid())?,
        gid: owner(b"gid", header.gid())?,
        mtime_ns: mtime_ns(member)?,
        xattrs,
    })
}

fn mtime_ns(member: &Member) -> Result<i64, Problem> {
    match member.records.get(&b"mtime"[..]) {
        Some(text) => parse_time(text).ok_or_else(|| refused("has a time that is not a number")),
        None => Ok(nanoseconds(member.header.mtime()? as i64, 0)),
    }
}

/// Parses seconds with a fraction, such as `-1.5`, to nanoseconds.
fn parse_time(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = format!("{fraction:0<9.9}");
    let part: i64 = digits.parse().ok()?;
    Some(nanoseconds(whole.parse().ok()?, if whole.starts_with('-') { -part } else { part }))
}

fn xattrs(member: &Member) -> Xattrs {
    let named = |(key, value): (&Vec<u8>, &Vec<u8>)| Some((key.strip_prefix(b"SCHILY.xattr.")?.to_vec(), value.clone()));
    member.records.iter().filter_map(named).collect()
}

/// What an overlay wrote about an entry of its upper directory.
struct Overlay {
    opaque: bool,
    whiteout: bool,
}

impl Overlay {
    /// Takes the overlay's own attributes out: they mean something only in its upper directory.
    fn take_from(xattrs: &mut Xattrs) -> Result<Self, Problem> {
        let mut overlay = Self { opaque: false, whiteout: false };
        let mut refuse = None;
        xattrs.retain(|name, value| {
            let own = name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay."));
            match own {
                None => return true,
                Some(b"opaque") => overlay.opaque |= value == b"y",
                Some(b"whiteout") => overlay.whiteout = true,
                Some(b"redirect" | b"metacopy") => refuse = Some("needs the overlay it comes from: it is a redirect"),
                Some(_) => {}
            }
            false
        });
        refuse.map_or(Ok(overlay), |why| Err(refused(why)))
    }
}
