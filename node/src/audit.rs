//! The audit log: who was refused what, who made or ended a token, and who ran which process in a container, in files on this node.
//!
//! One line of JSON a record, in numbered files of `DATA/audit`, the oldest of which are removed when there are too many
//! bytes or they are too old ([`Keep`]). One thread writes; whoever has something to say leaves it in a bounded queue and
//! goes on. A client that is refused a thousand times a second fills no disk: of each second a number of refusals is
//! written, and the others are counted in one line.
//!
//! No secret ever comes here: a record holds ids that were understood as such, names of methods and the sentence that
//! the caller was given, which repeats nothing of a secret either. Of a process it holds the command, which may have what its user put
//! there, and never what it was sent or printed.
//!
//! Each node has only what it refused itself; [`joined`] reads all of them as one.
//!
//! Caveat: records are synced within a second, not before a refusal is answered.

mod files;
pub(crate) mod joined;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use files::Files;

/// Records that may wait to be written. Beyond it, they are counted and not kept.
const QUEUED_MAX: usize = 4096;
/// Refusals that are written of each second; the others are counted.
const REFUSALS_PER_SECOND: u32 = 200;
/// How long a written record may wait for its sync.
const SYNC_WITHIN: Duration = Duration::from_secs(1);
/// Records that a reader who follows may be behind before it is told that it missed some.
const FOLLOWED_MAX: usize = 1024;
/// The longest name of a method or sentence that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 1000;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Keep {
    /// For how many days.
    pub(crate) days: u64,
    /// How many bytes in all.
    pub(crate) bytes: u64,
}

impl Default for Keep {
    fn default() -> Self {
        Self { days: 90, bytes: 64 << 20 }
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum What {
    /// A call was refused.
    Refused,
    /// A token was made.
    TokenCreated,
    /// A token was ended.
    TokenRevoked,
    /// A node came into the cluster.
    NodeJoined,
    /// An operator drained, labelled or removed a node.
    NodeChanged,
    /// A process was started in a container.
    Executed,
    /// Records that were too many to be written each by itself.
    Omitted,
}

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Counts up on this node, without gaps except where lines were lost.
    pub(crate) id: u64,
    /// When, in milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// What happened.
    pub(crate) what: What,
    /// Who did it: `token ak-…`, `task ta-…`, `operator`, or `nobody` for a caller who showed nothing that is known.
    pub(crate) who: String,
    /// What was called: the name of a method, or the path of a URL.
    pub(crate) method: String,
    /// Where the caller is, as `address:port`; empty for a task's own channel and for operators.
    pub(crate) from: String,
    /// Why it was refused, or what was done, in words.
    pub(crate) why: String,
}

/// The audit log of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    send: SyncSender<Message>,
    /// Records that found the queue full.
    lost: Arc<AtomicU64>,
    files: Arc<Files>,
    written: broadcast::Sender<Record>,
}

#[derive(Debug)]
enum Message {
    Write(Record),
    /// Answer when everything before this is written.
    Flush(SyncSender<()>),
}

/// Selects records; what is absent leaves all in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Filter {
    /// Only from then on, in milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Only what happened so.
    pub(crate) what: Option<What>,
    /// Only of whom this is a part of: an id, or `nobody`.
    pub(crate) who: Option<String>,
    /// Only calls whose method has this in its name.
    pub(crate) method: Option<String>,
    /// Only from this address, with or without its port.
    pub(crate) from: Option<String>,
}

/// Which records somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Which ones.
    pub(crate) filter: Filter,
    /// Of those that are there, only the newest so many.
    pub(crate) tail: Option<usize>,
    /// Go on with what happens from now on.
    pub(crate) follow: bool,
}

impl Filter {
    pub(crate) fn matches(&self, record: &Record) -> bool {
        let holds = |wanted: &Option<String>, text: &str| wanted.as_ref().is_none_or(|wanted| text.contains(wanted.as_str()));
        self.since_ms.is_none_or(|since| record.at_ms >= since)
            && self.what.is_none_or(|what| record.what == what)
            && holds(&self.who, &record.who)
            && holds(&self.method, &record.method)
            && self.from.as_ref().is_none_or(|wanted| record.from.starts_with(wanted.as_str()))
    }
}

/// What is to be said of one event.
#[derive(Debug, Clone)]
pub(crate) struct Event<'a> {
    /// See [`Record::what`].
    pub(crate) what: What,
    /// See [`Record::who`].
    pub(crate) who: String,
    /// See [`Record::method`].
    pub(crate) method: &'a str,
    /// See [`Record::from`].
    pub(crate) from: String,
    /// See [`Record::why`].
    pub(crate) why: String,
}

