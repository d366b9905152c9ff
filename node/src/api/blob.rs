//! Blobs: bytes too large for a message, by plain HTTP from the client's side.
//!
//! `BlobCreate` gives an id and a URL to PUT to, `BlobGet` a URL to GET from. A URL carries its own permission: an expiry
//! and a keyed hash over method, id and expiry, because the client's HTTP library shows no token. What was PUT is durable
//! before it is answered.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State as Shared};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use bytes::Bytes;
use futures::StreamExt as _;
use md5::{Digest as _, Md5};
use parking_lot::RwLock;
use serde::Deserialize;
use shoal_proto::modal_client as pb;
use shoal_state::{BlobId, CallId, Digest};
use shoal_storage::chunk::{self, CHUNK_BYTES};
use shoal_storage::kv::Kv;
use shoal_storage::store::{self, Store};

use super::error::Error;
use super::{Api, Caller, blocking, now};
use crate::chunks::PeerChunks;
use crate::copies::Copies;
use crate::upkeep::{Thing, Uses};

/// How long a URL may be used, in milliseconds: a day, as long as the longest call that could need it.
const URL_MS: u64 = 24 * 3600 * 1000;
/// The largest blob that one PUT may carry, in bytes: what clients send in one piece.
const BLOB_BYTES_MAX: u64 = 1 << 30;

/// The table of lists of chunks.
const LISTS: &str = "blobs";

/// The blobs of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Blobs {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    lists: shoal_storage::kv::Tree,
    /// Which calls name a blob: the ids of both, and nothing more.
    calls: shoal_storage::kv::Tree,
    uses: Uses,
    key: [u8; 32],
    /// Where containers reach this node's HTTP side.
    container_address: RwLock<Option<SocketAddr>>,
    /// Where clients reach it, when the configuration says so.
    advertise: String,
    /// Who knows of blobs that came to other nodes.
    elsewhere: OnceLock<PeerChunks>,
    /// Gives blobs that came here to others.
    copies: Copies,
}

#[derive(Debug, Deserialize)]
struct Permission {
    expires: u64,
    signature: String,
}

impl Blobs {
    /// Keeps lists of chunks in `kv` and the chunks in `store`; URLs are signed with `key`.
    pub(crate) fn open(
        store: Store,
        kv: &Kv,
        uses: Uses,
        copies: Copies,
        key: [u8; 32],
        advertise: &str,
    ) -> Result<Self, shoal_storage::kv::Error> {
        let (lists, calls) = (kv.tree(LISTS)?, kv.tree("blob-calls")?);
        let (container_address, advertise) = (RwLock::new(None), advertise.to_owned());
        Ok(Self {
            inner: Arc::new(Inner { store, lists, calls, uses, key, container_address, advertise, elsewhere: OnceLock::new(), copies }),
        })
    }

    /// Tells under which address containers reach this node.
    pub(crate) fn set_container_address(&self, address: SocketAddr) {
        *self.inner.container_address.write() = Some(address);
    }

    /// Returns the host and port of URLs for containers.
    pub(crate) fn container_authority(&self) -> String {
        self.inner.container_address.read().map(|address| address.to_string()).unwrap_or_default()
    }

    fn sign(&self, method: &str, id: BlobId, expires: u64) -> String {
        let text = format!("{method} {id} {expires}");
        blake3::keyed_hash(&self.inner.key, text.as_bytes()).to_hex()[..32].to_owned()
    }

    fn url(&self, caller: &Caller, method: &str, id: BlobId) -> String {
        let expires = now().0 + URL_MS;
        let signature = self.sign(method, id, expires);
        let authority = if self.inner.advertise.is_empty() || matches!(caller.identity, super::Identity::Task(_)) {
            &caller.authority
        } else {
            &self.inner.advertise
        };
        format!("http://{authority}/blob/{id}?expires={expires}&signature={signature}")
    }

    fn permit(&self, method: &str, id: BlobId, permission: &Permission) -> bool {
        use subtle::ConstantTimeEq as _;
        let expected = self.sign(method, id, permission.expires);
        permission.expires > now().0 && bool::from(expected.as_bytes().ct_eq(permission.signature.as_bytes()))
    }

    /// Keeps bytes under an id, durably, here and on the nodes that are to have them.
    pub(super) async fn put(&self, id: BlobId, bytes: Bytes) -> io::Result<()> {
        let blobs = self.clone();
        let (list, chunks) = blocking(move || {
            let chunks: Result<Vec<Digest>, _> = bytes.chunks(CHUNK_BYTES).map(|piece| blobs.inner.store.put(piece)).collect();
            let list = chunk::List { size: bytes.len() as u64, chunks: chunks.map_err(io::Error::other)? };
            Ok::<_, io::Error>((blobs.commit(id, &list)?, list.chunks))
        })
        .await?;
        self.inner.copies.make_of_blob(id, list, &chunks).await;
        Ok(())
    }

