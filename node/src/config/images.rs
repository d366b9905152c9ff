//! `[images]`: where bases come from, and what builds are lent.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_image::bases::{BaseRule, BaseSource, BasesConfig, RegistryConfig};
use shoal_image::build::{BuildConfig, Egress};

/// How images are built.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Images {
    /// The builder version that new clients are told.
    pub(crate) builder_version: String,
    /// Certificates that builds and containers trust besides the image's own; empty = only the image's own. What the node
    /// itself was told to trust by `SSL_CERT_FILE` when nobody says.
    pub(crate) ca_bundle: PathBuf,
    /// Base images that lie on this machine, by the names that mean them: `{ "python:3.12-slim*" = "/srv/python" }`. A
    /// directory with a root filesystem, a tar of one, or a directory in the OCI layout. In names `*` is anything.
    pub(crate) bases: BTreeMap<String, PathBuf>,
    /// Whether registries are asked for base images.
    pub(crate) registries: bool,
    /// How single registries are asked, by host and port.
    pub(crate) registry: BTreeMap<String, RegistryConfig>,
    /// Directories with Python installations, beside those that are looked for anyway.
    pub(crate) python_dirs: Vec<PathBuf>,
    /// Whether a Python that this machine lacks is built from the distribution's source.
    pub(crate) build_python: bool,
    /// How builds are carried out, and what they and containers need to get out of the machine's network.
    pub(crate) build: BuildConfig,
}

impl Default for Images {
    fn default() -> Self {
        Self {
            builder_version: "2025.06".to_owned(),
            ca_bundle: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).unwrap_or_default(),
            bases: BTreeMap::new(),
            registries: true,
            registry: BTreeMap::new(),
            python_dirs: Vec::new(),
            build_python: true,
            build: BuildConfig::default(),
        }
    }
}

impl Images {
    pub(super) fn egress(&self) -> Egress {
        let mut egress = self.build.egress.clone();
        let bundle = Some(&self.ca_bundle).filter(|bundle| !bundle.as_os_str().is_empty());
        egress.ca_bundle = egress.ca_bundle.or(bundle.cloned());
        egress
    }

    /// How builds are carried out.
    pub(crate) fn build(&self) -> BuildConfig {
        BuildConfig { egress: self.egress(), ..self.build.clone() }
    }

    /// Where base images come from. Names without wildcards count before those with some, long ones before short ones.
    pub(crate) fn bases(&self) -> BasesConfig {
        let mut names: Vec<_> = self.bases.iter().collect();
        names.sort_by_key(|(name, _)| (name.contains(['*', '{']), std::cmp::Reverse(name.len())));
        let rule = |(name, path): (&String, &PathBuf)| BaseRule { pattern: name.clone(), source: source(path), config: Default::default() };
        BasesConfig {
            base: names.into_iter().map(rule).collect(),
            registries: self.registry.clone(),
            python_dirs: self.python_dirs.clone(),
            offline: !self.registries,
            build_python: Some(self.build_python),
        }
    }
}

/// Says what lies at a path. What is not there yet is taken for a directory.
fn source(path: &Path) -> BaseSource {
    let text = path.to_string_lossy().into_owned();
    if path.join("oci-layout").exists() {
        BaseSource::OciLayout { path: text, tag: None }
    } else if path.is_file() {
        BaseSource::Tar { path: text }
    } else {
        BaseSource::Directory { path: text }
    }
}
