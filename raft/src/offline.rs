//! The state of a node that does not run, as its disk has it. Nothing on the disk changes.
//!
//! The newest whole snapshot, and behind it the entries of the log that are known to be committed. Where a cluster has one voter, an
//! entry that lasts in its log is committed; where it has several, what this node last heard counts, and the rest may still
//! be replaced by others' entries: it is counted, and left out.

use std::path::Path;

use openraft::EntryPayload;
use shoal_state::State;

use crate::error::{Error, Result, with_causes};
use crate::meta::Meta;
use crate::types::{Entry, StoredMembership};
use crate::{log, machine, snapshot};

/// What a node left on its disk.
#[derive(Debug, Clone)]
pub struct Left {
    /// The state as of the last entry that is known to be committed.
    pub state: State,
    /// The index of that entry; 0 = none.
    pub applied: u64,
    /// How many entries follow of which this node does not know whether they are committed.
    pub undecided: usize,
}

/// Reads the state from a folder that [`Raft::open`](crate::Raft::open) was given before and that nobody has open.
///
/// # Errors
/// [`Error::Unusable`] when what lies there cannot be read, or not by this build, or is no such folder.
pub fn look(dir: &Path) -> Result<Left> {
    let unusable = |why: String| Error::Unusable { dir: dir.to_owned(), why };
    let newest = snapshot::look(&dir.join("snapshots")).map_err(|error| unusable(with_causes(&error)))?;
    let (meta, contents) = newest.unwrap_or_default();
    let entries = log::look(&dir.join("log"), meta.last_log_id).map_err(|error| unusable(with_causes(&error)))?;
    let last = match voters(&meta.last_membership, &entries) {
        1 => entries.last().map(|entry| entry.log_id),
        _ => Meta::look_committed(&dir.join("meta")).map_err(|error| unusable(with_causes(&error)))?,
    };
    let (mut state, mut applied) = (contents.state, meta.last_log_id);
    let committed = entries.iter().take_while(|entry| Some(entry.log_id) <= last);
    for entry in committed {
        if let EntryPayload::Normal(batch) = &entry.payload {
            machine::apply_batch(&mut state, entry.log_id.index, batch).map_err(|error| unusable(with_causes(&error)))?;
        }
        applied = Some(entry.log_id);
    }
    let undecided = entries.iter().filter(|entry| Some(entry.log_id) > applied).count();
    Ok(Left { state, applied: applied.map_or(0, |id| id.index), undecided })
}

/// Returns how many voters the cluster has by the last word of them.
fn voters(of_snapshot: &StoredMembership, entries: &[Entry]) -> usize {
    let last = entries.iter().rev().find_map(|entry| match &entry.payload {
        EntryPayload::Membership(members) => Some(members),
        _ => None,
    });
    last.map_or_else(|| of_snapshot.voter_ids().count(), |members| members.voter_ids().count())
}
