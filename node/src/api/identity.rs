//! Who calls.
//!
//! Clients show a token with every call. Containers show nothing: the unix socket that their calls arrive on was made
//! for one task, so the *channel* is the identity. What each may do is in [`super::policy`].

use std::fmt;

use shoal_state::model::{Token, TokenPurpose};
use shoal_state::{Digest, State, TaskId, Timestamp, TokenId};
use subtle::ConstantTimeEq as _;

use super::Api;
use super::error::Error;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A client with a valid token.
    Client(TokenId),
    /// A container, by its channel.
    Task(TaskId),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(token) => write!(f, "token {token}"),
            Self::Task(task) => write!(f, "task {task}"),
        }
    }
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

/// Returns the hash under which a token's secret is kept.
pub(crate) fn hash_secret(id: TokenId, secret: &str) -> Digest {
    Digest::of(format!("shoal token {id} {secret}").as_bytes())
}

/// Says whether a secret is that of a token, in a time that tells nothing of it.
pub(crate) fn is_secret_of(id: TokenId, secret: &str, hash: Digest) -> bool {
    hash.as_bytes().ct_eq(hash_secret(id, secret).as_bytes()).into()
}

/// Checks something by the state at hand; a refusal is confirmed with the latest state before it is said.
pub(super) async fn confirm<T>(api: &Api, check: impl Fn(&State) -> Result<T, Error>) -> Result<T, Error> {
    match check(&api.local()) {
        Ok(good) => Ok(good),
        Err(_) => check(&*api.read_latest().await?),
    }
}

/// Checks a token as of `state`.
///
/// What came in place of an id is never repeated: it may be a secret, put where the id belongs.
pub(crate) fn check_token(state: &State, id: &str, secret: &str, now: Timestamp) -> Result<TokenId, Error> {
    let parsed: TokenId = id.parse().map_err(|_| {
        let prefix = TokenId::PREFIX;
        Error::Unauthenticated(format!(
            "what this call shows as its token id is none: ids begin with {prefix:?}, secrets with \"as-\"; make a token on a node with `shoal token create`"
        ))
    })?;
    if state.tokens.get(&parsed).is_some_and(|token| !is_secret_of(parsed, secret, token.secret_hash)) {
        return Err(refused(parsed, "was shown with a wrong secret"));
    }
    check_still_good(state, parsed, now)?;
    Ok(parsed)
}

/// Checks a token whose holder has proven by a certificate that it showed the secret.
pub(crate) fn check_still_good(state: &State, id: TokenId, now: Timestamp) -> Result<(), Error> {
    let token = state.tokens.get(&id).ok_or_else(|| refused(id, "is not known to this cluster"))?;
    usable(state, token, now).map_err(|why| refused(id, &why))
}

fn refused(id: TokenId, why: &str) -> Error {
    Error::Unauthenticated(format!("token {id} {why}; make a new one on a node with `shoal token create`"))
}

fn usable(state: &State, token: &Token, now: Timestamp) -> Result<(), String> {
    if let Some(revoked) = token.revoked {
        return Err(format!("was revoked ({})", ago(revoked, now)));
    }
    if let Some(expired) = token.expires.filter(|expires| *expires <= now) {
        return Err(format!("has expired ({})", ago(expired, now)));
    }
    match token.purpose {
        TokenPurpose::Client => Ok(()),
        TokenPurpose::Node => Err("is for joining a node, not for clients".to_owned()),
        TokenPurpose::Limited(limits) => match limits.environment {
            Some(only) if !state.environments.contains_key(&only) => Err(format!("is limited to environment {only}, which was deleted")),
            _ => Ok(()),
        },
    }
}

fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.0.saturating_sub(then.0) / 1000;
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::model::{Environment, TokenLimits};
    use shoal_state::{Command, EnvironmentId};

    use super::*;

    const SECRET: &str = "as-0123";

    fn state_with(purpose: TokenPurpose, expires: Option<Timestamp>, revoked: Option<Timestamp>) -> (State, TokenId) {
        let (mut state, id) = (State::default(), TokenId::from_random(5));
        let environment = Environment::new(EnvironmentId::from_random(1), "main", Timestamp(0));
        state.apply(&Command::SetVersion { version: shoal_state::VERSION_KNOWN }).unwrap();
        state.apply(&Command::CreateEnvironment { environment }).unwrap();
        let secret_hash = hash_secret(id, SECRET);
        let token = Token { secret_hash, purpose, label: String::new(), created: Timestamp(0), expires, revoked };
        state.tokens.insert(id, token);
        (state, id)
    }

    fn said(state: &State, id: &str, secret: &str) -> String {
        check_token(state, id, secret, Timestamp(1_000_000)).unwrap_err().to_string()
    }

    #[test]
    fn a_token_is_good_until_its_end() {
        let (state, id) = state_with(TokenPurpose::Client, Some(Timestamp(1_000_000)), None);
        assert_eq!(check_token(&state, &id.to_string(), SECRET, Timestamp(999_999)).unwrap(), id);
        assert!(said(&state, &id.to_string(), SECRET).contains("has expired (0 s ago)"));
        let (state, id) = state_with(TokenPurpose::Client, None, Some(Timestamp(400_000)));
        assert!(said(&state, &id.to_string(), SECRET).contains("was revoked (10 min ago)"));
    }

    #[test]
    fn a_refusal_names_the_command_and_never_a_secret() {
        let (state, id) = state_with(TokenPurpose::Client, None, None);
        let unknown = TokenId::from_random(6).to_string();
        for (id, secret) in [(SECRET, id.to_string()), (&id.to_string(), "as-wrong".to_owned()), (&unknown, SECRET.to_owned())] {
            let said = said(&state, id, &secret);
            assert!(said.contains("shoal token create"), "{said}");
            assert!(!said.contains("0123") && !said.contains("wrong\""), "{said}");
        }
    }

    #[test]
    fn a_token_ends_with_its_environment() {
        let limited = |bits| TokenLimits { environment: Some(EnvironmentId::from_random(bits)), reads_only: false };
        let (state, id) = state_with(TokenPurpose::Limited(limited(1)), None, None);
        assert!(check_token(&state, &id.to_string(), SECRET, Timestamp(0)).is_ok());
        let (state, id) = state_with(TokenPurpose::Limited(limited(2)), None, None);
        assert!(said(&state, &id.to_string(), SECRET).contains("was deleted"));
    }
}
