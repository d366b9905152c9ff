//! Calls that yield: their data are read with a cursor, through any node, while the call works and once more when it is over.

use std::time::Duration;

use shoal_calls::calls::streams::Direction;
use shoal_calls::calls::{CallKind, Entry, NewInput, Output, Status};
use shoal_state::CallId;

use super::{ALL, Client};
use crate::dice::Dice;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::worker::yielding;
use crate::world::function;

/// How long one request for data waits for some.
const READ_WAIT: Duration = Duration::from_secs(2);
/// Of a call that is over, data that did not come for so long are gone.
const GONE_AFTER: Duration = Duration::from_secs(40);

/// How reading ended.
enum Ended {
    /// All is read, or the call failed.
    Over,
    /// The call, or what it yielded, is gone.
    Gone,
}

impl Client {
    /// Opens a call that yields, and reads what it does.
    pub(super) async fn generator(&mut self) {
        let shard = self.shard();
        let (lasting, items) = (self.dice.below(3) > 0, self.dice.from(3, 20));
        let open = self.new_call(function(shard), CallKind::Unary, lasting);
        let call = open.call;
        self.world.does(self.number, "opens a call that yields");
        let input = NewInput { idx: 0, payload: yielding(items) };
        if self.open_with(open, "yields", vec![input]).await.is_none() {
            return;
        }
        self.world.does(self.number, "reads what a call yields");
        let again = self.dice.below(3) == 0;
        if let Ended::Over = self.read_yielded(call, lasting, items, self.number).await
            && again
        {
            self.world.does(self.number, "reads again what a call has yielded");
            self.read_yielded(call, lasting, items, 1_000 + self.number).await;
        }
    }

    /// Reads from the first item on until the call is over and all that it yielded is read.
    async fn read_yielded(&mut self, call: CallId, lasting: bool, items: u64, reader: u64) -> Ended {
        let (mut has, mut news) = (0, self.world.time.now());
        loop {
            let (after, bytes_max) = (has, self.dice.from(1, 64));
            let read = self
                .ask(move |calls, _| {
                    Box::pin(async move {
                        let key = calls.data_key(call, Direction::Out).await?;
                        calls.get_data(&key, after, bytes_max, READ_WAIT).await
                    })
                })
                .await;
            let chunks = match read.answer {
                Ok(chunks) => chunks,
                Err(refused) => {
                    self.missing(call, read.began, &refused);
                    return Ended::Gone;
                }
            };
            // What is cut off now may come later.
            if !chunks.is_empty() || !self.world.is_healed() {
                news = self.world.time.now();
            }
            let number = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_le_bytes);
            let seen: Vec<(u64, u64)> = chunks.iter().map(|chunk| (chunk.index, number(&chunk.data))).collect();
            has = chunks.last().map_or(has, |last| last.index);
            self.world.history.note(Event::Yielded { call, reader, after, seen });
            if self.world.has(Mutant::DataCursorRunsAhead) && Dice::new(has, reader).one_in(4) {
                has += 1;
            }
            let (output, silent) = (self.output_of(call).await, self.world.time.now().saturating_sub(news));
            let Some(output) = output else {
                // What was not to last may be gone with a machine.
                if !lasting && silent > super::LOST_AFTER {
                    return Ended::Gone;
                }
                continue;
            };
            if output.status != Status::Success || has >= items {
                return Ended::Over;
            }
            if silent > GONE_AFTER {
                let task = output.task;
                self.world.history.note(Event::YieldedGone { call, reader, has, task });
                return Ended::Gone;
            }
        }
    }

    /// Returns the output of a call with one input, once it has one.
    async fn output_of(&mut self, call: CallId) -> Option<Output> {
        let outputs = self
            .ask(move |calls, _| Box::pin(async move { calls.outputs(call, Entry::default(), ALL, Duration::ZERO, false).await }))
            .await;
        outputs.answer.ok()?.items.into_iter().next()
    }
}
