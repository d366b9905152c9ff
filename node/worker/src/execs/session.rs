//! One process: the task that owns it, and the handle that others hold.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use shoal_runtime::{Container, Exec, ExecSpec, Stdio, TerminalSize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::output::Output;
use super::stdin::{Foreground, Request, Stdin, untaken};
use super::{Error, Exit, Fd, Printed, Spec, Write};
use crate::streams::opened;

/// How many requests may wait for a process's stdin. Who asks waits when it is full.
const REQUESTS_MAX: usize = 16;
/// How much is read of a pipe at a time, in bytes: what it holds.
const PIPE_BYTES: usize = 64 << 10;
/// How long the pipes of a process that has ended must be silent until they count as ended: a child of it may hold them open.
const SILENCE: Duration = Duration::from_secs(1);
/// How long the end of a process is kept from who waits for it, until who reads has all that it printed.
const TOLD_WAIT: Duration = Duration::from_secs(3);
/// After how long without a reader a terminal is hung up.
const HANG_UP_AFTER: Duration = Duration::from_secs(120);
/// How long a program may take to end when its terminal was hung up.
const HANG_UP_GRACE: Duration = Duration::from_secs(10);

/// How far a process is.
#[derive(Debug, Clone)]
enum Stage {
    Starting,
    Running,
    Failed(Error),
    Ended(Exit, Instant),
}

/// A process in a container.
#[derive(Debug)]
pub struct Session {
    name: String,
    stage: watch::Sender<Stage>,
    stdout: Output,
    stderr: Output,
    stdin: mpsc::Sender<Request>,
    /// How much of its stdin it has taken, as of the last request.
    taken: AtomicU64,
    readers: Readers,
}

/// Who reads from it, and since when nobody does.
#[derive(Debug)]
struct Readers {
    count: AtomicUsize,
    none_since: Mutex<Instant>,
}

/// Somebody reads, until this is dropped.
struct Reader<'a>(&'a Readers);

