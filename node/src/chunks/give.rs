//! Giving chunks to peers: what they lack of them, after they said what that is.
//!
//! A frame is what it is (one byte) and names or chunks. Names are answered with the places of those that the peer lacks; that it has
//! the others is a promise to keep them, on its disk before the answer. Chunks are not answered, until there are no more: then
//! everything that came is on the peer's disk.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use shoal_peer::{Service, Stream};
use shoal_state::{Digest, NodeId};
use shoal_storage::store::{self, Store};

use super::others::Others;
use crate::api::blocking;

/// Chunks that another node is to keep.
const GIVE: Service = Service::new(17, "keep chunks");

/// What a frame holds.
const NAMES: u8 = 0;
const CHUNKS: u8 = 1;

/// How many chunks are named in one frame.
const NAMES_MAX: usize = 4096;
/// A frame with chunks is sent when it has so many bytes.
const FRAME_BYTES: usize = 2 << 20;
/// How many chunks are read from the disk at a time.
const READ_AT_ONCE: usize = 16;
/// How long a peer may take to say what it lacks, and to bring what came to its disk.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// How long a peer may take for one frame.
const FRAME_WAIT: Duration = Duration::from_secs(20);

/// What came of giving chunks to a peer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Chunks that the peer lacks, and that are not here either.
    pub(crate) absent: Vec<Digest>,
    /// How many chunks were sent.
    pub(crate) chunks: u64,
    /// Their length, in bytes.
    pub(crate) bytes: u64,
}

/// Takes what peers give, from now on.
pub(super) fn serve(others: &Others, store: &Store) {
    let store = store.clone();
    others.endpoint().serve(GIVE, move |stream, _| take(stream, store.clone()));
}

async fn take(mut stream: Stream, store: Store) {
    let done = match taken(&mut stream, &store).await {
        Ok(()) => stream.finish(),
        Err(why) => stream.fail(&why).await,
    };
    if let Err(error) = done {
        tracing::debug!(peer = %stream.peer(), %error, "a peer that gave chunks did not wait to hear that they are kept");
    }
}

async fn taken(stream: &mut Stream, store: &Store) -> Result<(), String> {
    let words = |error: shoal_peer::Error| error.to_string();
    while let Some(frame) = stream.next().await.map_err(words)? {
        let (what, rest) = frame.split_first().ok_or("a frame is empty")?;
        match *what {
            NAMES => {
                let names: Vec<Digest> = postcard::from_bytes(rest).map_err(|error| format!("names cannot be read: {error}"))?;
                let of = store.clone();
                let lacking = blocking(move || lacking(&of, &names)).await.map_err(|error| error.to_string())?;
                stream.send(postcard::to_stdvec(&lacking).expect("numbers can be written").into()).await.map_err(words)?;
            }
            CHUNKS => {
                let (of, chunks) = (store.clone(), frame.slice(1..));
                blocking(move || put(&of, chunks)).await?;
            }
            _ => return Err("it is not understood what was sent: are the nodes of one release?".to_owned()),
        }
    }
    let of = store.clone();
    blocking(move || of.sync()).await.map_err(|error| error.to_string())?;
    stream.send(Bytes::new()).await.map_err(words)
}

/// Returns the places of those of `names` that are not here; the others are promised.
fn lacking(store: &Store, names: &[Digest]) -> store::Result<Vec<u32>> {
    let missing: HashSet<Digest> = store.missing(names)?.into_iter().collect();
    let places = (0u32..).zip(names).filter(|(_, name)| missing.contains(name)).map(|(place, _)| place);
    Ok(places.collect())
}

