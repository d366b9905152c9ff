//! What containers printed, for `shoal logs`: one JSON object a line, as they come.
//!
//! Without a number of lines the stores of all nodes are read from their oldest lines on, a piece at a time, so that no answer has
//! to fit into memory. While a follower waits, empty lines tell it that the node is alive.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use serde::{Deserialize, Serialize};
use shoal_state::model::Function;
use shoal_state::{AppId, CallId, FunctionId, State, TaskId};
use shoal_worker::log::{Entry, Filter, Stream};
use tokio_util::sync::CancellationToken;

use super::undecided::latest_or_known;
use super::{Failure, Refusal, check_environment, find_app};
use crate::api::Api;
use crate::api::joined_logs::{JoinedLogs, Place, Reading};
use crate::api::logs::with_bound;

/// How often a follower without lines looks whether what it follows has ended, and hears of the node.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The most lines that may be asked for by number: they are collected before the first is sent.
pub(crate) const TAIL_MAX: usize = 100_000;
const NANOS_PER_MS: u64 = 1_000_000;

/// What `shoal logs` asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct LogsWanted {
    /// The id of an app, task, function or call, or the name an app is deployed under.
    pub(crate) of: String,
    /// The environment of the name; empty = the default one.
    pub(crate) environment: String,
    /// Only lines of this function: its id, or its tag in the app.
    #[serde(default)]
    pub(crate) function: Option<String>,
    /// Only lines of this call.
    #[serde(default)]
    pub(crate) call: Option<String>,
    /// Only lines of this task.
    #[serde(default)]
    pub(crate) task: Option<String>,
    /// Only lines with this text in them.
    #[serde(default)]
    pub(crate) search: Option<String>,
    /// Only lines of this stream: `stdout`, `stderr` or `system`.
    #[serde(default)]
    pub(crate) stream: Option<String>,
    /// Only lines from then on, in milliseconds since 1970.
    pub(crate) since_ms: Option<u64>,
    /// Only lines before then, in milliseconds since 1970.
    #[serde(default)]
    pub(crate) until_ms: Option<u64>,
    /// Only the newest so many; at most [`TAIL_MAX`].
    pub(crate) tail: Option<usize>,
    /// Go on with what is printed from now on, until what is followed has ended.
    pub(crate) follow: bool,
}

/// A line of what a container printed, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogLine {
    /// When, in nanoseconds since 1970.
    pub(crate) timestamp_ns: u64,
    /// `stdout`, `stderr`, or `system` for what Shoal itself says.
    pub(crate) stream: String,
    /// The app of the task.
    pub(crate) app_id: String,
    /// The task that printed it.
    pub(crate) task_id: String,
    /// The function of the task.
    pub(crate) function_id: String,
    /// The input that the task had then, when there was exactly one.
    pub(crate) input_id: Option<String>,
    /// The call of that input.
    pub(crate) call_id: Option<String>,
    /// The text; with its newline when the line ends here.
    pub(crate) data: String,
}

/// One object of the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum LogAnswer {
    /// A line.
    Line(LogLine),
    /// Why there is no more.
    BrokeOff(Refusal),
}

fn name_of(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
        Stream::System => "system",
    }
}

impl From<&Entry> for LogLine {
    fn from(entry: &Entry) -> Self {
        Self {
            timestamp_ns: entry.timestamp_ns,
            stream: name_of(entry.stream).to_owned(),
            app_id: entry.app.to_string(),
            task_id: entry.task.to_string(),
            function_id: entry.function.to_string(),
            input_id: entry.input.map(|id| id.to_string()),
            call_id: entry.call.map(|id| id.to_string()),
            data: entry.data.clone(),
        }
    }
}

