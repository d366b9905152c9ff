//! Base images: what stands after FROM and is no stage, found or made.
//!
//! Sources are tried in this order, each for real, and what was tried is said in the build log:
//! 1. what the configuration names: a folder, a tar, an OCI layout ([`catalog`](BasesConfig));
//! 2. a registry;
//! 3. for well-known names, what can be made here: `debian:SUITE[-slim]` by mmdebstrap from the machine's own package
//!    sources, `python:X.Y…` from that and a relocatable copy of an interpreter of the machine, `…/astral-sh/uv` from
//!    its wheel. A Python series that the machine lacks is built from the distribution's source, as a recipe that the
//!    builder carries out ([`Base::Recipe`]).
//!
//! Whatever was made is a tree in the store, remembered in the build cache under a key of what was asked for, so a base
//! is made once per cluster.
//!
//! Caveats: an image made here has the C library of the suite but the Python of the machine, so `python:3.11.12-…` may
//! be 3.11.7, and an older suite than the machine's is replaced by the machine's, for the C library; the log says so.
//! Names without `-slim` get the slim image: compilers are not in it.

mod catalog;
mod debian;
pub mod interpreters;
mod layers;
mod local;
mod oci;
mod official;
mod python;
mod reference;
mod registry;
mod source;
mod wheel;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Path, Tree, put_content};
use shoal_storage::store::Store;

use crate::cache::{Cache, KeyLocks, LayerRecord};
use crate::config::ImageConfig;
use crate::error::{Error, Result, TreeContext, blocking};
use crate::host::{self, WorkFolder};
use crate::key::KeyBuilder;
use crate::log::BuildLog;

pub use catalog::{BaseRule, BaseSource, BasesConfig, RegistryConfig};
pub use reference::{DebianTag, ImageReference, PythonTag, UvVersion, WellKnown};
pub use registry::Credentials;

pub(crate) use layers::hex;

use interpreters::Interpreter;
use registry::Registries;

/// A base image.
#[derive(Debug, Clone)]
pub enum Base {
    /// Here it is.
    Ready(Box<LayerRecord>),
    /// It has to be built by this recipe first.
    Recipe(Vec<String>),
}

impl Base {
    fn ready(record: LayerRecord) -> Base {
        Base::Ready(Box::new(record))
    }
}

/// Finds and makes base images.
pub struct Bases {
    config: BasesConfig,
    registries: Registries,
    store: Store,
    cache: Arc<dyn Cache>,
    work_dir: PathBuf,
    locks: KeyLocks,
}

impl Bases {
    /// `work_dir` is a folder for temporary files, emptied here, with whoever still works in it; `ca_bundle` are certificates to trust beside those of
    /// the machine.
    pub fn new(config: BasesConfig, store: Store, cache: Arc<dyn Cache>, work_dir: PathBuf, ca_bundle: Option<Vec<u8>>) -> Result<Bases> {
        host::empty(&work_dir)?;
        let registries = Registries::new(config.registries.clone(), ca_bundle);
        Ok(Bases { config, registries, store, cache, work_dir, locks: KeyLocks::default() })
    }

    /// The key of a base: what was asked for and by whom, not what it turned out to be.
    pub fn key(reference: &ImageReference, credentials: &Credentials) -> Digest {
        let who = match credentials {
            Credentials::Anonymous => "",
            Credentials::Basic { username, .. } => username,
        };
        KeyBuilder::new("base image 1").text("name", reference.short()).text("user", who).finish()
    }

    /// Finds or makes a base.
    pub async fn resolve(&self, reference: &ImageReference, credentials: &Credentials, log: &dyn BuildLog) -> Result<Base> {
        let key = Self::key(reference, credentials);
        let _lock = self.locks.lock(key).await;
        if let Some(record) = self.cached(key).await? {
            return Ok(Base::Ready(record.into()));
        }
        log.info(format!("looking for the base image {}", reference.short()));
        let base = self.find(reference, credentials, log).await?;
        if let Base::Ready(record) = &base {
            self.remember(key, LayerRecord::clone(record)).await?;
        }
        Ok(base)
    }

