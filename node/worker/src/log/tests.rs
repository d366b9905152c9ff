//! The store on a real folder.

use std::fs;
use std::time::{Duration, Instant};

use shoal_state::{AppId, CallId, FunctionId, InputId, TaskId};

use super::{
    Batch, Cursor, Entry, FETCH_BYTES_MAX, FOLLOW_BYTES_MAX, FOLLOW_ENTRIES_MAX, Filter, LINE_BYTES_MAX, LogStore, Options, Stream,
};

const SOON: Duration = Duration::from_secs(10);

fn line(time: u64, app: u128, data: &str) -> Entry {
    Entry {
        timestamp_ns: time,
        stream: Stream::Stdout,
        app: AppId::from_random(app),
        task: TaskId::from_random(app * 10),
        function: FunctionId::from_random(app * 100),
        input: None,
        call: None,
        data: data.into(),
    }
}

fn small() -> Options {
    Options { file_bytes: 1000, retain_bytes: 5000, ..Options::default() }
}

fn texts(batch: &Batch) -> Vec<&str> {
    batch.entries.iter().map(|entry| entry.data.as_str()).collect()
}

fn of_app(app: u128) -> Filter {
    Filter::app(AppId::from_random(app))
}

#[test]
fn a_fetch_gives_the_newest_lines_oldest_first_across_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), Options { file_bytes: 500, ..Options::default() }).unwrap();
    for time in 1..=40 {
        store.append(&line(time, 1 + u128::from(time) % 2, &format!("line {time}\n"))).unwrap();
    }
    let batch = store.fetch(&of_app(1), 3).unwrap();
    assert_eq!(texts(&batch), ["line 36\n", "line 38\n", "line 40\n"]);
    let batch = store.fetch(&Filter { since_ns: Some(4), until_ns: Some(9), ..of_app(1) }, 10).unwrap();
    assert_eq!(texts(&batch), ["line 4\n", "line 6\n", "line 8\n"], "from since up to but without until");
    assert_eq!(store.fetch(&Filter::default(), 1000).unwrap().entries.len(), 40);
    assert_eq!(store.fetch(&Filter::default(), 0).unwrap().entries.len(), 0);
}

#[test]
fn counts_say_how_much_a_fetch_would_find_and_when() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), Options { file_bytes: 300, ..Options::default() }).unwrap();
    for time in 1..=25 {
        let stream = if time % 5 == 0 { Stream::Stderr } else { Stream::Stdout };
        store.append(&Entry { stream, ..line(time, 1, "x\n") }).unwrap();
    }
    store.append(&line(12, 2, "another app\n")).unwrap();
    let counted = store.count(&Filter { since_ns: Some(3), until_ns: Some(21), ..of_app(1) }, 10).unwrap();
    let rows: Vec<_> = counted.into_iter().map(|(at, counts)| (at, counts.stdout, counts.stderr, counts.system)).collect();
    assert_eq!(rows, [(0, 6, 1, 0), (10, 8, 2, 0), (20, 0, 1, 0)]);
    assert!(store.count(&of_app(3), 10).unwrap().is_empty());
}

