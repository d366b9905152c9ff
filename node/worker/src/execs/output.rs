//! What a process printed, in a file without a name: it can be read from any place that a client may still ask for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use tokio::sync::watch;

use super::Error;

/// How much may wait to be read, in bytes. Beyond it the process waits, as at a pipe that nobody reads.
const UNREAD_BYTES_MAX: u64 = 64 << 20;
/// How much is kept of what was sent already, in bytes: a connection that breaks may have had as much under way, since clients open
/// windows of 64 MiB.
const SENT_BYTES_KEPT: u64 = 96 << 20;
/// How much is given back to the disk at a time, in bytes.
const FREED_BYTES_MIN: u64 = 16 << 20;
/// The most that one read returns, in bytes.
pub const READ_BYTES_MAX: u64 = 256 << 10;

#[derive(Debug, Clone, Default)]
struct Places {
    /// What is before it is not kept any more.
    freed: u64,
    /// What is before it was read.
    sent: u64,
    /// The end of what was printed.
    written: u64,
    /// Nothing comes any more.
    ended: bool,
    /// Somebody has begun to read.
    begun: bool,
    /// Somebody has read to the end, and knows that it is one.
    told: bool,
    /// Why it ended before its time.
    lost: Option<String>,
}

/// What a process printed on one stream. One task alone adds to it.
#[derive(Debug)]
pub(super) struct Output {
    exec: String,
    file: Arc<File>,
    places: watch::Sender<Places>,
}

