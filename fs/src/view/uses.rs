//! What is read of trees, in which order, and what is brought because something beside it is read.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;

use shoal_state::Digest;
use shoal_storage::manifest::{Kind, Path, Place};

use super::View;
use crate::layout::{Inode, Node};

/// Up to which length a file is brought because one beside it is read.
const SMALL_BYTES_MAX: u64 = 64 << 10;

/// How many files are brought because one beside them is read; the others wait until they are read.
const NEIGHBOURS_MAX: usize = 512;

/// One first read of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touch {
    /// The file.
    pub path: Path,
    /// Which of its chunks.
    pub chunk: u64,
}

impl View {
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
        let mut found = BTreeMap::new();
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
        let mut seen = HashSet::new();
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
        let mut seen = HashSet::new();
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
