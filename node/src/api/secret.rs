//! Secrets: sealed with the cluster's key before they enter the log, opened only where a container or a build starts.

use std::collections::BTreeMap;
use std::sync::Arc;

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use shoal_proto::modal_client as pb;
use shoal_state::model::Secret;
use shoal_state::{AppId, Command, Digest, EnvironmentId, Refused, SecretId, State, Timestamp};

use super::error::Error;
use super::{Api, Caller, environment, seconds, token};
use crate::upkeep::{Thing, last_anywhere};

const NONCE_BYTES: usize = 24;
/// The most that names and values of a secret may take, in bytes: it travels in the log.
const SECRET_BYTES_MAX: usize = 32 << 10;
/// How often a change is tried again when others change the same secret.
const CHANGE_TRIES: usize = 5;
/// How far a client's clock may be off, in seconds: a list asked for "until now" has what was created a moment ago.
const CLOCK_SLACK: f64 = 60.0;

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

    pub(super) fn seal(&self, id: SecretId, variables: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
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

    /// Signs a message for one purpose, under a key of that purpose alone.
    pub(super) fn sign(&self, purpose: &str, message: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&blake3::derive_key(purpose, &self.0), message).as_bytes()
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

fn metadata(state: &State, id: SecretId, secret: &Secret, last_used_at: f64) -> pb::SecretMetadata {
    let notes = state.secret_notes.get(&id).cloned().unwrap_or_default();
    pb::SecretMetadata {
        name: secret.name.clone(),
        creation_info: Some(pb::CreationInfo { created_at: created_at(state, id, secret), created_by: notes.created_by }),
        keys: secret.keys.clone(),
        environment_name: state.environments.get(&secret.environment).map(|found| found.name.clone()).unwrap_or_default(),
        last_used_at,
        ..Default::default()
    }
}

/// Returns when a container, or a build, was last started with each of some secrets on any node, in seconds since 1970; 0 = not yet, as
/// far as is known.
async fn last_used_at(api: &Api, ids: &[SecretId]) -> Vec<f64> {
    last_anywhere(api, ids.iter().copied().map(Thing::Secret).collect()).await.into_iter().map(told).collect()
}

/// Writes a time in seconds as clients read it.
fn told(last_seconds: Option<u64>) -> f64 {
    last_seconds.map_or(0.0, |last_seconds| seconds(Timestamp(last_seconds.saturating_mul(1000))))
}

fn created_at(state: &State, id: SecretId, secret: &Secret) -> f64 {
    seconds(state.secret_notes.get(&id).map_or(secret.updated, |notes| notes.created))
}

async fn find(api: &Api, id: &str) -> Result<(SecretId, Secret, Arc<State>), Error> {
    let parsed: SecretId = id.parse()?;
    let state = api.read_latest_unless(|state| state.secrets.contains_key(&parsed)).await?;
    let found = state.secrets.get(&parsed).cloned().ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
    Ok((parsed, found, state))
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::SecretGetOrCreateRequest,
) -> Result<pb::SecretGetOrCreateResponse, Error> {
    use pb::ObjectCreationType as Kind;
    let kind = request.object_creation_type();
    let anonymous = matches!(kind, Kind::AnonymousOwnedByApp | Kind::Ephemeral);
    let name = if anonymous { String::new() } else { request.deployment_name.clone() };
    if name.is_empty() && !anonymous {
        return Err(Error::Invalid("a secret that is to be found again needs a name".to_owned()));
    }
    let app = if kind == Kind::AnonymousOwnedByApp { Some(request.app_id.parse::<AppId>()?) } else { None };
    let wanted = Wanted { kind, name, app, variables: request.env_dict };
    let mut tries = 0;
    let id = loop {
        tries += 1;
        match get_or_write(api, caller, &request.environment_name, &wanted).await {
            // Others were faster: they are the state to start from.
            Err(Error::Refused(Refused::SecretExists { .. } | Refused::SecretChanged { .. } | Refused::NoSecret { .. }))
                if tries < CHANGE_TRIES => {}
            done => break done?,
        }
    };
    let state = api.local();
    let secret = state.secrets.get(&id).ok_or_else(|| Error::NotFound(format!("Secret '{id}' not found")))?;
    let missing: Vec<&str> = request.required_keys.iter().filter(|key| !secret.keys.contains(key)).map(String::as_str).collect();
    if !missing.is_empty() {
        let keys = secret.keys.join(", ");
        return Err(Error::NotFound(format!("Secret '{}' is missing key(s): {}. It has: {keys}", secret.name, missing.join(", "))));
    }
    // Every program asks this of its secrets before it runs: other nodes are not waited for.
    let used = api.upkeep.uses.last(Thing::Secret(id)).ok().flatten();
    Ok(pb::SecretGetOrCreateResponse { secret_id: id.to_string(), metadata: Some(metadata(&state, id, secret, told(used))) })
}

struct Wanted {
    kind: pb::ObjectCreationType,
    name: String,
    app: Option<AppId>,
    variables: BTreeMap<String, String>,
}

async fn get_or_write(api: &Api, caller: &Caller, environment: &str, wanted: &Wanted) -> Result<SecretId, Error> {
    use pb::ObjectCreationType as Kind;
    let state = api.read_latest().await?;
    let environment = environment::find(&state, environment)?;
    let found = state.secret_named(environment.id, &wanted.name);
    let id = SecretId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]);
    match (found, wanted.kind) {
        // An earlier try of this request made it, and its answer was lost.
        (Some((found, _)), Kind::CreateFailIfExists) if found == id => Ok(id),
        (Some(_), Kind::CreateFailIfExists) => {
            Err(Error::Exists(format!("Secret '{}' already exists in environment '{}'", wanted.name, environment.name)))
        }
        (Some((id, _)), Kind::Unspecified | Kind::CreateIfMissing) => Ok(id),
        (None, Kind::Unspecified) => {
            Err(Error::NotFound(format!("Secret '{}' not found in environment '{}'", wanted.name, environment.name)))
        }
        (found, _) => {
            let (id, expected) = found.map_or((id, None), |(id, secret)| (id, Some(secret.content_hash)));
            write(api, caller, id, environment.id, wanted, expected).await.map(|()| id)
        }
    }
}

