//! Giving chunks to peers: what they lack of them, after they said what that is.
//!
//! A frame is what it is (one byte) and names or chunks. Names are answered with the places of those that the peer lacks; that it has
//! the others is a promise to keep them, on its disk before the answer. Chunks are not answered, until there are no more: then
//! everything that came is on the peer's disk, but for those that it names as not being what they should be.
//!
//! Chunks go as they are kept, each behind its name, and are proven where they arrive. What was not right, and everything that goes
//! to a release before, is proven here and goes plain.

use std::collections::HashSet;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use shoal_peer::{Service, Stream};
use shoal_state::{Digest, NodeId};
use shoal_storage::store::{self, Store, Stored};

use super::chunk;
use super::others::Others;
use super::wire::{self, Wanted};
use crate::api::blocking;

/// Chunks that another node is to keep.
const GIVE: Service = Service::new(17, "keep chunks");

/// What a frame holds.
const NAMES: u8 = 0;
const CHUNKS: u8 = 1;
const STORED: u8 = 2;

/// Behind the places of what a peer lacks: it takes [`STORED`].
const TAKES_STORED: u8 = 1;

/// What stands before a chunk in a frame of [`STORED`]: its name, and the length of what follows.
const NAME_BYTES: usize = 32;
const HEAD_BYTES: usize = NAME_BYTES + 4;

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
    let mut wrong: Vec<Digest> = Vec::new();
    while let Some(frame) = stream.next().await.map_err(words)? {
        let (what, rest) = frame.split_first().ok_or("a frame is empty")?;
        match *what {
            NAMES => {
                let names: Vec<Digest> = postcard::from_bytes(rest).map_err(|error| format!("names cannot be read: {error}"))?;
                let of = store.clone();
                let lacking = blocking(move || lacking(&of, &names)).await.map_err(|error| error.to_string())?;
                let mut answer = postcard::to_stdvec(&lacking).expect("numbers can be written");
                answer.push(TAKES_STORED);
                stream.send(answer.into()).await.map_err(words)?;
            }
            CHUNKS => {
                let (of, chunks) = (store.clone(), frame.slice(1..));
                blocking(move || put(&of, chunks)).await?;
            }
            STORED => {
                let (of, chunks) = (store.clone(), frame.slice(1..));
                wrong.extend(blocking(move || put_stored(&of, chunks)).await?);
            }
            _ => return Err("it is not understood what was sent: are the nodes of one release?".to_owned()),
        }
    }
    let of = store.clone();
    blocking(move || of.sync()).await.map_err(|error| error.to_string())?;
    let wrong = if wrong.is_empty() { Vec::new() } else { postcard::to_stdvec(&wrong).expect("digests can be written") };
    stream.send(wrong.into()).await.map_err(words)
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
        let (_, chunk) = next(&mut chunks, 0)?;
        store.put(&chunk).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// Puts chunks that come as they were kept, each with its name and its length before it. Returns those that are not what they should be.
fn put_stored(store: &Store, mut chunks: Bytes) -> Result<Vec<Digest>, String> {
    let mut wrong = Vec::new();
    while !chunks.is_empty() {
        let (name, chunk) = next(&mut chunks, NAME_BYTES)?;
        let digest = Digest::from_bytes(name[..].try_into().expect("so many bytes were asked for"));
        match wire::answered(&chunk).map(|stored| stored.prove(digest)) {
            Some(Ok(proven)) => store.put_proven(&proven).map_err(|error| error.to_string())?,
            Some(Err(_)) | None => wrong.push(digest),
        }
    }
    Ok(wrong)
}

/// Takes the next chunk off a frame, and so many bytes that stand before its length.
fn next(chunks: &mut Bytes, before: usize) -> Result<(Bytes, Bytes), String> {
    let cut = || "a frame of chunks ends in the middle of one".to_owned();
    if chunks.len() < before + 4 {
        return Err(cut());
    }
    let name = chunks.split_to(before);
    let length = chunks.get_u32_le() as usize;
    if chunks.len() < length {
        return Err(cut());
    }
    Ok((name, chunks.split_to(length)))
}

/// Makes sure that a peer has chunks and keeps them: what it lacks is sent to it.
///
/// # Errors
/// When the peer cannot be reached, or cannot keep them, in words. Then it may have some.
pub(super) async fn give(others: &Others, store: &Store, node: NodeId, digests: &[Digest]) -> Result<Given, String> {
    let mut given = Given::default();
    let wrong = give_as(others, store, node, digests, Wanted::Stored, &mut given).await?;
    if !wrong.is_empty() {
        // They were read while they were moved, or the disk here is damaged: what is proven says which.
        let wrong = give_as(others, store, node, &wrong, Wanted::Proven, &mut given).await?;
        if let Some(digest) = wrong.first() {
            return Err(format!("node {node} got other bytes than chunk {digest} has, though they were right when they were sent"));
        }
    }
    others.answered(node);
    Ok(given)
}

