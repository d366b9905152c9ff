//! Nodes that bring each other chunks, over real sockets: stores in one process, and members that do not change by themselves.

use std::collections::{BTreeMap, HashSet};

use parking_lot::Mutex;
use shoal_peer::{Admission, Authority, Endpoint, Identity, Member, Options};
use shoal_state::BootId;
use shoal_storage::replicate::Placement;
use tempfile::TempDir;

use super::*;
use crate::copies::{Copies, Repair};

#[derive(Debug)]
struct Anyone(Member);

impl Admission for Anyone {
    fn myself(&self) -> Member {
        self.0.clone()
    }

    fn admit(&self, _peer: &Member) -> Result<(), String> {
        Ok(())
    }
}

/// A node as far as chunks go.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) store: Store,
    pub(crate) chunks: PeerChunks,
    pub(crate) copies: Copies,
    _dir: TempDir,
}

/// Nodes that are one cluster, of which each keeps two copies of everything.
pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pub(crate) members: Arc<Mutex<BTreeMap<NodeId, String>>>,
}

impl World {
    pub(crate) fn new(nodes: u128) -> Self {
        Self::with(nodes, store::Options::default, Duration::from_secs(900))
    }

    pub(crate) fn with(nodes: u128, options: impl Fn() -> store::Options, lost_after: Duration) -> Self {
        let members = Arc::new(Mutex::new(BTreeMap::new()));
        let now = crate::api::now_seconds();
        let ca = Authority::make(now).unwrap();
        let one = |number: u128| {
            let id = NodeId::from_random(number);
            let (request, key) = Identity::ask().unwrap();
            let leaf = ca.certify(id, &request, now).unwrap();
            let identity = Identity::new(&key, &leaf, ca.certificate()).unwrap();
            let member =
                Member { cluster: [1; 16], generation: 1, node: id, boot: BootId::from_random(1), version: 1, release: "test".into() };
            let address = "127.0.0.1:0".parse().unwrap();
            let options_of_peer =
                Options { address, identity, admission: Arc::new(Anyone(member)), reset_key: [number as u8; 32], segmentation: true };
            let endpoint = Endpoint::open(options_of_peer).unwrap();
            members.lock().insert(id, endpoint.address().unwrap().to_string());
            let of = members.clone();
            let others = Others::new(id, endpoint, Arc::new(move || of.lock().clone()), lost_after);
            let dir = TempDir::new().unwrap();
            let store = Store::open(dir.path(), options()).unwrap();
            let chunks = PeerChunks::start(&others, &store, 2);
            let copies = Copies::new(chunks.clone(), 2, Repair { bytes_per_second: 0, ..Repair::default() });
            Node { id, store, chunks, copies, _dir: dir }
        };
        Self { nodes: (1..=nodes).map(one).collect(), members }
    }

    pub(crate) fn placement(&self) -> Placement {
        Placement::new(self.members.lock().keys().copied(), 2)
    }

    pub(crate) fn address(&self, node: NodeId) -> String {
        self.members.lock()[&node].clone()
    }

    /// Returns which nodes have a chunk.
    pub(crate) fn holders(&self, digest: &Digest) -> Vec<NodeId> {
        self.nodes.iter().filter(|node| node.store.has(digest).unwrap()).map(|node| node.id).collect()
    }

    async fn kill(&self, which: usize) {
        self.nodes[which].chunks.others.endpoint().close().await;
    }
}

/// Puts chunks that are of this test alone; some are long, most are short.
fn put(store: &Store, count: u32) -> Vec<Digest> {
    let bytes = |number: u32| number.to_le_bytes().repeat(if number.is_multiple_of(50) { 200_000 } else { 20 + number as usize });
    let digests = (1..=count).map(|number| store.put(&bytes(number)).unwrap()).collect();
    store.sync().unwrap();
    digests
}

