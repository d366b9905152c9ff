//! Readers of calls: each has a cursor and gets each output once, or looks at a call once.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_calls::calls::{Entry, Output, Outputs, Refused};
use shoal_state::{CallId, InputId};

use super::{ALL, Client, LOST_AFTER};
use crate::history::{Event, Seen, fnv};
use crate::mutant::Mutant;

impl Client {
    /// Reads with a cursor until each input has an output of the try that is wanted, or of a later one.
    pub(super) async fn read_all(&mut self, call: CallId, lasting: bool, wants: &BTreeMap<InputId, u32>, cursor: &mut Entry) -> bool {
        let mut wants = wants.clone();
        let (reader, mut news) = (self.number, self.world.time.now());
        let mut known: BTreeMap<InputId, u32> = BTreeMap::new();
        while !wants.is_empty() {
            let (after, max) = (*cursor, usize::try_from(self.dice.from(1, 4)).unwrap_or(1));
            let read = self
                .ask(move |calls, _| Box::pin(async move { calls.outputs(call, after, max, Duration::from_secs(3), false).await }))
                .await;
            let outputs = match read.answer {
                Ok(outputs) => outputs,
                Err(refused) => {
                    self.missing(call, read.began, &refused);
                    return false;
                }
            };
            let (seen, last) = (seen(&outputs), outputs.last);
            if !seen.is_empty() {
                news = self.world.time.now();
            }
            known.extend(seen.iter().map(|seen| (seen.input, seen.retry_count)));
            wants.retain(|input, least| known.get(input).is_none_or(|known| known < least));
            self.world.history.note(Event::Read { call, reader, began: read.began, after, last, seen, all: false });
            *cursor = last;
            if self.world.has(Mutant::CursorRunsAhead) {
                cursor.index += 1;
            }
            // What was not to last may be gone with a machine.
            if !lasting && self.world.time.now().saturating_sub(news) > LOST_AFTER {
                return false;
            }
        }
        true
    }

    /// Looks at some call of anybody.
    pub(super) async fn look(&mut self) {
        self.world.does(self.number, "looks at a call");
        let calls: Vec<CallId> = self.world.calls.borrow().keys().copied().collect();
        let Some(call) = self.dice.pick(&calls) else { return };
        self.read_once(call).await;
        let counted = self.ask(move |calls, _| Box::pin(async move { calls.info(call).await })).await;
        match counted.answer {
            Ok(info) => self.world.history.note(Event::Counted { call, began: counted.began, inputs: info.inputs }),
            Err(refused) => self.missing(call, counted.began, &refused),
        }
    }

    /// Reads all outputs that a call has now.
    pub(super) async fn read_once(&mut self, call: CallId) -> Option<Vec<Seen>> {
        let after = Entry::default();
        let read = self.ask(move |calls, _| Box::pin(async move { calls.outputs(call, after, ALL, Duration::ZERO, false).await })).await;
        match read.answer {
            Ok(outputs) => {
                let (seen, reader) = (seen(&outputs), 1_000 + self.number);
                let all = Event::Read { call, reader, began: read.began, after, last: outputs.last, seen: seen.clone(), all: true };
                self.world.history.note(all);
                Some(seen)
            }
            Err(refused) => {
                self.missing(call, read.began, &refused);
                None
            }
        }
    }

    /// Notes that a call is said not to be there.
    pub(super) fn missing(&mut self, call: CallId, began: Duration, refused: &Refused) {
        if matches!(refused, Refused::NoCall { .. } | Refused::NoInput { .. }) {
            self.world.history.note(Event::Missing { call, began, why: refused.to_string() });
        }
    }
}

fn seen(outputs: &Outputs) -> Vec<Seen> {
    let one = |output: &Output| Seen {
        input: output.input,
        entry: output.entry,
        retry_count: output.retry_count,
        status: output.status,
        result: fnv(0, &output.result),
    };
    outputs.items.iter().map(one).collect()
}
