//! Calls that are cancelled.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::{CallKind, Entry, NewInput};
use shoal_state::{CallId, InputId};

use super::Client;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::worker::LONG;
use crate::world::function;

impl Client {
    /// Opens a call that works for long, cancels it or all of its inputs, and reads what came of them.
    pub(super) async fn cancelled(&mut self) {
        let shard = self.shard();
        let lasting = self.dice.below(3) > 0;
        let open = self.new_call(function(shard), CallKind::Map, lasting);
        let call = open.call;
        self.world.does(self.number, "opens a call to cancel it");
        if !self.open(open).await {
            return;
        }
        let mut wants = BTreeMap::new();
        if !self.put_long(call, "first", &mut wants).await {
            return;
        }
        let ms = self.dice.below(3) * self.dice.below(2_000);
        self.world.time.sleep(Duration::from_millis(ms)).await;
        let whole = self.dice.below(2) == 0;
        let mut inputs: Vec<InputId> = wants.keys().copied().collect();
        if !self.cancel(call, whole, inputs.clone()).await {
            return;
        }
        // What comes late to a cancelled call is cancelled too.
        if whole && self.dice.below(2) == 0 && self.put_long(call, "late", &mut wants).await {
            inputs = wants.keys().copied().filter(|input| !inputs.contains(input)).collect();
            self.world.history.note(Event::Cancelled { call, inputs });
        }
        self.world.calls.borrow_mut().insert(call, lasting);
        self.world.does(self.number, "reads outputs of what it cancelled");
        self.read_all(call, lasting, &wants, &mut Entry::default()).await;
    }

    async fn put_long(&mut self, call: CallId, name: &str, wants: &mut BTreeMap<InputId, u32>) -> bool {
        self.world.does(self.number, "puts inputs that work for long");
        let count = u32::try_from(self.dice.from(1, 3)).unwrap_or(1);
        let inputs = (0..count).map(|idx| NewInput { idx, payload: Bytes::from_static(LONG) });
        self.put(call, name, inputs.collect(), wants).await
    }

    async fn cancel(&mut self, call: CallId, whole: bool, inputs: Vec<InputId>) -> bool {
        self.world.does(self.number, "cancels");
        let (all, hasty) = (inputs.clone(), self.world.has(Mutant::CancelledWhenAsked));
        let cancelled = self
            .ask(move |calls, _| {
                let inputs = inputs.clone();
                Box::pin(async move {
                    let cancel = async { if whole { calls.cancel_call(call).await } else { calls.cancel_inputs(inputs).await } };
                    if hasty {
                        let _ = futures::poll!(Box::pin(cancel));
                        return Ok(());
                    }
                    cancel.await.map(drop)
                })
            })
            .await;
        match &cancelled.answer {
            Ok(()) => self.world.history.note(Event::Cancelled { call, inputs: all }),
            Err(refused) => self.missing(call, cancelled.began, refused),
        }
        cancelled.answer.is_ok()
    }
}
