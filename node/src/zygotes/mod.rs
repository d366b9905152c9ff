//! Zygotes: what makes cold starts short.
//!
//! Of a cold start, the interpreter and the client's imports are the same for every function of an image: half a second in a
//! sandbox. So a Python that has imported the client and waits for what to run ([`zygote.py`](PROGRAM)) is written away as a
//! snapshot, once for an image, a client and the image's environment; containers then go on from it, in sandboxes made
//! ahead.
//!
//! A snapshot is made after the first container of its kind was started the plain way, in the background, with the least
//! share of the processor. It holds what is in the image and nothing else: no secret, no file of an app. [`fit`] decides
//! whether a container could tell that it goes on from one; the plain way is taken then. Snapshots are this node's alone: what is
//! in them depends on its processor and its runsc, and making one costs a second. They are a cache: the least recently used
//! go when they take too much room, those of images that are gone go with them, and one that cannot be restored is dropped.

mod fit;
pub(crate) mod unused;

use std::collections::HashMap;
use std::fs;
use std::io::BufRead as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, bail};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_image::build::OWN_FOLDER;
use shoal_runtime::{AheadConfig, Bind, ContainerSpec, Engine, LAUNCHER, NetworkMode, RUNSC_STAMP, Way};
use shoal_state::Digest;
use tokio::sync::mpsc;

use crate::api::blocking;
use crate::arguments;
use crate::config::Config;
use crate::roots::{Root, Roots};

pub(crate) use fit::Loaded;

/// The program that a zygote is.
pub(crate) const PROGRAM: &str = include_str!("zygote.py");
/// What the program is called in the node's own folder of containers: the name of a module that nobody has.
const PROGRAM_FILE: &str = "_shoal_zygote.py";
/// What the launcher is called there.
const LAUNCHER_FILE: &str = "launch";
/// The name of the machine in every container, as the original's.
pub(crate) const HOSTNAME: &str = "modal";

/// How many zygotes may wait to be made; what comes when it is full is asked for again by the next container.
const WANTED_MAX: usize = 64;
/// How long after a container's start its image's zygote is made: the container needs the cores first.
const AFTER: Duration = Duration::from_secs(3);
/// How long a zygote may take to load the client.
const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// How long a kind is not tried again after a failure.
const AGAIN: Duration = Duration::from_secs(600);
/// Share of the processor of a zygote that is made, in thousandths of a core.
const SHARE_MILLIS: u64 = 20;
/// What is said of a zygote, in its folder.
const RECORD: &str = "zygote.json";

/// What containers that go on from one zygote have in common.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    /// Manifests of the image and of the client.
    pub(crate) base: [Digest; 2],
    /// The image's PATH.
    pub(crate) path: String,
    /// The interpreter's name on it.
    pub(crate) python: &'static str,
    /// The environment without what is of a task.
    pub(crate) env: Vec<(String, String)>,
}

impl Kind {
    fn key(&self, machine: &str) -> Digest {
        let [image, client] = self.base.map(|part| part.to_string());
        let mut text = [RUNSC_STAMP, machine, PROGRAM, &image, &client, &self.path, self.python].join("\0");
        text.extend(self.env.iter().map(|(name, value)| format!("\0{name}={value}")));
        Digest::of(text.as_bytes())
    }
}

/// How a container is to be started.
#[derive(Debug)]
pub(crate) enum Start {
    /// From the snapshot in this folder.
    From(PathBuf),
    /// The plain way, and why.
    Plain(String),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Manifest of the image, for when it is gone.
    image: Digest,
    loaded: Loaded,
    bytes: u64,
}

#[derive(Debug)]
enum Known {
    Making,
    Failed { why: String, at: Instant },
    Made { record: Arc<Record>, used: SystemTime },
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    machine: String,
    bytes_max: u64,
    known: Mutex<HashMap<Digest, Known>>,
    wanted: mpsc::Sender<(Digest, Kind)>,
}

/// The zygotes of this node. Cheap to clone. `None` inside when the node is told to make none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Zygotes(Option<Arc<Inner>>);

