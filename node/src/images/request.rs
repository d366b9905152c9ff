//! What a client asks for, in the builder's terms.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_image::bases::Credentials;
use shoal_image::build::{BaseImage, BuildFunction, BuildRequest, BuildSecret, RegistryAccess};
use shoal_image::cache::LayerRecord;
use shoal_proto::modal_client as pb;
use shoal_state::{Digest, FunctionId, ImageId, MountId, SecretId, State};

use super::read_record;
use crate::api::{Api, Error, secret};
use crate::build_functions::Runner;
use crate::upkeep::Thing;

/// Reads what a client asks for into the builder's terms: ids that are made anew for unchanged things become what stays.
pub(crate) async fn request(api: &Api, wire: pb::ImageGetOrCreateRequest) -> Result<BuildRequest, Error> {
    let state = api.local();
    let image = wire.image.unwrap_or_default();
    can_be_built(&image)?;
    let mut bases = BTreeMap::new();
    for base in &image.base_images {
        bases.insert(base.docker_tag.clone(), base_image(api, &state, &base.image_id).await?);
    }
    Ok(BuildRequest {
        commands: image.dockerfile_commands,
        bases,
        context: context(&state, &image.context_mount_id)?,
        context_files: image.context_files.into_iter().map(|file| (file.filename, file.data.to_vec())).collect(),
        build_args: image.build_args.into_iter().collect(),
        secrets: image.secret_ids.iter().map(|id| build_secret(api, &state, id)).collect::<Result<_, _>>()?,
        function: image.build_function.map(|function| build_function(api, &state, &wire.build_function_id, function)).transpose()?,
        registry: registry(api, &state, image.image_registry_config.unwrap_or_default())?,
        builder_version: wire.builder_version,
        force_build: wire.force_build,
        ignore_cache: wire.ignore_cache,
        ..BuildRequest::default()
    })
}

/// Returns the secrets that a build takes its variables and the credentials for its registry from.
pub(super) fn secrets_of(wire: &pb::ImageGetOrCreateRequest) -> Result<Vec<SecretId>, Error> {
    let Some(image) = &wire.image else { return Ok(Vec::new()) };
    let registry = image.image_registry_config.as_ref().map(|registry| &registry.secret_id).filter(|id| !id.is_empty());
    image.secret_ids.iter().chain(registry).map(|id| Ok(id.parse()?)).collect()
}

/// Refuses what no build on this node can give.
fn can_be_built(image: &pb::Image) -> Result<(), Error> {
    let refused = |what: &str, cure: &str| Err(Error::Precondition(format!("this image asks for {what}, and {cure}")));
    if image.arch() == pb::Arch::Aarch64 {
        return refused("arm64", "the nodes are x86-64: leave the architecture out");
    }
    if !image.volume_mounts.is_empty() {
        return refused("volumes while it is built", "Shoal has no volumes yet: copy the files in with add_local_dir(…, copy=True)");
    }
    Ok(())
}

/// Reads the function that makes an image. Its id is made anew by each client; what identifies it came along.
fn build_function(api: &Api, state: &State, id: &str, wire: pb::BuildFunction) -> Result<BuildFunction, Error> {
    let parsed: FunctionId = id.parse()?;
    let function = state.functions.get(&parsed).ok_or_else(|| Error::NotFound(format!("Function '{id}' not found")))?;
    let parts = [wire.definition.as_bytes(), &wire.globals, wire.input.as_deref().unwrap_or_default()];
    let framed = parts.iter().flat_map(|part| [&(part.len() as u64).to_le_bytes()[..], part].concat());
    Ok(BuildFunction {
        name: function.tag.clone(),
        identity: Digest::of(&framed.collect::<Vec<u8>>()),
        runner: Arc::new(Runner::new(api.clone(), parsed, wire.input)),
    })
}

/// Reads who asks the registry of a FROM.
fn registry(api: &Api, state: &State, wire: pb::ImageRegistryConfig) -> Result<RegistryAccess, Error> {
    let kind = u32::try_from(wire.registry_auth_type).unwrap_or_default();
    let variables = match wire.secret_id.as_str() {
        "" => BTreeMap::new(),
        id => secret::open_all(api, state, &[id.parse()?])?,
    };
    let credentials = Credentials::from_secret(kind, &variables).map_err(|error| Error::Precondition(error.to_string()))?;
    Ok(RegistryAccess { kind, credentials })
}

async fn base_image(api: &Api, state: &State, id: &str) -> Result<BaseImage, Error> {
    let parsed: ImageId = id.parse()?;
    let absent = || Error::NotFound(format!("Image '{id}' not found"));
    let image = state.images.get(&parsed).ok_or_else(absent)?;
    let manifest = image.manifest.ok_or_else(|| Error::Precondition(format!("image {id} was not built")))?;
    api.upkeep.uses.touch(Thing::Image(parsed), api.store.now());
    let record = read_record(api, image).await?;
    Ok(BaseImage { key: image.key, record: LayerRecord { manifest, config: record.config } })
}

fn context(state: &State, id: &str) -> Result<Option<Digest>, Error> {
    if id.is_empty() {
        return Ok(None);
    }
    let parsed: MountId = id.parse()?;
    let mount = state.mounts.get(&parsed).ok_or_else(|| Error::NotFound(format!("Mount '{id}' not found")))?;
    Ok(Some(mount.manifest))
}

fn build_secret(api: &Api, state: &State, id: &str) -> Result<BuildSecret, Error> {
    let parsed: SecretId = id.parse()?;
    let found = state.secrets.get(&parsed).ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
    let identity = if found.name.is_empty() { found.content_hash } else { Digest::of(id.as_bytes()) };
    Ok(BuildSecret { identity, env: secret::open_all(api, state, &[parsed])? })
}
