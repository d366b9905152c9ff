//! The one owner of a node's calls: takes requests, writes records, keeps time, answers.
//!
//! It lives on a thread of its own, so that neither a write that the disk holds up nor a busy server delays the other. One turn
//! of its loop takes what has come, applies the rules to all of it, writes all records in one go, and then answers: many
//! callers share a write, and those who wait for the disk share a sync.
//!
//! When the log fails the owner ends, and every request is answered with why: what was not acknowledged may or may not be in
//! the log, and only a start from the log says which.

mod answers;
mod events;
mod heads;
mod records;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use shoal_state::model::Shard;
use shoal_state::{NodeId, ShardId};
use shoal_storage::log::{self, Log};
use tokio::sync::{mpsc, oneshot, watch};

pub(super) use self::answers::Reply;
use self::answers::Waiting;
pub(super) use self::events::Event;
pub use self::events::Starved;
use self::heads::{Head, Heads};
use super::away::about;
use super::boot::Boot;
use super::clock::Clock;
use super::ground::Ground;
use super::info::Load;
use super::model::Millis;
use super::options::{Failed, Options};
use super::rules::{Request, Rules, Ticket};
use super::streams::{self, Streams};
use crate::objects::ObjectRequest;
use crate::shards::{self, Ack, Append, Counted, Mark, Replicas, Role, Shards, StoreError};

/// How many requests may wait for the owner. More wait in their callers.
pub(super) const REQUESTS_WAITING_MAX: usize = 4096;

/// How many requests one turn takes.
const REQUESTS_AT_ONCE: usize = 128;

/// Records that nobody waits for are synced after this time at the latest.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// The load is told so often at most; the first input of a pool without a waiting task is told at once.
const LOAD_EVERY: Duration = Duration::from_millis(10);

/// How many bytes of records are read at once for a node that catches up.
const FEED_BYTES_MAX: u64 = 4 << 20;

/// How often log space is looked after. Who reads a record at an old place has this long to finish.
const COLLECT_EVERY: Duration = Duration::from_secs(60);

/// What waits for the disk: up to which record of which shard.
struct Syncing {
    done: BoxFuture<'static, log::Result<()>>,
    shards: Vec<(ShardId, Mark)>,
    waiting: Vec<(NodeId, oneshot::Sender<Vec<Ack>>)>,
}

pub(super) struct Driver {
    dir: PathBuf,
    rules: Rules,
    shards: Shards,
    streams: Streams,
    heads: Heads,
    boot: Boot,
    ground: Arc<dyn Ground>,
    clock: Clock,
    waiting: HashMap<Ticket, Waiting>,
    next_ticket: Ticket,
    load: watch::Sender<Arc<Load>>,
    load_told: Instant,
    load_dirty: bool,
    syncing: Option<Syncing>,
    /// Homes that wait for a sync which has not begun.
    sync_waiting: Vec<(NodeId, oneshot::Sender<Vec<Ack>>)>,
    synced_at: Instant,
    collected_at: Instant,
    stopping: Option<oneshot::Sender<()>>,
    /// How many shards at home here have fewer copies than records must have to count.
    short: Arc<AtomicUsize>,
}

impl Driver {
    /// Opens the log and reads what it holds. Blocks for as long as that takes.
    pub(super) fn open(
        options: &Options,
        peers: Option<Box<dyn Replicas>>,
        load: watch::Sender<Arc<Load>>,
        ground: Arc<dyn Ground>,
    ) -> Result<Self, Failed> {
        let dir = options.dir.clone();
        let boot = Boot::read(&dir)?;
        let machine_restarted = boot.machine_restarted;
        let rules = Rules::bounded(options.waiting_max);
        let options =
            shards::Options { node: options.node, machine_restarted, segment_bytes: options.segment_bytes, min_copies: options.min_copies };
        let (mut heads, mut unreadable) = (Heads::new(), None);
        let shards = Shards::open(&dir, &options, peers, |header, body| match Head::decode(header.kind, body) {
            None => {}
            Some(Ok(head)) => drop(heads.insert((header.shard, header.mark.index), head)),
            Some(Err(source)) => {
                unreadable = Some(Failed::Record { shard: header.shard, index: header.mark.index, source });
            }
        });
        let shards = shards.map_err(|source| Failed::Shards { dir: dir.clone(), source })?;
        if let Some(failed) = unreadable {
            return Err(failed);
        }
        let streams = Streams::open(&dir.with_extension("streams"), ground.clone())?;
        let now = ground.now();
        Ok(Self {
            dir,
            rules,
            shards,
            streams,
            heads,
            boot,
            clock: Clock::start(ground.clone()),
            ground,
            waiting: HashMap::new(),
            next_ticket: 0,
            load,
            load_told: now,
            load_dirty: false,
            syncing: None,
            sync_waiting: Vec::new(),
            synced_at: now,
            collected_at: now,
            stopping: None,
            short: Arc::default(),
        })
    }

