//! The engine: what all containers of one node share, and the making of one.

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, Read},
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::fs::PermissionsExt, unix::process::CommandExt},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::mount::MountFlags;
use serde::Deserialize;
use tokio::{process::Command, sync::Semaphore, time::timeout};

use crate::{
    AheadConfig, Bind, Container, ContainerId, ContainerSpec, Disks, Error, NetworkConfig, NetworkMode, Overlay, Result, Stdio, Tag,
    Timings, Way,
    ahead::{self, Ahead, Blank},
    blocking,
    cgroup::Cgroups,
    container::{Parts, Sandbox},
    cores::{self, Cores},
    leftover,
    network::{Claim, Network, resolver, slot::Slot},
    oci,
    overlays::Overlays,
    process, stdio,
};

/// The version string of the one runsc that this engine speaks to. scripts/install-runsc stamps it.
pub const RUNSC_STAMP: &str = "release-20260905.0-shoal.2";

/// Where engines keep their run folders unless they are told otherwise.
pub(crate) const SHARED_RUN_DIR: &str = "/run/shoal";
/// How long `runsc --version` may take.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// How long `runsc create` may take: it needs 50 ms on an idle machine.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// How many `runsc create` run at once; others wait. Each keeps a core busy for some 40 ms, so
/// more at once would only make all of them late.
const CREATES_AT_ONCE: usize = 16;
/// How much of a failed runsc's stderr is kept.
const MESSAGE_BYTES_MAX: u64 = 16 << 10;

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

    /// Makes a sandbox that waits.
    async fn make_blank(&self) -> Result<Blank> {
        let mut parts = self.parts();
        match self.assemble_blank(&mut parts).await {
            Ok(stdio) => Ok(Blank { parts, stdio }),
            Err(error) => Err(dismantled(parts, error).await),
        }
    }

    async fn assemble_blank(&self, parts: &mut Parts) -> Result<Stdio> {
        let inner = &self.0;
        let ahead = inner.ahead.get().expect("blanks are made once it is known of what kind").clone();
        let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
        let room = format!("room-{}", parts.id);
        let opened = ahead.config.rooms.open(&room);
        let rootfs = opened.map_err(|source| Error::File { action: "open the room", path: room.clone().into(), source })?;
        parts.room = Some((ahead.config.rooms.clone(), room));
        parts.slot = Some(network.slot().await?);
        let own = inner.own(parts.id);
        make_dir(&own)?;
        let spec = ahead.config.description(rootfs, own);
        let group = inner.cgroups.create(&parts.id.to_string(), &spec.limits)?;
        let entrances = group.entrances();
        parts.cgroup = Some(Arc::new(group));
        inner.write_bundle(parts, &spec)?;
        let _turn = inner.creating.acquire().await;
        inner.run_create(parts, &spec, entrances?).await
    }

    /// Makes a container of a sandbox made ahead; `None` where it does not fit one, or none is there.
    async fn create_ahead(&self, spec: &ContainerSpec) -> Result<Option<Container>> {
        let Some(ahead) = self.0.ahead.get().filter(|ahead| ahead.config.fits(spec)) else { return Ok(None) };
        let mut timings = Timings { way: Way::Ahead, ..Timings::default() };
        let began = Instant::now();
        let mut blank = loop {
            match ahead.take() {
                Some(blank) if blank.parts.is_alive() => break blank,
                Some(dead) => drop(tokio::spawn(async move { dismantled(dead.parts, Error::NotAlive).await })),
                // A snapshot is worth the making of a sandbox.
                None if spec.snapshot.is_some() => {
                    break match self.make_blank().await {
                        Ok(blank) => blank,
                        Err(error) => {
                            tracing::warn!(%error, "cannot make a sandbox for a snapshot");
                            return Ok(None);
                        }
                    };
                }
                None => return Ok(None),
            }
        };
        timings.create = began.elapsed();
        let filled = blank.parts.room.as_ref().is_some_and(|(rooms, name)| rooms.fill(name, &spec.rootfs));
        if !filled {
            ahead.give_back(blank);
            return Ok(None);
        }
        match self.furnish(&mut blank, spec, &mut timings).await {
            Ok(job) => Container::new(blank.parts, spec, blank.stdio, timings, Some(job)).map(Some),
            Err(error) => Err(dismantled(blank.parts, error).await),
        }
    }

    /// Gives a sandbox made ahead what is a container's own, and returns its job.
    async fn furnish(&self, blank: &mut Blank, spec: &ContainerSpec, timings: &mut Timings) -> Result<Vec<u8>> {
        let (inner, parts) = (&self.0, &mut blank.parts);
        let job = ahead::job(spec).map_err(|reason| Error::Description { container: parts.id, reason })?;
        let began = Instant::now();
        let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
        let slot = parts.slot.take().ok_or(Error::NoNetwork { container: parts.id })?;
        let claim = parts.claim.insert(network.connect(slot, spec.network).await?);
        timings.network = began.elapsed();
        let prepared = Instant::now();
        let hosts = resolver::hosts(&spec.hostname, Some(claim.address), spec.link.as_ref());
        let path = inner.bundle(parts.id).join(file_name(0));
        fs::write(&path, hosts).map_err(Error::file("write", &path))?;
        if let Some(group) = &parts.cgroup {
            group.limit(&spec.limits)?;
        }
        if let Some(own) = &spec.own {
            ahead::link_files(&own.source, &inner.own(parts.id))?;
        }
        timings.prepare = prepared.elapsed();
        Ok(job)
    }

    /// Fills in the parts one by one, so that those that exist can be taken down after a failure.
    async fn assemble(&self, parts: &mut Parts, spec: &ContainerSpec) -> Result<(Stdio, Timings)> {
        let inner = &self.0;
        // runsc says nothing of use about a root that is not there.
        let root = spec.rootfs.clone();
        if !blocking(move || root.is_dir()).await {
            let reason = format!("its root {} is not a directory", spec.rootfs.display());
            return Err(Error::Description { container: parts.id, reason });
        }
        let mut timings = Timings::default();
        let started = Instant::now();
        if spec.network != NetworkMode::None {
            let network = inner.network.as_ref().ok_or(Error::NoNetwork { container: parts.id })?;
            parts.claim = Some(network.claim(spec.network).await?);
        }
        timings.network = started.elapsed();

        let prepared = Instant::now();
        let name = parts.id.to_string();
        let group = inner.cgroups.create(&name, &spec.limits)?;
        let entrances = group.entrances();
        parts.cgroup = Some(Arc::new(group));
        inner.write_bundle(parts, spec)?;
        timings.prepare = prepared.elapsed();

        let _turn = inner.creating.acquire().await;
        let created = Instant::now();
        let stdio = inner.run_create(parts, spec, entrances?).await?;
        timings.create = created.elapsed();
        Ok((stdio, timings))
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

    /// Writes config.json and the files that only this container has.
    fn write_bundle(&self, parts: &Parts, spec: &ContainerSpec) -> Result<()> {
        let bundle = self.bundle(parts.id);
        make_dir(&bundle)?;
        let address = parts.claim.as_ref().map(|claim| claim.address);
        let hostname = match spec.hostname.as_str() {
            "" => address.map_or("shoal".into(), |a| format!("shoal-{}", a.to_string().replace('.', "-"))),
            name => name.to_owned(),
        };
        let etc = [
            ("/etc/hosts", resolver::hosts(&hostname, address, spec.link.as_ref())),
            ("/etc/hostname", format!("{hostname}\n")),
            ("/etc/resolv.conf", self.network.as_ref().map_or_else(String::new, |n| n.resolver.text.clone())),
        ];
        let mut binds = Vec::new();
        for (target, text) in etc {
            // What the caller puts there goes first.
            let taken = spec.files.iter().map(|f| &f.target).chain(spec.binds.iter().map(|b| &b.target));
            if !taken.into_iter().any(|known| known == target) {
                binds.push(add_file(&bundle, binds.len(), target, text.as_bytes(), 0o644)?);
            }
        }
        for file in &spec.files {
            binds.push(add_file(&bundle, binds.len(), &file.target, &file.content, file.mode)?);
        }
        binds.extend(spec.binds.iter().chain(&spec.own).cloned());
        if let Some(bind) = binds.iter().find(|bind| !bind.target.starts_with('/')) {
            let reason = format!("the target {:?} of a bind is not absolute", bind.target);
            return Err(Error::Description { container: parts.id, reason });
        }

        let slot = parts.slot.as_ref().or(parts.claim.as_ref().map(|claim| &claim.slot));
        let namespace = slot.map(Slot::namespace_path);
        let description = oci::render(spec, &hostname, &binds, namespace.as_deref());
        let path = bundle.join("config.json");
        let text = description.to_string();
        fs::write(&path, text).map_err(Error::file("write", &path))
    }

    /// Flags that are the same for every call of runsc about one container.
    fn flags(&self, spec: &ContainerSpec) -> Vec<String> {
        let size = spec.limits.disk_bytes.map_or(String::new(), |bytes| format!(",size={bytes}"));
        let overlay = match spec.overlay {
            Overlay::Disk => format!("root:dir={}{size}", self.overlay_dir.display()),
            Overlay::Memory => format!("root:memory{size}"),
        };
        let network = if spec.network == NetworkMode::None { "none" } else { "sandbox" };
        let mut flags = vec![
            format!("--root={}", self.root().display()),
            format!("--platform={}", self.platform),
            format!("--network={network}"),
            format!("--overlay2={overlay}"),
            "--ignore-cgroups".into(),
            "--directfs=true".into(),
            "--host-uds=open".into(),
            // Else an open call, such as one that waits for an exec, delays the exit by 15 s.
            "--control-rpc-stop-timeout=0s".into(),
            "--allow-suid".into(),
            "--net-raw".into(),
        ];
        flags.extend(spec.runsc_flags.iter().cloned());
        flags
    }

    /// Runs `runsc create` and takes hold of the sandbox and gofer that it leaves running.
    async fn run_create(&self, parts: &mut Parts, spec: &ContainerSpec, entrances: Vec<File>) -> Result<Stdio> {
        let id = parts.id;
        let (stdio, [stdin, stdout, stderr]) = match spec.terminal {
            Some(size) => stdio::terminal(size)?,
            None => stdio::pipes(spec.stdin, false)?,
        };

        let mut command = std::process::Command::new(&self.runsc);
        command
            .args(self.flags(spec))
            .args(["create", "--bundle"])
            .arg(self.bundle(id))
            .arg(id.to_string())
            .env_clear()
            .env("PATH", crate::spec::DEFAULT_PATH)
            .current_dir("/")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        let entrances: Vec<OwnedFd> = entrances.into_iter().map(OwnedFd::from).collect();
        let cores = spec.limits.cores(cores::machine()).map(Cores::choose).transpose();
        let cores = cores.map_err(|e| Error::file("choose", "cores")(e.into()))?;
        // SAFETY: between fork and exec the closure makes plain system calls on descriptors and
        // memory that exist already; it does not allocate or lock.
        unsafe {
            command.pre_exec(move || {
                for entrance in &entrances {
                    rustix::io::write(entrance, b"0")?;
                }
                cores.map_or(Ok(()), Cores::enter)?;
                // Signals of our terminal are not meant for containers.
                rustix::process::setsid()?;
                Ok(())
            });
        }
        let mut command = Command::from(command);
        let spawned = command.kill_on_drop(true).spawn();
        // The write ends inside `command` must go, or the pipes would never end.
        drop(command);
        let missing = |source| Error::RunscMissing { path: self.runsc.clone(), source };
        let mut child = spawned.map_err(missing)?;
        let ended = timeout(CREATE_DEADLINE, child.wait()).await;
        // Also after a failure: what it left running must be found to be ended.
        let sandbox = self.find_sandbox(id);
        match ended {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => {
                parts.sandbox = sandbox.ok();
                let said = if spec.terminal.is_some() { stdio.stdout } else { stdio.stderr };
                return Err(Error::Create { container: id, message: last_words(said, status) });
            }
            Ok(Err(source)) => return Err(missing(source)),
            Err(_) => {
                parts.sandbox = sandbox.ok();
                return Err(Error::Deadline { container: id, what: "runsc create", waited: CREATE_DEADLINE });
            }
        }
        parts.sandbox = Some(sandbox?);
        if let (Some(cores), Some(threads)) = (cores, parts.cgroup.as_ref().and_then(|group| group.threads())) {
            cores.let_out(&threads).map_err(Error::file("let onto all cores", &threads))?;
        }
        Ok(stdio)
    }

    /// Reads from runsc's state file who the sandbox and the gofer are.
    fn find_sandbox(&self, id: ContainerId) -> Result<Sandbox> {
        #[derive(Deserialize)]
        struct State {
            sandbox: Pid,
            #[serde(rename = "goferPid", default)]
            gofer: i32,
        }
        #[derive(Deserialize)]
        struct Pid {
            pid: i32,
        }
        let path = self.root().join(format!("{id}_sandbox:{id}.state"));
        let text = fs::read(&path).map_err(Error::file("read", &path))?;
        let state: State = serde_json::from_slice(&text).map_err(|e| Error::file("read", &path)(e.into()))?;
        self.sessions.lock().extend([state.sandbox.pid, state.gofer]);
        Sandbox::hold(state.sandbox.pid, state.gofer).map_err(|source| Error::StatusLost { container: id, source })
    }

    /// Gives a container's network back.
    pub(crate) async fn release(&self, claim: Claim) -> Result<()> {
        match &self.network {
            Some(network) => network.release(claim).await,
            None => Ok(()),
        }
    }
}