#[test]
fn every_part_of_a_filter_counts() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    let tagged = Entry {
        stream: Stream::Stderr,
        input: Some(InputId::from_random(5)),
        call: Some(CallId::from_random(6)),
        ..line(2, 1, "tagged: größer\n")
    };
    store.append_all(&[line(1, 1, "plain\n"), tagged.clone(), line(3, 2, "other\n")]).unwrap();
    let all = Filter::default();
    let filters = [
        Filter { stream: Some(Stream::Stderr), ..all.clone() },
        Filter { input: tagged.input, ..all.clone() },
        Filter { call: tagged.call, ..all.clone() },
        Filter { search: Some("größ".into()), ..all.clone() },
    ];
    for filter in filters {
        assert_eq!(store.fetch(&filter, 10).unwrap().entries, std::slice::from_ref(&tagged), "{filter:?}");
        let none = Filter { app: Some(AppId::from_random(2)), ..filter };
        assert_eq!(store.fetch(&none, 10).unwrap().entries, []);
    }
    assert_eq!(texts(&store.fetch(&Filter::task(TaskId::from_random(20)), 10).unwrap()), ["other\n"]);
    let functions = |ids: &[u128]| Filter { functions: ids.iter().copied().map(FunctionId::from_random).collect(), ..all.clone() };
    assert_eq!(texts(&store.fetch(&functions(&[200]), 10).unwrap()), ["other\n"]);
    assert_eq!(store.fetch(&functions(&[100, 200]), 10).unwrap().entries.len(), 3, "of any of them");
    let late = Filter { since_ns: Some(2), until_ns: Some(3), ..all };
    assert_eq!(texts(&store.read_after(&late, Cursor::START).unwrap()), ["tagged: größer\n"]);
}

#[test]
fn a_restart_keeps_lines_and_cursors_and_cuts_a_torn_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    store.append(&line(1, 1, "one\n")).unwrap();
    let middle: Cursor = store.end().to_string().parse().unwrap();
    store.append(&line(2, 1, "two\n")).unwrap();
    drop(store);
    let file = dir.path().join("0000000000000001.log");
    let mut bytes = fs::read(&file).unwrap();
    let whole = bytes.len();
    bytes.extend_from_slice(&[90, 0, 0, 0, 1, 2, 3]);
    fs::write(&file, bytes).unwrap();

    let store = LogStore::open(dir.path()).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().len(), whole as u64);
    store.append(&line(3, 1, "three\n")).unwrap();
    assert_eq!(texts(&store.fetch(&of_app(1), 10).unwrap()), ["one\n", "two\n", "three\n"]);
    assert_eq!(texts(&store.read_after(&of_app(1), middle).unwrap()), ["two\n", "three\n"]);
    assert_eq!(store.read_after(&of_app(1), store.end()).unwrap().entries, []);
}

/// A store of two files, as a power cut may leave it: the end of the first one is zeros, and `index` stands beside it.
fn after_a_power_cut(index: impl Fn(Vec<u8>) -> Vec<u8>) -> (tempfile::TempDir, LogStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), small()).unwrap();
    (1..=12).for_each(|time| store.append(&line(time, 1, &format!("line {time}\n"))).unwrap());
    assert_eq!(store.end().to_string().split('-').next(), Some("2"), "the first file is full");
    drop(store);
    let (log, index_file) = (dir.path().join("0000000000000001.log"), dir.path().join("0000000000000001.index"));
    let mut bytes = fs::read(&log).unwrap();
    bytes[500..].fill(0);
    fs::write(&log, bytes).unwrap();
    fs::write(&index_file, index(fs::read(&index_file).unwrap())).unwrap();
    let store = LogStore::open_with(dir.path(), small()).unwrap();
    (dir, store)
}

#[test]
fn an_index_that_may_be_of_a_lost_file_is_not_believed() {
    let torn = |mut index: Vec<u8>| {
        index.pop();
        index
    };
    let of_an_earlier_version = |index: Vec<u8>| index[4..].to_vec();
    for index in [torn as fn(Vec<u8>) -> Vec<u8>, of_an_earlier_version] {
        let (dir, store) = after_a_power_cut(index);
        let found = store.fetch(&of_app(1), 100).unwrap();
        assert_eq!(texts(&found)[..4], ["line 1\n", "line 2\n", "line 3\n", "line 4\n"]);
        let whole: u64 = fs::read_dir(dir.path())
            .unwrap()
            .map(Result::unwrap)
            .filter(|item| item.path().extension().unwrap() == "log")
            .map(|item| item.metadata().unwrap().len())
            .sum();
        assert_eq!(store.bytes(), whole, "what is lost is not counted");
        assert!(fs::metadata(dir.path().join("0000000000000001.log")).unwrap().len() <= 500);
    }
    // Written after the file was synced: this one is known to be right, and the file is not read for it.
    let (_dir, store) = after_a_power_cut(|index| index);
    assert!(store.bytes() > 1000);
}

