//! What a function did: its latest inputs one by one, and counts over a span of time, for as long as its calls are kept.
//!
//! Nothing is kept for this: it is read from the records of calls. So it costs something to ask, and at most [`INPUTS_MAX`] inputs, the
//! newest, are looked at.
//!
//! Caveats: all inputs of a call count as put when it was opened. Of containers that have ended only those are known that had an input.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost_types::Timestamp;
use shoal_calls::calls::{CallInfo, Entry, InputStatus, Millis, Status};
use shoal_proto::modal_client as pb;
use shoal_proto::modal_client::FunctionCallInputStatus as Stands;
use shoal_state::{CallId, FunctionId, State, TaskId};

use super::call::refused;
use super::error::Error;
use super::{Api, Caller, function, times};

/// How many inputs are looked at for one answer.
pub(super) const INPUTS_MAX: usize = 10_000;
/// How many calls are looked at beside one another.
const CALLS_AT_ONCE: usize = 16;
/// How many outcomes of a call are read at once; their results are read with them.
const OUTCOMES_AT_ONCE: usize = 50;
/// How many spans of time are counted at most.
const BUCKETS_MAX: usize = 100_000;
/// How far back statistics go where nobody says it.
const SPAN_MS: Millis = 3600 * 1000;

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) call: CallId,
    pub(super) put_ms: Millis,
    pub(super) started_ms: Option<Millis>,
    pub(super) ended_ms: Option<Millis>,
    pub(super) task: Option<TaskId>,
    pub(super) stands: Stands,
}

/// A container that there is now.
#[derive(Debug, Clone, Copy)]
struct Container {
    task: TaskId,
    created_ms: Millis,
    /// It has not asked for an input yet.
    creating: bool,
}

pub(super) async fn fetch(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionCallFetchRequest,
) -> Result<pb::FunctionCallFetchResponse, Error> {
    use pb::function_call_fetch_request::QueryOneof;
    let of = functions(api, &request.function_id, request.all_variants).await?;
    let (since, until, most) = match request.query_oneof {
        Some(QueryOneof::Tail(tail)) => (0, Millis::MAX, tail.count),
        Some(QueryOneof::Range(range)) => (range.since.map_or(0, times::to_ms), range.until.map_or(Millis::MAX, times::to_ms), range.limit),
        None => (0, Millis::MAX, 0),
    };
    let most = usize::try_from(most).ok().filter(|most| *most > 0).unwrap_or(INPUTS_MAX).min(INPUTS_MAX);
    let rows = rows(api, &of, most, |call| (since..until).contains(&call.open.created_ms)).await?;
    Ok(pb::FunctionCallFetchResponse { function_call_inputs: rows.iter().map(told).collect() })
}

pub(super) async fn count(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionCallCountRequest,
) -> Result<pb::FunctionCallCountResponse, Error> {
    let of = functions(api, &request.function_id, request.all_variants).await?;
    let (Some(since), Some(until)) = (request.since.map(times::to_ms), request.until.map(times::to_ms)) else {
        return Err(Error::Invalid("calls are counted between two times: give both".to_owned()));
    };
    let calls = calls(api, &of).await?;
    let counts = counts(calls.iter().map(|call| (call.open.created_ms, call.inputs)), since, until, request.bucket_secs)?;
    let buckets = counts
        .into_iter()
        .map(|(start_ms, count)| pb::function_call_count_response::InputBucket { bucket_start_at: Some(times::of_ms(start_ms)), count });
    Ok(pb::FunctionCallCountResponse { buckets: buckets.collect() })
}

pub(super) async fn stats(
    api: &Api,
    _caller: &Caller,
    request: pb::FunctionGetTimeRangeStatsRequest,
) -> Result<pb::FunctionGetTimeRangeStatsResponse, Error> {
    let of = functions(api, &request.function_id, request.rollup).await?;
    let only = request.container_id.as_deref().filter(|id| !id.is_empty()).map(str::parse::<TaskId>).transpose()?;
    let (since, until) = span(api, request.since, request.until);
    let mut rows = rows(api, &of, INPUTS_MAX, |call| touches(call, since, until)).await?;
    if let Some(only) = only {
        rows.retain(|row| row.task == Some(only));
    }
    let mut containers = containers(api, &of, until);
    containers.retain(|container| only.is_none_or(|only| container.task == only));
    let variants = api.local().bound.get(&of[0]).map_or(0, |bound| bound.len());
    let variant_count = u32::try_from(variants).unwrap_or(u32::MAX);
    Ok(pb::FunctionGetTimeRangeStatsResponse { variant_count, ..summed(&rows, &containers, since, until) })
}

