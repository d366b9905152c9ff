//! The way to the nodes by mutual TLS: one connection to one node at a time, and a stream in it for each of the client's.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use shoal_peer::{ConnectToken, Entry, Error, Pass, Tunnel};
use tokio::sync::watch;

use super::looking::unknown;
use super::{HOLD, Nodes, TRY_AGAIN_AFTER};
use crate::doors;
use crate::stderr::say;

/// How long a node that has just ended its connection is given before the next one is made to it.
const REST: Duration = Duration::from_millis(100);

/// How long one node may take to certify this machine.
const ENROL_WAIT: Duration = Duration::from_secs(6);

/// Where the connection stands.
#[derive(Debug, Clone)]
enum Standing {
    Opening,
    Open(Arc<Entry>),
    /// The cluster does not let this machine in, in its words.
    Refused(String),
}

/// The connection to whichever node is there.
#[derive(Debug, Clone)]
pub(super) struct Secure(watch::Sender<Standing>);

impl Secure {
    /// Asks the cluster for a certificate, and keeps a connection from then on.
    ///
    /// # Errors
    /// When the cluster refuses. While no node is reached, it goes on: one may come.
    pub(super) async fn open(nodes: Arc<Nodes>, token: ConnectToken) -> anyhow::Result<Self> {
        let pass = enrol(&nodes, &token).await?;
        let this = Self(watch::channel(Standing::Opening).0);
        tokio::spawn(this.clone().keep(nodes, token, pass));
        Ok(this)
    }

    /// Returns a tunnel to a node's API; none when no node was reached for long.
    pub(super) async fn tunnel(&self) -> Option<Tunnel> {
        let mut standing = self.0.subscribe();
        let waiting = async {
            loop {
                let now = standing.wait_for(|standing| !matches!(standing, Standing::Opening)).await.ok()?.clone();
                let Standing::Open(entry) = now else { return None };
                match entry.tunnel().await {
                    Ok(tunnel) => return Some(tunnel),
                    // Whoever keeps the connection notices as well.
                    Err(_) => tokio::time::sleep(REST).await,
                }
            }
        };
        tokio::time::timeout(HOLD, waiting).await.ok()?
    }

    /// Notes that a node turned a tunnel away: the token is good no more.
    pub(super) fn turned_away(&self) {
        self.0.send_replace(Standing::Refused(
            "the token of this machine is good no more: make a new one on a node with `shoal token create`".to_owned(),
        ));
    }

    /// Waits until the cluster does not let this machine in any more, and returns its words.
    pub(super) async fn refused(&self) -> String {
        let mut standing = self.0.subscribe();
        match standing.wait_for(|standing| matches!(standing, Standing::Refused(_))).await.as_deref() {
            Ok(Standing::Refused(why)) => why.clone(),
            _ => "the connection is kept no more".to_owned(),
        }
    }

    async fn keep(self, nodes: Arc<Nodes>, token: ConnectToken, mut pass: Pass) {
        // How many nodes in a row said that another one may serve.
        let mut sent_on = 0;
        loop {
            if pass.renew_at() <= now() {
                pass = match enrol(&nodes, &token).await {
                    Ok(pass) => pass,
                    Err(error) => return drop(self.0.send_replace(Standing::Refused(format!("{error:#}")))),
                };
            }
            let open = |address: String| {
                let pass = &pass;
                async move { Entry::open(&address, pass).await.map_err(|error| words(&address, error)) }
            };
            let Some(entry) = nodes.reach(open).await else { continue };
            let entry = Arc::new(entry);
            if !self.replace_unless_refused(Standing::Open(entry.clone())) {
                return;
            }
            let why = entry.ended_by().await;
            if entry.was_sent_elsewhere() {
                sent_on += 1;
                nodes.tell_once(&why);
            } else {
                sent_on = 0;
                say(format_args!("the connection to a node has ended: {why}"));
            }
            // What has just ended a connection starts anew at best; others are there.
            nodes.try_next();
            if !self.replace_unless_refused(Standing::Opening) {
                return;
            }
            let all_asked = sent_on > 0 && sent_on % nodes.addresses.len() == 0;
            tokio::time::sleep(if all_asked { TRY_AGAIN_AFTER } else { REST }).await;
        }
    }

    fn replace_unless_refused(&self, with: Standing) -> bool {
        self.0.send_if_modified(|standing| match standing {
            Standing::Refused(_) => false,
            _ => {
                *standing = with;
                true
            }
        })
    }
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// Says why a node is not reached; whoever says it says its address.
pub(super) fn words(address: &str, error: Error) -> String {
    match error {
        Error::Unreachable { why, .. } => why,
        Error::Resolve { why, .. } => unknown(address, &why),
        Error::Stranger { .. } => "it belongs to another cluster than the token".to_owned(),
        other => other.to_string(),
    }
}

/// Shows the token to the nodes, one after the other, until one of them certifies this machine's key or all have said no.
async fn enrol(nodes: &Nodes, token: &ConnectToken) -> anyhow::Result<Pass> {
    let (request, key) = Pass::ask()?;
    let asked = doors::enrolment(token, &request)?;
    let ask = |address: String| {
        let (ca, asked) = (token.fingerprint(), asked.clone());
        async move {
            match tokio::time::timeout(ENROL_WAIT, shoal_peer::join(&address, ca, asked)).await {
                Ok(Ok(joined)) => Ok(Ok(joined)),
                // One that has not the CA's key says so, as one does that knows no such token: another one is asked.
                Ok(Err(error @ (Error::Refused { .. } | Error::Stranger { .. }))) => Ok(Err(error)),
                Ok(Err(error)) => Err(words(&address, error)),
                Err(_) => Err("no answer to a request for a certificate: is the node up, and is its UDP port open on the way?".to_owned()),
            }
        }
    };
    let mut refusals = 0;
    loop {
        match nodes.reach(&ask).await {
            Some(Ok(joined)) => return Ok(Pass::new(&key, &joined.answer, &joined.ca)?),
            Some(Err(error)) => {
                refusals += 1;
                if refusals >= nodes.addresses.len() {
                    return Err(error).context("the cluster does not let this machine in");
                }
                nodes.try_next();
            }
            None => {}
        }
    }
}
