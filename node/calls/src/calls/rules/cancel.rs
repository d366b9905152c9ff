//! Cancelling: what waits ends at once, what runs is told through its task's heartbeat.

use std::collections::BTreeMap;

use bytes::Bytes;
use shoal_state::{CallId, FunctionId, InputId};

use super::queue::Place;
use super::{Answer, Needs, Rules, Ticket};
use crate::calls::model::{Cancelled, Millis, Outcome, Status};
use crate::calls::record::Record;
use crate::calls::refused::Refused;

impl Rules {
    pub(super) fn cancel_call(&mut self, now: Millis, ticket: Ticket, call: CallId) -> Result<(), Refused> {
        self.call(call)?;
        let (mut cancelled, mut needs) = (Cancelled::default(), Vec::new());
        let inputs = self.cancel_whole(now, call, &mut cancelled, &mut needs);
        self.tell_all(now, &cancelled, &inputs);
        self.answer_after(ticket, &needs, Answer::Cancelled(cancelled));
        Ok(())
    }

    /// Tasks are not told which inputs they have lost: with their pools they are themselves about to be asked to end, and a
    /// program that hears both at once may not get to its exit hooks.
    pub(super) fn cancel_pools(&mut self, now: Millis, ticket: Ticket, pools: &[FunctionId]) -> Result<(), Refused> {
        let (mut cancelled, mut needs) = (Cancelled::default(), Vec::new());
        for pool in pools {
            for call in self.of_pool.get(pool).cloned().unwrap_or_default() {
                match self.call(call)?.1.unfinished() {
                    0 => needs.extend(self.last_of(call)),
                    _ => drop(self.cancel_whole(now, call, &mut cancelled, &mut needs)),
                }
            }
        }
        self.answer_after(ticket, &needs, Answer::Cancelled(cancelled));
        Ok(())
    }

    pub(super) fn cancel_inputs(&mut self, now: Millis, ticket: Ticket, inputs: &[InputId]) -> Result<(), Refused> {
        let mut calls: BTreeMap<CallId, Vec<InputId>> = BTreeMap::new();
        for input in inputs {
            let (_, known, _) = self.input(*input)?.ok_or(Refused::NoInput { input: *input })?;
            let unfinished = calls.entry(known.call).or_default();
            if known.output.is_none() {
                unfinished.push(*input);
            }
        }
        let (mut cancelled, mut needs) = (Cancelled::default(), Vec::new());
        for (call, inputs) in calls {
            match inputs.is_empty() {
                true => needs.extend(self.last_of(call)),
                false => self.cancel(now, call, inputs.clone(), inputs, &mut cancelled, &mut needs),
            }
        }
        self.tell_all(now, &cancelled, inputs);
        self.answer_after(ticket, &needs, Answer::Cancelled(cancelled));
        Ok(())
    }

    /// Nothing of a call is left to be cancelled: who asks again, of a home that was cut off when it was asked before, is told so once that
    /// counts.
    fn last_of(&self, call: CallId) -> Option<Needs> {
        let (shard, known) = self.call(call).ok()?;
        Some(Needs { shard, index: known.last, durable: known.open.invocation.durable() })
    }

    /// Tells the tasks which of their inputs were cancelled.
    fn tell_all(&mut self, now: Millis, cancelled: &Cancelled, inputs: &[InputId]) {
        for (task, input) in &cancelled.running {
            self.tell_cancelled(now, *task, *input);
        }
        for input in inputs {
            self.tell_in_vain(now, *input);
        }
    }

    /// Returns the inputs that it cancels.
    fn cancel_whole(&mut self, now: Millis, call: CallId, cancelled: &mut Cancelled, needs: &mut Vec<Needs>) -> Vec<InputId> {
        let Ok((_, known)) = self.call(call) else { return Vec::new() };
        let unfinished = |input: &&InputId| self.known(**input).is_some_and(|(_, input, _)| input.output.is_none());
        let inputs: Vec<InputId> = known.inputs.iter().filter(unfinished).copied().collect();
        self.cancel(now, call, Vec::new(), inputs.clone(), cancelled, needs);
        inputs
    }

    /// Cancels inputs of one call, and says so in the log as `named`: the inputs, or none for all.
    fn cancel(
        &mut self,
        now: Millis,
        call: CallId,
        named: Vec<InputId>,
        inputs: Vec<InputId>,
        cancelled: &mut Cancelled,
        needs: &mut Vec<Needs>,
    ) {
        let Ok((shard, known)) = self.call(call) else { return };
        let (durable, whole, mut index) = (known.open.invocation.durable(), known.cancelled, known.last);
        if !(whole && named.is_empty()) {
            index = self.append(shard, Record::Cancelled { call, inputs: named, at_ms: now }, Bytes::new());
        }
        let mut idle = Vec::new();
        for input in inputs {
            match self.places.get(&input) {
                Some(Place::Running(_)) => {
                    let Some(task) = self.set_backstop(now, input) else { continue };
                    cancelled.running.push((task, input));
                }
                // A task may turn out to run it: then that one ends it, else it ends when the reports are in.
                Some(Place::Held { .. }) => {}
                _ => idle.extend(self.known(input).map(|(_, known, _)| (input, known.retry_count))),
            }
        }
        index = self.end_together(now, call, &idle, Status::Terminated, &Bytes::new()).unwrap_or(index);
        needs.push(Needs { shard, index, durable });
    }

    /// Ends a cancelled input of which its task has not said a word.
    pub(super) fn cancel_late(&mut self, now: Millis, input: InputId) {
        let Some((_, known, _)) = self.known(input) else { return };
        let retry_count = known.retry_count;
        self.resolve(now, None, Outcome { input, retry_count, status: Status::Terminated, result: Bytes::new() });
    }
}
