//! A folder as a disk holds it: what was synced, what was not yet, and what of it a power cut may leave.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::content::{self, Change, Content};
use super::event::Event;
use super::random::Random;

/// A folder and all in it.
#[derive(Debug)]
pub struct Disk {
    nodes: Vec<Node>,
    /// How many changes there were so far: their numbers say which of them a sync covers.
    changes: u64,
    /// The node that each thread is syncing, with the number of changes when it began.
    syncing: HashMap<u32, (usize, u64)>,
}

const ROOT: usize = 0;

#[derive(Debug)]
enum Node {
    File(File),
    Dir(Dir),
    /// Whatever it is, it stays as it was before.
    LeftOut(PathBuf),
}

#[derive(Debug, Default)]
struct File {
    /// Where the file is as it was before; none once it changed.
    before: Option<PathBuf>,
    synced: Content,
    /// As those see it who have it open.
    length: u64,
    /// Changes that no sync covered yet, by number.
    pending: Vec<(u64, Change)>,
}

#[derive(Debug, Default)]
struct Dir {
    live: BTreeMap<String, usize>,
    synced: BTreeMap<String, usize>,
    pending: Vec<(u64, Naming)>,
}

#[derive(Debug, Clone)]
enum Naming {
    Add(String, usize),
    Remove(String),
    Rename(String, String),
}

impl Default for Disk {
    fn default() -> Self {
        Self { nodes: vec![Node::Dir(Dir::default())], changes: 0, syncing: HashMap::new() }
    }
}

impl Disk {
    /// Returns a disk that holds what is in a folder. What is `left_out` (paths in it) is always as it is now.
    pub fn holding(before: &Path, left_out: &[PathBuf]) -> Result<Self> {
        let mut disk = Self::default();
        disk.take(ROOT, before, Path::new(""), left_out).with_context(|| format!("cannot take what is in {}", before.display()))?;
        Ok(disk)
    }

    fn take(&mut self, dir: usize, from: &Path, at: &Path, left_out: &[PathBuf]) -> Result<()> {
        for entry in fs::read_dir(from.join(at))? {
            let entry = entry?;
            let name = entry.file_name().to_str().context("a name is not text")?.to_owned();
            let (path, at) = (entry.path(), at.join(&name));
            let kind = entry.file_type()?;
            let node = match () {
                () if left_out.contains(&at) => Node::LeftOut(path),
                () if kind.is_dir() => Node::Dir(Dir::default()),
                () if kind.is_file() => Node::File(File::before(path)?),
                () => anyhow::bail!("{} is neither a file nor a folder", path.display()),
            };
            let (number, is_dir) = (self.nodes.len(), matches!(node, Node::Dir(_)));
            self.nodes.push(node);
            let Node::Dir(parent) = &mut self.nodes[dir] else { unreachable!("a folder") };
            parent.live.insert(name.clone(), number);
            parent.synced.insert(name, number);
            if is_dir {
                self.take(number, from, &at, left_out)?;
            }
        }
        Ok(())
    }

    /// Lets something happen.
    pub fn apply(&mut self, event: &Event) -> Result<()> {
        self.changes += 1;
        match event {
            Event::Made { path, dir } => self.make(path, *dir)?,
            Event::Wrote { path, offset, bytes } => {
                self.change(path, Change::Write { offset: *offset, bytes: bytes.clone() })?;
            }
            Event::Appended { path, bytes } => {
                let node = self.find(path)?;
                let Node::File(File { length, .. }) = &self.nodes[node] else { anyhow::bail!("{} is a folder", path.display()) };
                self.change(path, Change::Write { offset: *length, bytes: bytes.clone() })?;
            }
            Event::Length { path, length } => self.change(path, Change::Length(*length))?,
            Event::Allocated { path, length } => self.change(path, Change::Allocate(*length))?,
            Event::Punched { path, offset, length } => {
                self.change(path, Change::Punch { offset: *offset, length: *length })?;
            }
            Event::Renamed { from, to } => self.rename(from, to)?,
            Event::Removed { path } => {
                let (dir, name) = self.parent(path)?;
                self.name(dir, Naming::Remove(name));
            }
            Event::SyncBegan { thread, path, .. } => {
                let began = (self.find(path)?, self.changes);
                self.syncing.insert(*thread, began);
            }
            // A sync that is being ignored ends without having begun.
            Event::SyncEnded { thread } => {
                if let Some((node, changes)) = self.syncing.remove(thread) {
                    self.sync(node, changes);
                }
            }
            Event::Said(_) => {}
        }
        Ok(())
    }

    /// Writes into `to` what a power cut at this moment may leave.
    pub fn rebuild(&self, to: &Path, random: &mut Random) -> Result<()> {
        self.rebuild_dir(ROOT, to, random)
    }

