//! Records of shards on their way from their homes to the nodes that keep copies.
//!
//! A home keeps one stream to each other member. It carries records in the order in which they were written; the other side
//! answers how far it has come, or that it lacks what came before: then it is fed from the log, and joins the flow of new records
//! again. Many records travel in one frame, as many as came while the last one was sent.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_calls::Calls;
use shoal_calls::calls::Starved;
use shoal_calls::shards::replica::Refused;
use shoal_calls::shards::{Ack, Append, Mark, Replicas, Role, ShardView};
use shoal_peer::{Endpoint, Incoming, Outgoing, Service, Stream};
use shoal_raft::Raft;
use shoal_state::{NodeId, ShardId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::peers::{self, Peers};

/// Records of calls for a node that keeps copies.
const RECORDS: Service = Service::new(8, "keep copies of calls");

/// How many records may wait for one node. When they do not fit it is slow or away, and is fed from the log later.
const WAITING_MAX: usize = 8192;
/// How many bytes of records one frame carries, unless a single record is longer.
const FRAME_BYTES: usize = 1 << 20;
/// How often a home looks which nodes lack records.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a node that could not be reached is left alone.
const REST: Duration = Duration::from_millis(200);
/// How often a node tells what it synced by itself.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take for a frame before the stream is opened anew.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// What a home sends.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Records {
    /// Counts the frames of a stream.
    number: u64,
    appends: Vec<Append>,
    /// Whether all of it is to be synced, and the answer to be sent when it is.
    sync: bool,
}

/// What the other side answers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Answer {
    /// The frame that it answers; 0 when it tells of a sync.
    number: u64,
    acks: Vec<Ack>,
    starved: Vec<Starved>,
}

enum Out {
    Append(Append),
    Sync,
}

/// The way of records out of the thread that writes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox {
    queues: Arc<Mutex<HashMap<NodeId, Queue>>>,
}

#[derive(Debug)]
struct Queue {
    out: mpsc::Sender<Out>,
    /// Something did not fit.
    full: bool,
    /// Since when the node has not answered what it was sent.
    behind: Option<Instant>,
}

impl Outbox {
    /// Begins a queue for a node; what an earlier one held is gone.
    fn begin(&self, node: NodeId) -> mpsc::Receiver<Out> {
        let (out, queue) = mpsc::channel(WAITING_MAX);
        self.queues.lock().insert(node, Queue { out, full: false, behind: None });
        queue
    }

    fn put(&self, node: NodeId, out: Out) {
        if let Some(queue) = self.queues.lock().get_mut(&node)
            && queue.out.try_send(out).is_err()
        {
            queue.full = true;
        }
    }

    /// Returns for how long a node has answered nothing of what it was sent.
    pub(super) fn behind(&self, node: NodeId) -> Duration {
        self.queues.lock().get(&node).and_then(|queue| queue.behind).map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Notes that a node was sent something, or has answered all or some of it.
    fn note(&self, node: NodeId, is_behind: bool, answered: bool) {
        if let Some(queue) = self.queues.lock().get_mut(&node) {
            queue.behind = match queue.behind {
                Some(since) if is_behind && !answered => Some(since),
                _ => is_behind.then(Instant::now),
            };
        }
    }

    fn is_full(&self, node: NodeId) -> bool {
        self.queues.lock().get(&node).is_none_or(|queue| queue.full)
    }
}

impl Replicas for Outbox {
    fn send(&mut self, to: NodeId, append: Append) {
        self.put(to, Out::Append(append));
    }

    fn sync(&mut self, to: NodeId) {
        self.put(to, Out::Sync);
    }
}

/// Sends copies to the other members, and keeps theirs, until `stop`.
pub(super) async fn run(peers: Peers, raft: Raft, calls: Calls, outbox: Outbox, stop: CancellationToken) {
    let kept = calls.clone();
    peers.endpoint.serve(RECORDS, move |stream, _| keep(stream, kept.clone()));
    peers::for_each_other(&raft, &stop, |node, address| {
        let (endpoint, calls, outbox) = (peers.endpoint.clone(), calls.clone(), outbox.clone());
        async move {
            loop {
                if let Err(why) = copy(&endpoint, node, &address, &calls, &outbox).await {
                    tracing::debug!(%node, why, "records do not reach a node; it is fed once they do");
                }
                tokio::time::sleep(REST).await;
            }
        }
    })
    .await;
}

/// What a home knows of one stream.
struct Copying<'a> {
    node: NodeId,
    calls: &'a Calls,
    outbox: &'a Outbox,
    out: Outgoing,
    number: u64,
    /// The frame in which a shard was fed last: what is answered to earlier ones is known already.
    fed_in: HashMap<ShardId, u64>,
    /// Shards that were asked how far the node is, each with the record that was named.
    asked: HashMap<ShardId, Mark>,
}

