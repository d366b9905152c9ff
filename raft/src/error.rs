//! What can go wrong around the log. A command that is refused is an answer, not one of these.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use openraft::AnyError;
use shoal_state::{NodeId, VERSION_KNOWN};
use tokio::sync::Notify;

use crate::batch::COMMAND_BYTES_MAX;

/// A result around the log.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a proposal, a read or an opening did not come to an end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The thread that Raft runs on could not be started.
    #[error("cannot start the thread that Raft runs on")]
    Thread(#[source] Arc<std::io::Error>),
    /// What lies on the disk cannot be used. No retry helps.
    #[error("cannot open Raft's folder {}: {why}", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Raft has stopped on this node. The process must start anew, or be repaired as the sentence says.
    #[error("Raft has stopped on this node: {why}")]
    Stopped {
        /// Why it stopped.
        why: String,
    },
    /// No leader is known. Nothing was proposed; a retry may help.
    #[error("waited {} for a leader, and none is known; {}", seconds(*waited), needed(*voters))]
    NoLeader {
        /// How long the caller waited.
        waited: Duration,
        /// How many voters the cluster has; 0 on a node that is part of none.
        voters: usize,
    },
    /// The leader cannot be reached from here. Nothing was proposed; a retry may help.
    #[error("waited {} for the leader {leader}, which cannot be reached: {why}", seconds(*waited))]
    LeaderUnreachable {
        /// How long the caller waited.
        waited: Duration,
        /// Which node leads.
        leader: NodeId,
        /// What the transport says.
        why: String,
    },
    /// The log did not answer in time. The commands may have been applied, or may be applied later.
    #[error("waited {} for the log to commit {commands} commands; they may still be applied", seconds(*waited))]
    Unanswered {
        /// How many commands wait for their answer.
        commands: usize,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The leader changed amid a long list: its first commands may have been applied, the others were not.
    #[error("the leader changed after {answered} of {commands} commands were answered; the others may not have been applied")]
    Interrupted {
        /// How many commands were answered.
        answered: usize,
        /// How many there are.
        commands: usize,
    },
    /// The queue of proposals did not move. Nothing was proposed; a retry may help.
    #[error("waited {} for a place in the queue of proposals", seconds(*waited))]
    Busy {
        /// How long the caller waited.
        waited: Duration,
    },
    /// The read could not be confirmed in time. A retry may help.
    #[error("waited {} for a majority to confirm that the state here is the latest", seconds(*waited))]
    Unconfirmed {
        /// How long the caller waited.
        waited: Duration,
    },
    /// A command is too long for the log: what is large belongs into the chunk store.
    #[error("a command of {bytes} bytes is too long for the log: the limit is {COMMAND_BYTES_MAX}")]
    CommandTooLong {
        /// Length of the encoded command.
        bytes: usize,
    },
    /// A version that this build does not know cannot be activated from here.
    #[error("cannot activate version {version}: this build knows versions up to {VERSION_KNOWN}; upgrade every node first")]
    VersionUnknown {
        /// The version that was asked for.
        version: u32,
    },
    /// A message of a peer makes no sense here.
    #[error("a message from a peer cannot be understood: {why}")]
    BadMessage {
        /// What is wrong with it.
        why: String,
    },
    /// A message to members of consensus came to a node that is none, or not yet.
    #[error("this node is no member of consensus, and follows those that vote")]
    NotAMember,
    /// The membership of the cluster could not be changed.
    #[error("the cluster's membership could not be changed: {why}")]
    Membership {
        /// What stands in the way.
        why: String,
    },
}

impl Error {
    /// Says whether the same will be answered once enough of the cluster is there and reached, without anybody doing anything here.
    pub fn heals(&self) -> bool {
        matches!(
            self,
            Self::NoLeader { .. }
                | Self::LeaderUnreachable { .. }
                | Self::Unanswered { .. }
                | Self::Interrupted { .. }
                | Self::Busy { .. }
                | Self::Unconfirmed { .. }
        )
    }
}

/// Returns how long something took, as people say it.
fn seconds(waited: Duration) -> String {
    format!("{:.1} s", waited.as_secs_f64())
}

/// Why Raft stopped on this node: the first reason, as a sentence. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<Reason>);

#[derive(Debug, Default)]
struct Reason {
    why: OnceLock<String>,
    given: Notify,
}

impl Stop {
    /// Keeps the reason, with its causes, and returns it as openraft wants it.
    pub(crate) fn because(&self, error: &(impl std::error::Error + 'static)) -> AnyError {
        let sentence = with_causes(error);
        tracing::error!(why = %sentence, "Raft stops on this node");
        let _ = self.0.why.set(sentence);
        self.0.given.notify_waiters();
        AnyError::new(error)
    }

    /// Waits until there is a reason.
    pub(crate) async fn given(&self) {
        let given = self.0.given.notified();
        tokio::pin!(given);
        // It counts from here on: what comes between the look and the wait is not missed.
        given.as_mut().enable();
        if self.get().is_none() {
            given.await;
        }
    }

    /// Returns the reason; `otherwise` when none was kept.
    pub(crate) fn why(&self, otherwise: impl FnOnce() -> String) -> String {
        self.0.why.get().cloned().unwrap_or_else(otherwise)
    }

    /// Returns the reason, if there is one.
    pub(crate) fn get(&self) -> Option<&str> {
        self.0.why.get().map(String::as_str)
    }
}

/// Says what a leader takes.
fn needed(voters: usize) -> String {
    match voters {
        0 => "this node is not part of a cluster yet".into(),
        1 => "the only voter must be up".into(),
        _ => format!("{} of {voters} voters must be up and reach each other", voters / 2 + 1),
    }
}

/// Writes an error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        sentence = format!("{sentence}: {error}");
        cause = error.source();
    }
    sentence
}
