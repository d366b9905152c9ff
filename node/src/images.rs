//! Images in the cluster: builds of this node, their outcomes as records of the state, and the cache of build steps.
//!
//! Equal builds are one ([`Builder`]). A build goes on for a moment when its last client leaves, for another to join, and is
//! ended then; what it has finished stays known. Its log stays with the node that built it for a while, its outcome becomes
//! a record that every node knows.

mod request;
mod unfinished;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_image::build::{BuildHandle, BuildRequest, Builder, ClientWanted, ImageMetadata, ImageRecord as Built, Outcome};
use shoal_image::cache::{Cache, CacheError, LayerRecord};
use shoal_image::config::ImageConfig;
use shoal_image::log::{BuildLog, Stream};
use shoal_state::model::{AppState, Function, Image, Layer};
use shoal_state::{AppId, Command, Digest, FunctionId, ImageId, State, TaskId};
use shoal_worker::log::{self, LogStore};
use tokio::sync::watch;

use crate::api::{Api, Error, Kept, blocking, mount, now};
use crate::cluster::Cluster;
use crate::upkeep::{Thing, Upkeep};

pub(crate) use request::request;
pub(crate) use unfinished::{Asked, Unfinished};

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
    /// When its build began, in milliseconds since 1970.
    pub(crate) started_ms: u64,
    /// When it had ended, and every line of it was said.
    pub(crate) finished_ms: u64,
}

/// Returns under which ids the lines of an image's builds are kept: clients read them as those of an app's task.
pub(crate) fn build_log(image: ImageId) -> (AppId, TaskId) {
    let name: [&[u8]; 2] = [b"the log of a build", &image.bits().to_le_bytes()];
    (AppId::derive(&name), TaskId::derive(&name))
}

/// Keeps the lines of a build in the logs.
struct Lines {
    logs: LogStore,
    app: AppId,
    task: TaskId,
}

impl Lines {
    fn new(logs: LogStore, image: ImageId) -> Arc<Self> {
        let (app, task) = build_log(image);
        Arc::new(Self { logs, app, task })
    }
}

impl BuildLog for Lines {
    fn write(&self, stream: Stream, data: &str) {
        let stream = match stream {
            Stream::Stdout => log::Stream::Stdout,
            Stream::Stderr => log::Stream::Stderr,
            Stream::Info => log::Stream::System,
        };
        let line = log::Entry {
            timestamp_ns: now().0 * 1_000_000,
            stream,
            app: self.app,
            task: self.task,
            function: FunctionId::from_random(0),
            input: None,
            call: None,
            data: data.to_owned(),
        };
        if let Err(error) = self.logs.append(&line) {
            tracing::warn!(%error, "cannot keep a line of a build");
        }
    }
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
    upkeep: Upkeep,
}

impl StateCache {
    /// Keeps large records in `kept`.
    pub(crate) fn new(cluster: Cluster, kept: Kept, upkeep: Upkeep) -> Self {
        Self { cluster, kept, upkeep }
    }

    fn touch(&self, key: Digest) {
        self.upkeep.uses.touch(Thing::Layer(key), now().0 / 1000);
    }
}

impl Cache for StateCache {
    fn get(&self, key: Digest) -> BoxFuture<'_, Result<Option<LayerRecord>, CacheError>> {
        async move {
            let state = self.cluster.local();
            let Some(layer) = state.layers.get(&key) else { return Ok(None) };
            self.touch(key);
            let config = serde_json::from_slice(&self.kept.read(&layer.record).await?)?;
            Ok(Some(LayerRecord { manifest: layer.manifest, config }))
        }
        .boxed()
    }

    fn put(&self, key: Digest, record: LayerRecord) -> BoxFuture<'_, Result<(), CacheError>> {
        async move {
            let config = self.kept.keep(&serde_json::to_vec(&record.config)?).await?;
            let layer = Layer { manifest: record.manifest, record: config };
            self.touch(key);
            self.upkeep.promise(record.manifest).await?;
            self.cluster.propose(Command::PutLayer { key, layer }).await?;
            Ok(())
        }
        .boxed()
    }
}

/// How long a build goes on without anybody who waits for it: a client on a busy machine takes its time between two
/// questions, and one whose connection broke comes back.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);
/// The same when no app is left that asked for it: another may join.
const UNWANTED_AFTER: Duration = Duration::from_secs(5);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Who a build is for.
#[derive(Default)]
struct Wanted {
    /// How many wait for it now.
    waiting: watch::Sender<usize>,
    /// The apps that asked for it.
    apps: Mutex<BTreeSet<AppId>>,
}

type Audience = Arc<Wanted>;