/// Sends copies to a node for as long as that goes well.
async fn copy(endpoint: &Endpoint, node: NodeId, address: &str, calls: &Calls, outbox: &Outbox) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let stream = endpoint.open_stream(node, address, RECORDS).await.map_err(|error| words(&error))?;
    let (out, mut incoming) = stream.split();
    // From here on the queue holds what follows the records that the node is fed.
    let mut queue = outbox.begin(node);
    calls.gone(node, None).await.map_err(|error| words(&error))?;
    let mut copying = Copying { node, calls, outbox, out, number: 0, fed_in: HashMap::new(), asked: HashMap::new() };
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if outbox.is_full(node) {
            return Err(format!("more than {WAITING_MAX} records wait for it"));
        }
        tokio::select! {
            first = queue.recv() => match first {
                Some(first) => copying.send_queued(first, &mut queue).await?,
                None => return Err("another stream took this one's place".to_owned()),
            },
            ready = incoming.ready() => {
                ready.map_err(|error| words(&error))?;
                copying.hear(answer(&mut incoming).await?).await?;
            }
            _ = look.tick() => copying.ask_the_starved().await?,
        }
    }
}

async fn answer(incoming: &mut Incoming) -> Result<Answer, String> {
    let frame = tokio::time::timeout(ANSWER_WAIT, incoming.next()).await.map_err(|_| "its answer is cut".to_owned())?;
    let frame = frame.map_err(|error| error.to_string())?.ok_or("it does not listen any more")?;
    postcard::from_bytes(&frame).map_err(|error| format!("its answer cannot be read ({error})"))
}

impl Copying<'_> {
    async fn send(&mut self, appends: Vec<Append>, sync: bool) -> Result<(), String> {
        self.number += 1;
        let records = Records { number: self.number, appends, sync };
        let frame = Bytes::from(postcard::to_stdvec(&records).expect("records can be written"));
        self.outbox.note(self.node, true, false);
        let sent = tokio::time::timeout(ANSWER_WAIT, self.out.send(frame)).await;
        sent.map_err(|_| format!("it takes no records for {ANSWER_WAIT:?}"))?.map_err(|error| error.to_string())
    }

    async fn send_queued(&mut self, first: Out, queue: &mut mpsc::Receiver<Out>) -> Result<(), String> {
        let (mut appends, mut sync, mut bytes) = (Vec::new(), false, 0);
        let mut next = Some(first);
        while let Some(out) = next {
            match out {
                Out::Append(append) => {
                    bytes += append.records.iter().map(Bytes::len).sum::<usize>();
                    join(&mut appends, append);
                }
                Out::Sync => sync = true,
            }
            next = if bytes < FRAME_BYTES { queue.try_recv().ok() } else { None };
        }
        self.send(appends, sync).await
    }

    async fn hear(&mut self, answer: Answer) -> Result<(), String> {
        let words = |error: shoal_calls::Error| error.to_string();
        if answer.number > 0 {
            self.outbox.note(self.node, answer.number < self.number, true);
        }
        let mut lacks: BTreeMap<ShardId, Mark> = BTreeMap::new();
        for ack in &answer.acks {
            // It has the record that was named, and is to have those since.
            if let Some(mark) = self.asked.remove(&ack.shard) {
                lacks.insert(ack.shard, mark);
            }
        }
        for Starved { shard, tail, why } in answer.starved {
            let known = self.fed_in.get(&shard).is_some_and(|fed| answer.number < *fed);
            self.asked.remove(&shard);
            if !known {
                tracing::debug!(node = %self.node, %shard, %why, "a node lacks records");
                self.calls.gone(self.node, Some(shard)).await.map_err(words)?;
                // Of an epoch that only one of both knows, the other hears soon.
                if !matches!(why, Refused::Epoch { .. } | Refused::NotHome { .. }) {
                    lacks.insert(shard, tail);
                }
            }
        }
        self.calls.acked(self.node, answer.acks).await.map_err(words)?;
        for (shard, tail) in lacks {
            self.feed(shard, tail).await?;
        }
        Ok(())
    }

    /// Sends all records after `tail`.
    async fn feed(&mut self, shard: ShardId, mut tail: Mark) -> Result<(), String> {
        loop {
            let append = self.calls.feed(self.node, shard, tail).await.map_err(|error| error.to_string())?;
            let (end, is_last) = (append.end(), append.is_empty());
            // What it must have before it may join must be on its disk too.
            self.send(vec![append], is_last).await?;
            self.fed_in.insert(shard, self.number);
            if is_last {
                return Ok(());
            }
            tail = end;
        }
    }

    /// Asks how far the node is with the shards that it is to have and is not sent.
    async fn ask_the_starved(&mut self) -> Result<(), String> {
        let views = self.calls.views().await.map_err(|error| error.to_string())?;
        let is_starved = |view: &ShardView| {
            let keeps = view.config.in_sync.contains(&self.node) || view.config.joining.contains(&self.node);
            view.role == Role::Home && keeps && !view.fed.contains(&self.node)
        };
        let mut appends = Vec::new();
        for ShardView { shard, config, tail, .. } in views.into_iter().filter(is_starved) {
            self.asked.insert(shard, tail);
            appends.push(Append { shard, epoch: config.epoch, after: tail, records: Vec::new() });
        }
        if appends.is_empty() { Ok(()) } else { self.send(appends, false).await }
    }
}

