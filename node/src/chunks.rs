//! Chunks and blobs between nodes.
//!
//! A node that lacks a chunk asks the others for it: those that are connected first, one after the other until one has it. Many
//! chunks travel on one stream. What comes is proven by its digest; a peer that sends other bytes is named in the log, and the next
//! is asked. A chunk is fetched once however many want it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use shoal_peer::{Endpoint, Service, Stream};
use shoal_raft::Raft;
use shoal_state::{BlobId, Digest, NodeId};
use shoal_storage::store::{self, Elsewhere, Store};
use tokio::runtime::Handle;

use crate::api::{Blobs, blocking};
use crate::peers::{self, Peers};

/// Chunks, many on a stream.
const CHUNKS: Service = Service::new(2, "send a chunk");
/// Which list of chunks a blob is.
const BLOBS: Service = Service::new(4, "look for a blob");

/// How many chunks one request asks for.
const CHUNKS_AT_ONCE: usize = 256;
/// How long one peer may take for a chunk.
const PEER_WAIT: Duration = Duration::from_secs(10);
/// How many chunks may be on their way because they are expected; further ones come when they are needed.
const EXPECTED_MAX: usize = 4096;

/// The first byte of what is sent for a chunk: nothing follows, or its bytes.
const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

type Fetch = Shared<BoxFuture<'static, Result<Option<Bytes>, String>>>;

/// The chunks of other nodes.
#[derive(Clone)]
pub(crate) struct PeerChunks {
    inner: Arc<Inner>,
}

struct Inner {
    endpoint: Endpoint,
    raft: Raft,
    runtime: Handle,
    fetches: Mutex<HashMap<Digest, Fetch>>,
    store: Store,
}

impl std::fmt::Debug for PeerChunks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerChunks").finish_non_exhaustive()
    }
}

/// Gives peers what they lack, and takes what this node lacks, from now on.
pub(crate) fn start(peers: &Peers, raft: &Raft, store: &Store, blobs: &Blobs) {
    let of_store = store.clone();
    peers.endpoint.serve(CHUNKS, move |stream, _| send(stream, of_store.clone()));
    let of_blobs = blobs.clone();
    peers.endpoint.serve(BLOBS, move |stream, _| find(stream, of_blobs.clone()));
    let inner = Inner {
        endpoint: peers.endpoint.clone(),
        raft: raft.clone(),
        runtime: Handle::current(),
        fetches: Mutex::default(),
        store: store.clone(),
    };
    let chunks = PeerChunks { inner: Arc::new(inner) };
    blobs.set_elsewhere(chunks.clone());
    store.set_elsewhere(Arc::new(chunks));
}

/// Sends the chunks that a peer asks for, in its order.
async fn send(mut stream: Stream, store: Store) {
    let sent = async {
        while let Some(asked) = stream.next().await? {
            let Ok(digests) = postcard::from_bytes::<Vec<Digest>>(&asked) else {
                return stream.fail("what was asked cannot be read: are the nodes of one release?").await;
            };
            for digest in digests.into_iter().take(CHUNKS_AT_ONCE) {
                let of = store.clone();
                let frame = match blocking(move || of.get(&digest)).await {
                    Ok(bytes) => [&[PRESENT], &bytes[..]].concat(),
                    Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => vec![ABSENT],
                    Err(error) => return stream.fail(&error.to_string()).await,
                };
                stream.send(frame.into()).await?;
            }
        }
        stream.finish()
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "a peer did not take all the chunks that it asked for");
    }
}

/// Says which list of chunks a blob is, as far as this node knows.
async fn find(mut stream: Stream, blobs: Blobs) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let found = match postcard::from_bytes::<BlobId>(&asked) {
        Ok(id) => blocking(move || blobs.digest(id)).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let done = match found {
        Ok(found) => stream.send(postcard::to_stdvec(&found).expect("a digest can be written").into()).await.and_then(|()| stream.finish()),
        Err(why) => stream.fail(&why).await,
    };
    if let Err(error) = done {
        tracing::debug!(%error, "a peer did not wait for where a blob is");
    }
}

impl PeerChunks {
    /// Returns the other members, those that are connected first.
    fn others(&self) -> Vec<(NodeId, String)> {
        let inner = &self.inner;
        let (up, mut others) = (inner.endpoint.connected(), peers::others(&inner.raft));
        others.sort_by_key(|(id, _)| !up.iter().any(|(node, ..)| node == id));
        others
    }

    /// Fetches a chunk, once for all who want it.
    fn fetching(&self, digest: Digest) -> Fetch {
        let mut fetches = self.inner.fetches.lock();
        if let Some(fetch) = fetches.get(&digest) {
            return fetch.clone();
        }
        let this = self.clone();
        let task = self.inner.runtime.spawn(async move {
            let found = this.asked_all(digest).await;
            this.inner.fetches.lock().remove(&digest);
            found
        });
        let fetch = async move { task.await.unwrap_or_else(|_| Err("this node stops".to_owned())) }.boxed().shared();
        fetches.insert(digest, fetch.clone());
        fetch
    }

