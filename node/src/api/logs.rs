//! What containers printed, as clients read it: live, or a window of the past.

use std::time::{Duration, Instant};

use shoal_proto::modal_client as pb;
use shoal_state::{AppId, FunctionId, State};
use shoal_worker::log::{Entry, FOLLOW_ENTRIES_MAX, Filter, Stream};
use tokio::sync::mpsc;
use tonic::Status;

use super::error::Error;
use super::joined_logs::Place;
use super::times::{self, NANOS};
use super::typing::Follower;
use super::{Api, Caller, app};
use crate::images;

/// How long one stream may last, whatever the client asks.
const STREAM_MAX: Duration = Duration::from_secs(55);
/// How often a stream without lines looks whether its app has ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long lines are gathered before they are sent: a program that prints much would cost its client a message a line. Where a batch
/// is full, more lines wait already.
const GATHER: Duration = Duration::from_millis(10);
/// Where a batch has more lines, they may be told together: see [`Told`].
const TOLD_APART_MAX: usize = 100;
/// Batches that may wait for the client.
const QUEUE: usize = 16;
/// Lines in one answer: as many as clients ask for at the most.
const LINES_MAX: usize = 20_000;

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
fn piece(lines: &[Entry]) -> pb::TaskLogs {
    let entry = &lines[0];
    pb::TaskLogs {
        data: lines.iter().map(|line| line.data.as_str()).collect(),
        timestamp: entry.timestamp_ns as f64 / NANOS as f64,
        timestamp_ns: entry.timestamp_ns,
        file_descriptor: entry.stream.fd().into(),
        function_call_id: entry.call.map(|id| id.to_string()).unwrap_or_default(),
        input_id: entry.input.map(|id| id.to_string()).unwrap_or_default(),
        ..Default::default()
    }
}

/// How lines are told to a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// Each by itself.
    Apart,
    /// Those of one stream and second as one. It costs a client as much to show a piece as a line, and times it shows to the second: so
    /// one that runs an app keeps up with what that prints, of which it shows at the end only what it reads within some seconds.
    Together,
}

/// Puts lines of one task after another into one batch each, in order.
fn batches(entries: &[Entry], entry_id: &str, told: Told) -> Vec<pb::TaskLogsBatch> {
    let of = |entry: &Entry| (entry.stream, entry.call, entry.timestamp_ns / NANOS);
    let items = |run: &[Entry]| run.chunk_by(|one, next| told == Told::Together && of(one) == of(next)).map(piece).collect();
    let runs = entries.chunk_by(|one, next| one.task == next.task && one.input == next.input);
    runs.map(|run| pb::TaskLogsBatch {
        task_id: run[0].task.to_string(),
        function_id: run[0].function.to_string(),
        input_id: run[0].input.map(|id| id.to_string()).unwrap_or_default(),
        entry_id: entry_id.to_owned(),
        items: items(run),
        ..Default::default()
    })
    .collect()
}

/// Says whether an app is run by a client that shows what it prints, and is no deployment.
fn lives_by_its_client(state: &State, app: AppId) -> bool {
    state.apps.get(&app).is_some_and(|app| app.deployments.is_empty())
}

/// Says whether an app will print nothing more: it was stopped, and its last container is gone.
fn over(api: &Api, app: AppId) -> bool {
    let state = api.local();
    let stopped = state.apps.get(&app).is_none_or(|app| app.stopped.is_some());
    stopped && !state.tasks.values().any(|task| task.app == app)
}

pub(super) async fn follow(
    api: &Api,
    caller: &Caller,
    request: pb::AppGetLogsRequest,
) -> Result<tonic::codegen::BoxStream<pb::TaskLogsBatch>, Error> {
    let (app, _) = app::find(api, &request.app_id).await?;
    api.lifecycle.called(app);
    let named = named!(request, request.file_descriptor);
    let filter = Filter { input: id(&request.input_id)?, ..filter(&api.local(), app, &named)? };
    // Who names nothing of an app that has a client is that client. Others may look for a text, which they do in each piece.
    let is_client = filter == Filter::app(app) && lives_by_its_client(&api.local(), app);
    let client = is_client.then_some(Follower { app, connection: caller.connection });
    let place = request.last_entry_id.parse().unwrap_or_default();
    let wait = Duration::try_from_secs_f32(request.timeout.max(0.0)).unwrap_or_default().min(STREAM_MAX);
    let (send, receive) = mpsc::channel(QUEUE);
    tokio::spawn(stream_lines(api.clone(), app, (filter, client), place, Instant::now() + wait, send));
    Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receive)))
}

