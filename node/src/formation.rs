//! Equal machines become one cluster, whichever is started first: `shoal start --seeds a,b,c --expect 3` on all of them.
//!
//! What to do next is decided in a pure function ([`shoal_members::formation`]); the loop asks, and does it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use shoal_members::formation::{Next, Seeds, Seen, next, promise};
use shoal_peer::{Admission, Authority, Endpoint, Identity, Member, Options, Secret, ask_seed};
use shoal_state::model::TokenPurpose;
use shoal_state::{BootId, NodeId, VERSION_KNOWN};

use crate::api::{self, Api};
use crate::config::Config;
use crate::join::{self, Application};
use crate::keys::{Applicant, Promise, Welcome};

/// The form of what seeds say to each other.
const FORMAT: u8 = 1;
/// How often all seeds are asked.
const EVERY: Duration = Duration::from_millis(500);
/// How often is said what is waited for.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long a token is good that a node makes for one that knows the secret.
const TOKEN_MS: u64 = 60_000;
/// How long the port may take to be free again.
const PORT_WAIT: Duration = Duration::from_secs(5);

/// What one machine asks of another.
#[derive(Debug, Serialize, Deserialize)]
enum Question {
    /// How do you stand?
    Look(Seeds),
    /// Found no cluster, and follow this node, durably.
    Promise(Seeds, NodeId),
    /// Let me in.
    Join(Application),
}

#[derive(Debug, Serialize, Deserialize)]
enum Said {
    Seen(Seen),
    Promised,
    Welcome { welcome: Welcome, ca: Vec<u8> },
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bytes.extend(postcard::to_stdvec(message).unwrap_or_default());
    bytes
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => postcard::from_bytes(rest).map_err(|_| "what it says cannot be read".to_owned()),
        _ => Err("it is of another release: run the same on all machines".to_owned()),
    }
}

/// Refuses everybody: there is no cluster yet.
#[derive(Debug)]
struct Nobody(Member);

impl Admission for Nobody {
    fn myself(&self) -> Member {
        self.0.clone()
    }

    fn admit(&self, _: &Member) -> Result<(), String> {
        Err("this node is of no cluster yet".to_owned())
    }
}

/// Returns when this machine is to found a cluster, or has joined one. `secret` is what all seeds were given.
pub(crate) async fn form(config: &Config, seeds: &Seeds, secret: &Secret) -> anyhow::Result<()> {
    let applicant = Applicant::open(&config.data)?;
    let node = applicant.node;
    let start: u128 = rand::random();
    let endpoint = temporary(config, node).await?;
    let (data, own) = (config.data.clone(), seeds.clone());
    endpoint.serve_seeds(secret.clone(), move |question, _| {
        let (data, own) = (data.clone(), own.clone());
        async move { answer_empty(&data, &own, start, &question).await }
    });
    let done = look_until_done(config, seeds, secret, (node, start)).await;
    endpoint.close().await;
    done
}

/// Opens the port of peers with a certificate that is good for nothing else.
async fn temporary(config: &Config, node: NodeId) -> anyhow::Result<Endpoint> {
    let now = api::now_seconds();
    let authority = Authority::make(now)?;
    let (request, key) = Identity::ask()?;
    let identity = Identity::new(&key, &authority.certify(node, &request, now)?, authority.certificate())?;
    let (boot, release) = (BootId::from_random(rand::random()), env!("CARGO_PKG_VERSION").to_owned());
    let me = Member { cluster: rand::random(), generation: 0, node, boot, version: VERSION_KNOWN, release };
    let admission = Arc::new(Nobody(me));
    let reset_key = rand::random();
    Ok(Endpoint::open(Options { address: config.peers(), identity, admission, reset_key, segmentation: config.segmentation })?)
}