/// Answers with lines until there are no more, or, for a follower, until what it follows has ended.
pub(super) async fn logs(
    Shared(api): Shared<Api>,
    Extension(stop): Extension<CancellationToken>,
    Json(wanted): Json<LogsWanted>,
) -> Result<Response, Failure> {
    let state = latest_or_known(&api).await;
    check_environment(&state, &wanted.environment)?;
    let mut filter = filter(&state, &wanted)?;
    if let Some(call) = filter.call.filter(|_| filter.functions.is_empty())
        && let Ok(info) = api.calls.info(call).await
    {
        // Lines of other functions need then not be read.
        filter.functions = vec![info.open.pool];
    }
    if !lives(&state, &filter) && api.joined.fetch(&unbounded(&filter), 1).await?.entries.is_empty() {
        return Err(absent(&wanted.of));
    }
    // What a call's function prints is never known to be all: who follows a call decides when to leave.
    let alive = {
        let (api, filter) = (api.clone(), filter.clone());
        move || filter.call.is_some() || lives(&api.local(), &filter)
    };
    let reader = Reader::new(api.joined, filter, &wanted, alive, stop).await?;
    let lines = stream::unfold(reader, |mut reader| async move { Some((Ok::<_, std::convert::Infallible>(reader.next().await?), reader)) });
    Ok(([(header::CONTENT_TYPE, "application/jsonl")], Body::from_stream(lines)).into_response())
}

fn absent(of: &str) -> Failure {
    Failure(
        StatusCode::NOT_FOUND,
        format!(
            "cannot show the logs of {of:?}: no app, task, function or call has that id or name, and nothing it printed is kept; `shoal app list` and `shoal task list` show what there is"
        ),
    )
}

/// The same lines, of any time and with any text.
fn unbounded(filter: &Filter) -> Filter {
    Filter { since_ns: None, until_ns: None, search: None, stream: None, ..filter.clone() }
}

/// Says which lines are meant.
fn filter(state: &State, wanted: &LogsWanted) -> Result<Filter, Failure> {
    let mut filter = subject(state, &wanted.of, &wanted.environment).ok_or_else(|| absent(&wanted.of))?;
    if let Some(task) = &wanted.task {
        filter.task = Some(task.parse()?);
    }
    if let Some(call) = &wanted.call {
        filter.call = Some(call.parse()?);
    }
    if let Some(function) = &wanted.function {
        filter.functions = functions(state, filter.app, function)?;
    }
    filter.stream = wanted.stream.as_deref().map(stream_named).transpose()?;
    filter.search = wanted.search.clone().filter(|text| !text.is_empty());
    let nanos = |ms: u64| ms.saturating_mul(NANOS_PER_MS);
    filter.since_ns = wanted.since_ms.map(nanos);
    filter.until_ns = wanted.until_ms.map(nanos);
    Ok(filter)
}

fn stream_named(name: &str) -> Result<Stream, Failure> {
    let all = [Stream::Stdout, Stream::Stderr, Stream::System];
    let wrong = || Failure(StatusCode::BAD_REQUEST, format!("{name:?} is no stream: there are stdout, stderr and system"));
    all.into_iter().find(|stream| name_of(*stream) == name).ok_or_else(wrong)
}

/// Says which lines an id means, or the name of a deployed app.
fn subject(state: &State, of: &str, environment: &str) -> Option<Filter> {
    if let Ok(task) = of.parse::<TaskId>() {
        return Some(Filter { app: state.tasks.get(&task).map(|task| task.app), ..Filter::task(task) });
    }
    if let Ok(function) = of.parse::<FunctionId>() {
        let app = state.functions.get(&function).map(|function| function.app);
        return Some(Filter { app, functions: with_bound(state, function), ..Filter::default() });
    }
    if let Ok(call) = of.parse::<CallId>() {
        return Some(Filter { call: Some(call), ..Filter::default() });
    }
    find_app(state, of, environment).or_else(|| of.parse().ok()).map(Filter::app)
}

