//! What a node that was killed leaves is found by the next one, by name.

mod support;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use shoal_runtime::{ContainerSpec, Engine, EngineConfig, Error, Leftovers, NetworkConfig, NetworkMode, Verdict};
use support::{Bench, open_engine, read_line, root_directory, traces_of};

const CHILD: &str = "SHOAL_TEST_ENGINE_FOLDER";

/// Not a test: the process that is killed in the one below, which starts it.
#[tokio::test(flavor = "multi_thread")]
async fn owner_to_be_killed() {
    let Ok(folder) = env::var(CHILD) else { return };
    let engine = open_engine(Path::new(&folder), Some(NetworkConfig::default())).await;
    let mut spec = ContainerSpec::new(root_directory(), ["/probe", "sleep"]);
    spec.network = NetworkMode::Nat;
    let running = engine.create(spec.clone()).await.unwrap();
    running.start().await.unwrap();
    let (_, _pipe) = read_line(running.take_stdio().unwrap().stdout).await;
    let _ahead = engine.create(spec).await.unwrap();
    println!("\nowner {} {} {}", engine.tag(), running.sandbox_pid(), _ahead.sandbox_pid());
    std::future::pending().await
}

/// Starts that process; returns it with its tag and the ids of its two sandboxes.
fn start_owner(folder: &Path) -> (Child, String, String) {
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["owner_to_be_killed", "--exact", "--nocapture"])
        .env(CHILD, folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let said = lines.map(Result::unwrap).find_map(|line| line.strip_prefix("owner ").map(str::to_owned)).unwrap();
    let (tag, pids) = said.split_once(' ').unwrap();
    (owner, tag.to_owned(), pids.to_owned())
}

fn alive(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_cleans_what_a_killed_one_left() {
    needs_runsc!();
    let folder = tempfile::tempdir().unwrap();
    let (mut owner, _, pids) = start_owner(folder.path());

    // While it lives, nobody else may open its folder.
    let config = EngineConfig::new(folder.path().join("state"));
    let refused = Engine::open(config).await.unwrap_err();
    assert!(matches!(refused, Error::InUse { .. }), "{refused}");

    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(pids.split(' ').all(alive), "the sandboxes live on: there is something to clean");

    let engine = open_engine(folder.path(), Some(NetworkConfig::default())).await;
    let tag = engine.tag().to_string();
    assert!(!pids.split(' ').any(alive));
    let groups = traces_of(&tag, folder.path()).into_iter().filter(|trace| trace.contains(&format!("sh-{tag}")));
    assert_eq!(groups.collect::<Vec<_>>(), Vec::<String>::new(), "a container's name is still about");
    engine.close().await.unwrap();
    assert_eq!(traces_of(&tag, folder.path()), Vec::<String>::new());
}

/// A node that does not come back: nothing of it is left, also where its folder is gone before.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_process_left_is_taken_away_without_a_next_one() {
    needs_runsc!();
    for folder_stays in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (mut owner, tag, pids) = start_owner(folder.path());
        let state = folder.path().join("state");
        let refused = shoal_runtime::clean_up(&state).unwrap_err();
        assert!(matches!(refused, Error::InUse { .. }), "{refused}");

        owner.kill().unwrap();
        owner.wait().unwrap();
        assert!(pids.split(' ').all(alive), "the sandboxes live on: there is something to clean");
        if !folder_stays {
            fs::remove_dir_all(folder.path()).unwrap();
        }
        let found = shoal_runtime::clean_up(&state).unwrap();
        assert!(found.processes >= 2 && found.cgroups == 2 && found.mounts > 0, "{found:?}");
        assert!(!pids.split(' ').any(alive));
        assert_eq!(traces_of(&tag, folder.path()), Vec::<String>::new());
        assert_eq!(shoal_runtime::clean_up(&state).unwrap(), Leftovers::default());
        assert_eq!(state.exists(), folder_stays, "it made something");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_containers_at_once_are_kept_apart() {
    needs_runsc!();
    let bench = Bench::open().await;
    let runs = (0..8).map(|number| {
        let mut spec = bench.probe(&["exit", &number.to_string()]);
        spec.network = NetworkMode::Nat;
        bench.run(spec)
    });
    let exits = support::within("all exits", futures::future::join_all(runs)).await;
    let codes: Vec<_> = exits.iter().map(|(exit, ..)| exit.code()).collect();
    assert_eq!(codes, (0..8).collect::<Vec<_>>());
    bench.close().await;
}

// Other code of the node starts processes too, and waits for them itself.
#[tokio::test(flavor = "multi_thread")]
async fn exit_statuses_of_other_children_are_left_alone() {
    needs_runsc!();
    let bench = Bench::without_network().await;
    let others = (0..40).map(|n| async move {
        let mut child = tokio::process::Command::new("sh").args(["-c", &format!("sleep 0.{n:02}; exit {n}")]).spawn().unwrap();
        child.wait().await.unwrap().code()
    });
    let containers = (0..4).map(|_| bench.run(bench.probe(&["exit", "5"])));
    let (codes, exits) = tokio::join!(futures::future::join_all(others), futures::future::join_all(containers));
    assert_eq!(codes, (0..40).map(Some).collect::<Vec<_>>());
    assert!(exits.iter().all(|(exit, ..)| exit.code() == 5));
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_a_machine_that_runs_containers_fit() {
    needs_runsc!();
    let config = EngineConfig::new("/");
    let findings = shoal_runtime::doctor_checks(&config.runsc, &config.platform).await;
    for finding in &findings {
        eprintln!("{finding:?}");
        assert_eq!(finding.fix.is_some(), finding.verdict != Verdict::Good, "{finding:?}");
    }
    assert!(findings.iter().all(|finding| finding.verdict != Verdict::Bad), "{findings:?}");
    let missing = shoal_runtime::doctor_checks(Path::new("/no/runsc"), &config.platform).await;
    let runsc = missing.iter().find(|finding| finding.name == "runsc").unwrap();
    assert_eq!(runsc.verdict, Verdict::Bad);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_runsc_is_refused_with_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("runsc");
    fs::write(&fake, "#!/bin/sh\necho runsc version release-20240729.0\n").unwrap();
    fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = EngineConfig { runsc: fake, ..EngineConfig::new(folder.path().join("state")) };
    let error = support::within("the refusal", Engine::open(config)).await.unwrap_err();
    assert!(matches!(&error, Error::RunscVersion { found, .. } if found == "release-20240729.0"), "{error}");
}
