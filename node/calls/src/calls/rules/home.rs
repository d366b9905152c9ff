//! A shard that is at home at this node, and how far its records count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use shoal_state::{CallId, InputId, ShardId, TaskId};

use super::objects::ObjectsHome;
use super::{Ticket, TimerKey};
use crate::calls::model::Entry;
use crate::calls::state::{Call, CallsState};

/// A record that an answer waits for: where, and whether it must be synced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    pub(super) shard: ShardId,
    pub(super) index: u64,
    pub(super) durable: bool,
}

/// A shard at home here.
#[derive(Debug, Default)]
pub(super) struct Home {
    pub(super) state: CallsState,
    pub(super) objects: ObjectsHome,
    /// Index of the next record.
    pub(super) next: u64,
    pub(super) written: Watermark,
    pub(super) synced: Watermark,
    pub(super) reports: Option<TimerKey>,
    /// Tries that tasks were done with while reports were waited for: a report may be older than that.
    pub(super) let_go: BTreeSet<(TaskId, InputId, u32)>,
    /// The last record that was there when the shard came home. Up to it others may have been told of what counted then.
    pub(super) inherited: u64,
}

/// How far the records count in one of the two senses, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    pub(super) index: u64,
    pub(super) answers: BTreeMap<u64, Vec<Ticket>>,
    pub(super) outputs: VecDeque<(u64, CallId)>,
}

impl Home {
    /// Notes all outputs as ones of which it is not known whether they count: whoever asks for one before that must hear of it then.
    /// The records of a home that starts again count once the other members have said that they have them too.
    pub(super) fn await_outputs(&mut self) {
        for durable in [false, true] {
            let calls = self.state.calls().filter(|call| call.open.invocation.durable() == durable);
            let mut outputs: Vec<_> = calls.flat_map(|call| call.outputs.iter().map(|(entry, _)| (entry.index, call.open.call))).collect();
            outputs.sort_unstable();
            self.mark_mut(durable).outputs = outputs.into();
        }
    }

    pub(super) fn mark(&self, durable: bool) -> &Watermark {
        if durable { &self.synced } else { &self.written }
    }

    pub(super) fn mark_mut(&mut self, durable: bool) -> &mut Watermark {
        if durable { &mut self.synced } else { &mut self.written }
    }

    /// Says whether a call has outputs after `after` that somebody may have been shown before the shard came home, and of which it is
    /// not known yet whether they count.
    pub(super) fn is_unsure(&self, call: &Call, after: Entry) -> bool {
        let counted = self.counted(call);
        counted < self.inherited && call.outputs.iter().rev().any(|(at, _)| *at > after && at.index > counted && at.index <= self.inherited)
    }

    pub(super) fn counted(&self, call: &Call) -> u64 {
        self.mark(call.open.invocation.durable()).index
    }
}
