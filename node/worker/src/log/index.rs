//! Where in a file which lines lie, so that a reader opens few files and reads little of them. Pure.
//!
//! A file is cut into *blocks*: runs of records of some 64 KiB. Of each block its times are known, and of each app,
//! function and task in which blocks it has lines. The newest lines of an app that prints one line an hour, between others
//! that print gigabytes, are then a block each instead of a file each.

use std::collections::BTreeMap;
use std::ops::Range;

use super::entry::Filter;
use serde::{Deserialize, Serialize};

/// A block ends with the record that makes it so long, in bytes.
const BLOCK_BYTES: u64 = 64 << 10;

/// How many blocks a file has at most; the last takes the rest. As many as bits in [`Held::blocks`].
const BLOCKS_MAX: usize = 128;

/// Of so many tasks a file's index tells where their lines are; with more, they may be anywhere in it.
const TASKS_MAX: usize = 4096;

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    blocks: Vec<Block>,
    apps: BTreeMap<u128, Held>,
    functions: BTreeMap<u128, Held>,
    tasks: BTreeMap<u128, Held>,
    /// There were more tasks than are in `tasks`.
    tasks_left_out: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    /// Where its first record begins.
    start: u64,
    first_ns: u64,
    last_ns: u64,
}

/// The lines that one app, function or task has in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    lines: u64,
    /// A bit for each block.
    blocks: u128,
}

impl Held {
    fn add(&mut self, block: u128) {
        self.lines += 1;
        self.blocks |= block;
    }
}

impl Index {
    /// Notes a record that begins at `offset`. Records are noted in order.
    pub(super) fn add(&mut self, offset: u64, timestamp_ns: u64, app: u128, task: u128, function: u128) {
        let begins = self.blocks.last().is_none_or(|last| offset - last.start >= BLOCK_BYTES);
        if begins && self.blocks.len() < BLOCKS_MAX {
            self.blocks.push(Block { start: offset, first_ns: timestamp_ns, last_ns: timestamp_ns });
        }
        let bit = 1 << (self.blocks.len() - 1);
        if let Some(block) = self.blocks.last_mut() {
            block.first_ns = block.first_ns.min(timestamp_ns);
            block.last_ns = block.last_ns.max(timestamp_ns);
        }
        self.apps.entry(app).or_default().add(bit);
        self.functions.entry(function).or_default().add(bit);
        if self.tasks.len() < TASKS_MAX || self.tasks.contains_key(&task) {
            self.tasks.entry(task).or_default().add(bit);
        } else {
            self.tasks_left_out = true;
        }
    }

    /// Returns the times of the oldest and the newest line, in nanoseconds since 1970; none of an empty file.
    pub(super) fn times(&self) -> Option<(u64, u64)> {
        let first = self.blocks.iter().map(|block| block.first_ns).min()?;
        let last = self.blocks.iter().map(|block| block.last_ns).max()?;
        Some((first, last))
    }

    /// Returns how many lines each app has.
    pub(super) fn lines_by_app(&self) -> impl Iterator<Item = (u128, u64)> + '_ {
        self.apps.iter().map(|(app, held)| (*app, held.lines))
    }

    /// Returns the parts of a file of this length that may hold what is wanted, in order, a block each.
    pub(super) fn parts(&self, filter: &Filter, length: u64) -> Vec<Range<u64>> {
        let (wanted, times) = (self.blocks_of(filter), filter.times());
        let ends = self.blocks.iter().skip(1).map(|block| block.start).chain([length]);
        let part = |(number, (block, end)): (usize, (&Block, u64))| {
            let may = wanted & (1 << number) != 0 && block.last_ns >= times.start && block.first_ns < times.end;
            may.then_some(block.start..end)
        };
        self.blocks.iter().zip(ends).enumerate().filter_map(part).collect()
    }

    fn blocks_of(&self, filter: &Filter) -> u128 {
        let of = |held: &BTreeMap<u128, Held>, wanted: u128| held.get(&wanted).map_or(0, |held| held.blocks);
        let app = filter.app.map_or(u128::MAX, |app| of(&self.apps, app.bits()));
        let task = match filter.task.map_or(u128::MAX, |task| of(&self.tasks, task.bits())) {
            0 if self.tasks_left_out => u128::MAX,
            blocks => blocks,
        };
        let functions = filter.functions.iter().map(|function| of(&self.functions, function.bits()));
        app & task & if filter.functions.is_empty() { u128::MAX } else { functions.fold(0, |all, one| all | one) }
    }
}

/// Joins parts that follow each other, so that they are read in one go.
pub(super) fn joined(parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]
mod tests {
    use shoal_state::{AppId, FunctionId, TaskId};

    use super::*;

    fn of_app(app: u128) -> Filter {
        Filter::app(AppId::from_random(app))
    }

    #[test]
    fn lines_are_looked_for_only_in_blocks_that_have_them() {
        let mut index = Index::default();
        // Ten records of 16 KiB: four fill a block. The quiet app prints the sixth.
        for number in 0..10 {
            let app = if number == 5 { 2 } else { 1 };
            index.add(number * (16 << 10), 100 + number, app, app * 10, app * 100);
        }
        let length = 10 * (16 << 10);
        let block = 64 << 10;
        assert_eq!(index.parts(&of_app(1), length), [0..block, block..2 * block, 2 * block..length]);
        assert_eq!(index.parts(&of_app(2), length), [block..2 * block]);
        assert!(index.parts(&of_app(3), length).is_empty());
        let both = Filter { task: Some(TaskId::from_random(10)), ..of_app(2) };
        assert_eq!(index.parts(&both, length), [block..2 * block], "the block has lines of both");
        let none = Filter { functions: vec![FunctionId::from_random(300)], ..of_app(1) };
        assert!(index.parts(&none, length).is_empty());
        assert_eq!(index.parts(&Filter { since_ns: Some(109), until_ns: Some(200), ..of_app(1) }, length), [2 * block..length]);
        assert_eq!(index.parts(&Filter { until_ns: Some(101), ..of_app(1) }, length), [0..block]);
        assert_eq!(index.times(), Some((100, 109)));
    }

    #[test]
    fn the_last_block_takes_the_rest_and_many_tasks_may_be_anywhere() {
        let mut index = Index::default();
        let records = TASKS_MAX as u64 + 10;
        for number in 0..records {
            index.add(number * BLOCK_BYTES, number, 1, u128::from(number), 1);
        }
        assert_eq!(index.blocks.len(), BLOCKS_MAX);
        let of_task = |task| Filter::task(TaskId::from_random(task));
        let length = records * BLOCK_BYTES;
        assert_eq!(index.parts(&of_task(3), length), [3 * BLOCK_BYTES..4 * BLOCK_BYTES]);
        assert_eq!(index.parts(&of_task(u128::from(records) - 1), length).len(), BLOCKS_MAX);
        assert_eq!(joined(index.parts(&of_app(1), length)), vec![0..length]);
        assert_eq!(index.lines_by_app().collect::<Vec<_>>(), [(1, records)]);
    }
}
