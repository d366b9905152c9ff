//! Tokens, for `shoal token create`, `list` and `revoke`.

use axum::Json;
use axum::extract::{Path as UrlPath, State as Shared};
use serde::{Deserialize, Serialize};
use shoal_state::model::{self, Token, TokenLimits};
use shoal_state::{Command, State, Timestamp, TokenId};

use super::{Answer, check_label};
use crate::api::{self, Api};
use crate::audit::{Event, What};
use crate::authority;
use crate::doors;

/// What a token is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TokenPurpose {
    /// All that clients do: run, deploy, call, look, stop.
    #[default]
    Client,
    /// Looking alone: lists, states, logs, results.
    Reader,
    /// The join of one node.
    Node,
}

/// What `shoal token create` asks.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct TokenWanted {
    /// What its maker calls it.
    pub(crate) label: String,
    /// What it is for.
    #[serde(default)]
    pub(crate) purpose: TokenPurpose,
    /// The only environment that it may use; none = all.
    #[serde(default)]
    pub(crate) environment: Option<String>,
    /// After how many seconds it stops being valid; none = never.
    pub(crate) expires_in_seconds: Option<u64>,
}

/// What `shoal token create` is answered: the only time the secret is seen.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TokenMade {
    /// The token's id.
    pub(crate) token_id: String,
    /// The token's secret; for a node, all that its `--token` takes.
    pub(crate) token_secret: String,
    /// How a client's machine connects with it by mutual TLS: the whole command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) connect: Option<String>,
    /// How a node joins with it: the whole command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) join: Option<String>,
}

/// A line of `shoal token list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TokenLine {
    /// The token's id.
    pub(crate) token_id: String,
    /// What its maker called it.
    pub(crate) label: String,
    /// `client`, `reader`, or `node` for the join of one.
    pub(crate) purpose: String,
    /// The only environment that it may use, by its name now, or its id when it was deleted; none = all.
    pub(crate) environment: Option<String>,
    /// When it was created, in milliseconds since 1970.
    pub(crate) created_ms: u64,
    /// When it stops or stopped being valid, in milliseconds since 1970; none = never.
    pub(crate) expires_ms: Option<u64>,
    /// When it was revoked, in milliseconds since 1970.
    pub(crate) revoked_ms: Option<u64>,
    /// `valid`, `revoked` or `expired`.
    pub(crate) state: String,
}

fn standing(token: &Token, now: Timestamp) -> &'static str {
    match token {
        Token { revoked: Some(_), .. } => "revoked",
        Token { expires: Some(expires), .. } if *expires <= now => "expired",
        _ => "valid",
    }
}

/// How long a token for a node is good when nobody says, in seconds.
const NODE_SECONDS: u64 = 24 * 3600;

fn line(state: &State, id: TokenId, token: &Token, now: Timestamp) -> TokenLine {
    let (purpose, limits) = match token.purpose {
        model::TokenPurpose::Client => ("client", TokenLimits::default()),
        model::TokenPurpose::Node => ("node", TokenLimits::default()),
        model::TokenPurpose::Limited(limits) => (if limits.reads_only { "reader" } else { "client" }, limits),
    };
    let name = |id: shoal_state::EnvironmentId| state.environments.get(&id).map_or_else(|| id.to_string(), |found| found.name.clone());
    TokenLine {
        token_id: id.to_string(),
        label: token.label.clone(),
        purpose: purpose.to_owned(),
        environment: limits.environment.map(name),
        created_ms: token.created.0,
        expires_ms: token.expires.map(|at| at.0),
        revoked_ms: token.revoked.map(|at| at.0),
        state: if state.tokens_used.contains_key(&id) { "used" } else { standing(token, now) }.to_owned(),
    }
}

pub(super) async fn list(Shared(api): Shared<Api>) -> Answer<Vec<TokenLine>> {
    let (state, now) = (super::undecided::latest_or_known(&api).await, api.now());
    let mut lines: Vec<_> = state.tokens.iter().map(|(id, token)| line(&state, *id, token, now)).collect();
    lines.sort_by_key(|line| line.created_ms);
    Ok(Json(lines))
}

