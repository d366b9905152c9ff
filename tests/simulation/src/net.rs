//! The network between nodes: messages that are late or lost, wires that are cut in both ways or in one, streams that stall and break.
//!
//! In some worlds there are [`connections`] besides, and what does not get over a wire goes through a third node ([`road`]), as it does in
//! reality. In the others what is said over a wire that is cut is lost.

mod connections;
mod road;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, Either, select};
use parking_lot::Mutex;
use shoal_calls::Calls;

use shoal_calls::calls::copies;
use shoal_state::NodeId;
use tokio::sync::{mpsc, oneshot};

pub use self::connections::LOOK_EVERY;
pub use self::road::Road;
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
    around: Option<road::Around>,
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
        let links = Links { dice, cut: BTreeSet::new(), slow: BTreeMap::new(), up: BTreeMap::new(), around: None };
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
        let mut links = self.links.lock();
        let before = links.up.insert(node, Up { owner, calls: calls.cloned() });
        if let Some(around) = &mut links.around
            && before.as_ref().is_none_or(|before| before.owner != owner)
        {
            around.connections.came(node);
        }
        drop(links);
        drop(before);
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
        let mut links = self.links.lock();
        let gone = links.up.remove(&node);
        if let Some(around) = &mut links.around {
            around.connections.went(node);
        }
        drop(links);
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
        from == to || self.passes_around(from, to)
    }

    /// Says whether both run and hear each other.
    pub fn reach(&self, one: usize, other: usize) -> bool {
        self.is_up(one) && self.is_up(other) && (one == other || self.reach_around(one, other))
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
        match self.road(from, to).await {
            Some(road) => road.there().await,
            None => false,
        }
    }

    async fn carry_direct(&self, from: usize, to: usize) -> bool {
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
        let road = match from {
            Some(from) => Some(self.road(from, to).await?),
            None => None,
        };
        let came = match &road {
            Some(road) => road.there().await,
            None => {
                self.time.sleep(self.delay(to, to)).await;
                true
            }
        };
        // That a connection is gone is noticed; a message that is lost is not.
        let lost_after = if self.goes_around() { Duration::ZERO } else { LOST_AFTER };
        let up = self.links.lock().up.get(&to).cloned();
        let up = up.and_then(|up| Some((up.owner, up.calls?)));
        let Some((owner, calls)) = up.filter(|_| came) else {
            // A machine that is there says at once that nobody listens.
            self.time.sleep(if came { Duration::from_millis(5) } else { lost_after }).await;
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
            let back = match road {
                Some(road) => road.back().await,
                None => true,
            };
            if !back {
                net.time.sleep(lost_after).await;
            }
            let _ = reply.send(back.then_some(done));
        };
        self.inbox.leave(owner, Box::pin(task));
        answer.await.ok().flatten()
    }
}

impl Road {
    /// Opens a stream: returns both ends.
    pub fn stream(&self) -> (Ends, Ends) {
        let half = |there| {
            let (frames, taken) = mpsc::unbounded_channel();
            let sends = Sends { road: self.clone(), there, frames, last: Duration::ZERO };
            (sends, Takes { road: self.clone(), there, frames: taken, head: None })
        };
        let ((there, at_there), (back, at_back)) = (half(true), half(false));
        ((there, at_back), (back, at_there))
    }

    /// Waits until something passes, one way or the other; not for long, and not on a connection that an end has given up.
    async fn until_it_passes(&self, there: bool, at: usize) -> Result<(), String> {
        let mut stalled = Duration::ZERO;
        while !self.passes(there) {
            let is_broken = if self.net.goes_around() { self.is_broken(at) } else { stalled >= STALLED_MAX };
            if is_broken {
                return Err("the wire is cut".to_owned());
            }
            self.net.time.sleep(Duration::from_millis(100)).await;
            stalled += Duration::from_millis(100);
        }
        Ok(())
    }
}

/// One end of a stream.
pub type Ends = (Sends, Takes);

/// What one end sends: the one that opened it, or the other.
#[derive(Debug)]
pub struct Sends {
    road: Road,
    there: bool,
    frames: mpsc::UnboundedSender<(Duration, Bytes)>,
    last: Duration,
}

impl copies::Outgoing for Sends {
    async fn send(&mut self, frame: Bytes) -> Result<(), String> {
        let (road, net) = (&self.road, &self.road.net);
        let at = if self.there { road.from } else { road.to };
        match net.goes_around() {
            // It is kept until it passes.
            true if road.is_broken(at) => return Err("the connection is gone".to_owned()),
            true => {}
            false => road.until_it_passes(self.there, at).await?,
        }
        self.last = self.last.max(net.time.now() + road.takes(self.there));
        self.frames.send((self.last, frame)).map_err(|_| "the other end is gone".to_owned())
    }
}

/// What one end takes of what the one that opened it sent, or the other.
#[derive(Debug)]
pub struct Takes {
    road: Road,
    there: bool,
    frames: mpsc::UnboundedReceiver<(Duration, Bytes)>,
    head: Option<(Duration, Bytes)>,
}

impl copies::Incoming for Takes {
    async fn ready(&mut self) -> Result<(), String> {
        let (road, at) = (&self.road, if self.there { self.road.to } else { self.road.from });
        while self.head.is_none() {
            self.head = match road.net.goes_around() {
                // What was sent may be waited for in vain.
                true => match road.net.time.within(STALLED_MAX, self.frames.recv()).await {
                    Some(frame) => Some(frame.ok_or("the other end is gone")?),
                    None if road.is_broken(at) => return Err("the connection is gone".to_owned()),
                    None => None,
                },
                false => Some(self.frames.recv().await.ok_or("the other end is gone")?),
            };
        }
        let Some((at_time, _)) = &self.head else { return Ok(()) };
        let left = at_time.saturating_sub(road.net.time.now());
        road.net.time.sleep(left).await;
        road.until_it_passes(self.there, at).await
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

impl shoal_calls::calls::Road for Way {
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
