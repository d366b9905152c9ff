//! From what the rules want to records in the log, and to answers once they are written.

use std::collections::BTreeSet;

use bytes::Bytes;
use shoal_state::ShardId;

use super::Driver;
use crate::calls::rules::Effect;
use crate::objects::record::ObjectRecord;
use crate::shards::{Counted, Draft, Kind, StoreError};

impl Driver {
    /// Does what the rules want: writes, then answers; until nothing is left.
    pub(super) fn settle(&mut self) -> Result<(), StoreError> {
        loop {
            let effects = self.rules.take_effects();
            if effects.is_empty() {
                return Ok(());
            }
            let mut answers = Vec::new();
            let mut drafts = Vec::new();
            let mut indexes = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Append { shard, index, record, payload } => {
                        let (owner, body) = (record.call().bits(), [record.encode(), payload]);
                        drafts.push(Draft { shard, kind: Kind::Calls, owner, body });
                        indexes.push(index);
                    }
                    Effect::Drop { shard, index, call } => {
                        self.streams.remove_call(call);
                        let body = [Bytes::new(), Bytes::new()];
                        drafts.push(Draft { shard, kind: Kind::Dropped, owner: call.bits(), body });
                        indexes.push(index);
                    }
                    Effect::AppendObject { shard, index, record, payload } => {
                        let (owner, body) = (ObjectRecord::owner(record.object(), index), [record.encode(), payload]);
                        drafts.push(Draft { shard, kind: Kind::Objects, owner, body });
                        indexes.push(index);
                    }
                    Effect::DropObject { shard, index, owner } => {
                        drafts.push(Draft { shard, kind: Kind::Dropped, owner, body: [Bytes::new(), Bytes::new()] });
                        indexes.push(index);
                    }
                    Effect::Answer { ticket, answer } => answers.push((ticket, answer)),
                }
            }
            self.write(&drafts, &indexes)?;
            for (ticket, answer) in answers {
                self.answer(ticket, answer);
            }
        }
    }

    fn write(&mut self, drafts: &[Draft], indexes: &[u64]) -> Result<(), StoreError> {
        if drafts.is_empty() {
            return Ok(());
        }
        let marks = self.shards.append(drafts)?;
        let as_foreseen = marks.iter().zip(indexes).all(|(mark, index)| mark.index == *index);
        assert!(as_foreseen, "records got other indexes than the rules gave them");
        let touched: BTreeSet<ShardId> = drafts.iter().map(|draft| draft.shard).collect();
        let now = self.clock.now();
        for shard in touched {
            let Counted { written, synced } = self.shards.replica(shard).counted();
            self.rules.counted(now, shard, written, synced);
        }
        Ok(())
    }
}
