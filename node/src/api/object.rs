//! What dicts and queues have in common: that they exist, and how their values travel.
//!
//! That one exists is in the state, what it holds is at the home of its shard. Values that are too long for a record are blobs
//! whose ids name the object's shard: the home is asked whether one is still needed.

use std::sync::Arc;

use prost::bytes::{Bytes, BytesMut};
use shoal_calls::calls::{self, Refused as No};
use shoal_calls::objects::{Content, ObjectAnswer, ObjectRequest, Piece, value_id};
use shoal_proto::modal_client as pb;
use shoal_state::model::Object;
use shoal_state::{Command, DictId, EnvironmentId, ObjectId, QueueId, Refused, ShardId, State};

use super::call::refused;
use super::error::Error;
use super::{Api, Caller, environment, seconds, secret, token};

/// How often a name is looked up again when others make and remove what has it.
const CREATE_TRIES: usize = 5;

/// The longest value of a dict, in bytes: what clients may send in one message, with some room for its key.
pub(super) const VALUE_BYTES_MAX: usize = 100 << 20;

/// What is longer together goes into a blob, in bytes.
const INLINE_BYTES_MAX: usize = 1 << 20;

/// Which of both it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Dict,
    Queue,
}

impl Kind {
    fn id(self, shard: ShardId, parts: &[&[u8]]) -> ObjectId {
        match self {
            Self::Dict => DictId::derive_in(shard, parts).into(),
            Self::Queue => QueueId::derive_in(shard, parts).into(),
        }
    }
}

/// What a request wants to be there.
pub(super) struct Wanted<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) environment: &'a str,
    pub(super) creation: pb::ObjectCreationType,
}

/// Returns a number for a request: the same when it comes again.
pub(super) fn key(caller: &Caller) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&caller.identity.scope()).update(caller.method.as_bytes()).update(&[0]).update(caller.key().as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(bytes).max(1)
}

/// Finds an object by name, or makes it. Says whether it was made.
pub(super) async fn get_or_create(api: &Api, caller: &Caller, wanted: &Wanted<'_>) -> Result<(ObjectId, Object, bool), Error> {
    use pb::ObjectCreationType as Creation;
    let Wanted { kind, name, creation, .. } = *wanted;
    let ephemeral = matches!(creation, Creation::Ephemeral | Creation::AnonymousOwnedByApp);
    if name.is_empty() && !ephemeral {
        return Err(Error::Invalid(format!("a {kind:?} that is to be found again needs a name")));
    }
    let request = caller.key();
    for number in 0..CREATE_TRIES {
        // Whether a name is free is decided where the log is applied: what is to be made needs no look at the latest state before. What
        // was found, or missed, is told after one.
        let local = api.local();
        let may_make = number == 0
            && creation != Creation::Unspecified
            && environment::find(&local, wanted.environment)
                .is_ok_and(|environment| local.object_named(kind.id(ShardId::of(b""), &[]), environment.id, name).is_none());
        let state = if may_make { local } else { api.read_latest().await? };
        let environment = environment::find(&state, wanted.environment)?;
        let parts: [&[u8]; 3] = [&caller.identity.scope(), request.as_bytes(), &number.to_le_bytes()];
        let id = kind.id(ShardId::of(&parts.concat()), &parts);
        let found = state.object_named(id, environment.id, if ephemeral { "" } else { name });
        match (found, creation) {
            // The request came before.
            (Some((held, object)), _) if held == id => return Ok((id, object.clone(), true)),
            (Some(_), Creation::CreateFailIfExists) => {
                return Err(Error::Exists(format!("{kind:?} '{name}' already exists in environment '{}'", environment.name)));
            }
            (Some((held, _)), Creation::CreateOverwriteIfExists) => remove(api, held).await?,
            (Some((held, object)), _) => return Ok((held, object.clone(), false)),
            (None, Creation::Unspecified) => {
                return Err(Error::NotFound(format!("{kind:?} '{name}' not found in environment '{}'", environment.name)));
            }
            (None, _) => {}
        }
        let name = if ephemeral { String::new() } else { name.to_owned() };
        match create(api, caller, id, environment.id, name).await {
            // Others were faster: theirs is the one.
            Err(Error::Refused(Refused::ObjectExists { .. } | Refused::NoEnvironment { .. })) => {}
            done => return done.map(|object| (id, object, true)),
        }
    }
    Err(Error::Unavailable(format!("{kind:?} '{name}' is made and removed by others all the time: try again")))
}

async fn create(api: &Api, caller: &Caller, id: ObjectId, environment: EnvironmentId, name: String) -> Result<Object, Error> {
    let object = Object { environment, name, created: api.now(), created_by: token::name_of(api, caller) };
    api.propose(Command::CreateObject { id, object: object.clone() }).await?;
    // Whoever uses it first opens it; what is to end when nobody uses it has to be known to its home before.
    if object.name.is_empty() {
        api.calls.object(ObjectRequest::Open { object: id }).await.map_err(refused)?;
    }
    // The request may have come before.
    Ok(api.local().objects.get(&id).map_or(object, |held| (**held).clone()))
}

/// Finds an object by id.
pub(super) async fn find(api: &Api, id: ObjectId) -> Result<Object, Error> {
    let state = api.read_latest_unless(|state| state.objects.contains_key(&id)).await?;
    state.objects.get(&id).map(|object| (**object).clone()).ok_or_else(|| missing(id))
}

fn missing(id: ObjectId) -> Error {
    Error::NotFound(format!("{} '{id}' not found: it was deleted, or has ended", id.kind()))
}

