//! The way on which something is said: directly, or through a third node where the first does not reach the last one. Through whom, and
//! for how long such a way is looked for, the product's rules say.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_peer::detours::{AGAIN_WAIT, DeadEnds, LOOK_EVERY, OPEN_WAIT, between, is_outdated};

use super::connections::Connections;
use super::{Links, Net};
use crate::dice::Dice;

/// How often somebody who waits for a wire or for a node looks at it.
const WAITS: Duration = Duration::from_millis(50);

/// What a world knows in which things are said around wires that are cut.
#[derive(Debug)]
pub(super) struct Around {
    pub(super) connections: Connections,
    /// Those that run and do not stand still.
    pub(super) awake: BTreeSet<usize>,
    dead_ends: Vec<DeadEnds>,
    /// No way around is looked for.
    none: bool,
}

impl Around {
    fn new(connections: Connections, nodes: usize, none: bool) -> Self {
        Self { connections, awake: BTreeSet::new(), dead_ends: (0..nodes).map(|_| DeadEnds::default()).collect(), none }
    }
}

impl Links {
    /// Says whether what one says to the other, and the answer, pass now.
    fn pass_both(&self, one: usize, other: usize) -> bool {
        !self.cut.contains(&(one, other)) && !self.cut.contains(&(other, one))
    }

    /// Says whether something gets from one to the other and back now on a connection that there is.
    fn is_direct(&self, around: &Around, one: usize, other: usize) -> bool {
        around.connections.is_whole(one, other) && self.pass_both(one, other)
    }
}

/// A way, once it is open.
#[derive(Debug, Clone)]
pub struct Road {
    pub(super) net: Net,
    pub(super) from: usize,
    pub(super) to: usize,
    through: Option<usize>,
    /// The connections that it goes on, from the first node to the last; none in a world without any.
    legs: Vec<Leg>,
}

#[derive(Debug, Clone, Copy)]
struct Leg {
    from: usize,
    to: usize,
    number: u64,
}

impl Net {
    /// From here on there are connections, and things are said around wires that are cut; or are not, where `none` is.
    pub fn go_around(&self, dice: Dice, none: bool) {
        self.links.lock().around = Some(Around::new(Connections::new(dice), self.nodes.len(), none));
    }

    /// Lets connections come and go; `awake` are the nodes that run and do not stand still.
    pub fn look(&self, awake: BTreeSet<usize>) {
        let now = self.time.now();
        let mut links = self.links.lock();
        let Some(mut around) = links.around.take() else { return };
        let slow = |from, to| links.slow.get(&(from, to)).copied().unwrap_or_default();
        around.connections.look(&awake, now, |from, to| !links.cut.contains(&(from, to)), slow);
        around.awake = awake;
        links.around = Some(around);
    }

    /// Says whether things are said around wires that are cut.
    pub fn goes_around(&self) -> bool {
        self.links.lock().around.is_some()
    }

    /// Returns how much each peer has acknowledged to which a node is connected.
    pub fn acknowledged(&self, node: usize) -> Vec<(usize, (u64, u64))> {
        self.links.lock().around.as_ref().map(|around| around.connections.acknowledged(node)).unwrap_or_default()
    }

    /// Says whether both run, and what one says gets to the other and back, on the way that it would go now.
    pub(super) fn reach_around(&self, one: usize, other: usize) -> bool {
        let links = self.links.lock();
        let Some(around) = &links.around else { return links.pass_both(one, other) };
        if one == other {
            return true;
        }
        if around.connections.number(one, other).is_some() || around.none {
            return links.is_direct(around, one, other);
        }
        self.between(around, one, other).into_iter().any(|through| {
            let is_open = |from, to| links.is_direct(around, from, to);
            around.awake.contains(&through) && is_open(one, through) && is_open(through, other)
        })
    }

    /// Says whether what one says gets to the other, be it that no answer does.
    pub(super) fn passes_around(&self, from: usize, to: usize) -> bool {
        let is_connected = {
            let links = self.links.lock();
            let Some(around) = &links.around else { return !links.cut.contains(&(from, to)) };
            if around.connections.is_whole(from, to) && !links.cut.contains(&(from, to)) {
                return true;
            }
            around.connections.number(from, to).is_some()
        };
        !is_connected && self.reach_around(from, to)
    }

    fn between(&self, around: &Around, from: usize, to: usize) -> Vec<usize> {
        let connected = around.connections.of(from).map(|(peer, there_and_back)| (self.id(peer), there_and_back));
        between(self.id(to), connected).into_iter().map(|node| self.number(node)).collect()
    }

    fn leg(&self, from: usize, to: usize) -> Option<Leg> {
        let links = self.links.lock();
        let number = links.around.as_ref()?.connections.number(from, to)?;
        Some(Leg { from, to, number })
    }

    fn direct(&self, from: usize, to: usize) -> Road {
        Road { net: self.clone(), from, to, through: None, legs: vec![] }
    }

    /// Opens a way to another node; none where none is found. In a world in which nothing is said around cut wires it is simply there.
    pub async fn road(&self, from: usize, to: usize) -> Option<Road> {
        if from == to || !self.goes_around() {
            return Some(self.direct(from, to));
        }
        if let Some(leg) = self.leg(from, to) {
            return Some(Road { legs: vec![leg], ..self.direct(from, to) });
        }
        // It is dialled.
        self.time.sleep(AGAIN_WAIT).await;
        if let Some(leg) = self.leg(from, to) {
            return Some(Road { legs: vec![leg], ..self.direct(from, to) });
        }
        let tried = {
            let links = self.links.lock();
            let around = links.around.as_ref()?;
            if around.none || around.dead_ends[from].is_one(self.id(to), self.time.instant()) {
                return None;
            }
            self.between(around, from, to)
        };
        let mut found = None;
        for through in tried {
            found = self.time.within(OPEN_WAIT, self.open_through(from, through, to)).await.flatten();
            if found.is_some() {
                break;
            }
        }
        if let Some(around) = &mut self.links.lock().around {
            around.dead_ends[from].note(self.id(to), found.is_none(), self.time.instant());
        }
        found
    }

