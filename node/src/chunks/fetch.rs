//! Fetching: who is asked for which chunk, in which order, and how many at a time.
//!
//! A chunk is asked of its homes first, in their order, then of all others that are up. Chunks of one request go to one peer; peers
//! are asked at the same time, each for what it ranks first for, so that what is fetched comes from all of them. What a peer does
//! not have, or sends wrongly, is asked of the next.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use shoal_peer::Service;
use shoal_state::{Digest, NodeId};
use shoal_storage::store::{self, Store, Stored};
use tokio::sync::watch;

use super::others::Others;
use super::wire::{self, Wanted};
use crate::api::blocking;

/// Chunks, many on a stream.
pub(super) const CHUNKS: Service = Service::new(2, "send a chunk");

/// How many chunks one request asks for.
pub(super) const CHUNKS_AT_ONCE: usize = 256;
/// How many requests a peer is sent at a time.
const REQUESTS_AT_ONCE: usize = 3;
/// How long a peer may take for one chunk of a request.
const PEER_WAIT: Duration = Duration::from_secs(10);
/// So many bytes that came are put into the store together.
const PUT_BYTES: usize = 4 << 20;

/// What came of a chunk: its bytes, or that nobody has it, or why that could not be found out.
pub(super) type Fetched = Result<Option<Bytes>, String>;

/// Fetches chunks; each once, however many want it. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Fetcher {
    others: Others,
    store: Store,
    copies: usize,
    /// Chunks that a peer was asked for and that have not come.
    flights: Arc<Mutex<HashMap<Digest, watch::Receiver<Option<Fetched>>>>>,
}

/// Chunks of one request, registered as on their way until this is dropped.
struct Flights<'a> {
    fetcher: &'a Fetcher,
    mine: HashMap<Digest, watch::Sender<Option<Fetched>>>,
}

impl Drop for Flights<'_> {
    fn drop(&mut self) {
        let mut flights = self.fetcher.flights.lock();
        self.mine.keys().for_each(|digest| drop(flights.remove(digest)));
    }
}

impl Flights<'_> {
    /// Hands a chunk to all who wait for it.
    fn land(&mut self, digest: &Digest, fetched: Fetched) {
        if let Some(send) = self.mine.remove(digest) {
            self.fetcher.flights.lock().remove(digest);
            let _ = send.send(Some(fetched));
        }
    }
}

/// What came of bringing chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Brought {
    /// How many came.
    pub(crate) chunks: u64,
    /// Their length, in bytes.
    pub(crate) bytes: u64,
    /// Why somebody could not be asked who may have those that did not come. Nothing: nobody has them.
    pub(crate) failures: Vec<String>,
}

/// A chunk that came.
#[derive(Debug)]
struct Found {
    digest: Digest,
    /// Its bytes; none where they are in the store.
    bytes: Bytes,
    length: u64,
}

impl Found {
    fn new(digest: Digest, bytes: Bytes, kept: bool) -> Self {
        let length = bytes.len() as u64;
        Self { digest, bytes: if kept { Bytes::new() } else { bytes }, length }
    }
}

/// What came of a request.
#[derive(Debug, Default)]
struct Asked {
    found: Vec<Found>,
    /// What stood in the way of the rest.
    failure: Option<String>,
}

impl Fetcher {
    pub(super) fn new(others: Others, store: Store, copies: usize) -> Self {
        Self { others, store, copies, flights: Arc::default() }
    }

    /// Fetches one chunk; returns its bytes, which are in no store yet.
    pub(super) async fn one(&self, digest: Digest) -> Fetched {
        let flight = self.flights.lock().get(&digest).cloned();
        if let Some(mut flight) = flight
            && let Ok(landed) = flight.wait_for(Option::is_some).await
            && let Some(Ok(Some(bytes))) = &*landed
        {
            return Ok(Some(bytes.clone()));
        }
        // What another's request did not bring may be with a peer that it did not ask.
        let mut bytes = None;
        let failures = self.ask_around(vec![digest], false, &mut |found| bytes = Some(found.bytes)).await;
        match (bytes, failures.is_empty()) {
            (Some(bytes), _) => Ok(Some(bytes)),
            (None, true) => Ok(None),
            // Who could not be asked may have it.
            (None, false) => Err(failures.join("; ")),
        }
    }

