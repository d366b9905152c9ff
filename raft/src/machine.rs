//! openraft's state machine around [`State`].
//!
//! `apply` works in memory and is as durable as the log; snapshots are files. The machine owns the state; others see
//! it through [`View`], after every batch of entries.
//!
//! It stops Raft on this node, with a sentence, rather than guess: at an entry that this build does not understand.

use std::convert::Infallible;
use std::sync::Arc;

use openraft::storage::{RaftStateMachine, Snapshot};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use parking_lot::Mutex;
use shoal_state::{Command, State, VERSION_KNOWN};
use tokio::sync::mpsc;

use crate::batch::{Batch, NotReadable};
use crate::error::Stop;
use crate::snapshot::{self, Contents, Folder, SnapshotData};
use crate::types::{Answers, Entry, LogId, SnapshotMeta, StorageError, StoredMembership, TypeConfig};
use crate::view::View;

/// Why the state cannot go on here.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot apply entry {index} of the log: {why}")]
    NotReadable { index: u64, why: NotReadable },
    #[error(
        "entry {index} of the log activates version {version} of the rules, and this build knows versions up to {VERSION_KNOWN}: upgrade this node"
    )]
    VersionUnknown { index: u64, version: u32 },
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
}

/// The state machine, as openraft drives it, or whoever follows the voters. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    place: Arc<Mutex<Place>>,
    view: Arc<View>,
    folder: Folder,
    stop: Stop,
    /// Held by whoever drives it now; see [`Machine::lent`].
    #[expect(dead_code, reason = "its end tells whoever lent it")]
    lease: Option<mpsc::Sender<Infallible>>,
}

/// How far the state is.
#[derive(Debug)]
struct Place {
    applied: Option<LogId>,
    membership: StoredMembership,
    contents: Contents,
}

impl Machine {
    /// Starts from the newest snapshot, or from nothing.
    pub(crate) fn new(folder: Folder, newest: Option<(SnapshotMeta, Contents)>, stop: Stop) -> Self {
        let (meta, contents) = newest.unwrap_or_default();
        let (index, term) = index_and_term(meta.last_log_id);
        let view = Arc::new(View::new(contents.state.clone(), contents.tally.marks(), index, term));
        let place = Place { applied: meta.last_log_id, membership: meta.last_membership, contents };
        Self { place: Arc::new(Mutex::new(place)), view, folder, stop, lease: None }
    }

    /// Returns a machine to be driven by openraft, and what says when openraft has let go of it: until then it may still apply.
    pub(crate) fn lent(&self) -> (Self, mpsc::Receiver<Infallible>) {
        let (lease, returned) = mpsc::channel(1);
        (Self { lease: Some(lease), ..self.clone() }, returned)
    }

    /// Returns the last entry that was applied.
    pub(crate) fn applied(&self) -> Option<LogId> {
        self.place.lock().applied
    }

    /// Returns the members by the last entry of them that was applied.
    pub(crate) fn membership(&self) -> StoredMembership {
        self.place.lock().membership.clone()
    }

    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.clone()
    }

    /// Applies committed entries, in order, and shows what came of them.
    pub(crate) fn apply_all(&self, entries: impl IntoIterator<Item = Entry>) -> Result<Vec<Answers>, Error> {
        let mut place = self.place.lock();
        let (mut all, mut events) = (Vec::new(), Vec::new());
        for entry in entries {
            let answers = place.apply_one(&entry)?;
            events.extend(answers.0.iter().flatten().flatten().cloned());
            place.contents.tally.note(entry.log_id.index, &answers);
            place.applied = Some(entry.log_id);
            all.push(answers);
        }
        let (index, term) = index_and_term(place.applied);
        self.view.advance(place.contents.state.clone(), place.contents.tally.marks(), index, term, events);
        Ok(all)
    }

    /// Takes over a snapshot that another node sent, durably, and shows the state in it.
    pub(crate) async fn install(&self, snapshot: SnapshotData) -> Result<(), Error> {
        let (file, temporary) = snapshot.into_parts().await;
        let folder = self.folder.clone();
        let (meta, contents) = blocking(move || folder.install(file, temporary)).await?;
        let mut place = self.place.lock();
        *place = Place { applied: meta.last_log_id, membership: meta.last_membership, contents };
        let (index, term) = index_and_term(place.applied);
        self.view.replace(place.contents.state.clone(), place.contents.tally.marks(), index, term);
        Ok(())
    }

    /// Returns what writes a snapshot of the state as it is now.
    pub(crate) fn builder(&self) -> Builder {
        let place = self.place.lock();
        let (index, term) = index_and_term(place.applied);
        let meta = SnapshotMeta {
            last_log_id: place.applied,
            last_membership: place.membership.clone(),
            // Equal logs give equal bytes, so the entry names the snapshot, whoever made it.
            snapshot_id: format!("{term}-{index}"),
        };
        Builder { meta, contents: place.contents.clone(), folder: self.folder.clone(), stop: self.stop.clone() }
    }

    fn failed(&self, kind: fn(AnyError) -> StorageIOError<u64>) -> impl FnOnce(Error) -> StorageError {
        move |error| kind(self.stop.because(&error)).into()
    }
}

