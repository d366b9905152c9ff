//! What is typed into the terminal of a container's first process, by whoever runs its app.
//!
//! Such a terminal is there from the container's start, and what its program prints there is logged as ever. A program asks for somebody
//! who types: that is a line of its container's log ([`Keyboard::connect`]), so whoever follows the log, through whichever node, learns of
//! it in order with what is printed, and once.
//!
//! Caveat: it is soft state, and ends with the container.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shoal_state::{AppId, TaskId};
use tokio::net::unix::pipe::Sender;
use tokio::sync::{mpsc, oneshot};

use super::Running;
use super::pipes::Printer;
use crate::execs::Error;
use crate::execs::stdin::{Foreground, Request, Stdin};
use crate::log::{Entry, Filter, Stream};
use crate::streams::opened;

/// How many messages may wait for the terminal. Who types waits when it is full.
const REQUESTS_MAX: usize = 16;
/// What the log of a container says where its program asks for somebody who types. Nodes know the line by it, so it stays as it is.
const CONNECTED: &str = "this container reads from the terminal of whoever runs its app";

/// The terminal of a container's first process, for who types.
#[derive(Debug)]
pub struct Keyboard {
    task: TaskId,
    requests: mpsc::Sender<Request>,
    printer: Printer,
    connected: AtomicBool,
}

impl Keyboard {
    /// Makes one of our end of a container's terminal. What is typed goes there for as long as the returned future runs.
    pub(super) fn of(container: Arc<dyn Running>, terminal: OwnedFd, printer: Printer) -> (Arc<Self>, impl Future<Output = ()> + Send) {
        let (requests, mut received) = mpsc::channel::<Request>(REQUESTS_MAX);
        let task = printer.id;
        let keyboard = Arc::new(Self { task, requests, printer, connected: AtomicBool::new(false) });
        let typing = async move {
            let name = task.to_string();
            let foreground = Foreground::First(&*container);
            let pipe = opened(terminal, Sender::from_owned_fd_unchecked);
            let mut stdin = Stdin { foreground, name: &name, pipe, is_terminal: true, taken: 0, stream: 0, message: (0, 0) };
            while let Some(request) = received.recv().await {
                stdin.answer(request).await;
            }
        };
        (keyboard, typing)
    }

    /// Selects the lines by which containers of an app asked for somebody who types. What else has the same text in it is found too.
    pub fn asked_in(app: AppId) -> Filter {
        Filter { stream: Some(Stream::System), search: Some(CONNECTED.to_owned()), ..Filter::app(app) }
    }

    /// Asks whoever runs the app to type here. Further times change nothing.
    pub fn connect(&self) {
        if !self.connected.swap(true, Ordering::Relaxed) {
            self.printer.say(CONNECTED);
        }
    }

    /// Says whether somebody was asked to type here.
    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Types the next message; one of a number that was typed is not typed again.
    ///
    /// # Errors
    /// [`Error::Stuck`] when the program does not read, and a retry may go on; [`Error::NoContainer`], [`Error::Closed`].
    pub async fn put(&self, number: u64, data: Vec<u8>, eof: bool) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Put { number, data, eof, reply }).await.is_ok();
        let answer = if sent { answer.await.ok() } else { None };
        answer.unwrap_or(Err(Error::NoContainer { task: self.task }))
    }
}

impl Entry {
    /// Says whether it is where a program asks for somebody who types ([`Keyboard::connect`]).
    pub fn asks_for_a_terminal(&self) -> bool {
        let sentence = self.data.strip_prefix('[').and_then(|rest| rest.strip_suffix("]\n"));
        self.stream == Stream::System && sentence == Some(CONNECTED)
    }
}