impl Zygotes {
    /// Finds the zygotes that are there, and makes those that will be missing.
    pub(crate) fn open(config: &Config, engine: Engine, roots: Roots) -> anyhow::Result<Self> {
        let dir = config.data.join("zygotes");
        if !config.containers.zygotes {
            return Ok(Self(None));
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let (wanted, received) = mpsc::channel(WANTED_MAX);
        let known = Mutex::new(found(&dir));
        let inner = Arc::new(Inner { dir, machine: machine(), bytes_max: config.containers.zygote_bytes, known, wanted });
        let maker = Maker { engine, roots, bind: arguments::own_folder(config), run: config.data.join("run/zygote") };
        tokio::spawn(make_wanted(Arc::downgrade(&inner), maker, received));
        Ok(Self(Some(inner)))
    }

    /// Says how a container is to be started that has this environment, working directory and root. A zygote that is missing
    /// is made soon.
    pub(crate) fn start(&self, kind: &Kind, env: &[(String, String)], cwd: &str, root: &Root) -> Start {
        let Some(inner) = &self.0 else { return Start::Plain("zygotes are switched off".to_owned()) };
        let key = kind.key(&inner.machine);
        let mut known = inner.known.lock();
        let record = match known.get_mut(&key) {
            Some(Known::Made { record, used }) => {
                *used = SystemTime::now();
                Arc::clone(record)
            }
            Some(Known::Making) => return Start::Plain("its image's zygote is being made".to_owned()),
            Some(Known::Failed { why, at }) if at.elapsed() < AGAIN => {
                return Start::Plain(format!("its image's zygote could not be made: {why}"));
            }
            Some(Known::Failed { .. }) | None => {
                if inner.wanted.try_send((key, kind.clone())).is_ok() {
                    known.insert(key, Known::Making);
                }
                return Start::Plain("it is the first of its image, or its environment".to_owned());
            }
        };
        drop(known);
        let wanted = fit::Wanted { zygote: &kind.env, env, cwd, added: &root.added };
        match fit::fits(&record.loaded, &wanted) {
            Ok(()) => {
                let folder = inner.folder(key);
                // When it was used last must outlive the node.
                let _ = fs::File::open(folder.join(RECORD)).and_then(|record| record.set_modified(SystemTime::now()));
                Start::From(folder)
            }
            Err(why) => Start::Plain(why),
        }
    }

    /// Drops a zygote that could not be restored.
    pub(crate) fn distrust(&self, folder: &Path) {
        let Some(inner) = &self.0 else { return };
        let Some(key) = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Digest>().ok()) else { return };
        let why = "it could not be restored".to_owned();
        inner.known.lock().insert(key, Known::Failed { why, at: Instant::now() });
        let _ = fs::remove_dir_all(folder);
    }

    /// Drops the zygotes of images that are gone.
    pub(crate) fn keep_those_of(&self, is_there: impl Fn(&Digest) -> bool) {
        let Some(inner) = &self.0 else { return };
        inner.known.lock().retain(|key, known| match known {
            Known::Made { record, .. } if !is_there(&record.image) => {
                let _ = fs::remove_dir_all(inner.folder(*key));
                false
            }
            _ => true,
        });
    }
}

impl Inner {
    fn folder(&self, key: Digest) -> PathBuf {
        self.dir.join(key.to_string())
    }

    /// Drops the least recently used while they take too much room.
    fn shrink(&self) {
        let mut known = self.known.lock();
        let mut made: Vec<(SystemTime, Digest, u64)> = known
            .iter()
            .filter_map(|(key, known)| match known {
                Known::Made { record, used } => Some((*used, *key, record.bytes)),
                _ => None,
            })
            .collect();
        made.sort_unstable();
        let mut bytes: u64 = made.iter().map(|(_, _, bytes)| bytes).sum();
        for (_, key, own) in made {
            if bytes <= self.bytes_max {
                return;
            }
            bytes -= own;
            known.remove(&key);
            let _ = fs::remove_dir_all(self.folder(key));
        }
    }
}

/// Reads which zygotes are there. What is not whole is removed.
fn found(dir: &Path) -> HashMap<Digest, Known> {
    let mut known = HashMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let key = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
        let file = path.join(RECORD);
        let record = fs::read(&file).ok().and_then(|json| serde_json::from_slice::<Record>(&json).ok());
        match (key, record) {
            (Some(key), Some(record)) => {
                let used = fs::metadata(&file).and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                known.insert(key, Known::Made { record: Arc::new(record), used });
            }
            _ => drop(fs::remove_dir_all(&path)),
        }
    }
    known
}

/// What snapshots depend on beside runsc: what the processor can do.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    [line("vendor_id"), line("model name"), line("flags")].join("\n")
}

/// What all sandboxes made ahead have in common.
pub(crate) fn ahead(config: &Config, rooms: crate::roots::Rooms, shm_bytes: u64) -> AheadConfig {
    AheadConfig {
        rooms: Arc::new(rooms),
        binds: vec![arguments::own_folder(config)],
        own_target: arguments::TASK_DIR.to_owned(),
        hostname: HOSTNAME.to_owned(),
        shm_bytes,
        launcher: format!("{OWN_FOLDER}/{LAUNCHER_FILE}"),
        count: config.containers.sandboxes_ahead,
    }
}

