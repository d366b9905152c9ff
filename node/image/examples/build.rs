//! Builds an image by hand: `build DATA_DIR RECIPE [CONTEXT_DIR]`. Needs root and runsc.
//!
//! The recipe is a Dockerfile, or a single FROM. `SHOAL_CA_BUNDLE` names certificates for the commands;
//! `SHOAL_CLIENT_VERSION` asks for the client's tree for the image, too. What is built is
//! kept in DATA_DIR, so a second run shows what the cache knows.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use shoal_fs::{StoreSource, Trees};
use shoal_image::bases::{Bases, BasesConfig};
use shoal_image::build::{BuildConfig, BuildRequest, Builder, BuilderParts, ClientWanted, Containers, Egress};
use shoal_image::cache::{KvCache, LayerRecord};
use shoal_image::log::{BuildLog, Stream};
use shoal_runtime::{Engine, EngineConfig};
use shoal_storage::kv::Kv;
use shoal_storage::manifest::Tree;
use shoal_storage::store::{Options, Store};

struct Print(Instant);

impl BuildLog for Print {
    fn write(&self, stream: Stream, data: &str) {
        match stream {
            Stream::Info => print!("[{:6.1}] {data}", self.0.elapsed().as_secs_f64()),
            _ => print!("{data}"),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(data), Some(recipe)) = (arguments.next(), arguments.next()) else {
        return Err("usage: build DATA_DIR RECIPE [CONTEXT_DIR]".into());
    };
    let data = PathBuf::from(data);
    std::fs::create_dir_all(data.join("trees"))?;
    let store = Store::open(&data.join("store"), Options::default())?;
    let cache = Arc::new(KvCache::new(Kv::open(&data.join("kv"))?.tree("layers")?));
    let bases = Arc::new(Bases::new(BasesConfig::default(), store.clone(), cache.clone(), data.join("bases"), None)?);
    let trees = Arc::new(Trees::mount(&data.join("trees"), Arc::new(StoreSource::new(store.clone())))?);
    let engine = Engine::open(EngineConfig::new(data.join("engine"))).await?;
    let ca_bundle = std::env::var_os("SHOAL_CA_BUNDLE").map(PathBuf::from);
    let context = match arguments.next() {
        Some(folder) => Some(Tree::from_dir(folder.as_ref(), &store)?.write(&store)?),
        None => None,
    };
    let builder = Builder::open(BuilderParts {
        store,
        cache,
        bases,
        containers: Some(Containers { trees, engine: engine.clone() }),
        work_dir: data.join("work"),
        cache_dir: data.join("caches"),
        config: BuildConfig { egress: Egress { ca_bundle, ..Egress::default() }, ..BuildConfig::default() },
    })?;
    let request = BuildRequest {
        commands: std::fs::read_to_string(recipe)?.lines().map(str::to_owned).collect(),
        context,
        builder_version: "2025.06".to_owned(),
        ..BuildRequest::default()
    };
    let started = Instant::now();
    let outcome = builder.get_or_start(request, Some(Arc::new(Print(started)))).wait().await;
    match &outcome {
        Ok(record) => println!("{}", serde_json::to_string_pretty(&**record)?),
        Err(error) => println!("{:?}: {}", error.kind(), error.full_text()),
    }
    println!("after {:.1} s", started.elapsed().as_secs_f64());
    if let (Ok(record), Ok(version)) = (&outcome, std::env::var("SHOAL_CLIENT_VERSION")) {
        let wanted = ClientWanted {
            version,
            abi: record.metadata.python_abi.clone().unwrap_or_default(),
            musl: record.metadata.libc_version_info.as_deref() == Some("musl"),
            python: record.metadata.python_path.clone().unwrap_or_default(),
        };
        let image = LayerRecord { manifest: record.manifest, config: record.config.clone() };
        let client = builder.client_tree(&wanted, &image, &Print(started)).await;
        match client {
            Ok(digest) => println!("client tree {digest} after {:.1} s", started.elapsed().as_secs_f64()),
            Err(error) => println!("{}", error.full_text()),
        }
    }
    builder.close();
    engine.close().await?;
    Ok(())
}
