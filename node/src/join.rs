//! Letting a node into the cluster, and asking to be let in.
//!
//! An operator carries a token from a node of the cluster to the new machine. It says which CA the cluster has, so the new node
//! shows the secret to nobody else; the cluster takes the secret once, makes the node a member through the log, and certifies its
//! key. A node that asks again because it did not hear the answer asks for the same, and gets it.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_peer::{Authority, Fingerprint, JoinToken, Request, Service, Stream};
use shoal_state::model::{Member, TokenPurpose};
use shoal_state::{Command, NodeId, State, TokenId, VERSION_KNOWN};

use crate::api::{self, Api, Error};
use crate::audit::{Event, What};
use crate::authority;
use crate::config::Config;
use crate::doors;
use crate::formation;
use crate::keys::{Applicant, Welcome};

/// The form of what is asked and answered.
const FORMAT: u8 = 1;

/// What a node asks that wants to join.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Application {
    format: u8,
    /// Which node it will be.
    node: NodeId,
    /// The id and the secret of its token.
    token: (String, String),
    /// What it wants certified.
    request: Request,
    /// Up to which version it knows the rules of the state.
    version: u32,
    /// The release that it runs.
    release: String,
    /// The host by which others reach it; none = the one that it asks from.
    host: Option<String>,
    /// The port on which its peers reach it.
    port: u16,
}

/// Writes the whole token that lets one node join.
pub(crate) fn token(fingerprint: Fingerprint, id: TokenId, secret: &str) -> String {
    JoinToken { fingerprint, secret: format!("{id}.{secret}") }.to_string()
}

/// Lets nodes in from now on, whenever the key of the cluster's CA is here.
pub(crate) fn serve(api: &Api) {
    let held = api.clone();
    api.peers.endpoint.serve(Service::JOIN, move |stream, _| answer(stream, held.clone()));
}

async fn answer(mut stream: Stream, api: Api) {
    let from = stream.address().to_string();
    let Ok(Some(asked)) = stream.next().await else { return };
    if asked.first() == Some(&doors::FORMAT) {
        return answer_client(stream, &api, &asked, &from).await;
    }
    let done = match admit(&api, &asked, &from).await {
        Ok((node, welcome)) => {
            tracing::info!(%node, from, "a node has joined the cluster");
            note(&api, What::NodeJoined, &from, format!("node {node} has joined"));
            stream.send(welcome).await.and_then(|()| stream.finish())
        }
        Err(error) => {
            let why = tonic::Status::from(error).message().to_owned();
            tracing::warn!(from, why, "a node was not let into the cluster");
            note(&api, What::Refused, &from, refusal(&why));
            stream.fail(&why).await
        }
    };
    match done {
        // The connection must not end before the answer is there.
        Ok(()) => stream.closed().await,
        Err(error) => tracing::warn!(from, %error, "a node that wanted to join did not wait for its answer"),
    }
}

/// Answers a client's machine that asks for a certificate.
async fn answer_client(mut stream: Stream, api: &Api, asked: &[u8], from: &str) {
    let done = match doors::enrol(api, asked).await {
        Ok((token, leaf)) => {
            tracing::info!(%token, from, "a client's machine has a certificate");
            stream.send(leaf).await.and_then(|()| stream.finish())
        }
        Err(error) => {
            let why = tonic::Status::from(error).message().to_owned();
            tracing::warn!(from, why, "a client's machine was refused");
            api.audit.note(Event {
                what: What::Refused,
                who: "nobody".to_owned(),
                method: "connect",
                from: from.to_owned(),
                why: why.clone(),
            });
            stream.fail(&why).await
        }
    };
    if done.is_ok() {
        stream.closed().await;
    }
}

fn note(api: &Api, what: What, from: &str, why: String) {
    api.audit.note(Event { what, who: "nobody".to_owned(), method: "join", from: from.to_owned(), why });
}

fn refused(why: &str) -> Error {
    Error::Invalid(format!("cannot join: {why}"))
}

async fn admit(api: &Api, asked: &[u8], from: &str) -> Result<(NodeId, Bytes), Error> {
    let asked: Application = match asked.first() {
        Some(&FORMAT) => postcard::from_bytes(asked).map_err(|_| refused("what the node asked cannot be read"))?,
        _ => return Err(refused("the node is of another release than the cluster: run the cluster's")),
    };
    let state = api.read_latest().await?;
    let token = check_token(&state, &asked)?;
    let (node, welcome) = (asked.node, let_in(api, &state, asked, token, from).await?);
    let bytes = postcard::to_stdvec(&welcome).map_err(Error::failed("cannot write the answer to a node that joins"))?;
    Ok((node, bytes.into()))
}

/// Lets a node in that knows the secret of the seeds; returns what it needs, and the CA's certificate.
pub(crate) async fn admit_seed(api: &Api, asked: Application, from: &str) -> Result<(Welcome, Vec<u8>), String> {
    let node = asked.node;
    let admitted = async {
        let authority = open_gate(api).await?;
        let (state, token) = (api.read_latest().await?, formation::token(api).await?);
        Ok::<_, Error>((let_in(api, &state, asked, token, from).await?, authority.certificate().to_vec()))
    };
    match admitted.await {
        Ok(welcome) => {
            tracing::info!(%node, from, "a node has joined the cluster of its seeds");
            note(api, What::NodeJoined, from, format!("node {node} has joined as a seed"));
            Ok(welcome)
        }
        Err(error) => {
            let why = tonic::Status::from(error).message().to_owned();
            tracing::warn!(from, why, "a node was not let into the cluster");
            note(api, What::Refused, from, refusal(&why));
            Err(why)
        }
    }
}

