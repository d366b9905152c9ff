//! The engine: what all containers of one node share, and the making of one.

mod folders;
mod making;
mod runsc;

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use self::folders::{bundles_of, keep_in_memory, make_dir};
pub(crate) use self::folders::{root_of, take_lock};
use self::making::dismantled;
pub use self::runsc::RUNSC_STAMP;
use self::runsc::check_runsc;
pub(crate) use self::runsc::runsc_version;
use crate::{
    AheadConfig, Container, ContainerId, ContainerSpec, Disks, Error, NetworkConfig, Result, Tag,
    ahead::Ahead,
    blocking,
    cgroup::Cgroups,
    container::Parts,
    leftover,
    network::{Claim, Network},
    overlays::Overlays,
    process,
};

/// Where engines keep their run folders unless they are told otherwise.
pub(crate) const SHARED_RUN_DIR: &str = "/run/shoal";
/// How many `runsc create` run at once; others wait. Each keeps a core busy for some 40 ms, so
/// more at once would only make all of them late.
const CREATES_AT_ONCE: usize = 16;

/// Where an engine keeps things, and what it runs.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// A folder of this node alone. Its path gives the instance its tag.
    pub state_dir: PathBuf,
    /// Where sockets and descriptions of running containers lie; gone after a reboot.
    /// `None`: /run/shoal/TAG.
    pub run_dir: Option<PathBuf>,
    /// Where containers' changes on disk lie. `None`: "overlay" in the state folder.
    pub overlay_dir: Option<PathBuf>,
    /// The runsc program.
    pub runsc: PathBuf,
    /// gVisor's platform. systrap works everywhere.
    pub platform: String,
    /// How containers are connected. `None`: only containers without a network can be made.
    pub network: Option<NetworkConfig>,
}

impl EngineConfig {
    /// The usual configuration of a node.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            run_dir: None,
            overlay_dir: None,
            runsc: "/usr/local/bin/runsc".into(),
            platform: "systrap".into(),
            network: Some(NetworkConfig::default()),
        }
    }
}

/// Makes containers. Cheap to clone; all clones are one engine.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) tag: Tag,
    runsc: PathBuf,
    platform: String,
    pub(crate) run_dir: PathBuf,
    overlay_dir: PathBuf,
    /// Where containers' own files are.
    own_dir: PathBuf,
    cgroups: Cgroups,
    pub(crate) overlays: Arc<Overlays>,
    ahead: OnceLock<Arc<Ahead>>,
    pub(crate) network: Option<Network>,
    next_id: AtomicU64,
    creating: Semaphore,
    /// Sessions of sandboxes and gofers whose last processes may still have to be reaped.
    pub(crate) sessions: Mutex<HashSet<i32>>,
    /// Held while this engine is open: another process that opens the same folder is refused.
    _lock: File,
}

impl Engine {
    /// Opens the engine: checks runsc, cleans what a former process left behind (sandboxes,
    /// cgroups, mounts, links, files: whatever carries this folder's tag), and sets up the network.
    ///
    /// Makes this process the reaper of orphaned descendants. Needs root.
    pub async fn open(config: EngineConfig) -> Result<Self> {
        let state_dir = make_dir(&config.state_dir)?;
        let tag = Tag::of(&state_dir);
        let lock = take_lock(&state_dir)?;
        check_runsc(&config.runsc).await?;
        let run_dir = make_dir(&config.run_dir.unwrap_or_else(|| Path::new(SHARED_RUN_DIR).join(tag.to_string())))?;
        let overlay_dir = make_dir(&config.overlay_dir.unwrap_or_else(|| state_dir.join("overlay")))?;
        process::become_subreaper().map_err(|source| Error::File { action: "become the reaper of", path: "/proc/self".into(), source })?;

        let own_dir = state_dir.join("own");
        let (run, overlay, own, networked) = (run_dir.clone(), overlay_dir.clone(), own_dir.clone(), config.network.is_some());
        let cgroups = blocking(move || {
            leftover::clean(tag, &run, &overlay, &own, networked)?;
            keep_in_memory(&run)?;
            for folder in [&run, &root_of(&run), &bundles_of(&run), &overlay, &own] {
                make_dir(folder)?;
                // Descriptions hold environments, and those hold secrets.
                let private = fs::Permissions::from_mode(0o700);
                fs::set_permissions(folder, private).map_err(Error::file("protect", folder))?;
            }
            Cgroups::open(tag)
        })
        .await?;
        let network = match &config.network {
            Some(network) => Some(Network::open(tag, network).await?),
            None => None,
        };
        Ok(Self(Arc::new(Inner {
            tag,
            runsc: config.runsc,
            platform: config.platform,
            run_dir,
            overlay_dir,
            own_dir,
            cgroups,
            overlays: Arc::default(),
            ahead: OnceLock::new(),
            network,
            // Ids start anywhere, so that those of two lives of a node do not meet in its logs.
            next_id: AtomicU64::new(RandomState::new().build_hasher().finish()),
            creating: Semaphore::new(CREATES_AT_ONCE),
            sessions: Mutex::default(),
            _lock: lock,
        })))
    }

