//! Three nodes that talk over real sockets: each builds trees on named ones and names them, while each deletes what nobody names.
//!
//! What is played is what a node does (`Upkeep::promise`, a command, `delete`), with a state in memory for the log. The clock of
//! the stores jumps beyond every promise before each collection, but not between a promise and the name that it is for. A seed
//! says who does what; `SHOAL_SEED` plays another.

use std::sync::Arc;

use parking_lot::Mutex;
use shoal_storage::keep::Survey;
use tokio::sync::RwLock;

use super::*;
use crate::chunks::tests::World as Nodes;
use crate::upkeep::Upkeep;

const BUILDS: u64 = 30;
const COLLECTIONS: u64 = 12;

static NOW: AtomicU64 = AtomicU64::new(1_000_000);

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}

struct Race {
    nodes: Nodes,
    upkeep: Vec<Upkeep>,
    state: Mutex<State>,
    /// Held for reading between a promise and the name, for writing while the clock jumps.
    time: RwLock<()>,
    _dirs: Vec<TempDir>,
}

impl Race {
    fn new() -> Self {
        let options = || Options {
            clock: || NOW.load(Ordering::Relaxed),
            keep: Duration::from_secs(KEEP),
            disk_used_percent: |_| Ok(0),
            pack_bytes: 200 << 10,
            ..Options::default()
        };
        let nodes = Nodes::with(3, options, Duration::from_secs(900));
        let dirs: Vec<TempDir> = nodes.nodes.iter().map(|_| TempDir::new().unwrap()).collect();
        let open = |(node, dir): (&crate::chunks::tests::Node, &TempDir)| {
            Upkeep::open(node.store.clone(), &Kv::open(dir.path()).unwrap(), node.copies.clone()).unwrap()
        };
        let upkeep = nodes.nodes.iter().zip(&dirs).map(open).collect();
        let mut state = State::default();
        state.apply(&Command::SetVersion { version: VERSION_KNOWN }).unwrap();
        Self { nodes, upkeep, state: Mutex::new(state), time: RwLock::default(), _dirs: dirs }
    }

    fn named(&self) -> Vec<(ImageId, Digest)> {
        self.state.lock().images.iter().filter_map(|(id, image)| Some((*id, image.manifest?))).collect()
    }

    /// Builds on a node, on nothing or on what is named, and names what came of it.
    async fn build(self: Arc<Self>, node: usize, seed: u64) {
        let mut random = Random(seed);
        for number in 0..BUILDS {
            let early = if random.below(3) == 0 { None } else { Some(self.time.read().await) };
            let (store, base, bytes) = (self.nodes.nodes[node].store.clone(), self.pick(&mut random), random.bytes(4_000));
            let path = format!("file-{}", random.below(10));
            let built = blocking(move || {
                let mut tree = match base {
                    Some(base) => Tree::read(&store, &base).ok()?,
                    None => Tree::new(),
                };
                let (size, content) = put_content(&bytes[..], "a file", &store).ok()?;
                tree.insert(&Path::parse(path).ok()?, Entry::new(Kind::File { size, content }, 0o644)).ok()?;
                let root = tree.write(&store).ok()?;
                store.sync().ok()?;
                Some(root)
            });
            let Some(root) = built.await else { continue };
            // A slow build: what it put may be gone when it is to be named, and the promise says so.
            let late = if early.is_none() { Some(self.time.read().await) } else { None };
            // On a machine that is too busy a node may seem to be away: then there are fewer copies, which is another story.
            if self.upkeep[node].promise(root).await.is_ok() && self.lacking(root).is_none() {
                let image = Image { key: Digest::of(b""), manifest: Some(root), record: Definition::default(), built: Timestamp(0) };
                let id = ImageId::from_random(u128::from(seed << 8 | number));
                self.state.lock().apply(&Command::PutImage { id, image }).unwrap();
            }
            drop((early, late));
        }
    }

    fn pick(&self, random: &mut Random) -> Option<Digest> {
        let named = self.named();
        named.get(random.below(named.len() + 1)).map(|(_, manifest)| *manifest)
    }

    async fn collect(self: Arc<Self>, node: usize, seed: u64) -> u64 {
        let (mut random, mut deleted) = (Random(seed), 0);
        for _ in 0..COLLECTIONS {
            tokio::time::sleep(Duration::from_millis(10 + random.below(60) as u64)).await;
            // Two stay whatever happens, so that builds that ended long ago leave something to look at.
            let forgotten: Vec<ImageId> = self.named().into_iter().skip(2).map(|(id, _)| id).filter(|_| random.below(6) == 0).collect();
            forgotten.into_iter().for_each(|id| drop(self.state.lock().apply(&Command::RemoveImage { id })));
            {
                let _nobody_names = self.time.write().await;
                NOW.fetch_add(KEEP * 2, Ordering::Relaxed);
            }
            let (copies, uses) = (&self.nodes.nodes[node].copies, &self.upkeep[node].uses);
            let (as_of, pins, others) = (NOW.load(Ordering::Relaxed), Pins::default(), Others::of(copies, Vec::new()));
            // As from a linearizable read. While this node collects, others let the clock jump.
            let read = Read { as_of, pins, others, state: Arc::new(self.state.lock().clone()) };
            let budget = random.below(2) as u64 * 50_000;
            // A node that seems to be away may hold what is named: then nothing is deleted.
            let done = delete(copies, uses, read, budget, |_| vec![]).await;
            deleted += done.map_or(0, |done| done.swept.chunks);
        }
        deleted
    }

    /// Everything that is named is with its homes.
    fn assert_whole(&self) {
        for (id, manifest) in self.named() {
            assert_eq!(self.lacking(manifest), None, "{id} has lost something");
        }
    }

    /// Returns a part of a tree that not all of its homes have, and who has it.
    fn lacking(&self, root: Digest) -> Option<(Digest, Vec<shoal_state::NodeId>)> {
        let mut all = Vec::new();
        for node in &self.nodes.nodes {
            Survey::new(node.store.clone()).tree(root, &mut |digest, _| all.push(digest)).unwrap();
        }
        let held = all.into_iter().map(|digest| (digest, self.nodes.holders(&digest)));
        held.into_iter().find(|(digest, holders)| !self.nodes.placement().homes(digest).iter().all(|home| holders.contains(home)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn have_then_sweep_nothing_that_is_named_is_deleted_by_anyone() {
    let seed = std::env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("SHOAL_SEED={seed}");
    let race = Arc::new(Race::new());
    let builds = (0..3).map(|node| tokio::spawn(race.clone().build(node, seed * 16 + node as u64)));
    let collections = (0..3).map(|node| tokio::spawn(race.clone().collect(node, seed * 16 + 8 + node as u64)));
    let (builds, collections): (Vec<_>, Vec<_>) = (builds.collect(), collections.collect());
    for build in builds {
        build.await.unwrap();
    }
    let mut deleted = 0;
    for collection in collections {
        deleted += collection.await.unwrap();
    }
    assert!(deleted > 20 && !race.named().is_empty(), "{deleted} chunks were deleted, {} trees are named", race.named().len());
    race.assert_whole();
}
