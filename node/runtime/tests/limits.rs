//! What containers may use, with real cgroups.

mod support;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use shoal_runtime::{ExecSpec, ExitStatus, Limits};
use support::{Bench, read_all, read_line, within};

/// The files of a container's cgroups with this name, in whatever hierarchy.
fn cgroup_file(container: &str, names: &[&str]) -> Option<String> {
    let output = std::process::Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", container]).output().unwrap();
    let folders = String::from_utf8(output.stdout).unwrap();
    let paths = folders.lines().flat_map(|folder| names.iter().map(move |name| format!("{folder}/{name}")));
    paths.filter_map(|path| fs::read_to_string(path).ok()).next()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_over_its_memory_is_killed_and_the_exit_says_why() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&["fill", &(400 << 20).to_string()]);
    spec.limits = Limits { memory_bytes: Some(200 << 20), ..Limits::default() };
    let container = bench.start(spec).await;
    let _pipes = container.take_stdio();
    let exit = within("the kill", container.exit()).await.unwrap();
    assert!(exit.oom && !exit.success(), "{exit:?}");
    container.destroy().await.unwrap();

    // Killed by us, with the same limit and enough room: not for its memory.
    let mut spec = bench.probe(&["fill", &(20 << 20).to_string()]);
    spec.limits = Limits { memory_bytes: Some(200 << 20), ..Limits::default() };
    let container = bench.start(spec).await;
    let (line, _rest) = read_line(container.take_stdio().unwrap().stdout).await;
    assert!(line.starts_with("full"));
    assert!(container.usage().memory_bytes >= 20 << 20, "{:?}", container.usage());
    let exit = container.stop(libc::SIGKILL, Duration::from_secs(5)).await.unwrap();
    assert!(!exit.oom, "{exit:?}");
    container.destroy().await.unwrap();
    bench.close().await;
}

