//! Whom containers can reach, with a real runsc and a real firewall.

mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    process::Command,
    thread,
    time::Duration,
};

use shoal_runtime::{Container, NetworkConfig, NetworkMode};
use support::{Bench, read_line};

/// A server of this machine on all its addresses that says "here" to everyone.
fn server() -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"here");
        }
    });
    port
}

/// An engine whose containers may reach one port of the node; the other one is not for them.
async fn bench() -> (Bench, u16, u16) {
    let (api, private) = (server(), server());
    let network = NetworkConfig { node_ports: vec![api], slots_ahead: 2, ..NetworkConfig::default() };
    (Bench::open_with(Some(network)).await, api, private)
}

async fn connect(bench: &Bench, mode: NetworkMode, to: impl Into<SocketAddr>) -> String {
    let mut spec = bench.probe(&["connect", &to.into().to_string()]);
    spec.network = mode;
    let (exit, out, err) = bench.run(spec).await;
    assert!(exit.success(), "{err}");
    out
}

/// An address of this machine that is not the engine's.
fn own_address() -> Option<String> {
    let output = Command::new("ip").args(["-4", "-o", "route", "get", "192.0.2.254"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "src").skip(1);
    words.next().map(str::to_owned)
}

async fn listener(bench: &Bench, mode: NetworkMode) -> Container {
    let mut spec = bench.probe(&["listen", "8000"]);
    spec.network = mode;
    let container = bench.start(spec).await;
    let (line, _) = read_line(container.take_stdio().unwrap().stdout).await;
    assert_eq!(line, "ready");
    container
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_reached_at_its_gateway_address_and_only_by_its_ports() {
    needs_runsc!();
    let (bench, api, private) = bench().await;
    let gateway = bench.engine.gateway_address().unwrap();
    for mode in [NetworkMode::Nat, NetworkMode::NodeOnly] {
        assert_eq!(connect(&bench, mode, (gateway, api)).await, "open here\n", "{mode:?}");
        let refused = connect(&bench, mode, (gateway, private)).await;
        assert!(refused.starts_with("shut"), "{mode:?}: {refused}");
        if let Some(own) = own_address() {
            let own: SocketAddr = format!("{own}:{api}").parse().unwrap();
            let refused = connect(&bench, mode, own).await;
            assert!(refused.starts_with("shut"), "{mode:?} by another address: {refused}");
        }
    }
    let alone = connect(&bench, NetworkMode::None, (gateway, api)).await;
    assert!(alone.starts_with("shut"), "{alone}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_do_not_reach_one_another() {
    needs_runsc!();
    let (bench, ..) = bench().await;
    let (other, ..) = self::bench().await;
    let neighbours = [listener(&bench, NetworkMode::Nat).await, listener(&other, NetworkMode::NodeOnly).await];
    for neighbour in &neighbours {
        let target = (neighbour.addresses().unwrap().own, 8000);
        // The node itself does reach it, so the server is not what is missing.
        let mut text = String::new();
        std::net::TcpStream::connect(target).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        for mode in [NetworkMode::Nat, NetworkMode::NodeOnly] {
            let refused = connect(&bench, mode, target).await;
            assert!(refused.starts_with("shut"), "{mode:?}: {refused}");
        }
        neighbour.destroy().await.unwrap();
    }
    bench.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_resolve_with_nat_and_not_without() {
    needs_runsc!();
    let (bench, ..) = bench().await;
    for (mode, answered) in [(NetworkMode::Nat, true), (NetworkMode::NodeOnly, false)] {
        let mut spec = bench.probe(&["dns"]);
        spec.network = mode;
        let (_, out, err) = bench.run(spec).await;
        if err.contains("a nameserver") {
            eprintln!("skipped: this machine has no resolver that containers could use");
            break;
        }
        assert_eq!(out == "answered\n", answered, "{mode:?}: {out}{err}");
    }
    bench.close().await;
}

// The rules for the world are those for every address that is not the node's. A blocked network
// is one of them, and unlike the internet it is the same on every machine.
#[tokio::test(flavor = "multi_thread")]
async fn closed_containers_and_blocked_networks_are_refused_at_once() {
    needs_runsc!();
    let (bench, ..) = bench().await;
    let refused_in_time = |answer: &str| {
        let millis = answer.split(' ').nth(2).and_then(|word| word.parse::<u64>().ok());
        millis.is_some_and(|millis| millis < 2000)
    };
    let metadata: SocketAddr = "169.254.169.254:80".parse().unwrap();
    let world: SocketAddr = "203.0.113.7:80".parse().unwrap();
    for (mode, to) in [(NetworkMode::Nat, metadata), (NetworkMode::NodeOnly, metadata), (NetworkMode::NodeOnly, world)] {
        let answer = connect(&bench, mode, to).await;
        assert!(refused_in_time(&answer), "{mode:?} to {to}: {answer}");
    }
    bench.engine.set_blocked(vec!["203.0.113.0/24".into()]).await.unwrap();
    let answer = connect(&bench, NetworkMode::Nat, world).await;
    assert!(refused_in_time(&answer), "{answer}");
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_forwarded_by_the_sandbox_itself() {
    needs_runsc!();
    let (bench, ..) = bench().await;
    let container = listener(&bench, NetworkMode::NodeOnly).await;
    let stream = container.port_forward(8000).await.unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = String::new();
    (&stream).read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    container.destroy().await.unwrap();
    bench.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_ready_when_containers_come_one_by_one() {
    needs_runsc!();
    let (bench, ..) = bench().await;
    let mut addresses = std::collections::BTreeSet::new();
    for _ in 0..4 {
        // The first one may come before the pool is filled.
        let mut spec = bench.probe(&["exit", "0"]);
        spec.network = NetworkMode::Nat;
        let container = bench.start(spec).await;
        container.exit().await.unwrap();
        addresses.insert(container.addresses().unwrap().own);
        let timings = container.timings();
        eprintln!("{timings:?}");
        assert!(timings.start.is_some());
        container.destroy().await.unwrap();
    }
    assert_eq!(addresses.len(), 4, "an address was used again at once");
    bench.close().await;
}
