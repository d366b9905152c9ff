//! Sandboxes made ahead of need.
//!
//! Making a sandbox takes some 50 ms of a core, and nothing in it depends on what it will run: its root is a *room* (an
//! empty directory that shows a tree later), its first process is a launcher that waits for its job, its limits are files
//! that can be written at any time, and its network gets its address when it starts. So a few wait, and a container is
//! started in one of them wherever its description asks for nothing that is fixed at the making.
//!
//! ```text
//! making ── room, slot, cgroup, `runsc create` with the launcher ── waits, idle, some 14 MiB
//! taking ── limits, address, the container's own files, the room is filled
//! start ─── network, then the launcher, which is handed its job; or a snapshot is restored in its place
//! ```

use std::{
    collections::VecDeque,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

use crate::{Bind, ContainerSpec, Error, NetworkMode, Overlay, Result, Stdio, User, container::Parts};

/// The launcher: a static program that [`AheadConfig::launcher`] names inside.
pub const LAUNCHER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/launch"));

/// How long nothing must have been taken before a sandbox is made anew: what was taken starts now and needs the cores.
const REST: Duration = Duration::from_secs(1);
/// How long the making rests after a failure.
const PAUSE: Duration = Duration::from_secs(10);
/// How long the making of a sandbox may go on when the engine closes.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// The longest job, in bytes: more than the kernel takes as arguments and environment.
const JOB_BYTES_MAX: usize = 4 << 20;

/// Makes directories that show a tree later. What they are is the caller's affair.
pub trait Rooms: fmt::Debug + Send + Sync + 'static {
    /// Makes a room and returns its path. It must have a place for each mount of a container.
    ///
    /// # Errors
    /// When there can be none.
    fn open(&self, name: &str) -> io::Result<PathBuf>;

    /// Makes a room show what the directory `root` shows. False where it cannot: the room stays empty then.
    fn fill(&self, name: &str, root: &Path) -> bool;

    /// Takes a room away.
    fn close(&self, name: &str);
}

/// What all sandboxes made ahead have in common. A container of a description that differs is made in full.
#[derive(Clone, Debug)]
pub struct AheadConfig {
    /// Their roots.
    pub rooms: Arc<dyn Rooms>,
    /// What each of them has mounted.
    pub binds: Vec<Bind>,
    /// Where the files of [`ContainerSpec::own`] are.
    pub own_target: String,
    /// Their host name.
    pub hostname: String,
    /// Size of /dev/shm, in bytes.
    pub shm_bytes: u64,
    /// The path of [`LAUNCHER`] inside.
    pub launcher: String,
    /// How many are kept. None is made ahead with 0, but snapshots can be restored.
    pub count: usize,
}

impl AheadConfig {
    /// Whether a container can be started in a sandbox made ahead.
    pub(crate) fn fits(&self, spec: &ContainerSpec) -> bool {
        let limits = &spec.limits;
        spec.overlay == Overlay::Disk
            && spec.user == User::default()
            && matches!(spec.network, NetworkMode::Nat | NetworkMode::NodeOnly)
            && spec.hostname == self.hostname
            && spec.binds == self.binds
            && spec.own.as_ref().is_some_and(|own| own.target == self.own_target && !own.read_only)
            && limits.cores(crate::cores::machine()).is_none()
            && spec.terminal.is_none()
            && limits.disk_bytes.is_none()
            && limits.shm_bytes == Some(self.shm_bytes)
            && spec.files.is_empty()
            && spec.devices.is_empty()
            && spec.capabilities.is_empty()
            && spec.runsc_flags.is_empty()
            && spec.annotations.is_empty()
    }

    /// What a sandbox made ahead is described as.
    pub(crate) fn description(&self, rootfs: PathBuf, own: PathBuf) -> ContainerSpec {
        let mut spec = ContainerSpec::new(rootfs, [self.launcher.clone()]);
        spec.binds = self.binds.clone();
        spec.own = Some(Bind { source: own, target: self.own_target.clone(), read_only: false });
        spec.hostname = self.hostname.clone();
        spec.limits.shm_bytes = Some(self.shm_bytes);
        spec.network = NetworkMode::Nat;
        spec.stdin = true;
        spec
    }
}

/// One that waits.
#[derive(Debug)]
pub(crate) struct Blank {
    pub(crate) parts: Parts,
    pub(crate) stdio: Stdio,
}

