//! A shard that is at home at this node, and how far its records count.

use std::collections::{BTreeMap, VecDeque};

use shoal_state::{CallId, ShardId};

use super::objects::ObjectsHome;
use super::{Ticket, TimerKey};
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
}

/// How far the records count in one of the two senses, and who waits for more.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    pub(super) index: u64,
    pub(super) answers: BTreeMap<u64, Vec<Ticket>>,
    pub(super) outputs: VecDeque<(u64, CallId)>,
}

impl Home {
    pub(super) fn mark(&self, durable: bool) -> &Watermark {
        if durable { &self.synced } else { &self.written }
    }

    pub(super) fn mark_mut(&mut self, durable: bool) -> &mut Watermark {
        if durable { &mut self.synced } else { &mut self.written }
    }

    pub(super) fn counted(&self, call: &Call) -> u64 {
        self.mark(call.open.invocation.durable()).index
    }
}
