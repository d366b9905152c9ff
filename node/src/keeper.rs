//! The keeper: a tiny parent that holds the listening sockets and starts the node again when it dies.
//!
//! Unmodified clients and containers give up 0.7 s after a refused connection, but wait patiently while a socket is open
//! and nobody accepts. So what listens must outlive the node. Under systemd, socket units hold the ports and hand them
//! over; elsewhere this process does. It never changes and never reads a byte: everything that can fail is in its child, and so is
//! what takes away the containers of a node that was killed and is not to be started again.
//!
//! Sockets are passed the way systemd does it: descriptors from 3 on, `LISTEN_FDS` and `LISTEN_FDNAMES`.

mod holder;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::stderr::say;

/// How long the keeper waits before it starts a node that died.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// The longest wait between two starts of a node that dies at once.
const RESTART_AFTER_MAX: Duration = Duration::from_secs(5);
/// A node that lived this long is started again without a longer wait.
const LIVED: Duration = Duration::from_secs(10);
/// How long a node may take to stop in order.
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// How often is looked whether the node has ended, or is to.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A node that ends with this status asked not to be started again.
pub(crate) const EXIT_FINAL: i32 = 78;
/// A node that ends with this status did not get as far as to run.
pub(crate) const EXIT_UNSTARTED: i32 = 77;
/// The first passed descriptor.
const LISTEN_FDS_START: RawFd = 3;

static STOP: AtomicI32 = AtomicI32::new(0);
static CHILD: AtomicI32 = AtomicI32::new(0);

/// The two sockets of a node.
#[derive(Debug)]
pub(crate) struct Listeners {
    /// Where clients are answered.
    pub(crate) api: TcpListener,
    /// Where web endpoints are answered.
    pub(crate) web: TcpListener,
}

/// Says whether somebody handed us sockets.
pub(crate) fn passed() -> bool {
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string() || pid == "0") && std::env::var("LISTEN_FDS").is_ok()
}

/// Takes the sockets that systemd or the keeper handed over.
pub(crate) fn take_passed() -> anyhow::Result<Listeners> {
    let count: RawFd = std::env::var("LISTEN_FDS").context("LISTEN_FDS is not set")?.parse().context("LISTEN_FDS is not a number")?;
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let (mut api, mut web) = (None, None);
    for (fd, name) in (LISTEN_FDS_START..LISTEN_FDS_START + count).zip(names.split(':')) {
        // SAFETY: the protocol of socket activation gives us these descriptors, and nobody else in this process took them.
        let listener = unsafe { TcpListener::from_raw_fd(fd) };
        // Containers must never inherit them.
        rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::CLOEXEC).context("cannot keep a socket to this process")?;
        match name {
            "web" => web = Some(listener),
            _ => api = Some(listener),
        }
    }
    let missing = |which| format!("no socket named {which:?} among the {count} that were handed over ({names})");
    Ok(Listeners { api: api.with_context(|| missing("api"))?, web: web.with_context(|| missing("web"))? })
}

fn bind(what: &str, flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).with_context(|| {
        let (port, ip) = (address.port(), address.ip());
        match holder::of(address) {
            Some((pid, name)) => format!(
                "cannot listen on {address} for {what}: process {pid} ({name}) has port {port}; stop it, or choose another port with {flag} {ip}:PORT"
            ),
            None => format!("cannot listen on {address} for {what}; choose another address or port with {flag} {ip}:PORT"),
        }
    })
}

