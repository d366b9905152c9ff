//! What containers printed, as clients read it: live, or a window of the past.

use std::time::{Duration, Instant};

use shoal_proto::modal_client as pb;
use shoal_state::{AppId, FunctionId, State};
use shoal_worker::log::{Entry, Filter, Stream};
use tokio::sync::mpsc;
use tonic::Status;

use super::error::Error;
use super::joined_logs::Place;
use super::{Api, Caller, app};
use crate::images;

/// How long one stream may last, whatever the client asks.
const STREAM_MAX: Duration = Duration::from_secs(55);
/// How often a stream without lines looks whether its app has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long lines are gathered before they are sent: a program that prints much would cost its client a message a line.
const GATHER: Duration = Duration::from_millis(10);
/// Batches that may wait for the client.
const QUEUE: usize = 16;
/// Lines in one answer: as many as clients ask for at the most.
const LINES_MAX: usize = 20_000;
const NANOS: u64 = 1_000_000_000;

fn id<T: std::str::FromStr<Err = shoal_state::NotAnId>>(text: &str) -> Result<Option<T>, Error> {
    if text.is_empty() { Ok(None) } else { Ok(Some(text.parse()?)) }
}

fn stream(fd: i32) -> Option<Stream> {
    u8::try_from(fd).ok().and_then(Stream::of_fd)
}

/// What a request names of an app; what is empty leaves all in.
struct Named<'a> {
    task: &'a str,
    function: &'a str,
    /// A class with certain parameters: narrower than `function`.
    bound: &'a str,
    call: &'a str,
    fd: i32,
    search: &'a str,
}

/// Reads what a request names of an app: three messages of the wire have the same fields for it, but for that of the stream.
macro_rules! named {
    ($request:expr, $fd:expr) => {
        Named {
            task: &$request.task_id,
            function: &$request.function_id,
            bound: &$request.parametrized_function_id,
            call: &$request.function_call_id,
            fd: $fd,
            search: &$request.search_text,
        }
    };
}

/// Selects what a request names of an app.
fn filter(state: &State, app: AppId, named: &Named<'_>) -> Result<Filter, Error> {
    let function = if named.bound.is_empty() { named.function } else { named.bound };
    Ok(Filter {
        app: Some(app),
        task: id(named.task)?,
        functions: id(function)?.map_or_else(Vec::new, |function| with_bound(state, function)),
        call: id(named.call)?,
        stream: stream(named.fd),
        search: (!named.search.is_empty()).then(|| named.search.to_owned()),
        ..Filter::default()
    })
}

/// Returns a function and those that were bound from it, whose containers are of it too.
pub(crate) fn with_bound(state: &State, function: FunctionId) -> Vec<FunctionId> {
    let bound = state.functions.iter().filter(|(_, other)| other.parent == Some(function)).map(|(id, _)| *id);
    [function].into_iter().chain(bound).collect()
}

#[expect(clippy::cast_precision_loss, reason = "the wire wants seconds as a double beside the exact nanoseconds")]
fn line(entry: &Entry) -> pb::TaskLogs {
    pb::TaskLogs {
        data: entry.data.clone(),
        timestamp: entry.timestamp_ns as f64 / NANOS as f64,
        timestamp_ns: entry.timestamp_ns,
        file_descriptor: entry.stream.fd().into(),
        function_call_id: entry.call.map(|id| id.to_string()).unwrap_or_default(),
        input_id: entry.input.map(|id| id.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

/// Puts lines of one task after another into one batch each, in order.
fn batches(entries: &[Entry], entry_id: &str) -> Vec<pb::TaskLogsBatch> {
    let runs = entries.chunk_by(|one, next| one.task == next.task && one.input == next.input);
    runs.map(|run| pb::TaskLogsBatch {
        task_id: run[0].task.to_string(),
        function_id: run[0].function.to_string(),
        input_id: run[0].input.map(|id| id.to_string()).unwrap_or_default(),
        entry_id: entry_id.to_owned(),
        items: run.iter().map(line).collect(),
        ..Default::default()
    })
    .collect()
}

/// Says whether an app will print nothing more: it was stopped, and its last container is gone.
fn over(api: &Api, app: AppId) -> bool {
    let state = api.local();
    let stopped = state.apps.get(&app).is_none_or(|app| app.stopped.is_some());
    stopped && !state.tasks.values().any(|task| task.app == app)
}

pub(super) async fn follow(
    api: &Api,
    _caller: &Caller,
    request: pb::AppGetLogsRequest,
) -> Result<tonic::codegen::BoxStream<pb::TaskLogsBatch>, Error> {
    let (app, _) = app::find(api, &request.app_id).await?;
    api.lifecycle.called(app);
    let named = named!(request, request.file_descriptor);
    let filter = Filter { input: id(&request.input_id)?, ..filter(&api.local(), app, &named)? };
    let place = request.last_entry_id.parse().unwrap_or_default();
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(STREAM_MAX);
    let (send, receive) = mpsc::channel(QUEUE);
    tokio::spawn(stream_lines(api.clone(), app, filter, place, Instant::now() + wait, send));
    Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive)))
}

