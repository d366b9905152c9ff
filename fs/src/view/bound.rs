//! The directories of a mount with the trees that they show, and by which numbers the kernel knows what is in them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use shoal_storage::manifest::Kind;

use super::{Refused, Result};
use crate::layout::{FileKey, Inode, Layout, Node};

#[derive(Debug, Default)]
pub(super) struct Bound {
    /// By the number of the tree's root.
    pub(super) trees: BTreeMap<u64, Arc<BoundTree>>,
    pub(super) by_name: HashMap<Box<[u8]>, u64>,
    /// Regular files by number; an inode can outlive the tree that it came with.
    pub(super) files: HashMap<u64, Arc<Inode>>,
}

/// A directory of the mount and what it shows.
#[derive(Debug)]
pub(super) struct BoundTree {
    pub(super) name: Box<[u8]>,
    /// The number of its root.
    pub(super) first_ino: u64,
    pub(super) shown: Arc<Shown>,
    /// The nodes with numbers that stay when the room is filled, each at its place of the room's empty tree; none in
    /// what is no room.
    pub(super) fixed: Box<[u32]>,
}

/// A tree laid out, which several directories can show.
#[derive(Debug)]
pub(super) struct Shown {
    pub(super) layout: Layout,
    pub(super) keys: Vec<FileKey>,
    /// How many directories show it. Changes only under the lock of [`View::files`](super::View).
    pub(super) directories: AtomicU32,
}

/// Something in a tree, by the number that the kernel knows it by.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) ino: u64,
    pub(crate) inode: Arc<Inode>,
}

impl BoundTree {
    /// Returns a node by its number.
    pub(super) fn node(&self, number: u32) -> Option<&Node> {
        self.shown.layout.node(number)
    }

    /// Returns by which number the kernel knows a node.
    pub(super) fn ino(&self, number: u32, node: &Node) -> u64 {
        match self.fixed.iter().position(|fixed| *fixed == number) {
            Some(place) => self.first_ino + place as u64,
            None if matches!(node.inode.entry.kind, Kind::File { .. }) => node.inode.ino,
            None => self.first_ino + self.fixed.len() as u64 + u64::from(number),
        }
    }

    /// Returns which node the kernel may mean by a number.
    pub(super) fn number(&self, ino: u64) -> Option<u32> {
        let at = ino - self.first_ino;
        match self.fixed.get(usize::try_from(at).ok()?) {
            Some(number) => Some(*number),
            None => u32::try_from(at - self.fixed.len() as u64).ok(),
        }
    }

    /// Whether it is a room that nothing fills yet: all its numbers are fixed.
    pub(super) fn is_empty_room(&self) -> bool {
        self.fixed.len() == self.shown.layout.len()
    }

    /// Returns a node with the number that the kernel knows it by.
    pub(super) fn found(&self, number: u32) -> Result<Found> {
        let node = self.node(number).ok_or(Refused::Gone)?;
        Ok(Found { ino: self.ino(number, node), inode: node.inode.clone() })
    }
}

impl Bound {
    /// Returns the tree of a name.
    pub(super) fn get(&self, name: &[u8]) -> Option<&Arc<BoundTree>> {
        self.trees.get(self.by_name.get(name)?)
    }

    /// Shows a tree, in place of what its directory has shown.
    pub(super) fn insert(&mut self, tree: BoundTree) {
        self.by_name.insert(tree.name.clone(), tree.first_ino);
        self.trees.insert(tree.first_ino, Arc::new(tree));
    }
}
