//! Queues.

use futures::future::join_all;
use prost::bytes::Bytes;
use shoal_calls::calls::Entry;
use shoal_calls::objects::{
    Found, ITEM_BYTES_MAX, ITEMS_MAX, ObjectAnswer, ObjectRequest, PARTITION_BYTES_MAX, PARTITION_KEPT_MS, PARTITION_NAME_BYTES_MAX,
};
use shoal_proto::modal_client as pb;
use shoal_state::model::Object;
use shoal_state::{ObjectId, QueueId};

use super::error::Error;
use super::object::{self, Kind, Wanted};
use super::{Api, Caller, seconds};

/// The longest that one request waits for an item, in milliseconds: clients ask again.
const WAIT_MS_MAX: u64 = 55_000;

fn metadata(object: &Object) -> pb::QueueMetadata {
    pb::QueueMetadata { name: object.name.clone(), creation_info: Some(object::creation_info(object)) }
}

pub(super) async fn get_or_create(
    api: &Api,
    caller: &Caller,
    request: pb::QueueGetOrCreateRequest,
) -> Result<pb::QueueGetOrCreateResponse, Error> {
    let creation = request.object_creation_type();
    let (name, environment) = (request.deployment_name.as_str(), request.environment_name.as_str());
    let (id, object, _) = object::get_or_create(api, caller, &Wanted { kind: Kind::Queue, name, environment, creation }).await?;
    Ok(pb::QueueGetOrCreateResponse { queue_id: id.to_string(), metadata: Some(metadata(&object)) })
}

pub(super) async fn get_by_id(api: &Api, _caller: &Caller, request: pb::QueueGetByIdRequest) -> Result<pb::QueueGetByIdResponse, Error> {
    let id: QueueId = request.queue_id.parse()?;
    let object = object::find(api, id.into()).await?;
    Ok(pb::QueueGetByIdResponse { queue_id: id.to_string(), metadata: Some(metadata(&object)) })
}

pub(super) async fn heartbeat(api: &Api, _caller: &Caller, request: pb::QueueHeartbeatRequest) -> Result<(), Error> {
    let object = request.queue_id.parse::<QueueId>()?.into();
    object::ask(api, ObjectRequest::Beat { object }).await.map(drop)
}

pub(super) async fn list(api: &Api, _caller: &Caller, request: pb::QueueListRequest) -> Result<pb::QueueListResponse, Error> {
    let (found, environment_name) = object::list(api, Kind::Queue, &request.environment_name, request.pagination).await?;
    let most = u64::try_from(request.total_size_limit).ok().filter(|most| *most > 0).unwrap_or(u64::MAX);
    let infos = join_all(found.into_iter().map(async |(id, object)| {
        // One that was deleted meanwhile is shown as it was.
        let (items, partitions) = match count(api, id, None).await {
            Ok(counts) => counts,
            Err(Error::NotFound(_)) => (0, 0),
            Err(error) => return Err(error),
        };
        Ok(pb::queue_list_response::QueueInfo {
            name: object.name.clone(),
            created_at: seconds(object.created),
            num_partitions: narrow(partitions),
            total_size: narrow(items.min(most)),
            queue_id: id.to_string(),
            metadata: Some(metadata(&object)),
        })
    }));
    Ok(pb::QueueListResponse { queues: infos.await.into_iter().collect::<Result<_, _>>()?, environment_name })
}

