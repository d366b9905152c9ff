//! One stream: its chunks, in memory or in its file, and who waits at it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_state::CallId;
use tokio::sync::Notify;

use super::{DataChunk, Error};

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) content: Mutex<Content>,
    pub(super) changed: Notify,
    /// What all streams hold in memory.
    all_in_memory: Arc<AtomicU64>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.all_in_memory.fetch_sub(self.content.get_mut().in_memory, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Content {
    pub(super) chunks: Vec<Place>,
    /// What all chunks count as.
    pub(super) bytes: u64,
    pub(super) in_memory: u64,
    pub(super) file: Option<(Arc<File>, PathBuf, u64)>,
    /// What the fastest reader has, of `bytes`.
    pub(super) read: u64,
    pub(super) touched: Instant,
    pub(super) removed: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Place {
    Memory(Bytes, u64),
    File { offset: u64, length: usize, end: u64 },
}

impl Stream {
    pub(super) fn new(all_in_memory: Arc<AtomicU64>, now: Instant) -> Self {
        let content = Content { chunks: Vec::new(), bytes: 0, in_memory: 0, file: None, read: 0, touched: now, removed: false };
        Self { content: Mutex::new(content), changed: Notify::new(), all_in_memory }
    }

    /// Waits until somebody has read all there is.
    pub(super) async fn is_read(&self) {
        loop {
            let changed = self.changed.notified();
            {
                let content = self.content.lock();
                if content.removed || content.read >= content.bytes {
                    return;
                }
            }
            changed.await;
        }
    }

    /// Takes it away from whoever waits at it.
    pub(super) fn remove(&self) {
        self.content.lock().removed = true;
        self.changed.notify_waiters();
    }

    /// Returns chunks after the one numbered `after`, up to `bytes_max` bytes and at least one, as far as there are some.
    pub(super) fn read(&self, call: CallId, after: u64, bytes_max: u64, now: Instant) -> Result<Vec<DataChunk>, Error> {
        let (places, file) = {
            let mut content = self.content.lock();
            if content.removed {
                return Err(Error::Unknown { call });
            }
            content.touched = now;
            let from = usize::try_from(after).unwrap_or(usize::MAX).min(content.chunks.len());
            let mut bytes = 0;
            let fits = |place: &&Place| {
                let first = bytes == 0;
                bytes += place.length();
                first || bytes <= bytes_max
            };
            let places: Vec<Place> = content.chunks[from..].iter().take_while(fits).cloned().collect();
            let far = places.last().map_or(0, Place::end);
            if far > content.read {
                content.read = far;
                // Writers that waited for this go on. Other readers look again and wait on.
                self.changed.notify_waiters();
            }
            (places, content.file.as_ref().map(|(file, path, _)| (file.clone(), path.clone())))
        };
        let read = |(index, place): (u64, Place)| {
            let data = match place {
                Place::Memory(data, _) => data,
                Place::File { offset, length, .. } => {
                    let Some((file, path)) = &file else { unreachable!("a chunk in the file is there after the file") };
                    let mut data = vec![0; length];
                    let read = file.read_exact_at(&mut data, offset);
                    read.map_err(|source| Error::File { what: "read", path: path.clone(), source })?;
                    data.into()
                }
            };
            Ok(DataChunk { index, data })
        };
        (after + 1..).zip(places).map(read).collect()
    }
}

impl Place {
    /// Returns its length; an empty chunk counts as a byte, so that there is a first one.
    fn length(&self) -> u64 {
        match self {
            Self::Memory(data, _) => data.len().max(1) as u64,
            Self::File { length, .. } => (*length).max(1) as u64,
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Memory(_, end) | Self::File { end, .. } => *end,
        }
    }
}
