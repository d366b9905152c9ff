//! Lines on the wire, and readers of a real store.

use std::sync::atomic::{AtomicBool, Ordering};

use shoal_state::AppId;
use shoal_worker::log::LogStore;
use tempfile::TempDir;

use super::*;

const MS: u64 = NANOS_PER_MS;

fn entry(data: &str) -> Entry {
    Entry {
        timestamp_ns: 7,
        stream: Stream::Stderr,
        app: AppId::from_random(1),
        task: TaskId::from_random(2),
        function: FunctionId::from_random(3),
        input: None,
        call: Some(CallId::from_random(4)),
        data: data.to_owned(),
    }
}

#[test]
fn an_entry_is_one_line_whatever_it_holds_and_reads_back() {
    let entry = entry("two\nlines \u{1b}[0m\n");
    let lines = encode([&entry, &entry].into_iter());
    let lines: Vec<&[u8]> = lines.strip_suffix(b"\n").unwrap().split(|byte| *byte == b'\n').collect();
    assert_eq!(lines.len(), 2);
    let LogAnswer::Line(line) = serde_json::from_slice(lines[0]).unwrap() else { panic!("not a line") };
    assert_eq!(line, LogLine::from(&entry));
    assert_eq!((line.stream.as_str(), line.input_id), ("stderr", None));
}

#[test]
fn an_end_is_told_from_a_line() {
    let line = line_of(&LogAnswer::BrokeOff(Refusal { error: "why".to_owned() }));
    assert!(matches!(serde_json::from_slice(&line).unwrap(), LogAnswer::BrokeOff(Refusal { error }) if error == "why"));
}

fn wanted(of: &str) -> LogsWanted {
    LogsWanted { of: of.to_owned(), ..LogsWanted::default() }
}

fn selected(state: &State, wanted: &LogsWanted) -> Result<Filter, String> {
    filter(state, wanted).map_err(|failure| failure.1)
}

#[test]
fn an_id_says_what_it_selects_and_a_wrong_name_nothing() {
    let state = State::default();
    let task = TaskId::from_random(9);
    assert_eq!(selected(&state, &wanted(&task.to_string())), Ok(Filter::task(task)));
    let app = AppId::from_random(9);
    assert_eq!(selected(&state, &wanted(&app.to_string())), Ok(Filter::app(app)), "what a removed app printed is found by its id");
    assert!(selected(&state, &wanted("no-such-app")).is_err_and(|error| error.contains("no-such-app")));
    assert!(!lives(&state, &Filter::app(app)));
}

#[test]
fn what_is_asked_for_besides_narrows_it_down_and_nonsense_is_named() {
    let state = State::default();
    let (app, task, call) = (AppId::from_random(9), TaskId::from_random(8), CallId::from_random(7));
    let of_app = wanted(&app.to_string());
    let narrow = LogsWanted {
        task: Some(task.to_string()),
        call: Some(call.to_string()),
        search: Some("text".to_owned()),
        stream: Some("stderr".to_owned()),
        since_ms: Some(1),
        until_ms: Some(2),
        ..of_app.clone()
    };
    let expected = Filter {
        task: Some(task),
        call: Some(call),
        search: Some("text".to_owned()),
        stream: Some(Stream::Stderr),
        since_ns: Some(MS),
        until_ns: Some(2 * MS),
        ..Filter::app(app)
    };
    assert_eq!(selected(&state, &narrow), Ok(expected));
    let wrong_stream = LogsWanted { stream: Some("stdin".to_owned()), ..of_app.clone() };
    assert!(selected(&state, &wrong_stream).is_err_and(|error| error.contains("stdin")));
    let wrong_function = LogsWanted { function: Some("nobody".to_owned()), ..of_app };
    assert!(selected(&state, &wrong_function).is_err_and(|error| error.contains("nobody")));
}

