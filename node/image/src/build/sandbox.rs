//! One build container: it shows a tree, runs commands one after the other, and gives the changes back.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_fs::Trees;
use shoal_runtime::{
    Bind, Container, ContainerSpec, Engine, ExecSpec, Exit, ExitStatus, Limits, MOUNTED_FILES, MOUNTED_FOLDERS, NetworkMode, OverDisk, User,
};
use shoal_storage::manifest::{self, Content, Entry, Kind, Path, Tree};
use shoal_storage::store::Store;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::error::{Error, FileContext, Result, TreeContext};
use crate::log::{BuildLog, Stream, Tail, Utf8};

use super::capture::{self, Hidden};
use super::init;
use super::request::BuildGpu;
use super::settings::{BuildConfig, OWN_FOLDER};

/// How long output may come after the command itself has ended: of processes that it left behind.
const AFTERGLOW: Duration = Duration::from_secs(1);

/// How long it may take until the end of a container is known after the end of its commands.
const DEATH_IS_KNOWN: Duration = Duration::from_secs(2);

/// What runs containers: shared by all builds of a node.
#[derive(Clone)]
pub struct Containers {
    /// Shows trees.
    pub trees: Arc<Trees>,
    /// Runs containers.
    pub engine: Engine,
}

/// What a container gets beside its tree.
#[derive(Debug, Clone, Default)]
pub(super) struct Equipment {
    pub(super) network: NetworkMode,
    pub(super) binds: Vec<Bind>,
    pub(super) gpu: Option<BuildGpu>,
    /// Trees that lie over the container's own, the first lowest. Their files are no part of what it leaves.
    pub(super) over: Vec<Arc<Tree>>,
    /// Places that are no part of what it leaves, beside the targets of binds.
    pub(super) hidden: Vec<Path>,
    /// Folders that must be there although no tree has them.
    pub(super) folders: Vec<String>,
    /// What the container may use, where it differs from other builds' containers.
    pub(super) limits: Limits,
}

/// A command to run.
#[derive(Debug, Clone)]
pub(super) struct Exec {
    pub(super) argv: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    pub(super) cwd: String,
    pub(super) user: User,
    /// A script that the container is to find at the path that `argv` names.
    pub(super) script: Option<String>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// With success.
    Well,
    /// With a failure, in words.
    Badly(String),
    /// The container was killed for its memory.
    OutOfMemory,
    /// The container was killed for what it took of the disk.
    OutOfDisk(OverDisk),
    /// Its time was up.
    Late,
}

/// A running build container.
pub(super) struct Sandbox {
    containers: Containers,
    container: Container,
    name: String,
    base: Arc<Tree>,
    hidden: Hidden,
    own: tempfile::TempDir,
    /// A command left processes behind: the next one gets a container of its own.
    pub(super) is_stale: bool,
}

impl Sandbox {
    /// Starts a container on a tree.
    pub(super) async fn start(
        containers: &Containers,
        work_dir: &std::path::Path,
        config: &BuildConfig,
        base: Arc<Tree>,
        equipment: Equipment,
    ) -> Result<Sandbox> {
        let own = own_folder(work_dir, config)?;
        let shown = shown(&base, &equipment).tree("a build container")?;
        let name = format!("build-{}", own.path().file_name().unwrap_or_default().to_string_lossy().trim_start_matches('.'));
        let mounted = |source: shoal_fs::Error| Error::Mount { what: "a build container".to_owned(), source: source.into() };
        let rootfs = containers.trees.bind(&name, &shown).map_err(mounted)?;
        let bound = Bound { containers: containers.clone(), name: Some(name.clone()) };
        let hidden = hidden(&shown, &equipment).tree("a build container")?;
        let spec = spec(rootfs, &own, config, equipment);
        let runtime = |action| move |source| Error::Runtime { action, source };
        let container = containers.engine.create(spec).await.map_err(runtime("create"))?;
        let name = bound.keep();
        let sandbox = Sandbox { containers: containers.clone(), container, name, base, hidden, own, is_stale: false };
        sandbox.container.start().await.map_err(runtime("start"))?;
        Ok(sandbox)
    }