impl Audit {
    /// Opens the log in `dir`, or makes one, and starts its thread, which ends with the last handle.
    pub(crate) fn open(dir: &Path, keep: Keep, now_ms: fn() -> u64) -> io::Result<Self> {
        let (files, next_id) = Files::open(dir, keep)?;
        let files = Arc::new(files);
        let (send, messages) = mpsc::sync_channel(QUEUED_MAX);
        let (written, _) = broadcast::channel(FOLLOWED_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            files: Arc::clone(&files),
            lost: Arc::clone(&lost),
            written: written.clone(),
            next_id,
            second: 0,
            in_second: 0,
            omitted: 0,
            unsynced: None,
            failing: false,
            now_ms,
        };
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&messages))?;
        Ok(Self { inner: Arc::new(Inner { send, lost, files, written }) })
    }

    /// Notes an event. Never waits: when the queue is full, the event is counted in a later line.
    pub(crate) fn note(&self, event: Event<'_>) {
        let record = Record {
            id: 0,
            at_ms: 0,
            what: event.what,
            who: event.who,
            method: short(event.method),
            from: event.from,
            why: short(&event.why),
        };
        if let Err(TrySendError::Full(_)) = self.inner.send.try_send(Message::Write(record)) {
            self.inner.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns records, the oldest first; with `tail` only the newest so many. Blocks on the disk.
    pub(crate) fn read(&self, filter: &Filter, tail: Option<usize>) -> io::Result<Vec<Record>> {
        self.flush();
        let mut found = VecDeque::new();
        self.inner.files.read(|record| {
            if filter.matches(&record) {
                found.push_back(record);
                if tail.is_some_and(|tail| found.len() > tail) {
                    found.pop_front();
                }
            }
        })?;
        Ok(found.into())
    }

    /// Returns what is written from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Record> {
        self.inner.written.subscribe()
    }

    /// Waits until what was noted before is written.
    fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        if self.inner.send.send(Message::Flush(done)).is_ok() {
            let _ = wait.recv_timeout(SYNC_WITHIN);
        }
    }
}

fn short(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text[..end].to_owned()
}

/// The owner of the files that are written.
struct Writer {
    files: Arc<Files>,
    lost: Arc<AtomicU64>,
    written: broadcast::Sender<Record>,
    next_id: u64,
    /// The second of the last refusal, since 1970, and how many were written in it.
    second: u64,
    in_second: u32,
    /// Refusals beyond the number of their second.
    omitted: u64,
    /// Since when something waits for its sync.
    unsynced: Option<Instant>,
    /// The last write failed, and that was said.
    failing: bool,
    now_ms: fn() -> u64,
}

impl Writer {
    fn run(mut self, messages: &mpsc::Receiver<Message>) {
        loop {
            match messages.recv_timeout(SYNC_WITHIN) {
                Ok(Message::Write(record)) => self.take(record),
                Ok(Message::Flush(done)) => {
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.unsynced.is_some_and(|since| since.elapsed() >= SYNC_WITHIN) {
                self.sync();
            }
        }
        self.settle();
        self.sync();
    }

    fn take(&mut self, mut record: Record) {
        record.at_ms = (self.now_ms)();
        let second = record.at_ms / 1000;
        if second != self.second {
            self.settle();
            (self.second, self.in_second) = (second, 0);
        }
        if record.what == What::Refused {
            self.in_second += 1;
            if self.in_second > REFUSALS_PER_SECOND {
                self.omitted += 1;
                return;
            }
        }
        self.write(record);
    }

    /// Says what was left out.
    fn settle(&mut self) {
        let omitted = std::mem::take(&mut self.omitted) + self.lost.swap(0, Ordering::Relaxed);
        if omitted > 0 {
            self.write(Record {
                id: 0,
                at_ms: (self.now_ms)(),
                what: What::Omitted,
                who: String::new(),
                method: String::new(),
                from: String::new(),
                why: format!("{omitted} more refusals, too many in one second to be written each"),
            });
        }
    }

    fn write(&mut self, mut record: Record) {
        record.id = self.next_id;
        self.next_id += 1;
        match self.files.append(&record, record.at_ms) {
            Ok(()) => {
                self.failing = false;
                self.unsynced.get_or_insert_with(Instant::now);
            }
            Err(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the audit log cannot be written; refusals go on, and are not kept until it can");
            }
            Err(_) => {}
        }
        let _ = self.written.send(record);
    }

    fn sync(&mut self) {
        if self.unsynced.take().is_some()
            && let Err(error) = self.files.sync()
        {
            tracing::error!(%error, "the audit log cannot be synced");
        }
    }
}

#[cfg(test)]
mod tests;