/// Asks something of an object that may not have been opened yet, though it exists.
pub(crate) async fn ask(api: &Api, request: ObjectRequest) -> Result<ObjectAnswer, Error> {
    match api.calls.object(request.clone()).await {
        Err(calls::Error::Refused(No::NoObject { object })) => {
            find(api, object).await?;
            api.calls.object(ObjectRequest::Open { object }).await.map_err(refused)?;
            api.calls.object(request).await.map_err(refused)
        }
        answered => answered.map_err(refused),
    }
}

/// Takes an object away, with all that it holds.
pub(crate) async fn remove(api: &Api, id: ObjectId) -> Result<(), Error> {
    match api.propose(Command::RemoveObject { id }).await {
        Err(Error::Refused(Refused::NoObject { .. })) => return Err(missing(id)),
        done => done?,
    }
    close(api, id).await;
    Ok(())
}

/// Lets go of what an object held that is not in the state any more. What fails here is done by a later look.
pub(crate) async fn close(api: &Api, id: ObjectId) {
    if let Err(error) = api.calls.object(ObjectRequest::Close { object: id }).await {
        tracing::warn!(object = %id, %error, "cannot let go of what an object held that was deleted; it is tried again");
    }
}

pub(super) fn creation_info(object: &Object) -> pb::CreationInfo {
    pb::CreationInfo { created_at: seconds(object.created), created_by: object.created_by.clone() }
}

/// Returns a page of the named objects of an environment, the newest first, with the environment's name.
pub(super) async fn list(
    api: &Api,
    kind: Kind,
    environment: &str,
    page: Option<pb::ListPagination>,
) -> Result<(Vec<(ObjectId, Object)>, String), Error> {
    let (state, page) = (api.read_latest().await?, page.unwrap_or_default());
    let environment = environment::find(&state, environment)?;
    let like = kind.id(ShardId::of(b""), &[]);
    let fits =
        |(id, object): &(&ObjectId, &Arc<Object>)| id.is_like(like) && object.environment == environment.id && !object.name.is_empty();
    let found = state.objects.iter().filter(fits).map(|(id, object)| (seconds(object.created), (*id, (**object).clone())));
    let count = usize::try_from(page.max_objects).ok().filter(|count| *count > 0).unwrap_or(usize::MAX);
    let found = secret::page_of(found.collect(), page.created_before, count, seconds(api.now()));
    Ok((found.into_iter().map(|(_, found)| found).collect(), environment.name.clone()))
}

/// Puts bytes one behind the other: into a record, or into a blob where they are too long for one.
pub(super) async fn content(api: &Api, object: ObjectId, key: u128, parts: &[&Bytes]) -> Result<Content, Error> {
    let mut all = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    let all = all.freeze();
    if all.len() <= INLINE_BYTES_MAX {
        return Ok(Content::Inline(all));
    }
    let id = value_id(object, key).ok_or_else(|| missing(object))?;
    api.blobs.put(id, all).await.map_err(Error::failed(format!("cannot keep a value of {object}")))?;
    Ok(Content::Blob(id))
}

/// Returns the bytes of what was found.
pub(super) async fn bytes(api: &Api, object: ObjectId, piece: Piece) -> Result<Bytes, Error> {
    match piece {
        Piece::Inline(bytes) => Ok(bytes),
        Piece::Blob { blob, offset, bytes } => {
            let read = api.blobs.read(blob, offset..offset.saturating_add(bytes)).await;
            read.map_err(Error::failed(format!("cannot read a value of {object}")))
        }
    }
}

/// Answers a request that is too large in the words by which clients know it.
pub(super) fn too_large(what: &str, bytes: usize, most: usize, cure: &str) -> Error {
    Error::Invalid(format!("{what} has {bytes} bytes, and {most} is the most: {cure} (status = '413')"))
}

/// Ends what nobody uses, and lets go of what is in no state any more: of what is at home here.
pub(crate) async fn sweep(api: &Api) -> Result<(), Error> {
    // In this order: what is opened is in the state before.
    let here = api.calls.objects_here().await.map_err(refused)?;
    let state = api.read_latest().await?;
    for id in unknown(&state, here) {
        close(api, id).await;
    }
    let silent = api.calls.silent_objects(ephemeral(&state)).await.map_err(refused)?;
    for id in silent {
        tracing::info!(object = %id, "an ephemeral object ends: nobody uses it any more");
        match remove(api, id).await {
            Ok(()) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn unknown(state: &State, here: Vec<ObjectId>) -> Vec<ObjectId> {
    here.into_iter().filter(|id| !state.objects.contains_key(id)).collect()
}

fn ephemeral(state: &State) -> Vec<ObjectId> {
    state.objects.iter().filter(|(_, object)| object.name.is_empty()).map(|(id, _)| *id).collect()
}

#[cfg(test)]
mod tests {
    use shoal_state::Timestamp;

    use super::*;

    #[test]
    fn only_what_has_no_name_ends_in_silence_and_only_what_the_state_lacks_is_let_go() {
        let mut state = State::default();
        let id = |bits| ObjectId::from(DictId::from_random(bits));
        for (bits, name) in [(1, ""), (2, "kept")] {
            let object = Object {
                environment: EnvironmentId::from_random(1),
                name: name.to_owned(),
                created: Timestamp(0),
                created_by: String::new(),
            };
            state.objects.insert(id(bits), object.into());
        }
        assert_eq!(ephemeral(&state), [id(1)]);
        assert_eq!(unknown(&state, vec![id(1), id(2), id(3)]), [id(3)]);
    }
}
