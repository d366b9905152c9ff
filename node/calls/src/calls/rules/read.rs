//! Reading: outputs, and what a call is and where its inputs stand.

use std::ops::RangeInclusive;

use bytes::Bytes;
use shoal_state::{CallId, FunctionId, InputId};

use super::{Answer, Due, OutputAt, OutputsAt, Rules, Ticket, TimerKey};
use crate::calls::info::{CallInfo, InputInfo, InputStatus};
use crate::calls::model::{CallKind, Entry, Millis};
use crate::calls::record::Record;
use crate::calls::refused::Refused;
use crate::calls::state::Call;

/// A reader of a call's outputs that waits for more.
#[derive(Debug)]
pub(super) struct Poll {
    call: CallId,
    after: Entry,
    max: usize,
    clear: bool,
    /// The inputs whose outputs are wanted, by their places in the call; none for all.
    only: Option<RangeInclusive<u32>>,
    timer: Option<TimerKey>,
    /// There is something, and more is awaited for a moment.
    gathers: bool,
}

/// For so long outputs of a large map are gathered before they are given to a reader who waits, in milliseconds. Each
/// answer costs its client a poll that names all inputs which are under way.
const GATHER_MS: Millis = 10;

/// A reader who would not wait waits so long, in milliseconds, at a home that does not know yet whether what it inherited counts: what
/// others were shown is not to be missing. Members that do not say what they have are dropped before that.
const UNSURE_WAIT_MS: Millis = 8_000;

/// A map with more unfinished inputs than this is a large one.
const GATHER_UNFINISHED: u32 = 32;

impl Poll {
    pub(super) fn new(call: CallId, after: Entry, max: usize, clear: bool, only: Option<RangeInclusive<u32>>) -> Self {
        Self { call, after, max: max.max(1), clear, only, timer: None, gathers: false }
    }
}

impl Rules {
    pub(super) fn outputs(&mut self, now: Millis, ticket: Ticket, call: CallId, mut poll: Poll, wait_ms: u64) -> Result<(), Refused> {
        let (shard, known) = self.call(call)?;
        let is_unsure = self.homes.get(&shard).is_some_and(|home| home.is_unsure(known, poll.after));
        let wait_ms = if is_unsure { wait_ms.max(UNSURE_WAIT_MS) } else { wait_ms };
        let (found, ready) = self.look(&poll)?;
        poll.gathers = ready && wait_ms > GATHER_MS && gathers(&poll, &found);
        if (ready && !poll.gathers) || wait_ms == 0 {
            self.give_outputs(now, ticket, &poll, found);
            return Ok(());
        }
        let wait_ms = if poll.gathers { GATHER_MS } else { wait_ms };
        poll.timer = Some(self.timers.set(now.saturating_add(wait_ms), Due::Poll(ticket)));
        self.polls_of.entry(call).or_default().push(ticket);
        self.polls.insert(ticket, poll);
        Ok(())
    }

    /// Returns what a reader sees now, and whether there is no reason to wait for more.
    fn look(&self, poll: &Poll) -> Result<(OutputsAt, bool), Refused> {
        let (_, home) = self.home_of(poll.call.shard(), || poll.call.to_string())?;
        let call = home.state.call(poll.call).ok_or(Refused::NoCall { call: poll.call })?;
        let counted = home.counted(call);
        let shown = call.outputs_after(poll.after, counted).filter_map(|(entry, input)| self.output_at(entry, input));
        let wanted = |item: &OutputAt| poll.only.as_ref().is_none_or(|only| only.contains(&item.idx));
        let items: Vec<OutputAt> = shown.filter(wanted).take(poll.max).collect();
        let hidden = call.outputs.len() - call.outputs.partition_point(|(entry, _)| entry.index <= counted);
        let missing = u32::from(call.open.kind == CallKind::Unary && call.inputs.is_empty());
        let unfinished = call.unfinished() + missing + u32::try_from(hidden).unwrap_or(u32::MAX);
        let last = items.last().map_or(poll.after, |item| item.entry);
        let ready = (!items.is_empty() || (call.over() && hidden == 0)) && !home.is_unsure(call, poll.after);
        Ok((OutputsAt { items, last, unfinished }, ready))
    }

    fn output_at(&self, entry: Entry, input: InputId) -> Option<OutputAt> {
        let (_, known, _) = self.known(input)?;
        let (_, status) = known.output?;
        Some(OutputAt { idx: known.idx, input, entry, retry_count: known.retry_count, client_count: known.client_count, status })
    }

    /// Answers a reader. When it has everything now and says so, the call is kept only a little longer.
    fn give_outputs(&mut self, now: Millis, ticket: Ticket, poll: &Poll, found: OutputsAt) {
        let has_all = |call: &Call| call.outputs.last().is_none_or(|(last, _)| *last <= found.last);
        let some_only = |call: &Call| poll.only.is_some() && call.open.kind != CallKind::Unary;
        let clears = poll.clear && found.unfinished == 0;
        let shard = match self.call(poll.call) {
            Ok((shard, call)) if clears && call.cleared_ms.is_none() && has_all(call) && !some_only(call) => Some(shard),
            _ => None,
        };
        if let Some(shard) = shard {
            self.append(shard, Record::Cleared { call: poll.call, at_ms: now }, Bytes::new());
            self.plan_expiry(poll.call);
        }
        self.answer(ticket, Answer::Outputs(found));
    }

