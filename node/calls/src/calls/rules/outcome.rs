//! Outcomes: the first that counts for the current try wins; a failure may begin the next try.

use bytes::Bytes;
use shoal_state::{CallId, FunctionId, InputId, TaskId};

use super::queue::Place;
use super::{Answer, Needs, Rules, Ticket};
use crate::calls::model::{Invocation, Millis, Outcome, PAYLOAD_BYTES_MAX, Status};
use crate::calls::record::Record;
use crate::calls::refused::Refused;
use crate::calls::state::{Call, Input};

/// How many inputs one record ends.
const ENDED_TOGETHER_MAX: usize = 1_000;

impl Rules {
    pub(super) fn finish(
        &mut self,
        now: Millis,
        ticket: Ticket,
        from: Option<(TaskId, FunctionId)>,
        outcomes: Vec<Outcome>,
    ) -> Result<(), Refused> {
        for outcome in &outcomes {
            let known = self.input(outcome.input)?;
            if let Some(((task, pool), (.., call))) = from.zip(known)
                && call.open.pool != pool
            {
                return Err(Refused::OfAnotherPool { input: outcome.input, task, pool });
            }
            if outcome.result.len() > PAYLOAD_BYTES_MAX {
                let what = format!("the result of input {}", outcome.input);
                return Err(Refused::TooLong { what, bytes: outcome.result.len() });
            }
        }
        let mut needs = Vec::with_capacity(outcomes.len());
        for outcome in outcomes {
            needs.extend(self.resolve(now, from.map(|(task, _)| task), outcome));
        }
        self.answer_after(ticket, &needs, Answer::Done);
        Ok(())
    }

    /// Takes an outcome, or drops it. Returns the record that must count before whoever brought it may forget it.
    pub(super) fn resolve(&mut self, now: Millis, from: Option<TaskId>, outcome: Outcome) -> Option<Needs> {
        let Outcome { input, retry_count, status, result } = outcome;
        if from.is_some_and(|task| self.claimed.get(&input) == Some(&(task, retry_count))) {
            // It runs there no more.
            self.claimed.remove(&input);
        }
        if let Some(task) = from {
            self.let_go_early(task, input, retry_count);
            self.not_beside(now, task, input);
        }
        let (shard, known, call) = self.known(input)?;
        let (durable, pool, id) = (call.open.invocation.durable(), call.open.pool, known.call);
        let needs = |index| Some(Needs { shard, index, durable });
        if let Some((entry, _)) = known.output {
            let answer = needs(entry.index);
            from.into_iter().for_each(|task| self.has_let_go(now, task, input));
            return answer;
        }
        if retry_count < known.retry_count {
            let answer = needs(known.last);
            from.into_iter().for_each(|task| self.has_let_go(now, task, input));
            return answer;
        }
        if retry_count > known.retry_count || self.runs_elsewhere(input, from, status) {
            return None;
        }
        if let Some(task) = from.filter(|_| status == Status::Terminated && !known.cancelled) {
            // Nobody has asked for that: it went down with another one, or this is said again by a task that it was taken from.
            if self.holder(input) != Some(task) {
                return None;
            }
            if self.is_interrupted(now, task) {
                self.back_in_queue(now, input);
                return None;
            }
        }
        let retry = retry_of(now, known, call, status);
        let (order, started_ms) = match self.places.get(&input) {
            Some(place @ Place::Running(running)) => (Some(place.order()), running.since_ms),
            place => (place.map(Place::order), 0),
        };
        if self.holder(input) == from {
            self.unplace(now, input, pool);
        } else {
            self.take_from_holder(now, input, pool);
        }
        self.lost.remove(&input);
        let index = match retry {
            Some((retry_count, due_ms)) => {
                let record = Record::Retried { call: id, input, retry_count, due_ms, at_ms: now, key: 0, payload: false };
                let index = self.append(shard, record, Bytes::new());
                self.take_up(now, input, retry_count, order);
                self.serve(now, pool);
                index
            }
            None => {
                let of = vec![(input, retry_count)];
                let record = Record::Outcome { call: id, of, status, started_ms, at_ms: now, task: from };
                let index = self.append(shard, record, result);
                self.plan_expiry(id);
                index
            }
        };
        needs(index)
    }

