//! What a follower writes down of what it is told.

use openraft::EntryPayload;
use tokio::task::JoinHandle;

use super::{Error, Means};
use crate::machine;
use crate::snapshot::SnapshotData;
use crate::types::{Entry, LogId};

/// How much of the log is read at once when a node starts.
const CHUNK_BYTES: usize = 1 << 20;

/// The log, the state and its snapshots, as a follower works on them.
#[derive(Debug)]
pub(super) struct Keep {
    means: Means,
    /// The snapshot that is being written, if one is.
    writing: Option<JoinHandle<Result<Option<LogId>, machine::Error>>>,
    /// The last entry that a snapshot holds, written or on its way.
    snapshot: u64,
}

/// What came of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// They were applied; whether members changed by them.
    Applied { members: bool },
    /// They do not follow what is applied here.
    OutOfOrder,
}

impl Keep {
    /// Goes on from what is on the disk: applies what the log is known to hold that is decided.
    pub(super) fn open(means: Means) -> Result<Self, Error> {
        let Means { log, machine, .. } = &means;
        if let Some(applied) = machine.applied() {
            log.begin_behind(applied)?;
        }
        let decided = log.known_committed()?;
        while machine.applied() < decided {
            let (next, upto) = (next(machine.applied()), decided.map_or(0, |id| id.index));
            let entries = log.committed(next, upto, CHUNK_BYTES)?;
            if entries.is_empty() {
                break;
            }
            machine.apply_all(entries)?;
        }
        let snapshot = machine.folder().newest().map_or(0, |id| id.index);
        Ok(Self { means, writing: None, snapshot })
    }

    /// Returns the last entry that was applied.
    pub(super) fn applied(&self) -> Option<LogId> {
        self.means.machine.applied()
    }

    /// Takes the next entries that are decided.
    pub(super) async fn take(&mut self, entries: Vec<Entry>) -> Result<Taken, Error> {
        let Means { log, machine, .. } = &self.means;
        let (Some(first), Some(last)) = (entries.first(), entries.last().map(|entry| entry.log_id)) else {
            return Ok(Taken::Applied { members: false });
        };
        if first.log_id.index != next(machine.applied()) {
            return Ok(Taken::OutOfOrder);
        }
        let members = entries.iter().any(|entry| matches!(entry.payload, EntryPayload::Membership(_)));
        tokio::task::block_in_place(|| {
            log.take_decided(&entries)?;
            machine.apply_all(entries)?;
            log.note_committed(last)?;
            Ok::<_, Error>(())
        })?;
        self.see_to_snapshots(last).await?;
        Ok(Taken::Applied { members })
    }

    /// Takes a whole snapshot in place of what is here.
    pub(super) async fn install(&mut self, snapshot: SnapshotData) -> Result<(), Error> {
        self.end().await?;
        let Means { log, machine, .. } = &self.means;
        machine.install(snapshot).await?;
        if let Some(applied) = machine.applied() {
            self.snapshot = applied.index;
            log.blocking(move |log| {
                log.see_leader_of(applied)?;
                log.forget(applied)
            })
            .await?;
        }
        Ok(())
    }

    /// Makes a snapshot when it is time, and gives the entries back that the last one holds.
    async fn see_to_snapshots(&mut self, applied: LogId) -> Result<(), Error> {
        match &self.writing {
            Some(writing) if writing.is_finished() => self.end().await?,
            None if applied.index >= self.snapshot + self.means.snapshot_every => {
                self.snapshot = applied.index;
                self.writing = Some(tokio::spawn(self.means.machine.builder().write()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Waits for the snapshot that is being written, if one is.
    pub(super) async fn end(&mut self) -> Result<(), Error> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let upto = written.and_then(|last| last.index.checked_sub(self.means.entries_kept));
        let log = &self.means.log;
        if let Some(upto) = upto.and_then(|upto| log.id_at(upto)) {
            log.blocking(move |log| log.forget(upto)).await?;
        }
        Ok(())
    }
}

/// Returns the index of the entry that follows.
fn next(applied: Option<LogId>) -> u64 {
    applied.map_or(0, |id| id.index + 1)
}
