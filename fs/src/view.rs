//! All bound trees in memory: every question but that for bytes is answered from here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Path, Place, Tree};

use crate::layout::{FileKey, Inode, Layout, Node};

/// The number of the directory that holds all trees, fixed by FUSE.
pub(crate) const ROOT_INO: u64 = 1;

/// Up to which length a file is brought because one beside it is read.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// How many files are brought because one beside them is read; the others wait until they are read.
const NEIGHBOURS_MAX: usize = 512;

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

/// One first read of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The file.
    pub path: Path,
    /// Which of its chunks.
    pub chunk: u64,
}

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

#[derive(Debug, Default)]
struct Bound {
    /// By the number of the tree's root.
    trees: BTreeMap<u64, Arc<BoundTree>>,
    by_name: HashMap<Box<[u8]>, u64>,
    /// Regular files by number; an inode can outlive the tree that it came with.
    files: HashMap<u64, Arc<Inode>>,
}

/// A directory of the mount and what it shows.
#[derive(Debug)]
struct BoundTree {
    name: Box<[u8]>,
    /// The number of its root.
    first_ino: u64,
    shown: Arc<Shown>,
    /// The nodes with numbers that stay when the room is filled, each at its place of the room's empty tree; none in
    /// what is no room.
    fixed: Box<[u32]>,
}

/// A tree laid out, which several directories can show.
#[derive(Debug)]
struct Shown {
    layout: Layout,
    keys: Vec<FileKey>,
    /// How many directories show it. Changes only under the lock of [`View::files`].
    directories: AtomicU32,
}

/// Something in a tree, by the number that the kernel knows it by.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) ino: u64,
    pub(crate) inode: Arc<Inode>,
}

impl BoundTree {
    /// Returns a node by its number.
    fn node(&self, number: u32) -> Option<&Node> {
        self.shown.layout.node(number)
    }

    /// Returns by which number the kernel knows a node.
    fn ino(&self, number: u32, node: &Node) -> u64 {
        match self.fixed.iter().position(|fixed| *fixed == number) {
            Some(place) => self.first_ino + place as u64,
            None if matches!(node.inode.entry.kind, Kind::File { .. }) => node.inode.ino,
            None => self.first_ino + self.fixed.len() as u64 + u64::from(number),
        }
    }

    /// Returns which node the kernel may mean by a number.
    fn number(&self, ino: u64) -> Option<u32> {
        let at = ino - self.first_ino;
        match self.fixed.get(usize::try_from(at).ok()?) {
            Some(number) => Some(*number),
            None => u32::try_from(at - self.fixed.len() as u64).ok(),
        }
    }

    /// Whether it is a room that nothing fills yet: all its numbers are fixed.
    fn is_empty_room(&self) -> bool {
        self.fixed.len() == self.shown.layout.len()
    }

    fn found(&self, number: u32) -> Result<Found> {
        let node = self.node(number).ok_or(Refused::Gone)?;
        Ok(Found { ino: self.ino(number, node), inode: node.inode.clone() })
    }
}

impl Bound {
    fn get(&self, name: &[u8]) -> Option<&Arc<BoundTree>> {
        self.trees.get(self.by_name.get(name)?)
    }

    fn insert(&mut self, tree: BoundTree) {
        self.by_name.insert(tree.name.clone(), tree.first_ino);
        self.trees.insert(tree.first_ino, Arc::new(tree));
    }
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

    /// Returns the chunks of the small files beside a file, in the tree that its inode came with. The second call for the
    /// same directory returns none.
    pub(crate) fn small_neighbours(&self, inode: &Inode) -> Vec<Digest> {
        let Ok((tree, number)) = self.place(inode.ino) else { return Vec::new() };
        let Some(dir) = tree.node(number).and_then(|node| tree.node(node.parent)) else { return Vec::new() };
        if dir.expected.swap(true, Ordering::Relaxed) {
            return Vec::new();
        }
        let small = |node: &Node| match &node.inode.entry.kind {
            Kind::File { size, content } if *size <= SMALL_BYTES_MAX => content.find(0),
            _ => None,
        };
        let chunk = |place| match place {
            Place::Chunk(digest) => Some(digest),
            Place::InList { .. } => None,
        };
        let children = tree.shown.layout.children(dir, 0).filter_map(|child| tree.node(child));
        children.filter_map(small).filter_map(chunk).take(NEIGHBOURS_MAX).collect()
    }

    /// Returns where a file is in the tree that it came with; none when that is bound no more.
    pub(crate) fn path(&self, inode: &Inode) -> Option<Path> {
        let (tree, number) = self.place(inode.ino).ok()?;
        let node = tree.node(number).filter(|node| node.inode.ino == inode.ino)?;
        Some(tree.shown.layout.path(node))
    }

    /// Notes that a chunk of a file is read.
    pub(crate) fn touch(&self, inode: &Inode, chunk: u64) {
        inode.uses.lock().entry(chunk).or_insert_with(|| self.next_use.fetch_add(1, Ordering::Relaxed));
    }

    /// Returns the chunks of what was read of a tree, in the order of first reads; None if there is no tree of this name.
    pub(crate) fn touched_chunks(&self, name: &[u8]) -> Option<Vec<Digest>> {
        let tree = {
            let bound = self.bound.read();
            bound.get(name)?.clone()
        };
        let mut found = std::collections::BTreeMap::new();
        for node in tree.shown.layout.nodes() {
            let Kind::File { content, .. } = &node.inode.entry.kind else { continue };
            for (chunk, order) in node.inode.uses.lock().iter() {
                match content.find(*chunk) {
                    Some(Place::Chunk(digest)) => drop(found.insert(*order, digest)),
                    Some(Place::InList { list, .. }) => drop(found.insert(*order, list)),
                    None => {}
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        Some(found.into_values().filter(|digest| seen.insert(*digest)).collect())
    }

    /// Returns what was read of a tree, in the order of first reads; None if there is no tree of this name.
    pub(crate) fn touches(&self, name: &[u8]) -> Option<Vec<Touch>> {
        let tree = {
            let bound = self.bound.read();
            bound.get(name)?.clone()
        };
        let layout = &tree.shown.layout;
        let mut found = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for node in layout.nodes() {
            let uses = node.inode.uses.lock();
            if uses.is_empty() || !seen.insert(node.inode.ino) {
                continue;
            }
            let path = layout.path(node);
            found.extend(uses.iter().map(|(chunk, order)| (*order, Touch { path: path.clone(), chunk: *chunk })));
        }
        found.sort_by_key(|(order, _)| *order);
        Some(found.into_iter().map(|(_, touch)| touch).collect())
    }
}