#[test]
fn an_answer_is_bounded_in_bytes_and_says_what_it_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    let long = "x".repeat(LINE_BYTES_MAX);
    let total = FETCH_BYTES_MAX / LINE_BYTES_MAX + 50;
    (1..=total as u64).for_each(|time| store.append(&line(time, 1, &long)).unwrap());
    let found = store.fetch(&of_app(1), 20_000).unwrap().entries;
    assert!(found[0].stream == Stream::System && found[0].data.contains("older lines of this time are left out"), "{}", found[0].data);
    let bytes: usize = found.iter().map(|entry| entry.data.len()).sum();
    assert!((FETCH_BYTES_MAX - 2 * LINE_BYTES_MAX..=FETCH_BYTES_MAX).contains(&bytes), "{bytes}");
    assert_eq!(found.last().unwrap().timestamp_ns, total as u64);
    assert_eq!(store.fetch(&of_app(1), 3).unwrap().entries.len(), 3);

    let (mut cursor, mut seen) = (Cursor::START, 0);
    while seen < total {
        let batch = store.read_after(&of_app(1), cursor).unwrap();
        let bytes: usize = batch.entries.iter().map(|entry| entry.data.len()).sum();
        assert!((1..=FOLLOW_BYTES_MAX + LINE_BYTES_MAX).contains(&bytes), "{bytes}");
        (seen, cursor) = (seen + batch.entries.len(), batch.cursor);
    }
}

#[test]
fn a_damaged_record_hides_its_file_not_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), Options { file_bytes: 1, ..Options::default() }).unwrap();
    ["one\n", "two\n", "three\n"].iter().zip(1..).for_each(|(text, time)| store.append(&line(time, 1, text)).unwrap());
    let file = dir.path().join("0000000000000002.log");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(texts(&store.fetch(&of_app(1), 10).unwrap()), ["one\n", "three\n"]);
    assert_eq!(texts(&store.read_after(&of_app(1), Cursor::START).unwrap()), ["one\n", "three\n"]);
}

#[test]
fn the_store_is_bounded_and_says_what_an_app_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), small()).unwrap();
    let start = store.end();
    (1..=200).for_each(|time| store.append(&line(time, 1, "0123456789\n")).unwrap());
    store.append(&line(300, 2, "calm\n")).unwrap();
    let on_disk: u64 = fs::read_dir(dir.path()).unwrap().map(|item| item.unwrap().metadata().unwrap().len()).sum();
    assert!(on_disk < 8000, "{on_disk} bytes");
    for store in [store.clone(), LogStore::open_with(dir.path(), small()).unwrap()] {
        let batch = store.fetch(&of_app(1), 1000).unwrap();
        let kept = batch.entries.len() - 1;
        assert_eq!(texts(&batch)[0], dropped_line(200 - kept));
        assert_eq!(batch.entries[0].stream, Stream::System);
        assert_eq!(texts(&store.fetch(&of_app(1), 2).unwrap()), ["0123456789\n"; 2], "not in place of a line");
        assert_eq!(texts(&store.fetch(&of_app(2), 9).unwrap()), ["calm\n"], "who lost nothing is told nothing");
        let after = store.read_after(&of_app(1), start).unwrap();
        assert_eq!(texts(&after)[0], dropped_line(200 - kept), "who reads on is told too");
        assert_eq!(after.entries.len(), kept + 1, "an old cursor goes on at the oldest line");
        assert_eq!(store.read_after(&of_app(1), after.cursor).unwrap().entries, [], "and is told once");
        let errors = Filter { stream: Some(Stream::Stderr), ..of_app(1) };
        assert_eq!(store.read_after(&errors, start).unwrap().entries, [], "who asks for other lines is not");
    }
}

