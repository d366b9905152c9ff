//! A folder shown as a node shows an image, and sandboxes made ahead for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use anyhow::Context as _;
use shoal_fs::{StoreSource, Trees};
use shoal_runtime::{AheadConfig, Bind, ContainerSpec, LAUNCHER, MOUNTED_FILES, MOUNTED_FOLDERS, NetworkMode, Rooms};
use shoal_storage::manifest::{Content, Entry, Kind, Path as TreePath, Tree};
use shoal_storage::store::{Options, Store};

/// Where containers have their own files, and where what all of them see.
const TARGETS: [&str; 2] = ["/bench/own", "/bench/shared"];
/// Size of /dev/shm, in bytes.
const SHM_BYTES: u64 = 64 << 20;

/// What is shown.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The directory of the whole tree.
    pub(crate) tree: PathBuf,
    /// For sandboxes made ahead.
    pub(crate) config: AheadConfig,
}

impl Shown {
    /// Describes a container as a node's worker does, so that it may start in a sandbox made ahead. Its own files are in `work`.
    pub(crate) fn container(&self, argv: &[&str], env: Vec<(String, String)>, work: &Path) -> anyhow::Result<ContainerSpec> {
        let own = work.join("own");
        fs::create_dir_all(&own)?;
        let mut spec = ContainerSpec::new(&self.tree, argv.iter().copied());
        spec.env = env;
        spec.network = NetworkMode::Nat;
        spec.hostname.clone_from(&self.config.hostname);
        spec.binds.clone_from(&self.config.binds);
        spec.own = Some(Bind { source: own, target: self.config.own_target.clone(), read_only: false });
        spec.limits.shm_bytes = Some(self.config.shm_bytes);
        Ok(spec)
    }
}

/// Reads a folder into a store and mounts it; so many sandboxes are to wait.
pub(crate) fn show(folder: &Path, work: &Path, count: usize) -> anyhow::Result<Shown> {
    let store = Store::open(&work.join("store"), Options::default()).context("cannot open a store")?;
    let mut tree = Tree::from_dir(folder, &store).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut empty = Tree::new();
    add_places(&mut tree)?;
    add_places(&mut empty)?;
    let trees = Arc::new(Trees::mount(&work.join("trees"), Arc::new(StoreSource::new(store))).context("cannot mount trees")?);
    let shown = trees.bind("image", &tree).context("cannot show the tree")?;
    let shared = work.join("shared");
    fs::create_dir_all(&shared)?;
    let launcher = shared.join("launch");
    fs::write(&launcher, LAUNCHER)?;
    fs::set_permissions(&launcher, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let [own, target] = TARGETS.map(str::to_owned);
    let config = AheadConfig {
        rooms: Arc::new(RoomsOf { trees, empty }),
        launcher: format!("{target}/launch"),
        binds: vec![Bind { source: shared, target, read_only: true }],
        own_target: own,
        hostname: "bench".to_owned(),
        shm_bytes: SHM_BYTES,
        count,
    };
    Ok(Shown { tree: shown, config })
}

/// Adds what containers have something mounted on, where it is missing.
fn add_places(tree: &mut Tree) -> anyhow::Result<()> {
    let folders = MOUNTED_FOLDERS.iter().chain(&TARGETS).map(|place| (*place, Entry::dir()));
    let files = MOUNTED_FILES.iter().map(|place| (*place, Entry::new(Kind::File { size: 0, content: Content::EMPTY }, 0o644)));
    for (place, entry) in folders.chain(files) {
        let path = TreePath::parse(place).with_context(|| format!("{place} is no path"))?;
        if tree.get(&path).is_none() {
            tree.insert(&path, entry).with_context(|| format!("cannot make {place}"))?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct RoomsOf {
    trees: Arc<Trees>,
    empty: Tree,
}

impl Rooms for RoomsOf {
    fn open(&self, name: &str) -> io::Result<PathBuf> {
        self.trees.open_room(name, &self.empty).map_err(io::Error::other)
    }

    fn fill(&self, name: &str, _root: &Path) -> bool {
        self.trees.fill(name, "image").is_ok()
    }

    fn close(&self, name: &str) {
        self.trees.unbind(name);
    }
}
