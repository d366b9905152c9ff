//! The client inside the container: its package at `/pkg` and what it needs at `/__modal/deps`, as one tree.
//!
//! One tree serves all images of a client version, interpreter ABI and C library. It is made in a container of the first
//! such image, by that image's own interpreter and its pip, compiled there, and kept like any tree. Dependencies come
//! last on `sys.path`, so what an image has installed itself wins.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_runtime::{Container, ContainerSpec, Engine, NetworkMode};
use shoal_state::model::{Definition, Layer};
use shoal_state::{Command, Digest};
use shoal_storage::manifest::{Path, Tree, from_tar};
use shoal_storage::store::Store;

use crate::api::{Api, Error, blocking};
use crate::arguments;
use crate::roots::Root;

/// The program that gathers the tree, run by the image's interpreter.
pub(crate) const GATHER: &str = include_str!("client_gather.py");
/// Where the container sees it.
const GATHER_PATH: &str = "/__shoal/gather.py";
/// Its name in the node's own folder.
pub(crate) const GATHER_NAME: &str = "gather.py";
/// Where it puts the tree.
const OUT: &str = "__build/out";
/// What it says when it is done. It then waits, so that its files can be read.
const DONE: &str = "shoal: gathered";
/// How long it may take: two downloads and a compilation.
const GATHER_WITHIN: Duration = Duration::from_secs(600);
/// How much of its output an error repeats, in bytes.
const TAIL_BYTES: usize = 2000;
/// Changes when the tree's recipe does.
const RECIPE: &str = "shoal client tree 1";

/// What decides which client tree an image needs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// The client's version, as `1.6.4`.
    pub(crate) version: String,
    /// The interpreter, as `cp312`.
    pub(crate) abi: String,
    /// The C library, as `glibc`.
    pub(crate) libc: String,
}

impl Wanted {
    fn key(&self) -> Digest {
        Digest::of(format!("{RECIPE} {} {} {} {}", Digest::of(GATHER.as_bytes()), self.version, self.abi, self.libc).as_bytes())
    }
}

/// The trees being gathered, so that equal ones are gathered once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clients {
    gathering: Arc<Mutex<HashMap<Wanted, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Clients {
    /// Returns the tree for an image whose root is `root`; makes it when it is the first of its kind.
    pub(crate) async fn get(
        &self,
        api: &Api,
        engine: &Engine,
        wanted: &Wanted,
        root: &Root,
        python: &str,
        path: &str,
    ) -> Result<Digest, Error> {
        if let Some(layer) = api.local().layers.get(&wanted.key()) {
            return Ok(layer.manifest);
        }
        let lock = Arc::clone(self.gathering.lock().entry(wanted.clone()).or_default());
        let _alone = lock.lock().await;
        if let Some(layer) = api.local().layers.get(&wanted.key()) {
            return Ok(layer.manifest);
        }
        tracing::info!(version = wanted.version, abi = wanted.abi, libc = wanted.libc, "gathering the client for containers");
        let manifest = gather(api, engine, wanted, root, python, path).await?;
        let layer = Layer { manifest, record: Definition::default() };
        api.propose(Command::PutLayer { key: wanted.key(), layer }).await?;
        Ok(manifest)
    }
}

async fn gather(api: &Api, engine: &Engine, wanted: &Wanted, root: &Root, python: &str, path: &str) -> Result<Digest, Error> {
    let what = format!("cannot gather client {} for {} ({})", wanted.version, wanted.abi, wanted.libc);
    let mut spec = ContainerSpec::new(&root.dir, [python, "-u", GATHER_PATH, &wanted.version]);
    spec.env = vec![("PATH".to_owned(), path.to_owned()), ("HOME".to_owned(), "/root".to_owned())];
    spec.env.extend(arguments::egress_variables(api));
    spec.binds.push(arguments::own_folder(api));
    spec.network = NetworkMode::Nat;
    spec.stdin = true;
    let container = engine.create(spec).await.map_err(Error::failed(what.clone()))?;
    let gathered = tokio::time::timeout(GATHER_WITHIN, work(api.store.clone(), &container, &what)).await;
    if let Err(error) = container.stop(libc::SIGKILL, Duration::ZERO).await {
        tracing::warn!(%error, "cannot stop a container that gathered a client");
    }
    container.destroy().await.map_err(Error::failed(what.clone()))?;
    gathered.map_err(|_| Error::Unavailable(format!("{what}: it took longer than {} s", GATHER_WITHIN.as_secs())))?
}

async fn work(store: Store, container: &Container, what: &str) -> Result<Digest, Error> {
    let stdio = container.take_stdio().ok_or_else(|| Error::Unavailable(format!("{what}: the container has no pipes")))?;
    let _stdin = stdio.stdin;
    container.start().await.map_err(Error::failed(what.to_owned()))?;
    let (errors, output) = (tail(stdio.stderr), wait_for_done(stdio.stdout));
    let (errors, done) = (tokio::spawn(errors), output.await);
    if !done {
        let said = errors.await.unwrap_or_default();
        return Err(Error::Precondition(format!("{what}: {}", said.trim_end())));
    }
    let (reader, writer) = std::io::pipe().map_err(Error::failed(what.to_owned()))?;
    let reading = tokio::spawn(blocking(move || tree(&store, reader)));
    container.export_upper(writer.as_fd()).await.map_err(Error::failed(what.to_owned()))?;
    drop(writer);
    let tree = reading.await.map_err(Error::failed(what.to_owned()))?;
    tree.map_err(Error::failed(what.to_owned()))
}

/// Reads until the program says that it is done; false when it ended without.
async fn wait_for_done(stdout: OwnedFd) -> bool {
    use tokio::io::AsyncBufReadExt as _;
    let mut lines = tokio::io::BufReader::new(tokio::fs::File::from_std(File::from(stdout))).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line == DONE {
            return true;
        }
        tracing::debug!(line, "gathering a client");
    }
    false
}

/// Reads everything and returns the end of it.
async fn tail(stderr: OwnedFd) -> String {
    use tokio::io::AsyncReadExt as _;
    let mut text = Vec::new();
    let _ = tokio::fs::File::from_std(File::from(stderr)).read_to_end(&mut text).await;
    String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).into_owned()
}

fn tree(store: &Store, reader: impl std::io::Read) -> Result<Digest, Box<dyn std::error::Error + Send + Sync>> {
    let mut whole = Tree::new();
    whole.apply_layer(from_tar(reader, store)?)?;
    let digest = whole.subtree(&Path::parse(OUT)?)?.write(store)?;
    store.sync()?;
    Ok(digest)
}
