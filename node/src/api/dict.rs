//! Dicts.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use prost::bytes::Bytes;
use shoal_calls::objects::{EntryKey, Found, NewEntry, ObjectAnswer, ObjectRequest};
use shoal_proto::modal_client as pb;
use shoal_state::model::Object;
use shoal_state::{DictId, ObjectId};
use tonic::codegen::BoxStream;

use super::error::Error;
use super::object::{self, Kind, VALUE_BYTES_MAX, Wanted};
use super::{Api, Caller, seconds};

fn metadata(object: &Object) -> pb::DictMetadata {
    pb::DictMetadata { name: object.name.clone(), creation_info: Some(object::creation_info(object)) }
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::DictGetOrCreateRequest,
) -> Result<pb::DictGetOrCreateResponse, Error> {
    let creation = request.object_creation_type();
    let (name, environment) = (request.deployment_name.as_str(), request.environment_name.as_str());
    let (id, object, made) = object::get_or_create(api, caller, &Wanted { kind: Kind::Dict, name, environment, creation }).await?;
    if let (ObjectId::Dict(dict), true, false) = (id, made, request.data.is_empty()) {
        set(api, caller, dict, request.data, false).await?;
    }
    Ok(pb::DictGetOrCreateResponse { dict_id: id.to_string(), metadata: Some(metadata(&object)) })
}

pub(super) async fn get_by_id(api: &Api, _caller: &Caller, request: pb::DictGetByIdRequest) -> Result<pb::DictGetByIdResponse, Error> {
    let id: DictId = request.dict_id.parse()?;
    let object = object::find(api, id.into()).await?;
    Ok(pb::DictGetByIdResponse { dict_id: id.to_string(), metadata: Some(metadata(&object)) })
}

pub(super) async fn heartbeat(api: &Api, _caller: &Caller, request: pb::DictHeartbeatRequest) -> Result<(), Error> {
    let object = request.dict_id.parse::<DictId>()?.into();
    object::ask(api, ObjectRequest::Beat { object }).await.map(drop)
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::DictListRequest) -> Result<pb::DictListResponse, Error> {
    let (found, environment_name) = object::list(api, Kind::Dict, &request.environment_name, request.pagination).await?;
    let dicts = found.into_iter().map(|(id, object)| pb::dict_list_response::DictInfo {
        name: object.name.clone(),
        created_at: seconds(object.created),
        dict_id: id.to_string(),
        metadata: Some(metadata(&object)),
    });
    Ok(pb::DictListResponse { dicts: dicts.collect(), environment_name })
}

pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::DictDeleteRequest) -> Result<(), Error> {
    object::remove(api, request.dict_id.parse::<DictId>()?.into()).await
}

pub(super) async fn clear(api: &Api, caller: &Caller, request: pb::DictClearRequest) -> Result<(), Error> {
    let object = request.dict_id.parse::<DictId>()?.into();
    object::ask(api, ObjectRequest::Clear { object, partition: None, key: object::key(caller) }).await.map(drop)
}

/// Returns the value of an entry that was found, if one was.
async fn value(api: &Api, dict: DictId, answer: ObjectAnswer) -> Result<Option<Bytes>, Error> {
    let ObjectAnswer::Found(found) = answer else { return Ok(None) };
    match found.into_iter().next() {
        Some(found) => Ok(Some(parts(api, dict, found).await?.1)),
        None => Ok(None),
    }
}

/// Returns an entry's key and value.
async fn parts(api: &Api, dict: DictId, found: Found) -> Result<(Bytes, Bytes), Error> {
    let mut value = object::bytes(api, dict.into(), found.piece).await?;
    let key = value.split_to((found.key_bytes as usize).min(value.len()));
    Ok((key, value))
}

pub(super) async fn get(api: &Api, _caller: &Caller, request: pb::DictGetRequest) -> Result<pb::DictGetResponse, Error> {
    let dict = request.dict_id.parse()?;
    let answer = object::ask(api, ObjectRequest::Get { dict, entry: EntryKey::of(&request.key) }).await?;
    let value = value(api, dict, answer).await?;
    Ok(pb::DictGetResponse { found: value.is_some(), value })
}

