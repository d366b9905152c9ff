//! Bytes: slow ones, large ones, and those that never come.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use shoal_storage::chunk::CHUNK_BYTES;

use super::*;

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn short() -> Options {
    Options { read_time: Duration::from_millis(1500), ..Options::default() }
}

#[test]
fn a_large_file_is_read_from_any_place() {
    if !can_mount() {
        return;
    }
    // A cache for two chunks: what is read must not depend on it.
    let mount = Mount::with(Options { cache_bytes: 2 * CHUNK_BYTES, ..Options::default() });
    let bytes = noise(5 * CHUNK_BYTES + 12_345);
    let mut tree = Tree::new();
    tree.insert(&p("large"), mount.far.file(&bytes)).unwrap();
    let path = mount.bind("t", &tree).join("large");
    let file = File::open(&path).unwrap();
    for (offset, length) in
        [(CHUNK_BYTES - 10, 20), (4 * CHUNK_BYTES + 5, 2 * CHUNK_BYTES), (0, 1), (bytes.len() - 1, 100), (bytes.len() + 5, 3)]
    {
        let mut found = vec![0; length];
        let read = read_whole(&file, &mut found, offset as u64);
        let expected = bytes.get(offset..).unwrap_or_default();
        assert_eq!(found[..read], expected[..expected.len().min(length)], "{length} bytes at {offset}");
    }
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

fn read_whole(file: &File, into: &mut [u8], offset: u64) -> usize {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], offset + done as u64).unwrap() {
            0 => break,
            read => done += read,
        }
    }
    done
}

#[test]
fn a_file_with_lists_of_chunks_is_read() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    // Zeros are one chunk, so that the file costs nothing; the end says which part is read.
    let zeros = io::Read::take(io::repeat(0), (70 * CHUNK_BYTES) as u64);
    let (size, content) = put_content(io::Read::chain(zeros, &b"the end"[..]), "zeros", &mount.far.objects).unwrap();
    let mut tree = Tree::new();
    tree.insert(&p("long"), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
    let file = File::open(mount.bind("t", &tree).join("long")).unwrap();
    let mut found = [1; 10];
    assert_eq!(read_whole(&file, &mut found, size - 9), 9);
    assert_eq!(&found, b"\0\0the end\x01");
}

#[test]
fn a_source_that_hangs_gives_an_error_in_time_and_holds_nothing_up() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::with(short());
    let dir = mount.bind("t", &mount.far.tree(&[("hangs", "never"), ("fine", "at once")]));
    mount.far.hold(Digest::of(b"never"));
    let started = Instant::now();
    let hangs = dir.join("hangs");
    let reader = in_thread(move || fs::read(hangs).unwrap_err().raw_os_error());
    wait_for("the read to reach the source", || mount.trees().chunks_asked() == 1);
    assert_eq!(fs::read(dir.join("fine")).unwrap(), b"at once");
    assert_eq!(reader.recv_timeout(PATIENCE).unwrap(), Some(libc::EIO));
    assert!(started.elapsed() >= short().read_time);

    // The source hangs still; the mount ends without it.
    let trees = mount.trees.take().unwrap();
    in_thread(move || drop(trees)).recv_timeout(PATIENCE).expect("the mount ends");
    assert!(!dir.exists());
}

// The kernel lets no process end while a read of it is with the mount, not even one that was killed.
#[test]
fn a_process_that_is_killed_ends_though_its_read_waits() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(Options { read_time: PATIENCE * 10, ..Options::default() });
    let dir = mount.bind("t", &mount.far.tree(&[("hangs", "never")]));
    mount.far.hold(Digest::of(b"never"));
    let mut reader = std::process::Command::new("cat").arg(dir.join("hangs")).spawn().unwrap();
    wait_for("the read to reach the source", || mount.trees().chunks_asked() == 1);
    reader.kill().unwrap();
    let ended = in_thread(move || reader.wait());
    ended.recv_timeout(PATIENCE).expect("it ends").unwrap();
}

#[test]
fn a_process_that_is_to_end_gets_an_error_while_others_wait() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(Options { read_time: PATIENCE * 10, ..Options::default() });
    let dir = mount.bind("t", &mount.far.tree(&[("hangs", "never")]));
    mount.far.hold(Digest::of(b"never"));
    let mut reader = std::process::Command::new("cat").arg(dir.join("hangs")).stderr(std::process::Stdio::piped()).spawn().unwrap();
    wait_for("the read to reach the source", || mount.trees().chunks_asked() == 1);
    mount.trees().hurry(reader.id(), std::time::Duration::ZERO);
    let mut said = reader.stderr.take().unwrap();
    let ended = in_thread(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut said, &mut text).unwrap();
        (reader.wait(), text)
    });
    let (status, text) = ended.recv_timeout(PATIENCE).expect("it ends");
    assert!(status.unwrap().code() == Some(1) && text.contains("Input/output error"), "{text}");
}

