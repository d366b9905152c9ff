//! Tokens, as clients see them: who am I, and where.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use shoal_proto::modal_client as pb;
use shoal_state::model::{Token, TokenPurpose};
use shoal_state::{Command, Timestamp, TokenId};

use super::error::Error;
use super::{Api, Caller, Identity, identity, times};
use crate::audit::{Event, What};

/// The one workspace of a cluster.
const WORKSPACE: &str = "shoal";
/// How long a short-lived token is good for.
const SHORT_LIFE: Duration = Duration::from_secs(20 * 60);

/// Returns what people call whoever calls: the label of the token, or what it is the token or container of.
pub(super) fn name_of(api: &Api, caller: &Caller) -> String {
    let label = match caller.identity {
        Identity::Client(id) => api.local().tokens.get(&id).map(|token| token.label.clone()),
        Identity::Task(_) => None,
    };
    label.filter(|label| !label.is_empty()).unwrap_or_else(|| caller.identity.to_string())
}

/// Makes a token; returns its id and secret. The secret is nowhere else.
pub(crate) async fn make(api: &Api, label: &str, purpose: TokenPurpose, expires: Option<Timestamp>) -> Result<(TokenId, String), Error> {
    let id = TokenId::from_random(rand::random());
    let secret = format!("as-{:032x}", rand::random::<u128>());
    let token = Token {
        secret_hash: identity::hash_secret(id, &secret),
        purpose,
        label: label.to_owned(),
        created: api.now(),
        expires,
        revoked: None,
    };
    api.propose(Command::CreateToken { id, token }).await?;
    Ok((id, secret))
}

pub(super) async fn hello(_api: &Api, _caller: &Caller, (): ()) -> Result<pb::ClientHelloResponse, Error> {
    Ok(pb::ClientHelloResponse::default())
}

pub(super) async fn workspace(_api: &Api, _caller: &Caller, (): ()) -> Result<pb::WorkspaceNameLookupResponse, Error> {
    Ok(pb::WorkspaceNameLookupResponse { workspace_name: WORKSPACE.to_owned(), username: WORKSPACE.to_owned() })
}

pub(super) async fn info(api: &Api, caller: &Caller, _request: pb::TokenInfoGetRequest) -> Result<pb::TokenInfoGetResponse, Error> {
    let Identity::Client(id) = caller.identity else {
        return Err(Error::Denied("a container has no token: its channel is its identity".to_owned()));
    };
    let state = api.read_latest_unless(|state| state.tokens.contains_key(&id)).await?;
    let token = state.tokens.get(&id).ok_or_else(|| Error::NotFound(format!("token {id} is not known to this cluster")))?;
    let time = |at: Timestamp| times::of_ms(at.0);
    Ok(pb::TokenInfoGetResponse {
        token_id: id.to_string(),
        workspace_id: WORKSPACE.to_owned(),
        workspace_name: WORKSPACE.to_owned(),
        token_name: token.label.clone(),
        created_at: Some(time(token.created)),
        expires_at: token.expires.map(time),
        ..Default::default()
    })
}

/// Ends the caller's own token: a client that has a new one asks it of the old one.
pub(super) async fn delete(api: &Api, caller: &Caller, request: pb::TokenDeleteRequest) -> Result<(), Error> {
    let id: TokenId = request.token_id.parse()?;
    if caller.identity != Identity::Client(id) {
        return Err(Error::Denied(format!("{} may end itself alone: end {id} on a node with `shoal token revoke {id}`", caller.identity)));
    }
    api.propose(Command::RevokeToken { id, at: api.now() }).await?;
    let (who, why) = (caller.identity.to_string(), format!("token {id} was revoked"));
    api.audit.note(Event { what: What::TokenRevoked, who, method: &caller.method, from: caller.from.clone(), why });
    Ok(())
}

/// Gives out a token for calls outside this service: a JWT that names who it was given to, and when it ends.
pub(super) async fn short_lived(api: &Api, caller: &Caller, _request: pb::AuthTokenGetRequest) -> Result<pb::AuthTokenGetResponse, Error> {
    let until = api.now().0 / 1000 + SHORT_LIFE.as_secs();
    let subject = match caller.identity {
        Identity::Client(id) => id.to_string(),
        Identity::Task(id) => id.to_string(),
    };
    let claims = serde_json::json!({ "iss": WORKSPACE, "sub": subject, "exp": until });
    Ok(pb::AuthTokenGetResponse { token: jwt(&claims.to_string(), |signed| api.sealing.sign("shoal short-lived token", signed)) })
}

/// Writes claims, which are JSON, as a JWT with the signature of `sign`.
pub(super) fn jwt(claims: &str, sign: impl FnOnce(&[u8]) -> [u8; 32]) -> String {
    let signed = format!("{}.{}", BASE64.encode(r#"{"alg":"BLAKE3","typ":"JWT"}"#), BASE64.encode(claims));
    let signature = BASE64.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}