    async fn asked_all(&self, digest: Digest) -> Result<Option<Bytes>, String> {
        let others = self.others();
        let mut failures = Vec::new();
        for (node, address) in &others {
            match tokio::time::timeout(PEER_WAIT, self.ask(*node, address, vec![digest])).await {
                Ok(Ok(found)) => match found.into_iter().next() {
                    Some((_, bytes)) => return Ok(Some(bytes)),
                    None => continue,
                },
                Ok(Err(why)) => failures.push(why),
                Err(_) => failures.push(format!("waited {PEER_WAIT:?} for node {node}")),
            }
        }
        // Who could not be asked may have it.
        if failures.is_empty() { Ok(None) } else { Err(failures.join("; ")) }
    }

    /// Asks one peer for chunks; returns those that it has, proven.
    async fn ask(&self, node: NodeId, address: &str, digests: Vec<Digest>) -> Result<Vec<(Digest, Bytes)>, String> {
        let words = |error: shoal_peer::Error| error.to_string();
        let mut stream = self.inner.endpoint.open_stream(node, address, CHUNKS).await.map_err(words)?;
        stream.send(postcard::to_stdvec(&digests).expect("digests can be written").into()).await.map_err(words)?;
        stream.finish().map_err(words)?;
        let mut found = Vec::new();
        for digest in digests {
            let frame = stream.next().await.map_err(words)?.ok_or_else(|| format!("node {node} sent less than it was asked for"))?;
            match frame.first() {
                Some(&PRESENT) => {
                    let bytes = frame.slice(1..);
                    if Digest::of(&bytes) != digest {
                        tracing::error!(%node, %digest, "a peer sent other bytes than the chunk has; another is asked");
                        return Err(format!("node {node} sent other bytes than chunk {digest} has"));
                    }
                    found.push((digest, bytes));
                }
                _ => continue,
            }
        }
        Ok(found)
    }

    /// Brings chunks that will be wanted.
    async fn bring(&self, digests: Vec<Digest>) {
        let mut wanted = digests;
        for (node, address) in self.others() {
            let mut left = Vec::new();
            for some in wanted.chunks(CHUNKS_AT_ONCE) {
                let found = tokio::time::timeout(PEER_WAIT, self.ask(node, &address, some.to_vec())).await;
                let found: HashMap<Digest, Bytes> = found.ok().and_then(Result::ok).unwrap_or_default().into_iter().collect();
                left.extend(some.iter().filter(|digest| !found.contains_key(*digest)));
                let store = self.inner.store.clone();
                // What is not kept now is fetched when it is needed.
                let _ = blocking(move || found.values().try_for_each(|bytes| store.put(bytes).map(drop))).await;
            }
            wanted = left;
            if wanted.is_empty() {
                return;
            }
        }
    }

    /// Asks the others which list of chunks a blob is.
    pub(crate) async fn find_blob(&self, id: BlobId) -> Option<Digest> {
        let asked: Bytes = postcard::to_stdvec(&id).expect("an id can be written").into();
        for (node, address) in self.others() {
            match self.inner.endpoint.call(node, &address, BLOBS, asked.clone(), PEER_WAIT).await {
                Ok(answer) => {
                    if let Ok(Some(found)) = postcard::from_bytes::<Option<Digest>>(&answer) {
                        return Some(found);
                    }
                }
                Err(error) => tracing::warn!(blob = %id, %error, "a node could not be asked for a blob"),
            }
        }
        None
    }
}

impl Elsewhere for PeerChunks {
    fn fetch(&self, digest: &Digest, deadline: Instant) -> Result<Option<Bytes>, String> {
        if self.others().is_empty() {
            return Ok(None);
        }
        let fetch = self.fetching(*digest);
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        self.inner.runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = tell.send(fetch.await);
        });
        let patience = deadline.saturating_duration_since(Instant::now());
        told.recv_timeout(patience).unwrap_or_else(|_| Err(format!("no answer came within {patience:?}")))
    }

    fn bring(&self, digests: Vec<Digest>, deadline: Instant) {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let this = self.clone();
        self.inner.runtime.spawn(async move {
            this.bring(digests).await;
            // Whoever asked may have given up.
            let _ = tell.send(());
        });
        // What has not come is missing, which the caller finds out.
        let _ = told.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn expect(&self, mut digests: Vec<Digest>) {
        digests.truncate(EXPECTED_MAX);
        let this = self.clone();
        self.inner.runtime.spawn(async move { this.bring(digests).await });
    }
}
