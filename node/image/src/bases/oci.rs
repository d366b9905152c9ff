//! The config of an image as registries and layouts write it.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::config::ImageConfig;

/// The config object: what to run, and the hashes of the layers.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Section>,
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Section {
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    shell: Option<Vec<String>>,
    user: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    on_build: Option<Vec<String>>,
}

impl ConfigFile {
    /// Says what machine it is for when that is not ours.
    pub(super) fn foreign_platform(&self) -> Option<String> {
        let (os, machine) = (self.os.as_str(), self.architecture.as_str());
        let ours = matches!(os, "" | "linux") && matches!(machine, "" | "amd64");
        (!ours).then(|| format!("{os}/{machine}"))
    }

    /// Hashes of the unpacked layers, lowest first.
    pub(super) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    pub(super) fn image_config(&self) -> ImageConfig {
        let Some(section) = &self.config else { return ImageConfig::default() };
        let names = |map: &Option<BTreeMap<String, serde_json::Value>>| map.iter().flat_map(|map| map.keys().cloned()).collect();
        let pairs = section.env.iter().flatten().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        ImageConfig {
            env: pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            workdir: text(&section.working_dir),
            entrypoint: section.entrypoint.clone(),
            cmd: section.cmd.clone(),
            shell: section.shell.clone().filter(|shell| !shell.is_empty()),
            user: text(&section.user),
            labels: section.labels.clone().unwrap_or_default(),
            exposed_ports: names(&section.exposed_ports),
            volumes: names(&section.volumes),
            stop_signal: text(&section.stop_signal),
            healthcheck: None,
            on_build: section.on_build.clone().unwrap_or_default(),
        }
    }
}
