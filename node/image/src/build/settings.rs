//! How builds are carried out on a node: `[build]` of the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{FileContext, Result};

/// Settings of builds. None of them is part of an image's identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BuildConfig {
    /// How many builds run at once on this node.
    pub max_parallel: usize,
    /// How long the instructions of one build may take in all, in seconds.
    pub timeout_seconds: u64,
    /// Hard limit of CPU time of a build container, in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Memory limit of a build container.
    pub memory_bytes: Option<u64>,
    /// How much one container may write.
    pub disk_bytes: Option<u64>,
    /// Whether commands reach the internet.
    pub network: bool,
    /// What commands need to get out.
    pub egress: Egress,
}

impl Default for BuildConfig {
    fn default() -> Self {
        Self {
            max_parallel: 2,
            timeout_seconds: 3600,
            cpu_millis: None,
            memory_bytes: Some(8 << 30),
            disk_bytes: Some(50 << 30),
            network: true,
            egress: Egress::default(),
        }
    }
}

impl BuildConfig {
    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }
}

/// What commands need to get out of the machine's network.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Egress {
    /// Certificates (PEM) for commands; unset = the image's own trust store only.
    pub ca_bundle: Option<PathBuf>,
    /// Proxy of plain requests, in both letter cases.
    pub http_proxy: Option<String>,
    /// Proxy of encrypted requests.
    pub https_proxy: Option<String>,
    /// Hosts that need no proxy.
    pub no_proxy: Option<String>,
    /// Package index for pip and uv.
    pub python_index: Option<String>,
    /// Package registry for npm.
    pub npm: Option<String>,
    /// Channel alias for conda.
    pub conda: Option<String>,
    /// Further variables, as they are.
    pub env: BTreeMap<String, String>,
}

/// The folder in containers that holds what is the node's and not the image's.
pub const OWN_FOLDER: &str = "/__shoal";

/// Variables that name a bundle of certificates. An image that sets one of them wins.
const CA_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
];

impl Egress {
    /// Environment of commands while they run; recorded nowhere.
    ///
    /// The bundle has a path of its own: mounted over the image's file it would break the package that owns that file.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        if self.ca_bundle.is_some() {
            env.extend(CA_VARIABLES.map(|name| (name.to_owned(), format!("{OWN_FOLDER}/ca.pem"))));
            env.insert("WGETRC".to_owned(), format!("{OWN_FOLDER}/wgetrc"));
        }
        let both = |name: &str| [name.to_owned(), name.to_ascii_uppercase()];
        for (name, value) in [("http_proxy", &self.http_proxy), ("https_proxy", &self.https_proxy), ("no_proxy", &self.no_proxy)] {
            env.extend(value.iter().flat_map(|value| both(name).map(|name| (name, value.clone()))));
        }
        for (names, value) in [
            (&["PIP_INDEX_URL", "UV_DEFAULT_INDEX"][..], &self.python_index),
            (&["NPM_CONFIG_REGISTRY"], &self.npm),
            (&["CONDA_CHANNEL_ALIAS"], &self.conda),
        ] {
            env.extend(value.iter().flat_map(|value| names.iter().map(|name| ((*name).to_owned(), value.clone()))));
        }
        env.extend(self.env.clone());
        env
    }

    /// Writes the files that [`env`](Self::env) names into a folder of the host, to be seen as [`OWN_FOLDER`].
    pub fn write_files(&self, folder: &Path) -> Result<()> {
        let Some(bundle) = &self.ca_bundle else { return Ok(()) };
        std::fs::copy(bundle, folder.join("ca.pem")).file("copy", bundle)?;
        let settings = folder.join("wgetrc");
        std::fs::write(&settings, format!("ca_certificate = {OWN_FOLDER}/ca.pem\n")).file("write", &settings)
    }
}
