//! Images in the cluster: builds of this node, their outcomes as records of the state, and the cache of build steps.
//!
//! A build goes on when its client leaves, and equal ones are one ([`Builder`]); its log stays with the node that built it
//! for a while, its outcome becomes a record that every node knows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_image::build::{BaseImage, BuildHandle, BuildRequest, BuildSecret, Builder, ClientWanted, ImageMetadata, ImageRecord as Built};
use shoal_image::cache::{Cache, CacheError, LayerRecord};
use shoal_image::config::ImageConfig;
use shoal_image::log::{BuildLog, Stream};
use shoal_proto::modal_client as pb;
use shoal_state::model::{Image, Layer};
use shoal_state::{Command, Digest, ImageId, MountId, SecretId, State};
use tokio::sync::watch;

use crate::api::{Api, Error, Kept, now, secret};
use crate::cluster::Cluster;

/// What is kept of an image beside its tree, as JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ImageRecord {
    /// What a container of it starts with.
    pub(crate) config: ImageConfig,
    /// What was found in it.
    pub(crate) metadata: ImageMetadata,
    /// Why the build failed, if it did.
    pub(crate) failure: Option<String>,
}

/// Reads what is kept of an image.
pub(crate) async fn read_record(api: &Api, image: &Image) -> Result<ImageRecord, Error> {
    let bytes = api.definition(&image.record).await?;
    serde_json::from_slice(&bytes).map_err(Error::failed("cannot read an image's record"))
}

/// The results of build steps, in the replicated state.
pub(crate) struct StateCache {
    cluster: Cluster,
    kept: Kept,
}

impl StateCache {
    /// Keeps large records in `kept`.
    pub(crate) fn new(cluster: Cluster, kept: Kept) -> Self {
        Self { cluster, kept }
    }
}

impl Cache for StateCache {
    fn get(&self, key: Digest) -> BoxFuture<'_, Result<Option<LayerRecord>, CacheError>> {
        async move {
            let state = self.cluster.local();
            let Some(layer) = state.layers.get(&key) else { return Ok(None) };
            let config = serde_json::from_slice(&self.kept.read(&layer.record).await?)?;
            Ok(Some(LayerRecord { manifest: layer.manifest, config }))
        }
        .boxed()
    }

    fn put(&self, key: Digest, record: LayerRecord) -> BoxFuture<'_, Result<(), CacheError>> {
        async move {
            let config = self.kept.keep(&serde_json::to_vec(&record.config)?).await?;
            let layer = Layer { manifest: record.manifest, record: config };
            self.cluster.propose(Command::PutLayer { key, layer }).await?;
            Ok(())
        }
        .boxed()
    }
}

/// The key of a build, and what tells when its outcome is in the state.
type Recording = (Digest, watch::Receiver<bool>);

/// The builds of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Images {
    builder: Builder,
    /// Builds whose outcome is not in the state yet; true once it is.
    recording: Arc<Mutex<HashMap<ImageId, Recording>>>,
}

impl Images {
    /// Builds with `builder`.
    pub(crate) fn new(builder: Builder) -> Self {
        Self { builder, recording: Arc::default() }
    }

    /// Joins the build of an image, or starts one. Its outcome is put into the state, whoever still waits.
    pub(crate) fn start(&self, api: &Api, id: ImageId, request: BuildRequest) {
        let key = request.key();
        let mut recording = self.recording.lock();
        if recording.get(&id).is_some_and(|(_, recorded)| !*recorded.borrow()) {
            return;
        }
        let handle = self.builder.get_or_start(request, None);
        let (send, recorded) = watch::channel(false);
        recording.insert(id, (key, recorded));
        let api = api.clone();
        tokio::spawn(async move {
            if let Err(error) = record(&api, id, &handle).await {
                tracing::error!(image = %id, %error, "cannot record the outcome of a build");
            }
            let _ = send.send(true);
        });
    }

    /// Returns the build of an image that runs here or ended lately, and what tells when its outcome is in the state.
    pub(crate) fn find(&self, id: ImageId) -> Option<(BuildHandle, watch::Receiver<bool>)> {
        let (key, recorded) = self.recording.lock().get(&id).cloned()?;
        Some((self.builder.find(key)?, recorded))
    }

