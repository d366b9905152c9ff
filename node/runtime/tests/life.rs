//! The life of a container, with a real runsc: start, streams, exit, stop, and nothing left.

mod support;

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use shoal_runtime::{AddedFile, Bind, Error, ExitStatus, Limits, Overlay, User};
use support::{Bench, read_all, read_line, within};

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_is_that_of_the_first_process() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    for code in [0, 7, 255] {
        let (exit, _, _) = bench.run(bench.probe(&["exit", &code.to_string()])).await;
        assert_eq!((exit.status, exit.oom), (ExitStatus::Code(code), false));
    }
    let (exit, _, _) = bench.run(bench.probe(&["abort"])).await;
    assert_eq!(exit.code(), 128 + libc::SIGABRT);
    bench.close().await;
}

// A program that prints and leaves at once must not lose its last lines: they are in the pipes
// when the sandbox is gone.
#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_and_their_order_is_kept() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    for _ in 0..5 {
        let (exit, out, err) = bench.run(bench.probe(&["lines", "10000"])).await;
        assert!(exit.success());
        let numbered = |word: &str, step| (0..10_000).step_by(step).map(|n| format!("{word} {n}\n")).collect::<String>();
        assert!(out == numbered("line", 1), "{} bytes of stdout", out.len());
        assert!(err == numbered("note", 10), "{} bytes of stderr", err.len());
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stdin_is_a_pipe_or_null() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&["echo"]);
    let (_, out, _) = bench.run(spec.clone()).await;
    assert_eq!(out, "", "/dev/null has nothing to echo");

    spec.stdin = true;
    let container = bench.start(spec).await;
    let stdio = container.take_stdio().unwrap();
    assert!(container.take_stdio().is_none(), "only the first call gets the pipes");
    let text = "x".repeat(1 << 20);
    let mut stdin = fs::File::from(stdio.stdin.unwrap());
    let written = tokio::task::spawn_blocking({
        let text = text.clone();
        move || stdin.write_all(text.as_bytes()).unwrap()
    });
    assert!(within("the echo", read_all(stdio.stdout)).await.unwrap() == text);
    written.await.unwrap();
    assert!(container.exit().await.unwrap().success());
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_minds_the_signal_ends_as_it_likes() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let container = bench.start(bench.probe(&["hooked"])).await;
    let (line, rest) = read_line(container.take_stdio().unwrap().stdout).await;
    assert_eq!(line, "ready");
    let exit = container.stop(libc::SIGINT, Duration::from_secs(20)).await.unwrap();
    assert_eq!(exit.status, ExitStatus::Code(3));
    assert_eq!(read_all(rest).await.unwrap(), "bye\n");
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stubborn_program_is_killed_after_its_grace() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let container = bench.start(bench.probe(&["stubborn"])).await;
    let (_, _rest) = read_line(container.take_stdio().unwrap().stdout).await;
    let grace = Duration::from_millis(500);
    let began = Instant::now();
    let exit = container.stop(libc::SIGINT, grace).await.unwrap();
    assert_eq!(exit.code(), 137);
    assert!(began.elapsed() >= grace && began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    // Later calls get the same answer.
    assert_eq!(container.exit().await.unwrap(), exit);
    assert_eq!(container.exit_now(), Some(exit));
    container.signal(libc::SIGTERM, false).await.unwrap();
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_was_never_started_stops_at_once() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let container = bench.engine.create(bench.probe(&["sleep"])).await.unwrap();
    let began = Instant::now();
    container.stop(libc::SIGINT, Duration::from_secs(30)).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(25));
    container.destroy().await.unwrap();
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_refused_by_name() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&[]);
    spec.argv = vec!["/no/such/program".into()];
    let container = bench.engine.create(spec).await.unwrap();
    let error = container.start().await.unwrap_err();
    assert!(matches!(&error, Error::Refused { message, .. } if message.contains("/no/such/program")), "{error}");
    container.destroy().await.unwrap();

    let mut spec = bench.probe(&["exit", "0"]);
    spec.rootfs = "/no/such/root".into();
    let error = bench.engine.create(spec).await.unwrap_err();
    assert!(matches!(&error, Error::Description { reason, .. } if reason.contains("/no/such/root")), "{error}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_sees_what_the_description_says() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let shared = bench.folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("given"), "from the host").unwrap();
    let with = |words: &[&str]| {
        let mut spec = bench.probe(words);
        spec.env.push(("COLOUR".into(), "blue".into()));
        spec.cwd = "/work/here".into();
        spec.user = User { uid: 1000, gid: 100, groups: vec![] };
        spec.hostname = "reef".into();
        spec.binds.push(Bind { source: shared.clone(), target: "/shared".into(), read_only: false });
        let content = b"small".to_vec();
        spec.files.push(AddedFile { target: "/__shoal/note".into(), content, mode: 0o444 });
        spec
    };
    for (words, expected) in [
        (&["env", "COLOUR"][..], "blue\n"),
        (&["cwd"], "/work/here\n"),
        (&["id"], "1000 100\n"),
        (&["cat", "/proc/sys/kernel/hostname"], "reef\n"),
        (&["cat", "/etc/hostname"], "reef\n"),
        (&["cat", "/shared/given"], "from the host"),
        (&["cat", "/__shoal/note"], "small"),
        (&["cat", "/etc/fixed"], "as it was"),
    ] {
        let (exit, out, err) = bench.run(with(words)).await;
        assert_eq!((exit.code(), out.as_str()), (0, expected), "{words:?}: {err}");
    }
    let mut root = with(&["write", "/shared/taken", "from inside"]);
    root.user = User::default();
    assert!(bench.run(root.clone()).await.0.success());
    assert_eq!(fs::read_to_string(shared.join("taken")).unwrap(), "from inside");
    root.binds[0].read_only = true;
    assert!(!bench.run(root).await.0.success(), "a read-only bind is written to");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_go_to_the_overlay_and_can_be_exported() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    for overlay in [Overlay::Disk, Overlay::Memory] {
        let mut spec = bench.probe(&["sleep"]);
        spec.overlay = overlay;
        let container = bench.start(spec).await;
        let _pipes = container.take_stdio();
        for words in [["write", "/tmp/left", "a"], ["write", "/etc/fixed", "changed"]] {
            let words = ["/probe"].iter().chain(&words).copied();
            let exec = container.exec(shoal_runtime::ExecSpec::new(words)).await.unwrap();
            assert_eq!(within("the exec", exec.wait()).await, ExitStatus::Code(0));
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        container.export_upper(file.as_file()).await.unwrap();
        let listed = std::process::Command::new("tar").arg("tf").arg(file.path()).output().unwrap();
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        for path in ["./tmp/left", "./etc/fixed"] {
            assert!(listed.lines().any(|line| line == path), "{overlay:?}: no {path} in\n{listed}");
        }
        container.destroy().await.unwrap();
    }
    let fixed = support::root_directory().join("etc/fixed");
    assert_eq!(fs::read_to_string(fixed).unwrap(), "as it was", "the root was written to");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overlay_is_capped() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&["fillfile", "/big", "50000000"]);
    spec.limits = Limits { disk_bytes: Some(20 << 20), ..Limits::default() };
    let (_, out, err) = bench.run(spec.clone()).await;
    assert_eq!(out, "stopped: StorageFull\n", "{err}");
    spec.limits.disk_bytes = Some(100 << 20);
    assert_eq!(bench.run(spec).await.1, "fits\n");
    bench.close().await;
}

// A sandbox may be made before its image is there: what counts is the root at the start.
#[tokio::test(flavor = "multi_thread")]
async fn the_root_may_be_filled_after_the_creation() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let root = bench.folder.path().join("late");
    fs::create_dir(&root).unwrap();
    let mut spec = bench.probe(&["cat", "/etc/fixed"]);
    spec.rootfs = root.clone();
    let container = bench.engine.create(spec).await.unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/fixed"), "late").unwrap();
    fs::copy(support::root_directory().join("probe"), root.join("probe")).unwrap();
    container.start().await.unwrap();
    let out = read_all(container.take_stdio().unwrap().stdout).await.unwrap();
    assert_eq!(out, "late");
    container.destroy().await.unwrap();
    fs::remove_dir_all(root).unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handle_that_is_dropped_takes_its_container_along() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let container = bench.start(bench.probe(&["sleep"])).await;
    let pid = container.sandbox_pid();
    drop(container);
    let gone = async {
        while fs::exists(format!("/proc/{pid}")).unwrap()
            || fs::read_dir(format!("/run/shoal/{}/bundles", bench.engine.tag())).unwrap().next().is_some()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within("the end of the container", gone).await;
    bench.close().await;
}
