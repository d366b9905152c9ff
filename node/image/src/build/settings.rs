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
    /// Proxy of apt alone, such as a cache of packages beside the node.
    pub apt_proxy: Option<String>,
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
        if self.apt_proxy.is_some() {
            env.insert("APT_CONFIG".to_owned(), format!("{OWN_FOLDER}/apt.conf"));
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
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).file("write", &path)
        };
        if let Some(bundle) = &self.ca_bundle {
            std::fs::copy(bundle, folder.join("ca.pem")).file("copy", bundle)?;
            write("wgetrc", format!("ca_certificate = {OWN_FOLDER}/ca.pem\n"))?;
        }
        if let Some(proxy) = &self.apt_proxy {
            write("apt.conf", format!("Acquire::http::Proxy \"{proxy}\";\nAcquire::https::Proxy \"{proxy}\";\n"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_becomes_what_its_tools_read() {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("bundle");
        std::fs::write(&bundle, "CERTIFICATES").unwrap();
        let some = |text: &str| Some(text.to_owned());
        let egress = Egress {
            ca_bundle: Some(bundle),
            https_proxy: some("http://p:1"),
            apt_proxy: some("http://a:2"),
            python_index: some("http://i/simple"),
            env: BTreeMap::from([("GOPROXY".to_owned(), "off".to_owned())]),
            ..Egress::default()
        };
        let env = egress.env();
        for (name, value) in [
            ("SSL_CERT_FILE", "/__shoal/ca.pem"),
            ("https_proxy", "http://p:1"),
            ("HTTPS_PROXY", "http://p:1"),
            ("APT_CONFIG", "/__shoal/apt.conf"),
            ("PIP_INDEX_URL", "http://i/simple"),
            ("UV_DEFAULT_INDEX", "http://i/simple"),
            ("GOPROXY", "off"),
        ] {
            assert_eq!(env[name], value, "{name}");
        }
        assert!(!env.contains_key("http_proxy"));
        egress.write_files(folder.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((text("ca.pem").as_str(), text("wgetrc").as_str()), ("CERTIFICATES", "ca_certificate = /__shoal/ca.pem\n"));
        assert!(text("apt.conf").starts_with("Acquire::http::Proxy \"http://a:2\";\n"));
    }
}
