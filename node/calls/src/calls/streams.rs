//! Data streams: what generators yield and what web requests and answers carry. Not records.
//!
//! A stream is named by [`StreamKey`]: an input (or a whole call), the attempt, and the direction. Its chunks are numbered from 1, are
//! put in order and may be read again from any place. The first [`MEMORY_BYTES_MAX`] bytes of a stream are in memory, as long as
//! all streams together stay below [`ALL_MEMORY_BYTES_MAX`]; the rest is in a file of this node. A stream whose
//! readers are [`STREAM_BYTES_MAX`] behind takes no more until they catch up.
//!
//! A stream is on the node of the container that puts it; `origins` knows where that is.
//!
//! Caveats: streams live as long as this process and no longer. They are removed with their call ([`Streams::remove_call`]), and
//! when nobody has touched them for [`IDLE_KEPT`]; whoever asks then finds an empty one.

mod stream;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use shoal_state::CallId;

use self::stream::{Content, Place, Stream};
pub use self::words::{DataChunk, Direction, Error, StreamKey};
use super::ground::Ground;
use super::origins::Origins;

/// How many bytes of one stream are held in memory. What comes beyond goes to a file.
pub const MEMORY_BYTES_MAX: u64 = 4 << 20;

/// How many bytes of all streams are held in memory. What comes beyond goes to files.
pub const ALL_MEMORY_BYTES_MAX: u64 = 256 << 20;

/// How long a stream is kept that nobody puts to or gets from.
pub const IDLE_KEPT: Duration = Duration::from_secs(3600);

/// How many bytes of one stream may lie ahead of its fastest reader. A writer waits for the reader then.
pub const STREAM_BYTES_MAX: u64 = 256 << 20;

/// The longest chunk.
pub const CHUNK_BYTES_MAX: usize = 17 << 20;

/// What a chunk counts as besides its bytes: the memory that keeping its place takes. Without it a generator of tiny items
/// that nobody reads would fill the memory long before it reaches [`STREAM_BYTES_MAX`].
const CHUNK_COST_BYTES: u64 = 128;

/// The streams of this node; clones share them.
#[derive(Debug, Clone)]
pub struct Streams {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    calls: Mutex<HashMap<CallId, BTreeMap<StreamKey, Arc<Stream>>>>,
    in_memory: Arc<AtomicU64>,
    origins: Origins,
    ground: Arc<dyn Ground>,
    /// How many files were made.
    files: AtomicU64,
}