pub(super) async fn contains(api: &Api, _caller: &Caller, request: pb::DictContainsRequest) -> Result<pb::DictContainsResponse, Error> {
    let dict = request.dict_id.parse()?;
    let answer = object::ask(api, ObjectRequest::Has { dict, entry: EntryKey::of(&request.key) }).await?;
    Ok(pb::DictContainsResponse { found: answer == ObjectAnswer::Bool(true) })
}

pub(super) async fn len(api: &Api, _caller: &Caller, request: pb::DictLenRequest) -> Result<pb::DictLenResponse, Error> {
    let object = request.dict_id.parse::<DictId>()?.into();
    let len = match object::ask(api, ObjectRequest::Count { object, partition: None }).await? {
        ObjectAnswer::Count { items, .. } => i32::try_from(items).unwrap_or(i32::MAX),
        _ => 0,
    };
    Ok(pb::DictLenResponse { len })
}

pub(super) async fn update(api: &Api, caller: &Caller, request: pb::DictUpdateRequest) -> Result<pb::DictUpdateResponse, Error> {
    let dict = request.dict_id.parse()?;
    let created = set(api, caller, dict, request.updates, request.if_not_exists).await?;
    Ok(pb::DictUpdateResponse { created })
}

/// Sets entries. Says whether any was set.
async fn set(api: &Api, caller: &Caller, dict: DictId, updates: Vec<pb::DictEntry>, if_not_exists: bool) -> Result<bool, Error> {
    let length = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    if let Some(long) = updates.iter().map(|entry| entry.key.len() + entry.value.len()).find(|bytes| *bytes > VALUE_BYTES_MAX) {
        return Err(object::too_large("an entry of a dict", long, VALUE_BYTES_MAX, "put it into a Volume, and its path into the Dict"));
    }
    let entries = updates.iter().map(|entry| NewEntry {
        entry: EntryKey::of(&entry.key),
        key_bytes: length(&entry.key),
        value_bytes: length(&entry.value),
    });
    let entries = entries.collect();
    let key = object::key(caller);
    let bytes: Vec<&Bytes> = updates.iter().flat_map(|entry| [&entry.key, &entry.value]).collect();
    let content = object::content(api, dict.into(), key, &bytes).await?;
    let answer = object::ask(api, ObjectRequest::Update { dict, entries, content, if_not_exists, key }).await?;
    Ok(answer == ObjectAnswer::Bool(true))
}

pub(super) async fn pop(api: &Api, caller: &Caller, request: pb::DictPopRequest) -> Result<pb::DictPopResponse, Error> {
    let dict = request.dict_id.parse()?;
    let answer = object::ask(api, ObjectRequest::Pop { dict, entry: EntryKey::of(&request.key), key: object::key(caller) }).await?;
    let value = value(api, dict, answer).await?;
    Ok(pb::DictPopResponse { found: value.is_some(), value })
}

/// Returns all entries, a page after the other: each is as it is when its page is read.
pub(super) async fn contents(api: &Api, _caller: &Caller, request: pb::DictContentsRequest) -> Result<BoxStream<pb::DictEntry>, Error> {
    let (dict, values): (DictId, bool) = (request.dict_id.parse()?, request.values);
    object::find(api, dict.into()).await?;
    let api = api.clone();
    let pages = stream::try_unfold(None, move |after: Option<EntryKey>| {
        let api = api.clone();
        async move {
            let ObjectAnswer::Found(found) = object::ask(&api, ObjectRequest::Page { dict, after, values }).await? else { return Ok(None) };
            let Some(last) = found.last().map(|found| found.entry) else { return Ok(None) };
            let of = api.clone();
            let entries = stream::iter(found).then(move |found| {
                let api = of.clone();
                async move {
                    let (key, value) = parts(&api, dict, found).await?;
                    Ok::<_, Error>(pb::DictEntry { key, value })
                }
            });
            Ok::<_, Error>(Some((entries, Some(last))))
        }
    });
    Ok(Box::pin(pages.try_flatten().map_err(tonic::Status::from)))
}
