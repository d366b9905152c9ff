//! One container, from its creation until nothing of it is left.
//!
//! A task of its own, the *owner*, holds what the container consists of on the host ([`Parts`]),
//! publishes its exit and takes it down. [`Container`] is the handle: it speaks to the sandbox
//! by the control socket and to the owner by orders. When the last handle is gone without
//! [`Container::destroy`], the owner takes the container down all the same.

mod owner;
mod parts;

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

pub(crate) use self::owner::Order;
use self::owner::{Ended, Owner};
use self::parts::DEATH_DEADLINE;
pub(crate) use self::parts::{Parts, Sandbox};
use crate::{
    Addresses, ContainerId, ContainerSpec, Error, Exec, ExecSpec, Exit, Overlay, Result, Stdio, Timings, Usage, Way,
    cgroup::Cgroup,
    control::Control,
    exec::{self, Defaults, TO_FOREGROUND},
    network::{Claim, link::Link},
};

/// How long the sandbox may take to answer a call that does little.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a process may take to run: the sandbox loads its program from the root, which may have
/// to fetch it first.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(120);
/// How long a checkpoint may take: as the disk takes to write all memory.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(300);
/// The files of a snapshot, in the order in which the sandbox takes them.
pub(crate) const SNAPSHOT_FILES: [&str; 3] = ["checkpoint.img", "pages_meta.img", "pages.img"];
/// How long the export of a container's changes may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(1800);
/// How many orders may wait for the owner. There are two kinds; senders wait when it is full.
const ORDERS_MAX: usize = 4;

/// The handle of a container. All methods take `&self` and may run at the same time.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    control: Control,
    addresses: Option<Addresses>,
    cgroup: Option<Arc<Cgroup>>,
    defaults: Defaults,
    stdio: Mutex<Option<Stdio>>,
    timings: Mutex<Timings>,
    /// What start tells the sandbox about its network, and the sockets of its interfaces.
    network: Mutex<Option<(Value, OwnedFd, Option<Link>)>>,
    /// What the program that waits in a sandbox made ahead is handed.
    job: Mutex<Option<(OwnedFd, Vec<u8>)>>,
    snapshot: Option<PathBuf>,
    sandbox_pid: i32,
    gofer_pid: Option<i32>,
    ended: watch::Receiver<Option<Ended>>,
    orders: mpsc::Sender<Order>,
}

impl Container {
    /// Starts the owner of these parts, which must be complete. `job` is for a sandbox made ahead.
    pub(crate) fn new(parts: Parts, spec: &ContainerSpec, mut stdio: Stdio, mut timings: Timings, job: Option<Vec<u8>>) -> Result<Self> {
        let snapshot = spec.snapshot.clone().filter(|_| job.is_some());
        if snapshot.is_some() {
            timings.way = Way::Restored;
        }
        let job = match (job, stdio.stdin.take()) {
            (Some(job), Some(pipe)) => {
                if spec.stdin {
                    stdio.stdin = Some(pipe.try_clone().map_err(Error::file("duplicate", "a pipe"))?);
                }
                Some((pipe, job))
            }
            (_, stdin) => {
                stdio.stdin = stdin;
                None
            }
        };
        let network = match &parts.claim {
            Some(claim) => {
                let frames = claim.slot.frames().try_clone_to_owned();
                let frames = frames.map_err(Error::network("duplicate the socket of a slot"))?;
                let arguments = claim.sandbox_arguments(snapshot.is_some(), spec.link.as_ref());
                Some((arguments, frames, spec.link.clone()))
            }
            None => None,
        };
        let socket = parts.engine.root().join(format!("runsc-{}.sock", parts.id));
        let (ended, ended_seen) = watch::channel(None);
        let (orders, received) = mpsc::channel(ORDERS_MAX);
        let sandbox_pid = parts.sandbox.as_ref().map_or(0, |s| s.sandbox.pid());
        let gofer_pid = parts.sandbox.as_ref().and_then(Sandbox::gofer_pid);
        if spec.overlay == Overlay::Disk {
            parts.engine.overlays.enter(parts.id, sandbox_pid, orders.downgrade());
        }
        let container = Self {
            id: parts.id,
            control: Control::new(parts.id, socket),
            addresses: parts.claim.as_ref().map(Claim::addresses),
            cgroup: parts.cgroup.clone(),
            defaults: Defaults::of(spec),
            stdio: Mutex::new(Some(stdio)),
            timings: Mutex::new(timings),
            network: Mutex::new(network),
            job: Mutex::new(job),
            snapshot,
            sandbox_pid,
            gofer_pid,
            ended: ended_seen,
            orders,
        };
        tokio::spawn(Owner { parts, ended, over_disk: None, orders: received }.run());
        Ok(container)
    }

