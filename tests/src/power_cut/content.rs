//! The bytes of a file in blocks, as a disk holds them, and what changes them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::random::Random;

const BLOCK_BYTES: u64 = 4096;

type Block = Arc<[u8; BLOCK_BYTES as usize]>;

/// How much of a file is copied at a time; a part of only zeros becomes a hole.
const COPY_BYTES: usize = 64 << 10;

#[derive(Debug, Clone)]
pub(super) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    Length(u64),
    Allocate(u64),
    Punch { offset: u64, length: u64 },
}

impl Change {
    /// Returns the blocks that may be others after this, in a file of this length.
    fn blocks(&self, length: u64) -> Range<u64> {
        let bytes = match self {
            Self::Write { offset, bytes } => *offset..offset + bytes.len() as u64,
            Self::Length(to) => *to..length.max(*to),
            Self::Allocate(_) => 0..0,
            Self::Punch { offset, length } => *offset..offset + length,
        };
        bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)
    }
}

/// The bytes of a file. A block that is not there is zeros.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    length: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Content {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let mut file = File::open(path)?;
        let mut content = Self { length: file.metadata()?.len(), blocks: BTreeMap::new() };
        let (mut bytes, mut number) = ([0; BLOCK_BYTES as usize], 0);
        while number * BLOCK_BYTES < content.length {
            let here = (content.length - number * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
            bytes.fill(0);
            file.read_exact(&mut bytes[..here])?;
            if bytes != [0; BLOCK_BYTES as usize] {
                content.blocks.insert(number, Arc::new(bytes));
            }
            number += 1;
        }
        Ok(content)
    }

    /// Returns what a power cut may leave when these changes were not synced: each block, and the length, as of some moment.
    pub(super) fn after_cut<'a>(&self, pending: impl Iterator<Item = &'a Change>, random: &mut Random) -> Self {
        let (mut last, mut lengths) = (self.clone(), vec![self.length]);
        // What each block was, from which moment on.
        let mut versions: BTreeMap<u64, Vec<(usize, Option<Block>)>> = BTreeMap::new();
        for change in pending {
            let blocks = change.blocks(last.length);
            for number in blocks.clone() {
                versions.entry(number).or_insert_with(|| vec![(0, last.blocks.get(&number).cloned())]);
            }
            last.apply(change);
            for number in blocks {
                versions.entry(number).or_default().push((lengths.len(), last.blocks.get(&number).cloned()));
            }
            lengths.push(last.length);
        }
        let end = lengths.len() - 1;
        // The first and the last moment are likely: nothing, or all, was written back.
        let mut moment = || match random.below(3) {
            0 => 0,
            1 => end,
            _ => random.below(end as u64 + 1) as usize,
        };
        let mut left = Self { length: lengths[moment()], blocks: self.blocks.clone() };
        for (number, versions) in versions {
            let moment = moment();
            let version = versions.partition_point(|(from, _)| *from <= moment) - 1;
            match &versions[version].1 {
                Some(block) => drop(left.blocks.insert(number, Arc::clone(block))),
                None => drop(left.blocks.remove(&number)),
            }
        }
        left
    }

    pub(super) fn apply(&mut self, change: &Change) {
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

    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        for (number, block) in &self.blocks {
            file.write_all_at(&block[..], number * BLOCK_BYTES)?;
        }
        Ok(file.set_len(self.length)?)
    }
}

/// Copies a file; zeros become holes.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    static ZEROS: [u8; COPY_BYTES] = [0; COPY_BYTES];
    let source = File::open(from).with_context(|| format!("cannot open {}", from.display()))?;
    let target = OpenOptions::new().write(true).create_new(true).open(to).with_context(|| format!("cannot make {}", to.display()))?;
    let (mut bytes, mut at) = (vec![0; COPY_BYTES], 0);
    loop {
        let read = source.read_at(&mut bytes, at)?;
        if read == 0 {
            return Ok(target.set_len(at)?);
        }
        if bytes[..read] != ZEROS[..read] {
            target.write_all_at(&bytes[..read], at)?;
        }
        at += read as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let path = dir.path().join("f");
            content.write(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), model, "after step {step}: {change:?}");
        }
    }

    #[test]
    fn a_copy_is_equal() {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(3);
        let bytes = [vec![0; COPY_BYTES], random.bytes(100), vec![0; 3 * COPY_BYTES], random.bytes(COPY_BYTES), vec![0; 9]].concat();
        std::fs::write(dir.path().join("a"), &bytes).unwrap();
        copy(&dir.path().join("a"), &dir.path().join("b")).unwrap();
        assert!(std::fs::read(dir.path().join("b")).unwrap() == bytes);
        Content::read(&dir.path().join("a")).unwrap().write(&dir.path().join("c")).unwrap();
        assert!(std::fs::read(dir.path().join("c")).unwrap() == bytes);
    }
}
