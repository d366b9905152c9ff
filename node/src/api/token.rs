//! Tokens, as clients see them: who am I, and where.

use shoal_proto::modal_client as pb;
use shoal_state::TokenId;
use shoal_state::model::{Token, TokenPurpose};
use shoal_state::{Command, Timestamp};

use super::error::Error;
use super::{Api, Caller, Identity, identity};

/// The one workspace of a cluster.
const WORKSPACE: &str = "shoal";

/// Makes a token for clients; returns its id and secret. The secret is nowhere else.
pub(crate) async fn make(api: &Api, label: &str, expires: Option<Timestamp>) -> Result<(TokenId, String), Error> {
    let id = TokenId::from_random(rand::random());
    let secret = format!("as-{:032x}", rand::random::<u128>());
    let token = Token {
        secret_hash: identity::hash_secret(id, &secret),
        purpose: TokenPurpose::Client,
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
    let state = api.local();
    let label = state.tokens.get(&id).map(|token| token.label.clone()).unwrap_or_default();
    Ok(pb::TokenInfoGetResponse {
        token_id: id.to_string(),
        workspace_id: WORKSPACE.to_owned(),
        workspace_name: WORKSPACE.to_owned(),
        token_name: label,
        ..Default::default()
    })
}
