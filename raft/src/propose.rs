//! Puts the commands of many callers together into few entries, and hands each caller its answers.
//!
//! One task owns the queue. It keeps a few entries in flight; commands that come meanwhile wait and travel together in
//! the next one. So a single caller pays one round, and a crowd shares it.
//!
//! Commands of one call keep their order and are answered one by one; they are not one unit. A command whose version is
//! not active yet is refused here and never reaches the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::error::ClientWriteError;
use openraft::raft::ClientWriteResponse;
use shoal_state::{Command, Refused, VERSION_KNOWN};
use tokio::sync::{mpsc, oneshot};

use crate::batch::{Batch, COMMAND_BYTES_MAX, ENTRY_BYTES_MAX, encode};
use crate::error::{Error, Result};
use crate::types::{Answer, Core, Peer, TypeConfig};
use crate::view::View;

/// How many entries may be on their way to the disk and the followers at once. Commands wait while they are.
///
/// openraft syncs one entry at a time: more than it needs to keep busy only make entries smaller.
const ENTRIES_IN_FLIGHT_MAX: usize = 4;

/// How many calls may wait to be looked at. Further callers wait for a place, up to their deadline.
pub(crate) const PROPOSALS_QUEUED_MAX: usize = 256;

/// How many commands may wait for an entry. Beyond it no further call is looked at.
const COMMANDS_WAITING_MAX: usize = 4096;

/// One command as it is proposed.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    bytes: Bytes,
    since: u32,
}

impl Piece {
    /// Checks and encodes a command.
    pub(crate) fn new(command: &Command) -> Result<Self> {
        let bytes = encode(command);
        if bytes.len() > COMMAND_BYTES_MAX {
            return Err(Error::CommandTooLong { bytes: bytes.len() });
        }
        Self::checked(command, bytes)
    }

    /// Takes a command that another node encoded.
    pub(crate) fn from_bytes(bytes: Bytes) -> Result<Self> {
        let command = postcard::from_bytes(&bytes).map_err(|why| Error::BadMessage { why: why.to_string() })?;
        Self::checked(&command, bytes)
    }

    fn checked(command: &Command, bytes: Bytes) -> Result<Self> {
        match *command {
            Command::SetVersion { version } if version > VERSION_KNOWN => Err(Error::VersionUnknown { version }),
            _ => Ok(Self { bytes, since: command.since() }),
        }
    }

    pub(crate) fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }
}

/// The commands of one call, and where their answers go.
#[derive(Debug)]
pub(crate) struct Proposal {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) reply: oneshot::Sender<Outcome>,
}

/// The answers, in order, and the index of the last entry that they came from.
pub(crate) type Outcome = std::result::Result<(Vec<Answer>, u64), Failure>;

/// Why a call got no answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// This node does not lead. Nothing was applied, and nothing will be.
    NotLeader,
    /// The leader changed on the way: this many commands were answered.
    Interrupted { answered: usize },
    /// Raft has stopped here.
    Stopped,
}

/// The task that owns the queue.
pub(crate) struct Batcher {
    core: Core,
    view: Arc<View>,
    inbox: mpsc::Receiver<Proposal>,
    waiting: VecDeque<Waiting>,
    calls: HashMap<u64, Call>,
    next_call: u64,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
}

/// A command that waits for an entry.
struct Waiting {
    slot: Slot,
    piece: Piece,
}

/// Whose command it is, and which of his.
#[derive(Debug, Clone, Copy)]
struct Slot {
    call: u64,
    number: usize,
}

struct Call {
    answers: Vec<Option<Answer>>,
    /// How many commands are in entries that are in flight.
    sent: usize,
    answered: usize,
    index: u64,
    reply: oneshot::Sender<Outcome>,
}

/// An entry that came to an end.
struct Done {
    slots: Vec<Slot>,
    result: Option<std::result::Result<ClientWriteResponse<TypeConfig>, ClientWriteError<u64, Peer>>>,
}

enum Next {
    Proposed(Proposal),
    Done(Done),
    Closed,
}

impl Batcher {
    pub(crate) fn new(core: Core, view: Arc<View>, inbox: mpsc::Receiver<Proposal>) -> Self {
        Self { core, view, inbox, waiting: VecDeque::new(), calls: HashMap::new(), next_call: 0, in_flight: FuturesUnordered::new() }
    }

    /// Serves until every handle is gone.
    pub(crate) async fn run(mut self) {
        loop {
            match self.next().await {
                Next::Proposed(proposal) => {
                    self.take(proposal);
                    self.take_more();
                }
                Next::Done(done) => self.finish(done),
                Next::Closed => return,
            }
            self.send().await;
        }
    }

