//! What a written tree needs to exist.

use shoal_state::Digest;

use super::content::read_list;
use super::encode::{Node, read_node};
use super::{Content, Entry, Error, Kind, Objects, Result};

/// What an object is to a tree. The same bytes may be several things to several trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An index object or a leaf: it names others.
    Node,
    /// A list of the chunks of a long file.
    List,
    /// Bytes of a file.
    Chunk,
}

/// Shows `visit` everything that a written tree needs to exist: its index objects and leaves, lists and chunks of files.
///
/// When `visit` returns false for a node or a list, what it names is left out: it was seen before. Objects that several files
/// share are shown several times.
pub fn reachable(objects: &impl Objects, digest: &Digest, visit: &mut impl FnMut(Digest, Part) -> bool) -> Result<()> {
    reachable_despite(objects, digest, visit, &mut |_, error| Err(error))
}

/// Does as [`reachable`], and goes on where an object cannot be read when `lost`, which is told of it, says so.
///
/// What such an object names is not shown. Chunks of files are not read: whether they are there is for `visit` to say.
pub fn reachable_despite<O: Objects>(
    objects: &O,
    digest: &Digest,
    visit: &mut impl FnMut(Digest, Part) -> bool,
    lost: &mut impl FnMut(Digest, Error) -> Result<()>,
) -> Result<()> {
    if !visit(*digest, Part::Node) {
        return Ok(());
    }
    match read_node(objects, digest) {
        Ok(Node::Index { children, .. }) => children.iter().try_for_each(|child| reachable_despite(objects, &child.digest, visit, lost)),
        Ok(Node::Leaf(entries)) => entries.iter().try_for_each(|(_, entry)| content(objects, entry, visit, lost)),
        Err(error) => lost(*digest, error),
    }
}

fn content<O: Objects>(
    objects: &O,
    entry: &Entry,
    visit: &mut impl FnMut(Digest, Part) -> bool,
    lost: &mut impl FnMut(Digest, Error) -> Result<()>,
) -> Result<()> {
    match &entry.kind {
        Kind::File { content: Content::Chunks(chunks), .. } => {
            for chunk in chunks {
                visit(*chunk, Part::Chunk);
            }
        }
        Kind::File { content: Content::Lists(lists), .. } => {
            for list in lists {
                if !visit(*list, Part::List) {
                    continue;
                }
                match read_list(objects, list) {
                    Ok(chunks) => {
                        for chunk in chunks {
                            visit(chunk, Part::Chunk);
                        }
                    }
                    Err(error) => lost(*list, error)?,
                }
            }
        }
        _ => {}
    }
    Ok(())
}
