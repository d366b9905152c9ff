//! The node's configuration: `shoal.toml`, overridden by `SHOAL_…` variables, overridden by flags.
//!
//! Every key has a default; a cluster of one node needs no file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use std::time::Duration;
use anyhow::Context as _;
use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use shoal_image::build::Egress;

/// Where the node looks for its configuration when no flag names a file.
pub(crate) const CONFIG_PATH: &str = "/etc/shoal/shoal.toml";

/// Keys that a `SHOAL_…` variable may set; other variables of that prefix belong to somebody else.
const KEYS: [&str; 14] = [
    "data",
    "api",
    "web",
    "advertise",
    "name",
    "runsc",
    "cpu_milli",
    "memory_bytes",
    "dns",
    "log",
    "images",
    "containers",
    "audit",
    "disk",
];

/// What a node is told from outside.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Everything the node keeps.
    pub(crate) data: PathBuf,
    /// Where clients are answered: gRPC, blobs, metrics.
    pub(crate) api: SocketAddr,
    /// Where web endpoints are answered.
    pub(crate) web: SocketAddr,
    /// The host name that clients are told for blobs; empty = the one they used themselves.
    pub(crate) advertise: String,
    /// What people call this node; empty = the machine's host name.
    pub(crate) name: String,
    /// The program that runs containers.
    pub(crate) runsc: PathBuf,
    /// The CPU that containers may use, in thousandths of a core; 0 = all of the machine's.
    pub(crate) cpu_milli: u32,
    /// The memory that containers may use, in bytes; 0 = nine tenths of the machine's.
    pub(crate) memory_bytes: u64,
    /// What may be logged: `info`, `debug`, or a filter of `tracing`.
    pub(crate) log: String,
    /// Builds of images.
    pub(crate) images: Images,
    /// Starts of containers.
    pub(crate) containers: Containers,
}

    /// How much of the audit log is kept.
    pub(crate) audit: crate::audit::Keep,
    /// How much of the disk is for what.
    pub(crate) disk: Disk,
/// How containers are started.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Containers {
/// How much of the disk is for what, and for how long things stay there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Disk {
    /// The chunk store: images, files, blobs. What was not used for the longest time goes first; what functions need that may
    /// run, and what containers are shown, stays. In bytes; 0 = until the disk is four fifths full.
    pub(crate) chunks_bytes: u64,
    /// How long a chunk stays that was put or said to be here, though nothing names it yet, in seconds. Not less than a build or
    /// an upload takes.
    pub(crate) chunks_keep_seconds: u64,
    /// What containers and builds printed, in bytes. The oldest lines go first.
    pub(crate) logs_bytes: u64,
    /// For how many days lines are kept.
    pub(crate) logs_days: u64,
    /// What one container may write to its own disk when its function does not say, in bytes; 0 = as much as there is.
    pub(crate) overlay_bytes: u64,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            chunks_bytes: 0,
            chunks_keep_seconds: shoal_storage::store::KEEP.as_secs(),
            logs_bytes: 1 << 30,
            logs_days: 30,
            overlay_bytes: 0,
        }
    }
}

impl Disk {
    /// How the chunk store is kept.
    pub(crate) fn chunks(&self) -> shoal_storage::store::Options {
        shoal_storage::store::Options { keep: Duration::from_secs(self.chunks_keep_seconds), ..Default::default() }
    }

    /// How the logs of containers are bounded.
    pub(crate) fn logs(&self) -> shoal_worker::log::Options {
        shoal_worker::log::Options::keeping(self.logs_bytes, Duration::from_secs(self.logs_days.saturating_mul(86_400)))
    }
}

    /// How many sandboxes wait for a container, of some 14 MiB each.
    pub(crate) sandboxes_ahead: usize,
    /// Snapshots of Python with the client loaded are made for images in use, and new containers go on from them.
    pub(crate) zygotes: bool,
    /// How much disk those snapshots may take, in bytes; some 35 MiB each.
    pub(crate) zygote_bytes: u64,
}

impl Default for Containers {
    fn default() -> Self {
        Self { sandboxes_ahead: 2, zygotes: true, zygote_bytes: 2 << 30 }
    }
}

/// How images are built.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// The builder version that new clients are told.
    pub(crate) builder_version: String,
    /// Certificates that builds and containers trust besides the image's own; empty = only the image's own. What the node
    /// itself was told to trust by `SSL_CERT_FILE` when nobody says.
    pub(crate) ca_bundle: PathBuf,
    /// Directories with a root filesystem, by tag: `{ "python:3.12-slim" = "/srv/python" }`.
    pub(crate) bases: std::collections::BTreeMap<String, PathBuf>,
    /// Containers pull from registries.
    pub(crate) registries: bool,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            builder_version: "2025.06".to_owned(),
            ca_bundle: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).unwrap_or_default(),
            bases: std::collections::BTreeMap::new(),
            registries: true,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("/var/lib/shoal"),
            api: SocketAddr::from(([0, 0, 0, 0], 7470)),
            web: SocketAddr::from(([0, 0, 0, 0], 7480)),
            advertise: String::new(),
            name: String::new(),
            runsc: PathBuf::from("/usr/local/bin/runsc"),
            cpu_milli: 0,
            memory_bytes: 0,
            log: "info,openraft=warn,fuser=error".to_owned(),
            images: Images::default(),
            containers: Containers::default(),
        }
    }
}

impl Config {
    /// Reads the configuration. A file that a flag names must exist; the default one may be missing.
    pub(crate) fn load(file: Option<&Path>, flags: &impl Serialize) -> anyhow::Result<Self> {
        let toml = match file {
            Some(path) => Toml::file_exact(path),
            None => Toml::file(CONFIG_PATH),
        };
        Figment::from(Serialized::defaults(Self::default()))
            .merge(toml)
            .merge(Env::prefixed("SHOAL_").filter(|key| is_key(key.as_str())).split("__"))
            .merge(Serialized::defaults(flags))
            .extract()
            .with_context(|| format!("cannot read the configuration from {}", file.unwrap_or(Path::new(CONFIG_PATH)).display()))
    }

    /// What builds and containers need to reach the world as this node does.
    pub(crate) fn egress(&self) -> Egress {
        let bundle = &self.images.ca_bundle;
        Egress { ca_bundle: (!bundle.as_os_str().is_empty()).then(|| bundle.clone()), ..Egress::default() }
    }

    /// The socket on which the node's own command line is answered; only root may use it.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        admin_socket(&self.data)
    }

    /// The node's name for people.
    pub(crate) fn node_name(&self) -> String {
        if !self.name.is_empty() {
            return self.name.clone();
        }
        nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "node".to_owned())
    }
}

/// The admin socket of the node that keeps its data in `data`.
pub(crate) fn admin_socket(data: &Path) -> PathBuf {
    data.join("run/admin.sock")
}

/// Says whether a variable, without its prefix and in whatever case, sets one of [`KEYS`].
fn is_key(variable: &str) -> bool {
    KEYS.iter().any(|key| variable.split("__").next().is_some_and(|first| first.eq_ignore_ascii_case(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_set_keys_in_any_case_and_strangers_are_left_alone() {
        for key in ["LOG", "log", "IMAGES__CA_BUNDLE", "CPU_MILLI", "CONTAINERS__ZYGOTES"] {
            assert!(is_key(key), "{key}");
            audit: crate::audit::Keep::default(),
            disk: Disk::default(),
        }
        for stranger in ["BIN", "TEST_DATA", "LOGS", "CLIENT_PYTHON"] {
            assert!(!is_key(stranger), "{stranger}");
        }
    }
}
