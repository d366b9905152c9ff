//! Bases from files and from a registry of our own, and the rules of the order.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};
use shoal_storage::store::Options;

use super::*;
use crate::cache::MemoryCache;
use crate::log::MemoryLog;

struct World {
    dir: tempfile::TempDir,
    store: Store,
    bases: Bases,
    log: MemoryLog,
}

fn world(config: BasesConfig) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), Options::default()).unwrap();
    let cache = Arc::new(MemoryCache::default());
    let bases = Bases::new(config, store.clone(), cache, dir.path().join("work"), None).unwrap();
    World { dir, store, bases, log: MemoryLog::default() }
}

impl World {
    async fn resolve(&self, name: &str) -> Result<LayerRecord> {
        let reference = ImageReference::parse(name).unwrap();
        match self.bases.resolve(&reference, &Credentials::Anonymous, &self.log).await? {
            Base::Ready(record) => Ok(*record),
            Base::Recipe(lines) => panic!("{lines:?}"),
        }
    }

    fn names(&self, record: &LayerRecord) -> Vec<String> {
        let tree = Tree::read(&self.store, &record.manifest).unwrap();
        tree.iter().map(|(path, _)| path.to_string()).collect()
    }

    fn text(&self, record: &LayerRecord, name: &str) -> String {
        let tree = Tree::read(&self.store, &record.manifest).unwrap();
        String::from_utf8(tree.read_file(&path(name), 1 << 20, &self.store).unwrap().unwrap()).unwrap()
    }
}

/// A tar of files; a name that ends in a slash is a folder.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
        }
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// The blobs of an image of two layers behind an index, by their paths in a registry.
struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    index: Vec<u8>,
}

fn image() -> Image {
    let lower = tar(&[("etc/", ""), ("etc/keep", "kept"), ("etc/gone", "x"), ("opt/", ""), ("opt/old", "x")]);
    let upper = tar(&[("etc/.wh.gone", ""), ("opt/", ""), ("opt/.wh..wh..opq", ""), ("opt/new", "y")]);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["A=b=c"], "Cmd": ["run"], "WorkingDir": "/etc", "Entrypoint": null, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [sha256(&lower), sha256(&upper)]},
    });
    let config = config.to_string().into_bytes();
    let layers = [
        (gzip(&lower), "application/vnd.oci.image.layer.v1.tar+gzip"),
        (zstd::stream::encode_all(&upper[..], 1).unwrap(), "application/vnd.oci.image.layer.v1.tar+zstd"),
    ];
    let descriptor = |bytes: &[u8], kind: &str| serde_json::json!({"mediaType": kind, "digest": sha256(bytes), "size": bytes.len()});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": layers.iter().map(|(bytes, kind)| descriptor(bytes, kind)).collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    let of_platform = |bytes: &[u8], machine: &str| {
        let mut entry = descriptor(bytes, "application/vnd.oci.image.manifest.v1+json");
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": machine});
        entry
    };
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [of_platform(b"another", "arm64"), of_platform(&manifest, "amd64")],
    });
    let blobs = [config, manifest].into_iter().chain(layers.map(|(bytes, _)| bytes));
    Image { blobs: blobs.map(|bytes| (sha256(&bytes), bytes)).collect(), index: index.to_string().into_bytes() }
}

/// A registry that knows one image and wants a password when `password` is set. Returns its address and request count.
fn registry(image: Image, password: Option<&'static str>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            answer(connection.unwrap(), &image, password);
        }
    });
    (address, count)
}