/// Gives a peer what it lacks. Returns what did not arrive as it should be.
async fn give_as(
    others: &Others,
    store: &Store,
    node: NodeId,
    digests: &[Digest],
    how: Wanted,
    given: &mut Given,
) -> Result<Vec<Digest>, String> {
    let mut stream = open(others, node).await?;
    for names in digests.chunks(NAMES_MAX) {
        let (lacking, takes_stored) = ask(others, &mut stream, names).await?;
        let how = if takes_stored { how } else { Wanted::Proven };
        for some in lacking.chunks(READ_AT_ONCE) {
            let chunks = read(store, some.to_vec(), how, given).await?;
            for frame in frames(&chunks, how) {
                others.wait(node, "take chunks", FRAME_WAIT, stream.send_parts(&frame)).await?;
            }
        }
    }
    let wrong = close(others, stream).await?;
    given.chunks = given.chunks.saturating_sub(wrong.len() as u64);
    Ok(wrong)
}

/// Asks a peer which chunks it lacks; those that it has it keeps for as long as what was put lately.
///
/// # Errors
/// When the peer does not say, in words.
pub(super) async fn lacks(others: &Others, node: NodeId, digests: &[Digest]) -> Result<Vec<Digest>, String> {
    let (mut lacks, mut stream) = (Vec::new(), open(others, node).await?);
    for names in digests.chunks(NAMES_MAX) {
        lacks.extend(ask(others, &mut stream, names).await?.0);
    }
    close(others, stream).await?;
    Ok(lacks)
}

async fn open(others: &Others, node: NodeId) -> Result<Stream, String> {
    let address = others.address(node)?;
    others.wait(node, "take chunks", FRAME_WAIT, others.endpoint().open_stream(node, &address, GIVE)).await
}

/// Waits until all that was sent is on the peer's disk. Returns what is not, since it is not what it should be.
async fn close(others: &Others, mut stream: Stream) -> Result<Vec<Digest>, String> {
    let node = stream.peer();
    stream.finish().map_err(|error| error.to_string())?;
    let kept = others.wait(node, "bring chunks to its disk", DISK_WAIT, stream.next()).await?;
    let kept = kept.ok_or_else(|| format!("node {node} did not say that it keeps what it was given"))?;
    if kept.is_empty() {
        return Ok(Vec::new());
    }
    postcard::from_bytes(&kept).map_err(|error| format!("what node {node} says of what it was given cannot be read: {error}"))
}

/// Asks a peer which chunks it lacks, and whether it takes them as they are kept.
async fn ask(others: &Others, stream: &mut Stream, names: &[Digest]) -> Result<(Vec<Digest>, bool), String> {
    let node = stream.peer();
    let mut frame = vec![NAMES];
    frame.extend(postcard::to_stdvec(names).expect("digests can be written"));
    others.wait(node, "take the names of chunks", FRAME_WAIT, stream.send(frame.into())).await?;
    let answer = others.wait(node, "say which chunks it lacks", DISK_WAIT, stream.next()).await?;
    let answer = answer.ok_or_else(|| format!("node {node} did not say which chunks it lacks"))?;
    let read = postcard::take_from_bytes::<Vec<u32>>(&answer);
    let (places, rest) = read.map_err(|error| format!("the answer of node {node} cannot be read: {error}"))?;
    let lacking = places.into_iter().filter_map(|place| names.get(place as usize).copied()).collect();
    Ok((lacking, rest.first() == Some(&TAKES_STORED)))
}

/// Reads chunks from the store; tells of those that are not there.
async fn read(store: &Store, digests: Vec<Digest>, how: Wanted, given: &mut Given) -> Result<Vec<(Digest, Stored)>, String> {
    let of = store.clone();
    let read = move || digests.into_iter().map(|digest| (digest, chunk(&of, &digest, how))).collect::<Vec<_>>();
    let mut chunks = Vec::new();
    for (digest, chunk) in blocking(read).await {
        match chunk {
            Ok(Some(chunk)) => {
                given.chunks += 1;
                given.bytes += chunk.plain_bytes() as u64;
                chunks.push((digest, chunk));
            }
            Ok(None) => given.absent.push(digest),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(chunks)
}

/// Returns chunks in frames, each in parts.
fn frames(chunks: &[(Digest, Stored)], how: Wanted) -> Vec<Vec<Bytes>> {
    let what = Bytes::from_static(if how == Wanted::Stored { &[STORED] } else { &[CHUNKS] });
    let (mut frames, mut frame, mut bytes) = (Vec::new(), vec![what.clone()], 0);
    for (digest, chunk) in chunks {
        let parts = match (how, chunk) {
            (Wanted::Proven, Stored::Plain(plain)) => vec![plain.clone()],
            _ => wire::answer(Some(chunk.clone())).to_vec(),
        };
        let length: usize = parts.iter().map(Bytes::len).sum();
        let mut head = BytesMut::with_capacity(HEAD_BYTES);
        if how == Wanted::Stored {
            head.put_slice(digest.as_bytes());
        }
        head.put_u32_le(u32::try_from(length).expect("a chunk is short"));
        frame.push(head.freeze());
        frame.extend(parts);
        bytes += length;
        if bytes >= FRAME_BYTES {
            frames.push(std::mem::replace(&mut frame, vec![what.clone()]));
            bytes = 0;
        }
    }
    if frame.len() > 1 {
        frames.push(frame);
    }
    frames
}
