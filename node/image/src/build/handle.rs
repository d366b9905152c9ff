//! A build that runs or has run: its log to be read from any place on, and its result.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::Digest;
use tokio::sync::watch;

use crate::config::ImageConfig;
use crate::error::Error;
use crate::log::{BuildLog, Stream};

use super::probe::ImageMetadata;

/// How many bytes of a build's log are kept for joiners. Beyond it the oldest go.
const LOG_BYTES_MAX: usize = 8 << 20;

/// A finished image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// What identifies it: the [key](super::BuildRequest::key) of its definition.
    pub key: Digest,
    /// Its tree.
    pub manifest: Digest,
    /// What its containers start with.
    pub config: ImageConfig,
    /// What was found in it.
    pub metadata: ImageMetadata,
}

/// What became of a build.
pub type Outcome = Result<Arc<ImageRecord>, Arc<Error>>;

/// A piece of a build's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Counts from 1 without gaps.
    pub id: u64,
    /// When it was said.
    pub at: SystemTime,
    /// What was said.
    pub piece: LogPiece,
}

/// What can be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPiece {
    /// Output.
    Text {
        /// Where it goes.
        stream: Stream,
        /// Text, not always whole lines.
        data: String,
    },
    /// How much of the image is saved.
    Saving {
        /// So much.
        done: u64,
        /// Of so much.
        total: u64,
    },
}

impl LogPiece {
    fn bytes(&self) -> usize {
        match self {
            LogPiece::Text { data, .. } => data.len() + 64,
            LogPiece::Saving { .. } => 64,
        }
    }
}

/// One build, shared by all who wait for it. Cheap to clone.
#[derive(Clone)]
pub struct BuildHandle(pub(super) Arc<Build>);

pub(super) struct Build {
    key: Digest,
    started: SystemTime,
    log: Mutex<Log>,
    /// Changes with every entry and with the result.
    version: watch::Sender<u64>,
    outcome: Mutex<Option<(Outcome, SystemTime)>>,
    /// Gets everything that is said, too.
    sink: Option<Arc<dyn BuildLog>>,
}

#[derive(Default)]
struct Log {
    entries: VecDeque<LogEntry>,
    last_id: u64,
    bytes: usize,
}

impl Build {
    pub(super) fn new(key: Digest, sink: Option<Arc<dyn BuildLog>>) -> Build {
        Build { key, started: SystemTime::now(), log: Mutex::default(), version: watch::Sender::new(0), outcome: Mutex::default(), sink }
    }

    pub(super) fn finish(&self, outcome: Outcome) {
        *self.outcome.lock() = Some((outcome, SystemTime::now()));
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) fn finished_at(&self) -> Option<SystemTime> {
        self.outcome.lock().as_ref().map(|(_, at)| *at)
    }

    fn add(&self, piece: LogPiece) {
        let mut log = self.log.lock();
        log.last_id += 1;
        log.bytes += piece.bytes();
        let entry = LogEntry { id: log.last_id, at: SystemTime::now(), piece };
        log.entries.push_back(entry);
        while log.bytes > LOG_BYTES_MAX
            && let Some(oldest) = log.entries.pop_front()
        {
            log.bytes -= oldest.piece.bytes();
        }
        drop(log);
        self.version.send_modify(|version| *version += 1);
    }
}

impl BuildLog for Build {
    fn write(&self, stream: Stream, data: &str) {
        self.add(LogPiece::Text { stream, data: data.to_owned() });
        if let Some(sink) = &self.sink {
            sink.write(stream, data);
        }
    }

    fn saving(&self, done: u64, total: u64) {
        self.add(LogPiece::Saving { done, total });
        if let Some(sink) = &self.sink {
            sink.saving(done, total);
        }
    }
}

impl BuildHandle {
    /// What identifies the image.
    pub fn key(&self) -> Digest {
        self.0.key
    }

    /// When the build began, and when it ended if it has.
    pub fn times(&self) -> (SystemTime, Option<SystemTime>) {
        (self.0.started, self.0.finished_at())
    }

    /// Returns the entries with ids above `after`. Very old ones of a very long log are gone.
    pub fn entries_after(&self, after: u64) -> Vec<LogEntry> {
        let log = self.0.log.lock();
        let first = log.entries.partition_point(|entry| entry.id <= after);
        log.entries.range(first..).cloned().collect()
    }

    /// Returns the outcome when there is one. All entries of the log were said before.
    pub fn outcome(&self) -> Option<Outcome> {
        self.0.outcome.lock().as_ref().map(|(outcome, _)| outcome.clone())
    }

    /// Waits until there is an entry above `after` or an outcome. The caller bounds the wait.
    pub async fn changed(&self, after: u64) {
        let mut version = self.0.version.subscribe();
        let is_new = || self.0.log.lock().last_id > after || self.0.outcome.lock().is_some();
        while !is_new() {
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for the outcome. The build has a deadline of its own.
    pub async fn wait(&self) -> Outcome {
        let mut version = self.0.version.subscribe();
        loop {
            if let Some(outcome) = self.outcome() {
                return outcome;
            }
            if version.changed().await.is_err() {
                return Err(Arc::new(Error::Stopping { what: "a build" }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_goes_on_where_it_stopped_and_sees_the_end() {
        let build = Arc::new(Build::new(Digest::of(b"x"), None));
        let handle = BuildHandle(build.clone());
        (&*build as &dyn BuildLog).info("one");
        handle.changed(0).await;
        let first = handle.entries_after(0);
        assert_eq!((first.len(), first[0].id), (1, 1));
        let reader = tokio::spawn({
            let handle = handle.clone();
            async move {
                handle.changed(1).await;
                handle.entries_after(1)
            }
        });
        (&*build as &dyn BuildLog).info("two");
        assert_eq!(reader.await.unwrap()[0].id, 2);
        assert!(handle.outcome().is_none());
        build.finish(Err(Arc::new(Error::Stopping { what: "a test" })));
        handle.changed(2).await;
        assert!(handle.wait().await.is_err());
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let build = Arc::new(Build::new(Digest::of(b"x"), None));
        let text = "x".repeat(1 << 20);
        for _ in 0..20 {
            build.write(Stream::Stdout, &text);
        }
        let entries = BuildHandle(build).entries_after(0);
        assert_eq!(entries.last().unwrap().id, 20);
        assert!(entries.len() < 9, "{}", entries.len());
    }
}
