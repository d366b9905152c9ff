//! The roots of containers: an image's tree with mounts, the client and its dependencies merged over it.
//!
//! A root is a tree of its own, bound into the node's one FUSE mount under a name that follows from its parts. Making one
//! moves no file contents; files that trees share are one inode, so a new app on a known image starts warm.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use shoal_fs::{Trees, Trouble};
use shoal_image::build::add_mount_points;
use shoal_state::Digest;
use shoal_storage::manifest::{Kind, Path, Tree};
use shoal_storage::store::Store;

use crate::api::{Error, blocking};
use crate::arguments;

/// Roots that nobody uses and that are kept for the next container. Each costs some megabytes of memory.
const IDLE_MAX: usize = 12;

/// The roots of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Roots {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    trees: Arc<Trees>,
    bound: Mutex<HashMap<Digest, Bound>>,
}

struct Bound {
    dir: PathBuf,
    /// The manifests that it was made of.
    parts: Vec<Digest>,
    python: Option<&'static str>,
    added: Arc<[Path]>,
    users: usize,
    last: u64,
}

/// A root in use; kept bound until this is dropped.
pub(crate) struct Root {
    roots: Roots,
    key: Digest,
    /// Its folder on this machine.
    pub(crate) dir: PathBuf,
    /// The name that an interpreter has on the image's PATH; none where it has none.
    pub(crate) python: Option<&'static str>,
    /// The files that came over its base.
    pub(crate) added: Arc<[Path]>,
}

impl Root {
    /// Returns what the root is called in the node's FUSE mount.
    pub(crate) fn name(&self) -> String {
        name(&self.key)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.roots.release(self.key);
    }
}

impl Roots {
    /// Binds roots into `trees`, reading manifests from `store`.
    pub(crate) fn new(store: Store, trees: Arc<Trees>) -> Self {
        Self { inner: Arc::new(Inner { store, trees, bound: Mutex::default() }) }
    }

    /// Returns the root made of these manifests, the first under the later ones and those of the base under all others, for
    /// programs that look along `path`.
    pub(crate) async fn get(&self, base: &[Digest], over: &[Digest], path: String) -> Result<Root, Error> {
        let key = key(base.iter().chain(over), &path);
        if let Some(root) = self.take(key) {
            return Ok(root);
        }
        let (store, roots, base, over) = (self.inner.store.clone(), self.clone(), base.to_vec(), over.to_vec());
        blocking(move || {
            let (tree, added) = merge(&store, &base, &over)?;
            let parts = [base, over].concat();
            roots.bind(
                key,
                Bound { dir: PathBuf::new(), parts, python: python(&tree, &path), added: added.into(), users: 0, last: 0 },
                &tree,
            )
        })
        .await
    }

    /// Lets reads of processes that are to end wait no longer than `patience`.
    pub(crate) fn hurry(&self, readers: &[u32], patience: Duration) {
        readers.iter().for_each(|reader| self.inner.trees.hurry(*reader, patience));
    }

    /// Lets `told` hear of each read whose bytes do not come, with the path of the file. Only the first call counts.
    pub(crate) fn on_trouble(&self, told: impl Fn(Option<Path>, Trouble) + Send + Sync + 'static) {
        self.inner.trees.on_trouble(told);
    }

    /// Returns how many bytes of files were brought from the store for what containers and builds read.
    pub(crate) fn bytes_brought(&self) -> u64 {
        self.inner.trees.bytes_brought()
    }

    /// Returns the chunks that were read of a root, in the order of first reads; none when it is not shown any more.
    pub(crate) fn touched(&self, root: &str) -> Vec<Digest> {
        self.inner.trees.touched_chunks(root).unwrap_or_default()
    }

    /// Returns the manifests of which those roots are made that containers are shown now.
    pub(crate) fn parts_in_use(&self) -> Vec<Digest> {
        let bound = self.inner.bound.lock();
        bound.values().filter(|bound| bound.users > 0).flat_map(|bound| bound.parts.iter().copied()).collect()
    }

    /// Forgets roots that no container is shown, but for those whose manifests are all `needed`; returns the manifests of the
    /// roots that are left.
    pub(crate) fn forget_idle(&self, needed: impl Fn(&Digest) -> bool) -> Vec<Digest> {
        let mut bound = self.inner.bound.lock();
        bound.retain(|key, bound| {
            let stays = bound.users > 0 || bound.parts.iter().all(&needed);
            if !stays {
                self.inner.trees.unbind(&name(key));
            }
            stays
        });
        bound.values().flat_map(|bound| bound.parts.iter().copied()).collect()
    }

    fn take(&self, key: Digest) -> Option<Root> {
        let mut bound = self.inner.bound.lock();
        Some(self.used(key, bound.get_mut(&key)?))
    }