    /// Its name towards runsc, which its cgroups and files carry.
    pub fn id(&self) -> ContainerId {
        self.id
    }

    /// Its own address and the node's; `None` without a network.
    pub fn addresses(&self) -> Option<Addresses> {
        self.addresses
    }

    /// The host processes that read its files.
    pub fn readers(&self) -> Vec<u32> {
        [Some(self.sandbox_pid), self.gofer_pid]
            .into_iter()
            .flatten()
            .filter_map(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0)
            .collect()
    }

    /// How long the phases of its beginning took.
    pub fn timings(&self) -> Timings {
        *self.timings.lock()
    }

    /// The host process of the sandbox, for diagnosis.
    pub fn sandbox_pid(&self) -> i32 {
        self.sandbox_pid
    }

    /// Hands out our ends of the streams of the first process. Only the first call gets them.
    pub fn take_stdio(&self) -> Option<Stdio> {
        self.stdio.lock().take()
    }

    /// Runs the first process. Its root must have its content by now.
    ///
    /// # Errors
    /// [`Error::Refused`] with the sandbox's words when the program cannot be run; the container
    /// is then of no more use.
    pub async fn start(&self) -> Result<()> {
        let began = Instant::now();
        let network = self.network.lock().take();
        if let Some((arguments, frames, link)) = network {
            let method = "containerManager.SetNetworkArgs";
            let sockets: Vec<_> = [frames.as_fd()].into_iter().chain(link.iter().map(Link::socket)).collect();
            self.control.call::<_, Value>(method, &arguments, &sockets, CALL_DEADLINE).await?;
        }
        let connected = began.elapsed();
        let job = self.job.lock().take();
        match job {
            // Together: a long job does not fit into the pipe before somebody reads it.
            Some((pipe, job)) => tokio::try_join!(self.run(), self.hand_over(pipe, &job)).map(drop)?,
            None => self.run().await?,
        }
        let mut timings = self.timings.lock();
        timings.start = Some(began.elapsed());
        tracing::debug!(container = %self.id, ?connected, timings = ?*timings, "a container has started");
        Ok(())
    }

    /// Lets the first process run.
    async fn run(&self) -> Result<()> {
        let id = self.id.to_string();
        let Some(snapshot) = &self.snapshot else {
            return self.control.call::<_, Value>("containerManager.StartRoot", &id, &[], START_DEADLINE).await.map(drop);
        };
        let files = SNAPSHOT_FILES.map(|name| {
            let path = snapshot.join(name);
            fs::File::open(&path).map_err(Error::file("open", &path))
        });
        let [image, meta, pages] = files;
        let (image, meta, pages) = (image?, meta?, pages?);
        let argument = json!({"HavePagesFile": true, "HaveDeviceFile": false});
        let files = [image.as_fd(), meta.as_fd(), pages.as_fd()];
        self.control.call::<_, Value>("containerManager.Restore", &argument, &files, START_DEADLINE).await.map(drop)
    }

    /// Writes the job to the program that waits for it.
    async fn hand_over(&self, pipe: OwnedFd, job: &[u8]) -> Result<()> {
        let failed = Error::file("write", "the job of a container");
        let written = async {
            rustix::io::ioctl_fionbio(&pipe, true)?;
            tokio::net::unix::pipe::Sender::from_owned_fd(pipe)?.write_all(job).await
        };
        match timeout(START_DEADLINE, written).await {
            Ok(written) => written.map_err(failed),
            Err(_) => Err(Error::Deadline { container: self.id, what: "the reading of its job", waited: START_DEADLINE }),
        }
    }

    /// Writes all that the container's processes are, into a folder that exists: [`ContainerSpec::snapshot`] takes it.
    /// The container goes on.
    pub async fn checkpoint(&self, to: &Path) -> Result<()> {
        let files = SNAPSHOT_FILES.map(|name| {
            let path = to.join(name);
            fs::File::create(&path).map_err(Error::file("create", &path))
        });
        let [image, meta, pages] = files;
        let (image, meta, pages) = (image?, meta?, pages?);
        let argument = json!({"metadata": {"compression": "none"}, "have_pages_file": true, "Resume": true});
        let files = [image.as_fd(), meta.as_fd(), pages.as_fd()];
        let method = "containerManager.Checkpoint";
        self.control.call::<_, Value>(method, &argument, &files, CHECKPOINT_DEADLINE).await.map(drop)
    }

