//! Opening calls, putting inputs, and retries that a client asks for.

use bytes::Bytes;
use shoal_state::{CallId, InputId};

use super::{Answer, INPUTS_WAITING_MAX, Needs, Rules, Ticket};
use crate::calls::model::{CallKind, Millis, NewInput, OpenCall, PAYLOAD_BYTES_MAX, PutInput, RetryInput, Status};
use crate::calls::record::Record;
use crate::calls::refused::Refused;

impl Rules {
    pub(super) fn open(&mut self, ticket: Ticket, open: OpenCall) -> Result<(), Refused> {
        let needs = self.opened(open)?;
        self.answer_after(ticket, &[needs], Answer::Done);
        Ok(())
    }

    /// Opens a call unless it is open; returns what its opening needs to count.
    pub(super) fn opened(&mut self, open: OpenCall) -> Result<Needs, Refused> {
        let id = open.call;
        let (shard, home) = self.home_of(id.shard(), || id.to_string())?;
        let index = match home.state.call(id) {
            Some(known) => known.opened,
            None => {
                self.of_function.entry(open.function).or_default().insert(id);
                self.of_pool.entry(open.pool).or_default().insert(id);
                if let Some(parent) = open.parent {
                    self.children.entry(parent.input).or_default().insert(id);
                }
                let index = self.append(shard, Record::Opened(Box::new(open)), Bytes::new());
                self.plan_expiry(id);
                index
            }
        };
        let durable = self.call(id)?.1.open.invocation.durable();
        Ok(Needs { shard, index, durable })
    }

    pub(super) fn put(&mut self, now: Millis, ticket: Ticket, call: CallId, items: Vec<NewInput>, key: &str) -> Result<(), Refused> {
        let (shard, known) = self.call(call)?;
        let (durable, pool, cancelled) = (known.open.invocation.durable(), known.open.pool, known.cancelled);
        let ids: Vec<InputId> = (0..items.len() as u64).map(|number| input_id(call, key, number)).collect();
        self.check_put(call, &items, &ids)?;
        let mut put = Vec::with_capacity(items.len());
        let mut last = self.call(call)?.1.opened;
        let mut fresh = Vec::new();
        for (item, input) in items.into_iter().zip(ids) {
            put.push(PutInput { input, idx: item.idx });
            if let Some((_, known, _)) = self.known(input) {
                last = last.max(known.payload);
                continue;
            }
            last = self.append(shard, Record::Input { call, input, idx: item.idx, at_ms: now }, item.payload);
            fresh.push((input, 0));
        }
        if cancelled {
            last = self.end_together(now, call, &fresh, Status::Terminated, &Bytes::new()).unwrap_or(last);
        } else {
            for (input, _) in fresh {
                self.take_up(now, input, 0, None);
            }
            self.serve(now, pool);
        }
        self.answer_after(ticket, &[Needs { shard, index: last, durable }], Answer::Put(put));
        Ok(())
    }

    fn check_put(&self, call: CallId, items: &[NewInput], ids: &[InputId]) -> Result<(), Refused> {
        let known = self.call(call)?.1;
        let fresh = ids.iter().filter(|id| self.known(**id).is_none()).count();
        if known.open.kind == CallKind::Unary && known.inputs.len() + fresh > 1 {
            return Err(Refused::OneInput { call });
        }
        if let Some(long) = items.iter().find(|item| item.payload.len() > PAYLOAD_BYTES_MAX) {
            return Err(Refused::TooLong { what: format!("input {} of call {call}", long.idx), bytes: long.payload.len() });
        }
        let waiting = self.pools.get(&known.open.pool).map_or(0, |pool| pool.waiting_count());
        let max = self.waiting_max.unwrap_or(INPUTS_WAITING_MAX);
        if fresh > 0 && waiting > 0 && waiting + fresh > max {
            return Err(Refused::TooMany { pool: known.open.pool, waiting, max });
        }
        Ok(())
    }

    pub(super) fn finish_inputs(&mut self, now: Millis, ticket: Ticket, call: CallId) -> Result<(), Refused> {
        let (shard, known) = self.call(call)?;
        let (durable, mut index) = (known.open.invocation.durable(), known.last);
        if !known.inputs_finished {
            index = self.append(shard, Record::InputsFinished { call, at_ms: now }, Bytes::new());
            self.plan_expiry(call);
            self.wake_polls(now, call);
        }
        self.answer_after(ticket, &[Needs { shard, index, durable }], Answer::Done);
        Ok(())
    }

    pub(super) fn retry(&mut self, now: Millis, ticket: Ticket, items: Vec<RetryInput>, key: &str) -> Result<(), Refused> {
        for item in &items {
            self.input(item.input)?.ok_or(Refused::NoInput { input: item.input })?;
            if item.payload.len() > PAYLOAD_BYTES_MAX {
                let what = format!("the retry of input {}", item.input);
                return Err(Refused::TooLong { what, bytes: item.payload.len() });
            }
        }
        let key = key_hash(key);
        let mut needs = Vec::with_capacity(items.len());
        let mut retried = Vec::with_capacity(items.len());
        for item in items {
            let (retry_count, need) = self.retry_one(now, &item, key).ok_or(Refused::NoInput { input: item.input })?;
            retried.push((item.input, retry_count));
            needs.push(need);
        }
        self.answer_after(ticket, &needs, Answer::Retried(retried));
        Ok(())
    }

    /// Begins the next try of one input, unless this request or another has begun it.
    fn retry_one(&mut self, now: Millis, item: &RetryInput, key: u64) -> Option<(u32, Needs)> {
        let (shard, known, call) = self.known(item.input)?;
        let (durable, pool, id) = (call.open.invocation.durable(), call.open.pool, call.open.call);
        // Clients count their own tries: those of the policy come between.
        let asked = item.retry_count.saturating_sub(known.client_count);
        let begun = if item.retry_count > 0 { asked == 0 } else { known.retry_key == key };
        if begun || known.cancelled {
            return Some((known.retry_count, Needs { shard, index: known.last, durable }));
        }
        let retry_count = known.retry_count.saturating_add(asked.max(1));
        let record =
            Record::Retried { call: id, input: item.input, retry_count, due_ms: now, at_ms: now, key, payload: !item.payload.is_empty() };
        self.take_from_holder(now, item.input, pool);
        let index = self.append(shard, record, item.payload.clone());
        self.lost.remove(&item.input);
        if !item.payload.is_empty() {
            self.claimed.remove(&item.input);
        }
        self.take_up(now, item.input, retry_count, None);
        self.serve(now, pool);
        Some((retry_count, Needs { shard, index, durable }))
    }
}

/// Derives the id of an input from its call, the request's key and its place in the request.
pub(super) fn input_id(call: CallId, key: &str, number: u64) -> InputId {
    let parts: [&[u8]; 3] = [&call.bits().to_le_bytes(), key.as_bytes(), &number.to_le_bytes()];
    call.shard().map_or_else(|| InputId::derive(&parts), |shard| InputId::derive_in(shard, &parts))
}

/// Returns a number other than 0 for a key.
fn key_hash(key: &str) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
    u64::from_le_bytes(bytes).max(1)
}
