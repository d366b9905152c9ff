//! Reading without a kernel: who is asked, how often, and who waits how long.

use std::sync::mpsc::{self, Receiver};

use shoal_storage::chunk::CHUNK_BYTES;
use shoal_storage::manifest::{Entry, Memory, Objects, put_content};

use super::*;
use crate::readers::Patience;

const PATIENCE: Duration = Duration::from_secs(20);

/// A source that tells what it is asked for, and answers when it may.
#[derive(Default)]
struct Told {
    objects: Memory,
    /// Digests that are on this machine.
    near: Mutex<Vec<Digest>>,
    asked: Mutex<Vec<Digest>>,
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Source for Told {
    fn local(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        Ok(self.near.lock().contains(digest).then(|| self.objects.get(digest).unwrap()))
    }

    fn chunk(&self, digest: &Digest, deadline: Instant) -> Result<Bytes, SourceError> {
        self.asked.lock().push(*digest);
        let mut closed = self.closed.lock();
        while *closed {
            if self.opened.wait_until(&mut closed, deadline).timed_out() {
                return Err(SourceError::Late { digest: *digest, waited_for: "the test".into() });
            }
        }
        self.objects.get(digest).map_err(|error| SourceError::Failed { digest: *digest, source: error.into() })
    }

    fn why_not(&self, _: &Digest) -> Option<String> {
        Some("the far node sleeps".to_owned())
    }
}

impl Told {
    fn file(&self, bytes: &[u8]) -> Arc<Inode> {
        let (size, content) = put_content(bytes, "bytes", &self.objects).unwrap();
        Inode::new(7, Entry::new(Kind::File { size, content }, 0o644), 1)
    }

    fn open(&self) {
        *self.closed.lock() = false;
        self.opened.notify_all();
    }
}

fn start(time: Duration, cache_bytes: usize) -> (Arc<Told>, Reads) {
    let told = Arc::new(Told::default());
    let reads = Reads::start(told.clone(), Box::new(|_| ()), Box::new(|_, _| ()), time, cache_bytes).unwrap();
    (told, reads)
}

/// Reads, and returns where the answer comes.
fn read(reads: &Reads, inode: &Arc<Inode>, offset: u64, length: u32) -> Receiver<Result<Vec<u8>, String>> {
    read_for(reads, inode, offset, length, std::process::id())
}

/// Reads for a process.
fn read_for(reads: &Reads, inode: &Arc<Inode>, offset: u64, length: u32, reader: u32) -> Receiver<Result<Vec<u8>, String>> {
    let (tell, told) = mpsc::channel();
    let answer = move |result: Result<&[u8], ReadError>| {
        tell.send(result.map(<[u8]>::to_vec).map_err(|error| error.to_string())).unwrap();
    };
    reads.read(inode.clone(), offset, length, reader, Box::new(answer));
    told
}

#[track_caller]
fn got(answer: &Receiver<Result<Vec<u8>, String>>) -> Result<Vec<u8>, String> {
    answer.recv_timeout(PATIENCE).expect("an answer comes")
}

#[track_caller]
fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::yield_now();
    }
}

/// Bytes of several chunks, all of them different.
fn chunks(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| vec![number as u8 + 1; CHUNK_BYTES]).collect()
}

#[test]
fn all_who_wait_for_a_chunk_share_one_request() {
    let (told, reads) = start(PATIENCE, 8 << 20);
    let file = told.file(b"0123456789");
    *told.closed.lock() = true;
    let answers: Vec<_> = (0..10).map(|offset| read(&reads, &file, offset, 1)).collect();
    wait_for("the request", || !told.asked.lock().is_empty());
    told.open();
    let found: Vec<u8> = answers.iter().flat_map(|answer| got(answer).unwrap()).collect();
    assert_eq!((&found[..], told.asked.lock().len()), (&b"0123456789"[..], 1));
    assert_eq!(got(&read(&reads, &file, 5, 100)).unwrap(), b"56789");
    assert_eq!(told.asked.lock().len(), 1, "it is in the cache");
    reads.end();
}

#[test]
fn what_is_here_is_not_asked_of_others() {
    let (told, reads) = start(PATIENCE, 8 << 20);
    let file = told.file(b"here");
    told.near.lock().push(Digest::of(b"here"));
    *told.closed.lock() = true;
    assert_eq!(got(&read(&reads, &file, 1, 2)).unwrap(), b"er");
    assert_eq!((told.asked.lock().len(), reads.asked()), (0, 0));
    reads.end();
}

