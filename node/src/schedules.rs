//! Calls functions when their schedules say so.
//!
//! The leader decides: when a schedule is due, it puts a firing into the log, with the time that it is for and the next one.
//! The state takes a firing for the very time alone at which the schedule stands, so however many nodes believe that they
//! lead, each time is fired once. A firing waits in the state until the home of the function's calls has made its
//! call, under an id that follows from the function and the time: made again, after a move or a restart, it is the same call.
//!
//! What came due while nothing could be decided, or while the clock was set forward, is made up for once, however much it
//! was: one call for the earliest time that was missed, and then on in the schedule's phase. A clock that was set back
//! repeats no time; only when what was fired lies more than [`shoal_timing::CLOCK_TRUSTED_MS`] ahead, the clock that it was fired by is
//! taken for wrong, and the schedule goes on from now.

use std::time::Duration;

use futures::StreamExt as _;
use shoal_scheduler::Barrier;
use shoal_state::{Command, FunctionId, State, Timestamp};
use shoal_timing::{FIRINGS_AT_ONCE, called, due, firings_at};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Error, call};
use crate::scheduling::leads;

/// How long is waited at most before anybody looks again: who has become the leader, and how the clock was set.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How many calls of firings are made at once.
const CALLS_AT_ONCE: usize = 64;
/// How long the making of a call may take before it is tried again.
const CALL_DEADLINE: Duration = Duration::from_secs(5);
/// How late a call may be, in milliseconds, before somebody should know.
const LATE_MS: u64 = 5_000;

/// Decides and makes calls until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    tokio::join!(decide(&api, &stop), call_all(&api, &stop));
}

/// Waits until `until`, or until `is_old` says of a newer state that it matters. Returns whether to go on.
async fn wait(api: &Api, stop: &CancellationToken, until: Instant, is_old: impl Fn(&State) -> bool) -> bool {
    let mut changes = api.cluster.raft().watch();
    loop {
        if is_old(&api.local()) {
            return true;
        }
        tokio::select! {
            () = sleep_until(until) => return true,
            changed = changes.changed() => if changed.is_err() { return false },
            () = stop.cancelled() => return false,
        }
    }
}

/// Decides firings while this node leads.
async fn decide(api: &Api, stop: &CancellationToken) {
    let mut barrier = Barrier::default();
    loop {
        let mut until = Instant::now() + LOOK_EVERY;
        let state = api.local();
        if !state.schedules.is_empty() && leads(api, &mut barrier).await {
            until = Instant::now() + round(api).await.min(LOOK_EVERY);
        }
        let seen = api.local().schedules.clone();
        if !wait(api, stop, until, |state| !state.schedules.ptr_eq(&seen)).await {
            return;
        }
    }
}

/// Puts what is due into the log. Returns for how long nothing more is.
async fn round(api: &Api) -> Duration {
    let now = api.now();
    let commands = due(&api.local(), now);
    let is_all = commands.len() < FIRINGS_AT_ONCE;
    if !commands.is_empty() {
        match api.cluster.propose_all(commands).await {
            Ok(answers) => {
                for refused in answers.into_iter().filter_map(Result::err) {
                    tracing::debug!(%refused, "a firing was refused");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot decide what schedules are due; it is tried again");
                return LOOK_EVERY;
            }
        }
    }
    if !is_all {
        return Duration::ZERO;
    }
    let now = api.now();
    let next = api.local().schedules.values().map(|schedule| schedule.next).filter(|next| *next > now).min();
    next.map_or(LOOK_EVERY, |next| Duration::from_millis(next.0 - now.0))
}

/// Makes the calls of firings whose functions' calls are at home here.
async fn call_all(api: &Api, stop: &CancellationToken) {
    loop {
        let state = api.local();
        let firings = firings_at(&state, api.cluster.node);
        let all = firings.len();
        let made = futures::stream::iter(firings.into_iter().map(|(id, due)| make(api, &state, id, due)));
        let made: Vec<_> = made.buffer_unordered(CALLS_AT_ONCE).filter_map(std::future::ready).collect().await;
        let mut again = made.len() < all;
        let ended = made.chunks(FIRINGS_AT_ONCE).map(|firings| Command::EndFirings { firings: firings.to_vec() }).collect();
        if !made.is_empty()
            && let Err(error) = api.propose_all(ended).await
        {
            tracing::warn!(%error, "cannot note that scheduled calls are made; it is tried again");
            again = true;
        }
        let until = Instant::now() + LOOK_EVERY;
        let is_old = |now: &State| !again && (now.firings != state.firings || !now.shards.ptr_eq(&state.shards));
        if !wait(api, stop, until, is_old).await {
            return;
        }
    }
}

/// Makes the call of one firing, unless nothing is there to be called any more. None when it is to be tried again.
async fn make(api: &Api, state: &State, id: FunctionId, due: Timestamp) -> Option<(FunctionId, Timestamp)> {
    let Some(function) = called(state, id) else { return Some((id, due)) };
    let late_ms = api.now().0.saturating_sub(due.0);
    if late_ms > LATE_MS {
        tracing::info!(function = %id, tag = function.tag, late_ms, "a scheduled call is late");
    }
    let why = match timeout(CALL_DEADLINE, call::open_scheduled(api, id, function, due)).await {
        Ok(Ok(call)) => {
            tracing::debug!(function = %id, due = due.0, %call, "called by its schedule");
            return Some((id, due));
        }
        Ok(Err(error)) => error,
        Err(_) => Error::Unavailable(format!("its record was not kept within {CALL_DEADLINE:?}")),
    };
    tracing::warn!(function = %id, %why, "cannot make a scheduled call; it is tried again");
    None
}

#[cfg(test)]
mod tests;