/// What a container takes is seen by the engine; while all of them take too much, the one that takes the most is killed, and
/// the others live.
#[tokio::test(flavor = "multi_thread")]
async fn of_containers_that_fill_the_disk_together_the_largest_ends() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let budget = Arc::new(AtomicU64::new(u64::MAX));
    let asked = budget.clone();
    bench.engine.bound_overlays(move |_| Ok(asked.load(Ordering::Relaxed)));
    let [small, large] = [bench.start(bench.probe(&["sleep"])).await, bench.start(bench.probe(&["sleep"])).await];
    for (container, bytes) in [(&small, 10 << 20), (&large, 60 << 20)] {
        let mut exec = container.exec(ExecSpec::new(["/probe", "fillfile", "/big", &bytes.to_string()])).await.unwrap();
        assert_eq!(read_all(exec.take_stdio().unwrap().stdout).await.unwrap(), "fits\n");
    }
    let taken = || bench.engine.disks().taken_bytes;
    within("the sizes", async {
        while !(70 << 20..100 << 20).contains(&taken()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    budget.store(50 << 20, Ordering::Relaxed);
    let exit = within("the kill", large.exit()).await.unwrap();
    let over = exit.disk.expect("it says why");
    assert!(over.own_bytes >= 60 << 20 && over.all_bytes >= 70 << 20 && over.budget_bytes == 50 << 20, "{over:?}");
    within("the space to be given back", async {
        while taken() > 50 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(small.exit_now().is_none());
    let exit = small.stop(libc::SIGKILL, Duration::from_secs(5)).await.unwrap();
    assert_eq!(exit.disk, None, "killed by us");
    for container in [small, large] {
        container.destroy().await.unwrap();
    }
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cpu_quota_is_kept() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&["burn", "1500"]);
    spec.limits = Limits { cpu_millis: Some(300), cpu_request_millis: Some(250), ..Limits::default() };
    let container = bench.engine.create(spec).await.unwrap();
    let name = container.id().to_string();
    let quota = cgroup_file(&name, &["cpu.cfs_quota_us", "cpu.max"]).unwrap();
    assert!(quota.starts_with("30000"), "{quota}");
    let share = cgroup_file(&name, &["cpu.shares", "cpu.weight"]).unwrap();
    assert!(["256", "25"].contains(&share.trim()), "{share}");

    let before = container.usage().cpu;
    let began = Instant::now();
    container.start().await.unwrap();
    container.exit().await.unwrap();
    // Two threads want two cores; it gets 0.3. Its start is in the count as well.
    let (used, took) = (container.usage().cpu - before, began.elapsed());
    assert!(used < took.mul_f64(0.3) + Duration::from_millis(300), "{used:?} of CPU in {took:?}");
    assert!(used > Duration::from_millis(100), "{used:?} of CPU in {took:?}");
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_sees_as_many_cores_as_its_quota_needs_and_may_run_on_all() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let machine = std::thread::available_parallelism().unwrap().get() as u64;
    for (cpu_millis, seen) in [(300, 1), (1000, 1), (1001, machine.min(2)), (machine * 1000 + 500, machine)] {
        let mut spec = bench.probe(&["cores"]);
        spec.limits = Limits { cpu_millis: Some(cpu_millis), ..Limits::default() };
        let (_, out, err) = bench.run(spec).await;
        assert_eq!((out.trim(), &*err), (&*seen.to_string(), ""), "{cpu_millis} thousandths of {machine} cores");
    }
    let mut spec = bench.probe(&["burn", "100"]);
    spec.limits = Limits { cpu_millis: Some(300), ..Limits::default() };
    let container = bench.start(spec).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", container.sandbox_pid())).unwrap();
    let own = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed = |status: &str| status.lines().find(|line| line.starts_with("Cpus_allowed:")).map(str::to_owned);
    assert_eq!(allowed(&status), allowed(&own));
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_is_a_process_of_its_own() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let mut spec = bench.probe(&["sleep"]);
    spec.env.push(("COLOUR".into(), "blue".into()));
    let container = bench.start(spec).await;
    let _pipes = container.take_stdio();
    let exec = |words: &[&str]| {
        let words: Vec<String> = ["/probe"].iter().chain(words).map(|w| (*w).to_owned()).collect();
        shoal_runtime::ExecSpec::new(words)
    };

    let mut run = exec(&["lines", "1000"]);
    let mut process = container.exec(run).await.unwrap();
    let stdio = process.take_stdio().unwrap();
    let (out, err) = (support::read_all(stdio.stdout), support::read_all(stdio.stderr));
    assert_eq!(within("its end", process.wait()).await, ExitStatus::Code(0));
    assert_eq!(out.await.unwrap().lines().count(), 1000);
    assert_eq!(err.await.unwrap().lines().count(), 100);

    assert_eq!(within("code", container.exec(exec(&["exit", "42"])).await.unwrap().wait()).await, ExitStatus::Code(42));

    run = exec(&["env", "COLOUR"]);
    run.env.push(("COLOUR".into(), "red".into()));
    let mut process = container.exec(run).await.unwrap();
    let out = support::read_all(process.take_stdio().unwrap().stdout).await.unwrap();
    assert_eq!(out, "red\n");

    // A signal to it leaves the container alone.
    let mut process = container.exec(exec(&["sleep"])).await.unwrap();
    let (_, _rest) = read_line(process.take_stdio().unwrap().stdout).await;
    process.kill(libc::SIGTERM).await.unwrap();
    assert_eq!(within("its end", process.wait()).await, ExitStatus::Signal(libc::SIGTERM));
    process.kill(libc::SIGTERM).await.unwrap();
    assert_eq!(container.exit_now(), None);

    // Both streams as one.
    run = exec(&["lines", "1000"]);
    run.merged = true;
    let stdio = container.exec(run).await.unwrap().take_stdio().unwrap();
    assert_eq!(support::read_all(stdio.stdout).await.unwrap().lines().count(), 1100);
    assert_eq!(support::read_all(stdio.stderr).await.unwrap(), "");

    // The end of the container is the end of its execs.
    let mut process = container.exec(exec(&["sleep"])).await.unwrap();
    let (_, _rest) = read_line(process.take_stdio().unwrap().stdout).await;
    let began = Instant::now();
    container.stop(libc::SIGTERM, Duration::from_secs(30)).await.unwrap();
    assert_eq!(within("its end", process.wait()).await, ExitStatus::Signal(libc::SIGKILL));
    assert!(began.elapsed() < Duration::from_secs(25), "an open call held up the exit: {:?}", began.elapsed());
    container.destroy().await.unwrap();
    bench.close().await;
}
