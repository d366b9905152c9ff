//! What records say at their front: read when the log is opened, and again when a shard comes home.

use std::collections::HashMap;

use shoal_state::ShardId;

use super::Driver;
use crate::calls::record::{NotARecord, Record};
use crate::calls::state::CallsState;
use crate::objects::ObjectsState;
use crate::objects::record::ObjectRecord;
use crate::shards::{self, Kind, StoreError};

/// Heads of records found at start, until their shards are told apart.
pub(super) type Heads = HashMap<(ShardId, u64), Head>;

/// What a record says, whatever it is of.
pub(super) enum Head {
    Calls(Record),
    Objects(ObjectRecord),
}

impl Head {
    /// Reads the head at the front of a body; none for a record that is about the shard itself.
    pub(super) fn decode(kind: Kind, body: &[u8]) -> Option<Result<Self, NotARecord>> {
        match kind {
            Kind::Calls => Some(Record::decode(body).map(|(record, _)| Self::Calls(record))),
            Kind::Objects => Some(ObjectRecord::decode(body).map(|(record, _)| Self::Objects(record))),
            Kind::Began | Kind::Cut | Kind::Dropped | Kind::Tail | Kind::Kept => None,
        }
    }
}

impl Driver {
    pub(super) fn rebuild(&mut self, shard: ShardId) -> Result<(CallsState, ObjectsState), StoreError> {
        let (mut calls, mut objects) = (CallsState::default(), ObjectsState::default());
        for slot in self.shards.index_of(shard).iter() {
            let index = slot.header.mark.index;
            // A head may be of a record that was cut off, in whose place one without a head stands.
            if !matches!(slot.header.kind, Kind::Calls | Kind::Objects) {
                continue;
            }
            let head = match self.heads.remove(&(shard, index)) {
                Some(head) => head,
                None => {
                    let bytes = self.shards.log().read(slot.position)?;
                    let Some(read) = Head::decode(slot.header.kind, &bytes[shards::record::HEADER_BYTES..]) else { continue };
                    read.map_err(|source| StoreError::Body { shard, index, source: Box::new(source) })?
                }
            };
            match head {
                Head::Calls(record) => calls.apply(index, &record),
                Head::Objects(record) => objects.apply(index, &record),
            }
        }
        Ok((calls, objects))
    }
}