#[test]
fn a_chunk_that_came_too_late_once_can_come_later() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(short());
    let dir = mount.bind("t", &mount.far.tree(&[("f", "late")]));
    mount.far.hold(Digest::of(b"late"));
    assert_eq!(fs::read(dir.join("f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    mount.far.let_all_go();
    assert_eq!(fs::read(dir.join("f")).unwrap(), b"late");
}

#[test]
fn many_hanging_reads_do_not_hold_up_the_others() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(Options { read_time: PATIENCE * 10, ..Options::default() });
    let texts: Vec<String> = (0..20).map(|number| format!("held {number}")).collect();
    let mut tree = mount.far.tree(&[("fine", "at once")]);
    for text in &texts {
        tree.insert(&p(text), mount.far.file(text.as_bytes())).unwrap();
        mount.far.hold(Digest::of(text.as_bytes()));
    }
    let dir = mount.bind("t", &tree);
    let readers: Vec<_> = texts.iter().map(|text| dir.join(text)).map(|path| in_thread(move || fs::read(path))).collect();
    wait_for("all reads to reach the source", || mount.trees().chunks_asked() == 20);
    assert_eq!(fs::read(dir.join("fine")).unwrap(), b"at once");
    mount.far.let_all_go();
    for (reader, text) in readers.iter().zip(&texts) {
        assert_eq!(reader.recv_timeout(PATIENCE).unwrap().unwrap(), text.as_bytes());
    }
}

#[test]
fn dropping_the_mount_frees_those_who_wait() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::with(Options { read_time: PATIENCE * 10, ..Options::default() });
    let dir = mount.bind("t", &mount.far.tree(&[("hangs", "never")]));
    mount.far.hold(Digest::of(b"never"));
    let reader = in_thread(move || fs::read(dir.join("hangs")).unwrap_err().raw_os_error());
    wait_for("the read to reach the source", || mount.trees().chunks_asked() == 1);
    let trees = mount.trees.take().unwrap();
    in_thread(move || drop(trees)).recv_timeout(PATIENCE).expect("the mount ends");
    let errno = reader.recv_timeout(PATIENCE).unwrap().unwrap();
    assert!([libc::EIO, libc::ENOTCONN, libc::ECONNABORTED].contains(&errno), "{errno}");
}

#[test]
fn what_is_read_first_is_remembered_in_order() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let large = noise(2 * CHUNK_BYTES);
    let mut tree = mount.far.tree(&[("a", "1"), ("b/c", "2"), ("never", "3")]);
    tree.insert(&p("large"), mount.far.file(&large)).unwrap();
    let dir = mount.bind("t", &tree);
    let mut last = [0; 1];
    File::open(dir.join("large")).unwrap().read_at(&mut last, 2 * CHUNK_BYTES as u64 - 1).unwrap();
    for path in ["b/c", "a", "b/c"] {
        fs::read(dir.join(path)).unwrap();
    }
    let touches = mount.trees().touches("t").unwrap();
    let found: Vec<_> = touches.iter().map(|touch| (touch.path.to_string(), touch.chunk)).collect();
    assert_eq!(found, [("/large".into(), 1), ("/b/c".into(), 0), ("/a".into(), 0)]);
    assert_eq!(mount.trees().touches("other"), None);
}

#[test]
fn a_chunk_that_nobody_has_is_an_error_at_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let dir = mount.bind("t", &mount.far.tree(&[("f", "gone")]));
    mount.far.objects.remove(&Digest::of(b"gone"));
    assert_eq!(fs::read(dir.join("f")).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn the_source_hears_once_of_the_small_files_beside_one_that_is_missing() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut tree = mount.far.tree(&[("lib/a", "1"), ("lib/b", "2"), ("lib/sub/c", "3"), ("other", "4")]);
    tree.insert(&p("lib/large"), mount.far.file(&noise(CHUNK_BYTES))).unwrap();
    let dir = mount.bind("t", &tree);
    for path in ["lib/b", "lib/a", "lib/large", "other"] {
        fs::read(dir.join(path)).unwrap();
    }
    let digests = |texts: &[&str]| texts.iter().map(|text| Digest::of(text.as_bytes())).collect::<Vec<_>>();
    assert_eq!(*mount.far.expected.lock(), [digests(&["1", "2"]), digests(&["4"])]);
}
