//! The road of clients' machines into this node: a certificate for whoever shows a token, and from then on a way to the API for each of
//! its connections (`shoal connect --token`).
//!
//! What comes through it is like what comes from anywhere else: each call shows its own token. The road's token is for coming in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_peer::{ConnectToken, Fingerprint, Request, Tunnel};
use shoal_state::TokenId;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api, Error, identity};
use crate::audit::{Event, What};
use crate::join;

/// The form of what a client's machine asks; [`join`] has another.
pub(crate) const FORMAT: u8 = 2;

/// How often a node looks whether it reaches its cluster.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What a client's machine asks once, before it has a certificate.
#[derive(Debug, Serialize, Deserialize)]
struct Enrolment {
    format: u8,
    /// The id and the secret of its token.
    token: (String, String),
    /// What it wants certified.
    request: Request,
}

/// Writes what `shoal connect --token` takes.
pub(crate) fn token(fingerprint: Fingerprint, id: TokenId, secret: &str) -> String {
    ConnectToken::new(fingerprint, format!("{id}.{secret}")).to_string()
}

/// Writes what a client's machine asks for a certificate.
pub(crate) fn enrolment(token: &ConnectToken, request: &Request) -> anyhow::Result<Bytes> {
    let cut = || anyhow::anyhow!("the secret of the token is cut off: copy the whole token");
    let (id, secret) = token.secret().split_once('.').ok_or_else(cut)?;
    let asked = Enrolment { format: FORMAT, token: (id.to_owned(), secret.to_owned()), request: request.clone() };
    Ok(postcard::to_stdvec(&asked)?.into())
}

/// Certifies the key of a client's machine that shows a good token. Returns the token and the certificate.
pub(super) async fn enrol(api: &Api, asked: &[u8]) -> Result<(TokenId, Bytes), Error> {
    let asked: Enrolment =
        postcard::from_bytes(asked).map_err(|_| Error::Invalid("cannot connect: what the machine asked cannot be read".to_owned()))?;
    let (id, secret) = &asked.token;
    let token = identity::check_token(&*api.read_latest().await?, id, secret, api.now())?;
    let authority = join::open_gate(api).await?;
    let leaf = authority.certify_client(token, &asked.request, api::now_seconds());
    Ok((token, leaf.map_err(|error| Error::Invalid(format!("cannot connect: {error}")))?.into()))
}

/// Lets clients' machines through to this node's API from now on.
pub(crate) fn serve(api: &Api) {
    let held = api.clone();
    let at = reachable(api.config.api);
    api.peers.endpoint.serve_clients(move |token, from, tunnel| pass(held.clone(), at, token, from, tunnel));
}

/// Sends clients' machines to other nodes for as long as this one reaches none of them, and from `stop` on.
///
/// Their connections do not end by themselves where only the wires between nodes are broken; and a node that stops has containers to
/// end before it ends its connections, and answers nothing new in between.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut was_cut_off = false;
    while tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
        let cut_off = api.reports.is_cut_off(&api.cluster.local());
        if cut_off != was_cut_off {
            tracing::warn!(cut_off, "whether this node reaches its cluster has changed: clients that come by `shoal connect` go with it");
            api.peers.endpoint.send_clients_away(cut_off);
            was_cut_off = cut_off;
        }
    }
    let state = api.cluster.local();
    if state.members.keys().any(|node| *node != api.cluster.node) {
        api.peers.endpoint.send_clients_away(true);
    }
}

/// Returns where this node itself reaches what listens at an address.
fn reachable(mut at: SocketAddr) -> SocketAddr {
    if at.ip().is_unspecified() {
        at.set_ip(if at.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) });
    }
    at
}

async fn pass(api: Api, at: SocketAddr, token: TokenId, from: SocketAddr, mut tunnel: Tunnel) {
    let state = match api.read_latest_unless(|state| state.tokens.contains_key(&token)).await {
        Ok(state) => state,
        Err(error) => return tracing::warn!(%from, %error, "cannot find out whether a client's machine may still come"),
    };
    if let Err(error) = identity::check_still_good(&state, token, api.now()) {
        let why = format!("cannot let a client's machine in: {error}");
        api.audit.note(Event { what: What::Refused, who: format!("token {token}"), method: "connect", from: from.to_string(), why });
        return shoal_peer::turn_away(&mut tunnel);
    }
    let mut here = match TcpStream::connect(at).await {
        Ok(here) => here,
        Err(error) => return tracing::warn!(%from, %at, %error, "cannot lead a client's machine to this node's own API"),
    };
    let _ = here.set_nodelay(true);
    // However it ends, both sides notice, and the client connects anew.
    let _ = tokio::io::copy_bidirectional(&mut tunnel, &mut here).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_of_clients_of_version_6_are_understood() {
        shoal_state::written::hold::<Enrolment>("an enrolment", include_str!("../tests/written/6/enrolment.txt"), 0);
    }

    #[test]
    fn an_api_that_listens_everywhere_is_reached_by_loopback() {
        for (listens, reached) in [("0.0.0.0:7470", "127.0.0.1:7470"), ("[::]:7470", "[::1]:7470"), ("192.0.2.1:80", "192.0.2.1:80")] {
            assert_eq!(reachable(listens.parse().unwrap()), reached.parse().unwrap());
        }
    }

    #[test]
    fn a_token_that_is_cut_off_is_refused() {
        let (request, _) = shoal_peer::Pass::ask().unwrap();
        let authority = shoal_peer::Authority::make(1_800_000_000).unwrap();
        let whole = token(authority.fingerprint(), TokenId::from_random(1), "as-1");
        assert!(enrolment(&whole.parse().unwrap(), &request).is_ok());
        let cut = whole.replace(".as-1", "");
        let error = enrolment(&cut.parse().unwrap(), &request).unwrap_err();
        assert!(error.to_string().contains("copy the whole token"), "{error}");
    }
}
