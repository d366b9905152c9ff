//! What differs between two written trees, read from the leaves in which they differ.

use std::collections::{BTreeMap, HashSet};

use shoal_state::Digest;

use super::encode::{Node, read_node};
use super::{Entry, Objects, Path, Result};

/// One path at which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Difference {
    /// Only the second tree has it.
    Added(Path, Entry),
    /// Only the first tree has it.
    Removed(Path, Entry),
    /// Both have it, and it is not the same.
    Changed {
        /// Where.
        path: Path,
        /// What the first tree has.
        before: Entry,
        /// What the second tree has.
        after: Entry,
    },
}

impl Difference {
    /// Returns where the trees differ.
    pub fn path(&self) -> &Path {
        let (Self::Added(path, _) | Self::Removed(path, _) | Self::Changed { path, .. }) = self;
        path
    }
}

/// Returns where two written trees differ, in the order of paths. Parts that both share are not read.
pub fn diff(objects: &impl Objects, before: &Digest, after: &Digest) -> Result<Vec<Difference>> {
    let mut fronts = [Front::at(objects, before)?, Front::at(objects, after)?];
    loop {
        let [before, after] = &mut fronts;
        before.drop_shared(after);
        let height = before.height().max(after.height());
        if height == 0 {
            break;
        }
        before.descend(height, objects)?;
        after.descend(height, objects)?;
    }
    let [before, after] = fronts;
    Ok(compare(before.entries(objects)?, after.entries(objects)?))
}

/// The parts of one tree that may differ from the other's: height (0 for leaves) and digest, in order.
struct Front(Vec<(u32, Digest)>);

impl Front {
    fn at(objects: &impl Objects, root: &Digest) -> Result<Self> {
        match read_node(objects, root)? {
            Node::Index { height, .. } => Ok(Self(vec![(height, *root)])),
            Node::Leaf(_) => Ok(Self(vec![(0, *root)])),
        }
    }

    fn height(&self) -> u32 {
        self.0.iter().map(|(height, _)| *height).max().unwrap_or(0)
    }

    fn drop_shared(&mut self, other: &mut Self) {
        let mine: HashSet<_> = self.0.iter().copied().collect();
        let shared: HashSet<_> = other.0.iter().copied().filter(|part| mine.contains(part)).collect();
        self.0.retain(|part| !shared.contains(part));
        other.0.retain(|part| !shared.contains(part));
    }

    fn descend(&mut self, from: u32, objects: &impl Objects) -> Result<()> {
        let mut below = Vec::new();
        for (height, digest) in self.0.drain(..) {
            if height < from {
                below.push((height, digest));
                continue;
            }
            match read_node(objects, &digest)? {
                Node::Index { children, .. } => below.extend(children.iter().map(|child| (height - 1, child.digest))),
                Node::Leaf(_) => below.push((0, digest)),
            }
        }
        self.0 = below;
        Ok(())
    }

    fn entries(self, objects: &impl Objects) -> Result<BTreeMap<Path, Entry>> {
        let mut entries = BTreeMap::new();
        for (_, digest) in self.0 {
            if let Node::Leaf(leaf) = read_node(objects, &digest)? {
                entries.extend(leaf);
            }
        }
        Ok(entries)
    }
}

fn compare(mut before: BTreeMap<Path, Entry>, after: BTreeMap<Path, Entry>) -> Vec<Difference> {
    let mut found = Vec::new();
    for (path, after) in after {
        match before.remove(&path) {
            None => found.push(Difference::Added(path, after)),
            Some(before) if before != after => found.push(Difference::Changed { path, before, after }),
            Some(_) => {}
        }
    }
    found.extend(before.into_iter().map(|(path, entry)| Difference::Removed(path, entry)));
    found.sort_by(|a, b| a.path().cmp(b.path()));
    found
}