    /// Reads a part of a blob, wherever it came to.
    pub(super) async fn read(&self, id: BlobId, range: Range<u64>) -> io::Result<Bytes> {
        let absent = || io::Error::other(format!("blob {id}, which holds it, is on no node that can be reached"));
        let list = self.found(id).await?.ok_or_else(absent)?;
        self.touch(id);
        let store = self.inner.store.clone();
        blocking(move || {
            let mut bytes = Vec::new();
            for piece in chunk::pieces(list.size, range) {
                let number = usize::try_from(piece.number).map_err(io::Error::other)?;
                let digest = list.chunks.get(number).ok_or_else(|| io::Error::other(format!("blob {id} has no chunk {number}")))?;
                let chunk = store.get_anywhere(digest, None).map_err(io::Error::other)?;
                bytes.extend_from_slice(chunk.get(piece.bytes).ok_or_else(|| io::Error::other(format!("chunk {digest} is short")))?);
            }
            Ok(bytes.into())
        })
        .await
    }

    /// Keeps a finished list of chunks under an id, durably.
    fn commit(&self, id: BlobId, list: &chunk::List) -> io::Result<Digest> {
        let kept = self.inner.store.put(&list.encode()).map_err(io::Error::other)?;
        self.inner.store.sync().map_err(io::Error::other)?;
        self.keep(id, kept)?;
        Ok(kept)
    }

    /// Keeps a blob whose list of chunks has this digest, durably. All of it is on disk.
    pub(crate) fn keep(&self, id: BlobId, list: Digest) -> io::Result<()> {
        self.keep_used(id, list, self.inner.store.now())
    }

    /// Keeps a blob as [`Self::keep`] does that was last used at this time, in seconds of the Unix clock.
    pub(crate) fn keep_used(&self, id: BlobId, list: Digest, used: u64) -> io::Result<()> {
        self.inner.lists.insert(id.to_string().as_bytes(), list.as_bytes()).map_err(io::Error::other)?;
        let known = self.inner.uses.last(Thing::Blob(id)).map_err(io::Error::other)?;
        self.inner.uses.touch(Thing::Blob(id), known.map_or(used, |known| known.max(used)));
        self.inner.lists.kv().sync().map_err(io::Error::other)
    }

    fn touch(&self, id: BlobId) {
        self.inner.uses.touch(Thing::Blob(id), self.inner.store.now());
    }

    /// Notes, durably, that a call names blobs.
    pub(super) fn name(&self, blobs: &[BlobId], call: CallId) -> io::Result<()> {
        for blob in blobs {
            self.inner.calls.insert(format!("{blob} {call}").as_bytes(), b"").map_err(io::Error::other)?;
        }
        self.inner.calls.kv().sync().map_err(io::Error::other)
    }

    /// Returns the calls that were noted to name a blob.
    pub(crate) fn calls_of(&self, id: BlobId) -> io::Result<Vec<CallId>> {
        let prefix = format!("{id} ");
        let mut calls = Vec::new();
        for pair in self.inner.calls.range(prefix.as_bytes()..) {
            let (key, _) = pair.map_err(io::Error::other)?;
            let Some(call) = key.strip_prefix(prefix.as_bytes()) else { break };
            calls.extend(std::str::from_utf8(call).ok().and_then(|call| call.parse::<CallId>().ok()));
        }
        Ok(calls)
    }

    /// Returns all blobs, each with the digest of its list of chunks.
    pub(crate) fn all(&self) -> io::Result<Vec<(BlobId, Digest)>> {
        all(&self.inner.lists)
    }

    /// Forgets blobs, durably. Their chunks stay in the store until it is collected.
    pub(crate) fn forget(&self, ids: &[BlobId]) -> io::Result<()> {
        for id in ids {
            for call in self.calls_of(*id)? {
                self.inner.calls.remove(format!("{id} {call}").as_bytes()).map_err(io::Error::other)?;
            }
            self.inner.lists.remove(id.to_string().as_bytes()).map_err(io::Error::other)?;
        }
        self.inner.lists.kv().sync().map_err(io::Error::other)
    }

    /// Says who knows of blobs that came to other nodes.
    pub(crate) fn set_elsewhere(&self, elsewhere: PeerChunks) {
        // Set once, when the node starts.
        let _ = self.inner.elsewhere.set(elsewhere);
    }

    /// Returns the digest of the list of a blob's chunks, as far as this node knows.
    pub(crate) fn digest(&self, id: BlobId) -> io::Result<Option<Digest>> {
        let found = self.inner.lists.get(id.to_string().as_bytes()).map_err(io::Error::other)?;
        found.map(|found| found.as_ref().try_into().map(Digest::from_bytes).map_err(io::Error::other)).transpose()
    }

