//! Builds: a request becomes an image.
//!
//! A [`Builder`] is asked for an image by [`get_or_start`](Builder::get_or_start). Equal requests share one build, which
//! goes on when those who asked are gone; its log can be read from any place on ([`BuildHandle`]).
//!
//! How a build goes:
//! 1. The recipe is parsed and the stages that the image needs are *planned*: variables are filled in and each step gets a
//!    key ([`plan`]).
//! 2. From the end, the last step whose result the [cache](crate::cache) knows is found. What follows is executed.
//! 3. COPY, ADD and WORKDIR change the tree in memory ([`transfer`]). RUN needs a container ([`run`], [`sandbox`]): it shows the
//!    tree, runs commands one after the other, and after each its changes become the next tree ([`mod@capture`]). One container
//!    serves RUNs in a row; a COPY between them ends it.
//! 4. Each result is written to the store, made durable and remembered under its key.
//! 5. The finished image is asked for its Python and packages ([`probe`]).
//!
//! Instead of a recipe a request may have a [`function`]: it runs once, and what it leaves is the image.
//!
//! Nothing of the node gets into an image: certificates, proxies and scripts lie in a folder of their own and in
//! variables of the running command only.
//!
//! Caveats: a process that a command leaves in the background with its output closed lives until its container ends.
//! Files at addresses are fetched again only when the address or an earlier step changes.

mod add;
mod capture;
mod client_trees;
mod copy;
mod execute;
mod function;
mod handle;
mod init;
mod mounts;
mod plan;
mod probe;
mod request;
mod run;
mod sandbox;
mod settings;
mod transfer;
mod users;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use shoal_state::Digest;
use shoal_storage::manifest::Tree;
use shoal_storage::store::Store;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::bases::Bases;
use crate::cache::{Cache, KeyLocks, LayerRecord};
use crate::error::{Error, FileContext, Result, TreeContext, blocking};
use crate::log::BuildLog;

pub use capture::{CLIENT_PLACES, Hidden, capture};
pub use client_trees::ClientWanted;
pub use function::{BuildFunction, FunctionRun, FunctionRunner, PreparedFunction, RunnerFailure};
pub use handle::{BuildHandle, ImageRecord, LogEntry, LogPiece, Outcome};
pub use probe::ImageMetadata;
pub use request::{BaseImage, BuildGpu, BuildRequest, BuildSecret, BuildVolume, RegistryAccess};
pub use sandbox::{Containers, add_mount_points};
pub use settings::{BuildConfig, Egress, OWN_FOLDER};

use execute::Execution;
use handle::Build;

/// How long a finished build and its log can be found.
const FINISHED_KEPT: Duration = Duration::from_secs(30 * 60);

/// How many finished builds can be found at most.
const FINISHED_MAX: usize = 256;

/// What a builder works with.
pub struct BuilderParts {
    /// Where trees and bytes are kept.
    pub store: Store,
    /// What is known of earlier builds.
    pub cache: Arc<dyn Cache>,
    /// Where bases come from.
    pub bases: Arc<Bases>,
    /// Runs commands; without it recipes with RUN fail.
    pub containers: Option<Containers>,
    /// A folder for temporary files, emptied by [`Builder::open`].
    pub work_dir: PathBuf,
    /// A folder for what `--mount=type=cache` keeps.
    pub cache_dir: PathBuf,
    /// Settings.
    pub config: BuildConfig,
}

/// Builds images. Cheap to clone; all clones are one builder.
#[derive(Clone)]
pub struct Builder(Arc<Inner>);

pub(super) struct Inner {
    store: Store,
    cache: Arc<dyn Cache>,
    bases: Arc<Bases>,
    containers: Option<Containers>,
    work_dir: PathBuf,
    cache_dir: PathBuf,
    config: BuildConfig,
    cache_locks: KeyLocks,
    client_locks: KeyLocks,
    turns: Semaphore,
    builds: Mutex<HashMap<Digest, Running>>,
}

struct Running {
    build: Arc<Build>,
    task: AbortHandle,
}

impl Builder {
    /// Takes its parts and empties its work folder.
    pub fn open(parts: BuilderParts) -> Result<Builder> {
        let BuilderParts { store, cache, bases, containers, work_dir, cache_dir, config } = parts;
        crate::host::empty(&work_dir)?;
        std::fs::create_dir_all(&cache_dir).file("create", &cache_dir)?;
        let turns = Semaphore::new(config.max_parallel.max(1));
        let (cache_locks, client_locks, builds) = Default::default();
        Ok(Builder(Arc::new(Inner {
            store,
            cache,
            bases,
            containers,
            work_dir,
            cache_dir,
            config,
            cache_locks,
            client_locks,
            turns,
            builds,
        })))
    }