    /// Notes one user more.
    fn used(&self, key: Digest, found: &mut Bound) -> Root {
        found.users += 1;
        Root { roots: self.clone(), key, dir: found.dir.clone(), python: found.python, added: found.added.clone() }
    }

    /// Shows a tree, and keeps what is known of it.
    fn bind(&self, key: Digest, about: Bound, tree: &Tree) -> Result<Root, Error> {
        let name = name(&key);
        let mut bound = self.inner.bound.lock();
        if let Entry::Vacant(place) = bound.entry(key) {
            let dir = self.inner.trees.bind(&name, tree).map_err(Error::failed(format!("cannot show tree {name}")))?;
            place.insert(Bound { dir, ..about });
        }
        // Under the same lock: a root that nobody uses may be taken away at any time.
        Ok(self.used(key, bound.get_mut(&key).expect("it was just put there")))
    }

    fn release(&self, key: Digest) {
        let mut bound = self.inner.bound.lock();
        let clock = bound.values().map(|bound| bound.last).max().unwrap_or(0) + 1;
        if let Some(found) = bound.get_mut(&key) {
            found.users -= 1;
            found.last = clock;
        }
        let mut idle: Vec<(u64, Digest)> =
            bound.iter().filter(|(_, bound)| bound.users == 0).map(|(key, bound)| (bound.last, *key)).collect();
        idle.sort_unstable();
        for (_, key) in idle.iter().take(idle.len().saturating_sub(IDLE_MAX)) {
            bound.remove(key);
            self.inner.trees.unbind(&name(key));
        }
    }
}

/// Returns what a root is called in the node's FUSE mount.
fn name(key: &Digest) -> String {
    key.to_string()[..24].to_owned()
}

fn key<'a>(parts: impl Iterator<Item = &'a Digest>, path: &str) -> Digest {
    let parts = parts.flat_map(|part| *part.as_bytes());
    Digest::of(&parts.chain(path.bytes()).collect::<Vec<u8>>())
}

/// Finds which name an interpreter has in the folders of `path`.
fn python(tree: &Tree, path: &str) -> Option<&'static str> {
    let there = |name: &&str| {
        path.split(':').any(|dir| {
            let found = Path::parse(format!("{dir}/{name}")).ok().and_then(|path| tree.follow(&path).ok());
            found
                .and_then(|path| tree.get(&path).map(|entry| matches!(entry.kind, Kind::File { .. } | Kind::Hardlink { .. })))
                .unwrap_or(false)
        })
    };
    ["python", "python3"].into_iter().find(there)
}

/// Puts trees over each other, and the folders that every container has over them. Returns also which files are not of the
/// base.
fn merge(store: &Store, base: &[Digest], over: &[Digest]) -> Result<(Tree, Vec<Path>), Error> {
    let (mut whole, mut added) = (None::<Tree>, Vec::new());
    for (number, part) in base.iter().chain(over).enumerate() {
        let failed = || Error::failed(format!("cannot read tree {part}"));
        let tree = Tree::read(store, part).map_err(failed())?;
        if number >= base.len() {
            added.extend(tree.iter().filter(|(_, entry)| !entry.is_dir()).map(|(path, _)| path.clone()));
        }
        match &mut whole {
            // The image: most of all entries, and under everything. Putting it over nothing would take as long as reading it.
            None => whole = Some(tree),
            Some(whole) => whole.overlay(&tree).map_err(failed())?,
        }
    }
    let mut whole = whole.unwrap_or_default();
    add_mount_points(&mut whole, &[arguments::TASK_DIR, arguments::WORKDIR]).map_err(Error::failed("cannot make places to mount on"))?;
    Ok((whole, added))
}

/// The rooms in which sandboxes are made ahead.
#[derive(Debug)]
pub(crate) struct Rooms {
    trees: Arc<Trees>,
    /// What containers have something mounted on.
    empty: Tree,
}

impl Rooms {
    /// Opens rooms in `trees`.
    pub(crate) fn new(trees: Arc<Trees>) -> anyhow::Result<Self> {
        let mut empty = Tree::new();
        add_mount_points(&mut empty, &[arguments::TASK_DIR]).context("cannot make places to mount on")?;
        Ok(Self { trees, empty })
    }
}

impl shoal_runtime::Rooms for Rooms {
    fn open(&self, name: &str) -> std::io::Result<PathBuf> {
        self.trees.open_room(name, &self.empty).map_err(std::io::Error::other)
    }

    fn fill(&self, name: &str, root: &std::path::Path) -> bool {
        let filled = root.file_name().and_then(|root| root.to_str()).map(|root| self.trees.fill(name, root));
        if let Some(Err(error)) = &filled {
            tracing::debug!(%error, "a container gets a sandbox of its own");
        }
        matches!(filled, Some(Ok(())))
    }

    fn close(&self, name: &str) {
        self.trees.unbind(name);
    }
}
