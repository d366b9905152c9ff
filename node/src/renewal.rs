//! Renewing this node's certificate, half-way through its life.
//!
//! Where the CA's key is, the node certifies itself; others ask a node that has it. Until it is renewed the old one goes on, and it
//! is tried again: there are two weeks for that.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use shoal_peer::{Identity, Request, Service};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api, Error};
use crate::keys;
use crate::peers;

/// Certifying a member's key anew.
const RENEW: Service = Service::new(6, "renew a certificate");
/// How often is looked.
const EVERY: Duration = Duration::from_secs(3600);
/// How long a node may take to certify.
const RENEW_WAIT: Duration = Duration::from_secs(20);

/// Renews the certificates of members from now on.
pub(crate) fn serve(api: &Api) {
    let held = api.clone();
    api.peers.endpoint.serve(RENEW, move |mut stream, member| {
        let api = held.clone();
        async move {
            let (Ok(Some(asked)), Some(member)) = (stream.next().await, member) else { return };
            // Its old certificate says which node it is: it gets one for no other.
            let done = match certify(&api, member.node, &asked) {
                Ok(leaf) => stream.send(leaf).await.and_then(|()| stream.finish()),
                Err(why) => stream.fail(&why).await,
            };
            if let Err(error) = done {
                tracing::warn!(node = %member.node, %error, "a node did not wait for its new certificate");
            }
        }
    });
}

fn certify(api: &Api, node: shoal_state::NodeId, asked: &[u8]) -> Result<Bytes, String> {
    let authority = api.gate.authority().ok_or("it has not got the key of the cluster's CA, which only nodes that vote have")?;
    if !api.local().members.contains_key(&node) {
        return Err(format!("node {node} is no member of this cluster"));
    }
    let leaf = authority.certify(node, &Request(asked.to_vec()), api::now_seconds()).map_err(|error| error.to_string())?;
    Ok(leaf.into())
}

/// Renews this node's certificate when it is time, until `stop`.
pub(crate) async fn run(api: Api, data: PathBuf, identity: Identity, stop: CancellationToken) {
    let mut renew_at = identity.renew_at();
    loop {
        if api::now_seconds() >= renew_at {
            match renew(&api, &data).await {
                Ok(renewed) => {
                    renew_at = renewed.renew_at();
                    tracing::info!("this node's certificate is renewed");
                }
                Err(error) => tracing::error!(%error, "cannot renew this node's certificate; it is tried again in an hour"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn renew(api: &Api, data: &std::path::Path) -> Result<Identity, Error> {
    let failed = || Error::failed("cannot ask for a certificate");
    let applicant = keys::Renewal::open(data).map_err(failed())?;
    let leaf: Bytes = match api.gate.lets_in() {
        true => certify(api, api.cluster.node, &applicant.request.0).map_err(Error::Unavailable)?,
        false => from_others(api, Bytes::from(applicant.request.0.clone())).await?,
    };
    let identity = applicant.keep(&leaf).map_err(failed())?;
    api.peers.endpoint.renew(&identity).map_err(Error::failed("cannot use the new certificate"))?;
    Ok(identity)
}

/// Asks one member after the other: those without the CA's key say so.
async fn from_others(api: &Api, request: Bytes) -> Result<Bytes, Error> {
    let mut why = "there is no other member".to_owned();
    for (node, address) in peers::others(api.cluster.raft()) {
        match api.peers.endpoint.call(node, &address, RENEW, request.clone(), RENEW_WAIT).await {
            Ok(leaf) => return Ok(leaf),
            Err(error) => why = error.to_string(),
        }
    }
    Err(Error::Unavailable(format!("no node of the cluster renews certificates: {why}")))
}
