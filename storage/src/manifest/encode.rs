//! A tree as objects: leaves of entries, index objects above them.
//!
//! A leaf is the entries of a run of paths; an index object names the leaves (or lower index objects) of a longer run,
//! and the root of a written tree is always an index object. Both begin anew at a path whose hash says so, which depends
//! on nothing but the path; so what changes in one run leaves all others as they were. A run without such a path is cut
//! when it is very long.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::Bytes as Slice;
use shoal_state::Digest;

use super::{Entry, Error, Objects, Path, Result, Tree, get, put};

const LEAF_MAGIC: &[u8; 8] = b"SHOALML1";
const INDEX_MAGIC: &[u8; 8] = b"SHOALMI1";

/// One path in `2^RUN_BITS` begins a leaf: with some 120 bytes an entry, leaves of about 64 KiB.
const RUN_BITS: u32 = 9;

/// A leaf is cut before the entry after this many bytes, whatever the paths are.
const LEAF_BYTES_MAX: usize = 512 << 10;

/// An index object is cut after this many names, whatever the paths are.
const INDEX_CHILDREN_MAX: usize = 4096;

/// What is said of a leaf or an index object by the one above it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Child {
    first: Path,
    pub(super) digest: Digest,
    summary: Summary,
}

/// How much there is in a written tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// How many entries, the root included.
    pub entries: u64,
    /// How many bytes the files hold; a file with several names counts once.
    pub content_bytes: u64,
}

impl Summary {
    fn add(&mut self, other: Summary) {
        self.entries += other.entries;
        self.content_bytes += other.content_bytes;
    }
}

/// A leaf or an index object, read.
pub(super) enum Node {
    /// `height` is 1 right above the leaves.
    Index {
        height: u32,
        children: Vec<Child>,
    },
    Leaf(Vec<(Path, Entry)>),
}

impl Tree {
    /// Keeps the tree as objects and returns its name. Equal trees have equal names.
    ///
    /// The content of files is not touched: it is kept already. Nothing is durable before the keeper says so.
    pub fn write(&self, objects: &impl Objects) -> Result<Digest> {
        let mut height = 1;
        let mut level = write_leaves(self, objects)?;
        loop {
            level = write_level(height, level, objects)?;
            if let [root] = &level[..] {
                return Ok(root.digest);
            }
            height += 1;
        }
    }

    /// Reads a tree by its name.
    pub fn read(objects: &impl Objects, digest: &Digest) -> Result<Self> {
        let mut entries = Vec::new();
        read_entries(objects, digest, &mut entries)?;
        let malformed = |why| Error::Malformed { digest: *digest, expected: "the root", why };
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(malformed(format!("{} comes after {}", pair[1].0, pair[0].0)));
        }
        Tree::from_entries(BTreeMap::from_iter(entries)).map_err(malformed)
    }
}

/// Returns how much there is in a written tree; reads one object.
pub fn summary(objects: &impl Objects, digest: &Digest) -> Result<Summary> {
    let mut all = Summary::default();
    match read_node(objects, digest)? {
        Node::Index { children, .. } => children.iter().for_each(|child| all.add(child.summary)),
        Node::Leaf(_) => return Err(Error::Malformed { digest: *digest, expected: "the root", why: "it is a leaf".into() }),
    }
    Ok(all)
}

/// Says if a run begins at this path. `level` is 0 for leaves, the height for index objects.
fn begins(path: &Path, level: u32) -> bool {
    let Some(bits) = RUN_BITS.checked_mul(level).filter(|bits| bits + RUN_BITS <= u64::BITS) else { return false };
    let digest = Digest::of(path.as_bytes());
    let hash = u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("a digest is longer"));
    (hash >> bits).trailing_zeros() >= RUN_BITS
}

fn write_leaves(tree: &Tree, objects: &impl Objects) -> Result<Vec<Child>> {
    let mut children = Vec::new();
    let mut leaf = Leaf::new(Path::root());
    for (path, entry) in tree.iter() {
        if leaf.summary.entries > 0 && (leaf.bytes.len() >= LEAF_BYTES_MAX || begins(path, 0)) {
            children.push(leaf.write(objects)?);
            leaf = Leaf::new(path.clone());
        }
        leaf.push(path, entry);
    }
    children.push(leaf.write(objects)?);
    Ok(children)
}