/// Sums up what a function and those that were bound from it did in a time.
pub(super) async fn sum(
    api: &Api,
    function: FunctionId,
    since: Millis,
    until: Millis,
) -> Result<pb::FunctionGetTimeRangeStatsResponse, Error> {
    let of = with_variants(&api.local(), function);
    let rows = rows(api, &of, INPUTS_MAX, |call| touches(call, since, until)).await?;
    Ok(summed(&rows, &containers(api, &of, until), since, until))
}

/// Says whether something of a call can have happened in a time.
pub(super) fn touches(call: &CallInfo, since: Millis, until: Millis) -> bool {
    call.open.created_ms < until && (call.unfinished > 0 || call.changed_ms >= since)
}

/// Returns the containers that these functions have now.
fn containers(api: &Api, of: &[FunctionId], until: Millis) -> Vec<Container> {
    let (state, now) = (api.local(), api.now().0);
    let load = api.reports.load(&state);
    let tasks = of.iter().filter_map(|id| state.tasks_of.get(id)).flatten();
    let container = |id: &TaskId| {
        let created_ms = state.tasks.get(id)?.created.0;
        Some(Container { task: *id, created_ms, creating: until >= now && !load.tasks.contains_key(id) })
    };
    tasks.filter_map(container).collect()
}

/// Returns from when until when somebody asks; the last hour where nobody says it.
pub(super) fn span(api: &Api, since: Option<Timestamp>, until: Option<Timestamp>) -> (Millis, Millis) {
    let until = until.map_or_else(|| api.now().0, times::to_ms);
    (since.map_or(until.saturating_sub(SPAN_MS), times::to_ms), until)
}

/// Returns the function that is asked for, and those that were bound from it if these are wanted too.
pub(super) async fn functions(api: &Api, id: &str, all_variants: bool) -> Result<Vec<FunctionId>, Error> {
    let (id, _) = function::find(api, id).await?;
    Ok(if all_variants { with_variants(&api.local(), id) } else { vec![id] })
}

fn with_variants(state: &State, id: FunctionId) -> Vec<FunctionId> {
    let bound = state.bound.get(&id).into_iter().flat_map(|bound| bound.keys().copied());
    [id].into_iter().chain(bound).collect()
}

/// Returns the calls that containers of these functions serve, the newest first.
async fn calls(api: &Api, of: &[FunctionId]) -> Result<Vec<CallInfo>, Error> {
    let mut found = BTreeMap::new();
    for id in of {
        let calls = api.calls.calls_of(*id).await.map_err(refused)?;
        found.extend(calls.into_iter().filter(|call| of.contains(&call.open.pool)).map(|call| (call.open.call, call)));
    }
    let mut calls: Vec<CallInfo> = found.into_values().collect();
    calls.sort_by_key(|call| (Reverse(call.open.created_ms), call.open.call));
    Ok(calls)
}

/// Returns the newest inputs of some calls, the oldest first.
pub(super) async fn rows(api: &Api, of: &[FunctionId], most: usize, wanted: impl Fn(&CallInfo) -> bool) -> Result<Vec<Row>, Error> {
    let mut inputs = 0;
    let calls: Vec<CallInfo> = calls(api, of)
        .await?
        .into_iter()
        .filter(wanted)
        .take_while(|call| {
            let more = inputs < most;
            inputs += call.inputs as usize;
            more
        })
        .collect();
    let looked = stream::iter(calls).map(|call| rows_of(api, call)).buffered(CALLS_AT_ONCE);
    let mut rows: Vec<Row> = looked.try_collect::<Vec<_>>().await?.into_iter().rev().flatten().collect();
    rows.drain(..rows.len().saturating_sub(most));
    Ok(rows)
}

async fn rows_of(api: &Api, info: CallInfo) -> Result<Vec<Row>, Error> {
    let call = info.open.call;
    let inputs = match api.calls.inputs(call).await {
        Ok(inputs) => inputs,
        // It was forgotten since.
        Err(shoal_calls::calls::Error::Refused(_)) => return Ok(Vec::new()),
        Err(error) => return Err(refused(error)),
    };
    let (mut ended, mut after) = (HashMap::new(), Entry::default());
    while info.unfinished < info.inputs && ended.len() < inputs.len().min(INPUTS_MAX) {
        let outputs = api.calls.outputs(call, after, OUTCOMES_AT_ONCE, Duration::ZERO, false).await.map_err(refused)?;
        if outputs.items.is_empty() {
            break;
        }
        after = outputs.last;
        ended.extend(outputs.items.into_iter().map(|output| (output.input, (output.started_ms, output.at_ms, output.task))));
    }
    let row = |input: shoal_calls::calls::InputInfo| {
        let put_ms = info.open.created_ms;
        let waits = Row { call, put_ms, started_ms: None, ended_ms: None, task: None, stands: Stands::Pending };
        match (input.status, ended.get(&input.input)) {
            (InputStatus::Waiting | InputStatus::Delayed { .. }, _) => waits,
            (InputStatus::Running { task, since_ms }, _) => {
                Row { started_ms: Some(since_ms.max(put_ms)), task: Some(task), stands: Stands::Running, ..waits }
            }
            (InputStatus::Done(status), None) => Row { stands: stands(status), ..waits },
            (InputStatus::Done(status), Some((started_ms, at_ms, task))) => Row {
                // Read from other clocks than the call's, or a moment before it.
                started_ms: Some(*started_ms).filter(|ms| *ms > 0).map(|ms| ms.max(put_ms)),
                ended_ms: Some(put_ms.max(*started_ms).max(*at_ms)),
                task: *task,
                stands: stands(status),
                ..waits
            },
        }
    };
    Ok(inputs.into_iter().map(row).collect())
}