fn answer(mut connection: TcpStream, image: &Image, password: Option<&str>) {
    let mut lines = BufReader::new(connection.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_ascii_lowercase()).collect();
    let target = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let allowed = password.is_none() || headers.iter().any(|line| line.starts_with("authorization: basic "));
    let last = target.rsplit('/').next().unwrap_or_default();
    let (status, kind, body) = match last {
        _ if !allowed => ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"", "application/json", &b"{}"[..]),
        "" | "v2" => ("200 OK", "application/json", &b"{}"[..]),
        "1" => ("200 OK", "application/vnd.oci.image.index.v1+json", &image.index[..]),
        digest => match image.blobs.get(digest) {
            Some(blob) if target.contains("/manifests/") => ("200 OK", "application/vnd.oci.image.manifest.v1+json", &blob[..]),
            Some(blob) => ("200 OK", "application/octet-stream", &blob[..]),
            None => ("404 Not Found", "application/json", &br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no"}]}"#[..]),
        },
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    // The client may hang up early.
    let _ = connection.write_all(head.as_bytes()).and_then(|()| connection.write_all(body));
}

fn insecure(address: &str) -> BasesConfig {
    let settings = RegistryConfig { insecure: true, ..RegistryConfig::default() };
    BasesConfig { registries: BTreeMap::from([(address.to_owned(), settings)]), ..BasesConfig::default() }
}

fn check_image(world: &World, record: &LayerRecord) {
    assert_eq!(world.names(record), ["/", "/etc", "/etc/keep", "/opt", "/opt/new"]);
    assert_eq!(world.text(record, "etc/keep"), "kept");
    assert_eq!((record.config.env["A"].as_str(), record.config.workdir.as_deref()), ("b=c", Some("/etc")));
    assert_eq!(record.config.cmd.as_deref(), Some(&["run".to_owned()][..]));
}

#[tokio::test]
async fn a_registry_gives_index_manifest_and_layers_with_whiteouts() {
    let (address, count) = registry(image(), None);
    let world = world(insecure(&address));
    let record = world.resolve(&format!("{address}/a/b:1")).await.unwrap();
    check_image(&world, &record);
    let asked = count.load(Ordering::SeqCst);
    assert_eq!(world.resolve(&format!("{address}/a/b:1")).await.unwrap(), record);
    assert_eq!(count.load(Ordering::SeqCst), asked, "the second time must not ask the registry");
}

#[tokio::test]
async fn a_registry_of_this_machine_needs_no_certificates_and_no_settings() {
    let (address, _) = registry(image(), None);
    let world = world(BasesConfig::default());
    check_image(&world, &world.resolve(&format!("{address}/a/b:1")).await.unwrap());
}

#[tokio::test]
async fn a_password_is_asked_for_and_given() {
    let (address, _) = registry(image(), Some("secret"));
    let world = world(insecure(&address));
    let name = format!("{address}/a/b:1");
    let error = world.resolve(&name).await.unwrap_err().to_string();
    assert!(error.contains("does not let anybody without a login read") && error.contains("REGISTRY_PASSWORD"), "{error}");
    let reference = ImageReference::parse(&name).unwrap();
    let credentials = Credentials::Basic { username: "u".to_owned(), password: "secret".to_owned() };
    let Base::Ready(record) = world.bases.resolve(&reference, &credentials, &world.log).await.unwrap() else { panic!() };
    check_image(&world, &record);
}

#[tokio::test]
async fn a_wrong_layer_is_refused() {
    let mut image = image();
    let (name, blob) = image.blobs.iter().find(|(_, blob)| blob.starts_with(&[0x1f, 0x8b])).unwrap();
    // The same name for other bytes: what a broken or lying registry does.
    let (name, mut blob) = (name.clone(), blob.clone());
    blob = gzip(&[tar(&[("evil", "x")]), blob].concat());
    image.blobs.insert(name, blob);
    let (address, _) = registry(image, None);
    let world = world(insecure(&address));
    let error = world.resolve(&format!("{address}/a/b:1")).await.unwrap_err();
    assert!(matches!(error, Error::NoBase { .. }), "{error}");
}

#[tokio::test]
async fn an_unreachable_registry_is_remembered_and_everything_tried_is_told() {
    // Nobody listens there: the port was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let world = world(insecure(&address));
    let name = format!("{address}/a/b:1");
    let first = world.resolve(&name).await.unwrap_err().to_string();
    assert!(first.contains(&format!("registry: registry {address} cannot be reached")), "{first}");
    assert!(first.contains("made here: only python:X.Y"), "{first}");
    let second = world.resolve(&name).await.unwrap_err().to_string();
    assert!(second.contains("s ago)"), "{second}");
}

#[tokio::test]
async fn configured_folders_tars_and_layouts_come_first() {
    let mut world = world(BasesConfig { offline: true, ..BasesConfig::default() });
    let dir = world.dir.path().to_owned();
    std::fs::create_dir_all(dir.join("root/etc")).unwrap();
    std::fs::write(dir.join("root/etc/keep"), "kept").unwrap();
    std::fs::write(dir.join("root.tar"), gzip(&tar(&[("etc/keep", "kept")]))).unwrap();
    let image = image();
    let blobs = dir.join("layout/blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for (digest, blob) in &image.blobs {
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), blob).unwrap();
    }
    std::fs::write(dir.join("layout/index.json"), &image.index).unwrap();
    let place = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let rule = |pattern: &str, source| BaseRule { pattern: pattern.to_owned(), source, config: ImageConfig::default() };
    world.bases.config.base = vec![
        rule("a:{version}", BaseSource::Directory { path: place("root") }),
        rule("b:*", BaseSource::Tar { path: place("root.tar") }),
        rule("c:1", BaseSource::OciLayout { path: place("layout"), tag: None }),
        rule("d:1", BaseSource::Tar { path: place("nothing") }),
    ];
    for name in ["a:1", "b:1"] {
        let record = world.resolve(name).await.unwrap();
        assert_eq!(
            (world.names(&record), world.text(&record, "etc/keep")),
            (vec!["/".into(), "/etc".into(), "/etc/keep".into()], "kept".into())
        );
    }
    let record = world.resolve("c:1").await.unwrap();
    check_image(&world, &record);
    let error = world.resolve("d:1").await.unwrap_err().to_string();
    assert!(error.contains("configuration: cannot read") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn a_series_that_the_machine_lacks_becomes_a_recipe_or_a_reason() {
    let world = world(BasesConfig { offline: true, build_python: Some(false), ..BasesConfig::default() });
    let error = world.resolve("python:3.2-slim").await.unwrap_err().to_string();
    assert!(error.contains("needs an interpreter of Python 3.2: this machine has none"), "{error}");
}

#[test]
fn secrets_for_registries() {
    let env = |pairs: &[(&str, &str)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let basic = |username: &str, password: &str| Credentials::Basic { username: username.to_owned(), password: password.to_owned() };
    let fixed = env(&[("REGISTRY_USERNAME", "u"), ("REGISTRY_PASSWORD", "p")]);
    assert_eq!(Credentials::from_secret(4, &fixed).unwrap(), basic("u", "p"));
    assert_eq!(Credentials::from_secret(2, &env(&[("SERVICE_ACCOUNT_JSON", "{}")])).unwrap(), basic("_json_key", "{}"));
    assert_eq!(Credentials::from_secret(0, &fixed).unwrap(), Credentials::Anonymous);
    let error = Credentials::from_secret(4, &env(&[])).unwrap_err().to_string();
    assert_eq!(error, "the registry's secret has no variable REGISTRY_USERNAME");
}

#[test]
fn names_of_standalone_mounts() {
    assert_eq!(standalone_name("python-build-standalone.20251209.3.14.2t-gnu"), Some((20251209, "3.14.2t")));
    assert_eq!(standalone_name("modal-client-mount-1.0.0"), None);
}

#[tokio::test]
async fn standalone_mounts_have_the_link_from_the_release_on_that_brings_it() {
    let found = interpreters::find(&[]);
    let Some(interpreter) = interpreters::choose(&found, "3.12", None) else {
        eprintln!("skipped: this machine has no Python 3.12 under pyenv, /usr/local or uv");
        return;
    };
    let world = world(BasesConfig { offline: true, ..BasesConfig::default() });
    let mut has_link = Vec::new();
    for release in ["20240107", "20241008"] {
        let name = format!("python-build-standalone.{release}.3.12.999-gnu");
        let manifest = match world.bases.standalone_python(&name, &world.log).await {
            Err(Error::NoProgram { program, .. }) => {
                eprintln!("skipped: this machine has no {program}");
                return;
            }
            other => other.unwrap(),
        };
        let tree = Tree::read(&world.store, &manifest).unwrap();
        assert!(tree.get(&path("python/bin/python3")).is_some());
        has_link.push(tree.get(&path("python/bin/python")).is_some());
    }
    assert_eq!(has_link, [false, true]);
    let said = format!("Python 3.12.999 was asked for; this machine has {}", interpreter.version);
    assert!(world.log.text().contains(&said), "{}", world.log.text());
    let error = world.bases.standalone_python("python-build-standalone.20240107.3.99.1-gnu", &world.log).await.unwrap_err();
    let error = error.to_string();
    for part in ["no Python 3.99 to add (it has ", &interpreter.series, "name its folder in images.python_dirs"] {
        assert!(error.contains(part), "{error}");
    }
}
