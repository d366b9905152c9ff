//! Builds as a whole: without containers (keys, COPY, joining), and with them where the machine can run any.

mod containers;
mod functions;
mod keys;
mod plain;

use std::collections::BTreeMap;
use std::path::Path as HostPath;

use shoal_storage::manifest::{Entry, Kind, Path, put_content};
use shoal_storage::store::Options;

use super::*;
use crate::bases::{BaseRule, BaseSource, BasesConfig};
use crate::cache::MemoryCache;
use crate::config::ImageConfig;

struct World {
    store: Store,
    cache: Arc<MemoryCache>,
    builder: Builder,
    dir: tempfile::TempDir,
}

impl World {
    /// A builder whose only base is the folder `root`, under the name `mini:1`.
    fn new(containers: impl FnOnce(&HostPath, &Store) -> Option<Containers>) -> World {
        Self::with_config(BuildConfig::default(), containers)
    }

    fn with_config(config: BuildConfig, containers: impl FnOnce(&HostPath, &Store) -> Option<Containers>) -> World {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(place("root/etc")).unwrap();
        std::fs::write(place("root/etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n").unwrap();
        std::fs::write(place("root/etc/group"), "root:x:0:\napp:x:1000:\n").unwrap();
        let store = Store::open(&place("store"), Options::default()).unwrap();
        let cache = Arc::new(MemoryCache::default());
        let source = BaseSource::Directory { path: place("root").to_string_lossy().into_owned() };
        let rule = BaseRule { pattern: "mini:1".to_owned(), source, config: ImageConfig::default() };
        let bases = BasesConfig { base: vec![rule], offline: true, ..BasesConfig::default() };
        let bases = Arc::new(Bases::new(bases, store.clone(), cache.clone(), place("bases"), None).unwrap());
        let builder = Builder::open(BuilderParts {
            store: store.clone(),
            cache: cache.clone(),
            bases,
            containers: containers(dir.path(), &store),
            work_dir: place("work"),
            cache_dir: place("caches"),
            config,
        });
        World { builder: builder.unwrap(), store, cache, dir }
    }

    fn plain() -> World {
        Self::new(|_, _| None)
    }

    /// A context tree of files with their texts.
    fn context(&self, files: &[(&str, &str)]) -> Digest {
        let mut tree = Tree::new();
        for (name, text) in files {
            let (size, content) = put_content(text.as_bytes(), name, &self.store).unwrap();
            let entry = Entry { uid: 7, ..Entry::new(Kind::File { size, content }, 0o644) };
            tree.insert(&Path::parse(name).unwrap(), entry).unwrap();
        }
        tree.write(&self.store).unwrap()
    }

    async fn build(&self, request: BuildRequest) -> Outcome {
        let handle = self.builder.get_or_start(request, None);
        tokio::time::timeout(Duration::from_secs(120), handle.wait()).await.expect("the build ends in time")
    }

    fn tree(&self, record: &ImageRecord) -> Tree {
        Tree::read(&self.store, &record.manifest).unwrap()
    }

    fn text(&self, record: &ImageRecord, name: &str) -> String {
        let bytes = self.tree(record).read_file(&Path::parse(name).unwrap(), 1 << 20, &self.store).unwrap();
        String::from_utf8(bytes.unwrap_or_else(|| panic!("{name} is not in the image"))).unwrap()
    }
}

fn request(commands: &[&str]) -> BuildRequest {
    let commands = commands.iter().map(|command| (*command).to_owned()).collect();
    BuildRequest { commands, builder_version: "2025.06".to_owned(), ..BuildRequest::default() }
}

/// What the log of a build says.
fn log_text(handle: &BuildHandle) -> String {
    let text = |entry: LogEntry| match entry.piece {
        LogPiece::Text { data, .. } => data,
        LogPiece::Saving { .. } => String::new(),
    };
    handle.entries_after(0).into_iter().map(text).collect()
}
