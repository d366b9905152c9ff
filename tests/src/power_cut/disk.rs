//! A folder as a disk holds it: what was synced, what was not yet, and what of it a power cut may leave.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use super::random::Random;
use super::trace::Event;

const BLOCK_BYTES: u64 = 4096;

type Block = Arc<[u8; BLOCK_BYTES as usize]>;

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
}

#[derive(Debug, Default)]
struct File {
    synced: Content,
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
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
    Allocate(u64),
    Punch { offset: u64, length: u64 },
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
    /// Lets something happen.
    pub fn apply(&mut self, event: &Event) -> Result<()> {
        self.changes += 1;
        match event {
            Event::Made { path, dir } => self.make(path, *dir)?,
            Event::Wrote { path, offset, bytes } => {
                self.change(path, Change::Write { offset: *offset, bytes: bytes.clone() })?;
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
                Node::File(file) => file.after_cut(random).write(&to.join(name))?,
                Node::Dir(_) => self.rebuild_dir(node, &to.join(name), random)?,
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
        file.pending.push((self.changes, change));
        Ok(())
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
    /// Returns what a power cut may leave: each block, and the length, as of some moment since the last sync.
    fn after_cut(&self, random: &mut Random) -> Content {
        let mut moments = vec![self.synced.clone()];
        for (_, change) in &self.pending {
            let mut next = moments.last().expect("there is one").clone();
            next.apply(change);
            moments.push(next);
        }
        let last = moments.len() as u64 - 1;
        // The first and the last moment are likely: nothing, or all, was written back.
        let mut moment = || match random.below(3) {
            0 => &moments[0],
            1 => &moments[last as usize],
            _ => &moments[random.below(last + 1) as usize],
        };
        let numbers: BTreeSet<u64> = moments.iter().flat_map(|content| content.blocks.keys().copied()).collect();
        let length = moment().length;
        let blocks = numbers.into_iter().filter_map(|number| Some((number, moment().blocks.get(&number)?.clone()))).collect();
        Content { length, blocks }
    }
}

/// The bytes of a file. A block that is not there is zeros.
#[derive(Debug, Clone, Default)]
struct Content {
    length: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, bytes } => {
                self.fill(*offset, bytes.len() as u64, |at| bytes[at as usize]);
                self.length = self.length.max(offset + bytes.len() as u64);
            }
            Change::Length(length) => {
                if *length < self.length {
                    self.zero(*length, self.length - length);
                }
                self.length = *length;
            }
            Change::Allocate(length) => self.length = self.length.max(*length),
            Change::Punch { offset, length } => self.zero(*offset, *length),
        }
    }

    fn fill(&mut self, offset: u64, length: u64, byte: impl Fn(u64) -> u8) {
        let mut at = 0;
        while at < length {
            let (number, start) = ((offset + at) / BLOCK_BYTES, (offset + at) % BLOCK_BYTES);
            let part = (BLOCK_BYTES - start).min(length - at);
            let block = self.blocks.entry(number).or_insert_with(|| Arc::new([0; BLOCK_BYTES as usize]));
            let bytes = &mut Arc::make_mut(block)[start as usize..(start + part) as usize];
            bytes.iter_mut().enumerate().for_each(|(index, slot)| *slot = byte(at + index as u64));
            at += part;
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let whole = offset.div_ceil(BLOCK_BYTES)..(end / BLOCK_BYTES);
        let gone: Vec<u64> = self.blocks.range(offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(|(number, _)| *number).collect();
        for number in gone {
            if whole.contains(&number) {
                self.blocks.remove(&number);
            } else {
                let (first, last) = ((number * BLOCK_BYTES).max(offset), ((number + 1) * BLOCK_BYTES).min(end));
                self.fill(first, last - first, |_| 0);
            }
        }
    }

    fn write(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        for (number, block) in &self.blocks {
            file.write_all_at(&block[..], number * BLOCK_BYTES)?;
        }
        Ok(file.set_len(self.length)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

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
    fn content_is_what_a_file_would_be() {
        let mut random = Random::new(2);
        let mut content = Content::default();
        let mut model: Vec<u8> = Vec::new();
        for step in 0..500 {
            let (offset, length) = (random.below(20_000), random.below(9_000));
            let change = match step % 4 {
                0 | 1 => Change::Write { offset, bytes: random.bytes(length as usize) },
                2 => Change::Punch { offset, length },
                _ => Change::Length(offset),
            };
            let end = (offset + length) as usize;
            match &change {
                Change::Write { bytes, .. } => {
                    model.resize(model.len().max(end), 0);
                    model[offset as usize..end].copy_from_slice(bytes);
                }
                Change::Length(length) => model.resize(*length as usize, 0),
                _ => {
                    let end = end.min(model.len());
                    model[(offset as usize).min(end)..end].fill(0);
                }
            }
            content.apply(&change);
            let dir = tempfile::tempdir().unwrap();
            let path: PathBuf = dir.path().join("f");
            content.write(&path).unwrap();
            assert_eq!(fs::read(&path).unwrap(), model, "after step {step}: {change:?}");
        }
    }
}
