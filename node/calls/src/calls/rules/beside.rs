//! What tasks work on besides what they have: tries that were given to others, or are over.
//!
//! A node that was taken for lost by mistake has containers that go on, and so has one whose home moved and heard of somebody else's
//! try first. Their outcomes are as good as any while the try is open. Once it is in vain they are told not to go on, as a task that has
//! the input is.

use std::collections::BTreeSet;

use shoal_state::{InputId, ShardId, TaskId};

use super::Rules;
use crate::calls::model::Millis;
use crate::calls::record::Record;

/// A try that a task works on besides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside {
    pub(super) retry_count: u32,
    /// A report said so, which may be older than what the task has said since, to the home before.
    pub(super) is_reported: bool,
}

impl Rules {
    /// Notes that a task works on a try that is not its own by these books. It is told if that is in vain, now or later.
    pub(super) fn works_beside(&mut self, now: Millis, task: TaskId, input: InputId, beside: Beside) {
        if self.holder(input) == Some(task) {
            return;
        }
        self.beside.insert((input, task), beside);
        self.load_changed = true;
        self.tell_in_vain(now, input);
    }

    /// Tells the tasks that work on an input besides, if what they do is in vain.
    pub(super) fn tell_in_vain(&mut self, now: Millis, input: InputId) {
        if self.beside.is_empty() {
            return;
        }
        let Some((_, known, _)) = self.known(input) else { return };
        let (is_over, current) = (known.output.is_some() || known.cancelled, known.retry_count);
        let tries = self.beside.range((input, TaskId::MIN)..=(input, TaskId::MAX));
        let in_vain = tries.filter(|(_, of)| is_over || of.retry_count < current);
        let told: Vec<(TaskId, bool)> = in_vain.map(|((_, task), of)| (*task, of.is_reported)).collect();
        for (task, is_reported) in told {
            self.not_beside(now, task, input);
            // One that does not have it will never say that it has let go of it.
            let until_ms = is_reported.then(|| now + super::CANCEL_GRACE_MS);
            self.tell_until(now, task, input, until_ms);
        }
    }

    /// As [`Self::tell_in_vain`], of what a record says.
    pub(super) fn tell_of(&mut self, record: &Record) {
        match record {
            Record::Outcome { of, at_ms, .. } => of.iter().for_each(|(input, _)| self.tell_in_vain(*at_ms, *input)),
            Record::Retried { input, at_ms, .. } => self.tell_in_vain(*at_ms, *input),
            _ => {}
        }
    }

    /// A task does not work on an input besides any more. It is idle from then on, if it has nothing.
    pub(super) fn not_beside(&mut self, now: Millis, task: TaskId, input: InputId) {
        if self.beside.remove(&(input, task)).is_some() {
            self.load_changed = true;
            if let Some(known) = self.tasks.get_mut(&task) {
                known.idles_from(now);
            }
        }
    }

    /// Returns a task that works on this try besides, and can have it.
    pub(super) fn has_beside(&self, input: InputId, retry_count: u32) -> Option<TaskId> {
        let mut tries = self.beside.range((input, TaskId::MIN)..=(input, TaskId::MAX));
        let can_have = |task: &TaskId| self.tasks.contains_key(task) && !self.ended.contains(*task);
        tries.find(|((_, task), of)| of.retry_count == retry_count && can_have(task)).map(|((_, task), _)| *task)
    }

    /// Returns the tasks that work on something besides.
    pub(super) fn all_beside(&self) -> BTreeSet<TaskId> {
        self.beside.keys().map(|(_, task)| *task).collect()
    }

    /// Forgets what is in a shard that leaves.
    pub(super) fn leave_beside(&mut self, shard: ShardId) {
        self.beside.retain(|(input, _), _| input.shard() != Some(shard));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use shoal_state::{CallId, FunctionId};

    use super::super::{Answer, Effect, Request};
    use super::*;
    use crate::calls::model::{CallKind, Invocation, LeaseRequest, NewInput, OpenCall, Outcome, Policy, Status};
    use crate::calls::state::CallsState;

    /// Returns books in which one input waits, and the function that it is for.
    fn with_one_input(policy: Policy) -> (Rules, FunctionId) {
        let shard = ShardId::new(3).unwrap();
        let (call, pool) = (CallId::in_shard(shard, 1), FunctionId::in_shard(shard, 1));
        let mut rules = Rules::new();
        rules.enter(0, shard, CallsState::default(), 1);
        rules.handle(0, 1, Request::ReportsComplete { shards: vec![shard] });
        let (kind, invocation) = (CallKind::Map, Invocation::Sync);
        let open = OpenCall { call, function: pool, pool, kind, invocation, parent: None, created_ms: 0, policy };
        let items = vec![NewInput { idx: 0, payload: Bytes::new() }];
        rules.handle(0, 2, Request::OpenWith { open, items, key: "k".to_owned() });
        (rules, pool)
    }

    /// Asks for an input, and returns which try of it is given.
    fn lease(rules: &mut Rules, at: Millis, task: TaskId, pool: FunctionId) -> Option<(InputId, u32)> {
        let (key, ticket) = (format!("l{at}"), 10 + at);
        rules.handle(at, ticket, Request::Lease(LeaseRequest { pool, task, max: 1, wait_ms: 0, linger_ms: 0, key }));
        rules.take_effects().into_iter().find_map(|effect| match effect {
            Effect::Answer { answer: Answer::Leased(leased), .. } => leased.first().map(|at| (at.input, at.retry_count)),
            _ => None,
        })
    }

    #[test]
    fn a_task_that_works_besides_is_not_idle() {
        let (mut rules, pool) = with_one_input(Policy::default());
        let [one, other] = [1, 2].map(TaskId::from_random);
        let (input, _) = lease(&mut rules, 0, one, pool).expect("it is given the input");

        rules.handle(5, 4, Request::Adopt { task: other, pool, inputs: vec![(input, 0)] });
        let load = rules.load().tasks[&other];
        assert_eq!((load.running, load.idle_since_ms), (1, None));

        let outcome = Outcome { input, retry_count: 0, status: Status::Success, result: Bytes::new() };
        rules.handle(9, 5, Request::Finish { from: Some((one, pool)), outcomes: vec![outcome] });
        let load = rules.load().tasks[&other];
        assert_eq!((load.running, load.idle_since_ms), (0, Some(9)));
    }

    #[test]
    fn a_task_that_is_told_for_nothing_may_have_the_next_try_in_the_end() {
        let (mut rules, pool) = with_one_input(Policy { retries: 1, ..Policy::default() });
        let task = TaskId::from_random(1);
        let (input, _) = lease(&mut rules, 1, task, pool).expect("it is given the input");
        let outcome = Outcome { input, retry_count: 0, status: Status::Failed, result: Bytes::new() };
        rules.handle(5, 3, Request::Finish { from: Some((task, pool)), outcomes: vec![outcome] });
        // What its node reports is older than that.
        rules.handle(6, 4, Request::Adopt { task, pool, inputs: vec![(input, 0)] });
        let over = 6 + super::super::CANCEL_GRACE_MS;
        assert_eq!(lease(&mut rules, over - 1, task, pool), None);
        assert_eq!(lease(&mut rules, over, task, pool), Some((input, 1)));
    }
}
