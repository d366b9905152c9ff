//! What follows from the records of one shard. Pure: equal records, equal state, on every replica and after every restart.
//!
//! [`CallsState::apply`] never fails: a record that says nothing new (its call was dropped, the try is over) changes nothing.

use std::collections::HashMap;

use shoal_state::{CallId, InputId};

use super::info::Counts;
use super::model::{CallKind, Entry, Millis, OpenCall, Status};
use super::record::Record;

/// The calls of one shard.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CallsState {
    // Apart from the table, a part of which is always empty.
    calls: HashMap<CallId, Box<Call>>,
    inputs: HashMap<InputId, Input>,
}

/// A call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// As it was opened.
    pub open: OpenCall,
    /// Index of the record that opened it.
    pub opened: u64,
    /// Index of its last record.
    pub last: u64,
    /// Its inputs in the order in which they were put.
    pub inputs: Vec<InputId>,
    /// Its outputs in order.
    pub outputs: Vec<(Entry, InputId)>,
    /// How its inputs with outputs ended.
    pub ended: Counts,
    /// Nothing more is put.
    pub inputs_finished: bool,
    /// The whole call was cancelled.
    pub cancelled: bool,
    /// When a reader had all outputs.
    pub cleared_ms: Option<Millis>,
    /// When something happened to it last.
    pub changed_ms: Millis,
}

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its call.
    pub call: CallId,
    /// Its place in the call.
    pub idx: u32,
    /// The number of the current try.
    pub retry_count: u32,
    /// Index of the record with its payload.
    pub payload: u64,
    /// Index of the record that put it or began the current try.
    pub last: u64,
    /// When it was put or may be tried again.
    pub due_ms: Millis,
    /// Hash of the key of the last request to retry it; 0 for none.
    pub retry_key: u64,
    /// How many tries clients asked for: the number of the current one as they count, who know nothing of the policy's.
    pub client_count: u32,
    /// It is not to be tried any more.
    pub cancelled: bool,
    /// Its output.
    pub output: Option<(Entry, Status)>,
}

impl Call {
    /// Returns how many inputs have no output.
    pub fn unfinished(&self) -> u32 {
        u32::try_from(self.inputs.len() - self.outputs.len()).unwrap_or(u32::MAX)
    }

    /// Says whether no further input or output will come.
    pub fn over(&self) -> bool {
        let all_put = match self.open.kind {
            CallKind::Unary => !self.inputs.is_empty(),
            CallKind::Map => self.inputs_finished,
        };
        all_put && self.unfinished() == 0
    }

    /// Iterates over the outputs after `entry` whose records have an index up to `counted`.
    pub fn outputs_after(&self, entry: Entry, counted: u64) -> impl Iterator<Item = (Entry, InputId)> {
        let end = Entry { index: counted, number: u32::MAX };
        let place = |last: Entry| self.outputs.partition_point(|(entry, _)| *entry <= last);
        self.outputs.get(place(entry)..place(end)).unwrap_or_default().iter().copied()
    }
}

impl CallsState {
    /// Finds a call.
    pub fn call(&self, id: CallId) -> Option<&Call> {
        self.calls.get(&id).map(|call| &**call)
    }

    /// Finds an input.
    pub fn input(&self, id: InputId) -> Option<&Input> {
        self.inputs.get(&id)
    }

    /// Iterates over all calls, in no order.
    pub fn calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.values().map(|call| &**call)
    }

    /// Iterates over all inputs, in no order.
    pub fn inputs(&self) -> impl Iterator<Item = (InputId, &Input)> {
        self.inputs.iter().map(|(id, input)| (*id, input))
    }

    /// Applies the record with this index.
    pub fn apply(&mut self, index: u64, record: &Record) {
        if let Record::Opened(open) = record {
            self.calls.entry(open.call).or_insert_with(|| Box::new(Call::new(open, index)));
            return;
        }
        let Some(call) = self.calls.get_mut(&record.call()) else { return };
        call.last = index;
        match record {
            Record::Opened(_) => {}
            Record::Input { call: of, input, idx, at_ms } => {
                call.changed_ms = *at_ms;
                call.cleared_ms = None;
                let inputs = &mut call.inputs;
                self.inputs.entry(*input).or_insert_with(|| {
                    inputs.push(*input);
                    Input::new(*of, *idx, index, *at_ms)
                });
            }
            Record::InputsFinished { at_ms, .. } => {
                call.changed_ms = *at_ms;
                call.inputs_finished = true;
            }
            Record::Cleared { at_ms, .. } => call.cleared_ms = Some(*at_ms),
            Record::Retried { .. } => self.retried(index, record),
            Record::Outcome { of, status, at_ms, .. } => {
                call.changed_ms = *at_ms;
                for (number, (input, retry_count)) in (0..).zip(of) {
                    let entry = Entry { index, number };
                    let Some(known) = self.inputs.get_mut(input) else { continue };
                    if known.output.is_none() && known.retry_count == *retry_count {
                        known.output = Some((entry, *status));
                        if call.open.kind == CallKind::Unary {
                            call.outputs.reserve_exact(1);
                        }
                        call.outputs.push((entry, *input));
                        *call.ended.of(*status) += 1;
                    }
                }
            }
            Record::Cancelled { inputs, at_ms, .. } => {
                call.changed_ms = *at_ms;
                call.cancelled |= inputs.is_empty();
                let all = if inputs.is_empty() { &call.inputs } else { inputs };
                for input in all {
                    if let Some(input) = self.inputs.get_mut(input) {
                        input.cancelled = true;
                    }
                }
            }
        }
    }

    fn retried(&mut self, index: u64, record: &Record) {
        let Record::Retried { call, input, retry_count, due_ms, at_ms, key, payload } = record else { return };
        let (Some(call), Some(input)) = (self.calls.get_mut(call), self.inputs.get_mut(input)) else { return };
        call.changed_ms = *at_ms;
        call.cleared_ms = None;
        let tries = retry_count.saturating_sub(input.retry_count);
        input.retry_count = *retry_count;
        input.due_ms = *due_ms;
        input.last = index;
        if *key != 0 {
            input.retry_key = *key;
            input.client_count += tries;
        }
        if *payload {
            input.payload = index;
        }
        if let Some((entry, status)) = input.output.take() {
            if let Ok(at) = call.outputs.binary_search_by_key(&entry, |(entry, _)| *entry) {
                call.outputs.remove(at);
            }
            *call.ended.of(status) -= 1;
        }
    }

    /// Forgets a call with all it has. Returns it.
    pub fn forget(&mut self, id: CallId) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        for input in &call.inputs {
            self.inputs.remove(input);
        }
        Some(*call)
    }
}

impl Call {
    fn new(open: &OpenCall, index: u64) -> Self {
        // Most calls have one input: a list that expects more takes as much as the rest of it.
        let expected = usize::from(open.kind == CallKind::Unary);
        Self {
            open: open.clone(),
            opened: index,
            last: index,
            inputs: Vec::with_capacity(expected),
            outputs: Vec::new(),
            ended: Counts::default(),
            inputs_finished: false,
            cancelled: false,
            cleared_ms: None,
            changed_ms: open.created_ms,
        }
    }
}

impl Input {
    fn new(call: CallId, idx: u32, index: u64, at_ms: Millis) -> Self {
        Self {
            call,
            idx,
            retry_count: 0,
            payload: index,
            last: index,
            due_ms: at_ms,
            retry_key: 0,
            client_count: 0,
            cancelled: false,
            output: None,
        }
    }
}