    async fn find(&self, reference: &ImageReference, credentials: &Credentials, log: &dyn BuildLog) -> Result<Base> {
        let mut tried = Vec::new();
        let rule = self.config.rule(reference.short());
        let (mut ask_registry, mut make) = (!self.config.offline, true);
        match rule.as_ref().map(|rule| &rule.source) {
            Some(BaseSource::Registry) => make = false,
            Some(BaseSource::Recipe) => ask_registry = false,
            Some(_) => match self.configured(rule.clone().expect("there is a rule"), log).await {
                Ok(record) => return Ok(Base::Ready(record.into())),
                Err(error) => note(&mut tried, log, "configuration", &error),
            },
            None => {}
        }
        if ask_registry {
            match self.registries.pull(reference, credentials, &self.store, log).await {
                Ok((tree, config)) => return self.record(tree, config, reference.short()).await.map(Base::ready),
                Err(error) => note(&mut tried, log, "registry", &error),
            }
        }
        match reference.well_known() {
            Some(known) if make => match self.make(&known, log).await {
                Ok(base) => return Ok(base),
                Err(error) => note(&mut tried, log, "made here", &error),
            },
            _ => tried.push("made here: only python:X.Y[-slim][-SUITE], debian:SUITE[-slim] and …/astral-sh/uv can be".to_owned()),
        }
        Err(Error::NoBase { reference: reference.short().to_owned(), tried })
    }

    async fn configured(&self, rule: BaseRule, log: &dyn BuildLog) -> Result<LayerRecord> {
        let store = self.store.clone();
        let (tree, config) = match rule.source {
            BaseSource::Directory { path } => {
                log.info(format!("reading {path}"));
                let tree = blocking("reading a base", move || local::directory(path.as_ref(), &store)).await?;
                (tree, rule.config)
            }
            BaseSource::Tar { path } => {
                log.info(format!("reading {path}"));
                let tree = blocking("reading a base", move || local::tar(path.as_ref(), &store)).await?;
                (tree, rule.config)
            }
            BaseSource::OciLayout { path, tag } => {
                log.info(format!("reading {path}"));
                blocking("reading a base", move || local::oci_layout(path.as_ref(), tag.as_deref(), &store)).await?
            }
            BaseSource::Registry | BaseSource::Recipe => unreachable!("these are no places on this machine"),
        };
        self.record(tree, config, "a configured base").await
    }

    async fn make(&self, known: &WellKnown, log: &dyn BuildLog) -> Result<Base> {
        match known {
            WellKnown::Debian(tag) => {
                let tree = self.debian(tag, log).await?;
                self.record(tree, official::debian_config(), "Debian").await.map(Base::ready)
            }
            WellKnown::Uv(version) => self.uv(version, log).await.map(Base::ready),
            WellKnown::Python(tag) => self.python(tag, log).await,
        }
    }

    async fn python(&self, tag: &PythonTag, log: &dyn BuildLog) -> Result<Base> {
        let found = interpreters::find(&self.config.python_dirs);
        let Some(interpreter) = interpreters::choose(&found, &tag.series, tag.exact.as_deref()) else {
            if self.config.build_python == Some(false) {
                let why = format!("needs an interpreter of Python {}: this machine has none, and build_python is off", tag.series);
                return Err(Error::NotAnImage { reference: format!("python:{}", tag.series), why });
            }
            log.info(format!("this machine has no Python {}: building it from the distribution's source", tag.series));
            return source::recipe(tag).map(Base::Recipe);
        };
        if let Some(exact) = &tag.exact
            && *exact != interpreter.version
        {
            log.info(format!("Python {exact} was asked for; this machine has {}, which is taken instead", interpreter.version));
        }
        let debian = debian::machine_suite().map_or_else(|| tag.debian.clone(), |machine| tag.debian.at_least(&machine));
        if debian.suite != tag.debian.suite {
            let (own, taken) = (&tag.debian.suite, &debian.suite);
            log.info(format!("the machine's Python needs a newer C library than {own} has: {taken} is taken instead"));
        }
        let mut tree = self.debian(&debian, log).await?;
        let python = self.relocated(interpreter, log).await?;
        tree.graft(&path("usr/local"), &python).tree("Python")?;
        let record = self.record(tree, official::python_config(&interpreter.version), "Python").await?;
        Ok(Base::ready(record))
    }

