//! Chunks and blobs between nodes.
//!
//! | module | holds |
//! |---|---|
//! | `others` | the other members: who answers, who sent wrong bytes |
//! | `fetch` | getting what this node lacks, many chunks at a time, from several peers |
//! | `give` | bringing to a peer what it lacks |
//! | `wire` | what is said when chunks are fetched |
//!
//! What comes is proven by its digest, where it arrives: whoever sends only reads, and chunks stay compressed on their way from disk to
//! disk. When it is not what it should be, the peer is asked once more, for what it has proven itself: a damaged disk is found so. A peer that still sends other bytes is named in the log, is not asked for that chunk again and for
//! others last for a while. A chunk is fetched once however many want it.

mod fetch;
mod give;
pub(crate) mod others;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_peer::{Service, Stream};
use shoal_state::{BlobId, Digest, NodeId};
use shoal_storage::store::{self, Elsewhere, Store, Stored};
use tokio::runtime::Handle;

use crate::api::{Blobs, blocking};
pub(crate) use fetch::Brought;
use fetch::{CHUNKS, CHUNKS_AT_ONCE, Fetcher};
pub(crate) use give::Given;
pub(crate) use others::Others;
use wire::Wanted;

/// Which list of chunks a blob is.
const BLOBS: Service = Service::new(4, "look for a blob");

/// How long one peer may take to say what it knows of a blob.
const BLOB_WAIT: Duration = Duration::from_secs(10);
/// How many chunks may be on their way because they are expected; further ones come when they are needed.
const EXPECTED_MAX: usize = 4096;
/// How many chunks are read from the disk at a time for a peer.
const READ_AT_ONCE: usize = 16;

/// The chunks of other nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct PeerChunks {
    others: Others,
    store: Store,
    fetcher: Fetcher,
    runtime: Handle,
}

impl PeerChunks {
    /// Gives peers what they lack, takes what they give, and fetches what `store` lacks, from now on. `copies` says of how many
    /// nodes each chunk is looked for first.
    pub(crate) fn start(others: &Others, store: &Store, copies: usize) -> Self {
        let of = store.clone();
        others.endpoint().serve(CHUNKS, move |stream, _| send(stream, of.clone()));
        give::serve(others, store);
        let fetcher = Fetcher::new(others.clone(), store.clone(), copies);
        let chunks = Self { others: others.clone(), store: store.clone(), fetcher, runtime: Handle::current() };
        store.set_elsewhere(Arc::new(chunks.clone()));
        chunks
    }

    /// Tells peers where blobs are that came here, and `blobs` who knows of those that came elsewhere.
    pub(crate) fn serve_blobs(&self, blobs: &Blobs) {
        let of = blobs.clone();
        self.others.endpoint().serve(BLOBS, move |stream, _| find(stream, of.clone()));
        blobs.set_elsewhere(self.clone());
    }

    /// Returns the chunks of this node.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the other members.
    pub(crate) fn others(&self) -> &Others {
        &self.others
    }

    /// Brings chunks here that are not, the first ones first.
    pub(crate) async fn bring(&self, digests: Vec<Digest>) -> Brought {
        self.bring_telling(digests, |_| ()).await
    }

    /// Brings chunks here as [`Self::bring`] does, and tells the length of each that came.
    pub(crate) async fn bring_telling(&self, digests: Vec<Digest>, came: impl Fn(u64) + Send + Sync) -> Brought {
        if digests.is_empty() { Brought::default() } else { self.fetcher.bring(digests, came).await }
    }

    /// Makes sure that a peer has chunks and keeps them.
    ///
    /// # Errors
    /// When the peer cannot be reached, or cannot keep them, in words. Then it may have some.
    pub(crate) async fn give(&self, node: NodeId, digests: &[Digest]) -> Result<Given, String> {
        give::give(&self.others, &self.store, node, digests).await
    }

    /// Asks a peer which chunks it lacks; those that it has it keeps for as long as what was put lately.
    ///
    /// # Errors
    /// When the peer does not say, in words.
    pub(crate) async fn lacks(&self, node: NodeId, digests: &[Digest]) -> Result<Vec<Digest>, String> {
        give::lacks(&self.others, node, digests).await
    }

    /// Asks the others which list of chunks a blob is.
    pub(crate) async fn find_blob(&self, id: BlobId) -> Option<Digest> {
        let asked: Bytes = postcard::to_stdvec(&id).expect("an id can be written").into();
        for (node, address) in self.others.up().await {
            match self.others.endpoint().call(node, &address, BLOBS, asked.clone(), BLOB_WAIT).await {
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

/// Sends the chunks that a peer asks for, in its order.
async fn send(mut stream: Stream, store: Store) {
    let sent = async {
        while let Some(asked) = stream.next().await? {
            let Some((digests, wanted)) = wire::asked(&asked) else {
                return stream.fail("what was asked cannot be read: are the nodes of one release?").await;
            };
            for some in digests[..digests.len().min(CHUNKS_AT_ONCE)].chunks(READ_AT_ONCE) {
                let (of, some) = (store.clone(), some.to_vec());
                let frames =
                    blocking(move || some.iter().map(|digest| chunk(&of, digest, wanted).map(wire::answer)).collect::<Result<Vec<_>, _>>())
                        .await;
                match frames {
                    Ok(frames) => {
                        for frame in frames {
                            stream.send_parts(&frame).await?;
                        }
                    }
                    Err(error) => return stream.fail(&error.to_string()).await,
                }
            }
        }
        stream.finish()
    };
    if let Err(error) = sent.await {
        tracing::debug!(%error, "a peer did not take all the chunks that it asked for");
    }
}

/// Returns a chunk for a peer, none where it is not here.
fn chunk(store: &Store, digest: &Digest, wanted: Wanted) -> store::Result<Option<Stored>> {
    let found = match wanted {
        Wanted::Stored => store.get_stored(digest),
        Wanted::Proven => store.get(digest).map(Stored::Plain),
    };
    match found {
        Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => Ok(None),
        other => other.map(Some),
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

impl Elsewhere for PeerChunks {
    fn fetch(&self, digest: &Digest, deadline: Instant) -> Result<Option<Bytes>, String> {
        if self.others.all().is_empty() {
            return Ok(None);
        }
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let (fetcher, digest) = (self.fetcher.clone(), *digest);
        self.runtime.spawn(async move {
            // Whoever asked may have given up.
            let _ = tell.send(fetcher.one(digest).await);
        });
        let patience = deadline.saturating_duration_since(Instant::now());
        told.recv_timeout(patience).unwrap_or_else(|_| Err(format!("no answer came within {patience:?}")))
    }

    fn bring(&self, digests: Vec<Digest>, deadline: Instant) {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let this = self.clone();
        self.runtime.spawn(async move {
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
        self.runtime.spawn(async move { this.bring(digests).await });
    }
}
