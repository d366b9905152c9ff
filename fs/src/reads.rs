//! Reading: chunks are brought once for all who wait for them, and nobody waits longer than the time for one read.
//!
//! A read that needs a chunk joins the chunk's *flight* and is put aside; it holds no thread. Flights go through two queues:
//! first threads that only look at this machine, then threads that may wait for others; so a slow peer never holds up what
//! is on the disk, and the threads that talk to the kernel never wait at all. One more thread answers the reads whose time is
//! up, whatever the source does, and those of processes that were killed: the kernel lets none of them end before.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use shoal_state::Digest;
use shoal_storage::chunk::{List, Piece, pieces};
use shoal_storage::manifest::{Content, Kind, Place};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::layout::Inode;
use crate::queue::Queue;
use crate::source::{Source, SourceError};

/// How many threads look for chunks on this machine.
const LOCAL_THREADS: usize = 4;

/// How many chunks are fetched from elsewhere at once. Threads are cheap here: they only wait.
const FETCH_THREADS: usize = 32;

/// How many chunks may be on their way or wait for it. Reads of further ones fail at once.
const FLIGHTS_MAX: usize = 16 << 10;

/// How many chunks after the current one are brought when a file is read from front to back.
const READ_AHEAD_CHUNKS: u64 = 2;

/// How often is looked whether those who wait were killed.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why a read failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum ReadError {
    #[error(transparent)]
    Source(Arc<SourceError>),
    #[error("waited {waited:?} for chunk {digest}")]
    Late { digest: Digest, waited: Duration },
    #[error("chunk {digest} would be one more than the {FLIGHTS_MAX} that may be waited for")]
    TooMany { digest: Digest },
    #[error("chunk {digest} is not what its file says: {why}")]
    Malformed { digest: Digest, why: &'static str },
    #[error("process {reader}, which waited for chunk {digest}, was killed")]
    Killed { digest: Digest, reader: u32 },
    #[error("the mount is ending")]
    Ended,
}

/// Is given the bytes of a read, or why there are none.
pub(crate) type Answer = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// Is told of a file that is not on this machine, before it is fetched.
pub(crate) type Missed = Box<dyn Fn(&Inode) + Send + Sync>;

/// One read on its way.
struct Read {
    inode: Arc<Inode>,
    /// The process that reads, or a thread of it; 0 where the kernel does not say.
    reader: u32,
    ahead: VecDeque<Piece>,
    done: Vec<Bytes>,
    /// The chunk that the read waited for, so that it has it even if the cache does not keep it.
    brought: Option<(Digest, Bytes)>,
    started: Instant,
    answer: Answer,
}

/// One chunk on its way, and who waits for it.
struct Flight {
    started: Instant,
    reads: Vec<Read>,
}

/// Answers reads. Dropping it does not stop the threads: [`Reads::end`] does.
pub(crate) struct Reads {
    shared: Arc<Shared>,
}

struct Shared {
    source: Arc<dyn Source>,
    missed: Missed,
    /// How long a read may take.
    time: Duration,
    cache: Mutex<Cache>,
    /// Taken before `cache`.
    flights: Mutex<HashMap<Digest, Flight>>,
    /// Told when there is a flight after there was none, or when all ends.
    took_off: Condvar,
    local: Queue<Digest>,
    fetch: Queue<Digest>,
    ended: AtomicBool,
    /// How many chunks were asked of the source.
    asked: AtomicU64,
    /// How many bytes of chunks have come, from this machine and from elsewhere.
    brought_bytes: AtomicU64,
}