/// A build whose outcome is to be put into the state.
#[derive(Clone)]
struct Recording {
    key: Digest,
    /// True once it is there.
    recorded: watch::Receiver<bool>,
    audience: Audience,
}

/// A build, for somebody who waits for it. While this is held the build is not given up.
pub(crate) struct Joined {
    /// Its log and its end.
    pub(crate) build: BuildHandle,
    /// True once its outcome is in the state.
    pub(crate) recorded: watch::Receiver<bool>,
    audience: Audience,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.audience.waiting.send_modify(|waiting| *waiting = waiting.saturating_sub(1));
    }
}

/// The builds of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Images {
    builder: Builder,
    /// Builds whose outcome is not in the state yet; true once it is.
    recording: Arc<Mutex<HashMap<ImageId, Recording>>>,
    unfinished: Unfinished,
}

impl Images {
    /// Builds with `builder`.
    pub(crate) fn new(builder: Builder, unfinished: Unfinished) -> Self {
        Self { builder, recording: Arc::default(), unfinished }
    }

    /// Begins, or joins, the build that a client asks for, and returns its image.
    ///
    /// What it asks for is on disk before the build begins: a client is told of it, and may wait for it through a restart.
    pub(crate) async fn build(&self, api: &Api, id: ImageId, asked: Asked, wanted: BuildRequest) -> Result<(), Error> {
        let (unfinished, app) = (self.unfinished.clone(), asked.request.app_id.parse().ok());
        api.upkeep.secrets_used(&request::secrets_of(&asked.request)?, now().0 / 1000);
        blocking(move || unfinished.keep(id, &asked)).await?;
        self.start(api, id, wanted, app);
        Ok(())
    }

    /// Begins the build of an image anew that a former process of this node did not end; false when there is none.
    pub(crate) async fn resume(&self, api: &Api, id: ImageId) -> Result<bool, Error> {
        let unfinished = self.unfinished.clone();
        let Some(Asked { request, apart }) = blocking(move || unfinished.find(id)).await else { return Ok(false) };
        let app = request.app_id.parse().ok();
        let mut wanted = self::request(api, request).await?;
        wanted.apart = apart;
        tracing::info!(image = %id, "building on for a client that waits since before this start");
        self.start(api, id, wanted, app);
        Ok(true)
    }

