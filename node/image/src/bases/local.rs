//! Bases that lie on this machine: a folder, a tar, a folder in the OCI image layout.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use shoal_storage::manifest::{Objects, Tree};

use crate::config::ImageConfig;
use crate::error::{FileContext, Result, TreeContext};

use super::layers::{self, Packing, hex, not_an_image};
use super::oci::ConfigFile;

/// Reads a root file system in a folder.
pub(super) fn directory(path: &Path, objects: &impl Objects) -> Result<Tree> {
    Tree::from_dir(path, objects).tree(path.display().to_string())
}

/// Reads a root file system in a tar, packed or not.
pub(super) fn tar(path: &Path, objects: &impl Objects) -> Result<Tree> {
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(4).read_to_end(&mut start)).file("read", path)?;
    let mut tree = Tree::new();
    let file = File::open(path).file("read", path)?;
    layers::apply(&mut tree, &path.display().to_string(), file, Packing::of_start(&start), None, objects)?;
    Ok(tree)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index or a manifest; the fields of the other kind are empty.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Reads an image in the OCI image layout. Blobs are checked against their names.
pub(super) fn oci_layout(folder: &Path, tag: Option<&str>, objects: &impl Objects) -> Result<(Tree, ImageConfig)> {
    let layout = Layout { folder, name: folder.display().to_string() };
    let index = folder.join("index.json");
    let text = std::fs::read(&index).file("read", &index)?;
    let mut document = layout.parse(&text)?;
    let mut tag = tag;
    while document.config.is_none() {
        let chosen = layout.choose(&document.manifests, tag.take())?;
        document = layout.parse(&layout.small_blob(&chosen.digest)?)?;
    }
    let config = document.config.as_ref().expect("the loop ended");
    let config: ConfigFile = serde_json::from_slice(&layout.small_blob(&config.digest)?)
        .map_err(|error| not_an_image(&layout.name, format!("has a config that cannot be read: {error}")))?;
    if let Some(platform) = config.foreign_platform() {
        return Err(not_an_image(&layout.name, format!("is for {platform}")));
    }
    let mut tree = Tree::new();
    for (number, layer) in document.layers.iter().enumerate() {
        let packing = Packing::of_media_type(&layer.media_type)
            .ok_or_else(|| not_an_image(&layout.name, format!("has a layer of type {}", layer.media_type)))?;
        let path = layout.blob(&layer.digest)?;
        let file = File::open(&path).file("read", &path)?;
        // The content hash speaks for the blob, too.
        let diff_id = config.diff_ids().get(number).map(String::as_str);
        layers::apply(&mut tree, &layout.name, file, packing, diff_id, objects)?;
    }
    Ok((tree, config.image_config()))
}

struct Layout<'a> {
    folder: &'a Path,
    name: String,
}

impl Layout<'_> {
    fn parse(&self, text: &[u8]) -> Result<Document> {
        serde_json::from_slice(text).map_err(|error| not_an_image(&self.name, format!("is no OCI layout: {error}")))
    }

    fn choose<'d>(&self, manifests: &'d [Descriptor], tag: Option<&str>) -> Result<&'d Descriptor> {
        let name = "org.opencontainers.image.ref.name";
        let ours = |descriptor: &&Descriptor| {
            descriptor.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
        };
        let named = |descriptor: &&Descriptor| tag.is_none_or(|tag| descriptor.annotations.get(name).is_some_and(|found| found == tag));
        let mut fitting = manifests.iter().filter(ours).filter(named);
        match (fitting.next(), fitting.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err(not_an_image(&self.name, format!("has no image {} for linux/amd64", tag.unwrap_or_default()))),
            (Some(_), Some(_)) => Err(not_an_image(&self.name, "has several images: give the rule a tag".to_owned())),
        }
    }

    fn blob(&self, digest: &str) -> Result<PathBuf> {
        let hash = digest.strip_prefix("sha256:").filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let hash = hash.ok_or_else(|| not_an_image(&self.name, format!("names the blob {digest:?}, expected sha256:…")))?;
        Ok(self.folder.join("blobs/sha256").join(hash))
    }

    fn small_blob(&self, digest: &str) -> Result<Vec<u8>> {
        let path = self.blob(digest)?;
        let bytes = std::fs::read(&path).file("read", &path)?;
        let found = hex(&Sha256::digest(&bytes));
        match digest.strip_prefix("sha256:") == Some(found.as_str()) {
            true => Ok(bytes),
            false => Err(not_an_image(&self.name, format!("has a blob {digest} whose content is sha256:{found}"))),
        }
    }
}
