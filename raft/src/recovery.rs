//! Making a node the only voter of what it has, when the other voters are gone for good.
//!
//! All that its log holds counts as decided from then on, also what the others may never have agreed to; what they had decided and
//! this node never got is lost. The others must not come back: the caller sees to it that they are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use openraft::{CommittedLeaderId, EntryPayload, Membership};

use crate::error::{Error, Result, Stop, with_causes};
use crate::log::LogStore;
use crate::meta::Meta;
use crate::options::Tuning;
use crate::snapshot;
use crate::types::{Entry, LogId, Peer, Vote, raft_id};

/// Makes `peer` the only voter of what lies in a folder that it has used before and that nobody has open. It is on disk when this
/// returns; once more is fine.
///
/// # Errors
/// [`Error::Unusable`] when what lies there is another node's, cannot be read, or holds no cluster.
pub fn recover(dir: &Path, peer: Peer) -> Result<()> {
    let unusable = |why: String| Error::Unusable { dir: dir.to_owned(), why };
    let nothing = || unusable("no cluster ever wrote to it".to_owned());
    if !dir.join("log").is_dir() || !dir.join("snapshots").is_dir() {
        return Err(nothing());
    }
    let meta = Meta::open(&dir.join("meta"), peer.node).map_err(|error| unusable(with_causes(&error)))?;
    let log = LogStore::open(&dir.join("log"), Tuning::default().segment_bytes, meta.clone(), Stop::default());
    let log = log.map_err(|error| unusable(with_causes(&error)))?;
    let newest = snapshot::look(&dir.join("snapshots")).map_err(|error| unusable(with_causes(&error)))?;
    let of_snapshot = newest.and_then(|(meta, _)| meta.last_log_id);
    // A snapshot that came from a leader may be ahead of the log, which it then replaces.
    if let Some(ahead) = of_snapshot.filter(|ahead| log.last() < Some(*ahead)) {
        log.forget(ahead).map_err(|error| unusable(with_causes(&error)))?;
    }
    let last = log.last().ok_or_else(nothing)?;
    let voted = meta.vote().map_err(|error| unusable(with_causes(&error)))?.map_or(0, |vote| vote.leader_id.term);
    let (term, id) = (voted.max(last.leader_id.term) + 1, raft_id(peer.node));
    // The vote goes first: a log that reaches a later term than the vote is not opened.
    meta.save_vote(&Vote::new(term, id)).map_err(|error| unusable(with_causes(&error)))?;
    log.write_durably(alone(term, last.index + 1, id, peer)).map_err(|error| unusable(with_causes(&error)))
}

/// Makes the entry by which one node alone votes, and all others are no members any more.
fn alone(term: u64, index: u64, id: u64, peer: Peer) -> Entry {
    let members = Membership::new(vec![BTreeSet::from([id])], BTreeMap::from([(id, peer)]));
    Entry { log_id: LogId::new(CommittedLeaderId::new(term, id), index), payload: EntryPayload::Membership(members) }
}