struct Leaf {
    bytes: Vec<u8>,
    first: Path,
    last: Path,
    summary: Summary,
}

impl Leaf {
    fn new(first: Path) -> Self {
        Self { bytes: LEAF_MAGIC.to_vec(), first, last: Path::root(), summary: Summary::default() }
    }

    /// An entry is: how many bytes its path shares with the one before, the rest of its path, itself.
    fn push(&mut self, path: &Path, entry: &Entry) {
        let (now, before) = (path.as_bytes(), self.last.as_bytes());
        let shared = now.iter().zip(before).take_while(|(a, b)| a == b).count();
        let row = (shared as u64, Slice::new(&now[shared..]), entry);
        self.bytes = postcard::to_extend(&row, std::mem::take(&mut self.bytes)).expect("an entry can be encoded");
        self.summary.add(Summary { entries: 1, content_bytes: entry.content_bytes() });
        self.last = path.clone();
    }

    fn write(self, objects: &impl Objects) -> Result<Child> {
        Ok(Child { first: self.first, digest: put(objects, &self.bytes)?, summary: self.summary })
    }
}

fn write_level(height: u32, below: Vec<Child>, objects: &impl Objects) -> Result<Vec<Child>> {
    let mut children = Vec::new();
    let mut run: Vec<Child> = Vec::new();
    for child in below {
        if !run.is_empty() && (run.len() >= INDEX_CHILDREN_MAX || begins(&child.first, height)) {
            children.push(write_index(height, &run, objects)?);
            run.clear();
        }
        run.push(child);
    }
    children.push(write_index(height, &run, objects)?);
    Ok(children)
}

fn write_index(height: u32, run: &[Child], objects: &impl Objects) -> Result<Child> {
    let mut summary = Summary::default();
    run.iter().for_each(|child| summary.add(child.summary));
    let bytes = postcard::to_extend(&(height, run), INDEX_MAGIC.to_vec()).expect("an index can be encoded");
    Ok(Child { first: run[0].first.clone(), digest: put(objects, &bytes)?, summary })
}

pub(super) fn read_node(objects: &impl Objects, digest: &Digest) -> Result<Node> {
    let bytes = get(objects, digest)?;
    let malformed = |expected| move |why: postcard::Error| Error::Malformed { digest: *digest, expected, why: why.to_string() };
    if let Some(bytes) = bytes.strip_prefix(INDEX_MAGIC) {
        let (height, children) = postcard::from_bytes(bytes).map_err(malformed("an index object"))?;
        return Ok(Node::Index { height, children });
    }
    match bytes.strip_prefix(LEAF_MAGIC) {
        Some(bytes) => Ok(Node::Leaf(read_leaf(bytes).map_err(malformed("a leaf"))?)),
        None => Err(Error::Malformed { digest: *digest, expected: "a part", why: "it begins with other bytes".into() }),
    }
}

fn read_leaf(mut bytes: &[u8]) -> postcard::Result<Vec<(Path, Entry)>> {
    let mut entries = Vec::new();
    let mut last = Vec::new();
    while !bytes.is_empty() {
        let ((shared, rest, entry), after): ((u64, &Slice, Entry), _) = postcard::take_from_bytes(bytes)?;
        let shared = usize::try_from(shared).ok().filter(|shared| *shared <= last.len());
        last.truncate(shared.ok_or(postcard::Error::DeserializeBadEncoding)?);
        last.extend_from_slice(rest);
        let path = Path::exact(last.clone()).map_err(|_| postcard::Error::DeserializeBadEncoding)?;
        entries.push((path, entry));
        bytes = after;
    }
    Ok(entries)
}

fn read_entries(objects: &impl Objects, digest: &Digest, into: &mut Vec<(Path, Entry)>) -> Result<()> {
    match read_node(objects, digest)? {
        Node::Index { children, .. } => children.iter().try_for_each(|child| read_entries(objects, &child.digest, into)),
        Node::Leaf(entries) => {
            into.extend(entries);
            Ok(())
        }
    }
}