pub(crate) fn root_of(run_dir: &Path) -> PathBuf {
    run_dir.join("runsc")
}

fn bundles_of(run_dir: &Path) -> PathBuf {
    run_dir.join("bundles")
}

/// Makes a folder and returns its path without symbolic links.
/// The number by which the kernel names a filesystem in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Makes sure that what is written in a folder never reaches a disk, as it does where /run is an ordinary folder:
/// descriptions of containers, and what runsc notes of them, hold environments, and those hold secrets.
fn keep_in_memory(folder: &Path) -> Result<()> {
    make_dir(folder)?;
    let found = rustix::fs::statfs(folder).map_err(|errno| Error::file("look at", folder)(errno.into()))?;
    if u64::try_from(found.f_type).is_ok_and(|kind| kind == TMPFS_MAGIC) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("shoal-run", folder, "tmpfs", flags, Some(c"mode=0700"))
        .map_err(|errno| Error::file("mount a filesystem in memory at", folder)(errno.into()))
}

fn make_dir(path: &Path) -> Result<PathBuf> {
    let made = match fs::create_dir_all(path) {
        // Another engine that closes has just removed the folder that both shared.
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path),
        made => made,
    };
    made.map_err(Error::file("create", path))?;
    path.canonicalize().map_err(Error::file("find", path))
}

