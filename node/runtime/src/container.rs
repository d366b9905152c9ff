//! One container, from its creation until nothing of it is left.
//!
//! A task of its own, the *owner*, holds what the container consists of on the host ([`Parts`]),
//! publishes its exit and takes it down. [`Container`] is the handle: it speaks to the sandbox
//! by the control socket and to the owner by orders. When the last handle is gone without
//! [`Container::destroy`], the owner takes the container down all the same.

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
use rustix::process::WaitIdStatus;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use crate::{
    Addresses, ContainerId, ContainerSpec, Error, Exec, ExecSpec, Exit, ExitStatus, OverDisk, Overlay, Result, Rooms, Stdio, Timings,
    Usage, Way, blocking,
    cgroup::Cgroup,
    control::Control,
    engine::Inner,
    exec::{self, Defaults, TO_FOREGROUND},
    network::{Claim, link::Link, slot::Slot},
    process::{self, Process},
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
/// How long a sandbox may live on after a SIGKILL, from inside or outside.
const DEATH_DEADLINE: Duration = Duration::from_secs(5);
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
    ended: watch::Receiver<Option<Ended>>,
    orders: mpsc::Sender<Order>,
}

/// What became of the sandbox.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Exit(Exit),
    /// The error number of the wait.
    Lost(i32),
}

