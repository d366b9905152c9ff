//! Calls of a clustered function.

use std::collections::BTreeMap;

use shoal_calls::calls::{CallKind, Entry, Invocation, OpenCall, Policy};
use shoal_state::CallId;

use super::{Client, inputs};
use crate::gangs::function;
use crate::ground::BEGAN_MS;
use crate::history::Event;

impl Client {
    /// Calls the clustered function, and reads what comes of it.
    pub(super) async fn gang(&mut self) {
        let number = self.next();
        let call = CallId::derive_in(function().shard().expect("it has one"), &[&number.to_le_bytes()]);
        let (lasting, count) = (self.dice.below(3) > 0, u32::try_from(self.dice.from(1, 3)).unwrap_or(1));
        let open = OpenCall {
            call,
            function: function(),
            pool: function(),
            kind: CallKind::Map,
            invocation: if lasting { Invocation::Async } else { Invocation::Sync },
            parent: None,
            created_ms: BEGAN_MS,
            policy: Policy { retries: 1, initial_delay_ms: 300, ..Policy::default() },
        };
        self.world.does(self.number, "calls a clustered function");
        let key = self.key("gang");
        let put = self
            .ask(move |calls, tries| {
                let (open, key) = (open.clone(), key(tries));
                Box::pin(async move { calls.open_call_with(open, inputs(0, count), &key).await })
            })
            .await;
        self.world.history.note(Event::Opened { call, lasting });
        let mut wants = BTreeMap::new();
        if !self.took(call, "gang", put, &mut wants) {
            return;
        }
        self.world.calls.borrow_mut().insert(call, lasting);
        self.world.does(self.number, "reads outputs of a clustered function");
        self.read_all(call, lasting, &wants, &mut Entry::default()).await;
    }
}
