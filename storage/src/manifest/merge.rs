//! Trees over trees: mounts and the client over an image, and parts of one image copied into another.
//!
//! The rule when both have something at a path: two directories merge, and the one that was there keeps its
//! attributes (so that a mount below `/tmp` leaves `/tmp` open to all). Otherwise what comes replaces what was: a
//! file takes the place of a whole directory, a directory that of a file. A symbolic link that leads to a directory
//! counts as that directory when a directory comes to its place: with `lib -> usr/lib`, the file `lib/x` lands at
//! `usr/lib/x` and the link stays.

use std::collections::HashMap;

use super::{Entry, Error, Kind, Path, Result, Tree};

impl Tree {
    /// Puts all of `other` over this tree, by the rule above.
    pub fn overlay(&mut self, other: &Tree) -> Result<()> {
        self.graft(&Path::root(), other)
    }

    /// Puts `other` at a path of this tree, by the rule above.
    ///
    /// The root of `other` becomes what is at `at`: a single file ([`Tree::subtree`] of a file) replaces what is there,
    /// a directory merges into a directory. Missing directories above are made (root's, `0o755`).
    pub fn graft(&mut self, at: &Path, other: &Tree) -> Result<()> {
        let mut graft = Graft { into: self, other, dirs: Vec::new(), firsts: HashMap::new() };
        for (path, entry) in other.iter() {
            graft.entry(at, path, entry)?;
        }
        Ok(())
    }

    /// Returns what is at a path as a tree of its own: a directory with all that is in it, or a single entry.
    ///
    /// Symbolic links in the path's directories are followed, the last name is not ([`Tree::follow`] does that). Of a
    /// file with names in and outside, the names inside stay one file.
    pub fn subtree(&self, path: &Path) -> Result<Tree> {
        let from = self.locate(path)?;
        let (_, top) = self.resolve(&from).ok_or_else(|| Error::NotFound { path: path.clone() })?;
        let mut part = Tree::of(top.clone());
        let mut firsts: HashMap<&Path, Path> = HashMap::new();
        for (at, entry) in self.range(&from).skip(1) {
            let place = at.strip(&from).expect("a range has what is in its path");
            let (first, whole) = self.resolve(at).expect("the entry is in the tree");
            let entry = match firsts.get(first) {
                Some(to) => Entry { kind: Kind::Hardlink { to: to.clone() }, ..entry.clone() },
                None => whole.clone(),
            };
            if self.other_names(first).next().is_some() {
                firsts.entry(first).or_insert_with(|| place.clone());
            }
            part.insert_at(&place, entry)?;
        }
        Ok(part)
    }
}

/// One graft on its way.
struct Graft<'a> {
    into: &'a mut Tree,
    other: &'a Tree,
    /// The directories of `other` that lead to the current entry, each with its place.
    dirs: Vec<(&'a Path, Path)>,
    /// Where the entries of `other` with several names landed first.
    firsts: HashMap<&'a Path, Path>,
}

impl<'a> Graft<'a> {
    fn entry(&mut self, at: &Path, path: &'a Path, entry: &'a Entry) -> Result<()> {
        while self.dirs.last().is_some_and(|(dir, _)| !path.is_in(dir)) {
            self.dirs.pop();
        }
        let place = match (self.dirs.last(), path.name()) {
            (Some((_, dir)), Some(name)) => dir.join(name),
            _ => self.into.locate(at)?,
        };
        if entry.is_dir() {
            let place = self.dir(place, entry)?;
            self.dirs.push((path, place));
            return Ok(());
        }
        if place.is_root() {
            *self.into = Tree::of(entry.clone());
            return Ok(());
        }
        self.file(path, place)
    }

    /// Makes sure that there is a directory at `place`, and returns where it really is.
    fn dir(&mut self, place: Path, entry: &Entry) -> Result<Path> {
        let real = match self.into.follow(&place) {
            Ok(real) => real,
            Err(Error::TooManySymlinks { .. }) => place.clone(),
            Err(error) => return Err(error),
        };
        if self.into.get(&real).is_some_and(Entry::is_dir) {
            return Ok(real);
        }
        self.into.insert_at(&place, entry.clone())?;
        Ok(place)
    }

    /// Puts what is no directory, keeping names of one file names of one file.
    fn file(&mut self, path: &'a Path, place: Path) -> Result<()> {
        let (first, whole) = self.other.resolve(path).expect("the entry is in the tree");
        if let Some(to) = self.firsts.get(first)
            && self.into.resolve(to).is_some_and(|(_, there)| there == whole)
            && !place.is_in(to)
            && !to.is_in(&place)
        {
            return self.into.insert_at(&place, Entry { kind: Kind::Hardlink { to: to.clone() }, ..whole.clone() });
        }
        self.into.insert_at(&place, whole.clone())?;
        if self.other.other_names(first).next().is_some() {
            self.firsts.insert(first, place);
        }
        Ok(())
    }
}
