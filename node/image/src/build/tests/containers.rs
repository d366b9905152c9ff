//! Builds that run commands in gVisor. Skipped, with the reason, where that cannot be done.

use std::process::Command;

use shoal_fs::{StoreSource, Trees};
use shoal_runtime::{Engine, EngineConfig};

use super::*;

/// What the base image of these tests can do.
const PROGRAMS: [&str; 12] = [
    "/bin/sh",
    "/bin/cat",
    "/bin/ls",
    "/bin/sleep",
    "/bin/rm",
    "/bin/mkdir",
    "/usr/bin/id",
    "/usr/bin/env",
    "/bin/pwd",
    "/usr/bin/seq",
    "/usr/bin/head",
    "/bin/chmod",
];

/// A world that can run commands, with its engine to be closed.
pub(super) struct Running {
    pub(super) world: World,
    engine: Engine,
    /// The engine's folder, until it is closed.
    _state: tempfile::TempDir,
}

impl Running {
    pub(super) async fn start() -> Option<Running> {
        Self::with_config(BuildConfig { network: false, memory_bytes: Some(256 << 20), ..BuildConfig::default() }).await
    }

    async fn with_config(config: BuildConfig) -> Option<Running> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: containers need root");
            return None;
        }
        let mut engine = None;
        let state = tempfile::tempdir().unwrap();
        let engine_config = EngineConfig { network: None, ..EngineConfig::new(state.path()) };
        match Engine::open(engine_config).await {
            Ok(opened) => engine = Some(opened),
            Err(error) => eprintln!("skipped: {error}"),
        }
        let engine = engine?;
        let world = World::with_config(config, |dir, store| {
            fill(&dir.join("root"));
            let mountpoint = dir.join("trees");
            std::fs::create_dir_all(&mountpoint).unwrap();
            let trees = Trees::mount(&mountpoint, Arc::new(StoreSource::new(store.clone()))).unwrap();
            Some(Containers { trees: Arc::new(trees), engine: engine.clone() })
        });
        Some(Running { world, engine, _state: state })
    }

    /// Takes everything down, and sees to it that nothing stays mounted.
    pub(super) async fn end(self) {
        let World { builder, dir, .. } = self.world;
        builder.close();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while Arc::strong_count(&builder.0) > 1 {
            assert!(std::time::Instant::now() < deadline, "a build goes on");
            tokio::task::yield_now().await;
        }
        self.engine.close().await.unwrap();
        drop(builder);
        dir.close().unwrap();
    }
}

