//! openraft's log on segment files.
//!
//! Each entry is one record of a [`shoal_storage::log::Log`]: a format byte, the entry's log id, its payload. Memory holds
//! only where each entry stands. What is not an entry, the vote and how far the log is purged, lies beside it in [`Meta`].
//!
//! An append is written and readable when it returns; openraft's callback fires when the fsync that covers it has
//! ended. Purged entries leave the disk by whole segments, so a scan at the next start meets some of them again and
//! skips them by the purge mark, which is made durable first.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::RwLock;
use shoal_storage::log::{self, Log, Position};

use crate::batch::push;
use crate::error::{Stop, with_causes};
use crate::meta::{self, Meta};
use crate::types::{Entry, LogId, StorageError, StoredMembership, TypeConfig, Vote};

/// The first byte of a record.
const FORMAT: u8 = 1;

/// The most bytes of entries that are read for one message to a follower; at least one entry is.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// What is wrong with the log on disk.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Meta(#[from] meta::Error),
    #[error(
        "the record at position {position} of Raft's log is in format {format}, and this build knows format {FORMAT}: upgrade this node"
    )]
    Format { position: Position, format: u8 },
    #[error("the record at position {position} of Raft's log is not an entry: {why}")]
    NotAnEntry { position: Position, why: postcard::Error },
    #[error("Raft's log has a hole: entry {found} follows entry {before}; remove this node's folder and let it join anew")]
    Hole { before: u64, found: u64 },
    #[error(
        "the vote beside Raft's log is of term {vote}, and the log reaches term {log}: the disk forgot what it had confirmed; a node that forgot its vote must not come back under its id: remove its folder and let it join anew"
    )]
    VoteForgotten { vote: u64, log: u64 },
}

/// A handle on the log; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: Log,
    meta: Meta,
    index: RwLock<Index>,
    stop: Stop,
}

/// Where the entries stand: consecutive, from the one after the last purged.
#[derive(Debug, Default)]
struct Index {
    purged: Option<LogId>,
    slots: VecDeque<(LogId, Position)>,
}

/// Reads the entries of the log in `dir` that come after `upto`, in order, and changes nothing. Nobody may have it open.
pub(crate) fn look(dir: &Path, upto: Option<LogId>) -> Result<Vec<Entry>, Error> {
    let (mut next, mut entries) = (upto.map_or(0, |id| id.index + 1), Vec::new());
    for record in Log::look(dir)? {
        let (position, bytes) = record?;
        let entry = decode(position, &bytes)?;
        match entry.log_id.index {
            earlier if earlier < next => continue,
            index if index > next => return Err(Error::Hole { before: next.saturating_sub(1), found: index }),
            _ => entries.push(entry),
        }
        next += 1;
    }
    Ok(entries)
}

impl LogStore {
    /// Opens the log in `dir`, or makes one, and walks it once.
    pub(crate) fn open(dir: &Path, segment_bytes: u64, meta: Meta, stop: Stop) -> Result<Self, Error> {
        let log = Log::open(dir, log::Options { segment_bytes })?;
        let mut index = Index { purged: meta.purged()?, slots: VecDeque::new() };
        for record in log.scan(Position::START) {
            let (position, bytes) = record?;
            index.find(decode(position, &bytes)?.log_id, position)?;
        }
        let term = |id: LogId| id.leader_id.term;
        let (voted, reached) = (meta.vote()?.map_or(0, |vote| vote.leader_id.term), index.last().map_or(0, term));
        if voted < reached {
            return Err(Error::VoteForgotten { vote: voted, log: reached });
        }
        Ok(Self { inner: Arc::new(Inner { log, meta, index: RwLock::new(index), stop }) })
    }

    /// Returns the index of the first entry that the log holds or will hold.
    pub(crate) fn first_index(&self) -> u64 {
        self.inner.index.read().first()
    }

    /// Returns the entry of this index, as far as it is known: it is in the log, or the last one that was purged.
    pub(crate) fn id_at(&self, at: u64) -> Option<LogId> {
        let index = self.inner.index.read();
        let purged = index.purged.filter(|purged| purged.index == at);
        purged.or_else(|| if at < index.first() { None } else { index.slots.get(index.offset_of(at)).map(|(id, _)| *id) })
    }