/// Those that wait.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) config: AheadConfig,
    waiting: Mutex<VecDeque<Blank>>,
    /// Tells the filling task that one was taken.
    taken: Notify,
    filling: Mutex<Option<JoinHandle<()>>>,
    has_ended: AtomicBool,
}

impl Ahead {
    pub(crate) fn new(config: AheadConfig) -> Self {
        Self { config, waiting: Mutex::default(), taken: Notify::new(), filling: Mutex::default(), has_ended: AtomicBool::new(false) }
    }

    /// Takes one that waits.
    pub(crate) fn take(&self) -> Option<Blank> {
        let blank = self.waiting.lock().pop_front();
        self.taken.notify_one();
        blank
    }

    pub(crate) fn give_back(&self, blank: Blank) {
        self.waiting.lock().push_front(blank);
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Keeps as many as are wanted, made by `make`, until [`Self::end`].
    pub(crate) fn keep_filled<F>(self: Arc<Self>, make: impl Fn() -> F + Send + Sync + 'static)
    where
        F: Future<Output = Result<Blank>> + Send,
    {
        let ahead = self.clone();
        let filling = tokio::spawn(async move {
            while !ahead.has_ended() {
                while timeout(REST, ahead.taken.notified()).await.is_ok() {}
                while ahead.waiting() < ahead.config.count && !ahead.has_ended() {
                    match make().await {
                        Ok(blank) => ahead.waiting.lock().push_back(blank),
                        Err(error) => {
                            tracing::warn!(%error, "cannot make a sandbox ahead");
                            let _woken = timeout(PAUSE, ahead.taken.notified()).await;
                        }
                    }
                }
                if !ahead.has_ended() {
                    ahead.taken.notified().await;
                }
            }
        });
        *self.filling.lock() = Some(filling);
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    /// Makes no more, and hands out those that wait.
    pub(crate) async fn end(&self) -> Vec<Blank> {
        self.has_ended.store(true, Ordering::Relaxed);
        self.taken.notify_one();
        let filling = self.filling.lock().take();
        if let Some(mut filling) = filling
            && timeout(END_DEADLINE, &mut filling).await.is_err()
        {
            tracing::warn!("the making of a sandbox ahead does not end within {END_DEADLINE:?}; what it made is found by name");
            filling.abort();
        }
        self.waiting.lock().drain(..).collect()
    }
}

/// Writes the job that makes the launcher, or a program that was restored from a snapshot, run what a description says.
///
/// # Errors
/// When it is longer than any program's arguments may be, or a string has a NUL.
pub(crate) fn job(spec: &ContainerSpec) -> std::result::Result<Vec<u8>, String> {
    let env = crate::oci::environment(&spec.env);
    let head = [u8::from(spec.stdin).to_string(), spec.cwd.clone(), spec.argv.len().to_string()];
    let mut job = vec![0; 4];
    for string in head.iter().chain(&spec.argv).chain(&env) {
        if string.contains('\0') {
            return Err(format!("{string:?} has a NUL in it"));
        }
        job.extend_from_slice(string.as_bytes());
        job.push(0);
    }
    let length = job.len() - 4;
    if length > JOB_BYTES_MAX {
        return Err(format!("its arguments and environment have {length} bytes, and {JOB_BYTES_MAX} is the most"));
    }
    job[..4].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(job)
}

/// Shows the files of one folder in another on the same file system too, sockets included.
pub(crate) fn link_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::file("list", from))? {
        let entry = entry.map_err(Error::file("list", from))?;
        fs::hard_link(entry.path(), to.join(entry.file_name())).map_err(Error::file("link", entry.path()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_what_the_launcher_reads() {
        let mut spec = ContainerSpec::new("/r", ["python", "-u"]);
        spec.cwd = "/root".into();
        spec.env = vec![("A".into(), "1".into()), ("A".into(), "2=3".into())];
        assert_eq!(job(&spec).unwrap(), b"\x1a\0\0\x000\0/root\x002\0python\0-u\0A=2=3\0");
        spec.stdin = true;
        assert_eq!(job(&spec).unwrap()[4], b'1');
        spec.env[1].1 = "a\0b".into();
        assert!(job(&spec).unwrap_err().contains("NUL"));
        spec.env[1].1 = "1".into();
        spec.env[0].1 = "x".repeat(JOB_BYTES_MAX);
        assert!(job(&spec).is_ok(), "the last value counts");
        spec.env[1].1 = "x".repeat(JOB_BYTES_MAX);
        assert!(job(&spec).unwrap_err().contains("is the most"));
    }
}
