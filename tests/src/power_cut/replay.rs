//! A record of what happened, played again on a disk up to a moment at which the power goes.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::Sync;
use super::disk::Disk;
use super::event::Event;
use super::random::Random;
use super::trace::Record;

/// A disk to which things happen.
#[derive(Debug)]
pub struct Replay<'a> {
    events: &'a [Event],
    disk: Disk,
    /// How many of the events happened.
    at: usize,
    without: Option<Sync>,
}

impl<'a> Replay<'a> {
    /// Begins with what is on the disk. `without` says which syncs to leave out, as if the program did not call them.
    pub fn new(events: &'a [Event], disk: Disk, without: Option<Sync>) -> Self {
        Self { events, disk, at: 0, without }
    }

    /// Lets things happen until `moment` of them did; there is no way back. Returns those that were new.
    pub fn advance(&mut self, moment: usize) -> Result<&'a [Event]> {
        ensure!((self.at..=self.events.len()).contains(&moment), "moment {moment} is not between {} and {}", self.at, self.events.len());
        let fresh = &self.events[self.at..moment];
        for event in fresh {
            let left_out = |sync: Sync| matches!(event, Event::SyncBegan { call, path, .. } if sync.is(call, path));
            if !self.without.is_some_and(left_out) {
                self.disk.apply(event).with_context(|| format!("event {}: {event:?}", self.at))?;
            }
            self.at += 1;
        }
        Ok(fresh)
    }

    /// Writes what a power cut now may leave into a folder, which must not hold anything.
    pub fn rebuild(&self, to: &Path, random: &mut Random) -> Result<()> {
        self.disk.rebuild(to, random)
    }
}

/// Chooses moments of a record, in order: half of them anywhere, the others right after something was acknowledged, which is
/// when a sync that is missing shows best. `acknowledged` are times in µs. No moment comes twice while there are others.
pub fn moments(record: &Record, acknowledged: &[u64], count: usize, random: &mut Random) -> Vec<usize> {
    let mut moment = || match random.below(2) {
        0 if !acknowledged.is_empty() => {
            let time = acknowledged[random.below(acknowledged.len() as u64) as usize];
            first_after(record, time)
        }
        _ => random.below(record.events.len() as u64 + 1) as usize,
    };
    let mut chosen = BTreeSet::new();
    // A few vain draws are as good as proof that there are no others.
    for _ in 0..count * 10 {
        if chosen.len() < count {
            chosen.insert(moment());
        }
    }
    let mut moments: Vec<_> = chosen.into_iter().collect();
    moments.extend((moments.len()..count).map(|_| moment()));
    moments.sort_unstable();
    moments
}

/// Returns the first moment that is certainly after a time, in µs.
pub fn first_after(record: &Record, time: u64) -> usize {
    // The event itself has happened at its moment.
    (record.times.partition_point(|seen| *seen <= time) + 1).min(record.events.len())
}

/// Returns up to which time, in µs, what was acknowledged has to be there when the power goes at a moment.
pub fn due_before(record: &Record, moment: usize) -> u64 {
    moment.checked_sub(1).map_or(0, |last| record.times[last])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let event = |name: &str| Event::Made { path: name.into(), dir: false };
        Record { events: ["a", "b", "c"].map(event).to_vec(), times: vec![10, 20, 30] }
    }

    #[test]
    fn what_is_acknowledged_is_due_when_something_later_was_seen() {
        let record = record();
        assert_eq!([0, 1, 2, 3].map(|moment| due_before(&record, moment)), [0, 10, 20, 30]);
        assert_eq!([5, 10, 29, 30, 99].map(|time| first_after(&record, time)), [1, 2, 3, 3, 3]);
        for time in [5, 10, 29] {
            assert!(due_before(&record, first_after(&record, time)) > time);
        }
    }

    #[test]
    fn moments_come_in_order_and_a_seed_repeats_them() {
        let (record, choose) = (record(), |seed| moments(&record(), &[10, 29], 50, &mut Random::new(seed)));
        assert_eq!(choose(1), choose(1));
        assert_ne!(choose(1), choose(2));
        assert!(choose(1).is_sorted() && choose(1).iter().all(|moment| *moment <= record.events.len()));
        let mut four = moments(&record, &[10], 4, &mut Random::new(3));
        four.dedup();
        assert_eq!(four, [0, 1, 2, 3]);
    }
}