impl Reads {
    pub(crate) fn start(source: Arc<dyn Source>, missed: Missed, time: Duration, cache_bytes: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            source,
            missed,
            time,
            cache: Mutex::new(Cache::new(cache_bytes)),
            flights: Mutex::default(),
            took_off: Condvar::new(),
            local: Queue::new(FLIGHTS_MAX),
            fetch: Queue::new(FLIGHTS_MAX),
            ended: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            brought_bytes: AtomicU64::new(0),
        });
        let reads = Self { shared };
        reads.start_threads().inspect_err(|_| reads.end())?;
        Ok(reads)
    }

    fn start_threads(&self) -> Result<()> {
        for number in 0..LOCAL_THREADS {
            self.spawn(format!("fs-local-{number}"), Shared::look_locally)?;
        }
        for number in 0..FETCH_THREADS {
            self.spawn(format!("fs-fetch-{number}"), Shared::fetch)?;
        }
        self.spawn("fs-deadlines".into(), Shared::watch_deadlines)
    }

    /// The threads own what they use and end when all ends; one that the source holds ends when the source lets go.
    fn spawn(&self, name: String, run: fn(&Shared)) -> Result<()> {
        let shared = self.shared.clone();
        let spawned = thread::Builder::new().name(name.clone()).spawn(move || run(&shared));
        spawned.map(drop).map_err(|source| Error::Thread { name, source })
    }

    /// Reads a range of a file, cut to the file's size, for a process. The answer comes now, or from another thread.
    pub(crate) fn read(&self, inode: Arc<Inode>, offset: u64, length: u32, reader: u32, answer: Answer) {
        let Kind::File { size, .. } = &inode.entry.kind else { return answer(Ok(&[])) };
        let ahead: VecDeque<_> = pieces(*size, offset..offset.saturating_add(length.into())).collect();
        let read = Read { inode, reader, ahead, done: Vec::new(), brought: None, started: Instant::now(), answer };
        self.shared.go_on(read);
    }

    /// Brings what follows a chunk, if the file is read from front to back.
    pub(crate) fn read_ahead(&self, inode: &Inode, chunk: u64) {
        let Kind::File { content, .. } = &inode.entry.kind else { return };
        let before = chunk.checked_sub(1).is_some_and(|before| inode.uses.lock().contains_key(&before));
        if before {
            (chunk + 1..=chunk + READ_AHEAD_CHUNKS).for_each(|next| self.shared.bring(content, next));
        }
    }

    /// Returns how many chunks were asked of the source so far.
    pub(crate) fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Returns how many bytes of chunks have come so far; what was read ahead counts, what was in the cache does not.
    pub(crate) fn brought_bytes(&self) -> u64 {
        self.shared.brought_bytes.load(Ordering::Relaxed)
    }

    /// Fails all reads, now and later, and lets the threads end.
    pub(crate) fn end(&self) {
        let shared = &self.shared;
        shared.ended.store(true, Ordering::Release);
        shared.local.close();
        shared.fetch.close();
        let flights = std::mem::take(&mut *shared.flights.lock());
        shared.took_off.notify_all();
        flights.into_values().flat_map(|flight| flight.reads).for_each(|read| (read.answer)(Err(ReadError::Ended)));
    }
}

/// What a read does next.
enum Next {
    Done,
    Wait(Digest),
    Fail(ReadError),
}

impl Read {
    fn finish(self, result: Result<(), ReadError>) {
        let bytes = match (&result, &self.done[..]) {
            (Err(error), _) => {
                tracing::warn!(ino = self.inode.ino, error = error as &dyn std::error::Error, "a read failed");
                return (self.answer)(Err(error.clone()));
            }
            (Ok(()), [one]) => return (self.answer)(Ok(one)),
            (Ok(()), many) => many.concat(),
        };
        (self.answer)(Ok(&bytes));
    }

    fn find(&self, chunk: u64) -> Option<Place> {
        match &self.inode.entry.kind {
            Kind::File { content, .. } => content.find(chunk),
            _ => None,
        }
    }
}

impl Shared {
    /// Takes a read as far as the chunks at hand allow; answers it, or lets it wait for the next chunk.
    fn go_on(&self, mut read: Read) {
        match self.next(&mut read) {
            Next::Done => read.finish(Ok(())),
            Next::Fail(error) => read.finish(Err(error)),
            Next::Wait(digest) => self.join(digest, read),
        }
    }

