//! What a container consists of on the host, and how it is taken down, at whatever point of its life.

use std::{fs, io, sync::Arc, time::Duration};

use rustix::process::WaitIdStatus;
use tokio::time::timeout;

use crate::{
    ContainerId, Error, ExitStatus, Result, Rooms, blocking,
    cgroup::Cgroup,
    engine::Inner,
    network::{Claim, slot::Slot},
    process::{self, Process},
};

/// How long a sandbox may live on after a SIGKILL, from inside or outside.
pub(super) const DEATH_DEADLINE: Duration = Duration::from_secs(5);

/// The host processes of a container.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(super) sandbox: Process,
    /// The file server beside it; it ends with the sandbox.
    gofer: Option<Process>,
}

impl Sandbox {
    pub(crate) fn hold(sandbox: i32, gofer: i32) -> io::Result<Self> {
        Ok(Self { sandbox: Process::open(sandbox)?, gofer: Process::open(gofer).ok() })
    }

    /// The host's process of the file server, where there is one.
    pub(super) fn gofer_pid(&self) -> Option<i32> {
        self.gofer.as_ref().map(Process::pid)
    }
}

/// What a container consists of on the host. Each part exists or does not, so that it can be taken
/// down at any point of its making or its end.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(super) engine: Arc<Inner>,
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

    pub(super) async fn sandbox_ended(&self) -> io::Result<()> {
        match &self.sandbox {
            Some(sandbox) => sandbox.sandbox.ended().await,
            None => Ok(()),
        }
    }

    pub(super) fn reap_sandbox(&self) -> io::Result<Option<ExitStatus>> {
        let Some(sandbox) = &self.sandbox else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(sandbox.sandbox.reap()?.map(status_of))
    }

    pub(super) fn oom_killed(&self) -> bool {
        self.cgroup.as_ref().is_some_and(|group| group.oom_killed())
    }

    pub(super) fn kill(&self) {
        if let Some(sandbox) = &self.sandbox {
            sandbox.sandbox.kill();
        }
    }

    pub(super) fn stuck(&self) -> Error {
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
