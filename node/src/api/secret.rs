//! Secrets: sealed with the cluster's key before they enter the log, opened only where a container or a build starts.

use std::collections::BTreeMap;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use shoal_proto::modal_client as pb;
use shoal_state::model::Secret;
use shoal_state::{Command, Digest, SecretId, State};

use super::error::Error;
use super::{Api, Caller, environment, seconds};

const NONCE_BYTES: usize = 24;

/// The cluster's key for secrets, 256 bits.
#[derive(Clone)]
pub(crate) struct SealingKey([u8; 32]);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

impl SealingKey {
    /// Takes the key's bytes.
    pub(crate) const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn seal(&self, id: SecretId, variables: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let plain = postcard::to_stdvec(variables).map_err(Error::failed("cannot encode a secret"))?;
        let aad = id.to_string();
        let payload = Payload { msg: &plain, aad: aad.as_bytes() };
        let sealed = XChaCha20Poly1305::new((&self.0).into())
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| Error::Precondition(format!("cannot seal secret {id}: it is too large")))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    /// Opens a sealed secret.
    pub(crate) fn open(&self, id: SecretId, sealed: &[u8]) -> Result<BTreeMap<String, String>, Error> {
        let refuse = || Error::Precondition(format!("cannot open secret {id}: it was sealed with another cluster's key"));
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or_else(refuse)?;
        let aad = id.to_string();
        let payload = Payload { msg: sealed, aad: aad.as_bytes() };
        let plain = XChaCha20Poly1305::new((&self.0).into()).decrypt(&XNonce::from(*nonce), payload).map_err(|_| refuse())?;
        postcard::from_bytes(&plain).map_err(Error::failed(format!("cannot decode secret {id}")))
    }

    /// Returns a hash of the variables that says nothing to those without the key.
    fn content_hash(&self, variables: &BTreeMap<String, String>) -> Digest {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        for (name, value) in variables {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
            hasher.update(&(value.len() as u64).to_le_bytes()).update(value.as_bytes());
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }
}

/// Opens several secrets into one environment; later ones win.
pub(crate) fn open_all(api: &Api, state: &State, ids: &[SecretId]) -> Result<BTreeMap<String, String>, Error> {
    let mut variables = BTreeMap::new();
    for id in ids {
        let secret = state.secrets.get(id).ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
        variables.extend(api.sealing.open(*id, &secret.sealed)?);
    }
    Ok(variables)
}

fn metadata(state: &State, secret: &Secret) -> pb::SecretMetadata {
    pb::SecretMetadata {
        name: secret.name.clone(),
        creation_info: Some(pb::CreationInfo { created_at: seconds(secret.updated), ..Default::default() }),
        keys: secret.keys.clone(),
        environment_name: state.environments.get(&secret.environment).map(|found| found.name.clone()).unwrap_or_default(),
        ..Default::default()
    }
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::SecretGetOrCreateRequest,
) -> Result<pb::SecretGetOrCreateResponse, Error> {
    use pb::ObjectCreationType as Kind;
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?.id;
    let name = &request.deployment_name;
    let found = state.secret_named(environment, name).map(|(id, _)| id);
    let anonymous = matches!(request.object_creation_type(), Kind::AnonymousOwnedByApp | Kind::Ephemeral);
    let id = match (found, request.object_creation_type()) {
        (Some(_), Kind::CreateFailIfExists) => return Err(Error::Exists(format!("Secret '{name}' already exists"))),
        (Some(id), Kind::Unspecified | Kind::CreateIfMissing) => id,
        (None, Kind::Unspecified) => return Err(Error::NotFound(format!("Secret '{name}' not found in environment"))),
        (found, _) => {
            let derived = SecretId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]);
            let id = found.unwrap_or(derived);
            let name = if anonymous { String::new() } else { name.clone() };
            put(api, id, environment, name, request.env_dict.into_iter().collect()).await?;
            id
        }
    };
    let state = api.local();
    let secret = state.secrets.get(&id).ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
    let missing: Vec<&String> = request.required_keys.iter().filter(|key| !secret.keys.contains(key)).collect();
    if !missing.is_empty() {
        return Err(Error::NotFound(format!("Secret '{}' is missing key(s): {missing:?}", secret.name)));
    }
    Ok(pb::SecretGetOrCreateResponse { secret_id: id.to_string(), metadata: Some(metadata(&state, secret)) })
}

async fn put(
    api: &Api,
    id: SecretId,
    environment: shoal_state::EnvironmentId,
    name: String,
    variables: BTreeMap<String, String>,
) -> Result<(), Error> {
    let secret = Secret {
        environment,
        name,
        keys: variables.keys().cloned().collect(),
        sealed: api.sealing.seal(id, &variables)?,
        content_hash: api.sealing.content_hash(&variables),
        updated: api.now(),
    };
    api.propose(Command::PutSecret { id, secret }).await
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::SecretListRequest) -> Result<pb::SecretListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let named = state.secrets.iter().filter(|(_, secret)| secret.environment == environment.id && !secret.name.is_empty());
    let items = named.map(|(id, secret)| pb::SecretListItem {
        label: secret.name.clone(),
        created_at: seconds(secret.updated),
        environment_name: environment.name.clone(),
        secret_id: id.to_string(),
        metadata: Some(metadata(&state, secret)),
        ..Default::default()
    });
    Ok(pb::SecretListResponse { items: items.collect(), environment_name: environment.name.clone() })
}

pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::SecretDeleteRequest) -> Result<(), Error> {
    api.propose(Command::RemoveSecret { id: request.secret_id.parse()? }).await
}