/// Copies programs of this machine with their libraries into a root file system.
fn fill(root: &HostPath) {
    let listed = Command::new("ldd").args(PROGRAMS).output().unwrap();
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let libraries = listed.lines().filter_map(|line| line.trim().split(' ').find(|word| word.starts_with('/') && !word.ends_with(':')));
    for file in PROGRAMS.into_iter().chain(libraries) {
        let to = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
    let tmp = root.join("tmp");
    std::fs::create_dir_all(&tmp).unwrap();
    std::fs::set_permissions(&tmp, std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_in_order_and_leave_their_changes() {
    let Some(running) = Running::start().await else { return };
    let world = &running.world;
    let mut request = request(&[
        "FROM mini:1",
        "RUN mkdir /made && echo one > /made/file && rm /etc/group && echo tmp > /tmp/kept",
        "RUN cat /made/file > /second; echo $S >> /second; echo $HOME >> /second",
        "COPY x /x",
        "ENV E=e",
        "WORKDIR /w",
        "RUN cat /x > here; echo $E >> here; pwd >> here",
        "RUN <<'EOF'",
        "#!/bin/sh -e",
        "echo from a script > /script-was-here",
        "EOF",
        "USER app",
        "RUN id -u > /tmp/user",
    ]);
    request.context = Some(world.context(&[("x", "X\n")]));
    let env = BTreeMap::from([("S".to_owned(), "hidden".to_owned())]);
    request.secrets.push(BuildSecret { identity: Digest::of(b"s"), env });
    let record = world.build(request).await.unwrap_or_else(|error| panic!("{}", error.full_text()));
    for (name, text) in [
        ("made/file", "one\n"),
        ("second", "one\nhidden\n/root\n"),
        ("w/here", "X\ne\n/w\n"),
        ("script-was-here", "from a script\n"),
        ("tmp/user", "1000\n"),
        ("tmp/kept", "tmp\n"),
    ] {
        assert_eq!(world.text(&record, name), text, "{name}");
    }
    let tree = world.tree(&record);
    for name in ["etc/group", "__shoal", "proc", "sys", "dev"] {
        assert!(tree.get(&Path::parse(name).unwrap()).is_none(), "{name} must not be in the image");
    }
    assert!(!record.config.env.contains_key("S"));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_streams_and_failures_carry_code_and_last_lines() {
    let Some(running) = Running::start().await else { return };
    let world = &running.world;
    let handle = world.builder.get_or_start(request(&["FROM mini:1", "RUN echo out; echo err >&2; exit 7"]), None);
    let error = handle.wait().await.unwrap_err();
    let text = error.full_text();
    assert!(text.starts_with("line 2: RUN echo out; echo err >&2; exit 7\nthe command ended with exit code 7\nlast output:\n"), "{text}");
    assert!(text.contains("out") && text.contains("err"), "{text}");
    let said = |stream, text: &str| LogPiece::Text { stream, data: text.to_owned() };
    let pieces: Vec<_> = handle.entries_after(0).into_iter().map(|entry| entry.piece).collect();
    assert!(pieces.contains(&said(crate::log::Stream::Stdout, "out\n")) && pieces.contains(&said(crate::log::Stream::Stderr, "err\n")));

    let error = world.build(request(&["FROM mini:1", "RUN [\"/no/such\"]"])).await.unwrap_err().full_text();
    assert!(error.starts_with("line 2: RUN [\"/no/such\"]\nthe command ended with"), "{error}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_out_of_time_is_ended_and_says_where() {
    let Some(running) = Running::with_config(BuildConfig { network: false, timeout_seconds: 3, ..BuildConfig::default() }).await else {
        return;
    };
    let error = running.world.build(request(&["FROM mini:1", "RUN echo begun; sleep 1000"])).await.unwrap_err();
    assert_eq!(error.kind(), crate::FailureKind::Timeout);
    let text = error.full_text();
    assert!(text.contains("RUN echo begun; sleep 1000\nthe build did not end within 3 s") && text.contains("begun"), "{text}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_all_memory_is_told_apart() {
    let Some(running) = Running::with_config(BuildConfig { network: false, memory_bytes: Some(96 << 20), ..BuildConfig::default() }).await
    else {
        return;
    };
    let error = running.world.build(request(&["FROM mini:1", "RUN echo begun; x=$(seq 1 40000000); echo $x"])).await.unwrap_err();
    assert_eq!(error.kind(), crate::FailureKind::OutOfMemory, "{}", error.full_text());
    let text = error.full_text();
    assert!(text.contains("the command ran out of memory (limit: 100663296 bytes)\nlast output:\nbegun"), "{text}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_left_in_the_background_does_not_hold_up_the_build() {
    let Some(running) = Running::start().await else { return };
    let record = running.world.build(request(&["FROM mini:1", "RUN sleep 1000 & echo a > /a", "RUN echo b > /b"])).await;
    let record = record.unwrap_or_else(|error| panic!("{}", error.full_text()));
    assert_eq!((running.world.text(&record, "a"), running.world.text(&record, "b")), ("a\n".to_owned(), "b\n".to_owned()));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_serve_one_command_and_leave_nothing() {
    let Some(running) = Running::start().await else { return };
    let world = &running.world;
    let with = |text: &str| {
        let run = format!(
            "RUN --mount=type=cache,target=/var/c --mount=type=bind,target=/ctx --mount=type=secret,id=K \
             --mount=type=secret,id=K,env=NAMED --mount=type=tmpfs,target=/scratch --mount=type=bind,from=mini:1,source=/etc,target=/other \
             cat /var/c/* > /seen; echo {text} > /var/c/{text}; cat /ctx/x /run/secrets/K >> /seen; echo $NAMED >> /seen; \
             echo t > /scratch/t; head -n 1 /other/passwd >> /seen"
        );
        let mut request = request(&["FROM mini:1", &run]);
        request.context = Some(world.context(&[("x", "X\n")]));
        let env = BTreeMap::from([("K".to_owned(), "secret".to_owned())]);
        request.secrets.push(BuildSecret { identity: Digest::of(b"s"), env });
        request
    };
    world.build(with("first")).await.unwrap_or_else(|error| panic!("{}", error.full_text()));
    let record = world.build(with("second")).await.unwrap_or_else(|error| panic!("{}", error.full_text()));
    assert_eq!(world.text(&record, "seen"), "first\nX\nsecretsecret\nroot:x:0:0::/root:/bin/sh\n");
    let tree = world.tree(&record);
    for name in ["var/c/second", "ctx", "scratch", "other", "run/secrets/K"] {
        assert!(tree.get(&Path::parse(name).unwrap()).is_none(), "{name} must not be in the image");
    }
    let error = world.build(request(&["FROM mini:1", "RUN --mount=type=secret,id=NO,required=true x"])).await.unwrap_err().full_text();
    assert!(error.ends_with("no secret of this build has the variable NO"), "{error}");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_behind_when_builds_are_given_up() {
    let Some(running) = Running::start().await else { return };
    let handle = running.world.builder.get_or_start(request(&["FROM mini:1", "RUN echo begun; sleep 1000"]), None);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !log_text(&handle).contains("begun\n") || log_text(&handle).matches("begun").count() < 2 {
        assert!(std::time::Instant::now() < deadline, "{}", log_text(&handle));
        let _ =
            tokio::time::timeout(Duration::from_secs(1), handle.changed(handle.entries_after(0).last().map_or(0, |entry| entry.id))).await;
    }
    running.world.builder.close();
    let trees = running.world.builder.0.containers.as_ref().unwrap().trees.clone();
    let work = running.world.dir.path().join("work");
    let left = || std::fs::read_dir(&work).unwrap().count();
    while !trees.names().is_empty() || left() > 0 {
        assert!(std::time::Instant::now() < deadline, "trees {:?} stay bound, {} folders stay", trees.names(), left());
        tokio::task::yield_now().await;
    }
    drop(trees);
    running.end().await;
}