/// Puts chunks, each with its length before it.
fn put(store: &Store, mut chunks: Bytes) -> Result<(), String> {
    while !chunks.is_empty() {
        let cut = || "a frame of chunks ends in the middle of one".to_owned();
        let (head, _) = chunks.split_first_chunk().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*head) as usize;
        if chunks.len() < 4 + length {
            return Err(cut());
        }
        let chunk = chunks.split_to(4 + length).split_off(4);
        store.put(&chunk).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Makes sure that a peer has chunks and keeps them: what it lacks is sent to it.
///
/// # Errors
/// When the peer cannot be reached, or cannot keep them, in words. Then it may have some.
pub(super) async fn give(others: &Others, store: &Store, node: NodeId, digests: &[Digest]) -> Result<Given, String> {
    let (mut given, mut stream) = (Given::default(), open(others, node).await?);
    for names in digests.chunks(NAMES_MAX) {
        for some in ask(others, &mut stream, names).await?.chunks(READ_AT_ONCE) {
            for frame in read(store, some.to_vec(), &mut given).await? {
                others.wait(node, "take chunks", FRAME_WAIT, stream.send(frame)).await?;
            }
        }
    }
    close(others, stream).await?;
    others.answered(node);
    Ok(given)
}

/// Asks a peer which chunks it lacks; those that it has it keeps for as long as what was put lately.
///
/// # Errors
/// When the peer does not say, in words.
pub(super) async fn lacks(others: &Others, node: NodeId, digests: &[Digest]) -> Result<Vec<Digest>, String> {
    let (mut lacks, mut stream) = (Vec::new(), open(others, node).await?);
    for names in digests.chunks(NAMES_MAX) {
        lacks.extend(ask(others, &mut stream, names).await?);
    }
    close(others, stream).await?;
    Ok(lacks)
}

async fn open(others: &Others, node: NodeId) -> Result<Stream, String> {
    let address = others.address(node)?;
    others.wait(node, "take chunks", FRAME_WAIT, others.endpoint().open_stream(node, &address, GIVE)).await
}

async fn close(others: &Others, mut stream: Stream) -> Result<(), String> {
    let node = stream.peer();
    stream.finish().map_err(|error| error.to_string())?;
    let kept = others.wait(node, "bring chunks to its disk", DISK_WAIT, stream.next()).await?;
    kept.map(drop).ok_or_else(|| format!("node {node} did not say that it keeps what it was given"))
}

async fn ask(others: &Others, stream: &mut Stream, names: &[Digest]) -> Result<Vec<Digest>, String> {
    let node = stream.peer();
    let mut frame = vec![NAMES];
    frame.extend(postcard::to_stdvec(names).expect("digests can be written"));
    others.wait(node, "take the names of chunks", FRAME_WAIT, stream.send(frame.into())).await?;
    let answer = others.wait(node, "say which chunks it lacks", DISK_WAIT, stream.next()).await?;
    let answer = answer.ok_or_else(|| format!("node {node} did not say which chunks it lacks"))?;
    let places: Vec<u32> = postcard::from_bytes(&answer).map_err(|error| format!("the answer of node {node} cannot be read: {error}"))?;
    Ok(places.into_iter().filter_map(|place| names.get(place as usize).copied()).collect())
}

/// Reads chunks from the store into frames; tells of those that are not there.
async fn read(store: &Store, digests: Vec<Digest>, given: &mut Given) -> Result<Vec<Bytes>, String> {
    let of = store.clone();
    let chunks = blocking(move || digests.into_iter().map(|digest| (digest, of.get(&digest))).collect::<Vec<_>>()).await;
    let (mut frames, mut frame) = (Vec::new(), BytesMut::new());
    for (digest, chunk) in chunks {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => {
                given.absent.push(digest);
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        given.chunks += 1;
        given.bytes += chunk.len() as u64;
        if frame.is_empty() {
            frame.put_u8(CHUNKS);
        }
        frame.put_u32_le(u32::try_from(chunk.len()).expect("a chunk is short"));
        frame.extend_from_slice(&chunk);
        if frame.len() >= FRAME_BYTES {
            frames.push(frame.split().freeze());
        }
    }
    if !frame.is_empty() {
        frames.push(frame.freeze());
    }
    Ok(frames)
}
