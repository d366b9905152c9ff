//! The tree as a value: names come and go, hard links stay true.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, Error, Kind, Path, Result, Xattrs, is_name};

/// How many symbolic links one path may lead through, as in the kernel.
pub(super) const SYMLINKS_MAX: usize = 40;

/// A whole tree of files: every name with what it stands for.
///
/// There is always a root, and every entry's directory is in the tree. Equal trees are equal values and have equal
/// digests, whatever the order in which their entries came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    entries: BTreeMap<Path, Entry>,
    /// The other names of entries that have several, by their first name.
    links: BTreeMap<Path, BTreeSet<Path>>,
}

/// What may be changed about an entry without changing what it is.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are those of Entry")]
pub struct AttributesMut<'a> {
    pub mode: &'a mut u32,
    pub uid: &'a mut u32,
    pub gid: &'a mut u32,
    pub mtime_ns: &'a mut i64,
    pub xattrs: &'a mut Xattrs,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// Returns a tree with an empty root directory (root's, mode `0o755`).
    pub fn new() -> Self {
        Self::of(Entry::dir())
    }

    /// Returns a tree that is one entry: a directory, or a single file on its way elsewhere ([`Tree::graft`]).
    pub fn of(root: Entry) -> Self {
        Self { entries: BTreeMap::from([(Path::root(), root)]), links: BTreeMap::new() }
    }

    /// Takes entries that form a tree; says what is wrong with them otherwise.
    pub(super) fn from_entries(entries: BTreeMap<Path, Entry>) -> Result<Self, String> {
        let links = links_of(&entries)?;
        let mut ancestors: Vec<&Path> = Vec::new();
        for (path, entry) in &entries {
            ancestors.truncate(ancestors.iter().rposition(|above| path.is_in(above)).map_or(0, |at| at + 1));
            match ancestors.last() {
                None if !path.is_root() => return Err("it has no root".into()),
                Some(above) if path.names().count() != above.names().count() + 1 => {
                    return Err(format!("{path} is in no directory"));
                }
                _ => {}
            }
            if entry.is_dir() {
                ancestors.push(path);
            }
        }
        if entries.is_empty() {
            return Err("it has no root".into());
        }
        Ok(Self { entries, links })
    }

    /// Returns what is at exactly this path; for one more name of a file, a [`Kind::Hardlink`].
    pub fn get(&self, path: &Path) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// Returns the entry at this path with its content: that of the first name, if the entry has several.
    pub fn resolve<'a>(&'a self, path: &'a Path) -> Option<(&'a Path, &'a Entry)> {
        match self.entries.get_key_value(path)? {
            (_, Entry { kind: Kind::Hardlink { to }, .. }) => self.entries.get_key_value(to),
            found => Some(found),
        }
    }

    /// Returns the root.
    pub fn root(&self) -> &Entry {
        &self.entries[&Path::root()]
    }

    /// Returns how many entries there are, the root included.
    #[expect(clippy::len_without_is_empty, reason = "a tree always has a root")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns all entries in the order of their paths: a directory before what is in it.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&Path, &Entry)> {
        self.entries.iter()
    }

    /// Returns the entry at `path` and all that is in it, in order.
    pub fn range<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a Path, &'a Entry)> {
        self.entries.range(path..).take_while(move |(at, _)| at.is_in(path))
    }

    /// Returns what is directly in a directory, in order.
    pub fn children<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = (&'a Path, &'a Entry)> {
        let depth = path.names().count() + 1;
        self.range(path).filter(move |(at, _)| at.names().count() == depth)
    }

    /// Returns the other names of an entry, given the first of its names.
    pub fn other_names(&self, first: &Path) -> impl Iterator<Item = &Path> {
        self.links.get(first).into_iter().flatten()
    }

    /// Returns where a path leads when symbolic links in its directories are followed inside the tree.
    ///
    /// The last name is not followed, and need not exist; nor need its directories.
    pub fn locate(&self, path: &Path) -> Result<Path> {
        match self.has_plain_parents(path) {
            true => Ok(path.clone()),
            false => self.lead(path, false),
        }
    }

    /// Returns where a path leads when all symbolic links are followed inside the tree, the last one included.
    pub fn follow(&self, path: &Path) -> Result<Path> {
        self.lead(path, true)
    }

    fn has_plain_parents(&self, path: &Path) -> bool {
        let mut above = path.parent();
        while let Some(parent) = above {
            match self.entries.get(&parent) {
                Some(entry) => return entry.is_dir(),
                None => above = parent.parent(),
            }
        }
        true
    }

    fn lead(&self, path: &Path, follow_last: bool) -> Result<Path> {
        let mut ahead: Vec<Vec<u8>> = path.names().rev().map(<[u8]>::to_vec).collect();
        let (mut at, mut symlinks) = (Path::root(), 0);
        while let Some(name) = ahead.pop() {
            if name == b".." {
                at = at.parent().unwrap_or_default();
                continue;
            }
            if !is_name(&name) {
                continue;
            }
            let next = at.join(&name);
            let Some((_, Entry { kind: Kind::Symlink { target }, .. })) = self.resolve(&next) else {
                at = next;
                continue;
            };
            if ahead.is_empty() && !follow_last {
                return Ok(next);
            }
            symlinks += 1;
            if symlinks > SYMLINKS_MAX {
                return Err(Error::TooManySymlinks { path: path.clone() });
            }
            if target.starts_with(b"/") {
                at = Path::root();
            }
            ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
        }
        Ok(at)
    }

    /// Puts an entry at a path, and returns where it landed: symbolic links in the path's directories are followed
    /// inside the tree.
    ///
    /// Missing directories are made (root's, `0o755`). A directory put on a directory changes its attributes and
    /// keeps what is in it; anything else takes the place of all that was there. A [`Kind::Hardlink`] may name any
    /// name of an entry that is no directory, and takes its attributes.
    pub fn insert(&mut self, path: &Path, entry: Entry) -> Result<Path> {
        let at = self.locate(path)?;
        self.insert_at(&at, entry)?;
        Ok(at)
    }

    /// Puts an entry at exactly this path; what is no directory above it becomes one.
    pub(super) fn insert_at(&mut self, at: &Path, entry: Entry) -> Result<()> {
        if let Kind::Hardlink { to } = &entry.kind {
            let to = self.locate(to)?;
            return self.link_at(at, &to);
        }
        if entry.is_dir()
            && let Some(existing) = self.entries.get_mut(at)
            && existing.is_dir()
        {
            existing.set_attributes(&entry);
            return Ok(());
        }
        self.clear(at);
        self.entries.insert(at.clone(), entry);
        Ok(())
    }

    fn link_at(&mut self, at: &Path, to: &Path) -> Result<()> {
        let bad = |why| Error::BadLink { path: at.clone(), to: to.clone(), why };
        let (first, entry) = self.resolve(to).ok_or_else(|| bad("is not in the tree"))?;
        if entry.is_dir() {
            return Err(bad("is a directory"));
        }
        if self.resolve(at).is_some_and(|(same, _)| same == first) {
            return Ok(());
        }
        if first.is_in(at) || at.is_in(first) {
            return Err(bad("the link would replace"));
        }
        let first = first.clone();
        self.clear(at);
        self.add_name(&first, at.clone());
        Ok(())
    }

    /// Adds one more name to the entry whose first name is `first`.
    fn add_name(&mut self, first: &Path, name: Path) {
        let mut names = self.links.remove(first).unwrap_or_default();
        names.insert(name);
        let entry = self.entries.remove(first).expect("the first name is in the tree");
        names.insert(first.clone());
        self.set_names(names, entry);
    }

    /// Gives an entry exactly these names, the first of which gets its content.
    fn set_names(&mut self, mut names: BTreeSet<Path>, entry: Entry) {
        let first = names.pop_first().expect("an entry has a name");
        for name in &names {
            let link = Entry { kind: Kind::Hardlink { to: first.clone() }, ..entry.clone() };
            self.entries.insert(name.clone(), link);
        }
        self.entries.insert(first.clone(), entry);
        if !names.is_empty() {
            self.links.insert(first, names);
        }
    }

    /// Makes room at `at`: nothing there any more, and directories all the way to it.
    fn clear(&mut self, at: &Path) {
        self.remove_at(at);
        if let Some(parent) = at.parent()
            && self.entries.get(&parent).is_none_or(|entry| !entry.is_dir())
        {
            self.clear(&parent);
            self.entries.insert(parent, Entry::dir());
        }
    }

    /// Removes what is at a path and in it, and says if there was anything. Symbolic links in the path's directories
    /// are followed inside the tree. The root itself stays.
    pub fn remove(&mut self, path: &Path) -> Result<bool> {
        let at = self.locate(path)?;
        if at.is_root() {
            self.remove_in(&at);
            return Ok(true);
        }
        Ok(self.remove_at(&at))
    }

    /// Removes what is in the directory at exactly this path, not the directory.
    pub(super) fn remove_in(&mut self, at: &Path) {
        let inside: Vec<Path> = self.range(at).map(|(path, _)| path.clone()).skip(1).collect();
        inside.iter().rev().for_each(|path| self.unlink(path));
    }

    fn remove_at(&mut self, at: &Path) -> bool {
        let found = self.entries.contains_key(at);
        if found {
            self.remove_in(at);
            self.unlink(at);
        }
        found
    }

    /// Takes one name out. If it was the first of several names, the next one gets the content.
    fn unlink(&mut self, path: &Path) {
        let Some(entry) = self.entries.remove(path) else { return };
        if let Kind::Hardlink { to } = &entry.kind {
            if let Some(names) = self.links.get_mut(to) {
                names.remove(path);
                if names.is_empty() {
                    self.links.remove(to);
                }
            }
        } else if let Some(names) = self.links.remove(path) {
            self.set_names(names, entry);
        }
    }

    /// Lets `change` see every entry once, under its first name, and change its attributes: of all its names.
    pub fn edit(&mut self, mut change: impl FnMut(&Path, AttributesMut<'_>)) {
        for (path, entry) in &mut self.entries {
            if matches!(entry.kind, Kind::Hardlink { .. }) {
                continue;
            }
            let Entry { kind: _, mode, uid, gid, mtime_ns, xattrs } = entry;
            change(path, AttributesMut { mode, uid, gid, mtime_ns, xattrs });
            *mode &= 0o7777;
        }
        for (first, names) in &self.links {
            let entry = self.entries[first].clone();
            for name in names {
                self.entries.get_mut(name).expect("a link is in the tree").set_attributes(&entry);
            }
        }
    }

    /// Returns how many bytes the files hold; a file with several names counts once.
    pub fn content_bytes(&self) -> u64 {
        self.entries.values().map(Entry::content_bytes).sum()
    }
}

/// Finds the other names of each entry, and checks that links name first names and look like them.
fn links_of(entries: &BTreeMap<Path, Entry>) -> Result<BTreeMap<Path, BTreeSet<Path>>, String> {
    let mut links: BTreeMap<Path, BTreeSet<Path>> = BTreeMap::new();
    for (path, entry) in entries {
        let Kind::Hardlink { to } = &entry.kind else { continue };
        let Some(first) = entries.get(to) else { return Err(format!("{path} is a link to nothing")) };
        let mut expected = first.clone();
        expected.kind = entry.kind.clone();
        if to >= path || first.is_dir() || matches!(first.kind, Kind::Hardlink { .. }) || expected != *entry {
            return Err(format!("{path} is no proper link to {to}"));
        }
        links.entry(to.clone()).or_default().insert(path.clone());
    }
    Ok(links)
}
