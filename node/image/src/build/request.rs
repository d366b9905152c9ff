//! What a client asks for, in our own terms, and what identifies it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_runtime::Device;
use shoal_state::Digest;

use crate::bases::Credentials;
use crate::cache::LayerRecord;
use crate::key::KeyBuilder;

use super::function::BuildFunction;

/// An image to be built.
///
/// Ids that clients make anew for unchanged things are not in it: each is replaced by what stays the same.
#[derive(Debug, Clone, Default)]
pub struct BuildRequest {
    /// Elements of the recipe as they were sent.
    pub commands: Vec<String>,
    /// Images that FROM and `--from` may name, by that name.
    pub bases: BTreeMap<String, BaseImage>,
    /// Tree of the build context.
    pub context: Option<Digest>,
    /// Files over the context: absolute name in the context, bytes.
    pub context_files: Vec<(String, Vec<u8>)>,
    /// Values of ARG.
    pub build_args: BTreeMap<String, String>,
    /// Environment of all commands, later ones win.
    pub secrets: Vec<BuildSecret>,
    /// A GPU for the commands.
    pub gpu: Option<BuildGpu>,
    /// Volumes for the commands.
    pub volumes: Vec<BuildVolume>,
    /// A function to run instead of a recipe.
    pub function: Option<BuildFunction>,
    /// Who asks registries, with the number the SDK gives to the way of authentication.
    pub registry: RegistryAccess,
    /// Version of the builder, for example `2025.06`.
    pub builder_version: String,
    /// Build although the result is known, and replace what is known.
    pub force_build: bool,
    /// Build although the result is known, and leave what is known alone.
    pub ignore_cache: bool,
    /// What makes this very request an image of its own; empty for one that equal requests share.
    pub apart: String,
}

/// An image that was built before.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// Its [key](BuildRequest::key).
    pub key: Digest,
    /// Its tree and config.
    pub record: LayerRecord,
}

/// A secret's variables.
#[derive(Clone)]
pub struct BuildSecret {
    /// What identifies it: its id when it has a name, a keyed hash of its content when it has none.
    pub identity: Digest,
    /// Its variables.
    pub env: BTreeMap<String, String>,
}

impl std::fmt::Debug for BuildSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BuildSecret({:?}, {:?})", self.identity, self.env.keys().collect::<Vec<_>>())
    }
}

/// A GPU for commands.
#[derive(Debug, Clone, Default)]
pub struct BuildGpu {
    /// What was asked for, for example `H100:1`.
    pub request: String,
    /// The devices that this build has.
    pub devices: Vec<Device>,
    /// What runsc needs for them.
    pub runsc_flags: Vec<String>,
}

/// A volume for commands.
#[derive(Debug, Clone)]
pub struct BuildVolume {
    /// What identifies it.
    pub id: String,
    /// Where its files lie on this machine.
    pub source: PathBuf,
    /// Where commands see it.
    pub target: String,
    /// Whether they may not write to it.
    pub read_only: bool,
}

/// How registries are asked.
#[derive(Debug, Clone, Default)]
pub struct RegistryAccess {
    /// Number of the way in the SDK.
    pub kind: u32,
    /// User and password, or nothing.
    pub credentials: Credentials,
}

impl BuildRequest {
    /// Returns what identifies the image: the same program from another folder, app or client has the same key.
    ///
    /// Neither the node's settings nor `force_build` and `ignore_cache` are part of it.
    pub fn key(&self) -> Digest {
        let mut key = KeyBuilder::new("image 1").text("commands", &self.commands.join("\n"));
        for (name, base) in &self.bases {
            key = key.text("base name", name).digest("base", &base.key);
        }
        if let Some(context) = &self.context {
            key = key.digest("context", context);
        }
        let mut files: Vec<_> = self.context_files.iter().collect();
        files.sort();
        for (name, bytes) in files {
            key = key.text("file", name).bytes("content", bytes);
        }
        if let Some(function) = &self.function {
            key = key.digest("function", &function.identity);
        }
        if !self.apart.is_empty() {
            key = key.text("apart", &self.apart);
        }
        let secrets: Vec<_> = self.secrets.iter().map(|secret| *secret.identity.as_bytes()).collect();
        key.value("arguments", &self.build_args)
            .value("secrets", &secrets)
            .value("gpu", &self.gpu.as_ref().map(|gpu| &gpu.request))
            .value("volumes", &self.volume_identities())
            .value("registry", &self.registry.kind)
            .text("builder", &self.builder_version)
            .finish()
    }

    pub(super) fn volume_identities(&self) -> Vec<(&str, &str)> {
        self.volumes.iter().map(|volume| (volume.id.as_str(), volume.target.as_str())).collect()
    }

    /// The variables of all secrets.
    pub(super) fn secret_env(&self) -> BTreeMap<String, String> {
        self.secrets.iter().flat_map(|secret| secret.env.clone()).collect()
    }

    /// Whether known steps may be used.
    pub(super) fn reads_cache(&self) -> bool {
        !self.force_build && !self.ignore_cache
    }

    /// Whether steps are remembered.
    pub(super) fn writes_cache(&self) -> bool {
        !self.ignore_cache
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_definition_counts_and_the_rest_does_not() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let base = || BuildRequest {
            commands: vec!["FROM base".into(), "RUN x".into()],
            context: Some(digest("context")),
            context_files: vec![("/a".into(), b"1".to_vec()), ("/b".into(), b"2".to_vec())],
            builder_version: "2025.06".into(),
            ..BuildRequest::default()
        };
        let key = base().key();
        let changed: [fn(&mut BuildRequest); 8] = [
            |it| it.commands[1].push('y'),
            |it| it.context = Some(Digest::of(b"other")),
            |it| it.context_files[0].1.push(0),
            |it| drop(it.build_args.insert("A".into(), "1".into())),
            |it| it.secrets.push(BuildSecret { identity: Digest::of(b"s"), env: BTreeMap::new() }),
            |it| it.gpu = Some(BuildGpu { request: "T4".into(), ..BuildGpu::default() }),
            |it| it.registry.kind = 4,
            |it| it.builder_version = "2026.10".into(),
        ];
        for change in changed {
            let mut request = base();
            change(&mut request);
            assert_ne!(request.key(), key, "{request:?}");
        }
        let mut same = base();
        same.context_files.reverse();
        same.force_build = true;
        same.ignore_cache = true;
        // A file is the same wherever its element ends.
        same.commands = vec!["FROM base\nRUN x".into()];
        assert_eq!(same.key(), key);
    }
}
