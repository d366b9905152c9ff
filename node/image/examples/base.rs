//! Finds or makes a base image: `base DATA_DIR NAME`.

use std::sync::Arc;

use shoal_image::bases::{Bases, BasesConfig, Credentials, ImageReference};
use shoal_image::cache::KvCache;
use shoal_image::log::{BuildLog, Stream};
use shoal_storage::{
    kv::Kv,
    store::{Options, Store},
};

struct Print;

impl BuildLog for Print {
    fn write(&self, _: Stream, data: &str) {
        print!("{data}");
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [data, name] = [1, 2].map(|at| std::env::args().nth(at).expect("usage: base DATA_DIR NAME"));
    let data = std::path::PathBuf::from(data);
    std::fs::create_dir_all(&data)?;
    let store = Store::open(&data.join("store"), Options::default())?;
    let cache = Arc::new(KvCache::new(Kv::open(&data.join("kv"))?.tree("layers")?));
    let bases = Bases::new(BasesConfig::default(), store, cache, data.join("work"), None)?;
    let start = std::time::Instant::now();
    let base = bases.resolve(&ImageReference::parse(&name)?, &Credentials::Anonymous, &Print).await?;
    println!("{base:#?}\nafter {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}