/// A store with ten lines of one task, one each millisecond.
fn ten() -> (TempDir, LogStore) {
    let dir = TempDir::new().unwrap();
    let logs = LogStore::open(dir.path()).unwrap();
    let lines: Vec<Entry> = (0..10).map(|number| Entry { timestamp_ns: number * MS, ..entry(&format!("{number}\n")) }).collect();
    logs.append_all(&lines).unwrap();
    (dir, logs)
}

async fn reader<Alive: Fn() -> bool>(logs: &LogStore, wanted: LogsWanted, alive: Alive) -> Reader<Alive> {
    let since_ns = wanted.since_ms.map(|ms| ms * MS);
    let filter = Filter { since_ns, ..Filter::task(TaskId::from_random(2)) };
    Reader::new(JoinedLogs::alone(logs.clone()), filter, &wanted, alive, CancellationToken::new())
        .await
        .unwrap_or_else(|failure| panic!("{}", failure.1))
}

/// Reads one piece; its lines together. None at the end.
async fn piece<Alive: Fn() -> bool>(reader: &mut Reader<Alive>) -> Option<String> {
    let next = tokio::time::timeout(Duration::from_secs(20), reader.next()).await.expect("a piece within 20 s");
    let text = |line: &[u8]| match serde_json::from_slice(line).unwrap() {
        LogAnswer::Line(line) => line.data,
        LogAnswer::BrokeOff(refusal) => refusal.error,
    };
    next.map(|bytes| bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(text).collect())
}

async fn all<Alive: Fn() -> bool>(reader: &mut Reader<Alive>) -> String {
    let mut read = String::new();
    while let Some(more) = piece(reader).await {
        read.push_str(&more);
    }
    read
}

#[tokio::test]
async fn what_is_kept_is_read_once_and_bounded_by_number_and_time() {
    let (_dir, logs) = ten();
    let everything = LogsWanted::default();
    let newest = LogsWanted { tail: Some(3), ..everything.clone() };
    let late = LogsWanted { since_ms: Some(8), ..everything.clone() };
    let newest_of_late = LogsWanted { tail: Some(5), ..late.clone() };
    let read = async |wanted| all(&mut reader(&logs, wanted, || true).await).await;
    assert_eq!(read(everything).await, "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    assert_eq!(read(newest).await, "7\n8\n9\n");
    assert_eq!(read(late).await, "8\n9\n");
    assert_eq!(read(newest_of_late).await, "8\n9\n");
}

#[tokio::test]
async fn reading_ends_where_the_store_ended_at_first_however_much_is_added() {
    let (_dir, logs) = ten();
    let mut reader = reader(&logs, LogsWanted { tail: Some(2), ..LogsWanted::default() }, || true).await;
    logs.append(&entry("later\n")).unwrap();
    assert_eq!(all(&mut reader).await, "8\n9\n");
}

#[tokio::test]
async fn a_follower_hears_what_comes_and_leaves_after_the_last_line() {
    let (_dir, logs) = ten();
    let alive = AtomicBool::new(true);
    let wanted = LogsWanted { tail: Some(1), follow: true, ..LogsWanted::default() };
    let mut reader = reader(&logs, wanted, || alive.load(Ordering::SeqCst)).await;
    assert_eq!(piece(&mut reader).await.as_deref(), Some("9\n"));
    assert_eq!(piece(&mut reader).await.as_deref(), Some(""), "an empty line while there is nothing");
    logs.append(&entry("later\n")).unwrap();
    assert_eq!(piece(&mut reader).await.as_deref(), Some("later\n"));
    logs.append(&entry("last\n")).unwrap();
    alive.store(false, Ordering::SeqCst);
    assert_eq!(all(&mut reader).await, "last\n");
}

#[tokio::test]
async fn a_node_that_stops_says_so_to_followers() {
    let (_dir, logs) = ten();
    let mut reader = reader(&logs, LogsWanted { follow: true, ..LogsWanted::default() }, || true).await;
    assert!(piece(&mut reader).await.is_some_and(|lines| lines.starts_with("0\n")));
    reader.stop.cancel();
    assert_eq!(piece(&mut reader).await.as_deref(), Some("the node stops"));
    assert_eq!(piece(&mut reader).await, None);
}