fn take_lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("lock");
    let file = File::create(&path).map_err(Error::file("create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(Error::InUse { path: state_dir.into() }),
        Err(fs::TryLockError::Error(source)) => Err(Error::file("lock", &path)(source)),
    }
}

/// What the file of a container's bundle is called that is mounted as the nth; /etc/hosts is the first.
fn file_name(number: usize) -> String {
    format!("file-{number}")
}

/// Takes down what a failed creation made.
async fn dismantled(mut parts: Parts, error: Error) -> Error {
    if let Err(left) = parts.dismantle().await {
        tracing::warn!(container = %parts.id, error = %left, "a failed creation left something behind");
    }
    error
}

/// Writes a file of the container into its bundle and returns how to mount it.
fn add_file(bundle: &Path, number: usize, target: &str, content: &[u8], mode: u32) -> Result<Bind> {
    let source = bundle.join(file_name(number));
    fs::write(&source, content).map_err(Error::file("write", &source))?;
    fs::set_permissions(&source, fs::Permissions::from_mode(mode)).map_err(Error::file("write", &source))?;
    Ok(Bind { source, target: target.to_owned(), read_only: true })
}

/// Asks a runsc for its version string.
pub(crate) async fn runsc_version(runsc: &Path) -> Result<String> {
    let missing = |source| Error::RunscMissing { path: runsc.into(), source };
    let run = Command::new(runsc).arg("--version").env_clear().kill_on_drop(true).output();
    let output = match timeout(VERSION_DEADLINE, run).await {
        Ok(output) => output.map_err(missing)?,
        Err(_) => return Err(missing(io::ErrorKind::TimedOut.into())),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.lines().find_map(|line| line.strip_prefix("runsc version "));
    Ok(version.unwrap_or_default().trim().to_owned())
}

async fn check_runsc(runsc: &Path) -> Result<()> {
    let found = runsc_version(runsc).await?;
    if found == RUNSC_STAMP {
        return Ok(());
    }
    Err(Error::RunscVersion { path: runsc.into(), found, wanted: RUNSC_STAMP })
}

/// What a failed runsc wrote. The program of the container has not run, so all of it is runsc's.
fn last_words(said: OwnedFd, status: std::process::ExitStatus) -> String {
    // A sandbox half made may still hold the other end: take what is there.
    let _ = rustix::io::ioctl_fionbio(&said, true);
    let mut text = Vec::new();
    let _ = File::from(said).take(MESSAGE_BYTES_MAX).read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    match text.trim() {
        "" => status.to_string(),
        text => text.to_owned(),
    }
}