    /// A Debian root file system.
    async fn debian(&self, tag: &DebianTag, log: &dyn BuildLog) -> Result<Tree> {
        let key = KeyBuilder::new("debian 1").text("suite", &tag.suite).value("slim", &tag.slim).finish();
        let tag = tag.clone();
        self.once(key, "Debian", async {
            let folder = self.work_folder()?;
            let tar = folder.path().join("root.tar");
            log.info(format!("making Debian {} from the machine's package sources", tag.suite));
            debian::make(&tag, &folder, &tar, log).await?;
            let store = self.store.clone();
            blocking("reading a root file system", move || {
                let mut tree = local::tar(&tar, &store)?;
                add_official_files(&mut tree, &store)?;
                drop(folder);
                Ok(tree)
            })
            .await
        })
        .await
    }

    /// A Python for `/usr/local`.
    async fn relocated(&self, interpreter: &Interpreter, log: &dyn BuildLog) -> Result<Tree> {
        let prefix = interpreter.prefix.to_string_lossy();
        let key = KeyBuilder::new("python 1").text("series", &interpreter.series).text("version", &interpreter.version);
        // Two installations of one version may differ in their libraries.
        let key = key.text("prefix", &prefix).finish();
        self.once(key, "Python", async {
            let folder = self.work_folder()?;
            python::relocate(interpreter, folder.path(), log).await?;
            let store = self.store.clone();
            blocking("reading an interpreter", move || {
                let mut tree = local::directory(folder.path(), &store)?;
                tree.edit(|path, entry| {
                    (*entry.uid, *entry.gid) = (0, 0);
                    if path.is_root() {
                        *entry.mode = 0o755;
                    }
                });
                Ok(tree)
            })
            .await
        })
        .await
    }

    async fn uv(&self, version: &UvVersion, log: &dyn BuildLog) -> Result<LayerRecord> {
        let folder = self.work_folder()?;
        let found = interpreters::find(&self.config.python_dirs);
        let wheel = wheel::download(version, &found, folder.path(), log).await?;
        let store = self.store.clone();
        let tree = blocking("reading a wheel", move || {
            let tree = wheel::programs(&wheel, &store)?;
            drop(folder);
            Ok(tree)
        })
        .await?;
        let config = ImageConfig { entrypoint: Some(vec!["/uv".to_owned()]), ..ImageConfig::default() };
        self.record(tree, config, "uv").await
    }