/// Answers others while this machine is of no cluster.
async fn answer_empty(data: &Path, seeds: &Seeds, start: u128, question: &[u8]) -> Result<Bytes, String> {
    let held = || Promise::read(data).map_err(|error| format!("{error:#}"));
    let said = match decode(question)? {
        Question::Look(_) => Said::Seen(Seen { start, seeds: seeds.clone(), has_cluster: false, promised: held()? }),
        Question::Promise(theirs, founder) => {
            promise(seeds, held()?, &theirs, founder)?;
            let data = data.to_owned();
            let kept = tokio::task::spawn_blocking(move || Promise::keep(&data, founder)).await;
            kept.map_err(|error| error.to_string())?.map_err(|error| format!("{error:#}"))?;
            Said::Promised
        }
        Question::Join(_) => return Err("it is of no cluster yet".to_owned()),
    };
    Ok(encode(&said).into())
}

async fn ask(seed: &str, secret: &Secret, question: &Question) -> Result<Said, String> {
    let answer = ask_seed(seed, secret, &encode(question)).await.map_err(|error| error.to_string())?;
    decode(&answer)
}

async fn look(seeds: &Seeds, secret: &Secret) -> BTreeMap<String, Result<Seen, String>> {
    let question = Question::Look(seeds.clone());
    let asked = seeds.list.iter().map(|seed| async {
        let said = match ask(seed, secret, &question).await {
            Ok(Said::Seen(seen)) => Ok(seen),
            Ok(_) => Err("it answers something else".to_owned()),
            Err(why) => Err(why),
        };
        (seed.clone(), said)
    });
    join_all(asked).await.into_iter().collect()
}

