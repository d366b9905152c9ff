//! The few small facts beside the log that must last: whose folder this is, the vote, what was purged.
//!
//! They lie in a [`Kv`] of Raft's own, each value behind a byte that names its format.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use shoal_state::NodeId;
use shoal_storage::kv::{self, Kv, Tree};

use crate::batch::push;
use crate::types::{LogId, Vote};

const FORMAT: u8 = 1;

const NODE: &[u8] = b"node";
const VOTE: &[u8] = b"vote";
const COMMITTED: &[u8] = b"committed";
const PURGED: &[u8] = b"purged";

/// What is wrong with the facts beside the log.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kv(#[from] kv::Error),
    #[error(
        "the value of {key:?} beside Raft's log cannot be read; a node that forgot its vote must not come back under its id: remove its folder and let it join anew"
    )]
    Unreadable { key: String },
    #[error("it belongs to node {holds}, and this node is {asked}: a folder is never handed to another node")]
    OtherNode { holds: NodeId, asked: NodeId },
}

/// A handle on the facts beside the log; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    kv: Kv,
    tree: Tree,
}

impl Meta {
    /// Opens the facts in `dir`, and claims the folder for `node`.
    pub(crate) fn open(dir: &Path, node: NodeId) -> Result<Self, Error> {
        let kv = Kv::open(dir)?;
        let meta = Self { tree: kv.tree("raft")?, kv };
        match meta.get::<NodeId>(NODE)? {
            Some(holds) if holds != node => return Err(Error::OtherNode { holds, asked: node }),
            Some(_) => {}
            None => {
                meta.set(NODE, &node)?;
                meta.kv.sync()?;
            }
        }
        Ok(meta)
    }

    /// Reads how far the log was committed from a folder that was opened before, and that nobody has open.
    pub(crate) fn look_committed(dir: &Path) -> Result<Option<LogId>, Error> {
        let kv = Kv::open_there(dir)?;
        Self { tree: kv.tree("raft")?, kv }.committed()
    }

    pub(crate) fn vote(&self) -> Result<Option<Vote>, Error> {
        self.get(VOTE)
    }

    /// Keeps the vote. It is on disk when this returns.
    pub(crate) fn save_vote(&self, vote: &Vote) -> Result<(), Error> {
        self.set(VOTE, vote)?;
        Ok(self.kv.sync()?)
    }

    pub(crate) fn committed(&self) -> Result<Option<LogId>, Error> {
        Ok(self.get(COMMITTED)?.flatten())
    }

    /// Notes how far the log is committed. Only a hint for the next start, so it is not synced: an older one makes the
    /// state catch up later, by the leader's word.
    pub(crate) fn note_committed(&self, committed: Option<LogId>) -> Result<(), Error> {
        self.set(COMMITTED, &committed)
    }

    pub(crate) fn purged(&self) -> Result<Option<LogId>, Error> {
        self.get(PURGED)
    }

    /// Keeps the last entry that is no longer part of the log. It is on disk when this returns.
    pub(crate) fn save_purged(&self, purged: &LogId) -> Result<(), Error> {
        self.set(PURGED, purged)?;
        Ok(self.kv.sync()?)
    }

    /// Blocks until everything noted before is on disk.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        Ok(self.kv.sync()?)
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        let Some(bytes) = self.tree.get(key)? else { return Ok(None) };
        let value = bytes.strip_prefix(&[FORMAT]).and_then(|rest| postcard::from_bytes(rest).ok());
        value.map(Some).ok_or_else(|| Error::Unreadable { key: String::from_utf8_lossy(key).into() })
    }

    fn set(&self, key: &[u8], value: &impl Serialize) -> Result<(), Error> {
        let mut bytes = vec![FORMAT];
        push(&mut bytes, value);
        Ok(self.tree.insert(key, &bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_not_handed_to_another_node() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (NodeId::from_random(1), NodeId::from_random(2));
        drop(Meta::open(dir.path(), one).unwrap());
        let refused = Meta::open(dir.path(), other).unwrap_err().to_string();
        assert!(refused.contains(&one.to_string()) && refused.contains(&other.to_string()), "{refused}");
        Meta::open(dir.path(), one).unwrap();
    }

    #[test]
    fn a_vote_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Meta::open(dir.path(), NodeId::from_random(1)).unwrap();
        meta.save_vote(&Vote::new(3, 1)).unwrap();
        assert_eq!(meta.vote().unwrap(), Some(Vote::new(3, 1)));
        meta.tree.insert(VOTE, b"\x02other").unwrap();
        assert!(matches!(meta.vote(), Err(Error::Unreadable { .. })));
    }
}