    fn rebuild_dir(&self, node: usize, to: &Path, random: &mut Random) -> Result<()> {
        fs::create_dir_all(to)?;
        let Node::Dir(dir) = &self.nodes[node] else { unreachable!("a folder") };
        let mut names = dir.synced.clone();
        let kept = random.below(dir.pending.len() as u64 + 1) as usize;
        dir.pending[..kept].iter().for_each(|(_, naming)| naming.apply(&mut names));
        for (name, node) in names {
            match &self.nodes[node] {
                Node::File(file) => file.rebuild(&to.join(name), random)?,
                Node::Dir(_) => self.rebuild_dir(node, &to.join(name), random)?,
                Node::LeftOut(before) if before.is_dir() => copy_all(before, &to.join(name))?,
                Node::LeftOut(_) => {}
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &Path, dir: bool) -> Result<()> {
        if self.find(path).is_ok() {
            return Ok(());
        }
        let (parent, name) = self.parent(path)?;
        self.nodes.push(if dir { Node::Dir(Dir::default()) } else { Node::File(File::default()) });
        self.name(parent, Naming::Add(name, self.nodes.len() - 1));
        Ok(())
    }

    fn change(&mut self, path: &Path, change: Change) -> Result<()> {
        let node = self.find(path)?;
        let Node::File(file) = &mut self.nodes[node] else { anyhow::bail!("{} is a folder", path.display()) };
        file.change(self.changes, change)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        let node = self.find(from)?;
        let ((old_dir, old), (new_dir, new)) = (self.parent(from)?, self.parent(to)?);
        if old_dir == new_dir {
            self.name(old_dir, Naming::Rename(old, new));
        } else {
            self.name(new_dir, Naming::Add(new, node));
            self.name(old_dir, Naming::Remove(old));
        }
        Ok(())
    }

    fn name(&mut self, dir: usize, naming: Naming) {
        let Node::Dir(dir) = &mut self.nodes[dir] else { unreachable!("a parent is a folder") };
        naming.apply(&mut dir.live);
        dir.pending.push((self.changes, naming));
    }

    fn sync(&mut self, node: usize, changes: u64) {
        match &mut self.nodes[node] {
            Node::File(file) => {
                let covered = file.pending.partition_point(|(number, _)| *number <= changes);
                file.pending.drain(..covered).for_each(|(_, change)| file.synced.apply(&change));
            }
            Node::Dir(dir) => {
                let covered = dir.pending.partition_point(|(number, _)| *number <= changes);
                dir.pending.drain(..covered).for_each(|(_, naming)| naming.apply(&mut dir.synced));
            }
            Node::LeftOut(_) => {}
        }
    }

    fn find(&self, path: &Path) -> Result<usize> {
        path.iter().try_fold(ROOT, |node, name| {
            let Node::Dir(dir) = &self.nodes[node] else { anyhow::bail!("{} goes through a file", path.display()) };
            let found = dir.live.get(name.to_str().context("a name is not text")?);
            found.copied().with_context(|| format!("{} is not there", path.display()))
        })
    }

    fn parent(&self, path: &Path) -> Result<(usize, String)> {
        let name = path.file_name().and_then(|name| name.to_str()).context("a path without a name")?;
        let dir = self.find(path.parent().context("a path without a parent")?)?;
        ensure!(matches!(self.nodes[dir], Node::Dir(_)), "{} goes through a file", path.display());
        Ok((dir, name.to_owned()))
    }
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

impl File {
    /// Takes a file that was there before; its bytes are read when it changes.
    fn before(path: PathBuf) -> Result<Self> {
        let length = fs::metadata(&path)?.len();
        Ok(Self { before: Some(path), length, ..Self::default() })
    }

    fn change(&mut self, number: u64, change: Change) -> Result<()> {
        if let Some(path) = self.before.take() {
            self.synced = Content::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        match &change {
            Change::Write { offset, bytes } => self.length = self.length.max(offset + bytes.len() as u64),
            Change::Length(length) => self.length = *length,
            Change::Allocate(length) => self.length = self.length.max(*length),
            Change::Punch { .. } => {}
        }
        self.pending.push((number, change));
        Ok(())
    }

    fn rebuild(&self, to: &Path, random: &mut Random) -> Result<()> {
        match &self.before {
            Some(before) => content::copy(before, to),
            None => self.synced.after_cut(self.pending.iter().map(|(_, change)| change), random).write(to),
        }
    }
}

/// Copies what is in a folder; sockets and the like are left out.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, kind) = entry.and_then(|entry| entry.file_type().map(|kind| (entry, kind)))?;
        let to = to.join(entry.file_name());
        match () {
            () if kind.is_dir() => copy_all(&entry.path(), &to)?,
            () if kind.is_file() => content::copy(&entry.path(), &to)?,
            () if kind.is_symlink() => std::os::unix::fs::symlink(fs::read_link(entry.path())?, to)?,
            () => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn wrote(path: &str, offset: u64, bytes: &[u8]) -> Event {
        Event::Wrote { path: path.into(), offset, bytes: bytes.to_vec() }
    }

    fn synced(path: &str) -> [Event; 2] {
        let began = Event::SyncBegan { thread: 1, call: "fsync", path: path.into() };
        [began, Event::SyncEnded { thread: 1 }]
    }

    /// Rebuilds a disk many times, and returns the different contents of a file in the order of the alphabet.
    fn outcomes(events: &[Event], path: &str) -> Vec<Option<Vec<u8>>> {
        let mut disk = Disk::default();
        events.iter().for_each(|event| disk.apply(event).unwrap());
        let mut random = Random::new(1);
        let mut found = BTreeSet::new();
        for _ in 0..100 {
            let dir = tempfile::tempdir().unwrap();
            disk.rebuild(dir.path(), &mut random).unwrap();
            found.insert(fs::read(dir.path().join(path)).ok());
        }
        found.into_iter().collect()
    }

    #[test]
    fn only_what_was_synced_is_certain() {
        let made = Event::Made { path: "f".into(), dir: false };
        let mut events = vec![made, wrote("f", 0, b"ab")];
        events.extend(synced("f"));
        assert_eq!(outcomes(&events, "f"), [None, Some(b"ab".to_vec())], "the name was not synced");
        events.extend(synced(""));
        assert_eq!(outcomes(&events, "f"), [Some(b"ab".to_vec())]);
        events.push(wrote("f", 1, b"xy"));
        let torn = [b"ab".to_vec(), b"ab\0".to_vec(), b"ax".to_vec(), b"axy".to_vec()].map(Some);
        assert_eq!(outcomes(&events, "f"), torn);
    }

    #[test]
    fn a_sync_covers_what_was_written_before_it_began() {
        let [began, ended] = synced("f");
        let mut events = vec![Event::Made { path: "f".into(), dir: false }];
        events.extend(synced(""));
        events.extend([wrote("f", 0, b"a"), began, wrote("f", 0, b"b"), ended]);
        assert_eq!(outcomes(&events, "f"), [b"a", b"b"].map(|bytes| Some(bytes.to_vec())));
    }

    #[test]
    fn blocks_are_written_back_each_on_its_own() {
        let mut events = vec![Event::Made { path: "f".into(), dir: false }, Event::Allocated { path: "f".into(), length: 8192 }];
        events.extend(synced("f"));
        events.extend(synced(""));
        events.push(wrote("f", 0, &[1; 8192]));
        let ends: Vec<_> = outcomes(&events, "f").into_iter().flatten().map(|bytes| (bytes[0], bytes[8191])).collect();
        assert_eq!(ends, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }

    #[test]
    fn what_was_there_before_is_certain_until_it_changes() {
        let before = tempfile::tempdir().unwrap();
        let at = |name: &str| before.path().join(name);
        fs::create_dir_all(at("run/deep")).unwrap();
        fs::create_dir(at("dir")).unwrap();
        for name in ["dir/kept", "dir/added to", "run/deep/left out"] {
            fs::write(at(name), "old").unwrap();
        }
        let _socket = std::os::unix::net::UnixListener::bind(at("run/socket")).unwrap();
        let mut disk = Disk::holding(before.path(), &["run".into()]).unwrap();
        disk.apply(&Event::Appended { path: "dir/added to".into(), bytes: b"er".to_vec() }).unwrap();
        disk.apply(&Event::Appended { path: "dir/added to".into(), bytes: b"!".to_vec() }).unwrap();
        let mut found = BTreeSet::new();
        for seed in 0..100 {
            let after = tempfile::tempdir().unwrap();
            disk.rebuild(after.path(), &mut Random::new(seed)).unwrap();
            let read = |name: &str| fs::read_to_string(after.path().join(name)).unwrap();
            assert_eq!((read("dir/kept"), read("run/deep/left out")), ("old".to_owned(), "old".to_owned()));
            assert!(!after.path().join("run/socket").exists());
            found.insert(read("dir/added to").replace('\0', "-"));
        }
        assert!(found.contains("old") && found.contains("older!") && found.contains("old---"), "{found:?}");
        disk.apply(&Event::SyncBegan { thread: 1, call: "fdatasync", path: "dir/added to".into() }).unwrap();
        disk.apply(&Event::SyncEnded { thread: 1 }).unwrap();
        let after = tempfile::tempdir().unwrap();
        disk.rebuild(after.path(), &mut Random::new(1)).unwrap();
        assert_eq!(fs::read(after.path().join("dir/added to")).unwrap(), b"older!");
    }

    #[test]
    fn a_socket_is_refused_where_nothing_is_left_out() {
        let before = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(before.path().join("socket")).unwrap();
        let error = format!("{:#}", Disk::holding(before.path(), &[]).unwrap_err());
        assert!(error.contains("socket is neither a file nor a folder"), "{error}");
    }
}