async fn look_until_done(config: &Config, seeds: &Seeds, secret: &Secret, me: (NodeId, u128)) -> anyhow::Result<()> {
    let mut said: Option<(String, Instant)> = None;
    tracing::info!(
        seeds = seeds.list.join(","),
        expect = seeds.expect,
        "this node asks the seeds whether there is a cluster, or they found one"
    );
    loop {
        let promise = Promise::read(&config.data)?;
        let why = match next(seeds, me, promise, &look(seeds, secret).await) {
            Next::Join(clusters) => match join_one(config, secret, &clusters).await {
                Ok(()) => return Ok(()),
                Err(why) => why,
            },
            Next::Found { promises } => match have_promised(config, seeds, secret, me.0, &promises).await {
                Ok(()) => {
                    tracing::info!(node = %me.0, seeds = seeds.list.join(","), "all seeds agree: this node founds the cluster");
                    return Ok(());
                }
                Err(why) => why,
            },
            Next::Wait(why) => why,
        };
        let is_new = said.as_ref().is_none_or(|(before, at)| *before != why || at.elapsed() > SAY_EVERY);
        if is_new {
            tracing::warn!(why, "there is no cluster of the seeds to be part of yet; it is tried again");
            said = Some((why, Instant::now()));
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Has the founders promise, this machine first: whoever asked for promises keeps to its own.
async fn have_promised(config: &Config, seeds: &Seeds, secret: &Secret, me: NodeId, founders: &[String]) -> Result<(), String> {
    Promise::keep(&config.data, me).map_err(|error| format!("{error:#}"))?;
    for seed in founders {
        match ask(seed, secret, &Question::Promise(seeds.clone(), me)).await {
            Ok(Said::Promised) => {}
            Ok(_) => return Err(format!("{seed} answers something else")),
            Err(why) => return Err(format!("{seed} does not promise to follow: {why}")),
        }
    }
    Ok(())
}

async fn join_one(config: &Config, secret: &Secret, clusters: &[String]) -> Result<(), String> {
    let mut last = String::new();
    for seed in clusters {
        let applicant = Applicant::open(&config.data).map_err(|error| format!("{error:#}"))?;
        let application = join::application(&applicant, None, config.advertised_host().map(str::to_owned), config.peers().port());
        match ask(seed, secret, &Question::Join(application)).await {
            Ok(Said::Welcome { welcome, ca }) => {
                let node = applicant.node;
                applicant.keep(&welcome, &ca).map_err(|error| format!("{error:#}"))?;
                tracing::info!(%node, seed, "this node has joined the cluster of the seeds");
                return Ok(());
            }
            Ok(_) => last = format!("{seed} answers something else"),
            Err(why) => last = format!("{seed} does not let this node in: {why}"),
        }
    }
    Err(last)
}

/// Answers machines that know the secret, now that this one is of a cluster.
pub(crate) fn serve(api: &Api, seeds: Seeds, secret: Secret) {
    let held = api.clone();
    api.peers.endpoint.serve_seeds(secret, move |question, from| {
        let (api, seeds) = (held.clone(), seeds.clone());
        async move {
            let said = match decode(&question)? {
                Question::Look(_) => Said::Seen(Seen { start: 0, seeds, has_cluster: true, promised: None }),
                Question::Promise(..) => return Err("it has a cluster".to_owned()),
                Question::Join(asked) => {
                    let (welcome, ca) = join::admit_seed(&api, asked, &from.to_string()).await?;
                    Said::Welcome { welcome, ca }
                }
            };
            Ok(encode(&said).into())
        }
    });
}

/// Makes the token by which a node is admitted that knows the secret.
pub(crate) async fn token(api: &Api) -> Result<shoal_state::TokenId, api::Error> {
    let end = shoal_state::Timestamp(api.now().0.saturating_add(TOKEN_MS));
    api::token::make(api, "a seed of this cluster", TokenPurpose::Node, Some(end)).await.map(|(id, _)| id)
}

/// Opens the port of peers, which a moment ago may have been that of a machine without a cluster.
pub(crate) async fn port_again<T>(was_open: bool, mut open: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + if was_open { PORT_WAIT } else { Duration::ZERO };
    loop {
        match open() {
            Err(error) if Instant::now() < deadline && error.downcast_ref().is_some_and(is_bind) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return opened,
        }
    }
}

fn is_bind(error: &shoal_peer::Error) -> bool {
    matches!(error, shoal_peer::Error::Bind { .. })
}

/// Reads what all machines were given, or says what is missing.
pub(crate) fn given(config: &Config) -> anyhow::Result<Option<(Seeds, Secret)>> {
    if config.seeds.is_empty() {
        anyhow::ensure!(config.expect == 0, "--expect needs --seeds: name the machines that are to become one cluster");
        return Ok(None);
    }
    anyhow::ensure!(config.join.is_empty(), "--seeds and --join exclude each other: a cluster that is there is joined by --join");
    let token = config.token().context("cannot read the secret of the seeds")?;
    anyhow::ensure!(
        !token.is_empty(),
        "--seeds needs a secret that all machines share: --token or --token-file, as `openssl rand -hex 32` prints one"
    );
    anyhow::ensure!(!token.starts_with("shoal-join-"), "this token lets one node join by --join; --seeds needs a secret of your own");
    Ok(Some((Seeds::new(&config.seeds, config.expect, config.peers().port())?, Secret::new(&token)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeds(list: &[&str]) -> Seeds {
        Seeds::new(&list.iter().map(|seed| (*seed).to_owned()).collect::<Vec<_>>(), 0, 7470).unwrap()
    }

    #[tokio::test]
    async fn a_promise_is_kept_on_disk_and_made_to_one_node_only() {
        let dir = tempfile::tempdir().unwrap();
        let list = seeds(&["a", "b", "c"]);
        let promise = |number| encode(&Question::Promise(seeds(&["a", "b", "c"]), NodeId::from_random(number)));
        let said = answer_empty(dir.path(), &list, 5, &promise(1)).await.unwrap();
        assert!(matches!(decode(&said), Ok(Said::Promised)) && dir.path().join("keys/promised.json").exists());
        answer_empty(dir.path(), &list, 5, &promise(1)).await.unwrap();
        let said = answer_empty(dir.path(), &list, 5, &promise(2)).await.unwrap_err();
        assert!(said.contains("has promised to follow node"), "{said}");
        let said = answer_empty(dir.path(), &list, 5, &encode(&Question::Look(list.clone()))).await.unwrap();
        let Ok(Said::Seen(seen)) = decode(&said) else { panic!("it says something else") };
        assert_eq!((seen.promised, seen.start, seen.has_cluster), (Some(NodeId::from_random(1)), 5, false));
    }
}