    /// Brings chunks into the store that are not there, those that are named first first.
    /// `came` hears of each with its length.
    pub(super) async fn bring(&self, digests: Vec<Digest>, came: impl Fn(u64) + Send + Sync) -> Brought {
        let mut brought = Brought::default();
        let each = &mut |found: Found| {
            brought.chunks += 1;
            brought.bytes += found.length;
            came(found.length);
        };
        let failures = self.ask_around(digests, true, each).await;
        Brought { failures, ..brought }
    }

    /// Asks one peer after the other for each chunk, until somebody has it. Returns why some could not be asked.
    async fn ask_around(&self, mut wanted: Vec<Digest>, keep: bool, each: &mut (impl FnMut(Found) + Send)) -> Vec<String> {
        let (all, up) = (self.others.all(), self.others.up().await);
        let mut failures: Vec<String> =
            all.keys().filter(|node| !up.contains_key(node)).map(|node| format!("node {node} does not answer")).collect();
        let (placement, distrusted) = (self.others.placement(self.copies), self.others.distrusted());
        // The next peer of each chunk is the one at its place in its own order.
        for place in 0..up.len() {
            let mut of_peer: HashMap<NodeId, Vec<Digest>> = HashMap::new();
            for digest in &wanted {
                let mut order: Vec<NodeId> = placement.ranked(digest).into_iter().filter(|node| up.contains_key(node)).collect();
                order.extend(up.keys().filter(|node| !order.contains(node)).copied().collect::<Vec<_>>());
                order.sort_by_key(|node| distrusted.contains(node));
                if let Some(node) = order.get(place).filter(|node| self.others.may_have(**node, digest)) {
                    of_peer.entry(*node).or_default().push(*digest);
                }
            }
            let requests = of_peer.into_iter().map(|(node, digests)| {
                let address = &up[&node];
                let some: Vec<Vec<Digest>> = digests.chunks(CHUNKS_AT_ONCE).map(<[_]>::to_vec).collect();
                futures::stream::iter(some).map(move |some| self.request(node, address, some, keep)).buffer_unordered(REQUESTS_AT_ONCE)
            });
            let mut answers = futures::stream::select_all(requests.map(Box::pin));
            let mut found = HashSet::new();
            while let Some(asked) = answers.next().await {
                failures.extend(asked.failure);
                for came in asked.found {
                    found.insert(came.digest);
                    each(came);
                }
            }
            wanted.retain(|digest| !found.contains(digest));
            if wanted.is_empty() {
                return Vec::new();
            }
        }
        failures
    }

    /// Asks a peer for chunks that nobody else is being asked for.
    async fn request(&self, node: NodeId, address: &str, digests: Vec<Digest>, keep: bool) -> Asked {
        let digests = if keep { self.absent(digests).await } else { digests };
        let (mut flights, mut mine, mut theirs) = (Flights { fetcher: self, mine: HashMap::new() }, Vec::new(), Vec::new());
        {
            let mut all = self.flights.lock();
            for digest in digests {
                if let Some(flight) = all.get(&digest) {
                    theirs.push((digest, flight.clone()));
                    continue;
                }
                let (send, receive) = watch::channel(None);
                all.insert(digest, receive);
                flights.mine.insert(digest, send);
                mine.push(digest);
            }
        }
        let mut asked = Asked::default();
        if !mine.is_empty()
            && let Err(why) = self.ask_for(node, address, mine, keep, &mut flights, &mut asked.found).await
        {
            asked.failure = Some(why);
        }
        drop(flights);
        let mut came = Vec::new();
        for (digest, mut flight) in theirs {
            if let Ok(landed) = flight.wait_for(Option::is_some).await
                && let Some(Ok(Some(bytes))) = &*landed
            {
                came.push((digest, bytes.clone()));
            }
        }
        if !came.is_empty() {
            // Whoever fetched them may not have kept them.
            self.keep(&came, keep).await;
            asked.found.extend(came.into_iter().map(|(digest, bytes)| Found::new(digest, bytes, keep)));
        }
        asked
    }

    /// Returns those of these chunks that are not in the store: one may have come since it was found to be missing.
    async fn absent(&self, digests: Vec<Digest>) -> Vec<Digest> {
        let store = self.store.clone();
        blocking(move || digests.into_iter().filter(|digest| !store.has(digest).unwrap_or(false)).collect()).await
    }