impl Place {
    fn apply_one(&mut self, entry: &Entry) -> Result<Answers, Error> {
        match &entry.payload {
            EntryPayload::Blank => Ok(Answers::default()),
            EntryPayload::Normal(batch) => apply_batch(&mut self.contents.state, entry.log_id.index, batch),
            EntryPayload::Membership(members) => {
                self.membership = StoredMembership::new(Some(entry.log_id), members.clone());
                Ok(Answers::default())
            }
        }
    }
}

/// Applies what an entry carries; one answer each.
pub(crate) fn apply_batch(state: &mut State, index: u64, batch: &Batch) -> Result<Answers, Error> {
    let commands = batch.commands().map_err(|why| Error::NotReadable { index, why })?;
    let mut answers = Vec::with_capacity(commands.len());
    for command in &commands {
        if let Command::SetVersion { version } = *command
            && version > VERSION_KNOWN
        {
            return Err(Error::VersionUnknown { index, version });
        }
        answers.push(state.apply(command));
    }
    Ok(Answers(answers))
}

fn index_and_term(id: Option<LogId>) -> (u64, u64) {
    id.map_or((0, 0), |id| (id.index, id.leader_id.term))
}

/// Runs what waits for the disk away from the threads that carry Raft's messages.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, snapshot::Error> + Send + 'static) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let place = self.place.lock();
        Ok((place.applied, place.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answers>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.apply_all(entries).map_err(self.failed(StorageIOError::write_state_machine))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.builder()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        let folder = self.folder.clone();
        let data = blocking(move || folder.receive()).await;
        data.map(Box::new).map_err(self.failed(|error| StorageIOError::write_snapshot(None, error)))
    }

    async fn install_snapshot(&mut self, _meta: &SnapshotMeta, snapshot: Box<SnapshotData>) -> Result<(), StorageError> {
        self.install(*snapshot).await.map_err(self.failed(|error| StorageIOError::read_snapshot(None, error)))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let folder = self.folder.clone();
        let current = blocking(move || folder.current()).await;
        let current = current.map_err(self.failed(|error| StorageIOError::read_snapshot(None, error)))?;
        Ok(current.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(data) }))
    }
}

/// Writes one snapshot, from a clone of the state, while entries go on being applied.
#[derive(Debug)]
pub(crate) struct Builder {
    meta: SnapshotMeta,
    contents: Contents,
    folder: Folder,
    stop: Stop,
}

impl Builder {
    /// Writes the snapshot, and returns the last entry that it holds.
    pub(crate) async fn write(self) -> Result<Option<LogId>, Error> {
        let last = self.meta.last_log_id;
        blocking(move || self.folder.write(&self.meta, &self.contents)).await.map(|()| last)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError> {
        let (meta, contents, folder) = (self.meta.clone(), self.contents.clone(), self.folder.clone());
        let written = blocking(move || {
            folder.write(&meta, &contents)?;
            folder.current()
        });
        let failed = |error: Error| StorageIOError::write_snapshot(None, self.stop.because(&error));
        let current = written.await.map_err(failed)?;
        let (meta, data) = current.expect("a snapshot was written, and one is never removed without a newer one");
        Ok(Snapshot { meta, snapshot: Box::new(data) })
    }
}

#[cfg(test)]
mod tests;
