//! Appends on a way that takes longer than a heartbeat.
//!
//! openraft gives an append up when a heartbeat's time has passed, and sends it anew. Where packets take longer there and back, no answer
//! would ever come in time, and no entry would be known to have arrived. So what was sent goes on when openraft gives it up, and what is
//! answered counts for whichever append is asked for by then: that a follower's log was once the leader's up to some entry stays true for
//! as long as the leader leads, and a link is of one leader's time.
//!
//! Entries that are on their way are not sent again: meanwhile the follower gets heartbeats, so it knows that the leader is there however
//! long a large message takes.

use std::future::Future;
use std::time::Duration;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use tokio::task::{JoinError, JoinSet};

use crate::types::{LogId, TypeConfig};

/// How long an append may take before it is given up and sent anew.
pub(crate) const APPEND_PATIENCE: Duration = Duration::from_secs(5);

/// How many messages of one link may be on their way. Beyond it no heartbeat is sent until one of them has come to an end; entries,
/// of which there is one message at a time, go all the same.
const IN_THE_AIR_MAX: usize = 32;

type Request = AppendEntriesRequest<TypeConfig>;
type Response = AppendEntriesResponse<u64>;

/// What a message says of the log: the entry before those that it carries, and the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    prev: Option<LogId>,
    last: Option<LogId>,
}

impl Range {
    fn of(request: &Request) -> Self {
        let last = request.entries.last().map(|entry| entry.log_id);
        Self { prev: request.prev_log_id, last: last.or(request.prev_log_id) }
    }

    fn carries(self) -> bool {
        self.last > self.prev
    }
}

/// What an answer means for the append that is asked for now.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// It is the answer to it.
    Answer(Response),
    /// Nothing: it is older than what is known already.
    Nothing,
}

/// Judges the answer to a message that was sent some time ago.
fn meaning(sent: Range, answer: Response, asked: Range) -> Meaning {
    let reached = match answer {
        Response::Success => sent.last,
        Response::PartialSuccess(reached) => reached,
        // What does not match now may have been said of an entry of which more is known by now.
        Response::Conflict if sent.prev != asked.prev => return Meaning::Nothing,
        Response::Conflict | Response::HigherVote(_) => return Meaning::Answer(answer),
    };
    if reached >= asked.last {
        Meaning::Answer(Response::Success)
    } else if reached > asked.prev {
        Meaning::Answer(Response::PartialSuccess(reached))
    } else {
        Meaning::Nothing
    }
}

/// The messages of one link that have not been answered.
#[derive(Debug)]
pub(crate) struct Appends<E> {
    air: JoinSet<(Range, Result<Response, E>)>,
    /// Whether one of them carries entries.
    carrying: bool,
}

impl<E> Default for Appends<E> {
    fn default() -> Self {
        Self { air: JoinSet::new(), carrying: false }
    }
}

impl<E: Send + 'static> Appends<E> {
    /// Sends what is asked for, unless entries are on their way already, and returns the first answer that says something about it. The
    /// caller may give up, and ask again.
    pub(crate) async fn ask<F>(&mut self, request: Request, send: impl Fn(Request) -> F) -> Result<Response, E>
    where
        F: Future<Output = Result<Response, E>> + Send + 'static,
    {
        let asked = Range::of(&request);
        if self.carrying && self.air.len() < IN_THE_AIR_MAX {
            self.launch(heartbeat(&request), &send);
        }
        let mut unsent = Some(request);
        loop {
            let room = self.air.len() < IN_THE_AIR_MAX || asked.carries();
            if !self.carrying
                && room
                && let Some(request) = unsent.take()
            {
                self.launch(request, &send);
            }
            let landed = self.air.join_next().await.expect("what is asked for is sent unless something else is on its way");
            let (sent, answer) = match landed.map_err(JoinError::try_into_panic) {
                Ok(landed) => landed,
                Err(Ok(panic)) => std::panic::resume_unwind(panic),
                // The runtime ends, and this with it.
                Err(Err(_)) => std::future::pending().await,
            };
            self.carrying &= !sent.carries();
            match answer.map(|answer| meaning(sent, answer, asked)) {
                Ok(Meaning::Nothing) => {}
                Ok(Meaning::Answer(answer @ (Response::Success | Response::PartialSuccess(_)))) => return Ok(answer),
                Ok(Meaning::Answer(other)) => return self.over(Ok(other)),
                Err(error) => return self.over(Err(error)),
            }
        }
    }

    /// Forgets what is on its way, since it would say the same, or something that holds no more.
    fn over(&mut self, answer: Result<Response, E>) -> Result<Response, E> {
        *self = Self::default();
        answer
    }

    fn launch<F>(&mut self, request: Request, send: &impl Fn(Request) -> F)
    where
        F: Future<Output = Result<Response, E>> + Send + 'static,
    {
        let range = Range::of(&request);
        self.carrying |= range.carries();
        let answer = send(request);
        self.air.spawn(async move { (range, answer.await) });
    }
}

fn heartbeat(request: &Request) -> Request {
    Request { vote: request.vote, prev_log_id: request.prev_log_id, leader_commit: request.leader_commit, entries: vec![] }
}

#[cfg(test)]
mod tests;
