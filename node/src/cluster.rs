//! The node's view of consensus: propose a decision, read the state, hear of changes.

use std::sync::Arc;
use std::time::Duration;

use shoal_raft::Raft;
use shoal_state::{Command, Event, NodeId, State};

use crate::api::Error;

/// A handle to the replicated state. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    raft: Raft,
    /// This node.
    pub(crate) node: NodeId,
}

impl Cluster {
    /// Wraps a running Raft.
    pub(crate) fn new(raft: Raft, node: NodeId) -> Self {
        Self { raft, node }
    }

    /// Returns the state as this node has it; may be behind the leader.
    pub(crate) fn local(&self) -> Arc<State> {
        self.raft.local()
    }

    /// Returns a state that has everything which was acknowledged before this call.
    pub(crate) async fn read_latest(&self) -> Result<Arc<State>, Error> {
        self.raft.read_latest().await.map_err(failed("cannot read the latest state"))
    }

    /// Returns the latest state if it can be had within `patience`, else the state as this node has it: for whoever must be shown
    /// something.
    pub(crate) async fn read_within(&self, patience: Duration) -> Arc<State> {
        let read = tokio::time::timeout(patience, self.raft.read_latest()).await;
        read.ok().and_then(Result::ok).unwrap_or_else(|| self.local())
    }

    /// Puts one decision into the log; returns what changed.
    pub(crate) async fn propose(&self, command: Command) -> Result<Vec<Event>, Error> {
        let mut answers = self.propose_all(vec![command]).await?;
        Ok(answers.pop().ok_or_else(|| Error::Unavailable("the log gave no answer to a command".to_owned()))??)
    }

    /// Puts several decisions into one entry; each has its own answer.
    pub(crate) async fn propose_all(&self, commands: Vec<Command>) -> Result<Vec<Result<Vec<Event>, shoal_state::Refused>>, Error> {
        self.raft.propose(commands).await.map_err(failed("cannot put a decision into the log"))
    }

    /// Returns Raft itself, for status.
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }
}

/// Says what was attempted, and whether whoever asked is to go on trying.
fn failed(attempted: &'static str) -> impl FnOnce(shoal_raft::Error) -> Error {
    move |error| {
        let sentence = format!("{attempted}: {error}");
        match error {
            shoal_raft::Error::CommandTooLong { .. } => Error::Invalid(sentence),
            error if error.heals() => Error::Heals(sentence),
            _ => Error::Unavailable(sentence),
        }
    }
}