    /// Returns the chunks of a blob, wherever it came to.
    async fn found(&self, id: BlobId) -> io::Result<Option<chunk::List>> {
        let here = self.clone();
        if let Some(list) = blocking(move || here.list(id)).await? {
            return Ok(Some(list));
        }
        let Some(elsewhere) = self.inner.elsewhere.get() else { return Ok(None) };
        let Some(digest) = elsewhere.find_blob(id).await else { return Ok(None) };
        let here = self.clone();
        blocking(move || {
            // From now on it is here too, as far as the next collection allows.
            here.inner.lists.insert(id.to_string().as_bytes(), digest.as_bytes()).map_err(io::Error::other)?;
            here.list(id)
        })
        .await
    }

    /// Says whether a blob is here with all its chunks.
    pub(crate) fn is_whole(&self, id: BlobId) -> io::Result<bool> {
        let Some(list) = self.list(id)? else { return Ok(false) };
        for chunk in &list.chunks {
            if !self.inner.store.has(chunk).map_err(io::Error::other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the chunks of a blob, as far as this node knows.
    pub(crate) fn list(&self, id: BlobId) -> io::Result<Option<chunk::List>> {
        read_list(&self.inner.store, &self.inner.lists, id.to_string().as_bytes())
    }
}

/// Returns all blobs of the node whose small values these are, each with the digest of its list of chunks.
pub(crate) fn all_in(kv: &Kv) -> io::Result<Vec<(BlobId, Digest)>> {
    all(&kv.tree(LISTS).map_err(io::Error::other)?)
}

fn all(lists: &shoal_storage::kv::Tree) -> io::Result<Vec<(BlobId, Digest)>> {
    let mut all = Vec::new();
    for pair in lists.range(..) {
        let (key, value) = pair.map_err(io::Error::other)?;
        let id = std::str::from_utf8(&key).ok().and_then(|id| id.parse().ok());
        let list = value.as_ref().try_into().map(Digest::from_bytes).map_err(io::Error::other)?;
        all.extend(id.map(|id| (id, list)));
    }
    Ok(all)
}

/// Reads the list of chunks that a table names under a key: the table has the list's digest, since lists may be long.
pub(super) fn read_list(store: &Store, table: &shoal_storage::kv::Tree, key: &[u8]) -> io::Result<Option<chunk::List>> {
    let Some(found) = table.get(key).map_err(io::Error::other)? else { return Ok(None) };
    let digest = found.as_ref().try_into().map(Digest::from_bytes).map_err(io::Error::other)?;
    match store.get_anywhere(&digest, None) {
        Ok(list) => chunk::List::decode(&list).map(Some).map_err(io::Error::other),
        // What was not named for long is deleted; what was damaged is dropped.
        Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => Ok(None),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// The HTTP side.
pub(super) fn routes(api: Api) -> Router {
    Router::new().route("/blob/{id}", get(download).put(upload)).with_state(api.blobs)
}

fn refuse(code: StatusCode, why: String) -> Response {
    (code, why).into_response()
}

fn failed(attempted: &str, id: BlobId, error: &dyn std::fmt::Display) -> Response {
    tracing::error!(%id, %error, "cannot {attempted} a blob");
    refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot {attempted} blob {id}: {error}\n"))
}

async fn upload(Shared(blobs): Shared<Blobs>, Path(id): Path<String>, Query(permission): Query<Permission>, body: Body) -> Response {
    let Ok(id) = id.parse::<BlobId>() else { return refuse(StatusCode::NOT_FOUND, format!("{id:?} is not a blob\n")) };
    if !blobs.permit("PUT", id, &permission) {
        return refuse(StatusCode::FORBIDDEN, format!("this URL does not permit to write blob {id}, or has expired\n"));
    }
    match receive(&blobs, body).await {
        Ok((list, md5)) => {
            let (committed, chunks) = (blobs.clone(), list.chunks.clone());
            match blocking(move || committed.commit(id, &list)).await {
                Ok(list) => {
                    blobs.inner.copies.make_of_blob(id, list, &chunks).await;
                    let mut headers = HeaderMap::new();
                    if let Ok(etag) = HeaderValue::from_str(&format!("\"{md5}\"")) {
                        headers.insert(header::ETAG, etag);
                    }
                    (StatusCode::OK, headers).into_response()
                }
                Err(error) => failed("keep", id, &error),
            }
        }
        Err(error) => failed("receive", id, &error),
    }
}

/// Cuts a body into chunks as it arrives.
async fn receive(blobs: &Blobs, body: Body) -> io::Result<(chunk::List, String)> {
    let (mut md5, mut list, mut piece) = (Md5::new(), chunk::List { size: 0, chunks: vec![] }, Vec::with_capacity(CHUNK_BYTES));
    let mut stream = body.into_data_stream();
    loop {
        let part = stream.next().await.transpose().map_err(io::Error::other)?;
        let end = part.is_none();
        let mut part: Bytes = part.unwrap_or_default();
        md5.update(&part);
        list.size += part.len() as u64;
        if list.size > BLOB_BYTES_MAX {
            return Err(io::Error::other(format!("a blob may have {BLOB_BYTES_MAX} bytes in one piece")));
        }
        while !part.is_empty() || (end && !piece.is_empty()) {
            let room = CHUNK_BYTES - piece.len();
            let taken = part.split_to(room.min(part.len()));
            piece.extend_from_slice(&taken);
            if piece.len() == CHUNK_BYTES || end {
                let (store, full) = (blobs.inner.store.clone(), std::mem::replace(&mut piece, Vec::with_capacity(CHUNK_BYTES)));
                list.chunks.push(blocking(move || store.put(&full)).await.map_err(io::Error::other)?);
            }
        }
        if end {
            let hex: String = md5.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            return Ok((list, hex));
        }
    }
}

async fn download(Shared(blobs): Shared<Blobs>, Path(id): Path<String>, Query(permission): Query<Permission>) -> Response {
    let Ok(id) = id.parse::<BlobId>() else { return refuse(StatusCode::NOT_FOUND, format!("{id:?} is not a blob\n")) };
    if !blobs.permit("GET", id, &permission) {
        return refuse(StatusCode::FORBIDDEN, format!("this URL does not permit to read blob {id}, or has expired\n"));
    }
    match blobs.found(id).await {
        Ok(Some(list)) => {
            blobs.touch(id);
            send(&blobs, list)
        }
        Ok(None) => refuse(StatusCode::NOT_FOUND, format!("blob {id} does not exist: it was not uploaded, or is no longer kept\n")),
        Err(error) => failed("find", id, &error),
    }
}

fn send(blobs: &Blobs, list: chunk::List) -> Response {
    let store = blobs.inner.store.clone();
    let parts = futures::stream::iter(list.chunks).then(move |digest| {
        let store = store.clone();
        async move { blocking(move || store.get_anywhere(&digest, None)).await.map_err(io::Error::other) }
    });
    let length = [(header::CONTENT_LENGTH, list.size.to_string())];
    (length, Body::from_stream(parts)).into_response()
}

pub(super) async fn create(api: &Api, caller: &Caller, _request: pb::BlobCreateRequest) -> Result<pb::BlobCreateResponse, Error> {
    let id = BlobId::derive(&[&caller.identity.scope(), caller.key().as_bytes()]);
    let url = api.blobs.url(caller, "PUT", id);
    Ok(pb::BlobCreateResponse {
        blob_id: id.to_string(),
        upload_type_oneof: Some(pb::blob_create_response::UploadTypeOneof::UploadUrl(url.clone())),
        blob_ids: vec![id.to_string()],
        upload_types_oneof: Some(pb::blob_create_response::UploadTypesOneof::UploadUrls(pb::UploadUrlList { items: vec![url] })),
    })
}

pub(super) async fn get_url(api: &Api, caller: &Caller, request: pb::BlobGetRequest) -> Result<pb::BlobGetResponse, Error> {
    let id: BlobId = request.blob_id.parse()?;
    api.blobs.touch(id);
    let found = api.blobs.found(id).await.map_err(Error::failed(format!("cannot look for blob {id}")))?;
    found.ok_or_else(|| Error::NotFound(format!("Blob '{id}' not found: it was not uploaded, or is no longer kept")))?;
    Ok(pb::BlobGetResponse { download_url: api.blobs.url(caller, "GET", id) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunks::tests::World;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_blob_that_is_given_is_as_old_as_it_was_unless_it_was_used_here_since() {
        let (dir, world) = (tempfile::tempdir().unwrap(), World::new(1));
        let kv = Kv::open(dir.path()).unwrap();
        let (uses, node) = (Uses::open(&kv).unwrap(), &world.nodes[0]);
        let blobs = Blobs::open(node.store.clone(), &kv, uses.clone(), node.copies.clone(), [0; 32], "").unwrap();
        let (id, list) = (BlobId::from_random(7), Digest::of(b"a list"));
        let last = || uses.last(Thing::Blob(id)).unwrap().unwrap();
        blobs.keep_used(id, list, 5000).unwrap();
        assert_eq!((blobs.all().unwrap(), last()), (vec![(id, list)], 5000));
        blobs.keep_used(id, list, 4000).unwrap();
        assert_eq!(last(), 5000);
        blobs.keep(id, list).unwrap();
        assert!(last() > 1_000_000_000);
    }
}