    async fn next(&mut self) -> Next {
        let accepts = self.waiting.len() < COMMANDS_WAITING_MAX;
        tokio::select! {
            Some(done) = self.in_flight.next() => Next::Done(done),
            proposal = self.inbox.recv(), if accepts => proposal.map_or(Next::Closed, Next::Proposed),
        }
    }

    /// Takes the calls that wait already, so that they share an entry.
    fn take_more(&mut self) {
        while self.waiting.len() < COMMANDS_WAITING_MAX
            && let Ok(proposal) = self.inbox.try_recv()
        {
            self.take(proposal);
        }
    }

    fn take(&mut self, Proposal { pieces, reply }: Proposal) {
        let call = self.next_call;
        self.next_call += 1;
        let answers = vec![None; pieces.len()];
        self.calls.insert(call, Call { answers, sent: 0, answered: 0, index: 0, reply });
        for (number, piece) in pieces.into_iter().enumerate() {
            self.waiting.push_back(Waiting { slot: Slot { call, number }, piece });
        }
    }

    /// Sends entries as long as commands wait and there is room in flight.
    async fn send(&mut self) {
        while self.in_flight.len() < ENTRIES_IN_FLIGHT_MAX && !self.waiting.is_empty() {
            let version = self.view.version();
            let entry = self.gather(version);
            if entry.is_empty() {
                continue;
            }
            let batch = Batch::new(version, entry.iter().map(|waiting| &waiting.piece.bytes));
            let slots = entry.iter().map(|waiting| waiting.slot).collect();
            // Handing over an entry does not wait for it, and keeps the order of entries.
            match self.core.client_write_ff(batch).await {
                Ok(answer) => {
                    self.in_flight.push(Box::pin(async { Done { slots, result: answer.await.ok() } }));
                }
                Err(_) => self.finish(Done { slots, result: None }),
            }
        }
    }

    /// Takes the commands of the next entry off the queue; those that are not active yet are answered on the way.
    fn gather(&mut self, version: u32) -> Vec<Waiting> {
        let mut entry: Vec<Waiting> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            bytes += next.piece.bytes.len();
            if bytes > ENTRY_BYTES_MAX && !entry.is_empty() {
                break;
            }
            let next = self.waiting.pop_front().expect("it was looked at");
            if next.piece.since > version {
                bytes -= next.piece.bytes.len();
                let refused = Refused::NotActive { needs: next.piece.since, active: version };
                self.answer(next.slot, Err(refused), 0);
            } else {
                let call = self.calls.get_mut(&next.slot.call).expect("a call stays until its commands are answered");
                call.sent += 1;
                entry.push(next);
            }
        }
        entry
    }

    fn finish(&mut self, Done { slots, result }: Done) {
        for slot in &slots {
            if let Some(call) = self.calls.get_mut(&slot.call) {
                call.sent -= 1;
            }
        }
        match result {
            Some(Ok(response)) => {
                let answers = response.data.0;
                assert_eq!(answers.len(), slots.len(), "an entry has one answer for each command");
                for (slot, answer) in slots.into_iter().zip(answers) {
                    self.answer(slot, answer, response.log_id.index);
                }
            }
            Some(Err(_)) => self.fail_all(&slots, false),
            None => self.fail_all(&slots, true),
        }
    }

    /// Keeps an answer, and answers the call when it was the last one.
    fn answer(&mut self, slot: Slot, answer: Answer, index: u64) {
        // The call may have failed with an earlier entry.
        let Some(call) = self.calls.get_mut(&slot.call) else { return };
        call.answers[slot.number] = Some(answer);
        call.answered += 1;
        call.index = call.index.max(index);
        if call.answered == call.answers.len() {
            let call = self.calls.remove(&slot.call).expect("it was just there");
            // A caller that gave up is fine.
            let _ = call.reply.send(Ok((call.answers.into_iter().flatten().collect(), call.index)));
        }
    }

    fn fail_all(&mut self, slots: &[Slot], stopped: bool) {
        for slot in slots {
            let Some(call) = self.calls.remove(&slot.call) else { continue };
            self.waiting.retain(|waiting| waiting.slot.call != slot.call);
            let failure = match (stopped, call.answered + call.sent) {
                (true, _) => Failure::Stopped,
                (false, 0) => Failure::NotLeader,
                (false, _) => Failure::Interrupted { answered: call.answered },
            };
            let _ = call.reply.send(Err(failure));
        }
    }
}
