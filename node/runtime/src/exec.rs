//! Further processes in a running container.

use std::os::fd::AsFd;

use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};

use crate::{
    ContainerId, ContainerSpec, Error, ExitStatus, Result, Stdio, User,
    container::{CALL_DEADLINE, START_DEADLINE},
    control::Control,
    oci, stdio,
    terminal::TerminalSize,
};

/// A process to run in a container. What is `None` is taken from the container.
#[derive(Clone, Debug, Default)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables to add to the container's environment, or to change in it.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub cwd: Option<String>,
    /// Who runs it.
    pub user: Option<User>,
    /// Whether stdin is a pipe or /dev/null.
    pub stdin: bool,
    /// Whether its stderr goes where its stdout goes; nothing comes from our end of its stderr then.
    pub merged: bool,
    /// Whether all three streams are a terminal, of this size. Our ends of its stdin and stdout are then both the terminal's, and
    /// nothing comes from its stderr.
    pub terminal: Option<TerminalSize>,
}

impl ExecSpec {
    /// A process like the container's first one, with other arguments.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { argv: argv.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// What an exec takes from its container when it says nothing else.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    user: User,
    capabilities: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
}

impl Defaults {
    pub(crate) fn of(spec: &ContainerSpec) -> Self {
        Self { user: spec.user.clone(), capabilities: oci::capabilities(spec), env: spec.env.clone(), cwd: spec.cwd.clone() }
    }
}

/// A process that [`Container::exec`](crate::Container::exec) has started.
///
/// Dropping it does not end the process; the container's end does.
#[derive(Debug)]
pub struct Exec {
    container: ContainerId,
    control: Control,
    pid: i32,
    stdio: Option<Stdio>,
    ended: watch::Receiver<Option<ExitStatus>>,
    waiting: JoinHandle<()>,
}

impl Exec {
    /// Its number inside the container.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Hands out its pipes. Only the first call gets them.
    pub fn take_stdio(&mut self) -> Option<Stdio> {
        self.stdio.take()
    }

    /// Waits for its end. A container that ends takes it along: it then counts as killed.
    pub async fn wait(&self) -> ExitStatus {
        let mut ended = self.ended.clone();
        let found = ended.wait_for(Option::is_some).await.map(|ended| *ended);
        found.ok().flatten().unwrap_or(KILLED)
    }

    /// Sends it a signal. One that has ended takes it silently.
    pub async fn kill(&self, signal: i32) -> Result<()> {
        self.signal(signal, TO_PROCESS).await
    }

    /// Sends a signal to the processes in the foreground of its terminal, or to itself when it has none.
    pub async fn interrupt(&self, signal: i32) -> Result<()> {
        self.signal(signal, TO_FOREGROUND).await
    }

    async fn signal(&self, signal: i32, mode: i32) -> Result<()> {
        let argument = json!({"CID": self.container.to_string(), "Signo": signal, "PID": self.pid, "Mode": mode});
        let sent = self.control.call::<_, Value>("containerManager.Signal", &argument, &[], CALL_DEADLINE);
        match sent.await {
            Err(_) if self.ended.borrow().is_some() => Ok(()),
            // It has ended, and its exit is on the way.
            Err(Error::Refused { message, .. }) if message.contains("no such process") => Ok(()),
            other => other.map(drop),
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        self.waiting.abort();
    }
}

/// Whom a signal is for: a process, or those in the foreground of its terminal.
const TO_PROCESS: i32 = 0;
pub(crate) const TO_FOREGROUND: i32 = 2;
const KILLED: ExitStatus = ExitStatus::Signal(libc::SIGKILL);

/// Starts a process by the control socket of a container.
pub(crate) async fn run(control: &Control, container: ContainerId, defaults: &Defaults, spec: ExecSpec) -> Result<Exec> {
    let (stdio, theirs) = match spec.terminal {
        Some(size) => stdio::terminal(size)?,
        None => stdio::pipes(spec.stdin, spec.merged)?,
    };
    let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
    let argument = argument(container, defaults, &spec);
    let pid: i32 = control.call("containerManager.ExecuteAsync", &argument, &fds, START_DEADLINE).await?;
    drop(theirs);

    // The sandbox tells the end of each process once, so one task asks for it from the start.
    let (sender, ended) = watch::channel(None);
    let waiting = tokio::spawn({
        let control = control.clone();
        async move {
            let argument = json!({"PID": pid, "CID": container.to_string()});
            let status = control.call_patiently("containerManager.WaitPID", &argument, &[]).await;
            sender.send_replace(Some(status.map_or(KILLED, status_of)));
        }
    });
    Ok(Exec { container, control: control.clone(), pid, stdio: Some(stdio), ended, waiting })
}

fn argument(container: ContainerId, defaults: &Defaults, spec: &ExecSpec) -> Value {
    let user = spec.user.as_ref().unwrap_or(&defaults.user);
    let active = oci::active_capabilities(user, &defaults.capabilities);
    let active = oci::capability_mask(&active);
    let env: Vec<_> = defaults.env.iter().chain(&spec.env).cloned().collect();
    json!({
        "argv": spec.argv,
        "envv": oci::environment(&env),
        "wd": spec.cwd.as_ref().unwrap_or(&defaults.cwd),
        "KUID": user.uid,
        "KGID": user.gid,
        "ExtraKGIDs": user.groups,
        "Capabilities": {
            "PermittedCaps": active,
            "EffectiveCaps": active,
            "BoundingCaps": oci::capability_mask(&defaults.capabilities),
            "InheritableCaps": 0,
            "AmbientCaps": 0,
        },
        "ContainerID": container.to_string(),
        "GuestFDs": [0, 1, 2],
        "StdioIsPty": spec.terminal.is_some(),
    })
}

/// Reads a status as wait(2) gives it.
fn status_of(status: u32) -> ExitStatus {
    match (status & 0x7f, status >> 8 & 0xff) {
        (0, code) => ExitStatus::Code(code as i32),
        (signal, _) => ExitStatus::Signal(signal as i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_codes_or_signals() {
        assert_eq!(status_of(768), ExitStatus::Code(3));
        assert_eq!(status_of(0), ExitStatus::Code(0));
        assert_eq!(status_of(9), ExitStatus::Signal(9));
    }
}
