//! Records of shards on their way from their homes to the nodes that keep copies.
//!
//! A home keeps one stream to each other member. It carries records in the order in which they were written; the other side
//! answers how far it has come, or that it lacks what came before: then it is fed from the log, and joins the flow of new records
//! again. Many records travel in one frame, as many as came while the last one was sent.
//!
//! What a stream is made of is not known here, see [`Outgoing`] and [`Incoming`].

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::{NodeId, ShardId};
use tokio::sync::mpsc;

use super::driver::Starved;
use super::error::Error;
use super::handle::Calls;
use crate::shards::replica::Refused;
use crate::shards::{Ack, Append, Mark, Replicas, Role, ShardView};

/// How many records may wait for one node. When they do not fit it is slow or away, and is fed from the log later.
const WAITING_MAX: usize = 8192;
/// How many bytes of records one frame carries, unless a single record is longer.
const FRAME_BYTES: usize = 1 << 20;
/// How often a home looks which nodes lack records.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a node tells what it synced by itself.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take for a frame before the stream is opened anew.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// One half of a stream to another node: what is sent. Errors are words.
pub trait Outgoing: Send {
    /// Sends a frame; may wait for the other side to take it.
    fn send(&mut self, frame: Bytes) -> impl Future<Output = Result<(), String>> + Send;
}

/// One half of a stream to another node: what comes. Errors are words.
pub trait Incoming: Send {
    /// Waits until a frame begins to come. May be given up without a loss.
    fn ready(&mut self) -> impl Future<Output = Result<(), String>> + Send;

    /// Takes the next frame; none when the other side sends no more.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, String>> + Send;
}

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
pub struct Outbox {
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
    pub fn behind(&self, node: NodeId, now: Instant) -> Duration {
        let behind = self.queues.lock().get(&node).and_then(|queue| queue.behind);
        behind.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Notes that a node was sent something, or has answered all or some of it.
    fn note(&self, node: NodeId, is_behind: bool, answered: bool, now: Instant) {
        if let Some(queue) = self.queues.lock().get_mut(&node) {
            queue.behind = match queue.behind {
                Some(since) if is_behind && !answered => Some(since),
                _ => is_behind.then_some(now),
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

/// What a home knows of one stream.
struct Copying<'a, O> {
    node: NodeId,
    calls: &'a Calls,
    outbox: &'a Outbox,
    out: O,
    number: u64,
    /// The frame in which a shard was fed last: what is answered to earlier ones is known already.
    fed_in: HashMap<ShardId, u64>,
    /// Shards that were asked how far the node is, each with the record that was named.
    asked: HashMap<ShardId, Mark>,
}

/// Sends copies of what is at home here to another node, for as long as that goes well.
pub async fn copy(node: NodeId, (out, mut incoming): (impl Outgoing, impl Incoming), calls: &Calls, outbox: &Outbox) -> Result<(), String> {
    let words = |error: Error| error.to_string();
    // From here on the queue holds what follows the records that the node is fed.
    let mut queue = outbox.begin(node);
    calls.gone(node, None).await.map_err(words)?;
    let mut copying = Copying { node, calls, outbox, out, number: 0, fed_in: HashMap::new(), asked: HashMap::new() };
    let mut look_at = calls.ground.now();
    loop {
        if outbox.is_full(node) {
            return Err(format!("more than {WAITING_MAX} records wait for it"));
        }
        tokio::select! {
            biased;
            () = calls.ground.sleep_until(look_at) => {
                copying.ask_the_starved().await?;
                look_at = calls.ground.now() + LOOK_EVERY;
            }
            // There is one for each frame.
            ready = incoming.ready() => {
                ready?;
                copying.hear(answer(calls, &mut incoming).await?).await?;
            }
            first = queue.recv() => match first {
                Some(first) => copying.send_queued(first, &mut queue).await?,
                None => return Err("another stream took this one's place".to_owned()),
            },
        }
    }
}

async fn answer(calls: &Calls, incoming: &mut impl Incoming) -> Result<Answer, String> {
    let frame = calls.ground.within(ANSWER_WAIT, incoming.next()).await.ok_or("its answer is cut")??;
    let frame = frame.ok_or("it does not listen any more")?;
    postcard::from_bytes(&frame).map_err(|error| format!("its answer cannot be read ({error})"))
}

impl<O: Outgoing> Copying<'_, O> {
    async fn send(&mut self, appends: Vec<Append>, sync: bool) -> Result<(), String> {
        self.number += 1;
        let records = Records { number: self.number, appends, sync };
        let frame = Bytes::from(postcard::to_stdvec(&records).expect("records can be written"));
        self.outbox.note(self.node, true, false, self.calls.ground.now());
        let sent = self.calls.ground.within(ANSWER_WAIT, self.out.send(frame)).await;
        sent.ok_or_else(|| format!("it takes no records for {ANSWER_WAIT:?}"))?
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
        let words = |error: Error| error.to_string();
        if answer.number > 0 {
            self.outbox.note(self.node, answer.number < self.number, true, self.calls.ground.now());
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

/// Keeps copies for the home at the other end of a stream, for as long as that goes well.
pub async fn keep(home: NodeId, (mut out, mut incoming): (impl Outgoing, impl Incoming), calls: &Calls) -> Result<(), String> {
    let words = |error: Error| error.to_string();
    let mut tell_at = calls.ground.now();
    let mut syncing: Option<BoxFuture<'static, Result<Vec<Ack>, Error>>> = None;
    let mut sync_again = false;
    loop {
        let synced = async {
            match &mut syncing {
                Some(syncing) => syncing.await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            synced = synced => {
                syncing = None;
                Answer { acks: synced.map_err(words)?, ..Answer::default() }
            }
            () = calls.ground.sleep_until(tell_at) => {
                tell_at = calls.ground.now() + TELL_EVERY;
                Answer { acks: calls.synced_for(home, false).await.map_err(words)?, ..Answer::default() }
            }
            ready = incoming.ready() => {
                ready?;
                let Some(frame) = incoming.next().await? else { return Ok(()) };
                let records: Records = postcard::from_bytes(&frame).map_err(|error| format!("its records cannot be read ({error})"))?;
                sync_again |= records.sync;
                take(calls, records).await?
            }
        };
        if sync_again && syncing.is_none() {
            let calls = calls.clone();
            syncing = Some(Box::pin(async move { calls.synced_for(home, true).await }));
            sync_again = false;
        }
        if answer.number > 0 || !answer.acks.is_empty() {
            let frame = Bytes::from(postcard::to_stdvec(&answer).expect("an answer can be written"));
            out.send(frame).await?;
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

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_version_6_say_of_copies_is_understood() {
        hold::<Records>("records for a copy", include_str!("../../tests/written/6/copies-records.txt"), 0);
        hold::<Answer>("the answer of a copy", include_str!("../../tests/written/6/copies-answer.txt"), 0);
    }
}