    /// Returns the tree of the client for containers of an image; the first image of its kind makes it.
    pub(crate) async fn client_tree(&self, wanted: &ClientWanted, image: &LayerRecord) -> Result<Digest, Error> {
        let gathered = self.builder.client_tree(wanted, image, &Traced).await;
        gathered.map_err(Error::failed(format!("cannot gather client {} for {}", wanted.version, wanted.abi)))
    }

    /// Ends all builds.
    pub(crate) fn close(&self) {
        self.builder.close();
    }
}

/// A log for work that no client waits for: the node's own.
struct Traced;

impl BuildLog for Traced {
    fn write(&self, _stream: Stream, data: &str) {
        tracing::debug!(said = data.trim_end(), "making what containers need");
    }
}

async fn record(api: &Api, id: ImageId, handle: &BuildHandle) -> Result<(), Error> {
    let (manifest, record) = match handle.wait().await {
        Ok(built) => (Some(built.manifest), record_of(&built)),
        Err(error) => (None, ImageRecord { failure: Some(error.full_text()), ..ImageRecord::default() }),
    };
    let json = serde_json::to_vec(&record).map_err(Error::failed("cannot encode an image's record"))?;
    let image = Image { key: handle.key(), manifest, record: api.keep_definition(&json).await?, built: now() };
    api.propose(Command::PutImage { id, image }).await
}

fn record_of(built: &Built) -> ImageRecord {
    ImageRecord { config: built.config.clone(), metadata: built.metadata.clone(), failure: None }
}

/// Reads what a client asks for into the builder's terms: ids that are made anew for unchanged things become what stays.
pub(crate) async fn request(api: &Api, wire: pb::ImageGetOrCreateRequest) -> Result<BuildRequest, Error> {
    let state = api.local();
    let image = wire.image.unwrap_or_default();
    if image.build_function.is_some() || !wire.build_function_id.is_empty() {
        return Err(Error::Unimplemented("Shoal does not run functions while it builds images yet (Image.run_function)".to_owned()));
    }
    let mut bases = BTreeMap::new();
    for base in &image.base_images {
        bases.insert(base.docker_tag.clone(), base_image(api, &state, &base.image_id).await?);
    }
    Ok(BuildRequest {
        commands: image.dockerfile_commands,
        bases,
        context: context(&state, &image.context_mount_id)?,
        context_files: image.context_files.into_iter().map(|file| (file.filename, file.data.to_vec())).collect(),
        build_args: image.build_args.into_iter().collect(),
        secrets: image.secret_ids.iter().map(|id| build_secret(api, &state, id)).collect::<Result<_, _>>()?,
        builder_version: wire.builder_version,
        force_build: wire.force_build,
        ignore_cache: wire.ignore_cache,
        ..BuildRequest::default()
    })
}

async fn base_image(api: &Api, state: &State, id: &str) -> Result<BaseImage, Error> {
    let parsed: ImageId = id.parse()?;
    let absent = || Error::NotFound(format!("Image '{id}' not found"));
    let image = state.images.get(&parsed).ok_or_else(absent)?;
    let manifest = image.manifest.ok_or_else(|| Error::Precondition(format!("image {id} was not built")))?;
    let record = read_record(api, image).await?;
    Ok(BaseImage { key: image.key, record: LayerRecord { manifest, config: record.config } })
}

fn context(state: &State, id: &str) -> Result<Option<Digest>, Error> {
    if id.is_empty() {
        return Ok(None);
    }
    let parsed: MountId = id.parse()?;
    let mount = state.mounts.get(&parsed).ok_or_else(|| Error::NotFound(format!("Mount '{id}' not found")))?;
    Ok(Some(mount.manifest))
}

fn build_secret(api: &Api, state: &State, id: &str) -> Result<BuildSecret, Error> {
    let parsed: SecretId = id.parse()?;
    let found = state.secrets.get(&parsed).ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
    let identity = if found.name.is_empty() { found.content_hash } else { Digest::of(id.as_bytes()) };
    Ok(BuildSecret { identity, env: secret::open_all(api, state, &[parsed])? })
}