async fn write(
    api: &Api,
    caller: &Caller,
    id: SecretId,
    environment: EnvironmentId,
    wanted: &Wanted,
    expected: Option<Digest>,
) -> Result<(), Error> {
    let secret = Box::new(sealed(api, id, environment, wanted.name.clone(), &wanted.variables)?);
    api.propose(Command::WriteSecret { id, secret, app: wanted.app, by: token::name_of(api, caller), expected }).await
}

fn sealed(
    api: &Api,
    id: SecretId,
    environment: EnvironmentId,
    name: String,
    variables: &BTreeMap<String, String>,
) -> Result<Secret, Error> {
    check(variables)?;
    Ok(Secret {
        environment,
        name,
        keys: variables.keys().cloned().collect(),
        sealed: api.sealing.seal(id, variables)?,
        content_hash: api.sealing.content_hash(variables),
        updated: api.now(),
    })
}

/// Refuses what cannot be environment variables, by the name of the variable and never by its value.
fn check(variables: &BTreeMap<String, String>) -> Result<(), Error> {
    for (name, value) in variables {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Error::Invalid(format!("{name:?} cannot name a variable of a secret: use letters, digits and '_'")));
        }
        if value.contains('\0') {
            return Err(Error::Invalid(format!("the value of {name:?} has a zero byte, which no environment variable can hold")));
        }
    }
    let bytes: usize = variables.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > SECRET_BYTES_MAX {
        return Err(Error::Invalid(format!(
            "the secret's names and values have {bytes} bytes, and {SECRET_BYTES_MAX} is the most: split it into several secrets"
        )));
    }
    Ok(())
}

pub(super) async fn update(api: &Api, caller: &Caller, request: pb::SecretUpdateRequest) -> Result<(), Error> {
    for _ in 0..CHANGE_TRIES {
        let (id, secret, _) = find(api, &request.secret_id).await?;
        let mut variables = api.sealing.open(id, &secret.sealed)?;
        for update in &request.updates {
            match &update.value {
                Some(value) => drop(variables.insert(update.key.clone(), value.clone())),
                None => drop(variables.remove(&update.key)),
            }
        }
        let changed = Box::new(sealed(api, id, secret.environment, secret.name.clone(), &variables)?);
        let command =
            Command::WriteSecret { id, secret: changed, app: None, by: token::name_of(api, caller), expected: Some(secret.content_hash) };
        match api.propose(command).await {
            Err(Error::Refused(Refused::SecretChanged { .. })) => {}
            done => return done,
        }
    }
    Err(Error::Unavailable(format!("secret {} is changed by others all the time: try again", request.secret_id)))
}