fn dropped_line(lines: usize) -> String {
    format!("[{lines} older lines of this app were dropped: a node keeps 0 MiB of logs, and none for more than 30 days]\n")
}

#[test]
fn what_is_too_old_goes_even_when_nobody_prints_any_more() {
    const DAY: u64 = 24 * 3600 * 1_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), Options { retain: Duration::from_secs(3 * 24 * 3600), ..Options::default() }).unwrap();
    for day in 0..5 {
        store.append(&line(day * DAY + 1, 1, &format!("day {day}\n"))).unwrap();
        store.append(&line(day * DAY + 2, 2, "another\n")).unwrap();
        store.tidy(day * DAY + DAY + 2).unwrap();
    }
    let kept = |store: &LogStore| store.fetch(&of_app(1), 100).unwrap();
    assert!(texts(&kept(&store))[0].starts_with("[2 older lines of this app were dropped"), "{:?}", texts(&kept(&store)));
    assert_eq!(texts(&kept(&store))[1..], ["day 2\n", "day 3\n", "day 4\n"]);
    store.tidy(7 * DAY).unwrap();
    assert_eq!(texts(&kept(&store))[1..], ["day 4\n"], "a file goes when its newest line is too old");
    store.tidy(9 * DAY).unwrap();
    assert_eq!(kept(&store).entries.len(), 1, "all are gone but the line that says so");
    assert!(texts(&kept(&store))[0].starts_with("[5 older lines"));
    drop(store);
    let on_disk = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(on_disk, 2, "an empty file to write to, and what was dropped");
}

#[test]
fn the_newest_lines_of_a_quiet_app_are_found_without_reading_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    let loud = vec![line(1, 1, &"x".repeat(1000)); 100];
    for number in 0..200 {
        store.append_all(&loud).unwrap();
        if number % 20 == 10 {
            store.append(&line(number, 2, &format!("calm {number}\n"))).unwrap();
        }
    }
    // Whatever has no line of the quiet app is overwritten: who reads it finds damage, and loses what comes after it.
    let quiet = |store: &LogStore| store.fetch(&of_app(2), 3).unwrap();
    let before = texts(&quiet(&store)).iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(before, ["calm 150\n", "calm 170\n", "calm 190\n"]);
    for item in fs::read_dir(dir.path()).unwrap() {
        let path = item.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "log") {
            let mut bytes = fs::read(&path).unwrap();
            let calm: Vec<usize> = bytes.windows(5).enumerate().filter(|(_, text)| text == b"calm ").map(|(at, _)| at).collect();
            let near = |at: usize| calm.iter().any(|calm| calm.abs_diff(at) < 200 << 10);
            (0..bytes.len()).filter(|at| !near(*at)).collect::<Vec<_>>().into_iter().for_each(|at| bytes[at] = 0);
            fs::write(&path, bytes).unwrap();
        }
    }
    assert_eq!(texts(&quiet(&store)), before);
    let start = store.read_after(&of_app(2), Cursor::START).unwrap();
    assert_eq!(start.entries.len(), 10, "a follower from the beginning reads no more than that either");
    assert_eq!(store.count(&of_app(2), 1000).unwrap()[&0].stdout, 10);
}

#[tokio::test]
async fn a_follower_is_woken_by_its_own_lines() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    let (reader, begin) = (store.clone(), store.end());
    let following = tokio::spawn(async move { reader.follow(&of_app(1), begin, SOON).await.unwrap() });
    store.append(&line(1, 2, "not mine\n")).unwrap();
    store.append(&line(2, 1, "mine\n")).unwrap();
    let batch = following.await.unwrap();
    assert_eq!(texts(&batch), ["mine\n"]);
    let empty = store.follow(&of_app(1), batch.cursor, Duration::from_millis(1)).await.unwrap();
    assert_eq!((empty.entries.len(), empty.cursor), (0, store.end()));
}