    /// Says whether a failure of the platform is about one attempt while another is running.
    fn runs_elsewhere(&self, input: InputId, from: Option<TaskId>, status: Status) -> bool {
        let platform = matches!(status, Status::Platform | Status::InitFailed);
        platform && self.holder(input).is_some_and(|holder| Some(holder) != from)
    }

    pub(super) fn holder(&self, input: InputId) -> Option<TaskId> {
        match self.places.get(&input)? {
            Place::Running(running) => Some(running.task),
            _ => None,
        }
    }

    /// Takes an input from where it stands; a task that has it is told not to go on.
    pub(super) fn take_from_holder(&mut self, now: Millis, input: InputId, pool: FunctionId) {
        let holder = self.holder(input);
        self.unplace(now, input, pool);
        if let Some(task) = holder {
            self.tell_cancelled(now, task, input);
        }
    }

    /// Ends inputs of one call with the same result, wherever they stand. Returns the index of the last record.
    pub(super) fn end_together(&mut self, now: Millis, call: CallId, of: &[(InputId, u32)], status: Status, result: &Bytes) -> Option<u64> {
        let (shard, known) = self.call(call).ok()?;
        let pool = known.open.pool;
        let mut last = None;
        for of in of.chunks(ENDED_TOGETHER_MAX) {
            for (input, _) in of {
                self.take_from_holder(now, *input, pool);
                self.lost.remove(input);
            }
            let record = Record::Outcome { call, of: of.to_vec(), status, started_ms: 0, at_ms: now, task: None };
            last = Some(self.append(shard, record, result.clone()));
        }
        self.plan_expiry(call);
        last
    }

    pub(super) fn fail_pool(
        &mut self,
        now: Millis,
        ticket: Ticket,
        pool: FunctionId,
        status: Status,
        result: &Bytes,
    ) -> Result<(), Refused> {
        self.pool_is_here(pool)?;
        let idle = self.pools.get(&pool).map(|pool| pool.idle()).unwrap_or_default();
        let mut calls: Vec<(CallId, InputId, u32)> =
            idle.into_iter().filter_map(|input| self.known(input).map(|(_, known, _)| (known.call, input, known.retry_count))).collect();
        calls.sort_by_key(|(call, ..)| *call);
        let mut needs = Vec::new();
        for of_call in calls.chunk_by(|one, next| one.0 == next.0) {
            let call = of_call[0].0;
            let of: Vec<(InputId, u32)> = of_call.iter().map(|(_, input, attempt)| (*input, *attempt)).collect();
            let Some(index) = self.end_together(now, call, &of, status, result) else { continue };
            let (shard, known) = self.call(call)?;
            needs.push(Needs { shard, index, durable: known.open.invocation.durable() });
        }
        self.answer_after(ticket, &needs, Answer::Done);
        Ok(())
    }

    /// Ends a try that the worker should have ended long ago.
    pub(super) fn timed_out(&mut self, now: Millis, input: InputId) {
        let Some((_, known, _)) = self.known(input) else { return };
        let retry_count = known.retry_count;
        self.resolve(now, None, Outcome { input, retry_count, status: Status::TimedOut, result: Bytes::new() });
    }
}

/// Returns number and time of the next try, if this outcome is followed by one.
fn retry_of(now: Millis, input: &Input, call: &Call, status: Status) -> Option<(u32, Millis)> {
    let policy = &call.open.policy;
    let by_client = policy.sync_client_retries && call.open.invocation == Invocation::Sync;
    let again = status.retryable() && !input.cancelled && !by_client && input.retry_count < policy.retries;
    again.then(|| (input.retry_count + 1, now.saturating_add(policy.delay_ms(input.retry_count))))
}
