//! Who calls, and what they may: the policy of the whole API, in one table.
//!
//! Clients show a token with every call. Containers show nothing: the unix socket that their calls arrive on was made
//! for one task, so the *channel* is the identity. Whatever is not in [`needs`] is refused.

use shoal_state::model::{Token, TokenPurpose};
use shoal_state::{Digest, State, TaskId, Timestamp, TokenId};
use subtle::ConstantTimeEq as _;

use super::error::Error;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A client with a valid token.
    Client(TokenId),
    /// A container, by its channel.
    Task(TaskId),
}

impl Identity {
    /// Returns the bytes that ids of this caller's creations are derived from.
    pub(crate) fn scope(&self) -> [u8; 17] {
        let (kind, bits) = match self {
            Self::Client(token) => (0, token.bits()),
            Self::Task(task) => (1, task.bits()),
        };
        let mut scope = [kind; 17];
        scope[1..].copy_from_slice(&bits.to_le_bytes());
        scope
    }

    /// Returns the task, or an error for a caller that is none.
    pub(crate) fn task(&self) -> Result<TaskId, Error> {
        match self {
            Self::Task(task) => Ok(*task),
            Self::Client(_) => Err(Error::Denied("only a container may call this, over its own channel".to_owned())),
        }
    }
}

/// What a method asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A client's token or a container's channel.
    Either,
    /// A client's token.
    Client,
    /// A container's channel.
    Task,
}

/// Returns what a method needs, by its name without the service.
pub(crate) fn needs(method: &str) -> Needs {
    match method {
        "ContainerHello"
        | "ContainerHeartbeat"
        | "ContainerLog"
        | "TaskResult"
        | "FunctionGetInputs"
        | "FunctionPutOutputs"
        | "FunctionCallGetDataIn"
        | "FunctionCallPutDataOut"
        | "FunctionGetDynamicConcurrency"
        | "FunctionStartPtyShell" => Needs::Task,
        "AppStop"
        | "AppRollback"
        | "AppRollover"
        | "EnvironmentCreate"
        | "EnvironmentUpdate"
        | "EnvironmentDelete"
        | "ContainerStop"
        | "AppClientDisconnect"
        | "AppHeartbeat"
        | "TokenInfoGet" => Needs::Client,
        _ => Needs::Either,
    }
}

/// Checks a caller against what a method needs.
pub(crate) fn permit(method: &str, identity: Identity) -> Result<(), Error> {
    match (needs(method), identity) {
        (Needs::Either, _) | (Needs::Client, Identity::Client(_)) | (Needs::Task, Identity::Task(_)) => Ok(()),
        (Needs::Client, Identity::Task(task)) => {
            Err(Error::Denied(format!("{method} may not be called from a container (task {task}); call it from a client")))
        }
        (Needs::Task, Identity::Client(_)) => {
            Err(Error::Denied(format!("{method} is for containers: it is answered on a task's own channel only")))
        }
    }
}

/// Returns the hash under which a token's secret is kept.
pub(crate) fn hash_secret(id: TokenId, secret: &str) -> Digest {
    Digest::of(format!("shoal token {id} {secret}").as_bytes())
}

/// Checks a token as of `state`.
pub(crate) fn check_token(state: &State, id: &str, secret: &str, now: Timestamp) -> Result<TokenId, Error> {
    let refuse = |why: &str| Error::Unauthenticated(format!("token {id:?} {why}; make a new one on a node with `shoal token create`"));
    let parsed: TokenId = id.parse().map_err(|_| refuse("is not a token id of Shoal"))?;
    let token = state.tokens.get(&parsed).ok_or_else(|| refuse("is not known to this cluster"))?;
    if !bool::from(token.secret_hash.as_bytes().ct_eq(hash_secret(parsed, secret).as_bytes())) {
        return Err(refuse("was shown with a wrong secret"));
    }
    usable(token, now).map_err(|why| refuse(&why))?;
    Ok(parsed)
}

fn usable(token: &Token, now: Timestamp) -> Result<(), String> {
    if token.revoked.is_some() {
        return Err("was revoked".to_owned());
    }
    if token.expires.is_some_and(|expires| expires <= now) {
        return Err("has expired".to_owned());
    }
    if token.purpose != TokenPurpose::Client {
        return Err("is for joining a node, not for clients".to_owned());
    }
    Ok(())
}