    /// Makes a container, up to the point where [`Container::start`] runs its first process.
    ///
    /// Nothing is left behind when this fails.
    pub async fn create(&self, spec: ContainerSpec) -> Result<Container> {
        if let Some(container) = self.create_ahead(&spec).await? {
            return Ok(container);
        }
        let mut parts = self.parts();
        match self.assemble(&mut parts, &spec).await {
            Ok((stdio, timings)) => Container::new(parts, &spec, stdio, timings, None),
            Err(error) => Err(dismantled(parts, error).await),
        }
    }

    fn parts(&self) -> Parts {
        let unique = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        Parts::new(self.0.clone(), ContainerId::new(self.0.tag, unique))
    }

    /// Keeps some sandboxes ready from now on, for containers that fit them. Only the first call counts.
    pub fn make_ahead(&self, config: AheadConfig) {
        let ahead = Arc::new(Ahead::new(config));
        if self.0.ahead.set(ahead.clone()).is_err() {
            return;
        }
        // The engine owns the task, so the task must not keep the engine.
        let engine = Arc::downgrade(&self.0);
        ahead.keep_filled(move || {
            let engine = engine.upgrade();
            async move {
                match engine {
                    Some(engine) => Self(engine).make_blank().await,
                    None => std::future::pending().await,
                }
            }
        });
    }

    /// Ends containers from now on while all of them together take more of the disk than `budget` says, given what they take
    /// (both in bytes), the one that takes the most first. `budget` may block.
    pub fn bound_overlays(&self, budget: impl Fn(u64) -> io::Result<u64> + Send + Sync + 'static) {
        self.0.overlays.watch(self.0.overlay_dir.clone(), Arc::new(budget));
    }

    /// What containers took of the disk together when that was last looked at.
    pub fn disks(&self) -> Disks {
        self.0.overlays.seen()
    }

    /// How many sandboxes wait for a container.
    pub fn waiting(&self) -> usize {
        self.0.ahead.get().map_or(0, |ahead| ahead.waiting())
    }

    /// The address under which containers reach the node's own API; `None` without a network.
    pub fn gateway_address(&self) -> Option<Ipv4Addr> {
        self.0.network.as_ref().map(|network| network.gateway)
    }

    /// The containers' network, as "10.64.0.0/16"; `None` without a network.
    pub fn subnet(&self) -> Option<String> {
        self.0.network.as_ref().map(|network| network.subnet.to_string())
    }

    /// Replaces the networks that no container may reach. In force for new connections at once.
    pub async fn set_blocked(&self, networks: Vec<String>) -> Result<()> {
        match &self.0.network {
            Some(network) => network.set_blocked(networks).await,
            None => Ok(()),
        }
    }

    /// What the names of everything this engine makes carry.
    pub fn tag(&self) -> Tag {
        self.0.tag
    }

    /// Takes everything down: containers that still run are killed, then goes what they share
    /// (firewall table, gateway address, cgroup folders, run folder). Nothing with this engine's
    /// tag is left on the machine, and the engine must not be used afterwards.
    pub async fn close(&self) -> Result<()> {
        self.0.overlays.close();
        if let Some(ahead) = self.0.ahead.get() {
            for blank in ahead.end().await {
                let mut parts = blank.parts;
                parts.dismantle().await?;
            }
        }
        let inner = self.0.clone();
        blocking(move || leftover::end_containers(&inner.run_dir, &inner.cgroups)).await?;
        if let Some(network) = &self.0.network {
            network.close().await?;
        }
        let inner = self.0.clone();
        blocking(move || {
            process::sweep(&inner.sessions.lock());
            inner.cgroups.remove()?;
            leftover::clean_run_dir(&inner.run_dir)?;
            leftover::remove_shared_run_dir();
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// The folder of a container's own files, where the engine made it.
    pub(crate) fn own(&self, id: ContainerId) -> PathBuf {
        self.own_dir.join(id.to_string())
    }

    pub(crate) fn bundle(&self, id: ContainerId) -> PathBuf {
        bundles_of(&self.run_dir).join(id.to_string())
    }

    /// The folder in which runsc keeps its state.
    pub(crate) fn root(&self) -> PathBuf {
        root_of(&self.run_dir)
    }

    /// Gives a container's network back.
    pub(crate) async fn release(&self, claim: Claim) -> Result<()> {
        match &self.network {
            Some(network) => network.release(claim).await,
            None => Ok(()),
        }
    }
}
