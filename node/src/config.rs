//! The node's configuration: `shoal.toml`, overridden by `SHOAL_…` variables, overridden by flags.
//!
//! Every key has a default; a cluster of one node needs no file.

mod images;
mod sections;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use figment::Figment;
use figment::providers::{Env, Format as _, Serialized, Toml};
use serde::{Deserialize, Serialize};
use shoal_image::build::Egress;

use self::images::Images;
pub(crate) use self::sections::Disk;
use self::sections::{CallsConfig, Cluster, Containers, Gpu};

/// Where the node looks for its configuration when no flag names a file.
pub(crate) const CONFIG_PATH: &str = "/etc/shoal/shoal.toml";

/// Keys that a `SHOAL_…` variable may set; other variables of that prefix belong to somebody else.
const KEYS: [&str; 26] = [
    "data",
    "api",
    "web",
    "advertise",
    "peers",
    "segmentation",
    "join",
    "token",
    "token_file",
    "seeds",
    "expect",
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
    "calls",
    "cluster",
    "copies",
    "repair",
    "gpu",
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
    /// The name or address by which clients and other nodes reach this one, with the API's port where that is another outside:
    /// `HOST` or `HOST:PORT`. Empty = clients are told what they used themselves, other nodes the address of the way out.
    pub(crate) advertise: String,
    /// Where other nodes reach this one (UDP); none = the address of the API.
    pub(crate) peers: Option<SocketAddr>,
    /// Whether the network card cuts packets to other nodes. A few cannot; then a core moves a quarter as much.
    pub(crate) segmentation: bool,
    /// A node of the cluster to join, `host:port`; empty = found one. Counts only for a data folder that belongs to none.
    pub(crate) join: String,
    /// What lets this node join, from `shoal token create --node`; with seeds, the secret that all of them share.
    pub(crate) token: String,
    /// A file that holds the token, instead; empty = none.
    pub(crate) token_file: PathBuf,
    /// Machines that become one cluster, in any order, `host:port`; the same on all of them. Counts only for a data folder that
    /// belongs to none, and lets others of them in later.
    pub(crate) seeds: Vec<String>,
    /// How many of the sorted seeds found the cluster; 0 = all.
    pub(crate) expect: usize,
    /// What people call this node; empty = the machine's host name.
    pub(crate) name: String,
    /// The program that runs containers.
    pub(crate) runsc: PathBuf,
    /// The CPU that containers may use, in thousandths of a core; 0 = all of the machine's.
    pub(crate) cpu_milli: u32,
    /// The memory that containers may use, in bytes; 0 = nine tenths of the machine's.
    pub(crate) memory_bytes: u64,
    /// DNS servers of containers and builds; empty = those of the machine.
    pub(crate) dns: Vec<Ipv4Addr>,
    /// What may be logged: `info`, `debug`, or a filter of `tracing`. A level without a target is of Shoal itself; libraries that are not
    /// named say errors alone.
    pub(crate) log: String,
    /// Builds of images.
    pub(crate) images: Images,
    /// How much of the audit log is kept.
    pub(crate) audit: crate::audit::Keep,
    /// How much of the disk is for what.
    pub(crate) disk: Disk,
    /// Starts of containers.
    pub(crate) containers: Containers,
    /// Where the records of calls are.
    pub(crate) calls: CallsConfig,
    /// How the cluster looks after itself.
    pub(crate) cluster: Cluster,
    /// On how many nodes everything is kept that the log names; all nodes of a cluster should say the same.
    pub(crate) copies: usize,
    /// How copies are restored that were lost.
    pub(crate) repair: crate::copies::Repair,
    /// GPUs.
    pub(crate) gpu: Gpu,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: PathBuf::from("/var/lib/shoal"),
            api: SocketAddr::from(([0, 0, 0, 0], 7470)),
            web: SocketAddr::from(([0, 0, 0, 0], 7480)),
            advertise: String::new(),
            peers: None,
            segmentation: true,
            join: String::new(),
            token: String::new(),
            token_file: PathBuf::new(),
            seeds: Vec::new(),
            expect: 0,
            name: String::new(),
            runsc: PathBuf::from("/usr/local/bin/runsc"),
            cpu_milli: 0,
            memory_bytes: 0,
            dns: Vec::new(),
            log: "info".to_owned(),
            images: Images::default(),
            audit: crate::audit::Keep::default(),
            disk: Disk::default(),
            containers: Containers::default(),
            calls: CallsConfig::default(),
            cluster: Cluster::default(),
            copies: 2,
            repair: crate::copies::Repair::default(),
            gpu: Gpu::default(),
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
        let file = file.unwrap_or(Path::new(CONFIG_PATH));
        let config: Self = Figment::from(Serialized::defaults(Self::default()))
            .merge(toml)
            .merge(Env::prefixed("SHOAL_").filter(|key| is_key(key.as_str())).split("__"))
            .merge(Serialized::defaults(flags))
            .extract()
            .with_context(|| format!("cannot read the configuration from {}", file.display()))?;
        let percent = config.disk.full_percent;
        anyhow::ensure!((1..=100).contains(&percent), "disk.full_percent is {percent}, but is a part of the disk in percent: say 1 to 100");
        Ok(config)
    }

    /// What builds and containers need to reach the world as this node does.
    pub(crate) fn egress(&self) -> Egress {
        self.images.egress()
    }

    /// Returns the host under which this node is advertised, without a port.
    pub(crate) fn advertised_host(&self) -> Option<&str> {
        let host = without_port(&self.advertise);
        (!host.is_empty()).then_some(host)
    }

    /// Returns the host and port of URLs for clients; empty when they are told what they used themselves.
    pub(crate) fn advertised(&self) -> String {
        match self.advertised_host() {
            Some(host) if host.len() == self.advertise.len() => format!("{host}:{}", self.api.port()),
            _ => self.advertise.clone(),
        }
    }

    /// Returns the token, from its file if it is in one.
    pub(crate) fn token(&self) -> anyhow::Result<String> {
        if self.token_file.as_os_str().is_empty() {
            return Ok(self.token.trim().to_owned());
        }
        anyhow::ensure!(self.token.is_empty(), "--token and --token-file exclude each other");
        let read = std::fs::read_to_string(&self.token_file);
        let token = read.with_context(|| format!("cannot read the token from {}", self.token_file.display()))?.trim().to_owned();
        anyhow::ensure!(!token.is_empty(), "the file of the token, {}, is empty", self.token_file.display());
        Ok(token)
    }

    /// Where other nodes reach this one.
    pub(crate) fn peers(&self) -> SocketAddr {
        self.peers.unwrap_or(self.api)
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

/// Takes the port off a host, where there is one: `[::1]:7470` and `n1:7470` have one, `[::1]` and `n1` none.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => host,
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
    fn an_advertised_host_may_have_a_port() {
        let advertised = |advertise: &str| {
            let config = Config { advertise: advertise.to_owned(), ..Config::default() };
            (config.advertised_host().map(str::to_owned), config.advertised())
        };
        let of = |host: &str, all: &str| (Some(host.to_owned()), all.to_owned());
        assert_eq!(advertised(""), (None, String::new()));
        assert_eq!(advertised("n1.example"), of("n1.example", "n1.example:7470"));
        assert_eq!(advertised("n1.example:80"), of("n1.example", "n1.example:80"));
        assert_eq!(advertised("[::1]"), of("[::1]", "[::1]:7470"));
        assert_eq!(advertised("[::1]:80"), of("[::1]", "[::1]:80"));
    }

    #[test]
    fn a_part_of_the_disk_that_cannot_be_is_refused() {
        let load = |percent: u8| Config::load(None, &serde_json::json!({ "disk": { "full_percent": percent } }));
        assert_eq!(load(98).unwrap().disk.chunks().full_percent, 98);
        for wrong in [0, 101] {
            let refused = load(wrong).unwrap_err().to_string();
            assert_eq!(refused, format!("disk.full_percent is {wrong}, but is a part of the disk in percent: say 1 to 100"));
        }
    }

    #[test]
    fn variables_set_keys_in_any_case_and_strangers_are_left_alone() {
        for key in ["LOG", "log", "IMAGES__CA_BUNDLE", "CPU_MILLI", "CONTAINERS__ZYGOTES"] {
            assert!(is_key(key), "{key}");
        }
        for stranger in ["BIN", "TEST_DATA", "LOGS", "CLIENT_PYTHON"] {
            assert!(!is_key(stranger), "{stranger}");
        }
    }
}