fn stands(status: Status) -> Stands {
    match status {
        Status::Success => Stands::Success,
        Status::Failed => Stands::Failure,
        Status::Platform => Stands::InternalFailure,
        Status::TimedOut => Stands::Timeout,
        Status::Terminated => Stands::Terminated,
        Status::InitFailed => Stands::InitFailure,
    }
}

fn told(row: &Row) -> pb::FunctionCallInputInfo {
    pb::FunctionCallInputInfo {
        function_call_id: row.call.to_string(),
        enqueued_at: Some(times::of_ms(row.put_ms)),
        started_at: row.started_ms.map(times::of_ms),
        container_id: row.task.map(|task| task.to_string()),
        execution_time_seconds: row.executed(),
        status: row.stands.into(),
        ..Default::default()
    }
}

impl Row {
    /// Returns for how long it was with its container, in seconds.
    pub(super) fn executed(&self) -> Option<f64> {
        Some(between(self.started_ms?, self.ended_ms?))
    }

    /// Returns how long it took from being put to its end, in seconds.
    pub(super) fn latency(&self) -> Option<f64> {
        Some(between(self.put_ms, self.ended_ms?))
    }
}

fn between(from: Millis, to: Millis) -> f64 {
    Duration::from_millis(to.saturating_sub(from)).as_secs_f64()
}

/// Counts inputs in spans of so many seconds, those with none left out.
fn counts(calls: impl Iterator<Item = (Millis, u32)>, since: Millis, until: Millis, seconds: u32) -> Result<BTreeMap<Millis, u64>, Error> {
    let span = Millis::from(seconds.max(1)) * 1000;
    let mut counts = BTreeMap::new();
    for (at, inputs) in calls.filter(|(at, _)| (since..until).contains(at)) {
        *counts.entry(at - at % span).or_default() += u64::from(inputs);
        if counts.len() > BUCKETS_MAX {
            return Err(Error::Invalid(format!("cannot count calls in more than {BUCKETS_MAX} spans of {seconds} s: ask for longer ones")));
        }
    }
    Ok(counts)
}

/// Sums up what became of inputs, and which containers there were.
fn summed(rows: &[Row], containers: &[Container], since: Millis, until: Millis) -> pb::FunctionGetTimeRangeStatsResponse {
    let window = since..until;
    let ended: Vec<&Row> = rows.iter().filter(|row| row.ended_ms.is_some_and(|at| window.contains(&at))).collect();
    let count = |of: &[Stands]| ended.iter().filter(|row| of.contains(&row.stands)).count() as u64;
    let running_at_end = |row: &&Row| row.started_ms.is_some_and(|at| at < until) && row.ended_ms.is_none_or(|at| at >= until);
    let done: Vec<&&Row> = ended.iter().filter(|row| row.stands == Stands::Success).collect();
    let mut inputs = BTreeMap::new();
    for (name, seconds) in [
        ("Execution time (s)", done.iter().filter_map(|row| row.executed()).collect::<Vec<f64>>()),
        ("End-to-end latency (s)", done.iter().filter_map(|row| row.latency()).collect()),
    ] {
        inputs.extend(distribution(seconds).map(|found| (name.to_owned(), found)));
    }
    // Those that there are, and those that had an input within the time.
    let known: BTreeMap<TaskId, Millis> = containers.iter().map(|container| (container.task, container.created_ms)).collect();
    let had = |row: &&Row| row.started_ms.is_some_and(|at| at < until) && row.ended_ms.is_none_or(|at| at >= since);
    let of_rows = rows.iter().filter(had).filter_map(|row| row.task);
    let all: BTreeSet<TaskId> = known.iter().filter(|(_, at)| **at < until).map(|(task, _)| *task).chain(of_rows).collect();
    let older: BTreeSet<TaskId> =
        rows.iter().filter(|row| row.started_ms.is_some_and(|at| at < since)).filter_map(|row| row.task).collect();
    let started = all.iter().filter(|task| known.get(task).map_or(!older.contains(task), |at| *at >= since));
    let errors: BTreeSet<TaskId> = ended.iter().filter(|row| row.stands == Stands::InitFailure).filter_map(|row| row.task).collect();
    pb::FunctionGetTimeRangeStatsResponse {
        since: Some(times::of_ms(since)),
        until: Some(times::of_ms(until)),
        input_success_count: count(&[Stands::Success]),
        input_failure_count: count(&[Stands::Failure, Stands::InitFailure, Stands::InternalFailure]),
        input_timeout_count: count(&[Stands::Timeout]),
        input_running_at_end_count: rows.iter().filter(running_at_end).count() as u64,
        input_percentile_stats: inputs,
        container_started_count: started.count() as u64,
        container_error_count: errors.len() as u64,
        container_creating_at_end_count: containers.iter().filter(|container| container.creating).count() as u64,
        container_total_count: all.len() as u64,
        ..Default::default()
    }
}