    /// Runs one command to its end or until the deadline. After anything but success or failure the container is of no
    /// more use.
    pub(super) async fn run(&mut self, exec: &Exec, deadline: Instant, log: &dyn BuildLog, tail: &mut Tail) -> Result<Ended> {
        if let Some(script) = &exec.script {
            let path = self.own.path().join("script");
            std::fs::write(&path, script).file("write", &path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).file("change", &path)?;
        }
        let mut spec = ExecSpec::new(exec.argv.iter().cloned());
        spec.env = exec.env.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        spec.cwd = Some(exec.cwd.clone());
        spec.user = Some(exec.user.clone());
        let mut process = match self.container.exec(spec).await {
            Ok(process) => process,
            Err(shoal_runtime::Error::Refused { message, .. }) => return Ok(Ended::Badly(format!("an error before it began: {message}"))),
            Err(source) => return Err(Error::Runtime { action: "run a command in", source }),
        };
        let stdio = process.take_stdio().expect("the pipes of a new process are there");
        let mut output = Output::new(stdio.stdout, stdio.stderr)?;
        let status = {
            let waiting = process.wait();
            tokio::pin!(waiting);
            loop {
                tokio::select! {
                    status = &mut waiting => break status,
                    piece = output.next(), if !output.is_at_end() => piece?.say(log, tail),
                    () = tokio::time::sleep_until(deadline.into()) => return Ok(Ended::Late),
                }
            }
        };
        let afterglow = Instant::now() + AFTERGLOW;
        while !output.is_at_end() {
            match tokio::time::timeout_at(afterglow.into(), output.next()).await {
                Ok(piece) => piece?.say(log, tail),
                Err(_) => {
                    self.is_stale = true;
                    break;
                }
            }
        }
        if matches!(status, ExitStatus::Signal(_)) {
            // Perhaps the whole container was killed; its end is known a little later.
            let _still_there = tokio::time::timeout(DEATH_IS_KNOWN, self.container.exit()).await;
        }
        Ok(self.judge(status))
    }

    fn judge(&self, status: ExitStatus) -> Ended {
        match (status, self.container.exit_now()) {
            (_, Some(exit)) if exit.oom => Ended::OutOfMemory,
            (_, Some(Exit { disk: Some(over), .. })) => Ended::OutOfDisk(over),
            (ExitStatus::Code(0), _) => Ended::Well,
            (ExitStatus::Code(code), _) => Ended::Badly(format!("exit code {code}")),
            (ExitStatus::Signal(signal), _) => Ended::Badly(format!("signal {signal}")),
        }
    }

    /// Returns the tree as the commands have left it.
    pub(super) async fn tree(&self, store: &Store) -> Result<Tree> {
        capture::capture(&self.container, &self.base, &self.hidden, store).await
    }

    /// How many bytes the files had when the container started.
    pub(super) fn base_bytes(&self) -> u64 {
        self.base.content_bytes()
    }

    /// Takes the container down. A failure costs no build: what is left goes when the node starts again.
    pub(super) async fn close(self) {
        if let Err(source) = self.container.destroy().await {
            let error = Error::Runtime { action: "remove", source };
            tracing::warn!(error = error.full_text(), "a build container left something behind");
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // The container goes with its handle.
        self.containers.trees.unbind(&self.name);
    }
}

/// Unbinds a tree unless a container has taken it over.
struct Bound {
    containers: Containers,
    name: Option<String>,
}

impl Bound {
    fn keep(mut self) -> String {
        self.name.take().expect("it is kept once")
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.containers.trees.unbind(name);
        }
    }
}

/// Returns what the container sees: the tree, what lies over it, and a place for each mount. A place cannot be made later,
/// because the mount of trees is read-only; and what is made here does not become part of the image.
fn shown(base: &Tree, equipment: &Equipment) -> manifest::Result<Tree> {
    let mut shown = base.clone();
    for over in &equipment.over {
        shown.overlay(over)?;
    }
    add_mount_points(&mut shown, &[])?;
    for folder in &equipment.folders {
        add_place(&mut shown, &Path::parse(folder)?, true)?;
    }
    for bind in &equipment.binds {
        add_place(&mut shown, &Path::parse(&bind.target)?, bind.source.is_dir())?;
    }
    Ok(shown)
}

/// What the container may change and does not leave.
fn hidden(shown: &Tree, equipment: &Equipment) -> manifest::Result<Hidden> {
    let targets = equipment.binds.iter().filter_map(|bind| Path::parse(&bind.target).ok());
    let places = targets.chain(equipment.hidden.iter().cloned()).collect();
    let files = equipment.over.iter().flat_map(|over| over.iter()).filter(|(_, entry)| !entry.is_dir());
    Ok(Hidden { places, files: files.map(|(path, _)| shown.locate(path)).collect::<manifest::Result<_>>()? })
}