    /// Answers the readers of a call for whom there is something.
    pub(super) fn wake_polls(&mut self, now: Millis, call: CallId) {
        for ticket in self.polls_of.get(&call).cloned().unwrap_or_default() {
            let Some(poll) = self.polls.get(&ticket) else { continue };
            match self.look(poll) {
                Ok((_, false)) => {}
                Ok((found, true)) if gathers(poll, &found) => self.gather(now, ticket),
                Ok((found, true)) => self.end_poll(now, ticket, found),
                Err(refused) => self.drop_poll(ticket, refused),
            }
        }
    }

    /// Lets a reader for whom there is something wait a moment for more.
    fn gather(&mut self, now: Millis, ticket: Ticket) {
        let Some(poll) = self.polls.get_mut(&ticket).filter(|poll| !poll.gathers) else { return };
        poll.gathers = true;
        let timer = self.timers.set(now + GATHER_MS, Due::Poll(ticket));
        if let Some(before) = poll.timer.replace(timer) {
            self.timers.unset(before);
        }
    }

    pub(super) fn poll_late(&mut self, now: Millis, ticket: Ticket) {
        let Some(poll) = self.polls.get(&ticket) else { return };
        match self.look(poll) {
            Ok((found, _)) => self.end_poll(now, ticket, found),
            Err(refused) => self.drop_poll(ticket, refused),
        }
    }

    fn end_poll(&mut self, now: Millis, ticket: Ticket, found: OutputsAt) {
        if let Some(poll) = self.take_poll(ticket) {
            self.give_outputs(now, ticket, &poll, found);
        }
    }

    pub(super) fn drop_poll(&mut self, ticket: Ticket, refused: Refused) {
        if self.take_poll(ticket).is_some() {
            self.answer(ticket, Answer::Refused(refused));
        }
    }

    fn take_poll(&mut self, ticket: Ticket) -> Option<Poll> {
        let poll = self.polls.remove(&ticket)?;
        if let Some(timer) = poll.timer {
            self.timers.unset(timer);
        }
        if let Some(tickets) = self.polls_of.get_mut(&poll.call) {
            tickets.retain(|other| *other != ticket);
            if tickets.is_empty() {
                self.polls_of.remove(&poll.call);
            }
        }
        Some(poll)
    }

    pub(super) fn info(&mut self, ticket: Ticket, call: CallId) -> Result<(), Refused> {
        let info = info_of(self.call(call)?.1);
        self.answer(ticket, Answer::Infos(vec![info]));
        Ok(())
    }

    pub(super) fn call_of(&mut self, ticket: Ticket, input: InputId) -> Result<(), Refused> {
        let (_, _, call) = self.input(input)?.ok_or(Refused::NoInput { input })?;
        let info = info_of(call);
        self.answer(ticket, Answer::Infos(vec![info]));
        Ok(())
    }

    pub(super) fn calls_of(&mut self, ticket: Ticket, function: FunctionId) -> Result<(), Refused> {
        let calls = self.of_function.get(&function).or_else(|| self.of_pool.get(&function));
        let infos = self.infos(calls.into_iter().flatten());
        self.answer(ticket, Answer::Infos(infos));
        Ok(())
    }

    pub(super) fn children_of(&mut self, ticket: Ticket, input: InputId) -> Result<(), Refused> {
        let infos = self.infos(self.children.get(&input).into_iter().flatten());
        self.answer(ticket, Answer::Infos(infos));
        Ok(())
    }

    /// Returns the calls with these ids, oldest first.
    fn infos<'a>(&self, calls: impl Iterator<Item = &'a CallId>) -> Vec<CallInfo> {
        let mut infos: Vec<CallInfo> = calls.filter_map(|call| Some(info_of(self.call(*call).ok()?.1))).collect();
        infos.sort_by_key(|info| (info.open.created_ms, info.open.call));
        infos
    }

    pub(super) fn inputs(&mut self, ticket: Ticket, call: CallId) -> Result<(), Refused> {
        let inputs = &self.call(call)?.1.inputs;
        let infos = inputs.iter().filter_map(|input| self.input_info(*input)).collect();
        self.answer(ticket, Answer::Inputs(infos));
        Ok(())
    }

    fn input_info(&self, input: InputId) -> Option<InputInfo> {
        let (_, known, _) = self.known(input)?;
        let status = match (known.output, self.places.get(&input)) {
            (Some((_, status)), _) => InputStatus::Done(status),
            (None, Some(place)) => place.status(),
            (None, None) => InputStatus::Waiting,
        };
        Some(InputInfo { input, idx: known.idx, retry_count: known.retry_count, status })
    }
}

/// Says whether more outputs are worth a moment's wait: many are to come, and the answer has room for them.
fn gathers(poll: &Poll, found: &OutputsAt) -> bool {
    found.unfinished > GATHER_UNFINISHED && found.items.len() < poll.max && poll.only.is_none()
}

fn info_of(call: &Call) -> CallInfo {
    CallInfo {
        open: call.open.clone(),
        inputs: u32::try_from(call.inputs.len()).unwrap_or(u32::MAX),
        unfinished: call.unfinished(),
        ended: call.ended,
        inputs_finished: call.inputs_finished,
        cancelled: call.cancelled,
        changed_ms: call.changed_ms,
    }
}
