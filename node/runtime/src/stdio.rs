//! The three streams of a process in a container: pipes, or one terminal.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{Mode, OFlags},
    pipe::{PipeFlags, pipe_with},
};

use crate::{
    Error, Result,
    terminal::{self, TerminalSize},
};

/// Our ends of the streams of a process in a container.
#[derive(Debug)]
pub struct Stdio {
    /// Where its stdin is written to, if the description asked for one.
    pub stdin: Option<OwnedFd>,
    /// Where its stdout is read from. It ends when all processes that have it do.
    pub stdout: OwnedFd,
    /// Where its stderr is read from.
    pub stderr: OwnedFd,
}

/// Makes pipes: our ends, and the three that the process gets.
pub(crate) fn pipes(stdin: bool, merged: bool) -> Result<(Stdio, [OwnedFd; 3])> {
    let (stdout, stdout_in) = pipe()?;
    let (stderr, stderr_in) = match merged {
        true => (pipe()?.0, stdout_in.try_clone().map_err(Error::file("duplicate", "a pipe"))?),
        false => pipe()?,
    };
    let (stdin_out, stdin) = match stdin {
        true => pipe().map(|(read, write)| (read, Some(write)))?,
        false => {
            let opened = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
            (opened.map_err(|e| Error::file("open", "/dev/null")(e.into()))?, None)
        }
    };
    Ok((Stdio { stdin, stdout, stderr }, [stdin_out, stdout_in, stderr_in]))
}

/// Makes a terminal: our ends, and the three that the process gets.
pub(crate) fn terminal(size: TerminalSize) -> Result<(Stdio, [OwnedFd; 3])> {
    let again = |fd: &OwnedFd| fd.try_clone().map_err(Error::file("duplicate", "a terminal"));
    let (ours, theirs) = terminal::open(size)?;
    let (nothing, _) = pipe()?;
    let stdio = Stdio { stdin: Some(again(&ours)?), stdout: ours, stderr: nothing };
    Ok((stdio, [again(&theirs)?, again(&theirs)?, theirs]))
}

fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC).map_err(|e| Error::file("create", "a pipe")(e.into()))
}
