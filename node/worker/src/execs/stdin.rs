//! What a process is sent: each byte once, however often a client sends it again.

use std::io;
use std::time::Duration;

use shoal_runtime::{Exec, Result as Sent, typed};
use tokio::io::AsyncWriteExt as _;
use tokio::net::unix::pipe::Sender;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::{Error, Write};
use crate::Running;

/// How long a write waits for the process to read. What it did take is remembered: who tries again goes on there.
const WRITE_WAIT: Duration = Duration::from_secs(45);

/// What the owner of a stdin is asked.
#[derive(Debug)]
pub(crate) enum Request {
    Write {
        write: Write,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// The next message, by its number.
    Put {
        number: u64,
        data: Vec<u8>,
        eof: bool,
        reply: oneshot::Sender<Result<(), Error>>,
    },
    /// How much was taken, and whether it is closed. A stream that writes is overtaken.
    Status {
        reply: oneshot::Sender<(u64, bool)>,
    },
    /// Begins a stream, which overtakes an earlier one.
    Stream {
        reply: oneshot::Sender<u64>,
    },
}

/// Whose terminal it is that is typed into.
pub(crate) enum Foreground<'a> {
    /// That of a further process.
    Exec(&'a Exec),
    /// That of the container's first process.
    First(&'a dyn Running),
}

impl Foreground<'_> {
    /// Sends a signal to the processes in the foreground.
    async fn interrupt(&self, signal: i32) -> Sent<()> {
        match self {
            Self::Exec(exec) => exec.interrupt(signal).await,
            Self::First(container) => container.interrupt(signal).await,
        }
    }
}

/// The stdin of a process.
pub(crate) struct Stdin<'a> {
    pub(crate) foreground: Foreground<'a>,
    pub(crate) name: &'a str,
    /// None when it is closed.
    pub(crate) pipe: Option<Sender>,
    pub(crate) is_terminal: bool,
    pub(crate) taken: u64,
    pub(crate) stream: u64,
    /// The number of the last message, and where it begins.
    pub(crate) message: (u64, u64),
}

impl Stdin<'_> {
    /// Answers one request.
    pub(crate) async fn answer(&mut self, request: Request) {
        // Who asked may have gone.
        match request {
            Request::Write { write, reply } => drop(reply.send(self.write(write).await)),
            Request::Put { number, data, eof, reply } => {
                let answer = match begin(&mut self.message, number, self.taken) {
                    Some(offset) => self.write(Write { stream: None, offset, data, eof }).await,
                    None => Ok(()),
                };
                let _ = reply.send(answer);
            }
            Request::Status { reply } => {
                self.stream += 1;
                let _ = reply.send((self.taken, self.pipe.is_none()));
            }
            Request::Stream { reply } => {
                self.stream += 1;
                let _ = reply.send(self.stream);
            }
        }
    }

    async fn write(&mut self, write: Write) -> Result<(), Error> {
        if write.stream.is_some_and(|stream| stream != self.stream) {
            return Err(Error::Overtaken { exec: self.name.to_owned() });
        }
        let rest = untaken(&write, self.taken).ok_or_else(|| self.ahead(write.offset))?;
        if rest.is_empty() && !write.eof {
            return Ok(());
        }
        let deadline = Instant::now() + WRITE_WAIT;
        if !rest.is_empty() {
            self.put(rest, deadline).await?;
        }
        if write.eof {
            self.close(deadline).await;
        }
        Ok(())
    }

    fn ahead(&self, offset: u64) -> Error {
        Error::Ahead { exec: self.name.to_owned(), taken: self.taken, offset }
    }

    fn closed(&self, why: impl Into<String>) -> Error {
        Error::Closed { exec: self.name.to_owned(), why: why.into() }
    }

    async fn put(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        if !self.is_terminal {
            return self.pass(bytes, deadline).await;
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(pipe) = &self.pipe else { return Err(self.closed("it was closed")) };
            // What one signal does may change what the next character means.
            let Some(piece) = typed(pipe, rest).first().copied() else { return Ok(()) };
            self.pass(piece.bytes, deadline).await?;
            rest = &rest[piece.bytes.len()..];
            if let Some(signal) = piece.signal
                && let Err(error) = self.foreground.interrupt(signal).await
            {
                tracing::debug!(exec = self.name, signal, %error, "cannot signal the foreground of a terminal");
            }
        }
        Ok(())
    }

    async fn pass(&mut self, mut bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        while !bytes.is_empty() {
            let Some(pipe) = &mut self.pipe else { return Err(self.closed("it was closed")) };
            match timeout_at(deadline, pipe.write(bytes)).await {
                Ok(Ok(length)) => {
                    self.taken += length as u64;
                    bytes = &bytes[length..];
                }
                Ok(Err(error)) => {
                    self.pipe = None;
                    let gone = matches!(error.kind(), io::ErrorKind::BrokenPipe) || error.raw_os_error() == Some(libc::EIO);
                    return Err(self.closed(if gone { "it closed its end".to_owned() } else { error.to_string() }));
                }
                Err(_) => return Err(Error::Stuck { exec: self.name.to_owned(), taken: self.taken }),
            }
        }
        Ok(())
    }

    /// Ends the input: of a terminal as somebody does who types.
    async fn close(&mut self, deadline: Instant) {
        let taken = self.taken;
        if let Some(pipe) = self.pipe.as_ref().filter(|_| self.is_terminal)
            && let Some(end) = shoal_runtime::end_of_input(pipe)
        {
            let _ = self.pass(&[end], deadline).await;
            self.taken = taken;
        }
        self.pipe = None;
    }
}

/// Returns where a message begins: the last one, sent again, where it began; none for an earlier one, all of which was taken.
fn begin(last: &mut (u64, u64), number: u64, taken: u64) -> Option<u64> {
    if number > last.0 {
        *last = (number, taken);
    }
    (number == last.0).then_some(last.1)
}

/// Returns what of a write was not taken yet; none when it does not go on where the last one ended.
pub(super) fn untaken(write: &Write, taken: u64) -> Option<&[u8]> {
    let skip = taken.checked_sub(write.offset)?;
    let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(write.data.len());
    Some(&write.data[skip..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_taken_once() {
        let mut last = (0, 0);
        assert_eq!(begin(&mut last, 1, 0), Some(0));
        assert_eq!(begin(&mut last, 1, 2), Some(0), "the answer to a part of it was lost");
        assert_eq!(begin(&mut last, 2, 3), Some(3));
        assert_eq!(begin(&mut last, 1, 5), None);
        assert_eq!(begin(&mut last, 2, 5), Some(3));
    }

    #[test]
    fn each_byte_is_taken_once() {
        let write = |offset, data: &[u8]| Write { stream: None, offset, data: data.to_vec(), eof: false };
        let rest = |offset, data: &[u8], taken| untaken(&write(offset, data), taken).map(<[u8]>::to_vec);
        assert_eq!(rest(0, b"abc", 0), Some(b"abc".to_vec()));
        assert_eq!(rest(0, b"abc", 2), Some(b"c".to_vec()), "the answer to a part of it was lost");
        assert_eq!(rest(0, b"abc", 3), Some(Vec::new()));
        assert_eq!(rest(0, b"abc", 9), Some(Vec::new()));
        assert_eq!(rest(3, b"def", 3), Some(b"def".to_vec()));
        assert_eq!(rest(4, b"ef", 3), None, "a byte is missing between");
    }
}