/// Writes the programs that sandboxes made ahead and zygotes run.
pub(crate) fn write_programs(own_folder: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, bytes) in [(PROGRAM_FILE, PROGRAM.as_bytes()), (LAUNCHER_FILE, LAUNCHER)] {
        let path = own_folder.join(name);
        // A new file: a process of a former start may still run the old one.
        let fresh = path.with_extension("new");
        fs::write(&fresh, bytes)
            .and_then(|()| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What makes zygotes.
struct Maker {
    engine: Engine,
    roots: Roots,
    bind: Bind,
    run: PathBuf,
}

/// Makes zygotes, one at a time, as long as the node holds them.
async fn make_wanted(inner: std::sync::Weak<Inner>, maker: Maker, mut wanted: mpsc::Receiver<(Digest, Kind)>) {
    while let Some((key, kind)) = wanted.recv().await {
        tokio::time::sleep(AFTER).await;
        let Some(inner) = inner.upgrade() else { return };
        let began = Instant::now();
        let known = match maker.make(&inner.dir, key, &kind).await {
            Ok(record) => {
                tracing::info!(image = %kind.base[0], bytes = record.bytes, ms = began.elapsed().as_millis(), "made a zygote");
                Known::Made { record: Arc::new(record), used: SystemTime::now() }
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::info!(image = %kind.base[0], why, "an image gets no zygote: its containers start the plain way");
                Known::Failed { why, at: Instant::now() }
            }
        };
        inner.known.lock().insert(key, known);
        inner.shrink();
    }
}

impl Maker {
    async fn make(&self, dir: &Path, key: Digest, kind: &Kind) -> anyhow::Result<Record> {
        let root = self.roots.get(&kind.base, &[], kind.path.clone()).await.map_err(|error| anyhow::anyhow!("{error}"))?;
        fs::create_dir_all(&self.run).with_context(|| format!("cannot make {}", self.run.display()))?;
        let container = self.engine.create(self.spec(kind, &root)).await.context("cannot make a sandbox")?;
        let made = self.load(&container, dir, key, kind).await;
        if let Err(error) = container.destroy().await {
            tracing::warn!(%error, "the sandbox of a zygote is not gone yet");
        }
        made
    }

    fn spec(&self, kind: &Kind, root: &Root) -> ContainerSpec {
        let load = format!("import sys; sys.path.insert(1, {OWN_FOLDER:?}); import _shoal_zygote as zygote; zygote.main()");
        let mut spec = ContainerSpec::new(&root.dir, [kind.python, "-u", "-c", &load]);
        spec.env.clone_from(&kind.env);
        spec.binds.push(self.bind.clone());
        spec.own = Some(Bind { source: self.run.clone(), target: arguments::TASK_DIR.to_owned(), read_only: false });
        spec.hostname = HOSTNAME.to_owned();
        spec.limits.shm_bytes = Some(arguments::shm_bytes());
        spec.limits.cpu_request_millis = Some(SHARE_MILLIS);
        // Nobody is to be reached while the client is imported.
        spec.network = NetworkMode::NodeOnly;
        spec.stdin = true;
        spec
    }

    /// Lets a zygote load the client, and writes it away while it waits.
    async fn load(&self, container: &shoal_runtime::Container, dir: &Path, key: Digest, kind: &Kind) -> anyhow::Result<Record> {
        if container.timings().way == Way::Made {
            bail!("its root has no place for what every container has mounted, or has links there");
        }
        container.start().await.context("cannot start Python")?;
        let stdio = container.take_stdio().context("a new container has its pipes")?;
        let (said, errors) = (tokio::task::spawn_blocking(move || first_line(stdio.stdout)), stdio.stderr);
        let said = tokio::time::timeout(LOAD_DEADLINE, said)
            .await
            .with_context(|| format!("Python did not load the client within {LOAD_DEADLINE:?}"))??;
        let Ok(loaded) = serde_json::from_str::<Loaded>(&said) else {
            container.destroy().await.context("cannot take the sandbox down")?;
            let last = tokio::task::spawn_blocking(move || last_line(errors)).await?;
            bail!("Python could not load the client: {last}");
        };
        let fresh = dir.join("fresh");
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh).with_context(|| format!("cannot make {}", fresh.display()))?;
        container.checkpoint(&fresh).await.context("cannot write the snapshot")?;
        let to = dir.join(key.to_string());
        let record = Record { image: kind.base[0], loaded, bytes: 0 };
        blocking(move || keep(&fresh, &to, record)).await
    }
}

/// Puts a snapshot in its place, whole or not at all.
fn keep(fresh: &Path, to: &Path, mut record: Record) -> anyhow::Result<Record> {
    let mut kept = || -> std::io::Result<()> {
        for entry in fs::read_dir(fresh)? {
            let file = fs::File::open(entry?.path())?;
            record.bytes += file.metadata()?.len();
            file.sync_all()?;
        }
        let file = fresh.join(RECORD);
        fs::write(&file, serde_json::to_vec(&record)?)?;
        fs::File::open(&file)?.sync_all()?;
        fs::File::open(fresh)?.sync_all()?;
        let _ = fs::remove_dir_all(to);
        fs::rename(fresh, to)
    };
    kept().with_context(|| format!("cannot keep the snapshot as {}", to.display()))?;
    Ok(record)
}

fn first_line(pipe: OwnedFd) -> String {
    let mut line = String::new();
    let _ = std::io::BufReader::new(fs::File::from(pipe)).read_line(&mut line);
    line
}

fn last_line(pipe: OwnedFd) -> String {
    let lines = std::io::BufReader::new(fs::File::from(pipe)).lines().map_while(Result::ok);
    lines.filter(|line| !line.trim().is_empty()).last().unwrap_or_else(|| "it said nothing".to_owned())
}
