//! A layer: what changed on top of a tree, and how it is applied.

use super::{Entry, Error, Kind, Path, Result, Tree};

/// One change that a layer makes to the tree below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is now this entry, as [`Tree::insert`] puts it.
    Put(Path, Entry),
    /// What the trees below have here is gone (a *whiteout*).
    Remove(Path),
    /// What the trees below have in this directory is gone; the directory itself stays.
    Opaque(Path),
}

impl Tree {
    /// Applies the changes of one layer.
    ///
    /// Removals speak of the trees below, so they come first, wherever they stand in the layer; removing what is not
    /// there means nothing. Then entries are put in their order. A hard link may stand before the entry it names.
    pub fn apply_layer(&mut self, changes: Vec<Change>) -> Result<()> {
        for change in &changes {
            match change {
                Change::Put(..) => {}
                Change::Remove(path) => drop(self.remove(path)?),
                Change::Opaque(path) => self.remove_all_in(path)?,
            }
        }
        let mut early = Vec::new();
        for change in changes {
            let Change::Put(path, entry) = change else { continue };
            if self.lacks_target(&entry)? {
                early.push((path, entry));
                continue;
            }
            self.insert(&path, entry)?;
        }
        early.into_iter().try_for_each(|(path, entry)| self.insert(&path, entry).map(drop))
    }

    fn remove_all_in(&mut self, path: &Path) -> Result<()> {
        let at = self.locate(path)?;
        if self.get(&at).is_some_and(Entry::is_dir) {
            self.remove_in(&at);
        }
        Ok(())
    }

    fn lacks_target(&self, entry: &Entry) -> Result<bool, Error> {
        match &entry.kind {
            Kind::Hardlink { to } => Ok(self.get(&self.locate(to)?).is_none()),
            _ => Ok(false),
        }
    }
}
