//! Reading: chunks are brought once for all who wait for them, and nobody waits longer than the time for one read.
//!
//! A read that needs a chunk joins the chunk's *flight* and is put aside; it holds no thread. Flights go through two queues:
//! first threads that only look at this machine, then threads that may wait for others; so a slow peer never holds up what
//! is on the disk, and the threads that talk to the kernel never wait at all. One more thread, in `watch`, answers the reads
//! whose time is up, whatever the source does.

use std::collections::{HashMap, VecDeque};
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
use crate::readers::Readers;
use crate::source::{Source, SourceError};

/// How many threads look for chunks on this machine.
const LOCAL_THREADS: usize = 4;

/// How many chunks are fetched from elsewhere at once. Threads are cheap here: they only wait.
const FETCH_THREADS: usize = 32;

/// How many chunks may be on their way or wait for it. Reads of further ones fail at once.
const FLIGHTS_MAX: usize = 16 << 10;

/// How many chunks after the current one are brought when a file is read from front to back.
const READ_AHEAD_CHUNKS: u64 = 2;

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
    #[error("process {reader}, which waited {waited:?} for chunk {digest}, is to end")]
    Ending { digest: Digest, reader: u32, waited: Duration },
    #[error("the mount is ending")]
    Ended,
}

/// Is given the bytes of a read, or why there are none.
pub(crate) type Answer = Box<dyn FnOnce(Result<&[u8], ReadError>) + Send>;

/// Is told of a file that is not on this machine, before it is fetched.
pub(crate) type Missed = Box<dyn Fn(&Inode) + Send + Sync>;

/// Is told of a file whose bytes do not come.
pub(crate) type Troubled = Box<dyn Fn(&Inode, Trouble) + Send + Sync>;

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
    /// Somebody was told that it waits for long.
    told: bool,
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
    troubled: Troubled,
    readers: Readers,
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
    pub(crate) fn start(source: Arc<dyn Source>, missed: Missed, troubled: Troubled, time: Duration, cache_bytes: usize) -> Result<Self> {
        let shared = Arc::new(Shared {
            source,
            missed,
            troubled,
            readers: Readers::default(),
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
        let read = Read { inode, reader, ahead, done: Vec::new(), brought: None, started: Instant::now(), told: false, answer };
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

    /// Lets reads of a process that is to end wait no longer than `limit`, and not at all once one of them waited so long in vain.
    pub(crate) fn hurry(&self, process: u32, limit: Duration) {
        self.shared.readers.hurry(process, limit);
        // What waits already may be over its time.
        self.shared.took_off.notify_one();
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
    fn finish(self) {
        match &self.done[..] {
            [one] => (self.answer)(Ok(one)),
            many => (self.answer)(Ok(&many.concat())),
        }
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
            Next::Done => read.finish(),
            Next::Fail(error) => self.fail(read, error),
            Next::Wait(digest) => self.join(digest, read),
        }
    }

    fn fail(&self, read: Read, error: ReadError) {
        tracing::warn!(ino = read.inode.ino, error = &error as &dyn std::error::Error, "a read failed");
        if let Some(trouble) = self.trouble_of(&read, &error) {
            (self.troubled)(&read.inode, trouble);
        }
        (read.answer)(Err(error));
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
            return self.fail(read, ReadError::Ended);
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
            return self.fail(read, ReadError::TooMany { digest });
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
                Err(error) => self.fail(read, ReadError::Source(error.clone())),
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
}

fn chunk_of_list(bytes: &[u8], index: usize) -> Option<Digest> {
    List::decode(bytes).ok()?.chunks.get(index).copied()
}

mod watch;

pub use watch::Trouble;

#[cfg(test)]
mod tests;