impl Output {
    /// Makes one in a folder.
    pub(super) fn create(dir: &Path, exec: &str) -> io::Result<Self> {
        let file = rustix::fs::open(dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        Ok(Self { exec: exec.to_owned(), file: Arc::new(file.into()), places: watch::Sender::default() })
    }

    /// Adds what was printed; waits while too much of it is unread.
    pub(super) async fn append(&self, bytes: Vec<u8>) -> Result<(), Error> {
        let mut places = self.places.subscribe();
        let room = places.wait_for(|places| places.written - places.sent < UNREAD_BYTES_MAX || places.lost.is_some()).await;
        // The sender is part of this.
        let at = room.map(|places| (places.written, places.lost.clone())).unwrap_or_default();
        if let (_, Some(why)) = at {
            return Err(self.disk(why));
        }
        let (file, length) = (Arc::clone(&self.file), bytes.len() as u64);
        let written = blocking(move || file.write_all_at(&bytes, at.0)).await;
        match written {
            Ok(()) => {
                self.places.send_modify(|places| places.written += length);
                Ok(())
            }
            Err(error) => {
                self.places.send_modify(|places| places.lost = Some(error.to_string()));
                Err(self.disk(error.to_string()))
            }
        }
    }

    /// Says that nothing more is added.
    pub(super) fn end(&self) {
        self.places.send_modify(|places| places.ended = true);
    }

    /// Waits until whoever has begun to read knows the end; does not wait where nobody has.
    pub(super) async fn told(&self) {
        // The sender is part of this.
        let _ = self.places.subscribe().wait_for(|places| !places.begun || places.told || places.lost.is_some()).await;
    }

    /// Reads on from `offset`; waits until there is something. None at the end.
    pub(super) async fn read(&self, offset: u64) -> Result<Option<Vec<u8>>, Error> {
        self.places.send_if_modified(|places| !std::mem::replace(&mut places.begun, true));
        let mut places = self.places.subscribe();
        let ready = |places: &Places| places.written != offset || places.ended || places.lost.is_some();
        let now = places.wait_for(ready).await.map(|places| places.clone()).unwrap_or_default();
        if offset < now.freed || offset > now.written {
            return Err(Error::NotKept { exec: self.exec.clone(), from: now.freed, to: now.written, offset });
        }
        if offset == now.written {
            self.places.send_if_modified(|places| !std::mem::replace(&mut places.told, true));
            return now.lost.map_or(Ok(None), |why| Err(self.disk(why)));
        }
        let length = (now.written - offset).min(READ_BYTES_MAX);
        let file = Arc::clone(&self.file);
        let read = blocking(move || {
            // READ_BYTES_MAX fits.
            let mut bytes = vec![0; length as usize];
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        });
        let bytes = read.await.map_err(|error| self.disk(error.to_string()))?;
        self.sent(offset + length);
        Ok(Some(bytes))
    }

    /// Notes that all before `end` was read, and gives back what nobody comes back for.
    fn sent(&self, end: u64) {
        let mut free = None;
        self.places.send_modify(|places| {
            places.sent = places.sent.max(end);
            let needless = places.sent.saturating_sub(SENT_BYTES_KEPT);
            if needless >= places.freed + FREED_BYTES_MIN {
                free = Some(places.freed..needless);
                places.freed = needless;
            }
        });
        if let Some(range) = free {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A disk that cannot give back keeps it until the process is forgotten.
            let _ = fallocate(&*self.file, flags, range.start, range.end - range.start);
        }
    }

    fn disk(&self, why: String) -> Error {
        Error::Disk { exec: self.exec.clone(), why }
    }
}

/// Runs what touches the disk away from the threads that serve connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn output() -> (tempfile::TempDir, Output) {
        let dir = tempfile::tempdir().unwrap();
        let output = Output::create(dir.path(), "e").unwrap();
        (dir, output)
    }

    #[tokio::test]
    async fn what_was_printed_is_read_from_any_place_as_often_as_wanted() {
        let (dir, output) = output();
        output.append(b"hello ".to_vec()).await.unwrap();
        output.append(b"world".to_vec()).await.unwrap();
        assert_eq!(output.read(0).await.unwrap().unwrap(), b"hello world");
        assert_eq!(output.read(6).await.unwrap().unwrap(), b"world");
        assert_eq!(output.read(0).await.unwrap().unwrap(), b"hello world");
        let ahead = output.read(12).await.unwrap_err();
        assert!(ahead.to_string().contains("from byte 0 to 11, and cannot be read at 12"), "{ahead}");
        assert!(timeout(Duration::from_millis(50), output.read(11)).await.is_err(), "it has not ended");
        output.end();
        assert!(timeout(Duration::from_millis(50), output.told()).await.is_err(), "who reads has not been told of the end");
        assert_eq!(output.read(11).await.unwrap(), None);
        timeout(Duration::from_secs(5), output.told()).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing would be left after a crash");
    }

    #[tokio::test]
    async fn a_process_waits_for_its_reader_and_gets_its_disk_back() {
        let (_dir, output) = output();
        let piece = vec![7; 1 << 20];
        for _ in 0..UNREAD_BYTES_MAX >> 20 {
            output.append(piece.clone()).await.unwrap();
        }
        assert!(timeout(Duration::from_millis(50), output.append(piece.clone())).await.is_err(), "nobody reads it");
        let (mut at, all) = (0, SENT_BYTES_KEPT + 2 * FREED_BYTES_MIN);
        let reads = async {
            while at < all {
                at += output.read(at).await.unwrap().unwrap().len() as u64;
            }
        };
        let writes = async {
            for _ in UNREAD_BYTES_MAX >> 20..all >> 20 {
                output.append(piece.clone()).await.unwrap();
            }
        };
        timeout(Duration::from_secs(60), futures::future::join(reads, writes)).await.unwrap();
        // A client whose connection broke comes back for what was under way, and nobody for more.
        assert!(output.read(all - SENT_BYTES_KEPT).await.unwrap().is_some());
        assert!(matches!(output.read(0).await, Err(Error::NotKept { offset: 0, .. })));
        let allocated = rustix::fs::fstat(&*output.file).unwrap().st_blocks * 512;
        assert!(u64::try_from(allocated).unwrap() < all - FREED_BYTES_MIN / 2, "{allocated} bytes are still taken");
    }
}
