//! The one runsc that the engine speaks to: its version, its flags, and a `create` by it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use tokio::{process::Command, time::timeout};

use super::Inner;
use crate::{
    ContainerId, ContainerSpec, Error, NetworkMode, Overlay, Result, Stdio,
    container::{Parts, Sandbox},
    cores::{self, Cores},
    stdio,
};

/// The version string of the one runsc that this engine speaks to. scripts/install-runsc stamps it.
pub const RUNSC_STAMP: &str = "release-20260905.0-shoal.2";

/// How long `runsc --version` may take.
const VERSION_DEADLINE: Duration = Duration::from_secs(10);
/// How long `runsc create` may take: it needs 50 ms on an idle machine.
const CREATE_DEADLINE: Duration = Duration::from_secs(60);
/// How much of a failed runsc's stderr is kept.
const MESSAGE_BYTES_MAX: u64 = 16 << 10;

impl Inner {
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
    pub(super) async fn run_create(&self, parts: &mut Parts, spec: &ContainerSpec, entrances: Vec<File>) -> Result<Stdio> {
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

pub(super) async fn check_runsc(runsc: &Path) -> Result<()> {
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