    /// Joins the build of an image, or starts one. Its outcome is put into the state, whoever still waits.
    fn start(&self, api: &Api, id: ImageId, request: BuildRequest, app: Option<AppId>) {
        let key = request.key();
        let mut recording = self.recording.lock();
        recording.retain(|_, build| !*build.recorded.borrow() || self.builder.find(build.key).is_some());
        if let Some(build) = recording.get(&id).filter(|build| !*build.recorded.borrow()) {
            build.audience.apps.lock().extend(app);
            return;
        }
        let handle = self.builder.get_or_start(request, Some(Lines::new(api.logs.clone(), id)));
        let (send, recorded) = watch::channel(false);
        let audience = Audience::default();
        audience.apps.lock().extend(app);
        recording.insert(id, Recording { key, recorded, audience: Arc::clone(&audience) });
        let (api, builder, unfinished) = (api.clone(), self.builder.clone(), self.unfinished.clone());
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = handle.wait() => outcome,
                () = abandoned(&api, &audience) => {
                    builder.abandon(key);
                    handle.wait().await
                }
            };
            if let Err(error) = record(&api, id, &handle, outcome).await {
                tracing::error!(image = %id, %error, "cannot record the outcome of a build");
            } else {
                unfinished.forget(id);
            }
            let _ = send.send(true);
        });
    }

    /// Joins the build of an image that runs here or ended lately.
    pub(crate) fn join(&self, id: ImageId) -> Option<Joined> {
        let Recording { key, recorded, audience } = self.recording.lock().get(&id).cloned()?;
        let build = self.builder.find(key)?;
        audience.waiting.send_modify(|waiting| *waiting += 1);
        Some(Joined { build, recorded, audience })
    }

    /// Returns the tree of the client for containers of an image; the first image of its kind makes it.
    pub(crate) async fn client_tree(&self, wanted: &ClientWanted, image: &LayerRecord) -> Result<Digest, Error> {
        let gathered = self.builder.client_tree(wanted, image, &Traced).await;
        gathered.map_err(Error::failed(format!("cannot gather client {} for {}", wanted.version, wanted.abi)))
    }

    /// Returns the tree of a mount named `python-build-standalone.…`: an interpreter that this machine has.
    pub(crate) async fn standalone_python(&self, name: &str) -> Result<Digest, Error> {
        let made = self.builder.standalone_python(name, &Traced).await;
        made.map_err(|error| match error {
            shoal_image::Error::NoMount { .. } => Error::NotFound(error.to_string()),
            error => Error::Failed { attempted: format!("cannot make mount {name}"), source: error.into() },
        })
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

/// Returns when nobody has waited for a build for a while.
async fn abandoned(api: &Api, audience: &Audience) {
    let mut waiting = audience.waiting.subscribe();
    loop {
        if waiting.wait_for(|waiting| *waiting == 0).await.is_err() {
            return;
        }
        let left = Instant::now();
        while tokio::time::timeout(LOOK_EVERY, waiting.wait_for(|waiting| *waiting > 0)).await.is_err() {
            let patience = if audience.is_wanted(&api.local()) { ABANDONED_AFTER } else { UNWANTED_AFTER };
            if left.elapsed() >= patience {
                return;
            }
        }
    }
}

impl Wanted {
    /// Whether an app is there that asked for the build; one that nobody named an app for counts as wanted.
    fn is_wanted(&self, state: &State) -> bool {
        let apps = self.apps.lock();
        apps.is_empty() || apps.iter().any(|app| state.apps.get(app).is_some_and(|app| app.state != AppState::Stopped))
    }
}

async fn record(api: &Api, id: ImageId, handle: &BuildHandle, outcome: Outcome) -> Result<(), Error> {
    let (manifest, mut record) = match outcome {
        Ok(built) => (Some(built.manifest), record_of(&built)),
        Err(error) => (None, ImageRecord { failure: Some(error.full_text()), ..ImageRecord::default() }),
    };
    let (started, finished) = handle.times();
    record.started_ms = milliseconds(started);
    // The last line is of the same millisecond, and who reads up to a time does not get what is of that time.
    record.finished_ms = milliseconds(finished.unwrap_or_else(SystemTime::now)) + 1;
    let json = serde_json::to_vec(&record).map_err(Error::failed("cannot encode an image's record"))?;
    api.upkeep.uses.touch(Thing::Image(id), api.store.now());
    if let Some(manifest) = manifest {
        api.promise(manifest).await?;
    }
    let image = Image { key: handle.key(), manifest, record: api.keep_definition(&json).await?, built: now() };
    api.propose(Command::PutImage { id, image }).await
}

fn record_of(built: &Built) -> ImageRecord {
    ImageRecord { config: built.config.clone(), metadata: built.metadata.clone(), ..ImageRecord::default() }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the image of a function.
pub(crate) fn image_of(state: &State, function: &Function) -> Result<(ImageId, Image), Error> {
    let id = function.image.ok_or_else(|| Error::Precondition(format!("function '{}' names no image", function.tag)))?;
    let image = state.images.get(&id).ok_or_else(|| Error::NotFound(format!("Image '{id}' not found")))?;
    Ok((id, image.clone()))
}

/// Says that nothing can run in an image.
pub(crate) fn no_python(image: ImageId) -> Error {
    Error::Precondition(format!(
        "image {image} has no python on its PATH: give it one with add_python=, as in Image.from_registry(…, add_python=\"3.12\")"
    ))
}

/// Returns what lies over an image in the containers of a function: the client, and the function's own files.
pub(crate) async fn over(api: &Api, state: &State, function: &Function, image: &Image, record: &ImageRecord) -> Result<Vec<Digest>, Error> {
    if let Some(image) = function.image {
        api.upkeep.uses.touch(Thing::Image(image), api.store.now());
    }
    let [_, client] = base(api, state, function, image, record).await?;
    Ok(std::iter::once(client).chain(files(state, function)).collect())
}

/// Returns what the roots of a function's containers begin with: its image, and the client over it.
pub(crate) async fn base(api: &Api, state: &State, function: &Function, image: &Image, record: &ImageRecord) -> Result<[Digest; 2], Error> {
    let manifest = image.manifest.ok_or_else(|| Error::Precondition("its image was not built".to_owned()))?;
    let metadata = &record.metadata;
    let wanted = ClientWanted {
        version: mount::client_version(state, &function.mounts).unwrap_or_else(|| mount::CLIENT_VERSION.to_owned()),
        abi: metadata.python_abi.clone().unwrap_or_default(),
        musl: metadata.libc_version_info.as_deref().is_some_and(|libc| libc.starts_with("musl")),
        python: metadata.python_path.clone().unwrap_or_default(),
    };
    let client = api.images.client_tree(&wanted, &LayerRecord { manifest, config: record.config.clone() }).await?;
    Ok([manifest, client])
}

/// Returns the function's own files, in the order in which they lie over the client.
pub(crate) fn files(state: &State, function: &Function) -> Vec<Digest> {
    let mut mounts = function.mounts.clone();
    mounts.sort_unstable();
    mounts.iter().filter_map(|mount| state.mounts.get(mount)).map(|mount| mount.manifest).collect()
}