/// Says in the audit log why a node was not let in.
fn refusal(why: &str) -> String {
    format!("cannot let a node join: {}", why.trim_start_matches("cannot join: "))
}

/// Returns the CA, or says who has it.
pub(super) async fn open_gate(api: &Api) -> Result<Arc<Authority>, Error> {
    match api.gate.authority() {
        Some(authority) => Ok(authority),
        None => Err(refused(&authority::ask_instead(api).await)),
    }
}

/// Makes a node a member by a token that was checked; returns what it needs.
async fn let_in(api: &Api, state: &State, asked: Application, token: TokenId, from: &str) -> Result<Welcome, Error> {
    if asked.version < state.version() {
        let (knows, active) = (asked.version, state.version());
        return Err(refused(&format!(
            "the node (release {}) knows the rules up to version {knows}, and the cluster uses version {active}: upgrade the node",
            asked.release
        )));
    }
    let host = match asked.host {
        Some(host) => host,
        None => from.rsplit_once(':').map_or(from, |(host, _)| host).to_owned(),
    };
    let authority = open_gate(api).await?;
    let leaf = authority.certify(asked.node, &asked.request, api::now_seconds()).map_err(|error| refused(&error.to_string()))?;
    let member = Member { address: format!("{host}:{}", asked.port), version: asked.version, release: asked.release, joined: api.now() };
    api.propose(Command::AdmitNode { id: asked.node, member, token: Some(token), at: api.now() }).await?;
    let gate = &api.gate;
    Ok(Welcome { cluster: gate.cluster, leaf, sealing: gate.sealing, urls: gate.urls })
}

/// Finds the token whose secret was shown. Whether it is still good is for the state to say, in one step with using it up.
fn check_token(state: &State, asked: &Application) -> Result<TokenId, Error> {
    let (id, secret) = &asked.token;
    let unknown = || {
        Error::Denied("cannot join: this cluster knows no such token; `shoal token create --node` on one of its nodes makes one".to_owned())
    };
    let id: TokenId = id.parse().map_err(|_| unknown())?;
    let token = state.tokens.get(&id).filter(|token| token.purpose == TokenPurpose::Node).ok_or_else(unknown)?;
    match api::identity::is_secret_of(id, secret, token.secret_hash) {
        true => Ok(id),
        false => Err(unknown()),
    }
}

/// Writes what a node asks that wants to join. `port` is where peers will reach it; `host`: by which name, if that is not the address
/// that it asks from.
pub(crate) fn application(applicant: &Applicant, token: Option<(&str, &str)>, host: Option<String>, port: u16) -> Application {
    let (id, secret) = token.unwrap_or_default();
    Application {
        format: FORMAT,
        node: applicant.node,
        token: (id.to_owned(), secret.to_owned()),
        request: applicant.request.clone(),
        version: VERSION_KNOWN,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        host,
        port,
    }
}

/// Asks the node at `address` to be let into its cluster, and keeps what it gives in the data folder.
///
/// `port` is where peers will reach this node; `host`: by which name, if that is not the address that it asks from.
pub(crate) async fn join(data: &Path, address: &str, token: &str, host: Option<String>, port: u16) -> anyhow::Result<()> {
    let token: JoinToken = token.parse()?;
    let (id, secret) = token.secret.split_once('.').context("the secret of the token is cut off: copy the whole token")?;
    let applicant = Applicant::open(data)?;
    let application = application(&applicant, Some((id, secret)), host, port);
    let application = postcard::to_stdvec(&application).context("cannot write the application to join")?;
    let joined = shoal_peer::join(address, token.fingerprint, application.into()).await?;
    let welcome: Welcome = postcard::from_bytes(&joined.answer)
        .with_context(|| format!("the answer of {address} cannot be read: is it of another release than this node?"))?;
    let node = applicant.node;
    applicant.keep(&welcome, &joined.ca)?;
    tracing::info!(%node, address, "this node has joined the cluster");
    Ok(())
}

/// Warns an operator whose node is of another cluster than the one that it is told to join: it stays where it is.
pub(crate) fn warn_of_another(config: &Config, own: Fingerprint) {
    // The token may be gone by now: it is of no use any more.
    if config.token().is_ok_and(|token| is_of_another(&token, own)) {
        let (join, data) = (&config.join, config.data.display());
        tracing::warn!(join, %data, "this node belongs to another cluster than the token, and stays there: to join, start with another --data, or an empty one");
    }
}

/// Says whether a token is of another cluster than the one with this CA.
fn is_of_another(token: &str, own: Fingerprint) -> bool {
    token.parse::<JoinToken>().is_ok_and(|token| token.fingerprint != own)
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn nodes_of_version_6_can_ask_to_join_and_understand_the_answer() {
        hold::<Application>("an application", include_str!("../tests/written/6/join-asked.txt"), 0);
        hold::<Welcome>("a welcome", include_str!("../tests/written/6/join-welcome.txt"), 0);
    }

    #[test]
    fn a_token_of_another_cluster_is_known_and_one_that_cannot_be_read_is_left_alone() {
        let [one, other] = ["BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc", "CAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAg"]
            .map(|ca| format!("shoal-join-{ca}.ak-1.as-2"));
        let own = one.parse::<JoinToken>().unwrap().fingerprint;
        assert!(!is_of_another(&one, own) && is_of_another(&other, own));
        assert!(!is_of_another("", own) && !is_of_another("ak-1:as-2", own));
    }
}