    /// Joins the running build of an equal request, or starts one. `sink` gets the log of a build that is started.
    ///
    /// The build goes on when the handle is dropped. Must be called within a tokio runtime.
    pub fn get_or_start(&self, request: BuildRequest, sink: Option<Arc<dyn BuildLog>>) -> BuildHandle {
        let key = request.key();
        let mut builds = self.0.builds.lock();
        forget_old(&mut builds);
        if let Some(running) = builds.get(&key)
            && running.build.finished_at().is_none()
        {
            return BuildHandle(running.build.clone());
        }
        let build = Arc::new(Build::new(key, sink));
        let task = tokio::spawn(self.0.clone().supervise(request, build.clone())).abort_handle();
        builds.insert(key, Running { build: build.clone(), task });
        BuildHandle(build)
    }

    /// Returns the tree of a mount named `python-build-standalone.…`: see [`Bases::standalone_python`].
    pub async fn standalone_python(&self, name: &str, log: &dyn BuildLog) -> Result<Digest> {
        self.0.bases.standalone_python(name, log).await
    }

    /// Returns the build of a key that runs or has ended lately.
    pub fn find(&self, key: Digest) -> Option<BuildHandle> {
        self.0.builds.lock().get(&key).map(|running| BuildHandle(running.build.clone()))
    }

    /// Ends a build that runs, as one that nobody waits for. Its container goes with it; steps that are done stay known.
    pub fn abandon(&self, key: Digest) {
        let builds = self.0.builds.lock();
        let Some(Running { build, task }) = builds.get(&key) else { return };
        if build.finished_at().is_none() {
            // Said before the task ends, which would call it another thing.
            build.finish(Err(Arc::new(Error::Abandoned)));
            task.abort();
        }
    }

    /// Ends all builds that run. Their containers go with them.
    pub fn close(&self) {
        let builds = std::mem::take(&mut *self.0.builds.lock());
        for Running { build, task } in builds.into_values() {
            task.abort();
            if build.finished_at().is_none() {
                build.finish(Err(Arc::new(Error::Stopping { what: "a build" })));
            }
        }
    }
}

/// Drops finished builds that are old or too many.
fn forget_old(builds: &mut HashMap<Digest, Running>) {
    let now = SystemTime::now();
    let age = |running: &Running| running.build.finished_at().map(|at| now.duration_since(at).unwrap_or_default());
    builds.retain(|_, running| age(running).is_none_or(|age| age < FINISHED_KEPT));
    while builds.len() > FINISHED_MAX {
        let oldest = builds.iter().filter_map(|(key, running)| Some((age(running)?, *key))).max();
        let Some((_, key)) = oldest else { return };
        builds.remove(&key);
    }
}

impl Inner {
    /// Runs a build and sees to it that it has an outcome, even if it panics.
    async fn supervise(self: Arc<Self>, request: BuildRequest, build: Arc<Build>) {
        struct Unfinished(Arc<Build>);
        impl Drop for Unfinished {
            fn drop(&mut self) {
                if self.0.finished_at().is_none() {
                    self.0.finish(Err(Arc::new(Error::Stopping { what: "a build" })));
                }
            }
        }
        let unfinished = Unfinished(build);
        let outcome = self.build(&request, &unfinished.0).await;
        if let Err(error) = &outcome {
            (&*unfinished.0 as &dyn BuildLog).info(error.full_text());
        }
        unfinished.0.finish(outcome.map(Arc::new).map_err(Arc::new));
    }

    async fn build(self: &Arc<Self>, request: &BuildRequest, build: &Build) -> Result<ImageRecord> {
        let log: &dyn BuildLog = build;
        if self.turns.available_permits() == 0 {
            log.info("waiting for another build of this node to end");
        }
        let _turn = self.turns.acquire().await.map_err(|_| Error::Stopping { what: "a build" })?;
        let built = match &request.function {
            Some(function) => self.build_function(request, function, log).await?,
            None => Execution::prepare(self, request, log, 0).await?.build().await?,
        };
        log.saving(1, 1);
        let metadata = self.probe(&built, &request.builder_version).await?;
        Ok(ImageRecord { key: request.key(), manifest: built.manifest, config: built.config, metadata })
    }

    fn containers(&self) -> Result<&Containers> {
        self.containers.as_ref().ok_or_else(|| Error::NotAnImage {
            reference: "the recipe".to_owned(),
            why: "has commands to run, and this node runs no containers".to_owned(),
        })
    }

    fn folder(&self) -> Result<tempfile::TempDir> {
        tempfile::tempdir_in(&self.work_dir).file("create a folder in", &self.work_dir)
    }

    async fn lookup(&self, key: Digest) -> Result<Option<LayerRecord>> {
        self.cache.get(key).await.map_err(|source| Error::Cache { action: "look up", key, source })
    }

    async fn remember(&self, key: Digest, record: LayerRecord) -> Result<()> {
        self.cache.put(key, record).await.map_err(|source| Error::Cache { action: "remember", key, source })
    }

    async fn read_tree(&self, manifest: Digest) -> Result<Arc<Tree>> {
        let store = self.store.clone();
        blocking("reading a tree", move || Ok(Arc::new(Tree::read(&store, &manifest).tree("an image")?))).await
    }
}