    /// Asks a peer for chunks, and tells of those that it has, proven.
    async fn ask_for(
        &self,
        node: NodeId,
        address: &str,
        digests: Vec<Digest>,
        keep: bool,
        flights: &mut Flights<'_>,
        found: &mut Vec<Found>,
    ) -> Result<(), String> {
        let wrong = self.ask((node, address), digests, Wanted::Stored, keep, flights, found).await?;
        if wrong.is_empty() {
            return Ok(());
        }
        // Its disk may be damaged there, of which it does not know until it proves them itself.
        let lies = self.ask((node, address), wrong, Wanted::Proven, keep, flights, found).await?;
        for digest in &lies {
            tracing::error!(%node, %digest, "a peer sent other bytes than the chunk has; others are asked from now on");
            self.others.ban(node, *digest);
            flights.land(digest, Ok(None));
        }
        lies.first().map_or(Ok(()), |digest| Err(format!("node {node} sent other bytes than chunk {digest} has")))
    }

    /// Asks a peer for chunks, and tells of those that it has, proven. Returns those of which it sent other bytes.
    async fn ask(
        &self,
        (node, address): (NodeId, &str),
        digests: Vec<Digest>,
        wanted: Wanted,
        keep: bool,
        flights: &mut Flights<'_>,
        found: &mut Vec<Found>,
    ) -> Result<Vec<Digest>, String> {
        let opened = async {
            let mut stream = self.others.endpoint().open_stream(node, address, CHUNKS).await?;
            stream.send(wire::ask(&digests, wanted)).await?;
            stream.finish()?;
            Ok(stream)
        };
        let mut stream = self.others.wait(node, "take a request for chunks", PEER_WAIT, opened).await?;
        let (mut waiting, mut waiting_bytes, mut wrong) = (Vec::new(), 0, Vec::new());
        for digest in digests {
            let next = self.others.wait(node, "send a chunk", PEER_WAIT, stream.next()).await?;
            let frame = next.ok_or_else(|| format!("node {node} sent less than it was asked for"))?;
            let Some(chunk) = wire::answered(&frame) else {
                flights.land(&digest, Ok(None));
                continue;
            };
            waiting_bytes += chunk.plain_bytes();
            waiting.push((digest, chunk));
            if waiting_bytes >= PUT_BYTES {
                waiting_bytes = 0;
                wrong.extend(self.take(std::mem::take(&mut waiting), keep, flights, found).await);
            }
        }
        wrong.extend(self.take(waiting, keep, flights, found).await);
        self.others.answered(node);
        Ok(wrong)
    }

    /// Proves chunks, puts them into the store, if that is wanted, and hands them out. Returns those that are not what they should be.
    async fn take(&self, came: Vec<(Digest, Stored)>, keep: bool, flights: &mut Flights<'_>, found: &mut Vec<Found>) -> Vec<Digest> {
        if came.is_empty() {
            return Vec::new();
        }
        let store = self.store.clone();
        let (proven, wrong) = blocking(move || {
            let (mut proven, mut wrong) = (Vec::new(), Vec::new());
            for (digest, chunk) in came {
                match chunk.prove(digest) {
                    Ok(chunk) => proven.push(chunk),
                    Err(_) => wrong.push(digest),
                }
            }
            if keep {
                tell_if_not_kept(proven.iter().try_for_each(|chunk| store.put_proven(chunk)));
            }
            (proven, wrong)
        })
        .await;
        for chunk in proven {
            let digest = chunk.digest();
            let plain = chunk.into_plain();
            flights.land(&digest, Ok(Some(plain.clone())));
            found.push(Found::new(digest, plain, keep));
        }
        wrong
    }

    async fn keep(&self, came: &[(Digest, Bytes)], wanted: bool) {
        if !wanted {
            return;
        }
        let (store, put) = (self.store.clone(), came.to_vec());
        blocking(move || tell_if_not_kept(put.iter().try_for_each(|(_, bytes)| store.put(bytes).map(drop)))).await;
    }
}

/// What is not kept now is fetched when it is needed.
fn tell_if_not_kept(kept: store::Result<()>) {
    if let Err(error) = kept {
        tracing::warn!(%error, "cannot keep chunks that came from a peer");
    }
}