/// Finds functions by an id, or by the tag that one has in an app; a class has one for all its methods.
fn functions(state: &State, app: Option<AppId>, which: &str) -> Result<Vec<FunctionId>, Failure> {
    if let Ok(function) = which.parse::<FunctionId>() {
        return Ok(with_bound(state, function));
    }
    let class = format!("{which}.*");
    let tagged = |function: &Function| Some(function.app) == app && (function.tag == which || function.tag == class);
    let found: Vec<FunctionId> = state.functions.iter().filter(|(_, function)| tagged(function)).map(|(id, _)| *id).collect();
    if found.is_empty() {
        return Err(Failure(StatusCode::NOT_FOUND, format!("the app has no function {which:?}; `shoal explain APP` shows those it has")));
    }
    Ok(found)
}

/// Says whether the app or task that is meant may still print.
fn lives(state: &State, filter: &Filter) -> bool {
    if let Some(task) = filter.task {
        return state.tasks.contains_key(&task);
    }
    let app = filter.app.or_else(|| state.functions.get(filter.functions.first()?).map(|function| function.app));
    let stands = app.and_then(|app| state.apps.get(&app)).is_some_and(|app| app.stopped.is_none());
    stands || state.tasks.values().any(|task| Some(task.app) == app)
}

/// Reads on, piece by piece.
struct Reader<Alive> {
    logs: JoinedLogs,
    filter: Filter,
    /// What was collected ahead.
    first: Vec<Entry>,
    /// What there was at first, until it is read.
    reading: Option<Reading>,
    place: Place,
    follow: bool,
    /// Says whether what is followed may still print.
    alive: Alive,
    stop: CancellationToken,
    ended: bool,
}

impl<Alive: Fn() -> bool> Reader<Alive> {
    async fn new(logs: JoinedLogs, filter: Filter, wanted: &LogsWanted, alive: Alive, stop: CancellationToken) -> Result<Self, Failure> {
        let (first, place, reading) = match wanted.tail {
            Some(tail) => {
                let found = logs.fetch(&filter, tail.min(TAIL_MAX)).await?;
                (found.entries, found.place, None)
            }
            None => (Vec::new(), Place::default(), Some(logs.read(filter.clone()).await)),
        };
        Ok(Self { logs, filter, first, reading, place, follow: wanted.follow, alive, stop, ended: false })
    }

    /// Returns the next lines, or an empty line after a while without any; none when there will be no more.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.first.is_empty() {
            return Some(encode(std::mem::take(&mut self.first).iter()));
        }
        if self.ended {
            return None;
        }
        if let Some(reading) = &mut self.reading {
            let read = tokio::select! {
                read = reading.next() => read,
                () = self.stop.cancelled() => return self.break_off("the node stops".to_owned()),
            };
            match read {
                Ok(Some(entries)) => return Some(encode(entries.iter())),
                Ok(None) => {
                    self.place = reading.place();
                    self.reading = None;
                }
                Err(error) => return self.break_off(error.to_string()),
            }
        }
        if !self.follow {
            return None;
        }
        // Asked before the read: what was printed before the end is then in the read.
        let last = !(self.alive)();
        let wait = if last { Duration::ZERO } else { LOOK_EVERY };
        let found = tokio::select! {
            found = self.logs.follow(&self.filter, &self.place, wait) => found,
            () = self.stop.cancelled() => return self.break_off("the node stops".to_owned()),
        };
        match found {
            Ok(found) => {
                self.place = found.place;
                self.ended = last && found.entries.is_empty();
                Some(encode(found.entries.iter()))
            }
            Err(error) => self.break_off(error.to_string()),
        }
    }

    fn break_off(&mut self, error: String) -> Option<Bytes> {
        self.ended = true;
        Some(line_of(&LogAnswer::BrokeOff(Refusal { error })).into())
    }
}

fn line_of(answer: &LogAnswer) -> Vec<u8> {
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Writes entries as lines; an empty line when there are none.
fn encode<'a>(entries: impl Iterator<Item = &'a Entry>) -> Bytes {
    let lines: Vec<u8> = entries.flat_map(|entry| line_of(&LogAnswer::Line(entry.into()))).collect();
    if lines.is_empty() { Bytes::from_static(b"\n") } else { lines.into() }
}

#[cfg(test)]
mod tests;