async fn stream_lines(
    api: Api,
    app: AppId,
    filter: Filter,
    mut place: Place,
    until: Instant,
    send: mpsc::Sender<Result<pb::TaskLogsBatch, Status>>,
) {
    loop {
        // Asked before the read: what was printed before the end is then in the read.
        let over = over(&api, app);
        let left = until.saturating_duration_since(Instant::now());
        let wait = if over { Duration::ZERO } else { LOOK_EVERY.min(left) };
        let found = match api.joined.follow(&filter, &place, wait).await {
            Ok(found) => found,
            Err(failed) => {
                let _ = send.send(Err(failed.into())).await;
                return;
            }
        };
        place = found.place;
        for batch in batches(&found.entries, &place.to_string()) {
            if send.send(Ok(batch)).await.is_err() {
                return;
            }
        }
        if !found.entries.is_empty() && !over {
            tokio::time::sleep(GATHER).await;
        }
        if send.is_closed() {
            return;
        }
        if found.entries.is_empty() && over {
            let done = pb::TaskLogsBatch { app_done: true, entry_id: place.to_string(), ..Default::default() };
            let _ = send.send(Ok(done)).await;
            return;
        }
        if left.is_zero() {
            return;
        }
    }
}

/// Narrows a selection to a window of time.
fn within(filter: Filter, since: Option<prost_types::Timestamp>, until: Option<prost_types::Timestamp>) -> Filter {
    Filter { since_ns: nanos(since), until_ns: nanos(until), ..filter }
}

fn nanos(time: Option<prost_types::Timestamp>) -> Option<u64> {
    let time = time?;
    u64::try_from(time.seconds).ok()?.checked_mul(NANOS)?.checked_add(u64::try_from(time.nanos).ok()?)
}

/// Finds whose lines are wanted: an app, or the builds of an image, which the client reads in the same way.
async fn source(api: &Api, id: &str) -> Result<AppId, Error> {
    let (parsed, state): (AppId, _) = (id.parse()?, api.local());
    // Most ask for an app; only for others are the images gone through, each of which costs a hash.
    if state.apps.contains_key(&parsed) || state.images.keys().any(|image| images::build_log(*image).0 == parsed) {
        return Ok(parsed);
    }
    Ok(app::find(api, id).await?.0)
}

/// Buckets of one answer: more are refused.
const BUCKETS_MAX: usize = 100_000;

pub(super) async fn count(api: &Api, _caller: &Caller, request: pb::AppCountLogsRequest) -> Result<pb::AppCountLogsResponse, Error> {
    let app = source(api, &request.app_id).await?;
    let filter = within(filter(&api.local(), app, &named!(request, request.source))?, request.since, request.until);
    let bucket = u64::from(request.bucket_secs.max(1)) * NANOS;
    let counted = api.joined.count(&filter, bucket).await?;
    if counted.len() > BUCKETS_MAX {
        return Err(Error::Invalid(format!("the lines fill {} buckets, more than {BUCKETS_MAX}: ask for longer ones", counted.len())));
    }
    let buckets = counted.into_iter().map(|(at, counts)| pb::app_count_logs_response::LogBucket {
        bucket_start_at: Some(timestamp(at)),
        stdout_logs: counts.stdout,
        stderr_logs: counts.stderr,
        system_logs: counts.system,
    });
    Ok(pb::AppCountLogsResponse { app_id: request.app_id, buckets: buckets.collect() })
}

/// Turns nanoseconds since 1970 into the wire's time.
#[expect(clippy::cast_possible_wrap, reason = "the nanoseconds of a u64 end in the year 2554")]
pub(super) fn timestamp(ns: u64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: (ns / NANOS) as i64, nanos: (ns % NANOS) as i32 }
}

pub(super) async fn fetch(api: &Api, _caller: &Caller, request: pb::AppFetchLogsRequest) -> Result<pb::AppFetchLogsResponse, Error> {
    let app = source(api, &request.app_id).await?;
    let filter = within(filter(&api.local(), app, &named!(request, request.source))?, request.since, request.until);
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(LINES_MAX).min(LINES_MAX);
    let found = api.joined.fetch(&filter, limit).await?;
    Ok(pb::AppFetchLogsResponse { batches: batches(&found.entries, &found.place.to_string()) })
}