    pub(super) fn log(&self) -> Log {
        self.shards.log().clone()
    }

    pub(super) fn short(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.short)
    }

    pub(super) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Runs until the last handle is gone or something asks to stop, or the log fails.
    pub(super) async fn run(mut self, mut events: mpsc::Receiver<Event>) -> Result<(), Failed> {
        let ended = self.turns(&mut events).await;
        events.close();
        let last = self.shards.log().sync().map_err(StoreError::from);
        ended.and(last).map_err(|source| Failed::Shards { dir: self.dir.clone(), source })?;
        let stopping = self.stopping.take();
        // Whoever asked to stop may open the folder again.
        drop(self);
        if let Some(reply) = stopping {
            let _ = reply.send(());
        }
        Ok(())
    }

    async fn turns(&mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), StoreError> {
        let mut batch = Vec::with_capacity(REQUESTS_AT_ONCE);
        while self.stopping.is_none() {
            let wake = self.ground.sleep_until(self.wake_at());
            let syncing = async {
                match &mut self.syncing {
                    Some(syncing) => (&mut syncing.done).await,
                    None => std::future::pending().await,
                }
            };
            // What is due is looked for at each turn, and a sync comes once: neither waits for ever for those that ask.
            tokio::select! {
                biased;
                done = syncing => { done?; self.synced(); }
                taken = events.recv_many(&mut batch, REQUESTS_AT_ONCE) => if taken == 0 { return Ok(()) },
                () = wake => {}
            }
            for event in batch.drain(..) {
                self.take(event)?;
            }
            self.rules.tick(self.clock.now());
            self.settle()?;
            self.look_after()?;
        }
        Ok(())
    }

    /// Returns when there is something to do without an event.
    fn wake_at(&self) -> Instant {
        let mut at = self.collected_at + COLLECT_EVERY;
        if let Some(due) = self.rules.next_at() {
            at = at.min(self.clock.instant(due));
        }
        if self.load_dirty {
            at = at.min(self.load_told + LOAD_EVERY);
        }
        if self.syncing.is_none() && self.shards.has_unsynced() {
            at = at.min(self.synced_at + SYNC_EVERY);
        }
        at
    }

    fn take(&mut self, event: Event) -> Result<(), StoreError> {
        let now = self.clock.now();
        match event {
            Event::Ask { request, reply } => self.ask(now, request, Some(reply)),
            Event::Configure { shards, reply } => {
                for (shard, config) in shards {
                    self.settle()?;
                    self.configure(now, shard, config)?;
                }
                self.heads = Heads::new();
                self.remember_boot();
                self.count_short();
                let _ = reply.send(());
            }
            Event::Received { appends, reply } => {
                let taken: Result<Vec<_>, StoreError> = appends.iter().map(|append| self.receive(append)).collect();
                let _ = reply.send(taken?);
            }
            Event::Acked { from, acks } => {
                for Ack { shard, epoch, far } in acks {
                    // An acknowledgement of another epoch says nothing about this one.
                    if let Ok(counted) = self.shards.acked(from, shard, epoch, far) {
                        self.rules.counted(now, shard, counted.written, counted.synced);
                    }
                }
            }
            Event::Feed { to, shard, tail, reply } => {
                let _ = reply.send(self.shards.feed(to, shard, tail, FEED_BYTES_MAX)?);
            }
            Event::Synced { home, anew, reply } => {
                if anew {
                    self.sync_waiting.push((home, reply));
                } else {
                    let _ = reply.send(self.shards.take_untold(home));
                }
            }
            Event::Gone { node, shard: None } => self.shards.gone(node),
            Event::Gone { node, shard: Some(shard) } => self.shards.starved(node, shard),
            Event::Vouch { epochs, reply } => {
                let not_vouched = |(shard, epoch): &(ShardId, u64)| !self.shards.replica(*shard).vouches_for(*epoch);
                let _ = reply.send(epochs.into_iter().filter(not_vouched).map(|(shard, _)| shard).collect());
            }
            Event::Views { reply } => drop(reply.send(self.shards.views())),
            Event::AskChange { shard, epoch, change, reply } => {
                let _ = reply.send(match self.shards.ask(shard, epoch, change) {
                    Ok(()) => Ok(()),
                    Err(StoreError::Refused(refused)) => Err(refused),
                    Err(error) => return Err(error),
                });
            }
            Event::ChangeRefused { shard, epoch } => {
                let counted = self.shards.change_refused(shard, epoch);
                self.rules.counted(now, shard, counted.written, counted.synced);
            }
            Event::Stop { reply } => self.stopping = Some(reply),
        }
        Ok(())
    }

    fn receive(&mut self, append: &Append) -> Result<Result<Ack, Starved>, StoreError> {
        match self.shards.receive(append) {
            Ok(ack) => Ok(Ok(ack)),
            Err(StoreError::Refused(why)) => {
                let shard = append.shard;
                Ok(Err(Starved { shard, tail: self.shards.replica(shard).tail(), why }))
            }
            Err(error) => Err(error),
        }
    }

    fn ask(&mut self, now: Millis, request: Request, reply: Option<oneshot::Sender<Reply>>) {
        self.next_ticket += 1;
        let lease = match &request {
            Request::Lease(request) => Some((request.task, request.key.clone())),
            _ => None,
        };
        if matches!(request, Request::Object(ObjectRequest::Put { .. })) {
            self.forget_the_gone();
        }
        if let Some(reply) = reply {
            self.waiting.insert(self.next_ticket, Waiting { reply, about: about(&request), lease });
        }
        self.rules.handle(now, self.next_ticket, request);
    }

    /// Forgets who waited for an item and is gone: what comes is for others.
    fn forget_the_gone(&mut self) {
        let is_gone = |ticket: &Ticket| self.waiting.get(ticket).is_none_or(|waiting| waiting.reply.is_closed());
        let gone: Vec<Ticket> = self.rules.waiting_for_items().filter(is_gone).collect();
        for ticket in gone {
            self.rules.abandon(ticket);
            self.waiting.remove(&ticket);
        }
    }

    /// Applies what Raft decided about a shard.
    fn configure(&mut self, now: Millis, shard: ShardId, config: Shard) -> Result<(), StoreError> {
        let home = config.home;
        let role = self.shards.adopt(shard, config)?;
        let next = self.shards.replica(shard).next_index();
        match (role, self.rules.state(shard).is_some()) {
            (Role::Home, true) => self.rules.skip_to(shard, next),
            (Role::Home, false) => {
                let (calls, objects) = self.rebuild(shard)?;
                self.rules.enter(now, shard, calls, next);
                self.rules.enter_objects(now, shard, objects);
            }
            _ => self.rules.leave(now, shard, Some(home)),
        }
        let Counted { written, synced } = self.shards.replica(shard).counted();
        self.rules.counted(now, shard, written, synced);
        Ok(())
    }

    fn count_short(&self) {
        let is_short = |shard: &ShardId| {
            let replica = self.shards.replica(*shard);
            replica.role() == Role::Home && replica.lacks_copies()
        };
        self.short.store(ShardId::all().filter(is_short).count(), Ordering::Relaxed);
    }

    /// Notes in the folder that this start of the machine is known, once no shard waits because of it.
    fn remember_boot(&mut self) {
        if ShardId::all().any(|shard| self.shards.replica(shard).role() == Role::Suspect) {
            return;
        }
        self.boot.remember();
    }

    /// Begins a sync if one is wanted, tells the load if it changed, gives back space.
    fn look_after(&mut self) -> Result<(), StoreError> {
        let now = self.ground.now();
        let (unsynced, asked) = (self.shards.has_unsynced(), !self.sync_waiting.is_empty());
        let due = now >= self.synced_at + SYNC_EVERY && unsynced;
        let wants = self.rules.wants_sync() && unsynced;
        if self.syncing.is_none() && (wants || due || asked) {
            let shards = self.shards.take_unsynced();
            if wants {
                // Theirs begins while ours is under way.
                self.shards.ask_sync(&shards);
            }
            let waiting = std::mem::take(&mut self.sync_waiting);
            self.syncing = Some(Syncing { done: self.ground.sync(self.shards.log()), shards, waiting });
            self.synced_at = now;
        }
        let (changed, woken) = self.rules.take_load_changes();
        self.load_dirty |= changed;
        if woken || (self.load_dirty && now >= self.load_told + LOAD_EVERY) {
            self.load.send_replace(Arc::new(self.rules.load()));
            (self.load_dirty, self.load_told) = (false, now);
        }
        if now >= self.collected_at + COLLECT_EVERY {
            self.collected_at = now;
            self.streams.remove_idle(streams::IDLE_KEPT);
            self.shards.collect()?;
        }
        Ok(())
    }

    fn synced(&mut self) {
        let Some(syncing) = self.syncing.take() else { return };
        let now = self.clock.now();
        for (shard, mark) in syncing.shards {
            let Counted { written, synced } = self.shards.synced(shard, mark);
            self.rules.counted(now, shard, written, synced);
        }
        for (home, reply) in syncing.waiting {
            let _ = reply.send(self.shards.take_untold(home));
        }
    }
}