    fn next(&self, read: &mut Read) -> Next {
        while let Some(piece) = read.ahead.front().cloned() {
            let digest = match read.find(piece.number) {
                Some(Place::Chunk(digest)) => digest,
                Some(Place::InList { list, index }) => {
                    let Some(bytes) = self.at_hand(&list, read) else { return Next::Wait(list) };
                    match chunk_of_list(&bytes, index) {
                        Some(digest) => digest,
                        None => return Next::Fail(ReadError::Malformed { digest: list, why: "it is no list of its chunks" }),
                    }
                }
                None => {
                    tracing::error!(ino = read.inode.ino, "a file has fewer chunks than its size says");
                    let digest = read.inode.entry.digest();
                    return Next::Fail(ReadError::Malformed { digest, why: "there are fewer chunks than the size says" });
                }
            };
            let Some(bytes) = self.at_hand(&digest, read) else { return Next::Wait(digest) };
            if bytes.len() < piece.bytes.end {
                return Next::Fail(ReadError::Malformed { digest, why: "it is too short" });
            }
            if bytes.len() == piece.bytes.end {
                self.cache.lock().read_to_end(digest);
            }
            read.done.push(bytes.slice(piece.bytes));
            read.ahead.pop_front();
        }
        Next::Done
    }

    fn at_hand(&self, digest: &Digest, read: &Read) -> Option<Bytes> {
        match &read.brought {
            Some((brought, bytes)) if brought == digest => Some(bytes.clone()),
            _ => self.cache.lock().get(digest),
        }
    }

    /// Lets a read wait for a chunk, which is brought if it is not on its way.
    fn join(&self, digest: Digest, mut read: Read) {
        let mut flights = self.flights.lock();
        if self.ended.load(Ordering::Acquire) {
            drop(flights);
            return read.finish(Err(ReadError::Ended));
        }
        let landed = self.cache.lock().get(&digest);
        if let Some(bytes) = landed {
            // It landed since the read looked.
            drop(flights);
            read.brought = Some((digest, bytes));
            return self.go_on(read);
        }
        if !self.take_off(&mut flights, digest, read.started) {
            drop(flights);
            return read.finish(Err(ReadError::TooMany { digest }));
        }
        flights.get_mut(&digest).expect("the chunk is on its way").reads.push(read);
    }

    /// Sends for a chunk if it is not on its way, and says false if there is no room for one more.
    fn take_off(&self, flights: &mut HashMap<Digest, Flight>, digest: Digest, started: Instant) -> bool {
        if flights.contains_key(&digest) {
            return true;
        }
        if flights.len() >= FLIGHTS_MAX || !self.local.push(digest) {
            return false;
        }
        flights.insert(digest, Flight { started, reads: Vec::new() });
        if flights.len() == 1 {
            self.took_off.notify_one();
        }
        true
    }

    /// Brings a chunk that nobody waits for yet. What stands in the way is no reason to fail.
    fn bring(&self, content: &Content, number: u64) {
        let digest = match content.find(number) {
            Some(Place::Chunk(digest)) => digest,
            Some(Place::InList { list, index }) => {
                let list = self.cache.lock().get(&list);
                let Some(digest) = list.and_then(|list| chunk_of_list(&list, index)) else { return };
                digest
            }
            None => return,
        };
        let mut flights = self.flights.lock();
        if !self.ended.load(Ordering::Acquire) && !self.cache.lock().has(&digest) {
            let _false_when_full = self.take_off(&mut flights, digest, Instant::now());
        }
    }

    /// Ends a flight and takes those who waited further.
    fn land(&self, digest: Digest, result: Result<Bytes, SourceError>) {
        let result = result.map_err(Arc::new);
        let mut flights = self.flights.lock();
        if let Ok(bytes) = &result {
            self.brought_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.cache.lock().insert(digest, bytes.clone());
        }
        let Some(flight) = flights.remove(&digest) else { return };
        drop(flights);
        let in_time = flight.started.elapsed() < self.time;
        for mut read in flight.reads {
            match &result {
                // It came later to a flight that was out of time, and has time left for another.
                Err(_) if !in_time && read.started.elapsed() < self.time => self.join(digest, read),
                Ok(bytes) => {
                    read.brought = Some((digest, bytes.clone()));
                    self.go_on(read);
                }
                Err(error) => read.finish(Err(ReadError::Source(error.clone()))),
            }
        }
    }