#[test]
fn what_comes_is_counted_once_in_whole_chunks() {
    let (told, reads) = start(PATIENCE, 64 << 20);
    let (near, far) = (told.file(b"near"), told.file(&chunks(2)));
    told.near.lock().push(Digest::of(b"near"));
    assert_eq!(reads.brought_bytes(), 0);
    got(&read(&reads, &near, 1, 1)).unwrap();
    assert_eq!(reads.brought_bytes(), 4, "from this machine, all of the chunk");
    got(&read(&reads, &far, 0, 10)).unwrap();
    let both = 4 + CHUNK_BYTES as u64;
    assert_eq!(reads.brought_bytes(), both, "from elsewhere, and only the chunk that was read");
    got(&read(&reads, &far, 5, 10)).unwrap();
    got(&read(&reads, &near, 0, 4)).unwrap();
    assert_eq!(reads.brought_bytes(), both, "what is in the cache is not brought again");
    reads.end();
}

#[test]
fn a_read_over_chunks_needs_no_room_in_the_cache() {
    let (told, reads) = start(PATIENCE, 0);
    let bytes = chunks(3);
    let file = told.file(&bytes);
    let found = got(&read(&reads, &file, 10, 2 * CHUNK_BYTES as u32)).unwrap();
    assert!(found == bytes[10..10 + 2 * CHUNK_BYTES]);
    reads.end();
}

#[test]
fn reading_on_brings_the_next_chunks_and_jumping_does_not() {
    let (told, reads) = start(PATIENCE, 64 << 20);
    let bytes = chunks(6);
    let file = told.file(&bytes);
    let digests: Vec<_> = bytes.chunks(CHUNK_BYTES).map(Digest::of).collect();
    reads.read_ahead(&file, 3);
    assert!(told.asked.lock().is_empty() && reads.shared.flights.lock().is_empty());
    file.uses.lock().insert(2, 0);
    reads.read_ahead(&file, 3);
    wait_for("the chunks to land", || reads.shared.flights.lock().is_empty());
    let mut asked = told.asked.lock().clone();
    asked.sort();
    let mut expected = digests[4..6].to_vec();
    expected.sort();
    assert_eq!(asked, expected);
    assert_eq!(got(&read(&reads, &file, 4 * CHUNK_BYTES as u64, 1)).unwrap(), [5]);
    assert_eq!(told.asked.lock().len(), 2, "it was brought already");
    reads.end();
}

#[test]
fn one_who_comes_late_to_a_late_chunk_has_all_of_its_own_time() {
    let time = Duration::from_secs(2);
    let (told, reads) = start(time, 8 << 20);
    let file = told.file(b"late");
    *told.closed.lock() = true;
    let first = read(&reads, &file, 0, 4);
    // The second read comes in the second half of the first one's time, and the chunk after the first one's end.
    let started = Instant::now();
    wait_for("half of the time", || started.elapsed() > time / 2);
    let second = read(&reads, &file, 0, 4);
    let refused = got(&first).unwrap_err();
    assert!(refused.starts_with("waited") || refused.contains("did not come in time"), "{refused}");
    told.open();
    assert_eq!(got(&second).unwrap(), b"late");
    reads.end();
}

#[test]
fn a_chunk_that_is_too_short_is_said_so() {
    let (told, reads) = start(PATIENCE, 8 << 20);
    let content = Content::Chunks(vec![told.objects.put(b"short").unwrap()]);
    let file = Inode::new(7, Entry::new(Kind::File { size: 100, content }, 0o644), 1);
    assert!(got(&read(&reads, &file, 0, 10)).unwrap_err().contains("it is too short"));
    let file = Inode::new(7, Entry::new(Kind::File { size: 100, content: Content::EMPTY }, 0o644), 1);
    assert!(got(&read(&reads, &file, 0, 10)).unwrap_err().contains("fewer chunks"));
    reads.end();
}

#[test]
fn the_end_answers_everyone() {
    let (told, reads) = start(PATIENCE * 10, 8 << 20);
    let file = told.file(b"never");
    *told.closed.lock() = true;
    let waiting = read(&reads, &file, 0, 1);
    wait_for("the request", || !told.asked.lock().is_empty());
    reads.end();
    assert_eq!(got(&waiting).unwrap_err(), "the mount is ending");
    assert_eq!(got(&read(&reads, &file, 0, 1)).unwrap_err(), "the mount is ending");
    told.open();
}

