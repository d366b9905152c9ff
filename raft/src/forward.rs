//! Hands the commands of callers on a node that does not lead to the leader: those that wait travel together.
//!
//! Each call of many stays one of its own: it has its own answers, and its own failure. Only the way is shared, since a request from node
//! to node costs more than the commands that it carries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use shoal_state::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::network::{Declined, Proposed, Request, Transport, Unsent, decode, encode};
use crate::types::Peer;
use crate::view::View;

/// How many requests may be on their way to the leader. Calls wait for the next one meanwhile.
const REQUESTS_IN_FLIGHT_MAX: usize = 4;

/// How many calls one request carries at most, and how many bytes of commands, unless a single call has more.
const CALLS_TOGETHER_MAX: usize = 256;
const BYTES_TOGETHER_MAX: usize = 1 << 20;

/// How many calls may wait here. Further callers wait for a place, up to their deadline.
pub(crate) const FORWARDS_QUEUED_MAX: usize = 1024;

/// From this version of the rules on every member knows a request with several calls.
const TOGETHER_SINCE: u32 = 7;

/// The commands of one call, to whom they go, and where the answer goes.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(crate) leader: Peer,
    pub(crate) commands: Vec<Bytes>,
    pub(crate) deadline: Instant,
    pub(crate) reply: oneshot::Sender<Result<Proposed, Unsent>>,
}

impl Forward {
    fn bytes(&self) -> usize {
        self.commands.iter().map(Bytes::len).sum()
    }
}

/// Serves until every handle is gone.
pub(crate) async fn run(transport: Arc<dyn Transport>, view: Arc<View>, mut inbox: mpsc::Receiver<Forward>) {
    let (mut waiting, mut in_flight, mut to) = (VecDeque::<Forward>::new(), JoinSet::new(), None::<NodeId>);
    loop {
        tokio::select! {
            forward = inbox.recv(), if waiting.len() < FORWARDS_QUEUED_MAX => match forward {
                Some(forward) => waiting.push_back(forward),
                None => return,
            },
            Some(_) = in_flight.join_next() => {}
        }
        while waiting.len() < FORWARDS_QUEUED_MAX
            && let Ok(forward) = inbox.try_recv()
        {
            waiting.push_back(forward);
        }
        waiting.retain(|forward| !forward.reply.is_closed());
        // What an earlier leader does not answer is not to keep anything from the next one.
        let leader = waiting.back().map(|forward| forward.leader.node);
        if leader.is_some() && leader != to {
            in_flight.detach_all();
            to = leader;
        }
        while in_flight.len() < REQUESTS_IN_FLIGHT_MAX
            && let Some(calls) = gather(&mut waiting, view.version() >= TOGETHER_SINCE)
        {
            in_flight.spawn(send(transport.clone(), calls));
        }
    }
}

/// Takes the calls of the next request: such as go to the same node.
fn gather(waiting: &mut VecDeque<Forward>, together: bool) -> Option<Vec<Forward>> {
    let first = waiting.pop_front()?;
    let (leader, mut bytes, mut calls) = (first.leader.node, first.bytes(), vec![first]);
    while together
        && calls.len() < CALLS_TOGETHER_MAX
        && let Some(next) = waiting.pop_front_if(|next| next.leader.node == leader && bytes + next.bytes() <= BYTES_TOGETHER_MAX)
    {
        bytes += next.bytes();
        calls.push(next);
    }
    Some(calls)
}

async fn send(transport: Arc<dyn Transport>, calls: Vec<Forward>) {
    let leader = calls[0].leader.clone();
    let patience = calls.iter().map(|call| call.deadline.saturating_duration_since(Instant::now())).max().unwrap_or(Duration::ZERO);
    let answers = if let [only] = &calls[..] {
        let request = Request::Propose { commands: only.commands.clone(), patience };
        ask(&*transport, &leader, &request, patience).await.map(|answer| vec![answer])
    } else {
        let request = Request::ProposeAll { calls: calls.iter().map(|call| call.commands.clone()).collect(), patience };
        ask(&*transport, &leader, &request, patience).await
    };
    // A caller that gave up is fine.
    match answers {
        Ok(answers) if answers.len() == calls.len() => {
            calls.into_iter().zip(answers).for_each(|(call, answer)| drop(call.reply.send(Ok(answer))));
        }
        Ok(_) => calls.into_iter().for_each(|call| drop(call.reply.send(Ok(Err(Declined::Unanswered))))),
        Err(unsent) => calls.into_iter().for_each(|call| drop(call.reply.send(Err(unsent.clone())))),
    }
}

async fn ask<T: serde::de::DeserializeOwned>(
    transport: &dyn Transport,
    leader: &Peer,
    request: &Request,
    patience: Duration,
) -> Result<T, Unsent> {
    let late = |_| Unsent::Lost { why: format!("node {} does not answer within {patience:?}", leader.node) };
    let reply = tokio::time::timeout(patience, transport.call(leader, encode(request), patience)).await.map_err(late)??;
    decode(&reply).map_err(|bad| Unsent::Lost { why: bad.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forward(leader: u128, bytes: usize) -> Forward {
        let leader = Peer { node: NodeId::from_random(leader), address: String::new() };
        Forward { leader, commands: vec![vec![0; bytes].into()], deadline: Instant::now(), reply: oneshot::channel().0 }
    }

    #[test]
    fn calls_to_the_same_node_travel_together_in_their_order_and_a_long_one_alone() {
        let half = BYTES_TOGETHER_MAX / 2;
        let sizes = [(1, 10), (1, 20), (2, 30), (2, half), (2, half), (2, 3 * half), (2, 40)];
        let mut waiting: VecDeque<_> = sizes.map(|(leader, bytes)| forward(leader, bytes)).into();
        let mut next = |together| gather(&mut waiting, together).map(|calls| calls.iter().map(Forward::bytes).collect::<Vec<_>>());
        assert_eq!(next(true), Some(vec![10, 20]));
        assert_eq!(next(true), Some(vec![30, half]));
        assert_eq!(next(true), Some(vec![half]));
        assert_eq!(next(true), Some(vec![3 * half]));
        assert_eq!(next(false), Some(vec![40]));
        assert_eq!(next(true), None);
    }
}
