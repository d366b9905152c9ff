//! The key of the cluster's CA, on every node that votes.
//!
//! Whoever has it lets nodes into the cluster and renews certificates, so that no single machine's loss ends either. A node that
//! comes to vote fetches it from another one that has it; one that votes no more deletes it, once all that vote have it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use shoal_peer::{Authority, Fingerprint, Service};
use shoal_state::NodeId;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, Error};
use crate::audit::{Event, What};
use crate::keys::{AuthorityFile, ClusterName};
use crate::peers;
use crate::standing;

/// The key of the cluster's CA, for a node that votes.
const AUTHORITY: Service = Service::new(7, "hand over the key of the cluster's CA");
/// How long a node may take to hand it over.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often is looked, should nothing change.
const EVERY: Duration = Duration::from_secs(10);
/// The pause after a try that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// What lets nodes in on this node.
#[derive(Debug)]
pub(crate) struct Gate {
    authority: RwLock<Option<Arc<Authority>>>,
    file: AuthorityFile,
    /// What a token that lets a node join says of the cluster's CA.
    pub(crate) fingerprint: Fingerprint,
    /// The cluster.
    pub(crate) cluster: ClusterName,
    /// What a member must know to do its part: the key that seals secrets.
    pub(crate) sealing: [u8; 32],
    /// The key that signs URLs.
    pub(crate) urls: [u8; 32],
}

impl Gate {
    /// Makes the gate of a node from what it found of its keys.
    pub(crate) fn new(keys: &mut crate::keys::Keys, file: AuthorityFile) -> Self {
        Self {
            authority: RwLock::new(keys.authority.take().map(Arc::new)),
            file,
            fingerprint: keys.identity.fingerprint(),
            cluster: keys.cluster,
            sealing: keys.sealing,
            urls: keys.urls,
        }
    }

    /// Returns the CA, where its key is here.
    pub(crate) fn authority(&self) -> Option<Arc<Authority>> {
        self.authority.read().clone()
    }

    /// Says whether this node lets others in.
    pub(crate) fn lets_in(&self) -> bool {
        self.authority.read().is_some()
    }

    fn keep(&self, key: &str) -> anyhow::Result<()> {
        let authority = self.file.keep(key)?;
        *self.authority.write() = Some(Arc::new(authority));
        Ok(())
    }

    /// Deletes the key of the CA on this node.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        *self.authority.write() = None;
        self.file.forget()
    }
}

/// Hands the key to nodes that vote, from now on.
pub(crate) fn serve(api: &Api) {
    let held = api.clone();
    api.peers.endpoint.serve(AUTHORITY, move |mut stream, member| {
        let api = held.clone();
        async move {
            let Some(member) = member else { return };
            let from = stream.address().to_string();
            let done = match hand_over(&api, member.node).await {
                Ok(key) => {
                    tracing::info!(node = %member.node, "a node that votes gets the key of the cluster's CA");
                    stream.send(key).await.and_then(|()| stream.finish())
                }
                Err(why) => {
                    tracing::warn!(node = %member.node, why, "a node did not get the key of the cluster's CA");
                    let who = format!("node {}", member.node);
                    api.audit.note(Event { what: What::Refused, who, method: "authority", from, why: why.clone() });
                    stream.fail(&why).await
                }
            };
            if let Err(error) = done {
                tracing::debug!(node = %member.node, %error, "a node did not wait for the key of the cluster's CA");
            }
        }
    });
}

async fn hand_over(api: &Api, to: NodeId) -> Result<Bytes, String> {
    let authority = api.gate.authority().ok_or("this node has not got it either")?;
    if !api.cluster.raft().votes(to) {
        // Who asks may know of its vote before this node does.
        api.read_latest().await.map_err(|error| format!("cannot find out whether node {to} votes: {error}"))?;
    }
    match api.cluster.raft().votes(to) {
        true => Ok(Bytes::from(authority.key().to_owned())),
        false => Err(format!("node {to} does not vote in this cluster, and only nodes that vote have the key of its CA")),
    }
}

/// Fetches the key when this node votes, and deletes it when it votes no more, until `stop`.
pub(crate) async fn run(api: Api, stop: CancellationToken) {
    let mut changes = api.cluster.raft().watch();
    let mut said = None;
    loop {
        let done = settle(&api).await;
        let (again, why) = match done {
            Ok(()) => (EVERY, None),
            Err(error) => (PAUSE, Some(error.to_string())),
        };
        if why != said {
            if let Some(why) = &why {
                tracing::warn!(why, "the key of the cluster's CA is not where it should be; it is tried again");
            }
            said = why;
        }
        let wait = async {
            tokio::time::sleep(PAUSE).await;
            tokio::select! {
                () = tokio::time::sleep(again) => {}
                _ = changes.changed() => {}
            }
        };
        tokio::select! {
            () = wait => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn settle(api: &Api) -> Result<(), Error> {
    let me = api.cluster.node;
    match (api.cluster.raft().votes(me), api.gate.lets_in()) {
        (true, false) => fetch(api).await,
        (false, true) if all_voters_have_it(api).await => {
            api.gate.forget().map_err(Error::failed("cannot delete the key of the cluster's CA"))?;
            tracing::info!("this node votes no more, and has deleted the key of the cluster's CA");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Fetches the key from the first node that hands it over, if this node votes.
pub(crate) async fn fetch(api: &Api) -> Result<(), Error> {
    if !api.cluster.raft().votes(api.cluster.node) {
        return Err(Error::Precondition("this node does not vote".to_owned()));
    }
    let mut why = "no other node is known".to_owned();
    for (node, address) in peers::others(api.cluster.raft()) {
        match api.peers.endpoint.call(node, &address, AUTHORITY, Bytes::new(), PATIENCE).await {
            Ok(key) => {
                let key = std::str::from_utf8(&key).map_err(Error::failed("cannot read the key of the cluster's CA"))?;
                api.gate.keep(key).map_err(Error::failed("cannot keep the key of the cluster's CA"))?;
                tracing::info!(from = %node, "this node votes, and has the key of the cluster's CA");
                return Ok(());
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(Error::Unavailable(format!("no node hands over the key of the cluster's CA: {why}")))
}

async fn all_voters_have_it(api: &Api) -> bool {
    let voters: Vec<NodeId> = api.cluster.raft().status().voters.iter().map(|peer| peer.node).collect();
    let standings = standing::of_all(api).await;
    let has = |voter: &NodeId| standings.iter().any(|(node, said)| node == voter && said.as_ref().is_ok_and(|said| said.lets_in));
    !voters.is_empty() && voters.iter().all(has)
}

/// Says which nodes let others in, for somebody who asked one that does not.
pub(crate) async fn ask_instead(api: &Api) -> String {
    let state = api.local();
    let name = |node: NodeId| {
        let known = state.nodes.get(&node).map_or_else(|| node.to_string(), |known| format!("{} ({node})", known.name));
        let at = state.members.get(&node).map(|member| format!(" at {}", member.address)).unwrap_or_default();
        format!("{known}{at}")
    };
    let open = standing::of_all(api).await.into_iter().filter(|(_, said)| said.as_ref().is_ok_and(|said| said.lets_in));
    let open: Vec<String> = open.map(|(node, _)| name(node)).collect();
    let why = "this node lets no others in, since only nodes that vote have the key of the cluster's CA";
    match open.is_empty() {
        true => format!("{why}, and none of them can be reached from here"),
        false => format!("{why}: ask {}", open.join(" or ")),
    }
}
