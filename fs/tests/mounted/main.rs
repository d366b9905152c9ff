//! Real mounts. Needs root and `/dev/fuse`; says so and passes where there is neither.

mod reading;
mod rooms;
mod trees;

use std::collections::HashSet;
use std::path::{Path as HostPath, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use shoal_fs::{Options, Source, SourceError, Trees};
use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Memory, Objects, Path, Tree, put_content};
use tempfile::TempDir;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(20);

fn p(text: &str) -> Path {
    Path::parse(text).unwrap()
}

/// Says if mounts can be made, and if not, that the test is skipped.
fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && HostPath::new("/dev/fuse").exists();
    if !can {
        eprintln!("skipped: mounting needs root and /dev/fuse");
    }
    can
}

/// Chunks in memory as if they came from another node: some of them only when the test lets them.
#[derive(Default)]
struct Far {
    objects: Memory,
    /// Chunks that do not come.
    held: Mutex<HashSet<Digest>>,
    let_go: Condvar,
    /// What the mount said it would probably read.
    expected: Mutex<Vec<Vec<Digest>>>,
}

impl Far {
    fn hold(&self, digest: Digest) {
        self.held.lock().insert(digest);
    }

    fn let_all_go(&self) {
        self.held.lock().clear();
        self.let_go.notify_all();
    }

    /// Keeps bytes and returns a file of them.
    fn file(&self, bytes: &[u8]) -> Entry {
        let (size, content) = put_content(bytes, "bytes", &self.objects).unwrap();
        Entry::new(Kind::File { size, content }, 0o644)
    }

    fn tree(&self, files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for (path, text) in files {
            tree.insert(&p(path), self.file(text.as_bytes())).unwrap();
        }
        tree
    }
}

impl Source for Far {
    /// Does not look at the deadline: the mount must not depend on that.
    fn chunk(&self, digest: &Digest, _deadline: Instant) -> Result<Bytes, SourceError> {
        let mut held = self.held.lock();
        while held.contains(digest) {
            self.let_go.wait(&mut held);
        }
        drop(held);
        self.objects.get(digest).map_err(|error| SourceError::Failed { digest: *digest, source: error.into() })
    }

    fn expect(&self, digests: &[Digest]) {
        self.expected.lock().push(digests.to_vec());
    }
}

/// A mount of its own for one test.
struct Mount {
    trees: Option<Trees>,
    far: Arc<Far>,
    dir: TempDir,
}

impl Mount {
    fn new() -> Self {
        Self::with(Options::default())
    }

    fn with(options: Options) -> Self {
        let (far, dir) = (Arc::new(Far::default()), tempfile::tempdir().unwrap());
        let trees = Trees::mount_with(&dir.path().join("trees"), far.clone(), options).unwrap();
        Self { trees: Some(trees), far, dir }
    }

    fn trees(&self) -> &Trees {
        self.trees.as_ref().unwrap()
    }

    fn bind(&self, name: &str, tree: &Tree) -> PathBuf {
        self.trees().bind(name, tree).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.far.let_all_go();
    }
}

/// Runs something that may hang in a thread of its own.
fn in_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(run()));
    told
}

/// Waits until something is true.
#[track_caller]
fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        thread::yield_now();
    }
}
