//! The network between nodes: messages that are late or lost, wires that are cut in both ways or in one, streams that stall and break.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use shoal_calls::Calls;
use shoal_calls::calls::Road;
use shoal_calls::calls::copies;
use shoal_state::NodeId;
use tokio::sync::{mpsc, oneshot};

use crate::dice::Dice;
use crate::time::{Inbox, Owner, Time};

/// How long a stream waits for a wire that was cut before it breaks.
const STALLED_MAX: Duration = Duration::from_secs(2);
/// How long the asker waits until a lost answer counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// A node that runs, as others reach it.
#[derive(Debug, Clone)]
struct Up {
    owner: Owner,
    /// None while the process starts.
    calls: Option<Calls>,
}

#[derive(Debug)]
struct Links {
    dice: Dice,
    /// Ways on which nothing passes.
    cut: BTreeSet<(usize, usize)>,
    /// Ways on which all takes so much longer.
    slow: BTreeMap<(usize, usize), Duration>,
    up: BTreeMap<usize, Up>,
}

/// The wires of a world. Clones are the same.
#[derive(Debug, Clone)]
pub struct Net {
    time: Time,
    inbox: Inbox,
    nodes: Arc<Vec<NodeId>>,
    links: Arc<Mutex<Links>>,
}

impl Net {
    /// Begins with whole wires and nobody at them.
    pub fn new(time: Time, inbox: Inbox, nodes: Vec<NodeId>, dice: Dice) -> Self {
        let links = Links { dice, cut: BTreeSet::new(), slow: BTreeMap::new(), up: BTreeMap::new() };
        Self { time, inbox, nodes: Arc::new(nodes), links: Arc::new(Mutex::new(links)) }
    }

    /// Returns which of the nodes has this id.
    pub fn number(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|known| *known == node).expect("a node of this world")
    }

    /// Returns the id of a node.
    pub fn id(&self, node: usize) -> NodeId {
        self.nodes[node]
    }

    /// Notes that the process of a node runs; its calls answer once there are any.
    pub fn came(&self, node: usize, owner: Owner, calls: Option<&Calls>) {
        self.links.lock().up.insert(node, Up { owner, calls: calls.cloned() });
    }

    /// Has a node do something with its calls, in a moment.
    pub fn here(&self, node: usize, what: impl FnOnce(Calls) -> BoxFuture<'static, ()>) {
        let up = self.links.lock().up.get(&node).cloned();
        if let Some(Up { owner, calls: Some(calls) }) = up {
            self.inbox.leave(owner, what(calls));
        }
    }

    /// Notes that a node cannot be reached.
    pub fn went(&self, node: usize) {
        let gone = self.links.lock().up.remove(&node);
        drop(gone);
    }

    /// Says whether the process of a node runs.
    pub fn is_up(&self, node: usize) -> bool {
        self.links.lock().up.contains_key(&node)
    }

    /// Returns which start of a node runs.
    pub fn owner(&self, node: usize) -> Option<Owner> {
        self.links.lock().up.get(&node).map(|up| up.owner)
    }

    /// Cuts a way, or mends it.
    pub fn cut(&self, from: usize, to: usize, cut: bool) {
        let mut links = self.links.lock();
        if cut {
            links.cut.insert((from, to))
        } else {
            links.cut.remove(&(from, to))
        };
    }

    /// Makes a way slow, or quick again.
    pub fn slow(&self, from: usize, to: usize, by: Option<Duration>) {
        let mut links = self.links.lock();
        match by {
            Some(by) => links.slow.insert((from, to), by),
            None => links.slow.remove(&(from, to)),
        };
    }

    /// Says whether something that one says reaches the other now.
    pub fn passes(&self, from: usize, to: usize) -> bool {
        from == to || !self.links.lock().cut.contains(&(from, to))
    }

    /// Says whether both run and hear each other.
    pub fn reach(&self, one: usize, other: usize) -> bool {
        self.is_up(one) && self.is_up(other) && self.passes(one, other) && self.passes(other, one)
    }

    /// Draws how long something takes from one to the other.
    pub fn delay(&self, from: usize, to: usize) -> Duration {
        let mut links = self.links.lock();
        let slow = links.slow.get(&(from, to)).copied().unwrap_or_default();
        let usual = if links.dice.one_in(20) { links.dice.from(2_000, 40_000) } else { links.dice.from(200, 2_000) };
        slow + Duration::from_micros(usual)
    }

    /// Carries a message; false if it is lost.
    pub async fn carry(&self, from: usize, to: usize) -> bool {
        if from == to {
            return true;
        }
        if !self.passes(from, to) {
            return false;
        }
        self.time.sleep(self.delay(from, to)).await;
        self.passes(from, to)
    }

    /// Has a node do something for somebody, who may go away; none if that or its answer did not come through. `from` is none for a
    /// client, whose wires are whole.
    pub async fn ask<T: Send + 'static>(
        &self,
        from: Option<usize>,
        to: usize,
        what: impl FnOnce(Calls) -> BoxFuture<'static, T>,
    ) -> Option<T> {
        let came = match from {
            Some(from) => self.carry(from, to).await,
            None => {
                self.time.sleep(self.delay(to, to)).await;
                true
            }
        };
        let up = self.links.lock().up.get(&to).cloned();
        let up = up.and_then(|up| Some((up.owner, up.calls?)));
        let Some((owner, calls)) = up.filter(|_| came) else {
            // A machine that is there says at once that nobody listens.
            self.time.sleep(if came { Duration::from_millis(5) } else { LOST_AFTER }).await;
            return None;
        };
        let (mut reply, answer) = oneshot::channel::<Option<T>>();
        let (net, work) = (self.clone(), what(calls));
        let task = async move {
            let done = {
                let gone = Box::pin(reply.closed());
                match select(work, gone).await {
                    Either::Left((done, _)) => Some(done),
                    // Whoever asked is gone.
                    Either::Right(_) => None,
                }
            };
            let Some(done) = done else { return };
            let back = match from {
                Some(from) => net.carry(to, from).await,
                None => true,
            };
            if !back {
                net.time.sleep(LOST_AFTER).await;
            }
            let _ = reply.send(back.then_some(done));
        };
        self.inbox.leave(owner, Box::pin(task));
        answer.await.ok().flatten()
    }

    /// Opens a stream: returns both ends.
    pub fn stream(&self, from: usize, to: usize) -> (Ends, Ends) {
        let half = |from, to| {
            let (frames, taken) = mpsc::unbounded_channel();
            let sends = Sends { net: self.clone(), way: (from, to), frames, last: Duration::ZERO };
            (sends, Takes { net: self.clone(), way: (from, to), frames: taken, head: None })
        };
        let ((there, at_there), (back, at_back)) = (half(from, to), half(to, from));
        ((there, at_back), (back, at_there))
    }
}