    async fn open_through(&self, from: usize, through: usize, to: usize) -> Option<Road> {
        let there = self.leg(from, through)?;
        let asks = Road { legs: vec![there], ..self.direct(from, through) };
        if !asks.there().await {
            return None;
        }
        let mut onward = self.leg(through, to);
        if onward.is_none() {
            self.time.sleep(AGAIN_WAIT).await;
            onward = self.leg(through, to);
        }
        let Some(onward) = onward else {
            asks.back().await;
            return None;
        };
        let arrives = Road { legs: vec![onward], ..self.direct(through, to) };
        if !arrives.there().await || !arrives.back().await || !asks.back().await {
            return None;
        }
        Some(Road { through: Some(through), legs: vec![there, onward], ..self.direct(from, to) })
    }
}

impl Road {
    /// Returns where it leads to.
    pub fn to(&self) -> usize {
        self.to
    }

    /// Returns the node that it goes through, if it does not go directly.
    pub fn through(&self) -> Option<usize> {
        self.through
    }

    /// Carries a message to its end; false if it is lost.
    pub async fn there(&self) -> bool {
        if self.legs.is_empty() {
            return self.net.carry_direct(self.from, self.to).await;
        }
        for leg in &self.legs {
            if !self.pass(*leg, (leg.from, leg.to)).await {
                return false;
            }
        }
        true
    }

    /// Carries an answer back to its beginning; false if it is lost.
    pub async fn back(&self) -> bool {
        if self.legs.is_empty() {
            return self.net.carry_direct(self.to, self.from).await;
        }
        for leg in self.legs.iter().rev() {
            if !self.pass(*leg, (leg.to, leg.from)).await {
                return false;
            }
        }
        true
    }

    /// Carries a message over one wire. What is lost on it is sent again for as long as the connection lasts.
    async fn pass(&self, leg: Leg, (from, to): (usize, usize)) -> bool {
        while !self.net.can_pass(leg, from, to) {
            if !self.net.lasts(leg, from) {
                return false;
            }
            self.net.time.sleep(WAITS).await;
        }
        self.net.time.sleep(self.net.delay(from, to)).await;
        while !self.net.can_pass(leg, from, to) {
            if !self.net.lasts(leg, from) {
                return false;
            }
            self.net.time.sleep(WAITS).await;
        }
        true
    }

    /// Says whether an end of it knows that nothing passes any more.
    pub(super) fn is_broken(&self, at: usize) -> bool {
        let lasts = |leg: &Leg, at| self.net.lasts(*leg, at);
        let Some(through) = self.through else { return self.legs.iter().any(|leg| !lasts(leg, at)) };
        let (own, far): (Vec<Leg>, Vec<Leg>) = self.legs.iter().partition(|leg| leg.from == at || leg.to == at);
        own.iter().any(|leg| !lasts(leg, at))
            // The node between tells what it notices.
            || far.iter().any(|leg| !lasts(leg, through)) && own.iter().all(|leg| self.net.can_pass(*leg, through, at))
    }

    /// Says whether a message passes now, one way or the other.
    pub(super) fn passes(&self, there: bool) -> bool {
        let mut legs = self.legs.iter().map(|leg| if there { (leg, leg.from, leg.to) } else { (leg, leg.to, leg.from) });
        match self.legs.is_empty() {
            true if there => self.net.passes(self.from, self.to),
            true => self.net.passes(self.to, self.from),
            false => legs.all(|(leg, from, to)| self.net.can_pass(*leg, from, to)),
        }
    }

    /// Draws how long something takes on it, one way or the other.
    pub(super) fn takes(&self, there: bool) -> Duration {
        let way = |from, to| if there { self.net.delay(from, to) } else { self.net.delay(to, from) };
        match self.through {
            Some(through) => way(self.from, through) + way(through, self.to),
            None => way(self.from, self.to),
        }
    }

    /// Says whether it goes through another node though there is a direct way again.
    pub fn is_outdated(&self) -> bool {
        let through = self.through.map(|node| self.net.id(node));
        is_outdated(through, self.net.leg(self.from, self.to).is_some())
    }

    /// Waits until it is outdated; for ever if it goes directly.
    pub async fn outdated(&self) {
        if self.through.is_none() {
            return std::future::pending().await;
        }
        while !self.is_outdated() {
            self.net.time.sleep(LOOK_EVERY).await;
        }
    }
}

impl Net {
    /// Says whether a node still has its end of a connection.
    fn lasts(&self, leg: Leg, at: usize) -> bool {
        let other = if leg.from == at { leg.to } else { leg.from };
        let links = self.links.lock();
        links.around.as_ref().is_some_and(|around| around.connections.number(at, other) == Some(leg.number))
    }

    /// Says whether something that one node says on a connection reaches the other now, which runs and does not stand still.
    fn can_pass(&self, leg: Leg, from: usize, to: usize) -> bool {
        let links = self.links.lock();
        let Some(around) = &links.around else { return false };
        let has = |at, to| around.connections.number(at, to) == Some(leg.number);
        !links.cut.contains(&(from, to)) && has(from, to) && has(to, from) && around.awake.contains(&to)
    }
}