/// Puts records behind those of the same shard that are sent in the same frame, where they follow them.
fn join(appends: &mut Vec<Append>, append: Append) {
    let last = appends.iter_mut().rev().find(|last| last.shard == append.shard);
    match last {
        Some(last) if last.epoch == append.epoch && last.end() == append.after => last.records.extend(append.records),
        _ => appends.push(append),
    }
}

/// Keeps copies for the home at the other end of a stream.
async fn keep(stream: Stream, calls: Calls) {
    let home = stream.peer();
    if let Err(why) = keep_for(home, stream, &calls).await {
        tracing::debug!(%home, why, "a home sends no more records");
    }
}

async fn keep_for(home: NodeId, stream: Stream, calls: &Calls) -> Result<(), String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    let (mut out, mut incoming) = stream.split();
    let mut tell = tokio::time::interval(TELL_EVERY);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut syncing: Option<JoinHandle<Result<Vec<Ack>, shoal_calls::Error>>> = None;
    let mut sync_again = false;
    loop {
        let synced = async {
            match &mut syncing {
                Some(syncing) => syncing.await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            ready = incoming.ready() => {
                ready.map_err(|error| words(&error))?;
                let Some(frame) = incoming.next().await.map_err(|error| words(&error))? else { return Ok(()) };
                let records: Records = postcard::from_bytes(&frame).map_err(|error| format!("its records cannot be read ({error})"))?;
                sync_again |= records.sync;
                take(calls, records).await?
            }
            synced = synced => {
                syncing = None;
                let acks = synced.map_err(|error| words(&error))?.map_err(|error| words(&error))?;
                Answer { acks, ..Answer::default() }
            }
            _ = tell.tick() => Answer { acks: calls.synced_for(home, false).await.map_err(|error| words(&error))?, ..Answer::default() },
        };
        if sync_again && syncing.is_none() {
            let calls = calls.clone();
            syncing = Some(tokio::spawn(async move { calls.synced_for(home, true).await }));
            sync_again = false;
        }
        if answer.number > 0 || !answer.acks.is_empty() {
            let frame = Bytes::from(postcard::to_stdvec(&answer).expect("an answer can be written"));
            out.send(frame).await.map_err(|error| words(&error))?;
        }
    }
}

async fn take(calls: &Calls, records: Records) -> Result<Answer, String> {
    let taken = calls.receive(records.appends).await.map_err(|error| error.to_string())?;
    let mut answer = Answer { number: records.number, ..Answer::default() };
    for one in taken {
        match one {
            Ok(ack) => answer.acks.push(ack),
            Err(starved) => answer.starved.push(starved),
        }
    }
    Ok(answer)
}