    /// Returns some of the entries from `from` up to `upto`, one or as many as go into so many bytes; none where the log begins later.
    pub(crate) fn committed(&self, from: u64, upto: u64, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let entries = self.read(from..=upto, bytes_max)?;
        Ok(if entries.first().is_some_and(|entry| entry.log_id.index == from) { entries } else { vec![] })
    }

    /// Takes entries that are decided, whatever the log holds in their place. They are readable when this returns, and on disk by and by:
    /// they can be fetched again, and nobody counts on this copy before [`Self::sync`].
    pub(crate) fn take_decided(&self, entries: &[Entry]) -> Result<(), Error> {
        let Some(newest) = entries.last() else { return Ok(()) };
        self.see_leader_of(newest.log_id)?;
        let held = entries.iter().take_while(|entry| self.id_at(entry.log_id.index) == Some(entry.log_id)).count();
        let Some(first) = entries.get(held) else { return Ok(()) };
        self.cut(first.log_id)?;
        self.write(entries[held..].iter().cloned())
    }

    /// Notes the leader of an entry that is decided as the one that this node agrees with, unless it knows of a later one. The vote goes
    /// first, as with openraft: a log that reaches a later term than the vote is not opened.
    pub(crate) fn see_leader_of(&self, entry: LogId) -> Result<(), Error> {
        let of_leader = Vote::new_committed(entry.leader_id.term, entry.leader_id.node_id);
        if self.inner.meta.vote()?.is_none_or(|vote| vote < of_leader) {
            self.inner.meta.save_vote(&of_leader)?;
        }
        Ok(())
    }

    /// Makes the log go on behind an entry that the state holds already.
    pub(crate) fn begin_behind(&self, entry: LogId) -> Result<(), Error> {
        if self.last() >= Some(entry) {
            return Ok(());
        }
        self.see_leader_of(entry)?;
        self.forget(entry)
    }

    /// Blocks until everything is on disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.inner.meta.sync()?;
        Ok(self.inner.log.sync()?)
    }

    /// Notes how far the log is decided, for the next start.
    pub(crate) fn note_committed(&self, upto: LogId) -> Result<(), Error> {
        Ok(self.inner.meta.note_committed(Some(upto))?)
    }

    /// Returns how far the log is known to be decided; an earlier process may have known more.
    pub(crate) fn known_committed(&self) -> Result<Option<LogId>, Error> {
        // Never beyond the log: the hint and the log are synced apart.
        Ok(self.inner.meta.committed()?.min(self.last()))
    }

    /// Returns the members by the last entry of them that the log holds, decided or not.
    pub(crate) fn last_membership(&self) -> Result<Option<StoredMembership>, Error> {
        let mut upto = self.inner.index.read().slots.len();
        while upto > 0 {
            let position = self.inner.index.read().slots.get(upto - 1).copied();
            let Some((id, position)) = position else { break };
            if let EntryPayload::Membership(members) = decode(position, &self.inner.log.read(position)?)?.payload {
                return Ok(Some(StoredMembership::new(Some(id), members)));
            }
            upto -= 1;
        }
        Ok(None)
    }

    fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Result<Vec<Entry>, Error> {
        let positions = self.inner.index.read().positions(range);
        let mut entries = Vec::with_capacity(positions.len());
        let mut bytes = 0;
        for position in positions {
            let record = self.inner.log.read(position)?;
            bytes += record.len();
            if bytes > bytes_max && !entries.is_empty() {
                break;
            }
            entries.push(decode(position, &record)?);
        }
        Ok(entries)
    }

    fn write(&self, entries: impl IntoIterator<Item = Entry>) -> Result<(), Error> {
        let (ids, records): (Vec<_>, Vec<_>) = entries.into_iter().map(|entry| (entry.log_id, encode(&entry))).unzip();
        let records: Vec<_> = records.iter().map(Vec::as_slice).collect();
        let positions = self.inner.log.append(&records)?;
        self.inner.index.write().slots.extend(ids.into_iter().zip(positions));
        Ok(())
    }

    /// Appends one entry and returns when it is on disk.
    pub(crate) fn write_durably(&self, entry: Entry) -> Result<(), Error> {
        self.write([entry])?;
        Ok(self.inner.log.sync()?)
    }

    /// Returns the last entry that was purged.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.inner.index.read().purged
    }

    /// Returns the last entry that the log holds, or held before it was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.inner.index.read().last()
    }

    fn cut(&self, from: LogId) -> Result<(), Error> {
        let mut index = self.inner.index.write();
        let kept = index.offset_of(from.index);
        let Some((_, position)) = index.slots.get(kept).copied() else { return Ok(()) };
        self.inner.log.truncate(position)?;
        index.slots.truncate(kept);
        Ok(())
    }

    /// Purges the entries up to this one.
    pub(crate) fn forget(&self, upto: LogId) -> Result<(), Error> {
        self.inner.meta.save_purged(&upto)?;
        let keep_from = {
            let mut index = self.inner.index.write();
            let gone = index.offset_of(upto.index + 1).min(index.slots.len());
            index.slots.drain(..gone);
            index.purged = Some(upto);
            index.slots.front().map(|(_, position)| *position)
        };
        Ok(self.inner.log.release_before(keep_from.unwrap_or_else(|| self.inner.log.end()))?)
    }

    /// Runs what waits for the disk away from the threads that carry Raft's messages.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// Keeps the reason why Raft must stop, and returns it as openraft wants it.
    fn failed(&self, kind: fn(AnyError) -> StorageIOError<u64>) -> impl FnOnce(Error) -> StorageError {
        move |error| kind(self.inner.stop.because(&error)).into()
    }
}