pub(super) async fn info(api: &Api, _caller: &Caller, request: pb::SecretGetInfoRequest) -> Result<pb::SecretGetInfoResponse, Error> {
    let (id, secret, state) = find(api, &request.secret_id).await?;
    let last_used_at = last_used_at(api, &[id]).await.first().copied().unwrap_or_default();
    Ok(pb::SecretGetInfoResponse { metadata: Some(metadata(&state, id, &secret, last_used_at)) })
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::SecretListRequest) -> Result<pb::SecretListResponse, Error> {
    let state = api.read_latest().await?;
    let environment = environment::find(&state, &request.environment_name)?;
    let page = request.pagination.unwrap_or_default();
    let named = state.secrets.iter().filter(|(_, secret)| secret.environment == environment.id && !secret.name.is_empty());
    let found = named.map(|(id, secret)| (created_at(&state, *id, secret), (*id, secret))).collect();
    let count = usize::try_from(page.max_objects).ok().filter(|count| *count > 0).unwrap_or(usize::MAX);
    let found = page_of(found, page.created_before, count, seconds(api.now()));
    let ids: Vec<SecretId> = found.iter().map(|(_, (id, _))| *id).collect();
    let used = last_used_at(api, &ids).await;
    let items = found.into_iter().zip(used).map(|((created_at, (id, secret)), last_used_at)| pb::SecretListItem {
        label: secret.name.clone(),
        created_at,
        last_used_at,
        environment_name: environment.name.clone(),
        secret_id: id.to_string(),
        metadata: Some(metadata(&state, id, secret, last_used_at)),
    });
    Ok(pb::SecretListResponse { items: items.collect(), environment_name: environment.name.clone() })
}

/// Returns the newest `count` things that were created before `until` (seconds; 0 = now), the newest first.
///
/// Clients ask for the first page until now, by their own clock, and for the next one until the last thing of a page. So
/// things of one moment are not parted: the page is longer then.
pub(super) fn page_of<T>(mut things: Vec<(f64, T)>, until: f64, count: usize, now: f64) -> Vec<(f64, T)> {
    things.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    let is_mark = things.iter().any(|(created, _)| created.total_cmp(&until).is_eq());
    let is_now = until <= 0.0 || (!is_mark && (now - until).abs() < CLOCK_SLACK);
    things.retain(|(created, _)| is_now || *created < until);
    let last = count.checked_sub(1).and_then(|last| Some(things.get(last)?.0));
    things.retain(|(created, _)| last.is_none_or(|last| *created >= last));
    things
}

pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::SecretDeleteRequest) -> Result<(), Error> {
    api.propose(Command::RemoveSecret { id: request.secret_id.parse()? }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_sealed_secret_opens_with_its_key_and_under_its_id_alone() {
        let (key, id, content) = (SealingKey::new([7; 32]), SecretId::from_random(1), variables(&[("A", "a value that is secret")]));
        let sealed = key.seal(id, &content).unwrap();
        assert_eq!(key.open(id, &sealed).unwrap(), content);
        assert!(key.open(SecretId::from_random(2), &sealed).is_err(), "a sealed secret was moved to another id");
        assert!(SealingKey::new([8; 32]).open(id, &sealed).is_err(), "another key opened it");
        for cut in 0..sealed.len() {
            assert!(key.open(id, &sealed[..cut]).is_err(), "{cut} of {} bytes opened", sealed.len());
        }
        let found = sealed.windows(6).any(|window| window == b"secret");
        assert!(!found, "the value can be read in its sealed form");
        assert_ne!(sealed, key.seal(id, &content).unwrap(), "equal contents have equal sealed forms");
        assert_eq!(key.content_hash(&content), key.content_hash(&content));
        assert_ne!(key.content_hash(&variables(&[("AB", "C")])), key.content_hash(&variables(&[("A", "BC")])));
    }

    #[test]
    fn pages_follow_each_other_without_gaps_and_end() {
        let now = 1_000_000.0;
        // The youngest is of a moment ago, by a clock that is ahead of the client's; several are of one moment.
        let created = [now, now - 1.0, now - 2.0, now - 2.0, now - 2.0, now - 3.0, now - 500.0];
        let things = || created.iter().copied().zip(0..created.len()).rev().collect::<Vec<(f64, usize)>>();
        let (mut until, mut seen, mut pages) = (now - 0.5, Vec::new(), 0);
        loop {
            let page = page_of(things(), until, 3, now);
            pages += 1;
            seen.extend(page.iter().map(|(_, number)| *number));
            if page.len() < 3 {
                break;
            }
            until = page[page.len() - 1].0;
            assert!(pages < 9, "the pages do not end");
        }
        seen[2..5].sort_unstable();
        assert_eq!(seen, (0..created.len()).collect::<Vec<_>>());
        assert_eq!(page_of(things(), 0.0, usize::MAX, now).len(), created.len());
        assert_eq!(page_of(things(), now - 400.0, usize::MAX, now).len(), 1);
    }

    #[test]
    fn what_cannot_be_a_variable_is_refused_without_its_value() {
        for bad in [("", "hush"), ("A=B", "hush"), ("A\0", "hush"), ("A", "hu\0sh")] {
            let said = check(&variables(&[bad])).unwrap_err().to_string();
            assert!(!said.contains("hu"), "{said}");
        }
        let long = "x".repeat(SECRET_BYTES_MAX);
        let said = check(&variables(&[("A", &long)])).unwrap_err().to_string();
        assert!(said.contains("split it"), "{said}");
        check(&variables(&[("A", "several\nlines, and = signs"), ("", "")][..1])).unwrap();
    }
}
