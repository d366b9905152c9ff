//! How those parts of a node are opened that take more than their folder.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use shoal_fs::{StoreSource, Trees};
use shoal_image::bases::Bases;
use shoal_image::build::{Builder, BuilderParts, Containers};
use shoal_image::cache::Cache;
use shoal_raft::Raft;
use shoal_runtime::{Engine, EngineConfig, NetworkConfig};
use shoal_storage::store::Store;
use tokio_util::sync::CancellationToken;

use crate::api::{Api, transport};
use crate::chunks::{Others, PeerChunks};
use crate::cluster::Cluster;
use crate::config::Config;
use crate::copies::Copies;
use crate::keys::Keys;
use crate::peers::Peers;

/// Opens Raft; an empty node that did not join a cluster becomes one by itself.
pub(super) async fn consensus(config: &Config, keys: &Keys, peers: &Peers) -> anyhow::Result<Cluster> {
    let alone = shoal_raft::Options::alone(config.data.join("raft"), keys.node);
    let options = shoal_raft::Options { address: peers.address.clone(), transport: peers.transport(), ..alone };
    let raft = Raft::open(options).await.context("cannot open the consensus log")?;
    peers.serve_raft(&raft);
    if !keys.has_joined {
        raft.bootstrap_alone().await.context("cannot form a cluster of one")?;
    }
    Ok(Cluster::new(raft, keys.node))
}

/// Opens the way of chunks to and from the other members.
pub(super) fn copies(config: &Config, cluster: &Cluster, peers: &Peers, store: &Store) -> Copies {
    let raft = cluster.raft().clone();
    let members = move || raft.local().members.iter().map(|(id, member)| (*id, member.address.clone())).collect();
    let lost_after = Duration::from_secs(config.repair.after_seconds);
    let others = Others::new(cluster.node, peers.endpoint.clone(), Arc::new(members), lost_after);
    Copies::new(PeerChunks::start(&others, store, config.copies), config.copies, config.repair)
}

/// Opens the builder of images: its bases, its cache in the state, its containers.
pub(super) fn builder(
    config: &Config,
    store: &Store,
    cache: Arc<dyn Cache>,
    engine: &Engine,
    trees: &Arc<Trees>,
) -> anyhow::Result<Builder> {
    let certificates =
        config.egress().ca_bundle.as_ref().map(std::fs::read).transpose().context("cannot read the certificates of images.ca_bundle")?;
    let bases = Bases::new(config.images.bases(), store.clone(), Arc::clone(&cache), config.data.join("images/bases"), certificates);
    Builder::open(BuilderParts {
        store: store.clone(),
        cache,
        bases: Arc::new(bases.context("cannot open the sources of base images")?),
        containers: Some(Containers { trees: Arc::clone(trees), engine: engine.clone() }),
        work_dir: config.data.join("images/work"),
        cache_dir: config.data.join("images/cache"),
        config: config.images.build(),
    })
    .context("cannot open the builder of images")
}

pub(super) fn engine_config(config: &Config) -> EngineConfig {
    let mut engine = EngineConfig::new(config.data.join("runtime"));
    engine.runsc.clone_from(&config.runsc);
    let network = NetworkConfig {
        node_ports: vec![config.api.port(), config.web.port()],
        resolvers: (!config.dns.is_empty()).then(|| config.dns.clone()),
        ..NetworkConfig::default()
    };
    engine.network = Some(network);
    engine
}

/// Lets containers reach this node's API at their gateway's address, where the API does not listen on every address.
pub(super) fn containers_door(
    api: &Api,
    engine: &Engine,
    address: std::net::SocketAddr,
    connections: usize,
    stop: &CancellationToken,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let Some(gateway) = engine.gateway_address() else { return Ok(tokio::spawn(async {})) };
    let inside = std::net::SocketAddr::from((gateway, address.port()));
    api.blobs.set_container_address(inside);
    if address.ip().is_unspecified() {
        return Ok(tokio::spawn(async {}));
    }
    let bound = std::net::TcpListener::bind(inside).with_context(|| format!("cannot listen on {inside} for containers"))?;
    Ok(tokio::spawn(transport::serve(api.clone(), listener(bound)?, connections, stop.clone())))
}

/// Mounts the one filesystem that shows all trees.
pub(super) fn mount_trees(config: &Config, store: &Store) -> anyhow::Result<Arc<Trees>> {
    let mountpoint = config.data.join("trees");
    Trees::mount(&mountpoint, Arc::new(StoreSource::new(store.clone())))
        .map(Arc::new)
        .with_context(|| format!("cannot mount the trees of images at {}", mountpoint.display()))
}

/// Takes over a socket that listens.
pub(super) fn listener(listener: std::net::TcpListener) -> anyhow::Result<tokio::net::TcpListener> {
    listener.set_nonblocking(true).context("cannot use the API's socket")?;
    tokio::net::TcpListener::from_std(listener).context("cannot use the API's socket")
}
