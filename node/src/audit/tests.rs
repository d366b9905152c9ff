use std::io::Write as _;

use super::*;

fn at_noon() -> u64 {
    1_700_000_000_000
}

/// Each look finds the next second.
fn ticking() -> u64 {
    static SECONDS: AtomicU64 = AtomicU64::new(0);
    at_noon() + 1000 * SECONDS.fetch_add(1, Ordering::Relaxed)
}

fn refused(method: &str) -> Event<'_> {
    Event { what: What::Refused, who: "nobody".to_owned(), method, from: "10.0.0.1:5".to_owned(), why: "no token".to_owned() }
}

#[test]
fn records_are_read_as_noted_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path(), Keep::default(), ticking).unwrap();
    audit.note(refused("AppList"));
    audit.note(Event { what: What::TokenCreated, who: "operator".to_owned(), ..refused("") });
    let first = audit.read(&Filter::default(), None).unwrap();
    assert_eq!(first.iter().map(|record| (record.id, record.what)).collect::<Vec<_>>(), [(1, What::Refused), (2, What::TokenCreated)]);
    drop(audit);
    // A crash in the middle of a line.
    let mut file = std::fs::OpenOptions::new().append(true).open(dir.path().join("0000000001.jsonl")).unwrap();
    file.write_all(b"{\"id\":3,\"at").unwrap();
    let audit = Audit::open(dir.path(), Keep::default(), ticking).unwrap();
    audit.note(refused("AppStop"));
    let all = audit.read(&Filter::default(), None).unwrap();
    assert_eq!(all.iter().map(|record| (record.id, record.method.as_str())).collect::<Vec<_>>(), [(1, "AppList"), (2, ""), (3, "AppStop")]);
}

#[test]
fn a_flood_is_counted_instead_of_written() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path(), Keep::default(), at_noon).unwrap();
    let flood = u64::from(REFUSALS_PER_SECOND) + 50;
    for _ in 0..flood {
        audit.note(refused("AppList"));
    }
    // What is no refusal is written, however many there were.
    audit.note(Event { what: What::TokenRevoked, ..refused("") });
    assert_eq!(audit.read(&Filter { what: Some(What::TokenRevoked), ..Filter::default() }, None).unwrap().len(), 1);
    let Ok(inner) = Arc::try_unwrap(audit.inner) else { panic!("another handle") };
    let files = Arc::clone(&inner.files);
    drop(inner);
    let deadline = Instant::now() + Duration::from_secs(10);
    let said = loop {
        let mut last = None;
        files.read(|record| last = Some(record)).unwrap();
        match last {
            Some(Record { what: What::Omitted, why, .. }) => break why,
            _ => assert!(Instant::now() < deadline, "the thread did not end: {last:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert!(said.starts_with("50 more refusals"), "{said}");
}

#[test]
fn the_oldest_files_go_when_there_are_too_many_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { bytes: 64 << 10, days: 90 };
    let audit = Audit::open(dir.path(), keep, ticking).unwrap();
    let why = "x".repeat(900);
    for _ in 0..300 {
        audit.note(Event { why: why.clone(), ..refused("AppList") });
        // The queue is bounded, and this test is about files.
        audit.flush();
    }
    let bytes: u64 = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!((32 << 10..=64 << 10).contains(&bytes), "{bytes} bytes are kept");
    let left = audit.read(&Filter::default(), None).unwrap();
    assert_eq!(left.last().unwrap().id, 300);
    assert!(left.windows(2).all(|pair| pair[0].id + 1 == pair[1].id));
}

#[test]
fn old_files_go_by_their_age() {
    let dir = tempfile::tempdir().unwrap();
    let keep = Keep { bytes: 8 << 10, days: 1 };
    let (files, _) = Files::open(dir.path(), keep).unwrap();
    let record = |id, days: u64| Record {
        id,
        at_ms: at_noon() + days * 24 * 3_600_000,
        what: What::Refused,
        who: String::new(),
        method: String::new(),
        from: String::new(),
        why: "x".repeat(900),
    };
    for (id, days) in [(1, 0), (2, 0), (3, 3)] {
        let record = record(id, days);
        files.append(&record, record.at_ms).unwrap();
    }
    let mut left = Vec::new();
    files.read(|record| left.push(record.id)).unwrap();
    assert_eq!(left, [3]);
}

#[test]
fn a_filter_leaves_in_what_it_names() {
    let record = Record {
        id: 1,
        at_ms: 5000,
        what: What::Refused,
        who: "token ak-1".to_owned(),
        method: "AppStop".to_owned(),
        from: "10.0.0.1:50".to_owned(),
        why: String::new(),
    };
    let some = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (Filter { who: some("ak-1"), ..Filter::default() }, true),
        (Filter { who: some("ak-2"), ..Filter::default() }, false),
        (Filter { method: some("App"), from: some("10.0.0.1"), ..Filter::default() }, true),
        (Filter { from: some("10.0.0.2"), ..Filter::default() }, false),
        (Filter { since_ms: Some(5001), ..Filter::default() }, false),
        (Filter { what: Some(What::TokenCreated), ..Filter::default() }, false),
    ] {
        assert_eq!(filter.matches(&record), expected, "{filter:?}");
    }
}

#[test]
fn a_long_text_is_cut_between_characters() {
    assert_eq!(short(&"é".repeat(TEXT_BYTES_MAX)).len(), TEXT_BYTES_MAX);
    assert_eq!(short(&format!("x{}", "é".repeat(TEXT_BYTES_MAX))).len(), TEXT_BYTES_MAX - 1);
}
