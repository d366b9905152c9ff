//! One tree laid out for look-ups: nodes by number, the children of each directory side by side.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;
use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Path, Tree};

/// What the kernel knows by one number.
#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) ino: u64,
    pub(crate) entry: Entry,
    /// How many names it has. A directory says 1, which programs know to mean that it does not count.
    pub(crate) nlink: u32,
    /// Which chunks of the file were read, with the place of the first time in the order of all first times.
    pub(crate) uses: Mutex<BTreeMap<u64, u64>>,
}

/// What makes two regular files one inode: the same entry, as many names, and the same place among the equal files of
/// their own tree. The last keeps two equal files of one tree apart, as programs expect (a dynamic linker takes two names
/// of one inode for one library).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    entry: Digest,
    nlink: u32,
    nth: u32,
}

/// One name of a tree.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Box<[u8]>,
    pub(crate) parent: u32,
    /// Where the children of a directory are in [`Layout::children`].
    children: Range<u32>,
    pub(crate) inode: Arc<Inode>,
    /// Set on a directory when the source was told of the files in it.
    pub(crate) expected: AtomicBool,
}

/// Returns the inode of a regular file: one that exists, or the one that it lets be made.
pub(crate) type Share<'a> = dyn FnMut(FileKey, &dyn Fn() -> Arc<Inode>) -> Arc<Inode> + 'a;

/// One tree, laid out.
#[derive(Debug)]
pub(crate) struct Layout {
    nodes: Vec<Node>,
    /// Numbers of nodes, those of one directory in the order of their names.
    children: Vec<u32>,
    pub(crate) content_bytes: u64,
}

impl Layout {
    /// Lays a tree out. What it has to make inodes for gets numbers from `first_ino` on.
    pub(crate) fn new(tree: &Tree, first_ino: u64, share: &mut Share<'_>) -> Self {
        let mut nodes: Vec<Node> = Vec::with_capacity(tree.len());
        let mut inodes = Inodes { tree, several: HashMap::new(), equal: HashMap::new() };
        let mut above: Vec<(&Path, u32)> = Vec::new();
        for (number, (path, _)) in (0u32..).zip(tree.iter()) {
            above.truncate(above.iter().rposition(|(dir, _)| path.is_in(dir)).map_or(0, |at| at + 1));
            let parent = above.last().map_or(0, |(_, number)| *number);
            let inode = inodes.inode(path, first_ino + u64::from(number), share);
            if inode.entry.is_dir() {
                above.push((path, number));
            }
            nodes.push(Node {
                name: path.name().unwrap_or_default().into(),
                parent,
                children: 0..0,
                inode,
                expected: AtomicBool::new(false),
            });
        }
        let children = place_children(&mut nodes);
        Self { nodes, children, content_bytes: tree.content_bytes() }
    }

    /// Returns how many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Returns a node by its number.
    pub(crate) fn node(&self, number: u32) -> Option<&Node> {
        self.nodes.get(number as usize)
    }

    /// Returns all nodes.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// Returns the numbers of a node's children from the given one on.
    pub(crate) fn children(&self, of: &Node, from: usize) -> impl Iterator<Item = u32> {
        let numbers = &self.children[of.children.start as usize..of.children.end as usize];
        numbers.get(from..).unwrap_or_default().iter().copied()
    }

    /// Returns the number of the child of this name.
    pub(crate) fn child(&self, of: &Node, name: &[u8]) -> Option<u32> {
        let numbers = &self.children[of.children.start as usize..of.children.end as usize];
        let found = numbers.binary_search_by(|number| (*self.nodes[*number as usize].name).cmp(name));
        found.ok().map(|at| numbers[at])
    }

    /// Returns the node at a path, which is not followed through links, and its number.
    pub(crate) fn find(&self, path: &Path) -> Option<(u32, &Node)> {
        let mut number = 0;
        for name in path.names() {
            number = self.child(self.node(number)?, name)?;
        }
        Some((number, self.node(number)?))
    }

    /// Returns the path of a node.
    pub(crate) fn path(&self, node: &Node) -> Path {
        let mut names = Vec::new();
        let mut at = node;
        while !at.name.is_empty() {
            names.push(&*at.name);
            at = &self.nodes[at.parent as usize];
        }
        names.iter().rev().fold(Path::root(), |path, name| path.join(name))
    }
}

/// Puts the numbers of children side by side. Nodes come in the order of paths, so children come in the order of names.
fn place_children(nodes: &mut [Node]) -> Vec<u32> {
    let mut counts = vec![0u32; nodes.len()];
    nodes.iter().skip(1).for_each(|node| counts[node.parent as usize] += 1);
    let mut end = 0;
    for (node, count) in nodes.iter_mut().zip(counts) {
        node.children = end..end;
        end += count;
    }
    let mut children = vec![0; end as usize];
    for number in 1..nodes.len() {
        let parent = nodes[number].parent as usize;
        let range = &mut nodes[parent].children;
        children[range.end as usize] = number as u32;
        range.end += 1;
    }
    children
}

/// Gives the entries of one tree their inodes.
struct Inodes<'a> {
    tree: &'a Tree,
    /// The inodes of entries with several names, by the first one.
    several: HashMap<&'a Path, Arc<Inode>>,
    /// How many equal files there were so far.
    equal: HashMap<(Digest, u32), u32>,
}

impl<'a> Inodes<'a> {
    fn inode(&mut self, path: &'a Path, ino: u64, share: &mut Share<'_>) -> Arc<Inode> {
        let (first, entry) = self.tree.resolve(path).expect("the path is of this tree");
        if let Some(inode) = self.several.get(first) {
            return inode.clone();
        }
        let names = 1 + self.tree.other_names(first).count() as u32;
        let inode = match entry.kind {
            Kind::File { .. } => share(self.key(entry, names), &|| Inode::new(ino, entry.clone(), names)),
            _ => Inode::new(ino, entry.clone(), names),
        };
        if names > 1 {
            self.several.insert(first, inode.clone());
        }
        inode
    }

    fn key(&mut self, entry: &Entry, nlink: u32) -> FileKey {
        let entry = entry.digest();
        let equal = self.equal.entry((entry, nlink)).or_default();
        let nth = *equal;
        *equal += 1;
        FileKey { entry, nlink, nth }
    }
}

impl Inode {
    /// What stands in for something that is not there.
    pub(crate) fn absent() -> Self {
        Self { ino: 0, entry: Entry::dir(), nlink: 0, uses: Mutex::default() }
    }

    pub(crate) fn new(ino: u64, entry: Entry, nlink: u32) -> Arc<Self> {
        Arc::new(Self { ino, entry, nlink, uses: Mutex::default() })
    }
}