pub(super) async fn create(Shared(api): Shared<Api>, Json(wanted): Json<TokenWanted>) -> Answer<TokenMade> {
    let state = api.read_latest().await?;
    let environment = wanted.environment.as_deref().map(|name| api::environment_named(&state, name)).transpose()?;
    check_label("label of a token", &wanted.label)?;
    if wanted.expires_in_seconds == Some(0) {
        return Err(api::Error::Invalid("cannot make a token that ends at once: say --expires-in of a second or more".to_owned()).into());
    }
    let (purpose, seconds) = match wanted.purpose {
        TokenPurpose::Node if environment.is_some() => {
            return Err(api::Error::Invalid("a node belongs to no environment: leave --environment out".to_owned()).into());
        }
        // A node that has come to vote this moment may be about to fetch what it takes.
        TokenPurpose::Node if !api.gate.lets_in() && authority::fetch(&api).await.is_err() => {
            return Err(api::Error::Precondition(format!("cannot make a token for a node: {}", authority::ask_instead(&api).await)).into());
        }
        TokenPurpose::Node => (model::TokenPurpose::Node, wanted.expires_in_seconds.or(Some(NODE_SECONDS))),
        purpose => {
            let limits = TokenLimits { environment, reads_only: purpose == TokenPurpose::Reader };
            let purpose = if limits == TokenLimits::default() { model::TokenPurpose::Client } else { model::TokenPurpose::Limited(limits) };
            (purpose, wanted.expires_in_seconds)
        }
    };
    let end = |seconds: u64| Timestamp(api.now().0.saturating_add(seconds.saturating_mul(1000)));
    let (id, secret) = api::token::make(&api, &wanted.label, purpose, seconds.map(end)).await?;
    let state = api.local();
    let made = state.tokens.get(&id).map(|token| line(&state, id, token, api.now()));
    let said = made.map_or_else(String::new, |line| said(&line));
    note(&api, What::TokenCreated, format!("token {id} was made: {said}"));
    let made = |token_secret, join, connect| TokenMade { token_id: id.to_string(), token_secret, join, connect };
    Ok(Json(match purpose {
        model::TokenPurpose::Node => {
            let token = crate::join::token(api.gate.fingerprint, id, &secret);
            let join = format!("shoal start --join {} --token {token}", api.peers.address);
            made(token, Some(join), None)
        }
        _ => {
            let nodes: Vec<_> = state.members.values().map(|member| member.address.as_str()).collect();
            let token = doors::token(api.gate.fingerprint, id, &secret);
            made(secret, None, Some(format!("shoal connect {} --token {token}", nodes.join(","))))
        }
    }))
}

/// Says what a token is good for.
fn said(line: &TokenLine) -> String {
    let environment = line.environment.as_ref().map_or_else(|| "all environments".to_owned(), |name| format!("environment '{name}'"));
    let expires = line.expires_ms.map_or_else(|| "without an end".to_owned(), |at| format!("until {}", api::time(at)));
    format!("label {:?}, purpose {}, {environment}, {expires}", line.label, line.purpose)
}

pub(super) async fn revoke(Shared(api): Shared<Api>, UrlPath(id): UrlPath<String>) -> Answer<()> {
    let id: TokenId = id.parse()?;
    let absent = || api::Error::NotFound(format!("cannot revoke token {id}: there is none with this id; `shoal token list` shows them"));
    api.read_latest_unless(|state| state.tokens.contains_key(&id)).await?.tokens.get(&id).ok_or_else(absent)?;
    api.propose(Command::RevokeToken { id, at: api.now() }).await?;
    note(&api, What::TokenRevoked, format!("token {id} was revoked"));
    Ok(Json(()))
}

fn note(api: &Api, what: What, why: String) {
    api.audit.note(Event { what, who: "operator".to_owned(), method: "", from: String::new(), why });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_a_token_is_good_for() {
        let token = |purpose, expires| Token {
            secret_hash: shoal_state::Digest::of(b""),
            purpose,
            label: "ci".to_owned(),
            created: Timestamp(1),
            expires,
            revoked: None,
        };
        let (state, id) = (State::default(), TokenId::from_random(1));
        let plain = line(&state, id, &token(model::TokenPurpose::Client, None), Timestamp(5));
        assert_eq!((plain.purpose.as_str(), plain.environment.as_deref(), plain.state.as_str()), ("client", None, "valid"));
        let limits = TokenLimits { environment: Some(shoal_state::EnvironmentId::from_random(3)), reads_only: true };
        let limited = line(&state, id, &token(model::TokenPurpose::Limited(limits), Some(Timestamp(5))), Timestamp(5));
        assert_eq!((limited.purpose.as_str(), limited.state.as_str()), ("reader", "expired"));
        assert!(limited.environment.unwrap().starts_with("en-"), "a deleted environment has its id left");
    }
}