/// Adds what every container has something mounted on, and some folders besides, where the tree lacks them.
pub fn add_mount_points(tree: &mut Tree, folders: &[&str]) -> manifest::Result<()> {
    for name in MOUNTED_FOLDERS.iter().chain([&OWN_FOLDER]).chain(folders) {
        add_place(tree, &crate::bases::path(name), true)?;
    }
    MOUNTED_FILES.iter().try_for_each(|name| add_place(tree, &crate::bases::path(name), false))
}

fn add_place(tree: &mut Tree, path: &Path, is_dir: bool) -> manifest::Result<()> {
    let at = tree.follow(path)?;
    if tree.get(&at).is_none() {
        let place = match is_dir {
            true => Entry { mode: if at.name() == Some(b"tmp") { 0o1777 } else { 0o755 }, ..Entry::dir() },
            false => Entry::new(Kind::File { size: 0, content: Content::EMPTY }, 0o644),
        };
        tree.insert(&at, place)?;
    }
    Ok(())
}

/// The folder that only the build sees: the first process, certificates, scripts.
fn own_folder(work_dir: &std::path::Path, config: &BuildConfig) -> Result<tempfile::TempDir> {
    let own = tempfile::tempdir_in(work_dir).file("create a folder in", work_dir)?;
    let readable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(own.path(), readable.clone()).file("change", own.path())?;
    let first = own.path().join("init");
    std::fs::write(&first, init::program()).file("write", &first)?;
    std::fs::set_permissions(&first, readable).file("change", &first)?;
    config.egress.write_files(own.path())?;
    Ok(own)
}

fn spec(rootfs: PathBuf, own: &tempfile::TempDir, config: &BuildConfig, equipment: Equipment) -> ContainerSpec {
    let mut spec = ContainerSpec::new(rootfs, [format!("{OWN_FOLDER}/init")]);
    spec.env = Vec::new();
    spec.hostname = "build".to_owned();
    spec.binds = equipment.binds;
    spec.binds.push(Bind { source: own.path().to_owned(), target: OWN_FOLDER.to_owned(), read_only: true });
    spec.network = equipment.network;
    spec.limits = Limits {
        cpu_millis: equipment.limits.cpu_millis.or(config.cpu_millis),
        memory_bytes: equipment.limits.memory_bytes.or(config.memory_bytes),
        disk_bytes: equipment.limits.disk_bytes.or(config.disk_bytes),
        ..equipment.limits
    };
    if let Some(gpu) = equipment.gpu {
        spec.devices = gpu.devices;
        spec.runsc_flags = gpu.runsc_flags;
    }
    spec
}

/// Both outputs of a command, in the order in which they come.
struct Output {
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    out_text: Utf8,
    err_text: Utf8,
}

/// A piece of output; empty at the end of one of the two.
struct Piece {
    stream: Stream,
    text: String,
}

impl Piece {
    fn say(self, log: &dyn BuildLog, tail: &mut Tail) {
        if !self.text.is_empty() {
            tail.push(&self.text);
            log.write(self.stream, &self.text);
        }
    }
}

impl Output {
    fn new(stdout: OwnedFd, stderr: OwnedFd) -> Result<Output> {
        let receiver = |fd| pipe::Receiver::from_owned_fd(fd).file("read", "a pipe");
        Ok(Output {
            stdout: Some(receiver(stdout)?),
            stderr: Some(receiver(stderr)?),
            out_text: Utf8::default(),
            err_text: Utf8::default(),
        })
    }

    fn is_at_end(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }

    /// Waits for the next piece. Nothing is lost when the wait is given up.
    async fn next(&mut self) -> Result<Piece> {
        let (mut out_bytes, mut err_bytes) = ([0; 8192], [0; 8192]);
        let (stream, count) = tokio::select! {
            count = read(&mut self.stdout, &mut out_bytes), if self.stdout.is_some() => (Stream::Stdout, count?),
            count = read(&mut self.stderr, &mut err_bytes), if self.stderr.is_some() => (Stream::Stderr, count?),
        };
        let text = match stream {
            Stream::Stdout => self.out_text.push(&out_bytes[..count]),
            _ => self.err_text.push(&err_bytes[..count]),
        };
        match (count, stream) {
            (0, Stream::Stdout) => self.stdout = None,
            (0, _) => self.stderr = None,
            _ => {}
        }
        Ok(Piece { stream, text })
    }
}

async fn read(from: &mut Option<pipe::Receiver>, bytes: &mut [u8]) -> Result<usize> {
    match from {
        Some(from) => from.read(bytes).await.file("read", "the output of a command"),
        None => std::future::pending().await,
    }
}