impl Index {
    fn first(&self) -> u64 {
        self.slots.front().map_or_else(|| self.purged.map_or(0, |purged| purged.index + 1), |(id, _)| id.index)
    }

    fn last(&self) -> Option<LogId> {
        self.slots.back().map(|(id, _)| *id).or(self.purged)
    }

    /// Returns where in `slots` the entry of this index is or would be.
    fn offset_of(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first())).unwrap_or(usize::MAX)
    }

    /// Takes an entry found on disk.
    fn find(&mut self, id: LogId, position: Position) -> Result<(), Error> {
        if id.index < self.first() {
            return Ok(());
        }
        let expected = self.first() + self.slots.len() as u64;
        if id.index != expected {
            return Err(Error::Hole { before: expected.saturating_sub(1), found: id.index });
        }
        self.slots.push_back((id, position));
        Ok(())
    }

    fn positions(&self, range: impl RangeBounds<u64>) -> Vec<Position> {
        let from = match range.start_bound() {
            Bound::Included(from) => self.offset_of(*from),
            Bound::Excluded(before) => self.offset_of(before.saturating_add(1)),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => self.offset_of(last.saturating_add(1)),
            Bound::Excluded(end) => self.offset_of(*end),
            Bound::Unbounded => usize::MAX,
        };
        let to = to.min(self.slots.len());
        self.slots.range(from.min(to)..to).map(|(_, position)| *position).collect()
    }
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut record = vec![FORMAT];
    push(&mut record, entry);
    record
}

fn decode(position: Position, record: &[u8]) -> Result<Entry, Error> {
    match record.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|why| Error::NotAnEntry { position, why }),
        Some((&format, _)) => Err(Error::Format { position, format }),
        None => Err(Error::NotAnEntry { position, why: postcard::Error::DeserializeUnexpectedEnd }),
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        self.read(range, usize::MAX).map_err(self.failed(StorageIOError::read_logs))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read(start..end, MESSAGE_BYTES_MAX).map_err(self.failed(StorageIOError::read_logs))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let index = self.inner.index.read();
        Ok(LogState { last_purged_log_id: index.purged, last_log_id: index.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        let saved = self.blocking(move |store| Ok(store.inner.meta.save_vote(&vote)?)).await;
        saved.map_err(self.failed(StorageIOError::write_vote))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.inner.meta.vote().map_err(Error::from).map_err(self.failed(StorageIOError::read_vote))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let noted = self.inner.meta.note_committed(committed).map_err(Error::from);
        noted.map_err(self.failed(StorageIOError::write))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.known_committed().map_err(self.failed(StorageIOError::read))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.write(entries).map_err(self.failed(StorageIOError::write_logs))?;
        let synced = self.inner.log.sync_async();
        let stop = self.inner.stop.clone();
        tokio::spawn(async move {
            let synced = synced.await.map_err(|error| {
                stop.because(&error);
                std::io::Error::other(with_causes(&error))
            });
            callback.log_io_completed(synced);
        });
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let cut = self.blocking(move |store| store.cut(log_id)).await;
        cut.map_err(self.failed(StorageIOError::write_logs))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let purged = self.blocking(move |store| store.forget(log_id)).await;
        purged.map_err(self.failed(StorageIOError::write_logs))
    }
}

#[cfg(test)]
mod tests;