/// Puts lines into batches. Where a program asks for somebody who types, the client that runs the app is told of that; others see the
/// line.
async fn told(api: &Api, client: Option<Follower>, entries: &[Entry], entry_id: &str, told: Told) -> Vec<pb::TaskLogsBatch> {
    let mut all = Vec::new();
    for run in entries.chunk_by(|one, next| !one.asks_for_a_terminal() && !next.asks_for_a_terminal()) {
        match client.filter(|client| run[0].asks_for_a_terminal() && client.runs_the_app(api)) {
            Some(client) => all.extend(client.asked(api, &run[0], entry_id).await),
            None => all.extend(batches(run, entry_id, told)),
        }
    }
    all
}

async fn stream_lines(
    api: Api,
    app: AppId,
    (filter, client): (Filter, Option<Follower>),
    mut place: Place,
    until: Instant,
    send: mpsc::Sender<Result<pb::TaskLogsBatch, Status>>,
) {
    loop {
        // Asked before the read: what was printed before the end is then in the read.
        let over = over(&api, app);
        let ended = client.and_then(|client| Some((client, client.ended(&api)?)));
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
        let together = if client.is_some() && found.entries.len() > TOLD_APART_MAX { Told::Together } else { Told::Apart };
        let mut now = told(&api, client, &found.entries, &place.to_string(), together).await;
        if found.entries.is_empty() {
            // All that the container printed was told.
            now.extend(ended.into_iter().flat_map(|(client, task)| client.ends(&api, task, &place.to_string())));
        }
        for batch in now {
            if send.send(Ok(batch)).await.is_err() {
                return;
            }
        }
        if (1..FOLLOW_ENTRIES_MAX).contains(&found.entries.len()) && !over {
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
    Filter { since_ns: since.map(times::to_ns), until_ns: until.map(times::to_ns), ..filter }
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
        bucket_start_at: Some(times::of_ns(at)),
        stdout_logs: counts.stdout,
        stderr_logs: counts.stderr,
        system_logs: counts.system,
    });
    Ok(pb::AppCountLogsResponse { app_id: request.app_id, buckets: buckets.collect() })
}

pub(super) async fn fetch(api: &Api, _caller: &Caller, request: pb::AppFetchLogsRequest) -> Result<pb::AppFetchLogsResponse, Error> {
    let app = source(api, &request.app_id).await?;
    let filter = within(filter(&api.local(), app, &named!(request, request.source))?, request.since, request.until);
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(LINES_MAX).min(LINES_MAX);
    let found = api.joined.fetch(&filter, limit).await?;
    Ok(pb::AppFetchLogsResponse { batches: batches(&found.entries, &found.place.to_string(), Told::Apart) })
}

#[cfg(test)]
mod tests {
    use shoal_state::{CallId, TaskId};

    use super::*;

    fn entry(at_ns: u64, call: u128, stream: Stream, data: &str) -> Entry {
        Entry {
            timestamp_ns: at_ns,
            stream,
            app: AppId::from_random(1),
            task: TaskId::from_random(1),
            function: FunctionId::from_random(1),
            input: None,
            call: Some(CallId::from_random(call)),
            data: data.to_owned(),
        }
    }

    #[test]
    fn lines_are_told_together_within_a_stream_a_call_and_a_second() {
        let out = Stream::Stdout;
        let entries = [
            entry(5, 1, out, "a\n"),
            entry(6, 1, out, "b\n"),
            entry(7, 1, Stream::Stderr, "c\n"),
            entry(8, 1, out, "d\n"),
            entry(9, 2, out, "e\n"),
            entry(NANOS + 1, 2, out, "f"),
            entry(NANOS + 2, 2, out, "g\n"),
        ];
        let told = |told| {
            let batches = batches(&entries, "1-2", told);
            let items = batches.iter().flat_map(|batch| &batch.items).map(|item| (item.data.clone(), item.timestamp_ns));
            items.collect::<Vec<_>>()
        };
        let expected = [("a\nb\n", 5), ("c\n", 7), ("d\n", 8), ("e\n", 9), ("fg\n", NANOS + 1)];
        assert_eq!(told(Told::Together), expected.map(|(data, at)| (data.to_owned(), at)));
        assert_eq!(told(Told::Apart).len(), entries.len());
    }
}