    /// Makes the tree of a mount named `python-build-standalone.RELEASE.VERSION-gnu`: an interpreter in `/python`.
    ///
    /// An interpreter of the same series stands in for the exact version; the log says so.
    pub async fn standalone_python(&self, name: &str, log: &dyn BuildLog) -> Result<Digest> {
        let no_mount = |why: String| Error::NoMount { name: name.to_owned(), why };
        let (release, version) =
            standalone_name(name).ok_or_else(|| no_mount("expected python-build-standalone.RELEASE.VERSION-gnu".to_owned()))?;
        let threads = if version.ends_with('t') { "t" } else { "" };
        let exact = version.trim_end_matches('t');
        let series = format!("{}{threads}", exact.rsplit_once('.').map_or(exact, |(series, _)| series));
        let found = interpreters::find(&self.config.python_dirs);
        let interpreter = interpreters::choose(&found, &series, Some(exact)).ok_or_else(|| {
            let mut series_here: Vec<_> = found.iter().map(|interpreter| interpreter.series.as_str()).collect();
            series_here.dedup();
            let here = if series_here.is_empty() { "none".to_owned() } else { series_here.join(", ") };
            let why = format!(
                "this node has no Python {series} to add (it has {here}): install one there and name its folder in images.python_dirs"
            );
            no_mount(why)
        })?;
        if interpreter.version != exact {
            log.info(format!("Python {exact} was asked for; this machine has {}, which is taken instead", interpreter.version));
        }
        let mut python = self.relocated(interpreter, log).await?;
        if release < FIRST_RELEASE_WITH_PYTHON_LINK {
            // The client's next command makes this link, and fails when it is there.
            python.remove(&path("bin/python")).tree("Python")?;
        }
        let mut tree = Tree::new();
        tree.graft(&path("python"), &python).tree("Python")?;
        let record = self.record(tree, ImageConfig::default(), "Python").await?;
        Ok(record.manifest)
    }

    /// Returns the tree of a key from the cache, or makes and remembers it. One maker at a time.
    async fn once(&self, key: Digest, what: &str, make: impl Future<Output = Result<Tree>>) -> Result<Tree> {
        let _lock = self.locks.lock(key).await;
        if let Some(record) = self.cached(key).await? {
            let store = self.store.clone();
            return blocking("reading a tree", move || Tree::read(&store, &record.manifest).tree("a base")).await;
        }
        let tree = make.await?;
        let record = self.record(tree.clone(), ImageConfig::default(), what).await?;
        self.remember(key, record).await?;
        Ok(tree)
    }

    async fn cached(&self, key: Digest) -> Result<Option<LayerRecord>> {
        self.cache.get(key).await.map_err(|source| Error::Cache { action: "look up", key, source })
    }

    async fn remember(&self, key: Digest, record: LayerRecord) -> Result<()> {
        self.cache.put(key, record).await.map_err(|source| Error::Cache { action: "remember", key, source })
    }

    /// Writes a tree and makes it durable.
    async fn record(&self, tree: Tree, config: ImageConfig, what: &str) -> Result<LayerRecord> {
        let manifest = write_tree(&self.store, tree, what).await?;
        Ok(LayerRecord { manifest, config })
    }

    fn work_folder(&self) -> Result<WorkFolder> {
        WorkFolder::new(&self.work_dir)
    }
}

/// From this release on the standalone builds bring `bin/python`.
const FIRST_RELEASE_WITH_PYTHON_LINK: u32 = 20241008;

fn standalone_name(name: &str) -> Option<(u32, &str)> {
    let (release, version) = name.strip_prefix("python-build-standalone.")?.strip_suffix("-gnu")?.split_once('.')?;
    Some((release.parse().ok()?, version))
}

/// Writes a tree and makes it durable, with everything it names.
pub(crate) async fn write_tree(store: &Store, tree: Tree, what: &str) -> Result<Digest> {
    let (store, what) = (store.clone(), what.to_owned());
    blocking("writing a tree", move || {
        let digest = tree.write(&store).tree(what.clone())?;
        store.sync().map_err(|source| Error::Store { what, source })?;
        Ok(digest)
    })
    .await
}

fn note(tried: &mut Vec<String>, log: &dyn BuildLog, source: &str, error: &Error) {
    let line = format!("{source}: {}", error.full_text());
    log.info(&line);
    tried.push(line);
}

fn add_official_files(tree: &mut Tree, store: &Store) -> Result<()> {
    for file in official::FILES {
        let (size, content) = put_content(file.content.as_bytes(), file.path, store).tree(file.path)?;
        tree.insert(&path(file.path), Entry::new(Kind::File { size, content }, file.mode)).tree(file.path)?;
    }
    Ok(())
}

/// A path that this crate wrote itself.
pub(crate) fn path(text: &str) -> Path {
    Path::parse(text).expect("a literal path is proper")
}
