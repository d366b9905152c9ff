//! Those who wait: whose time is up, who must wait no longer, and whom to tell why a chunk does not come.
//!
//! The kernel lets no process end while a read of it is with the mount, not even one that was killed: so reads of such are
//! answered. A process that is only to end may still need files to do so in order; it waits less for them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use shoal_state::Digest;

use super::{Flight, Read, ReadError, Shared};
use crate::readers::{Patience, Reader};
use crate::source::SourceError;

/// How often is looked whether those who wait were killed, or are to end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The same while some are to end.
const LOOK_AT_ENDING_EVERY: Duration = Duration::from_millis(100);

/// How long a read waits until somebody is told.
const TELL_AFTER: Duration = Duration::from_secs(3);

/// What stands in the way of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The process that reads; 0 where the kernel does not say.
    pub process: u32,
    /// The chunk that does not come.
    pub chunk: Digest,
    /// Why it does not, in words.
    pub why: String,
    /// How long the read has waited.
    pub waited: Duration,
    /// The reader got EIO; else it waits on.
    pub failed: bool,
}

impl Shared {
    /// Returns what to tell of a read that fails; none where its reader has no use for the bytes any more.
    pub(super) fn trouble_of(&self, read: &Read, error: &ReadError) -> Option<Trouble> {
        let (chunk, why) = match error {
            ReadError::Killed { .. } | ReadError::Ended => return None,
            ReadError::Late { digest, .. } | ReadError::Ending { digest, .. } => (*digest, self.why_not(digest)),
            ReadError::TooMany { digest } | ReadError::Malformed { digest, .. } => (*digest, error.to_string()),
            ReadError::Source(error) => match &**error {
                SourceError::Missing { digest } => (*digest, "no node has it".to_owned()),
                SourceError::Late { digest, waited_for } => (*digest, waited_for.clone()),
                SourceError::Failed { digest, source } => (*digest, source.to_string()),
            },
        };
        let process = self.readers.look(read.reader).process;
        Some(Trouble { process, chunk, why, waited: read.started.elapsed(), failed: true })
    }

    fn why_not(&self, chunk: &Digest) -> String {
        self.source.why_not(chunk).unwrap_or_else(|| "it is on its way".to_owned())
    }

    /// Looks at those who wait for some time: fails what must wait no longer, and tells of what waits for long.
    fn look_at_readers(&self) {
        let some_end = self.readers.any_ends();
        let soon = if some_end { LOOK_AT_ENDING_EVERY } else { LOOK_EVERY };
        let waits = |read: &&Read| read.reader != 0 && read.started.elapsed() >= soon;
        let waiting: HashSet<u32> =
            self.flights.lock().values().flat_map(|flight| &flight.reads).filter(waits).map(|read| read.reader).collect();
        let readers: HashMap<u32, Reader> = waiting.into_iter().map(|reader| (reader, self.readers.look(reader))).collect();
        let over = |read: &mut Read| {
            readers.get(&read.reader).is_some_and(|reader| match reader.patience {
                Patience::None => true,
                Patience::Upto(limit) => read.started.elapsed() >= limit,
                Patience::Full => false,
            })
        };
        let (mut failed, mut long) = (Vec::new(), Vec::new());
        for (digest, flight) in self.flights.lock().iter_mut() {
            failed.extend(flight.reads.extract_if(.., over).map(|read| (*digest, read)));
            for read in flight.reads.iter_mut().filter(|read| !read.told && read.started.elapsed() >= TELL_AFTER) {
                read.told = true;
                long.push((*digest, read.inode.clone(), read.reader, read.started.elapsed()));
            }
        }
        for (digest, read) in failed {
            let (reader, waited) = (read.reader, read.started.elapsed());
            let error = match readers.get(&reader) {
                Some(Reader { process, patience: Patience::Upto(_) }) => {
                    self.readers.hurry(*process, Duration::ZERO);
                    ReadError::Ending { digest, reader, waited }
                }
                _ => ReadError::Killed { digest, reader },
            };
            self.fail(read, error);
        }
        for (chunk, inode, reader, waited) in long {
            let process = readers.get(&reader).map_or(reader, |reader| reader.process);
            (self.troubled)(&inode, Trouble { process, chunk, why: self.why_not(&chunk), waited, failed: false });
        }
    }

    /// Fails reads when their time is up or their process is to end, until all ends.
    pub(super) fn watch_deadlines(&self) {
        let mut flights = self.flights.lock();
        let mut looked = Instant::now();
        while !self.ended.load(Ordering::Acquire) {
            let now = Instant::now();
            let every = if self.readers.any_ends() { LOOK_AT_ENDING_EVERY } else { LOOK_EVERY };
            if now.duration_since(looked) >= every && !flights.is_empty() {
                looked = now;
                drop(flights);
                self.look_at_readers();
                flights = self.flights.lock();
                continue;
            }
            let late = take_late(&mut flights, now, self.time);
            if !late.is_empty() {
                drop(flights);
                for (digest, read) in late {
                    let waited = now - read.started;
                    self.fail(read, ReadError::Late { digest, waited });
                }
                flights = self.flights.lock();
                continue;
            }
            let first = flights.values().flat_map(|flight| flight.reads.iter().map(|read| read.started).chain([flight.started])).min();
            match first {
                Some(started) => drop(self.took_off.wait_until(&mut flights, (started + self.time).min(looked + every))),
                None => {
                    self.took_off.wait(&mut flights);
                    looked = Instant::now();
                }
            }
        }
    }
}

/// Takes out the reads whose time is up, and forgets flights that are as old: the next read sends for the chunk anew.
fn take_late(flights: &mut HashMap<Digest, Flight>, now: Instant, time: Duration) -> Vec<(Digest, Read)> {
    let late = |started: Instant| now.saturating_duration_since(started) >= time;
    let mut found = Vec::new();
    flights.retain(|digest, flight| {
        found.extend(flight.reads.extract_if(.., |read| late(read.started)).map(|read| (*digest, read)));
        !(flight.reads.is_empty() && late(flight.started))
    });
    found
}
