//! Calls: they are opened, get inputs, and some of these are tried again.

use std::collections::BTreeMap;

use bytes::Bytes;
use shoal_calls::calls::{CallKind, Entry, Invocation, NewInput, OpenCall, Policy, PutInput, RetryInput};
use shoal_state::{CallId, FunctionId, InputId};

use super::{Answered, Client};
use crate::ground::BEGAN_MS;
use crate::history::Event;
use crate::world::function;

impl Client {
    /// Opens a call, puts inputs, reads until all have outputs, has some tried again.
    pub(super) async fn call(&mut self) {
        let shard = self.shard();
        let (lasting, unary) = (self.dice.below(3) > 0, self.dice.below(2) == 0);
        let open = self.new_call(function(shard), if unary { CallKind::Unary } else { CallKind::Map }, lasting);
        let call = open.call;
        let wants = if unary {
            self.world.does(self.number, "opens a call with its input");
            self.open_with(open, "only", inputs(0, 1)).await
        } else {
            self.open_and_put(open).await
        };
        let Some(wants) = wants else { return };
        self.world.does(self.number, "reads outputs");
        let mut cursor = Entry::default();
        if !self.read_all(call, lasting, &wants, &mut cursor).await || self.dice.below(3) > 0 {
            return;
        }
        self.world.does(self.number, "has inputs tried again");
        let input = wants.keys().next().copied().expect("it has inputs");
        if let Some(tried) = self.retry(call, input).await {
            let wants = BTreeMap::from([(input, tried)]);
            self.world.does(self.number, "reads outputs of later tries");
            self.read_all(call, lasting, &wants, &mut cursor).await;
        }
    }

    async fn open_and_put(&mut self, open: OpenCall) -> Option<BTreeMap<InputId, u32>> {
        let (call, lasting) = (open.call, lasts(&open));
        self.world.does(self.number, "opens a call");
        if !self.open(open).await {
            return None;
        }
        self.world.does(self.number, "puts inputs");
        let mut wants = BTreeMap::new();
        for batch in 0..self.dice.from(1, 3) {
            let (name, count) = (format!("batch {batch}"), u32::try_from(self.dice.from(1, 4)).unwrap_or(1));
            let first = u32::try_from(batch).unwrap_or(0) * 10;
            if !self.put(call, &name, inputs(first, count), &mut wants).await {
                return None;
            }
        }
        self.world.calls.borrow_mut().insert(call, lasting);
        Some(wants)
    }

    /// Puts inputs, and notes that it waits for their outputs; false if that was refused.
    pub(super) async fn put(&mut self, call: CallId, name: &str, inputs: Vec<NewInput>, wants: &mut BTreeMap<InputId, u32>) -> bool {
        let key = self.key(name);
        let put = self
            .ask(move |calls, tries| {
                let (inputs, key) = (inputs.clone(), key(tries));
                Box::pin(async move { calls.put_inputs(call, inputs, &key).await })
            })
            .await;
        self.took(call, name, put, wants)
    }

    /// What a call of a function is opened with; nobody has one of its id yet.
    pub(super) fn new_call(&mut self, function: FunctionId, kind: CallKind, lasting: bool) -> OpenCall {
        let (number, shard) = (self.next(), function.shard().expect("it has one"));
        OpenCall {
            call: CallId::derive_in(shard, &[&number.to_le_bytes()]),
            function,
            pool: function,
            kind,
            invocation: if lasting { Invocation::Async } else { Invocation::Sync },
            parent: None,
            created_ms: BEGAN_MS,
            policy: Policy { retries: 1, initial_delay_ms: 300, ..Policy::default() },
        }
    }

    /// Opens a call with its inputs. Returns of which tries it waits for outputs; none if it was refused.
    pub(super) async fn open_with(&mut self, open: OpenCall, name: &str, inputs: Vec<NewInput>) -> Option<BTreeMap<InputId, u32>> {
        let (call, lasting, key) = (open.call, lasts(&open), self.key(name));
        let put = self
            .ask(move |calls, tries| {
                let (open, inputs, key) = (open.clone(), inputs.clone(), key(tries));
                Box::pin(async move { calls.open_call_with(open, inputs, &key).await })
            })
            .await;
        self.world.history.note(Event::Opened { call, lasting });
        let mut wants = BTreeMap::new();
        if !self.took(call, name, put, &mut wants) {
            return None;
        }
        self.world.calls.borrow_mut().insert(call, lasting);
        Some(wants)
    }

    /// Opens a call; false if that was refused.
    pub(super) async fn open(&mut self, open: OpenCall) -> bool {
        let (call, lasting) = (open.call, lasts(&open));
        let opened = self
            .ask(move |calls, _| {
                let open = open.clone();
                Box::pin(async move { calls.open_call(open).await })
            })
            .await;
        if opened.answer.is_ok() {
            self.world.history.note(Event::Opened { call, lasting });
        }
        opened.answer.is_ok()
    }

    fn took(&mut self, call: CallId, key: &str, put: Answered<Vec<PutInput>>, wants: &mut BTreeMap<InputId, u32>) -> bool {
        match put.answer {
            Ok(put_inputs) => {
                let inputs: Vec<InputId> = put_inputs.iter().map(|put| put.input).collect();
                wants.extend(inputs.iter().map(|input| (*input, 0)));
                self.world.history.note(Event::Put { call, key: key.to_owned(), inputs, tries: put.tries });
                true
            }
            Err(refused) => {
                self.missing(call, put.began, &refused);
                false
            }
        }
    }

    /// Asks twice for the same: two wishes with one key are one.
    async fn retry(&mut self, call: CallId, input: InputId) -> Option<u32> {
        let name = format!("retry {}", self.next());
        let mut last = None;
        for _ in 0..2 {
            let key = self.key(&name);
            let asked = self
                .ask(move |calls, tries| {
                    let key = key(tries);
                    let items = vec![RetryInput { input, retry_count: 0, payload: Bytes::new() }];
                    Box::pin(async move { calls.retry_inputs(items, &key).await })
                })
                .await;
            match asked.answer {
                Ok(tried) => {
                    last = tried.first().map(|(_, tried)| *tried);
                    self.world.history.note(Event::Retried { call, key: name.clone(), tried });
                }
                Err(refused) => self.missing(call, asked.began, &refused),
            }
        }
        last
    }
}

fn lasts(open: &OpenCall) -> bool {
    open.invocation == Invocation::Async
}

pub(super) fn inputs(first: u32, count: u32) -> Vec<NewInput> {
    (first..first + count).map(|idx| NewInput { idx, payload: idx.to_string().into() }).collect()
}