#[tokio::test]
async fn following_batch_by_batch_gives_every_line_once_across_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open_with(dir.path(), Options { file_bytes: 20_000, ..Options::default() }).unwrap();
    let total = FOLLOW_ENTRIES_MAX * 2 + 500;
    let writer = store.clone();
    let writing = std::thread::spawn(move || {
        for number in 0..total {
            writer.append(&line(number as u64, 1, &format!("{number}\n"))).unwrap();
        }
    });
    let (mut cursor, mut seen) = (Cursor::START, Vec::new());
    while seen.len() < total {
        let batch = store.follow(&of_app(1), cursor, SOON).await.unwrap();
        assert!(!batch.entries.is_empty() && batch.entries.len() <= FOLLOW_ENTRIES_MAX);
        seen.extend(batch.entries.iter().map(|entry| entry.timestamp_ns as usize));
        cursor = batch.cursor;
    }
    writing.join().unwrap();
    assert!(seen.into_iter().eq(0..total));
}

/// `cargo test -p shoal-worker --release measure -- --ignored --nocapture`
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_lines_a_second_and_latency() {
    let dir = tempfile::tempdir().unwrap();
    let store = LogStore::open(dir.path()).unwrap();
    let entry = line(1, 1, &"x".repeat(100));
    for (batch, total) in [(1, 200_000), (100, 1_000_000)] {
        let entries = vec![entry.clone(); batch];
        let began = Instant::now();
        (0..total / batch).for_each(|_| store.append_all(&entries).unwrap());
        println!("batches of {batch}: {} lines/s", (total as f64 / began.elapsed().as_secs_f64()) as u64);
    }
    let mut worst = Duration::ZERO;
    for _ in 0..100 {
        let (reader, end) = (store.clone(), store.end());
        let following = tokio::spawn(async move { reader.follow(&of_app(1), end, SOON).await.map(|_| Instant::now()) });
        tokio::task::yield_now().await;
        let began = Instant::now();
        store.append(&entry).unwrap();
        worst = worst.max(following.await.unwrap().unwrap() - began);
    }
    println!("worst latency of a follower: {worst:?}");
    let began = Instant::now();
    assert_eq!(store.fetch(&of_app(1), 100).unwrap().entries.len(), 100);
    println!("fetch of 100 of 1.2 million: {:?}", began.elapsed());
}

/// `SHOAL_LOG_MIB=5000 cargo test -p shoal-worker measure_the_last -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn measure_the_last_lines_of_an_app_beside_much() {
    let mebibytes: u64 = std::env::var("SHOAL_LOG_MIB").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    let dir = tempfile::tempdir().unwrap();
    let options = Options { retain_bytes: mebibytes << 20, ..Options::default() };
    let store = LogStore::open_with(dir.path(), options).unwrap();
    let loud = vec![line(1, 1, &"x".repeat(150)); 400];
    let (mut written, mut calm) = (0u64, 0u64);
    while written < mebibytes << 20 {
        store.append_all(&loud).unwrap();
        written += 400 * 255;
        if written * 200 / (mebibytes << 20) > calm {
            calm += 1;
            store.append(&line(written, 2, &format!("calm {calm}\n"))).unwrap();
        }
    }
    println!("{} MiB of logs, {calm} lines of a quiet app among them", store.bytes() >> 20);
    for (name, app) in [("quiet", 2), ("loud", 1)] {
        let began = Instant::now();
        assert_eq!(store.fetch(&of_app(app), 100).unwrap().entries.len(), 100);
        println!("the last 100 lines of the {name} app: {:?}", began.elapsed());
    }
    let began = Instant::now();
    let counted = store.count(&of_app(2), u64::MAX).unwrap();
    println!("counting all {} of the quiet app: {:?}", counted[&0].stdout, began.elapsed());
    drop(store);
    let began = Instant::now();
    LogStore::open_with(dir.path(), options).unwrap();
    println!("opening the store: {:?}", began.elapsed());
}