#[test]
fn who_was_killed_waits_for_nothing_and_others_go_on() {
    let (told, reads) = start(PATIENCE * 10, 8 << 20);
    let file = told.file(b"far");
    *told.closed.lock() = true;
    let mut gone = std::process::Command::new("true").spawn().unwrap();
    gone.wait().unwrap();
    let (of_gone, of_none) = (read_for(&reads, &file, 0, 3, gone.id()), read_for(&reads, &file, 0, 3, 0));
    let other = read(&reads, &file, 0, 3);
    assert!(got(&of_gone).unwrap_err().contains("was killed"));
    assert!(of_none.try_recv().is_err() && other.try_recv().is_err(), "they may wait");
    told.open();
    assert_eq!((got(&of_none).unwrap(), got(&other).unwrap()), (b"far".to_vec(), b"far".to_vec()));
    reads.end();
}

#[test]
fn who_is_to_end_waits_for_little_and_once_in_vain_for_nothing() {
    let (told, reads) = start(PATIENCE * 10, 8 << 20);
    let (far, near) = (told.file(b"far"), told.file(b"near"));
    told.near.lock().push(Digest::of(b"near"));
    *told.closed.lock() = true;
    let mut ends = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let waiting = read_for(&reads, &far, 0, 3, ends.id());
    let other = read(&reads, &far, 0, 3);
    wait_for("the request", || !told.asked.lock().is_empty());
    let limit = Duration::from_millis(300);
    let hurried = Instant::now();
    reads.hurry(ends.id(), limit);
    assert!(got(&waiting).unwrap_err().contains("is to end"));
    assert!(hurried.elapsed() < PATIENCE, "it was not given all its time");
    assert_eq!(got(&read_for(&reads, &near, 0, 4, ends.id())).unwrap(), b"near", "what is here is read on");
    let patience = |process| reads.shared.readers.look(process).patience;
    assert_eq!(patience(ends.id()), Patience::Upto(Duration::ZERO), "it waits for nothing more");
    reads.hurry(ends.id(), limit);
    assert_eq!(patience(ends.id()), Patience::Upto(Duration::ZERO), "what was said before stays");
    assert!(got(&read_for(&reads, &far, 0, 3, ends.id())).unwrap_err().contains("is to end"));
    assert!(other.try_recv().is_err() && patience(std::process::id()) == Patience::Full, "others wait on");
    ends.kill().unwrap();
    ends.wait().unwrap();
    told.open();
    assert_eq!(got(&other).unwrap(), b"far");
    reads.end();
}

#[test]
fn a_read_that_waits_for_long_and_one_that_fails_are_told_of_once() {
    let told = Arc::new(Told::default());
    let (tell, heard) = mpsc::channel();
    let troubled = Box::new(move |inode: &Inode, trouble: Trouble| tell.send((inode.ino, trouble)).unwrap());
    let reads = Reads::start(told.clone(), Box::new(|_| ()), troubled, Duration::from_secs(4), 8 << 20).unwrap();
    let file = told.file(b"far");
    *told.closed.lock() = true;
    let waiting = read(&reads, &file, 0, 3);
    let next = || heard.recv_timeout(PATIENCE).expect("it is told of");
    let (ino, long) = next();
    assert_eq!((ino, long.process, long.failed, &*long.why), (7, std::process::id(), false, "the far node sleeps"));
    assert!(long.chunk == Digest::of(b"far") && long.waited >= Duration::from_secs(3) && waiting.try_recv().is_err());
    got(&waiting).unwrap_err();
    let failed = next().1;
    assert!(failed.failed && failed.chunk == Digest::of(b"far"), "{failed:?}");
    assert!(heard.try_recv().is_err(), "each is told of once");
    told.open();
    reads.end();
}

#[test]
fn a_thread_has_to_die_when_sigkill_waits_for_it() {
    let status = |state: &str, signals: &str| format!("Name:\tsleep\nState:\t{state}\nSigPnd:\t{signals}\nShdPnd:\t0000000000000100\n");
    let has_to_die = crate::readers::has_to_die;
    assert!(has_to_die(&status("D (disk sleep)", "0000000000000100")) && has_to_die(&status("Z (zombie)", "0000000000000000")));
    assert!(!has_to_die(&status("D (disk sleep)", "0000000000004000")) && !has_to_die(""));
}
