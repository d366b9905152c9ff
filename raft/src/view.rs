//! What everyone else on this node sees of the state: the latest applied one, and that it changed.

use std::sync::Arc;

use parking_lot::Mutex;
use shoal_state::{Event, State};
use tokio::sync::{broadcast, watch};

use crate::tally::Mark;

/// How many notices a slow listener may be behind. One that is further behind is told so, and looks at the state.
const NOTICES_KEPT: usize = 1024;

/// How far the state of this node is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// The index of the last entry that was applied.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// How often the whole state was replaced by a snapshot from another node since this process began.
    pub replaced: u64,
}

/// Wakes drivers. The state is the truth: whoever missed a notice reads the state and loses nothing.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Entries up to `index` were applied, and this came of them, in order.
    Changed {
        /// The last entry applied.
        index: u64,
        /// What changed.
        events: Arc<[Event]>,
    },
    /// The state was replaced by a snapshot: anything may have changed.
    Replaced {
        /// The last entry that the snapshot holds.
        index: u64,
    },
}

/// The applied state and its listeners.
#[derive(Debug)]
pub(crate) struct View {
    current: Mutex<(Arc<State>, Vec<Mark>)>,
    applied: watch::Sender<Applied>,
    notices: broadcast::Sender<Notice>,
}

impl View {
    pub(crate) fn new(state: State, marks: Vec<Mark>, index: u64, term: u64) -> Self {
        Self {
            current: Mutex::new((Arc::new(state), marks)),
            applied: watch::Sender::new(Applied { index, term, replaced: 0 }),
            notices: broadcast::Sender::new(NOTICES_KEPT),
        }
    }

    /// Returns the state. Nothing waits for whoever holds it.
    pub(crate) fn state(&self) -> Arc<State> {
        Arc::clone(&self.current.lock().0)
    }

    /// Returns the active version of the rules.
    pub(crate) fn version(&self) -> u32 {
        self.current.lock().0.version()
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.current.lock().1.clone()
    }

    /// Shows the state after more entries, then wakes the listeners.
    pub(crate) fn advance(&self, state: State, marks: Vec<Mark>, index: u64, term: u64, events: Vec<Event>) {
        self.show(state, marks);
        self.applied.send_modify(|applied| (applied.index, applied.term) = (index, term));
        // No listener is fine.
        let _ = self.notices.send(Notice::Changed { index, events: events.into() });
    }

    /// Shows another node's state in place of this one's, then wakes the listeners.
    pub(crate) fn replace(&self, state: State, marks: Vec<Mark>, index: u64, term: u64) {
        self.show(state, marks);
        self.applied.send_modify(|applied| *applied = Applied { index, term, replaced: applied.replaced + 1 });
        let _ = self.notices.send(Notice::Replaced { index });
    }

    fn show(&self, state: State, marks: Vec<Mark>) {
        let before = std::mem::replace(&mut *self.current.lock(), (Arc::new(state), marks));
        // Nobody waits while it is taken apart.
        drop(before);
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Applied> {
        self.applied.subscribe()
    }

    pub(crate) fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }
}