/// What the owner is told.
pub(crate) enum Order {
    /// Kill the sandbox, perhaps because of what it took of the disk.
    Kill(Option<OverDisk>),
    Dismantle(oneshot::Sender<Result<()>>),
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
        if self.signal(signal, false).await.is_ok()
            && let Ok(exit) = timeout(grace, self.exit()).await
        {
            return exit;
        }
        if self.signal(libc::SIGKILL, true).await.is_ok()
            && let Ok(exit) = timeout(DEATH_DEADLINE, self.exit()).await
        {
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

/// Owns the parts of one container.
struct Owner {
    parts: Parts,
    ended: watch::Sender<Option<Ended>>,
    /// Why it was killed, if that was because of what it took of the disk.
    over_disk: Option<OverDisk>,
    orders: mpsc::Receiver<Order>,
}

impl Owner {
    async fn run(mut self) {
        loop {
            tokio::select! {
                waited = self.parts.sandbox_ended(), if self.ended.borrow().is_none() => self.bury(waited),
                order = self.orders.recv() => match order {
                    Some(Order::Kill(why)) => {
                        self.over_disk = self.over_disk.or(why);
                        self.parts.kill();
                    }
                    Some(Order::Dismantle(reply)) => {
                        let done = self.dismantle().await;
                        let gone = done.is_ok();
                        let _ = reply.send(done);
                        if gone {
                            return;
                        }
                    }
                    None => {
                        if let Err(error) = self.dismantle().await {
                            tracing::warn!(container = %self.parts.id, %error, "left something behind");
                        }
                        return;
                    }
                },
            }
        }
    }

    /// Takes the exit status of a sandbox that has ended.
    fn bury(&mut self, waited: io::Result<()>) {
        let found = waited.and_then(|()| self.parts.reap_sandbox());
        let ended = match found {
            Ok(Some(status)) => {
                let disk = self.over_disk.filter(|_| status == ExitStatus::Signal(libc::SIGKILL));
                Ended::Exit(Exit { status, oom: self.parts.oom_killed(), disk })
            }
            Ok(None) => return,
            Err(error) => Ended::Lost(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.parts.engine.overlays.leave(self.parts.id);
        self.ended.send_replace(Some(ended));
    }

    async fn dismantle(&mut self) -> Result<()> {
        if self.ended.borrow().is_none() {
            self.parts.kill();
            let waited = timeout(DEATH_DEADLINE, self.parts.sandbox_ended()).await;
            match waited {
                Ok(waited) => self.bury(waited),
                Err(_) => return Err(self.parts.stuck()),
            }
        }
        self.parts.dismantle().await
    }
}

/// The host processes of a container.
#[derive(Debug)]
pub(crate) struct Sandbox {
    sandbox: Process,
    /// The file server beside it; it ends with the sandbox.
    gofer: Option<Process>,
}

impl Sandbox {
    pub(crate) fn hold(sandbox: i32, gofer: i32) -> io::Result<Self> {
        Ok(Self { sandbox: Process::open(sandbox)?, gofer: Process::open(gofer).ok() })
    }
}

/// What a container consists of on the host. Each part exists or does not, so that it can be taken
/// down at any point of its making or its end.
#[derive(Debug)]
pub(crate) struct Parts {
    engine: Arc<Inner>,
    pub(crate) id: ContainerId,
    /// A network without an address yet.
    pub(crate) slot: Option<Slot>,
    pub(crate) claim: Option<Claim>,
    /// The room that is its root, by name.
    pub(crate) room: Option<(Arc<dyn Rooms>, String)>,
    pub(crate) cgroup: Option<Arc<Cgroup>>,
    pub(crate) sandbox: Option<Sandbox>,
}

impl Parts {
    pub(crate) fn new(engine: Arc<Inner>, id: ContainerId) -> Self {
        Self { engine, id, slot: None, claim: None, room: None, cgroup: None, sandbox: None }
    }

    /// Whether its sandbox is there and runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.sandbox.as_ref().is_some_and(|sandbox| sandbox.sandbox.is_alive())
    }

    async fn sandbox_ended(&self) -> io::Result<()> {
        match &self.sandbox {
            Some(sandbox) => sandbox.sandbox.ended().await,
            None => Ok(()),
        }
    }

    fn reap_sandbox(&self) -> io::Result<Option<ExitStatus>> {
        let Some(sandbox) = &self.sandbox else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(sandbox.sandbox.reap()?.map(status_of))
    }

    fn oom_killed(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|group| group.oom_killed())
    }

    fn kill(&self) {
        if let Some(sandbox) = &self.sandbox {
            sandbox.sandbox.kill();
        }
    }

    fn stuck(&self) -> Error {
        let pid = self.sandbox.as_ref().map_or(0, |sandbox| sandbox.sandbox.pid());
        Error::Stuck { container: self.id, pid }
    }

    /// Takes everything down, in the order in which one thing holds the next.
    pub(crate) async fn dismantle(&mut self) -> Result<()> {
        if let Some(Sandbox { sandbox, gofer }) = &self.sandbox {
            for process in [Some(sandbox), gofer.as_ref()].into_iter().flatten() {
                process.kill();
                if timeout(DEATH_DEADLINE, process.ended()).await.is_err() {
                    return Err(self.stuck());
                }
                // The sandbox was reaped already if its exit was taken.
                let _ = process.reap();
            }
        }
        if let Some(group) = self.cgroup.clone() {
            // Kills the stub processes too, and waits for them.
            blocking(move || group.remove()).await?;
            self.cgroup = None;
        }
        self.sweep();
        if let Some(slot) = self.slot.take() {
            blocking(move || slot.remove()).await?;
        }
        if let Some(claim) = self.claim.take() {
            self.engine.release(claim).await?;
        }
        if let Some((rooms, name)) = self.room.take() {
            blocking(move || rooms.close(&name)).await;
        }
        let (engine, id) = (self.engine.clone(), self.id);
        blocking(move || remove_files(&engine, id)).await?;
        self.sandbox = None;
        Ok(())
    }

    /// Reaps what the sandbox left to us.
    fn sweep(&self) {
        let mut sessions = self.engine.sessions.lock();
        process::sweep(&sessions);
        if let Some(Sandbox { sandbox, gofer }) = &self.sandbox {
            sessions.remove(&sandbox.pid());
            gofer.iter().for_each(|gofer| {
                sessions.remove(&gofer.pid());
            });
        }
    }
}

/// Removes the bundle and what runsc keeps about a container. Ids have one length, so a name that
/// holds this one is of no other.
fn remove_files(engine: &Inner, id: ContainerId) -> Result<()> {
    let (root, name) = (engine.root(), id.to_string());
    let files = match fs::read_dir(&root) {
        // The engine was closed.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        files => files.map_err(Error::file("list", &root))?,
    };
    for entry in files.flatten() {
        if entry.file_name().to_string_lossy().contains(&name) {
            fs::remove_file(entry.path()).map_err(Error::file("remove", entry.path()))?;
        }
    }
    [engine.bundle(id), engine.own(id)].iter().try_for_each(|folder| match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", folder)(e)),
        _ => Ok(()),
    })
}

fn status_of(status: WaitIdStatus) -> ExitStatus {
    match status.terminating_signal() {
        Some(signal) => ExitStatus::Signal(signal),
        None => ExitStatus::Code(status.exit_status().unwrap_or_default()),
    }
}
