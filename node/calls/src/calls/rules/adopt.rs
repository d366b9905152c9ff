//! What tasks have from an earlier home of their inputs: their nodes say so, and what nobody says is leased anew.

use bytes::Bytes;
use shoal_state::{FunctionId, InputId, ShardId, TaskId};

use super::beside::Beside;
use super::{Answer, Rules, Ticket};
use crate::calls::model::Millis;
use crate::calls::record::Record;
use crate::calls::refused::Refused;

impl Rules {
    pub(super) fn adopt(
        &mut self,
        now: Millis,
        ticket: Ticket,
        task: TaskId,
        pool: FunctionId,
        inputs: &[(InputId, u32)],
    ) -> Result<(), Refused> {
        self.pool_is_here(pool)?;
        // One that was taken for lost by mistake has nothing, and hears what it works on in vain.
        if !self.ended.contains(task) || !inputs.is_empty() {
            self.task_mut(now, task).pool = Some(pool);
        }
        for (input, retry_count) in inputs {
            self.adopt_input(now, task, *input, *retry_count);
        }
        self.answer(ticket, Answer::Done);
        Ok(())
    }

    /// Notes that a task is done with a try, should a report come that says that it has it.
    pub(super) fn let_go_early(&mut self, task: TaskId, input: InputId, retry_count: u32) {
        let home = input.shard().and_then(|shard| self.homes.get_mut(&shard));
        if let Some(home) = home.filter(|home| home.reports.is_some()) {
            home.let_go.insert((task, input, retry_count));
        }
    }

    fn adopt_input(&mut self, now: Millis, task: TaskId, input: InputId, retry_count: u32) {
        let home = input.shard().and_then(|shard| self.homes.get(&shard));
        if home.is_some_and(|home| home.let_go.contains(&(task, input, retry_count))) {
            return;
        }
        let is_ended = self.ended.contains(task);
        let Some((shard, known, call)) = self.known(input) else {
            // An input is leased before its record counts. Its client does not know of it yet, and puts it again.
            if !is_ended {
                self.claimed.insert(input, (task, retry_count));
            }
            return;
        };
        let (pool, id, cancelled, current) = (call.open.pool, known.call, known.cancelled, known.retry_count);
        // A late report may say what the task has brought back since; what waits by then does so for whoever comes first.
        let is_late = !self.waits_for_reports(input);
        let place = self.places.get(&input).filter(|_| !is_ended);
        let Some(order) = place.and_then(|place| place.unclaimed(is_late)) else {
            if retry_count <= current {
                self.works_beside(now, task, input, Beside { retry_count, is_reported: true });
            } else if !is_ended {
                // A client has asked for that try, and asks again.
                self.claimed.insert(input, (task, retry_count));
            }
            return;
        };
        // A try is leased before the record that began it counts. That record may have been lost with the earlier home.
        if retry_count > current {
            let (due_ms, at_ms) = (now, now);
            let record = Record::Retried { call: id, input, retry_count, due_ms, at_ms, key: 0, payload: false };
            self.append(shard, record, Bytes::new());
        } else if retry_count < current {
            return self.works_beside(now, task, input, Beside { retry_count, is_reported: true });
        }
        self.unplace(now, input, pool);
        self.start(now, input, order, task);
        if cancelled {
            self.set_backstop(now, input);
            self.tell_cancelled(now, task, input);
        }
    }

    /// Places a new try of an input: with the task that has it from an earlier home, if there is one, or where it waits for one. While
    /// reports are waited for, one may turn out to have it, though no record of that try has come from there.
    pub(super) fn take_up(&mut self, now: Millis, input: InputId, retry_count: u32, order: Option<u64>) {
        let is_over = |(_, of): &(TaskId, u32)| *of <= retry_count;
        let claimed = self.claimed.get(&input).copied().filter(is_over);
        if claimed.is_some() {
            self.claimed.remove(&input);
        }
        match claimed.filter(|(task, of)| *of == retry_count && self.tasks.contains_key(task)) {
            Some((task, _)) => {
                let order = order.unwrap_or_else(|| self.new_order());
                self.start(now, input, order, task);
            }
            None if self.waits_for_reports(input) => self.hold(input, order),
            None => self.enqueue(now, input, order),
        }
    }

    fn waits_for_reports(&self, input: InputId) -> bool {
        input.shard().and_then(|shard| self.homes.get(&shard)).is_some_and(|home| home.reports.is_some())
    }

    pub(super) fn reports_complete(&mut self, now: Millis, ticket: Ticket, shards: &[ShardId]) -> Result<(), Refused> {
        for shard in shards {
            if self.homes.get(shard).is_some_and(|home| home.reports.is_some()) {
                self.release_held(now, *shard);
            }
        }
        self.answer(ticket, Answer::Done);
        Ok(())
    }
}