impl Readers {
    fn enter(&self) -> Reader<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Reader(self)
    }

    /// For how long nobody has read.
    fn absent(&self) -> Duration {
        if self.count.load(Ordering::Relaxed) > 0 { Duration::ZERO } else { self.none_since.lock().elapsed() }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        *self.0.none_since.lock() = Instant::now();
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// Begins to start a process.
    pub(super) fn begin(spec: Spec, container: Arc<Container>, dir: &Path) -> io::Result<Arc<Self>> {
        let (stdin, requests) = mpsc::channel(REQUESTS_MAX);
        let session = Arc::new(Self {
            name: spec.exec.clone(),
            stage: watch::Sender::new(Stage::Starting),
            stdout: Output::create(dir, &spec.exec)?,
            stderr: Output::create(dir, &spec.exec)?,
            stdin,
            taken: AtomicU64::new(0),
            readers: Readers { count: AtomicUsize::new(0), none_since: Mutex::new(Instant::now()) },
        });
        tokio::spawn(Arc::clone(&session).run(spec, container, requests));
        Ok(session)
    }

    /// Waits until it runs.
    ///
    /// # Errors
    /// Why it could not be run.
    pub async fn started(&self) -> Result<(), Error> {
        let mut stage = self.stage.subscribe();
        let now = stage.wait_for(|stage| !matches!(stage, Stage::Starting)).await.map(|stage| stage.clone());
        match now {
            Ok(Stage::Failed(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// When it ended, or could not be started.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        match &*self.stage.borrow() {
            Stage::Ended(_, at) => Some(*at),
            _ => None,
        }
    }

    /// Returns how it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.stage.borrow() {
            Stage::Ended(exit, _) => Some(*exit),
            _ => None,
        }
    }

    /// Waits for its end, at most so long; and a moment longer for whoever reads what it printed: clients that are told of the end
    /// print nothing more.
    pub async fn wait(&self, patience: Duration) -> Option<Exit> {
        let mut stage = self.stage.subscribe();
        let ended = timeout(patience, stage.wait_for(|stage| matches!(stage, Stage::Ended(..)))).await.is_ok();
        if ended && !patience.is_zero() {
            let _ = timeout(TOLD_WAIT, async { tokio::join!(self.stdout.told(), self.stderr.told()) }).await;
        }
        self.exit()
    }

    /// Reads on in what it printed, from a place that was printed or is next; waits until there is something. None at the end.
    ///
    /// # Errors
    /// [`Error::NotKept`], [`Error::Disk`].
    pub async fn read(&self, fd: Fd, offset: u64) -> Result<Option<Vec<u8>>, Error> {
        let _reader = self.readers.enter();
        match fd {
            Fd::Stdout => self.stdout.read(offset).await,
            Fd::Stderr => self.stderr.read(offset).await,
        }
    }

    /// Writes to its stdin; what of it was taken before is skipped.
    ///
    /// # Errors
    /// [`Error::Ahead`], [`Error::Closed`], [`Error::Overtaken`]; [`Error::Stuck`] when it does not read, and a retry may go on.
    pub async fn write(&self, write: Write) -> Result<(), Error> {
        let taken_before = |write: &Write| untaken(write, self.taken.load(Ordering::Relaxed)).is_some_and(<[u8]>::is_empty);
        let again = write.clone();
        match self.ask(|reply| Request::Write { write, reply }).await {
            // It has ended with all of it; that its stdin is to be closed is nothing new then.
            Err(_) if taken_before(&again) => Ok(()),
            answered => answered?,
        }
    }

    /// Writes the next message to its stdin; one of a number that was taken is not taken again.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn put(&self, number: u64, data: Vec<u8>, eof: bool) -> Result<(), Error> {
        self.ask(|reply| Request::Put { number, data, eof, reply }).await?
    }

    /// Returns how much of its stdin was taken, and whether that is closed.
    pub async fn stdin(&self) -> (u64, bool) {
        let asked = self.ask(|reply| Request::Status { reply }).await;
        asked.unwrap_or_else(|_| (self.taken.load(Ordering::Relaxed), true))
    }

    /// Begins a stream of writes, which alone may write as such from now on.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub async fn stream(&self) -> Result<u64, Error> {
        self.ask(|reply| Request::Stream { reply }).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.stdin.send(request(reply)).await.is_ok();
        let answer = if sent { answer.await.ok() } else { None };
        answer.ok_or_else(|| Error::Closed { exec: self.name.clone(), why: "it has ended".to_owned() })
    }

    /// Owns the process from its start until nothing more comes from it.
    async fn run(self: Arc<Self>, spec: Spec, container: Arc<Container>, mut requests: mpsc::Receiver<Request>) {
        let mut exec = match container.exec(exec_spec(&spec)).await {
            Ok(exec) => exec,
            Err(error) => {
                let program = spec.argv.first().cloned().unwrap_or_default();
                let why = why_not_run(&error);
                self.stage.send_replace(Stage::Failed(Error::NotRun { task: spec.task, program, why }));
                return;
            }
        };
        let stdio = exec.take_stdio();
        self.stage.send_replace(Stage::Running);
        let Some(stdio) = stdio else { return };
        let (stdin, mut pumps) = self.pump(&spec, stdio);
        let stdin = Stdin {
            foreground: Foreground::Exec(&exec),
            name: &spec.exec,
            pipe: stdin,
            is_terminal: spec.terminal.is_some(),
            taken: 0,
            stream: 0,
            message: (0, 0),
        };
        let exit = tokio::select! {
            exit = exec.wait() => exit,
            exit = self.end_in_time(&exec, &spec) => exit,
            () = self.answer(stdin, &mut requests) => exec.wait().await,
        };
        drop(requests);
        self.stage.send_replace(Stage::Ended(exit.into(), Instant::now()));
        // Its pipes are read to their end; then it is only remembered.
        while pumps.join_next().await.is_some() {}
    }

    /// Reads what it prints.
    fn pump(self: &Arc<Self>, spec: &Spec, stdio: Stdio) -> (Option<Sender>, JoinSet<()>) {
        let mut pumps = JoinSet::new();
        pumps.spawn(Arc::clone(self).read_on(stdio.stdout, Fd::Stdout, spec.stdout != Printed::Dropped));
        pumps.spawn(Arc::clone(self).read_on(stdio.stderr, Fd::Stderr, spec.stderr != Printed::Dropped));
        (stdio.stdin.and_then(|stdin| opened(stdin, Sender::from_owned_fd_unchecked)), pumps)
    }

    async fn read_on(self: Arc<Self>, pipe: OwnedFd, of: Fd, keep: bool) {
        let output = if of == Fd::Stdout { &self.stdout } else { &self.stderr };
        if let Some(mut pipe) = opened(pipe, Receiver::from_owned_fd_unchecked) {
            let (mut stage, mut buffer) = (self.stage.subscribe(), vec![0; PIPE_BYTES]);
            loop {
                let read = tokio::select! {
                    // What is there is read, however late its reader comes.
                    biased;
                    // A terminal whose other end is closed fails.
                    read = pipe.read(&mut buffer) => read.unwrap_or(0),
                    () = silent_after_end(&mut stage) => 0,
                };
                if read == 0 || keep && output.append(buffer[..read].to_vec()).await.is_err() {
                    break;
                }
            }
        }
        output.end();
    }

    /// Answers requests for its stdin for as long as somebody may ask.
    async fn answer(&self, mut stdin: Stdin<'_>, requests: &mut mpsc::Receiver<Request>) {
        while let Some(request) = requests.recv().await {
            stdin.answer(request).await;
            self.taken.store(stdin.taken, Ordering::Relaxed);
        }
    }

    /// Ends it when its time is over, or nobody is at its terminal any more.
    async fn end_in_time(&self, exec: &Exec, spec: &Spec) -> shoal_runtime::ExitStatus {
        let time_over = async {
            match spec.timeout {
                Some(timeout) => sleep(timeout).await,
                None => std::future::pending().await,
            }
        };
        let hung_up = async {
            if spec.terminal.is_none_or(|terminal| !terminal.hangs_up) {
                std::future::pending::<()>().await;
            }
            while self.readers.absent() < HANG_UP_AFTER {
                sleep(HANG_UP_AFTER.saturating_sub(self.readers.absent())).await;
            }
        };
        tokio::select! {
            () = time_over => {}
            () = hung_up => {
                let _ = exec.kill(libc::SIGHUP).await;
                if let Ok(exit) = timeout(HANG_UP_GRACE, exec.wait()).await {
                    return exit;
                }
            }
        }
        if let Err(error) = exec.kill(libc::SIGKILL).await {
            tracing::warn!(exec = self.name, %error, "cannot kill a process whose time is over");
        }
        exec.wait().await
    }
}

/// Returns when a process has ended, a while ago. Whoever reads in between asks anew.
async fn silent_after_end(stage: &mut watch::Receiver<Stage>) {
    if stage.wait_for(|stage| matches!(stage, Stage::Ended(..))).await.is_err() {
        return;
    }
    sleep(SILENCE).await;
}

fn exec_spec(spec: &Spec) -> ExecSpec {
    let mut exec = ExecSpec::new(&spec.argv);
    exec.env.clone_from(&spec.env);
    exec.cwd.clone_from(&spec.cwd);
    exec.stdin = true;
    exec.merged = spec.stderr == Printed::WithStdout;
    exec.terminal = spec.terminal.map(|terminal| TerminalSize { rows: terminal.rows, columns: terminal.columns });
    exec
}

/// Says why a process could not be run, in the sandbox's words where it has any.
fn why_not_run(error: &shoal_runtime::Error) -> String {
    match error {
        shoal_runtime::Error::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    }
}