fn none() -> HashSet<Digest> {
    HashSet::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_named_goes_to_its_homes_and_only_what_they_lack() {
    let world = World::new(3);
    let digests = put(&world.nodes[0].store, 300);
    assert_eq!(world.nodes[0].copies.make(&digests, &none()).await, Default::default());
    let placement = world.placement();
    for digest in &digests {
        let (homes, holders) = (placement.homes(digest), world.holders(digest));
        assert!(homes.iter().all(|home| holders.contains(home)), "{digest} is at {holders:?}, and not at all of {homes:?}");
        assert!(holders.iter().all(|holder| homes.contains(holder) || *holder == world.nodes[0].id), "nobody else was bothered");
    }
    let second = world.nodes[1].id;
    let of_second: Vec<Digest> = digests.iter().filter(|digest| placement.is_home(second, digest)).copied().collect();
    assert_eq!(world.nodes[0].chunks.give(second, &of_second).await.unwrap(), Given::default(), "it has them all");
    let strange = Digest::of(b"nobody put this");
    let given = world.nodes[0].chunks.give(second, &[strange]).await.unwrap();
    assert_eq!(given.absent, [strange]);
    assert_eq!(world.nodes[0].chunks.lacks(second, &[of_second[0], strange]).await.unwrap(), [strange]);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_node_down_the_next_in_rank_keeps_and_with_too_few_that_is_told_soon() {
    let world = World::new(3);
    let digests = put(&world.nodes[0].store, 60);
    world.kill(2).await;
    let began = Instant::now();
    let made = world.nodes[0].copies.make(&digests, &none()).await;
    assert_eq!((made.short, made.absent.len()), (0, 0), "{:?}", made.why);
    assert!(digests.iter().all(|digest| world.holders(digest) == [world.nodes[0].id, world.nodes[1].id]));
    world.kill(1).await;
    let late = put(&world.nodes[0].store, 61)[60];
    // It was heard of a moment ago, and is found to be gone when it is to take something.
    let made = world.nodes[0].copies.make(&[late], &none()).await;
    assert_eq!(made.short, 1);
    assert!(made.why.iter().any(|why| why.contains(&world.nodes[1].id.to_string())), "{:?}", made.why);
    assert!(began.elapsed() < Duration::from_secs(12), "it took {:?}", began.elapsed());
    // Who is known to be down costs nothing: not the time for which an answer is waited for.
    let mut took = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        assert_eq!(world.nodes[0].copies.make(&[late], &none()).await.short, 1);
        took.push(began.elapsed());
    }
    assert!(took.iter().min() < Some(&Duration::from_millis(500)), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_lacks_comes_from_all_that_have_it_and_once_for_all_who_want_it() {
    let world = World::new(3);
    let digests = put(&world.nodes[0].store, 300);
    assert_eq!(world.nodes[0].copies.make(&digests, &none()).await, Default::default());
    let third = &world.nodes[2];
    let lacks: Vec<Digest> = digests.iter().filter(|digest| !third.store.has(digest).unwrap()).copied().collect();
    assert!(lacks.len() > 50, "a third of all");
    let (one, other, single) = tokio::join!(
        third.chunks.bring(lacks.clone()),
        third.chunks.bring(lacks.clone()),
        third.chunks.fetcher.one(lacks[lacks.len() / 2]),
    );
    assert!(lacks.iter().all(|digest| third.store.has(digest).unwrap()));
    assert!(one.chunks + other.chunks >= lacks.len() as u64 && single.unwrap().is_some());
    assert_eq!(third.chunks.fetcher.one(Digest::of(b"nobody put this")).await, Ok(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_wrong_bytes_is_not_asked_for_them_again() {
    let world = World::new(3);
    let digests = put(&world.nodes[0].store, 40);
    // Both others have all of it, and the second one's memory is bad.
    for node in [1, 2] {
        world.nodes[0].chunks.give(world.nodes[node].id, &digests).await.unwrap();
    }
    world.kill(0).await;
    let liar = &world.nodes[1];
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (of, noted) = (liar.store.clone(), asked.clone());
    liar.chunks.others.endpoint().serve(CHUNKS, move |mut stream: Stream, _| {
        let (store, noted) = (of.clone(), noted.clone());
        async move {
            let (asked, wanted) = wire::asked(&stream.next().await.unwrap().unwrap()).unwrap();
            for digest in asked {
                let mut wrong = wire::answer(chunk(&store, &digest, wanted).unwrap()).concat();
                *wrong.last_mut().unwrap() ^= 1;
                noted.lock().push(digest);
                stream.send(wrong.into()).await.unwrap();
            }
            stream.finish().unwrap();
        }
    });
    let fresh = TempDir::new().unwrap();
    let store = Store::open(fresh.path(), store::Options::default()).unwrap();
    let third = &world.nodes[2];
    let elsewhere = Fetcher::new(third.chunks.others.clone(), store.clone(), 2);
    // The third has them itself: through the eyes of an empty store it lacks them, and only the liar can answer.
    let all = elsewhere.bring(digests.clone(), |_| ()).await;
    assert_eq!((all.chunks, all.failures.is_empty()), (0, false), "nothing of what it sends is kept");
    assert_eq!(asked.lock().len(), 2 * digests.len(), "for each as it is kept, and for what it has proven");
    assert!(digests.iter().all(|digest| !store.has(digest).unwrap()));
    assert!(elsewhere.one(digests[0]).await.unwrap_err().contains(&world.nodes[0].id.to_string()), "who may have it is named");
    assert_eq!(asked.lock().len(), 2 * digests.len(), "it is not asked for the same again");
    assert_eq!(third.chunks.others.distrusted(), HashSet::from([liar.id]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_is_no_lie_and_its_chunks_come_from_another() {
    let world = World::new(4);
    let noise: Vec<u8> = (0..30_000u32).flat_map(|number| *Digest::of(&number.to_le_bytes()).as_bytes()).collect();
    let (first, second) = (&world.nodes[0], &world.nodes[1]);
    let digests: Vec<Digest> = noise.chunks(100_000).map(|chunk| first.store.put(chunk).unwrap()).collect();
    first.chunks.give(second.id, &digests).await.unwrap();
    let pack = first._dir.path().join("packs/0000000000.pack");
    let mut bytes = std::fs::read(&pack).unwrap();
    bytes.iter_mut().skip(4096).step_by(4096).for_each(|byte| *byte ^= 1);
    std::fs::write(&pack, bytes).unwrap();
    let (third, fourth) = (&world.nodes[2], &world.nodes[3]);
    // One is damaged for sure, and found to be so when the peer proves it.
    let given = first.chunks.give(fourth.id, &digests[..1]).await.unwrap();
    assert_eq!((given.chunks, &given.absent[..], first.store.has(&digests[0]).unwrap()), (0, &digests[..1], false));
    assert!(!fourth.store.has(&digests[0]).unwrap());
    assert_eq!(third.chunks.bring(digests.clone()).await, Brought { chunks: 10, bytes: 960_000, failures: Vec::new() });
    assert!(digests.iter().all(|digest| third.store.get(digest).is_ok()));
    let dropped = digests[1..].iter().filter(|digest| !first.store.has(digest).unwrap()).count();
    assert!(dropped > 0, "whoever was asked for damaged chunks knows of it now");
    assert_eq!(third.chunks.others.distrusted(), HashSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_one_sends_wrongly_comes_from_another() {
    let world = World::new(4);
    let digests = put(&world.nodes[0].store, 120);
    for node in [1, 2] {
        world.nodes[0].chunks.give(world.nodes[node].id, &digests).await.unwrap();
    }
    world.kill(0).await;
    let of = world.nodes[1].store.clone();
    world.nodes[1].chunks.others.endpoint().serve(CHUNKS, move |mut stream: Stream, _| {
        let store = of.clone();
        async move {
            let (asked, wanted) = wire::asked(&stream.next().await.unwrap().unwrap()).unwrap();
            for digest in asked {
                let mut wrong = wire::answer(chunk(&store, &digest, wanted).unwrap()).concat();
                *wrong.last_mut().unwrap() ^= 1;
                stream.send(wrong.into()).await.unwrap();
            }
            stream.finish().unwrap();
        }
    });
    let fourth = &world.nodes[3];
    assert_eq!(fourth.chunks.bring(digests.clone()).await.chunks, digests.len() as u64);
    assert!(digests.iter().all(|digest| fourth.store.get(digest).is_ok()));
    assert_eq!(fourth.chunks.others.distrusted(), HashSet::from([world.nodes[1].id]));
}