/// Binds the sockets and keeps a node running on them until told to stop. `arguments` start the node, which keeps everything in `data`.
pub(crate) fn keep(api: SocketAddr, web: SocketAddr, arguments: &[OsString], data: &Path) -> anyhow::Result<i32> {
    let listeners = Listeners { api: bind("the API", "--api", api)?, web: bind("web endpoints", "--web", web)? };
    take_signals()?;
    let (mut wait, mut first) = (RESTART_AFTER, true);
    loop {
        let started = Instant::now();
        let child = start(&listeners, arguments)?;
        let status = wait_for(child)?;
        if stops() {
            // One that ended in order left nothing.
            return if status.success() { Ok(0) } else { clean_up(data) };
        }
        // What keeps a node from its first start is for whoever started it to see; what comes later may pass.
        if status.code() == Some(EXIT_FINAL) || (first && status.code() == Some(EXIT_UNSTARTED)) {
            // The node has said what was wrong, which may be that another one has the folder.
            let _ = cleanup(data)?.stdout(Stdio::null()).stderr(Stdio::null()).status();
            return Ok(1);
        }
        first = false;
        wait = if started.elapsed() > LIVED { RESTART_AFTER } else { (wait * 2).min(RESTART_AFTER_MAX) };
        let (lived, rests) = (started.elapsed().as_secs_f32(), wait.as_millis());
        say(format_args!("the node ended ({status}) after {lived:.1} s; starting it again in {rests} ms"));
        let until = Instant::now() + wait;
        while Instant::now() < until && !stops() {
            std::thread::sleep(LOOK_EVERY.min(wait));
        }
        if stops() {
            return clean_up(data);
        }
    }
}

/// Says whether somebody has asked for an end.
fn stops() -> bool {
    STOP.load(Ordering::SeqCst) != 0
}

/// Takes away what a node left that did not end in order: its containers go on without it.
fn clean_up(data: &Path) -> anyhow::Result<i32> {
    let status = cleanup(data)?.status().context("cannot start `shoal cleanup`")?;
    Ok(i32::from(!status.success()))
}

fn cleanup(data: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(program()?);
    command.arg("cleanup").arg("--data").arg(data);
    Ok(command)
}

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the program of this process")
}

fn start(listeners: &Listeners, arguments: &[OsString]) -> anyhow::Result<Child> {
    let program = program()?;
    let fds = [listeners.api.as_raw_fd(), listeners.web.as_raw_fd()];
    let mut command = Command::new(&program);
    command.args(arguments).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", "api:web").env("LISTEN_PID", "0");
    // SAFETY: between fork and exec only dup, fcntl and prctl are called, which are async-signal-safe.
    unsafe {
        command.pre_exec(move || hand_over(fds));
    }
    let child = command.spawn().with_context(|| format!("cannot start the node ({})", program.display()))?;
    CHILD.store(i32::try_from(child.id()).unwrap_or(0), Ordering::SeqCst);
    Ok(child)
}

/// Puts the sockets at descriptors 3 and 4 of the child, and makes it die with its keeper.
fn hand_over(fds: [RawFd; 2]) -> std::io::Result<()> {
    let check = |rc: i32| if rc < 0 { Err(std::io::Error::last_os_error()) } else { Ok(rc) };
    // SAFETY: plain system calls on descriptors that this process owns.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
        let high = [check(libc::fcntl(fds[0], libc::F_DUPFD, 10))?, check(libc::fcntl(fds[1], libc::F_DUPFD, 10))?];
        for (fd, target) in high.into_iter().zip(LISTEN_FDS_START..) {
            check(libc::dup2(fd, target))?;
            libc::close(fd);
        }
    }
    Ok(())
}

/// Waits for the node; once a stop was asked for, at most [`STOP_WITHIN`].
fn wait_for(mut child: Child) -> anyhow::Result<ExitStatus> {
    let mut stop_asked = None;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the node")? {
            CHILD.store(0, Ordering::SeqCst);
            return Ok(status);
        }
        if stops() {
            let asked = *stop_asked.get_or_insert_with(|| {
                // The signal may have come before there was this child.
                end_child();
                Instant::now()
            });
            if asked.elapsed() > STOP_WITHIN {
                child.kill().context("cannot kill the node")?;
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

extern "C" fn on_signal(signal: i32) {
    STOP.store(signal, Ordering::SeqCst);
    end_child();
}

/// Tells the node to stop in order, if there is one.
fn end_child() {
    let child = CHILD.load(Ordering::SeqCst);
    if child > 0 {
        // SAFETY: kill is async-signal-safe.
        unsafe { libc::kill(child, libc::SIGTERM) };
    }
}

fn take_signals() -> anyhow::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        // SAFETY: the handler touches atomics and calls kill, both async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot take {signal}"))?;
    }
    Ok(())
}
