//! What no name shows: descriptors and zombies. Alone in its process, so that all it counts is its own.

mod support;

use std::{fs, process::Command, time::Duration};

use shoal_runtime::{NetworkConfig, NetworkMode};
use support::{Bench, within};

/// What this process holds that a container can leak: namespaces, processes, pipes, sockets.
fn held() -> Vec<String> {
    let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
    let mut names: Vec<_> = all
        .filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.to_string_lossy().into_owned()))
        .map(|name| name.split('[').next().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    names
}

/// Zombies among our children, but for the `ps` that lists them.
fn zombies() -> Vec<String> {
    let own = std::process::id().to_string();
    let output = Command::new("ps").args(["-o", "stat=,comm=", "--ppid", &own]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.starts_with('Z')).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_leaves_no_descriptor_and_no_zombie() {
    needs_runsc!();
    let network = NetworkConfig { slots_ahead: 0, ..NetworkConfig::default() };
    let bench = Bench::open_with(Some(network)).await;
    let mut lines = bench.probe(&["lines", "10"]);
    lines.network = NetworkMode::Nat;
    // The first one lets tokio and the standard library open what they keep.
    bench.run(lines.clone()).await;
    let before = held();
    for _ in 0..3 {
        bench.run(lines.clone()).await;
        let sleeper = bench.start(bench.probe(&["sleep"])).await;
        sleeper.destroy().await.unwrap();
    }
    // The handle's own descriptors go when the last task that had them has ended.
    let settled = async {
        while held() != before || !zombies().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(10), settled).await.is_err() {
        assert_eq!((held(), zombies()), (before, Vec::new()));
    }
    within("the end", bench.close()).await;
}
