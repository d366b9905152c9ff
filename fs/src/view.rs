//! All bound trees in memory: every question but that for bytes is answered from here.

mod bound;
mod uses;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use shoal_storage::manifest::{Entry, Kind, Tree};

pub(crate) use self::bound::Found;
use self::bound::{Bound, BoundTree, Shown};
pub use self::uses::Touch;
use crate::layout::{FileKey, Inode, Layout, Node};

/// The number of the directory that holds all trees, fixed by FUSE.
pub(crate) const ROOT_INO: u64 = 1;

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The tree was unbound.
    Gone,
    NotFound,
    /// It is not there, but may come.
    NotYet,
    /// A tree lacks a place that something is mounted on, or has it as a link.
    Unfit,
    NotADirectory,
    NotALink,
    NotAFile,
    NoAttribute,
    AttributeTooLong,
}

type Result<T> = std::result::Result<T, Refused>;

/// All trees of a mount.
#[derive(Debug)]
pub(crate) struct View {
    bound: RwLock<Bound>,
    /// The regular files of all trees. Taken before `bound`, and only to bind and unbind.
    files: Mutex<HashMap<FileKey, Shared>>,
    next_ino: AtomicU64,
    next_use: AtomicU64,
    root: Arc<Inode>,
}

#[derive(Debug)]
struct Shared {
    inode: Arc<Inode>,
    trees: u32,
}

/// How much all trees hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) entries: u64,
    pub(crate) content_bytes: u64,
}

/// What a directory holds at a place: the offset after it, its name and what it is.
pub(crate) type Visit<'a> = dyn FnMut(u64, &[u8], &Found) -> bool + 'a;

/// How many numbers a room has for what will fill it.
const ROOM_INOS: u64 = 1 << 26;

impl View {
    pub(crate) fn new() -> Self {
        let root = Inode::new(ROOT_INO, Entry::dir(), 1);
        let (next_ino, next_use) = (AtomicU64::new(ROOT_INO + 1), AtomicU64::new(0));
        Self { bound: RwLock::default(), files: Mutex::default(), next_ino, next_use, root }
    }

    /// Shows a tree under a name, and says false if the name is taken.
    pub(crate) fn bind(&self, name: &[u8], tree: &Tree) -> bool {
        let mut files = self.files.lock();
        if self.bound.read().by_name.contains_key(name) {
            return false;
        }
        let mut keys = Vec::new();
        let mut fresh = Vec::new();
        let first_ino = self.next_ino.fetch_add(tree.len() as u64, Ordering::Relaxed);
        let layout = Layout::new(tree, first_ino, &mut |key, make| {
            keys.push(key);
            let shared = files.entry(key).or_insert_with(|| {
                let inode = make();
                fresh.push(inode.clone());
                Shared { inode, trees: 0 }
            });
            shared.trees += 1;
            shared.inode.clone()
        });
        let shown = Arc::new(Shown { layout, keys, directories: AtomicU32::new(1) });
        let tree = BoundTree { name: name.into(), first_ino, shown, fixed: Box::default() };
        let mut bound = self.bound.write();
        bound.files.extend(fresh.into_iter().map(|inode| (inode.ino, inode)));
        bound.insert(tree);
        true
    }

    /// Opens a room: a directory that shows `empty` until it is filled, and says false if the name is taken.
    pub(crate) fn open_room(&self, name: &[u8], empty: &Tree) -> bool {
        let _others_wait = self.files.lock();
        let mut bound = self.bound.write();
        if bound.by_name.contains_key(name) {
            return false;
        }
        let first_ino = self.next_ino.fetch_add(ROOM_INOS, Ordering::Relaxed);
        // Its files belong to the room alone, and all of it keeps its numbers.
        let layout = Layout::new(empty, first_ino, &mut |_, make| make());
        let fixed = (0..layout.len() as u32).collect();
        let shown = Arc::new(Shown { layout, keys: Vec::new(), directories: AtomicU32::new(1) });
        bound.insert(BoundTree { name: name.into(), first_ino, shown, fixed });
        true
    }

    /// Fills a room with what another directory shows, and returns the numbers that the kernel may know already.
    pub(crate) fn fill(&self, room: &[u8], like: &[u8]) -> Result<Vec<u64>> {
        let _others_wait = self.files.lock();
        let mut bound = self.bound.write();
        let (room, like) = (bound.get(room).ok_or(Refused::NotFound)?, bound.get(like).ok_or(Refused::NotFound)?);
        let (empty, layout) = (&room.shown.layout, &like.shown.layout);
        let mut fixed = Vec::with_capacity(empty.len());
        for node in empty.nodes() {
            let (number, same) = layout.find(&empty.path(node)).ok_or(Refused::Unfit)?;
            let (wanted, given) = (&node.inode.entry, &same.inode.entry);
            match (&wanted.kind, &given.kind) {
                (Kind::File { .. }, Kind::File { .. }) | (Kind::Dir, Kind::Dir) => fixed.push(number),
                _ => return Err(Refused::Unfit),
            }
        }
        let known = (0..fixed.len() as u64).map(|place| room.first_ino + place).collect();
        let filled = BoundTree { name: room.name.clone(), first_ino: room.first_ino, shown: like.shown.clone(), fixed: fixed.into() };
        like.shown.directories.fetch_add(1, Ordering::Relaxed);
        bound.insert(filled);
        Ok(known)
    }