    fn look_locally(&self) {
        while let Some(digest) = self.local.pop() {
            match self.source.local(&digest) {
                Ok(Some(bytes)) => self.land(digest, Ok(bytes)),
                Ok(None) => self.miss(digest),
                Err(error) => {
                    tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a chunk is looked for elsewhere");
                    self.fetch_soon(digest);
                }
            }
        }
    }

    fn miss(&self, digest: Digest) {
        let inode = self.flights.lock().get(&digest).and_then(|flight| Some(flight.reads.first()?.inode.clone()));
        inode.iter().for_each(|inode| (self.missed)(inode));
        self.fetch_soon(digest);
    }

    fn fetch_soon(&self, digest: Digest) {
        if !self.fetch.push(digest) {
            tracing::warn!(%digest, "too many chunks are fetched: reads of this one will fail when their time is up");
        }
    }

    fn fetch(&self) {
        while let Some(digest) = self.fetch.pop() {
            // A flight whose time is up is not worth fetching.
            let started = self.flights.lock().get(&digest).map(|flight| flight.started);
            if let Some(started) = started {
                self.asked.fetch_add(1, Ordering::Relaxed);
                self.land(digest, self.source.chunk(&digest, started + self.time));
            }
        }
    }

    /// Fails the reads of processes that were killed, of those that wait for some time.
    fn fail_killed(&self) {
        let waits = |read: &&Read| read.reader != 0 && read.started.elapsed() >= LOOK_EVERY;
        let readers = |flights: &HashMap<Digest, Flight>| -> HashSet<u32> {
            flights.values().flat_map(|flight| &flight.reads).filter(waits).map(|read| read.reader).collect()
        };
        let waiting = readers(&self.flights.lock());
        let killed: HashSet<u32> = waiting.into_iter().filter(|reader| is_killed(*reader)).collect();
        if killed.is_empty() {
            return;
        }
        let mut found = Vec::new();
        for (digest, flight) in self.flights.lock().iter_mut() {
            found.extend(flight.reads.extract_if(.., |read| killed.contains(&read.reader)).map(|read| (*digest, read)));
        }
        for (digest, read) in found {
            let reader = read.reader;
            read.finish(Err(ReadError::Killed { digest, reader }));
        }
    }

    /// Fails reads when their time is up or their process was killed, until all ends.
    fn watch_deadlines(&self) {
        let mut flights = self.flights.lock();
        let mut looked = Instant::now();
        while !self.ended.load(Ordering::Acquire) {
            let now = Instant::now();
            if now.duration_since(looked) >= LOOK_EVERY && !flights.is_empty() {
                looked = now;
                drop(flights);
                self.fail_killed();
                flights = self.flights.lock();
                continue;
            }
            let late = take_late(&mut flights, now, self.time);
            if !late.is_empty() {
                drop(flights);
                for (digest, read) in late {
                    let waited = now - read.started;
                    read.finish(Err(ReadError::Late { digest, waited }));
                }
                flights = self.flights.lock();
                continue;
            }
            let first = flights.values().flat_map(|flight| flight.reads.iter().map(|read| read.started).chain([flight.started])).min();
            match first {
                Some(started) => drop(self.took_off.wait_until(&mut flights, (started + self.time).min(looked + LOOK_EVERY))),
                None => {
                    self.took_off.wait(&mut flights);
                    looked = Instant::now();
                }
            }
        }
    }
}

/// Says whether a process or thread was killed, and ends once its reads do; or has ended.
fn is_killed(reader: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{reader}/status")) {
        Ok(status) => has_to_die(&status),
        Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)),
    }
}

/// Reads from the kernel's words on a thread whether it has to die: SIGKILL waits for it, or it is dead.
fn has_to_die(status: &str) -> bool {
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = value("SigPnd:").and_then(|signals| u64::from_str_radix(signals, 16).ok()).unwrap_or(0);
    pending & (1 << (libc::SIGKILL - 1)) != 0 || value("State:").is_some_and(|state| state.starts_with(['Z', 'X']))
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

fn chunk_of_list(bytes: &[u8], index: usize) -> Option<Digest> {
    List::decode(bytes).ok()?.chunks.get(index).copied()
}

#[cfg(test)]
mod tests;