    /// Sends a signal to the first process, or to all. One that has ended takes it silently.
    pub async fn signal(&self, signal: i32, all: bool) -> Result<()> {
        match self.send_signal(signal, 0, i32::from(all)).await {
            Err(_) if self.ended.borrow().is_some() => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to the processes in the foreground of its terminal, or to the first process when it has none.
    pub async fn interrupt(&self, signal: i32) -> Result<()> {
        match self.send_signal(signal, 0, TO_FOREGROUND).await {
            Err(_) if self.ended.borrow().is_some() => Ok(()),
            other => other,
        }
    }

    async fn send_signal(&self, signal: i32, pid: i32, mode: i32) -> Result<()> {
        let argument = json!({"CID": self.id.to_string(), "Signo": signal, "PID": pid, "Mode": mode});
        let method = "containerManager.Signal";
        self.control.call::<_, Value>(method, &argument, &[], CALL_DEADLINE).await.map(drop)
    }

    /// Waits for the end of the container: of its first process, which takes all others with it.
    /// May be called any number of times, also afterwards.
    pub async fn exit(&self) -> Result<Exit> {
        let mut ended = self.ended.clone();
        let found = ended.wait_for(Option::is_some).await.map(|ended| *ended);
        match found {
            Ok(Some(Ended::Exit(exit))) => Ok(exit),
            Ok(Some(Ended::Lost(number))) => Err(self.lost(io::Error::from_raw_os_error(number))),
            // The owner always says how it ended before it goes.
            Ok(None) | Err(_) => Err(self.lost(io::ErrorKind::NotFound.into())),
        }
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::StatusLost { container: self.id, source }
    }

    /// Its exit, if it has ended.
    pub fn exit_now(&self) -> Option<Exit> {
        match *self.ended.borrow() {
            Some(Ended::Exit(exit)) => Some(exit),
            _ => None,
        }
    }

    /// Ends the container: sends `signal` to its first process, and after `grace` SIGKILL to all
    /// of them; if that is not heeded, the sandbox itself is killed.
    ///
    /// # Errors
    /// [`Error::Stuck`] when not even that helps.
    pub async fn stop(&self, signal: i32, grace: Duration) -> Result<Exit> {
        // A sandbox that refuses the signal, such as one that was not started, needs no grace.
        if !grace.is_zero()
            && self.signal(signal, false).await.is_ok()
            && let Ok(exit) = timeout(grace, self.exit()).await
        {
            return exit;
        }
        // One that does not answer is killed all the same, within the same time.
        let dies = async { if self.signal(libc::SIGKILL, true).await.is_ok() { Some(self.exit().await) } else { None } };
        if let Ok(Some(exit)) = timeout(DEATH_DEADLINE, dies).await {
            return exit;
        }
        let _ = self.orders.send(Order::Kill(None)).await;
        match timeout(DEATH_DEADLINE, self.exit()).await {
            Ok(exit) => exit,
            Err(_) => Err(Error::Stuck { container: self.id, pid: self.sandbox_pid }),
        }
    }

    /// Runs a further process in the container, which must have been started.
    pub async fn exec(&self, spec: ExecSpec) -> Result<Exec> {
        exec::run(&self.control, self.id, &self.defaults, spec).await
    }

    /// Writes what the container changed in its root, as a tar, to a file or pipe. Deleted files
    /// are character devices 0,0. The container must be running.
    pub async fn export_upper(&self, to: impl AsFd) -> Result<()> {
        let argument = json!({"ContainerID": self.id.to_string()});
        let method = "Fs.TarRootfsUpperLayer";
        self.control.call::<_, Value>(method, &argument, &[to.as_fd()], EXPORT_DEADLINE).await.map(drop)
    }

    /// Connects to a TCP port that the container listens on, whatever its network mode, except
    /// that there must be one.
    pub async fn port_forward(&self, port: u16) -> Result<UnixStream> {
        let method = "containerManager.PortForward";
        let broken = |source| Error::Broken { container: self.id, method, source };
        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        ours.set_nonblocking(true).map_err(broken)?;
        let argument = json!({"ContainerID": self.id.to_string(), "Port": port});
        self.control.call::<_, Value>(method, &argument, &[theirs.as_fd()], CALL_DEADLINE).await?;
        Ok(ours)
    }

    /// What it uses now.
    pub fn usage(&self) -> Usage {
        self.cgroup.as_ref().map(|group| group.usage()).unwrap_or_default()
    }

    /// Takes the container down, killing what still runs, until nothing of it is left on the
    /// host: processes, cgroups, links, files. Doing it again does no harm.
    ///
    /// # Errors
    /// [`Error::Stuck`] and others; what could not be removed is tried again by the next call.
    pub async fn destroy(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.orders.send(Order::Dismantle(reply)).await.is_err() {
            return Ok(());
        }
        // No answer: another call's order was carried out first, and the owner is gone.
        answer.await.unwrap_or(Ok(()))
    }
}