    /// Takes a tree away, and says if there was one of this name.
    pub(crate) fn unbind(&self, name: &[u8]) -> bool {
        let mut files = self.files.lock();
        let mut bound = self.bound.write();
        let Some(first_ino) = bound.by_name.remove(name) else { return false };
        let tree = bound.trees.remove(&first_ino).expect("a name stands for a tree");
        if tree.shown.directories.fetch_sub(1, Ordering::Relaxed) > 1 {
            return true;
        }
        for key in &tree.shown.keys {
            let shared = files.get_mut(key).expect("a bound file is known");
            shared.trees -= 1;
            if shared.trees == 0 {
                bound.files.remove(&shared.inode.ino);
                files.remove(key);
            }
        }
        true
    }

    /// Returns the names of all bound trees, in the order they were bound.
    pub(crate) fn names(&self) -> Vec<Box<[u8]>> {
        self.bound.read().trees.values().map(|tree| tree.name.clone()).collect()
    }

    /// Returns what has this number.
    pub(crate) fn inode(&self, ino: u64) -> Result<Arc<Inode>> {
        if ino == ROOT_INO {
            return Ok(self.root.clone());
        }
        if let Some(inode) = self.bound.read().files.get(&ino) {
            return Ok(inode.clone());
        }
        let (tree, number) = self.place(ino)?;
        tree.node(number).map(|node| node.inode.clone()).ok_or(Refused::Gone)
    }

    /// Finds the tree and node of what is no regular file.
    fn place(&self, ino: u64) -> Result<(Arc<BoundTree>, u32)> {
        let bound = self.bound.read();
        let (_, tree) = bound.trees.range(..=ino).next_back().ok_or(Refused::Gone)?;
        let number = tree.number(ino).ok_or(Refused::Gone)?;
        Ok((tree.clone(), number))
    }

    fn dir(&self, ino: u64) -> Result<(Arc<BoundTree>, u32)> {
        let (tree, number) = self.place(ino)?;
        let node = tree.node(number).ok_or(Refused::Gone)?;
        match tree.ino(number, node) == ino && node.inode.entry.is_dir() {
            true => Ok((tree, number)),
            false => Err(Refused::NotADirectory),
        }
    }

    /// Looks a name up in a directory.
    ///
    /// What is not there is [`Refused::NotFound`] where it never will be, and [`Refused::NotYet`] where it may still come.
    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found> {
        if parent == ROOT_INO {
            return self.bound.read().get(name).ok_or(Refused::NotYet)?.found(0);
        }
        let (tree, number) = self.dir(parent)?;
        let node = tree.node(number).ok_or(Refused::Gone)?;
        match tree.shown.layout.child(node, name) {
            Some(child) => tree.found(child),
            None if tree.is_empty_room() => Err(Refused::NotYet),
            None => Err(Refused::NotFound),
        }
    }

    /// Shows what is in a directory after `offset` (0 for the beginning), until `visit` says that it has enough.
    pub(crate) fn list(&self, ino: u64, offset: u64, visit: &mut Visit<'_>) -> Result<()> {
        if ino == ROOT_INO {
            self.list_root(offset, visit);
            return Ok(());
        }
        let (tree, number) = self.dir(ino)?;
        let node = tree.node(number).ok_or(Refused::Gone)?;
        if offset < 1 && visit(1, b".", &tree.found(number)?) || offset < 2 && visit(2, b"..", &self.parent(&tree, node)?) {
            return Ok(());
        }
        let from = offset.saturating_sub(2);
        for (child, offset) in tree.shown.layout.children(node, from as usize).zip(from + 3..) {
            let (found, name) = (tree.found(child)?, tree.node(child).map(|node| &*node.name).unwrap_or_default());
            if visit(offset, name, &found) {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, tree: &BoundTree, node: &Node) -> Result<Found> {
        match node.name.is_empty() {
            true => Ok(self.top()),
            false => tree.found(node.parent),
        }
    }

    /// The directory that holds all trees.
    fn top(&self) -> Found {
        Found { ino: ROOT_INO, inode: self.root.clone() }
    }

    /// The offset after a tree is the number of its root, which stays true when others come and go.
    fn list_root(&self, offset: u64, visit: &mut Visit<'_>) {
        if offset < 1 && visit(1, b".", &self.top()) || offset < 2 && visit(2, b"..", &self.top()) {
            return;
        }
        let after: Vec<_> = self.bound.read().trees.range(offset.max(2)..).map(|(_, tree)| tree.clone()).collect();
        for tree in after {
            let root = tree.found(0).expect("a tree has a root");
            // Offset 2 is the beginning, so each tree's offset is one more than its number.
            if visit(tree.first_ino + 1, &tree.name, &root) {
                break;
            }
        }
    }

    /// Returns the text of a symbolic link.
    pub(crate) fn read_link(&self, ino: u64) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.entry.kind {
            Kind::Symlink { .. } => Ok(inode),
            _ => Err(Refused::NotALink),
        }
    }

    /// Returns a regular file.
    pub(crate) fn file(&self, ino: u64) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.entry.kind {
            Kind::File { .. } => Ok(inode),
            _ => Err(Refused::NotAFile),
        }
    }

    /// Returns an extended attribute.
    pub(crate) fn xattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        self.inode(ino)?.entry.xattrs.get(name).cloned().ok_or(Refused::NoAttribute)
    }

    /// Returns the names of all extended attributes, each ended by a NUL.
    pub(crate) fn xattr_names(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        Ok(inode.entry.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect())
    }

    /// Returns how much all trees hold; what several share counts several times.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for tree in self.bound.read().trees.values() {
            totals.entries += tree.shown.layout.len() as u64;
            totals.content_bytes += tree.shown.layout.content_bytes;
        }
        totals
    }
}