fn narrow(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Returns how many items there are in a partition, or in all (none), and how many partitions.
async fn count(api: &Api, object: ObjectId, partition: Option<Bytes>) -> Result<(u64, u64), Error> {
    match object::ask(api, ObjectRequest::Count { object, partition }).await? {
        ObjectAnswer::Count { items, partitions } => Ok((items, partitions)),
        _ => Ok((0, 0)),
    }
}

pub(super) async fn delete(api: &Api, _caller: &Caller, request: pb::QueueDeleteRequest) -> Result<(), Error> {
    object::remove(api, request.queue_id.parse::<QueueId>()?.into()).await
}

pub(super) async fn clear(api: &Api, caller: &Caller, request: pb::QueueClearRequest) -> Result<(), Error> {
    let object = request.queue_id.parse::<QueueId>()?.into();
    let partition = (!request.all_partitions).then_some(request.partition_key);
    object::ask(api, ObjectRequest::Clear { object, partition, key: object::key(caller) }).await.map(drop)
}

pub(super) async fn len(api: &Api, _caller: &Caller, request: pb::QueueLenRequest) -> Result<pb::QueueLenResponse, Error> {
    let object = request.queue_id.parse::<QueueId>()?.into();
    let (items, _) = count(api, object, (!request.total).then_some(request.partition_key)).await?;
    Ok(pb::QueueLenResponse { len: narrow(items) })
}

/// Refuses what could never be put, however empty the queue is: clients wait for room.
fn check(request: &pb::QueuePutRequest) -> Result<(), Error> {
    let most = usize::try_from(ITEM_BYTES_MAX).unwrap_or(usize::MAX);
    if let Some(long) = request.values.iter().map(Bytes::len).find(|bytes| *bytes > most) {
        return Err(object::too_large("an item of a queue", long, most, "put it into a Dict or a Volume, and its key into the Queue"));
    }
    let (bytes, most) = (request.values.iter().map(Bytes::len).sum::<usize>(), usize::try_from(PARTITION_BYTES_MAX).unwrap_or(usize::MAX));
    if bytes > most {
        return Err(object::too_large("this put into a queue", bytes, most, "put fewer items at once"));
    }
    if request.values.len() > ITEMS_MAX {
        let items = request.values.len();
        return Err(Error::Invalid(format!(
            "{items} items are more than a partition of a queue may have, which is {ITEMS_MAX}: put fewer at once (status = '413')"
        )));
    }
    if request.partition_key.len() > PARTITION_NAME_BYTES_MAX {
        let bytes = request.partition_key.len();
        return Err(Error::Invalid(format!("the key of a partition has {bytes} bytes, and {PARTITION_NAME_BYTES_MAX} is the most")));
    }
    if request.partition_ttl_seconds < 0 || u64::from(request.partition_ttl_seconds.unsigned_abs()) * 1000 > PARTITION_KEPT_MS {
        let (asked, most) = (request.partition_ttl_seconds, PARTITION_KEPT_MS / 1000);
        return Err(Error::Invalid(format!("a partition of a queue cannot be kept for {asked} s: say 1 to {most}")));
    }
    Ok(())
}

pub(super) async fn put(api: &Api, caller: &Caller, request: pb::QueuePutRequest) -> Result<(), Error> {
    check(&request)?;
    let queue: QueueId = request.queue_id.parse()?;
    let key = object::key(caller);
    let lengths = request.values.iter().map(|value| u32::try_from(value.len()).unwrap_or(u32::MAX)).collect();
    let kept_ms = match u64::from(request.partition_ttl_seconds.unsigned_abs()) * 1000 {
        0 => PARTITION_KEPT_MS,
        asked => asked,
    };
    let content = object::content(api, queue.into(), key, &request.values.iter().collect::<Vec<_>>()).await?;
    let partition = request.partition_key;
    object::ask(api, ObjectRequest::Put { queue, partition, kept_ms, lengths, content, key }).await.map(drop)
}

/// Turns the wire's seconds into a wait.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and the most")]
fn wait_ms(seconds: f32) -> u64 {
    if seconds > 0.0 { (f64::from(seconds) * 1000.0).min(WAIT_MS_MAX as f64) as u64 } else { 0 }
}

pub(super) async fn get(api: &Api, caller: &Caller, request: pb::QueueGetRequest) -> Result<pb::QueueGetResponse, Error> {
    let queue: QueueId = request.queue_id.parse()?;
    let max = u32::try_from(request.n_values).unwrap_or(0).max(1);
    let (partition, wait_ms) = (request.partition_key, wait_ms(request.timeout));
    let answer = object::ask(api, ObjectRequest::Take { queue, partition, max, wait_ms, key: object::key(caller) }).await?;
    let values = items(api, queue, answer).await?.into_iter().map(|(_, value)| value);
    Ok(pb::QueueGetResponse { values: values.collect() })
}

async fn items(api: &Api, queue: QueueId, answer: ObjectAnswer) -> Result<Vec<(Entry, Bytes)>, Error> {
    let ObjectAnswer::Found(found) = answer else { return Ok(Vec::new()) };
    let mut items = Vec::with_capacity(found.len());
    for Found { at, piece, .. } in found {
        items.push((at, object::bytes(api, queue.into(), piece).await?));
    }
    Ok(items)
}

pub(super) async fn next_items(
    api: &Api,
    _caller: &Caller,
    request: pb::QueueNextItemsRequest,
) -> Result<pb::QueueNextItemsResponse, Error> {
    let queue: QueueId = request.queue_id.parse()?;
    let after: Entry = request.last_entry_id.parse().map_err(|error: shoal_calls::calls::NotAnEntry| Error::Invalid(error.to_string()))?;
    let (partition, wait_ms) = (request.partition_key, wait_ms(request.item_poll_timeout));
    let answer = object::ask(api, ObjectRequest::Peek { queue, partition, after, wait_ms }).await?;
    let items = items(api, queue, answer).await?.into_iter();
    Ok(pb::QueueNextItemsResponse { items: items.map(|(at, value)| pb::QueueItem { value, entry_id: at.to_string() }).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_be_put_is_refused_by_name_and_cure() {
        let put = |values: Vec<Bytes>, key: &str, ttl| pb::QueuePutRequest {
            values,
            partition_key: key.to_owned().into(),
            partition_ttl_seconds: ttl,
            ..Default::default()
        };
        let said = |request| check(&request).unwrap_err().to_string();
        let item = |bytes: usize| Bytes::from(vec![0; bytes]);
        assert!(said(put(vec![item((1 << 20) + 1)], "", 0)).contains("(status = '413')"));
        assert!(said(put(vec![item(0); ITEMS_MAX + 1], "", 0)).contains("5001 items"));
        assert!(said(put(vec![item(1 << 20); 65], "", 0)).contains("put fewer items at once"));
        assert!(said(put(vec![], &"p".repeat(65), 0)).contains("65 bytes"));
        assert!(said(put(vec![], "", 24 * 3600 + 1)).contains("say 1 to 86400"));
        assert!(check(&put(vec![item(1 << 20); 64], &"p".repeat(64), 24 * 3600)).is_ok());
    }

    #[test]
    fn a_wait_is_never_negative_nor_longer_than_a_connection_is_quiet() {
        assert_eq!([-1.0, 0.0, 0.25, 1e9, f32::NAN].map(wait_ms), [0, 0, 250, WAIT_MS_MAX, 0]);
    }
}
