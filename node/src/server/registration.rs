//! What a node tells its cluster when it starts: that it did, what it has, and what every cluster must have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shoal_state::model::{self, Environment, Member, Node, Resources};
use shoal_state::{BootId, Command, ENVIRONMENT_DEFAULT, EnvironmentId, State, VERSION_KNOWN};

use crate::api;
use crate::cluster::Cluster;
use crate::config::Config;
use crate::departure::Departed;
use crate::keys::Keys;
use crate::peers::Peers;
use crate::room::overlays_budget;

/// How long a node that starts waits for the leader of its cluster.
const LEADER_WAIT: Duration = Duration::from_secs(50);
/// How much of a machine's memory containers may use, in tenths.
const MEMORY_TENTHS: u64 = 9;
/// The version of the rules from which nodes say of which kind their GPUs are.
const GPUS_SINCE: u32 = 7;

/// Tells the cluster of this start, and makes what every cluster has.
pub(super) async fn register(config: &Config, cluster: &Cluster, keys: &Keys, peers: &Peers, boot: BootId) -> anyhow::Result<()> {
    let started = Node::new(config.node_name(), boot, capacity(config)?, api::now());
    let node = Node { address: config.api.to_string(), ..started };
    let state = latest(cluster, peers).await?;
    if let Some(removed) = state.removed.get(&cluster.node) {
        if !cluster.raft().votes(cluster.node) {
            return Err(Departed::removed(cluster.node, removed).into());
        }
        // It may even have to lead, and to see to it that others vote.
        tracing::warn!(
            "this node was removed from its cluster, which needs its vote still: it goes on until another one votes in its place"
        );
        return Ok(());
    }
    let alone = state.nodes.keys().chain(state.members.keys()).all(|id| *id == cluster.node);
    if alone && state.version() < VERSION_KNOWN {
        // Every member knows it: this one is all there are. What follows may need it.
        cluster.propose(Command::SetVersion { version: VERSION_KNOWN }).await?;
    }
    let generation = state.cluster.as_ref().map_or(keys.cluster.generation, |cluster| cluster.generation);
    if generation < keys.cluster.generation {
        // It was made the only one of its cluster while it did not run: the state follows.
        if state.version() < VERSION_KNOWN {
            cluster.propose(Command::SetVersion { version: VERSION_KNOWN }).await?;
        }
        let (survivor, generation) = (cluster.node, keys.cluster.generation);
        cluster.propose(Command::RecoverCluster { survivor, generation, at: api::now() }).await?;
        tracing::warn!(generation, "the cluster goes on with this node alone");
    }
    let named = model::Cluster { id: keys.cluster.id, generation: keys.cluster.generation, founded: api::now() };
    let member = Member {
        address: peers.address.clone(),
        version: VERSION_KNOWN,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        joined: api::now(),
    };
    let mut commands =
        vec![Command::FoundCluster { cluster: named }, Command::AdmitNode { id: cluster.node, member, token: None, at: api::now() }];
    commands.push(Command::PutNode { id: cluster.node, node });
    let kinds: Vec<String> = config.gpu.kinds()?.iter().map(|kind| kind.as_str().to_owned()).collect();
    let now = cluster.local();
    if now.version() >= GPUS_SINCE && now.gpus.get(&cluster.node).map_or(&[][..], Vec::as_slice) != kinds {
        commands.push(Command::PutGpus { id: cluster.node, kinds });
    }
    if state.environments.is_empty() {
        let id = EnvironmentId::derive(&[ENVIRONMENT_DEFAULT.as_bytes()]);
        let environment = Environment::new(id, ENVIRONMENT_DEFAULT, api::now());
        commands.push(Command::CreateEnvironment { environment });
    }
    commands.push(Command::InitShards { home: cluster.node });
    for answer in cluster.propose_all(commands).await? {
        answer.context("cannot register this node")?;
    }
    Ok(())
}

/// Reads the state as the cluster has it, however long the leader takes to find this node.
async fn latest(cluster: &Cluster, peers: &Peers) -> anyhow::Result<Arc<State>> {
    let deadline = Instant::now() + LEADER_WAIT;
    loop {
        match cluster.read_latest().await {
            Ok(state) => return Ok(state),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| {
                    format!("waited {LEADER_WAIT:?} for the leader of the cluster to find this node at {}/udp", peers.address)
                });
            }
            Err(error) => {
                // Who was removed meanwhile would wait in vain.
                if let Some(refused) = peers.refusal(cluster.raft()).await {
                    return Err(refused.into());
                }
                tracing::warn!(%error, "this node waits for the leader of its cluster");
            }
        }
    }
}

/// Returns what containers may use on this machine.
fn capacity(config: &Config) -> anyhow::Result<Resources> {
    let cores = std::thread::available_parallelism().context("cannot count the machine's cores")?.get();
    let memory = rustix::system::sysinfo();
    let machine_bytes = memory.totalram * u64::from(memory.mem_unit);
    Ok(Resources {
        cpu_milli: if config.cpu_milli == 0 { u32::try_from(cores * 1000).unwrap_or(u32::MAX) } else { config.cpu_milli },
        memory_bytes: if config.memory_bytes == 0 { machine_bytes / 10 * MEMORY_TENTHS } else { config.memory_bytes },
        gpus: u32::try_from(config.gpu.kinds()?.len()).context("too many GPUs")?,
        disk_bytes: overlays_budget(&config.data, config.disk.overlays_bytes, 0).context("cannot look at the disk")?,
        ..Resources::default()
    })
}
