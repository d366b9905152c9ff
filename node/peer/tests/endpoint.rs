//! Nodes that talk over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_peer::{
    Admission, Authority, Endpoint, Entry, Error, Identity, JoinToken, Member, Options, Pass, Secret, Service, Stream, ask_seed, join,
};
use shoal_state::{BootId, NodeId, TokenId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ECHO: Service = Service::new(1, "echo what it was sent");
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Someone {
    member: Member,
    refuses: AtomicBool,
}

impl Admission for Someone {
    fn myself(&self) -> Member {
        self.member.clone()
    }

    fn admit(&self, peer: &Member) -> Result<(), String> {
        match self.refuses.load(Ordering::Relaxed) {
            true => Err(format!("node {} was removed: wipe its data folder, and join it anew", peer.node)),
            false => Ok(()),
        }
    }
}

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

struct Cluster {
    ca: Authority,
}

struct Node {
    id: NodeId,
    endpoint: Endpoint,
    admission: Arc<Someone>,
    address: SocketAddr,
}

impl Node {
    fn at(&self) -> String {
        self.address.to_string()
    }
}

impl Cluster {
    fn new() -> Self {
        Self { ca: Authority::make(now()).unwrap() }
    }

    fn node(&self, number: u128) -> Node {
        self.node_at(number, 1, "127.0.0.1:0".parse().unwrap())
    }

    fn node_at(&self, number: u128, boot: u128, address: SocketAddr) -> Node {
        let id = NodeId::from_random(number);
        let (request, key) = Identity::ask().unwrap();
        let leaf = self.ca.certify(id, &request, now()).unwrap();
        let identity = Identity::new(&key, &leaf, self.ca.certificate()).unwrap();
        let member =
            Member { cluster: [1; 16], generation: 1, node: id, boot: BootId::from_random(boot), version: 1, release: "test".into() };
        let admission = Arc::new(Someone { member, refuses: AtomicBool::new(false) });
        let options = Options { address, identity, admission: admission.clone(), reset_key: [number as u8; 32], segmentation: true };
        let endpoint = Endpoint::open(options).unwrap();
        endpoint.serve(ECHO, echo);
        let address = endpoint.address().unwrap();
        Node { id, endpoint, admission, address }
    }
}

async fn echo(mut stream: Stream, from: Option<Arc<Member>>) {
    assert_eq!(from.unwrap().node, stream.peer());
    while let Ok(Some(frame)) = stream.next().await {
        match &frame[..] {
            b"fail" => return stream.fail("it is not to be done: do something else").await.unwrap(),
            b"sleep" => tokio::time::sleep(Duration::from_secs(60)).await,
            _ => stream.send(frame).await.unwrap(),
        }
    }
    stream.finish().unwrap();
}

async fn ask(from: &Node, to: &Node, what: &'static str) -> Result<Bytes, Error> {
    from.endpoint.call(to.id, &to.at(), ECHO, Bytes::from(what), PATIENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_answered_both_ways_over_one_connection() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    assert_eq!(ask(&one, &two, "hello").await.unwrap(), "hello");
    assert_eq!(one.endpoint.connected()[0].0, two.id);
    assert_eq!(two.endpoint.connected()[0].0, one.id);
    // Nobody is at this address: the connection that is there is used.
    let back = two.endpoint.call(one.id, "127.0.0.1:1", ECHO, Bytes::from("back"), PATIENCE).await;
    assert_eq!(back.unwrap(), "back");
    let words = ask(&one, &two, "fail").await.unwrap_err();
    assert!(words.to_string().contains("it is not to be done: do something else"), "{words}");
    let unknown = one.endpoint.call(two.id, &two.at(), Service::new(9, "x"), Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(unknown.to_string().contains("does not do that yet"), "{unknown}");
    one.endpoint.close().await;
    two.endpoint.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_long_frames_go_both_ways_at_once() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    let mut stream = one.endpoint.open_stream(two.id, &two.at(), ECHO).await.unwrap();
    for length in [0, 1, 1000, 1 << 20, 24 << 20] {
        let frame = Bytes::from(vec![length as u8; length]);
        stream.send(frame.clone()).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), frame);
    }
    stream.finish().unwrap();
    assert_eq!(stream.next().await.unwrap(), None);
    let asks = (0..200).map(|_| ask(&one, &two, "many"));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.unwrap(), "many");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_ca_is_not_heard() {
    let (ours, other) = (Cluster::new(), Cluster::new());
    let (one, stranger) = (ours.node(1), other.node(2));
    let error = ask(&stranger, &one, "let me in").await.unwrap_err();
    assert!(error.nothing_sent(), "{error}");
    assert!(one.endpoint.connected().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_another_than_expected_is_not_spoken_to() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    let error = one.endpoint.call(NodeId::from_random(3), &two.at(), ECHO, Bytes::from("secret"), PATIENCE).await.unwrap_err();
    assert!(error.nothing_sent(), "{error}");
    assert!(error.to_string().contains("another node answers there"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_peer_hears_why() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    two.admission.refuses.store(true, Ordering::Relaxed);
    let error = ask(&one, &two, "hello").await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("was removed: wipe its data folder"), "{error}");
    two.admission.refuses.store(false, Ordering::Relaxed);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = ask(&one, &two, "hello").await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a node until the process is killed; not a test by itself.
#[tokio::test(flavor = "multi_thread")]
async fn node_to_be_killed() {
    let Ok(key) = std::env::var("PEER_CA_KEY") else { return };
    let ca: Vec<u8> = std::env::var("PEER_CA").unwrap().split(' ').map(|byte| byte.parse().unwrap()).collect();
    let address = std::env::var("PEER_ADDRESS").unwrap().parse().unwrap();
    let boot = std::env::var("PEER_BOOT").unwrap().parse().unwrap();
    let _node = Cluster { ca: Authority::read(&key, &ca).unwrap() }.node_at(2, boot, address);
    std::future::pending::<()>().await;
}

struct Killed(std::process::Child);

impl Killed {
    fn start(cluster: &Cluster, boot: u128, address: SocketAddr) -> Self {
        let ca: Vec<String> = cluster.ca.certificate().iter().map(u8::to_string).collect();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "node_to_be_killed"]).env("PEER_CA_KEY", cluster.ca.key()).env("PEER_CA", ca.join(" "));
        let quiet = std::process::Stdio::null;
        command.env("PEER_ADDRESS", address.to_string()).env("PEER_BOOT", boot.to_string()).stdout(quiet()).stderr(quiet());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_was_killed_and_started_anew_is_reached_again_at_once() {
    let cluster = Cluster::new();
    let one = cluster.node(1);
    let two = NodeId::from_random(2);
    let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let reach = async |boot: u128| {
        let began = Instant::now();
        loop {
            let at = address.to_string();
            match one.endpoint.call(two, &at, ECHO, Bytes::from("again"), Duration::from_millis(300)).await {
                Ok(_) => break assert_eq!(one.endpoint.connected()[0].1, BootId::from_random(boot)),
                // Quiet connections are given up after 10 s: this must not be what was waited for.
                Err(error) => assert!(began.elapsed() < Duration::from_secs(8), "{error}"),
            }
        }
    };
    let first = Killed::start(&cluster, 1, address);
    reach(1).await;
    drop(first);
    // What is still sent there is answered by its machine.
    let began = Instant::now();
    while one.endpoint.closed(two).is_none_or(|ago| ago > began.elapsed()) {
        assert!(began.elapsed() < Duration::from_secs(8), "nobody said that the port is closed");
        let _ = one.endpoint.call(two, &address.to_string(), ECHO, Bytes::from("there?"), Duration::from_millis(50)).await;
    }
    let _second = Killed::start(&cluster, 2, address);
    reach(2).await;
    let reached = Instant::now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(one.endpoint.closed(two).is_some_and(|ago| ago > reached.elapsed()), "it is said of a port that is open");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_or_is_not_there_ends_with_words() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    assert_eq!(ask(&one, &two, "hello").await.unwrap(), "hello");
    let late = one.endpoint.call(two.id, &two.at(), ECHO, Bytes::from("sleep"), Duration::from_secs(1)).await.unwrap_err();
    assert!(matches!(late, Error::Late { .. }) && !late.nothing_sent(), "{late:?}");
    let nobody = NodeId::from_random(9);
    let try_it = async || {
        let began = Instant::now();
        let error = one.endpoint.call(nobody, "127.0.0.1:9", ECHO, Bytes::new(), PATIENCE).await.unwrap_err();
        (error, began.elapsed())
    };
    let (error, took) = try_it().await;
    assert!(error.nothing_sent() && error.to_string().contains(&nobody.to_string()), "{error}");
    // Who comes soon after gets the same answer without another try, but for one who was held up meanwhile.
    let again = [try_it().await.1, try_it().await.1, try_it().await.1];
    assert!(again.iter().any(|again| *again < took / 2), "{again:?} after {took:?}");
    let error = one.endpoint.call(nobody, "no.such.host.invalid:1", ECHO, Bytes::new(), PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("no.such.host.invalid"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_certificate_can_ask_for_one_and_for_nothing_else() {
    let cluster = Cluster::new();
    let one = cluster.node(1);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    one.endpoint.serve(Service::JOIN, move |mut stream: Stream, from| {
        let count = count.clone();
        async move {
            assert!(from.is_none());
            count.fetch_add(1, Ordering::Relaxed);
            let request = stream.next().await.unwrap().unwrap();
            match &request[..] {
                b"good secret" => {
                    stream.send(Bytes::from("welcome")).await.unwrap();
                    stream.finish().unwrap();
                    stream.closed().await;
                }
                _ => {
                    stream.fail("the token was used before: make another").await.unwrap();
                    stream.closed().await;
                }
            }
        }
    });
    let token = JoinToken { fingerprint: cluster.ca.fingerprint(), secret: "good secret".into() };
    let joined = join(&one.at(), token.fingerprint, Bytes::from(token.secret)).await.unwrap();
    assert_eq!((&joined.answer[..], &joined.ca[..]), (&b"welcome"[..], cluster.ca.certificate()));
    let refused = join(&one.at(), token.fingerprint, Bytes::from("bad secret")).await.unwrap_err();
    assert!(matches!(refused, Error::Refused { .. }) && refused.to_string().contains("was used before"), "{refused}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    // A token of another cluster: the secret is not shown.
    let other = join(&one.at(), Cluster::new().ca.fingerprint(), Bytes::from("good secret")).await.unwrap_err();
    assert!(other.to_string().contains("another cluster"), "{other}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_endpoint_lets_go_of_what_it_served_from() {
    let one = Cluster::new().node(1);
    let held = Arc::new(());
    let (with, itself) = (held.clone(), one.endpoint.clone());
    one.endpoint.serve(Service::new(9, "hold something"), move |_, _| {
        let (_with, _itself) = (with.clone(), itself.clone());
        std::future::ready(())
    });
    assert_eq!(Arc::strong_count(&held), 2);
    one.endpoint.close().await;
    assert_eq!(Arc::strong_count(&held), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_shown_and_connections_go_on() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.node(1), cluster.node(2));
    assert_eq!(ask(&one, &two, "before").await.unwrap(), "before");
    let (request, key) = Identity::ask().unwrap();
    let leaf = cluster.ca.certify(two.id, &request, now()).unwrap();
    let renewed = Identity::new(&key, &leaf, cluster.ca.certificate()).unwrap();
    assert!((renewed.renew_at() - now() - 14 * 86_400).abs() < 2 * 86_400);
    two.endpoint.renew(&renewed).unwrap();
    assert_eq!(ask(&one, &two, "after").await.unwrap(), "after");
    let three = cluster.node(3);
    assert_eq!(ask(&three, &two, "new").await.unwrap(), "new");
}

/// Two nodes that do not reach each other, and a third that both reach: where the first looks for the second, nobody is.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_not_reached_directly_is_reached_through_another() {
    let cluster = Cluster::new();
    let (one, two, between) = (cluster.node(1), cluster.node(2), cluster.node(3));
    let nowhere = "127.0.0.1:1";
    let around = async |what: &'static str| one.endpoint.call(two.id, nowhere, ECHO, Bytes::from(what), PATIENCE).await;
    assert!(matches!(around("nobody is between").await, Err(Error::Unreachable { .. })));
    assert_eq!(ask(&one, &between, "hello").await.unwrap(), "hello");
    assert_eq!(ask(&between, &two, "hello").await.unwrap(), "hello");
    // A way that was not found is looked for again a little later.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(around("through the third").await.unwrap(), "through the third", "and the peer knows from whom it comes");
    let words = around("fail").await.unwrap_err();
    assert!(words.to_string().contains("it is not to be done: do something else"), "{words}");
    let mut stream = one.endpoint.open_stream(two.id, nowhere, ECHO).await.unwrap();
    for length in [0, 1, 24 << 20] {
        let frame = Bytes::from(vec![length as u8; length]);
        stream.send(frame.clone()).await.unwrap();
        assert!(stream.next().await.unwrap().unwrap() == frame, "{length} bytes came back otherwise");
    }
    assert_eq!((stream.through(), one.endpoint.is_outdated(&stream)), (Some(between.id), false));
    assert_eq!(ask(&two, &one, "directly").await.unwrap(), "directly");
    assert!(one.endpoint.is_outdated(&stream), "there is a shorter way now");
    tokio::time::timeout(PATIENCE, one.endpoint.outdated(two.id, stream.through())).await.unwrap();
    let direct = one.endpoint.open_stream(two.id, nowhere, ECHO).await.unwrap();
    assert!(direct.through().is_none() && !one.endpoint.is_outdated(&direct));
    drop((stream, direct));
    one.endpoint.forget(two.id);
    two.endpoint.forget(one.id);
    two.admission.refuses.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(around("not wanted").await.is_err());
    for node in [one, two, between] {
        node.endpoint.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_sent_elsewhere_by_a_node_that_cannot_serve_it_and_let_in_again_later() {
    let cluster = Cluster::new();
    let node = cluster.node(1);
    let (request, key) = Pass::ask().unwrap();
    let leaf = cluster.ca.certify_client(TokenId::from_random(1), &request, now()).unwrap();
    let pass = Pass::new(&key, &leaf, cluster.ca.certificate()).unwrap();
    // It does not serve yet.
    let early = Entry::open(&node.at(), &pass).await.unwrap();
    let why = tokio::time::timeout(PATIENCE, early.ended_by()).await.unwrap();
    assert!(early.was_sent_elsewhere() && why.contains("is starting"), "{why}");
    node.endpoint.serve_clients(|_, _, mut tunnel| async move { tunnel.write_all(b"here").await.unwrap() });
    let greeted = async |entry: &Entry| {
        let (mut said, mut tunnel) = ([0; 4], entry.tunnel().await.unwrap());
        // The node hears of a tunnel with its first bytes.
        tunnel.write_all(b"who").await.unwrap();
        tokio::time::timeout(PATIENCE, tunnel.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(&said, b"here");
    };
    let first = Entry::open(&node.at(), &pass).await.unwrap();
    greeted(&first).await;
    node.endpoint.send_clients_away(true);
    for entry in [first, Entry::open(&node.at(), &pass).await.unwrap()] {
        let why = tokio::time::timeout(PATIENCE, entry.ended_by()).await.unwrap();
        assert!(entry.was_sent_elsewhere() && why.contains("another one may"), "{why}");
    }
    node.endpoint.send_clients_away(false);
    greeted(&Entry::open(&node.at(), &pass).await.unwrap()).await;
    node.endpoint.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn machines_with_the_same_secret_know_each_other_and_others_are_refused_in_words() {
    let (ours, another) =
        (Secret::new("0123456789abcdef0123456789abcdef").unwrap(), Secret::new("another-secret-0123456789-abcdefgh").unwrap());
    let (open, shut) = (Cluster::new().node(1), Cluster::new().node(2));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    open.endpoint.serve_seeds(ours.clone(), move |question, _| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            match &question[..] {
                b"who?" => Ok(Bytes::from("me")),
                _ => Err("that is no question".to_owned()),
            }
        }
    });
    assert_eq!(ask_seed(&open.at(), &ours, b"who?").await.unwrap(), "me");
    let said = ask_seed(&open.at(), &ours, b"what?").await.unwrap_err().to_string();
    assert!(said.contains("that is no question"), "{said}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    let said = ask_seed(&open.at(), &another, b"who?").await.unwrap_err().to_string();
    assert!(said.contains("was given another secret"), "{said}");
    assert_eq!(asked.load(Ordering::Relaxed), 2, "who knows another secret is not heard");
    let said = ask_seed(&shut.at(), &ours, b"who?").await.unwrap_err().to_string();
    assert!(said.contains("was started without seeds"), "{said}");
}
