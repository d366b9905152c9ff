//! Sandboxes made ahead, and snapshots restored in them.
#![allow(missing_docs)]

mod support;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoal_runtime::{AheadConfig, Bind, ContainerSpec, LAUNCHER, NetworkMode, Rooms, Way};
use support::{Bench, read_all, read_line, within};

/// Rooms in a plain folder, filled by copying.
#[derive(Debug)]
struct Folders(PathBuf);

impl Rooms for Folders {
    fn open(&self, name: &str) -> io::Result<PathBuf> {
        let room = self.0.join(name);
        for place in ["proc", "sys", "dev", "tmp", "etc", "task", "shared"] {
            fs::create_dir_all(room.join(place))?;
        }
        Ok(room)
    }

    fn fill(&self, name: &str, root: &Path) -> bool {
        fs::copy(root.join("probe"), self.0.join(name).join("probe")).is_ok()
    }

    fn close(&self, name: &str) {
        fs::remove_dir_all(self.0.join(name)).unwrap();
    }
}

const SHM_BYTES: u64 = 1 << 20;

struct Ahead {
    bench: Bench,
    binds: Vec<Bind>,
    rooms: PathBuf,
}

impl Ahead {
    async fn open(count: usize) -> Self {
        let bench = Bench::open().await;
        // Not deep enough to be taken for something that an engine left.
        let (rooms, shared) = (bench.folder.path().join("rooms"), bench.folder.path().join("shared"));
        fs::create_dir(&shared).unwrap();
        let launcher = shared.join("launch");
        fs::write(&launcher, LAUNCHER).unwrap();
        fs::set_permissions(&launcher, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let binds = vec![Bind { source: shared, target: "/shared".into(), read_only: true }];
        let ahead = Self { bench, binds, rooms };
        ahead.bench.engine.make_ahead(AheadConfig {
            rooms: Arc::new(Folders(ahead.rooms.clone())),
            binds: ahead.binds.clone(),
            own_target: "/task".into(),
            hostname: "inside".into(),
            shm_bytes: SHM_BYTES,
            launcher: "/shared/launch".into(),
            count,
        });
        ahead
    }

    /// A container that fits.
    fn probe(&self, words: &[&str], own: &[(&str, &str)]) -> ContainerSpec {
        let folder = self.bench.folder.path().join("state").join(format!("for-{}", words.join("-").replace('/', "_")));
        fs::create_dir_all(&folder).unwrap();
        own.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
        let mut spec = self.bench.probe(words);
        spec.binds = self.binds.clone();
        spec.own = Some(Bind { source: folder, target: "/task".into(), read_only: false });
        spec.hostname = "inside".into();
        spec.network = NetworkMode::NodeOnly;
        spec.limits.shm_bytes = Some(SHM_BYTES);
        spec
    }

    async fn filled(&self, count: usize) {
        let waiting = async {
            while self.bench.engine.waiting() < count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("a sandbox made ahead", waiting).await;
    }

    async fn close(self) {
        let rooms = self.rooms.clone();
        fs::remove_dir_all(self.bench.folder.path().join("shared")).unwrap();
        for entry in fs::read_dir(self.bench.folder.path().join("state")).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("for-") {
                fs::remove_dir_all(entry.path()).unwrap();
            }
        }
        self.bench.engine.close().await.unwrap();
        assert_eq!(fs::read_dir(&rooms).unwrap().count(), 0, "rooms go with their sandboxes");
        fs::remove_dir(&rooms).unwrap();
        self.bench.close().await;
    }
}

#[tokio::test]
async fn a_container_starts_in_one_and_is_what_its_description_says() {
    needs_runsc!();
    let ahead = Ahead::open(1).await;
    ahead.filled(1).await;
    let mut spec = ahead.probe(&["cat", "/task/argument"], &[("argument", "of this one")]);
    spec.env.push(("A".into(), "b=c".into()));
    spec.cwd = "/made/for/it".into();
    spec.limits.memory_bytes = Some(256 << 20);
    let container = ahead.bench.start(spec).await;
    assert_eq!(container.timings().way, Way::Ahead);
    let out = read_all(container.take_stdio().unwrap().stdout);
    assert!(within("the exit", container.exit()).await.unwrap().success());
    assert_eq!(out.await.unwrap(), "of this one");
    container.destroy().await.unwrap();

    ahead.filled(1).await;
    let (exit, _, err) = ahead.bench.run(ahead.probe(&["no-such-word"], &[])).await;
    assert_ne!(exit.code(), 127, "{err}");
    // None is there right after, so this one is made for it; and it is no different.
    let (exit, out, _) = ahead.bench.run(ahead.probe(&["cat", "/task/argument"], &[("argument", "made")])).await;
    assert!(exit.success() && out == "made", "{out}");
    ahead.close().await;
}

#[tokio::test]
async fn what_cannot_run_says_so() {
    needs_runsc!();
    let ahead = Ahead::open(1).await;
    ahead.filled(1).await;
    let mut spec = ahead.probe(&["x"], &[]);
    spec.argv = vec!["/not/there".into()];
    let (exit, _, err) = ahead.bench.run(spec).await;
    assert_eq!(exit.code(), 127);
    assert!(err.contains("cannot run /not/there: No such file"), "{err}");
    ahead.close().await;
}

#[tokio::test]
async fn a_description_that_differs_is_made_in_full() {
    needs_runsc!();
    let ahead = Ahead::open(1).await;
    ahead.filled(1).await;
    for change in [
        (|spec: &mut ContainerSpec| spec.user.uid = 7) as fn(&mut ContainerSpec),
        |spec| spec.network = NetworkMode::None,
        |spec| spec.limits.disk_bytes = Some(1 << 20),
        |spec| spec.limits.cpu_millis = Some(1000),
        |spec| spec.capabilities.push("CAP_NET_ADMIN".into()),
    ] {
        let mut spec = ahead.probe(&["cat", "/etc/fixed"], &[]);
        change(&mut spec);
        let container = ahead.bench.engine.create(spec).await.unwrap();
        assert_eq!(container.timings().way, Way::Made);
        container.destroy().await.unwrap();
    }
    assert_eq!(ahead.bench.engine.waiting(), 1);
    ahead.close().await;
}

#[tokio::test]
async fn a_snapshot_goes_on_in_any_number_of_sandboxes() {
    needs_runsc!();
    let ahead = Ahead::open(1).await;
    ahead.filled(1).await;
    let mut spec = ahead.probe(&["jobs"], &[]);
    spec.stdin = true;
    let container = ahead.bench.start(spec).await;
    let stdio = container.take_stdio().unwrap();
    let (line, _rest) = read_line(stdio.stdout).await;
    assert_eq!(line, "waiting");
    let snapshot = ahead.bench.folder.path().join("snapshot");
    fs::create_dir(&snapshot).unwrap();
    container.checkpoint(&snapshot).await.unwrap();
    container.destroy().await.unwrap();

    for word in ["one", "two"] {
        let mut spec = ahead.probe(&["cat", word], &[("name", word)]);
        spec.snapshot = Some(snapshot.clone());
        let container = ahead.bench.start(spec).await;
        assert_eq!(container.timings().way, Way::Restored);
        let out = read_all(container.take_stdio().unwrap().stdout);
        assert!(within("the exit", container.exit()).await.unwrap().success());
        let out = out.await.unwrap();
        assert!(out.contains(&format!("job for {word}")) && out.contains(&format!("own file {word}")), "{out}");
        container.destroy().await.unwrap();
    }
    fs::remove_dir_all(&snapshot).unwrap();
    ahead.close().await;
}