/// One end of a stream.
pub type Ends = (Sends, Takes);

/// What one end sends.
#[derive(Debug)]
pub struct Sends {
    net: Net,
    way: (usize, usize),
    frames: mpsc::UnboundedSender<(Duration, Bytes)>,
    last: Duration,
}

impl copies::Outgoing for Sends {
    async fn send(&mut self, frame: Bytes) -> Result<(), String> {
        let (from, to) = self.way;
        let mut stalled = Duration::ZERO;
        while !self.net.passes(from, to) {
            if stalled >= STALLED_MAX {
                return Err("the wire is cut".to_owned());
            }
            self.net.time.sleep(Duration::from_millis(100)).await;
            stalled += Duration::from_millis(100);
        }
        self.last = self.last.max(self.net.time.now() + self.net.delay(from, to));
        self.frames.send((self.last, frame)).map_err(|_| "the other end is gone".to_owned())
    }
}

/// What one end takes.
#[derive(Debug)]
pub struct Takes {
    net: Net,
    way: (usize, usize),
    frames: mpsc::UnboundedReceiver<(Duration, Bytes)>,
    head: Option<(Duration, Bytes)>,
}

impl copies::Incoming for Takes {
    async fn ready(&mut self) -> Result<(), String> {
        if self.head.is_none() {
            self.head = Some(self.frames.recv().await.ok_or("the other end is gone")?);
        }
        let Some((at, _)) = &self.head else { return Ok(()) };
        let left = at.saturating_sub(self.net.time.now());
        self.net.time.sleep(left).await;
        let mut stalled = Duration::ZERO;
        while !self.net.passes(self.way.0, self.way.1) {
            if stalled >= STALLED_MAX {
                return Err("the wire is cut".to_owned());
            }
            self.net.time.sleep(Duration::from_millis(100)).await;
            stalled += Duration::from_millis(100);
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        self.ready().await?;
        Ok(self.head.take().map(|(_, frame)| frame))
    }
}

/// The way of one node to the calls of the others.
#[derive(Debug)]
pub struct Way {
    /// All wires.
    pub net: Net,
    /// Where it begins.
    pub me: usize,
}

impl Road for Way {
    fn ask<'a>(&'a self, home: NodeId, request: Bytes, patience: Duration) -> BoxFuture<'a, Result<Bytes, String>> {
        Box::pin(async move {
            let to = self.net.number(home);
            let asked = self.net.ask(Some(self.me), to, move |calls| Box::pin(async move { calls.serve(request).await }));
            let found: Option<Option<Bytes>> = self.net.time.within(patience, asked).await;
            match found {
                Some(Some(answer)) => Ok(answer),
                Some(None) => Err("the way is cut, or nobody listens".to_owned()),
                None => Err("no answer".to_owned()),
            }
        })
    }
}