/// Returns the percentiles that clients show; none of nothing.
fn distribution(mut seconds: Vec<f64>) -> Option<pb::StatsPercentileDistribution> {
    seconds.sort_by(f64::total_cmp);
    let points = [5000, 9000, 9900].map(|points| Some((points, percentile(&seconds, points)?)));
    let percentiles = points.into_iter().collect::<Option<Vec<_>>>()?.into_iter();
    let percentiles = percentiles.map(|(percentile_basis_points, value)| pb::StatsPercentile { percentile_basis_points, value });
    Some(pb::StatsPercentileDistribution { unit: "seconds".to_owned(), percentiles: percentiles.collect() })
}

/// Returns the value that a share of sorted values does not exceed, in hundredths of a percent; none of nothing.
pub(super) fn percentile(sorted: &[f64], points: u32) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    sorted.get((sorted.len() * points as usize).div_ceil(10_000).saturating_sub(1).min(last)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(put_ms: Millis, started_ms: Millis, ended_ms: Millis, task: u128, stands: Stands) -> Row {
        let [started_ms, ended_ms] = [started_ms, ended_ms].map(|ms| Some(ms).filter(|ms| *ms > 0));
        Row { call: CallId::from_random(1), put_ms, started_ms, ended_ms, task: Some(TaskId::from_random(task)), stands }
    }

    #[test]
    fn what_ended_within_the_time_counts_and_containers_that_worked_in_it() {
        let rows = [
            row(500, 600, 900, 1, Stands::Success),
            row(900, 950, 1500, 1, Stands::Success),
            row(1000, 1100, 1200, 2, Stands::Failure),
            row(1000, 1300, 1400, 3, Stands::InitFailure),
            row(1000, 1200, 1900, 2, Stands::Timeout),
            row(1000, 1200, 0, 4, Stands::Running),
            row(1000, 1200, 2100, 4, Stands::Success),
        ];
        let container = |task, created_ms| Container { task: TaskId::from_random(task), created_ms, creating: task == 5 };
        let said = summed(&rows, &[container(4, 1100), container(5, 1900)], 1000, 2000);
        let inputs = [said.input_success_count, said.input_failure_count, said.input_timeout_count, said.input_running_at_end_count];
        assert_eq!(inputs, [1, 2, 1, 2]);
        let of =
            [said.container_total_count, said.container_started_count, said.container_error_count, said.container_creating_at_end_count];
        assert_eq!(of, [5, 4, 1, 1], "the first was there before");
        let p50 = |name: &str| said.input_percentile_stats[name].percentiles[0].value;
        assert!((p50("Execution time (s)") - 0.55).abs() < 1e-9 && (p50("End-to-end latency (s)") - 0.6).abs() < 1e-9);
        assert!(summed(&[], &[], 0, 1).input_percentile_stats.is_empty());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let found = distribution((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!(found.percentiles.iter().map(|at| at.value).collect::<Vec<_>>(), [50.0, 90.0, 99.0]);
        assert_eq!(distribution(vec![7.0]).unwrap().percentiles[2].value.to_bits(), 7.0f64.to_bits());
    }

    #[test]
    fn inputs_are_counted_by_when_their_call_was_made() {
        let calls = [(999, 1), (1000, 2), (2500, 3), (2999, 4), (5000, 5)];
        let found = counts(calls.into_iter(), 1000, 5000, 2).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(0, 2), (2000, 7)]);
        assert!(counts((0..200_000).map(|at| (at * 1000, 1)), 0, Millis::MAX, 1).is_err());
    }
}