impl Streams {
    /// Keeps long streams in files in `dir`, and removes those of an earlier process.
    pub fn open(dir: &Path, ground: Arc<dyn Ground>) -> Result<Self, Error> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { what, path, source }
        };
        if dir.exists() {
            std::fs::remove_dir_all(dir).map_err(failed("remove", dir))?;
        }
        std::fs::create_dir_all(dir).map_err(failed("create", dir))?;
        Ok(Self {
            shared: Arc::new(Shared {
                dir: dir.to_owned(),
                calls: Mutex::default(),
                in_memory: Arc::default(),
                origins: Origins::new(ground.clone()),
                ground,
                files: AtomicU64::new(0),
            }),
        })
    }

    /// Puts chunks at the end of a stream, in order. Those that are there already are passed over, so that a repeated request does
    /// no harm. Waits up to `wait` while readers are too far behind.
    pub async fn put(&self, key: &StreamKey, chunks: Vec<DataChunk>, wait: Duration) -> Result<(), Error> {
        let stream = self.stream(key);
        for chunk in chunks {
            let put = async {
                loop {
                    let changed = stream.changed.notified();
                    if self.try_put(&stream, key, &chunk)? {
                        return Ok(());
                    }
                    changed.await;
                }
            };
            match self.shared.ground.within(wait, put).await {
                Some(put) => put?,
                None => return Err(Error::Full { call: key.call, waited: wait }),
            }
        }
        Ok(())
    }

    /// Returns false while the stream is full.
    fn try_put(&self, stream: &Stream, key: &StreamKey, chunk: &DataChunk) -> Result<bool, Error> {
        let length = chunk.data.len();
        if length > CHUNK_BYTES_MAX {
            return Err(Error::TooLong { call: key.call, bytes: length });
        }
        let mut content = stream.content.lock();
        if content.removed {
            return Err(Error::Unknown { call: key.call });
        }
        content.touched = self.shared.ground.now();
        let expected = content.chunks.len() as u64 + 1;
        if chunk.index < expected {
            return Ok(true);
        }
        if chunk.index > expected {
            return Err(Error::OutOfOrder { call: key.call, index: chunk.index, expected });
        }
        if content.bytes - content.read + length as u64 + CHUNK_COST_BYTES > STREAM_BYTES_MAX {
            return Ok(false);
        }
        let place = self.place(&mut content, chunk)?;
        content.chunks.push(place);
        drop(content);
        stream.changed.notify_waiters();
        Ok(true)
    }

    fn place(&self, content: &mut Content, chunk: &DataChunk) -> Result<Place, Error> {
        let length = chunk.data.len();
        let cost = length as u64 + CHUNK_COST_BYTES;
        content.bytes += cost;
        let end = content.bytes;
        let all = self.shared.in_memory.load(Ordering::Relaxed) + cost;
        if content.in_memory + cost <= MEMORY_BYTES_MAX && all <= ALL_MEMORY_BYTES_MAX {
            content.in_memory += cost;
            self.shared.in_memory.fetch_add(cost, Ordering::Relaxed);
            return Ok(Place::Memory(chunk.data.clone(), end));
        }
        if content.file.is_none() {
            content.file = Some(self.new_file()?);
        }
        let Some((file, path, written)) = &mut content.file else { unreachable!("set just above") };
        let offset = *written;
        let wrote = file.write_all_at(&chunk.data, offset);
        wrote.map_err(|source| Error::File { what: "write", path: path.clone(), source })?;
        *written += length as u64;
        Ok(Place::File { offset, length, end })
    }

    /// Makes a file and removes its name: its space is given back when the stream goes, whatever happens.
    fn new_file(&self) -> Result<(Arc<File>, PathBuf, u64), Error> {
        let number = self.shared.files.fetch_add(1, Ordering::Relaxed);
        let path = self.shared.dir.join(number.to_string());
        let file = File::options().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|source| Error::File { what: "create", path: path.clone(), source })?;
        std::fs::remove_file(&path).map_err(|source| Error::File { what: "remove", path: path.clone(), source })?;
        Ok((Arc::new(file), path, 0))
    }

    /// Returns chunks after the one numbered `after`, up to `bytes_max` bytes and at least one; waits up to `wait` for the first. Empty
    /// when none came.
    pub async fn get(&self, key: &StreamKey, after: u64, bytes_max: u64, wait: Duration) -> Result<Vec<DataChunk>, Error> {
        let stream = self.stream(key);
        let get = async {
            loop {
                let changed = stream.changed.notified();
                let chunks = stream.read(key.call, after, bytes_max, self.shared.ground.now())?;
                if !chunks.is_empty() {
                    return Ok(chunks);
                }
                changed.await;
            }
        };
        self.shared.ground.within(wait, get).await.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Waits up to `wait` until all that a call has put out was read. Returns how many chunks that is.
    pub async fn read_up(&self, call: CallId, wait: Duration) -> u32 {
        let of_call = self.shared.calls.lock().get(&call).cloned().unwrap_or_default();
        let mut chunks = 0;
        for (_, stream) in of_call.into_iter().filter(|(key, _)| key.direction == Direction::Out) {
            let _ = self.shared.ground.within(wait, stream.is_read()).await;
            chunks += u32::try_from(stream.content.lock().chunks.len()).unwrap_or(u32::MAX);
        }
        chunks
    }

    /// Returns what is known of where streams are.
    pub(super) fn origins(&self) -> &Origins {
        &self.shared.origins
    }

    /// Removes all streams of a call, with whoever waits at them.
    pub fn remove_call(&self, call: CallId) {
        self.shared.origins.remove_call(call);
        let streams = self.shared.calls.lock().remove(&call).unwrap_or_default();
        for stream in streams.into_values() {
            stream.remove();
        }
    }

    /// Removes the streams that nobody has touched for `idle`.
    pub fn remove_idle(&self, idle: Duration) {
        self.shared.origins.remove_idle(idle);
        let (now, mut calls) = (self.shared.ground.now(), self.shared.calls.lock());
        for streams in calls.values_mut() {
            streams.retain(|_, stream| {
                let keep = now.saturating_duration_since(stream.content.lock().touched) < idle;
                if !keep {
                    stream.remove();
                }
                keep
            });
        }
        calls.retain(|_, streams| !streams.is_empty());
    }

    fn stream(&self, key: &StreamKey) -> Arc<Stream> {
        let mut calls = self.shared.calls.lock();
        let streams = calls.entry(key.call).or_default();
        streams.entry(key.clone()).or_insert_with(|| Arc::new(Stream::new(self.shared.in_memory.clone(), self.shared.ground.now()))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::super::ground::Machine;
    use super::*;

    fn key() -> StreamKey {
        let call = CallId::from_random(1);
        StreamKey { call, input: None, attempt: String::new(), direction: Direction::Out }
    }

    fn chunk(index: u64, bytes: usize) -> DataChunk {
        DataChunk { index, data: vec![u8::try_from(index % 251).unwrap(); bytes].into() }
    }

    fn streams(dir: &tempfile::TempDir) -> Streams {
        Streams::open(&dir.path().join("streams"), Arc::new(Machine)).unwrap()
    }

    const SOON: Duration = Duration::from_secs(10);
    const NOW: Duration = Duration::ZERO;

    #[tokio::test]
    async fn chunks_are_read_in_order_again_and_again_also_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(&dir);
        let chunks: Vec<DataChunk> = (1..=12).map(|index| chunk(index, 1 << 20)).collect();
        streams.put(&key(), chunks.clone(), SOON).await.unwrap();
        streams.put(&key(), chunks[..3].to_vec(), SOON).await.unwrap();
        for _ in 0..2 {
            assert_eq!(streams.get(&key(), 0, u64::MAX, NOW).await.unwrap(), chunks);
            assert_eq!(streams.get(&key(), 6, 2 << 20, NOW).await.unwrap(), chunks[6..8]);
        }
        let ahead = streams.put(&key(), vec![chunk(14, 1)], SOON).await;
        assert!(matches!(ahead, Err(Error::OutOfOrder { index: 14, expected: 13, .. })));
    }

    #[tokio::test]
    async fn a_reader_is_woken_by_a_chunk_and_by_the_removal_of_its_call() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(&dir);
        let (key1, key2) = (key(), key());
        let reader = streams.clone();
        let read = tokio::spawn(async move { reader.get(&key1, 0, 1, SOON).await });
        tokio::task::yield_now().await;
        streams.put(&key(), vec![chunk(1, 0)], SOON).await.unwrap();
        assert_eq!(read.await.unwrap().unwrap(), [chunk(1, 0)]);

        let reader = streams.clone();
        let read = tokio::spawn(async move { reader.get(&key2, 1, 1, SOON).await });
        tokio::task::yield_now().await;
        streams.remove_call(key().call);
        assert!(matches!(read.await.unwrap(), Err(Error::Unknown { .. })));
    }

    #[tokio::test]
    async fn what_nobody_touches_is_removed_and_its_memory_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(&dir);
        streams.put(&key(), vec![chunk(1, 1000)], SOON).await.unwrap();
        streams.remove_idle(SOON);
        assert_eq!(streams.get(&key(), 0, 1, NOW).await.unwrap().len(), 1);
        streams.remove_idle(NOW);
        assert_eq!(streams.shared.in_memory.load(Ordering::Relaxed), 0);
        assert_eq!(streams.get(&key(), 0, 1, NOW).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_was_put_out_is_waited_for_until_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(&dir);
        assert_eq!(streams.read_up(key().call, SOON).await, 0, "a call without streams");
        streams.put(&key(), vec![chunk(1, 5), chunk(2, 5)], SOON).await.unwrap();
        let waits = streams.clone();
        let read_up = tokio::spawn(async move { waits.read_up(key().call, SOON).await });
        streams.get(&key(), 0, 1, NOW).await.unwrap();
        tokio::task::yield_now().await;
        assert!(!read_up.is_finished(), "the second chunk is not read");
        streams.get(&key(), 1, u64::MAX, NOW).await.unwrap();
        assert_eq!(read_up.await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        let streams = streams(&dir);
        let room = usize::try_from(STREAM_BYTES_MAX / 16 - CHUNK_COST_BYTES).unwrap();
        let chunks = (1..=16).map(|index| chunk(index, room)).collect();
        streams.put(&key(), chunks, SOON).await.unwrap();
        let full = streams.put(&key(), vec![chunk(17, 0)], Duration::from_millis(10)).await;
        assert!(matches!(full, Err(Error::Full { .. })));
        let writer = streams.clone();
        let put = tokio::spawn(async move { writer.put(&key(), vec![chunk(17, 0)], SOON).await });
        streams.get(&key(), 0, 1, NOW).await.unwrap();
        put.await.unwrap().unwrap();
    }
}
