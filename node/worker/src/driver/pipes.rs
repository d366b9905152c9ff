//! From a container's pipes into the log store.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_state::TaskId;
use shoal_state::model::Task;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep, timeout_at};

use super::Inputs;
use super::keyboard::Keyboard;
use crate::log::{Entry, LineCutter, LogStore, Stream};
use crate::streams::opened;

/// How long an unfinished line, such as a prompt, is held back while nothing more of it comes.
const PARTIAL_LINE_WAIT: Duration = Duration::from_millis(20);
/// The same where somebody types and waits for the echo. What one `print` writes in pieces comes within it.
const ECHO_WAIT: Duration = Duration::from_millis(4);
/// How long an unfinished line is held back that goes on: a progress bar may never end its line.
const PARTIAL_LINE_HELD_MAX: Duration = Duration::from_millis(100);
/// Who prints line by line without a pause is read at this pace: each read is a write to the disk and wakes whoever follows.
const GATHER: Duration = Duration::from_millis(2);
/// Where less than this was read at once, in bytes, the next may wait: the pipe has room for much more.
const GATHER_BYTES: usize = 4 << 10;
/// How much is read at a time, in bytes: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// Tags what one task prints.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    pub(crate) id: TaskId,
    pub(crate) task: Task,
    pub(crate) logs: LogStore,
    pub(crate) inputs: Inputs,
}

impl Printer {
    /// Appends lines. What the store refuses is lost, and said so in the node's own log: a container must not hang
    /// because a disk is full.
    fn print(&self, stream: Stream, lines: &mut Vec<String>) {
        if lines.is_empty() {
            return;
        }
        let input = self.inputs.lock().get(&self.id).copied();
        let timestamp_ns = now_ns();
        let entry = |data: String| Entry {
            timestamp_ns,
            stream,
            app: self.task.app,
            task: self.id,
            function: self.task.function,
            input: input.map(|(input, _)| input),
            call: input.map(|(_, call)| call),
            data,
        };
        let entries: Vec<Entry> = lines.drain(..).map(entry).collect();
        if let Err(error) = self.logs.append_all(&entries) {
            tracing::error!(task = %self.id, lines = entries.len(), %error, "output of a container is lost");
        }
    }

    /// Tells the user something about the container.
    pub(crate) fn say(&self, sentence: &str) {
        self.print(Stream::System, &mut vec![format!("[{sentence}]\n")]);
    }

    /// Reads a pipe to its end, or a terminal, which has a keyboard.
    pub(super) async fn pump(self, pipe: OwnedFd, stream: Stream, keyboard: Option<Arc<Keyboard>>) {
        let Some(mut pipe) = opened(pipe, Receiver::from_owned_fd_unchecked) else { return };
        let (mut cutter, mut lines) = (LineCutter::default(), Vec::new());
        let mut buffer = vec![0; READ_BYTES];
        // Since when there is a part of a line.
        let mut held: Option<Instant> = None;
        let mut last_read = Instant::now();
        loop {
            let read = match held {
                Some(since) => {
                    let typed = keyboard.as_ref().is_some_and(|keyboard| keyboard.is_connected());
                    let wait = if typed { ECHO_WAIT } else { PARTIAL_LINE_WAIT };
                    let until = (Instant::now() + wait).min(since + PARTIAL_LINE_HELD_MAX);
                    timeout_at(until, pipe.read(&mut buffer)).await.ok()
                }
                None => Some(pipe.read(&mut buffer).await),
            };
            match read {
                // A terminal whose other end is closed fails.
                Some(Ok(0)) | Some(Err(_)) => break,
                Some(Ok(length)) => {
                    cutter.push(&buffer[..length], &mut lines);
                    // Where lines have ended, what is left is another one.
                    let since = held.filter(|_| lines.is_empty()).unwrap_or_else(Instant::now);
                    held = cutter.has_pending().then_some(since);
                }
                // What is left is at most a part of a character: wait for the rest of it.
                None => {
                    cutter.flush(&mut lines);
                    held = None;
                }
            }
            self.print(stream, &mut lines);
            let goes_on = last_read.elapsed() < GATHER;
            last_read = Instant::now();
            if goes_on && matches!(read, Some(Ok(length)) if length < GATHER_BYTES) {
                sleep(GATHER).await;
                last_read = Instant::now();
            }
        }
        cutter.finish(&mut lines);
        self.print(stream, &mut lines);
    }
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
