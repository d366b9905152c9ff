//! Whom a node reaches, and who reaches it: what is silent, doubtful or lost is decided by. Pure.
//!
//! Members tell each other all the time that they live and whom they hear, by whatever way there is. On a direct connection a node sees
//! besides whether what it sends is acknowledged: over a wire that is broken in one way another one is heard that hears nothing. Where
//! there is no such connection, what is told comes through a third node, and counts alike.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_state::NodeId;

use super::members::DROPPED_AFTER;
use super::presence;

/// After so long without a word of a member it counts as lost if its machine says that its process has ended. Until then it may have
/// been started anew, which takes no more than that where all is well.
const ENDED_AFTER: Duration = Duration::from_secs(1);
/// After so long without a word of a member its containers are replaced ahead where there is room, should it be lost.
pub const DOUBTFUL_AFTER: Duration = Duration::from_millis(1500);

/// What another node told last.
#[derive(Debug)]
struct Told {
    at: Duration,
    hears: Vec<NodeId>,
}

/// Whom a node hears and who hears it. Times are by a clock of its own, which stands still while the node does. `A` tells how much a peer
/// has acknowledged on the connection to it.
#[derive(Debug)]
pub struct Hearing<A> {
    me: NodeId,
    told: BTreeMap<NodeId, Told>,
    /// When another node said for the last time that it hears this one.
    heard_by_others: Duration,
    /// How much was acknowledged on the connections to others, and since when not more.
    acknowledged: BTreeMap<NodeId, (A, Duration)>,
    /// The members whose process has ended, as far as this node can tell.
    ended: BTreeSet<NodeId>,
}

impl<A: PartialEq> Hearing<A> {
    /// Begins with nothing heard.
    pub fn new(me: NodeId) -> Self {
        // Others may say that they hear it a little later than they are heard.
        Self { me, told: BTreeMap::new(), heard_by_others: DROPPED_AFTER, acknowledged: BTreeMap::new(), ended: BTreeSet::new() }
    }

    /// Notes that a node was heard, and whom it says that it hears.
    pub fn hear(&mut self, node: NodeId, hears: Vec<NodeId>, clock: Duration) {
        if hears.contains(&self.me) {
            self.heard_by_others = clock;
        }
        self.told.insert(node, Told { at: clock, hears });
    }

    /// Takes how much each peer has acknowledged to which there is a direct connection.
    pub fn look_at_acknowledged(&mut self, now: impl IntoIterator<Item = (NodeId, A)>, clock: Duration) {
        let mut before = std::mem::take(&mut self.acknowledged);
        self.acknowledged = now
            .into_iter()
            .map(|(node, now)| match before.remove(&node) {
                Some((known, at)) if known == now => (node, (known, at)),
                _ => (node, (now, clock)),
            })
            .collect();
    }

    /// Takes which processes have ended; says whether that has changed.
    pub fn set_ended(&mut self, ended: BTreeSet<NodeId>) -> bool {
        std::mem::replace(&mut self.ended, ended.clone()) != ended
    }

    /// Says whether a node was ever heard.
    pub fn was_heard(&self, node: NodeId) -> bool {
        self.told.contains_key(&node)
    }

    /// Says whether the process of a node is known to have ended.
    pub fn is_known_ended(&self, node: NodeId) -> bool {
        self.ended.contains(&node)
    }

    /// Says whether the process of a node has ended: it is silent, and since then, so long ago, its machine has said that nobody listens
    /// on its port.
    pub fn has_ended(&self, node: NodeId, closed: Option<Duration>, clock: Duration) -> bool {
        let silent = self.silent(node, clock);
        silent >= ENDED_AFTER && closed.is_some_and(|ago| ago < silent)
    }

    /// Returns for how long a node was out of reach; zero for this one. It was not heard, or does not hear this node: what is sent to it is
    /// not acknowledged. Over a wire that is broken in one way a node is heard that can do nothing.
    pub fn silent(&self, node: NodeId, clock: Duration) -> Duration {
        if node == self.me {
            return Duration::ZERO;
        }
        let heard = self.told.get(&node).map_or(Duration::ZERO, |told| told.at);
        let acknowledged = self.acknowledged.get(&node).map_or(clock, |(_, at)| *at);
        clock.saturating_sub(heard.min(acknowledged))
    }

    /// Returns whom this node tells others that it hears.
    pub fn hears(&self, clock: Duration) -> Vec<NodeId> {
        let is_heard = |node: &&NodeId| self.silent(**node, clock) < DROPPED_AFTER / 2 && !self.ended.contains(node);
        self.told.keys().filter(is_heard).copied().collect()
    }

    /// Says whether another node has said that it hears this one.
    pub fn is_heard_by(&self, node: NodeId) -> bool {
        self.told.get(&node).is_some_and(|told| told.hears.contains(&self.me))
    }

    /// Says whether neither this node nor any that it hears has heard a node for [`DROPPED_AFTER`], or since its process has ended.
    pub fn is_lost(&self, node: NodeId, clock: Duration) -> bool {
        let hearing = self.told.iter().filter(|(other, told)| **other != node && told.hears.contains(&node)).map(|(other, _)| *other);
        presence::is_lost(node, |node| self.is_gone(node, clock), hearing)
    }

    fn is_gone(&self, node: NodeId, clock: Duration) -> bool {
        self.silent(node, clock) >= DROPPED_AFTER || self.ended.contains(&node)
    }

    /// Says whether a node has been silent for a moment, and is not lost.
    pub fn is_doubtful(&self, node: NodeId, clock: Duration) -> bool {
        (self.silent(node, clock) >= DOUBTFUL_AFTER || self.ended.contains(&node)) && !self.is_lost(node, clock)
    }

    /// Says whether what is said through a peer, if it is, goes a way that can be believed: of that peer others may know better that it is
    /// none.
    pub fn is_good_way(&self, through: Option<NodeId>, clock: Duration) -> bool {
        through.is_none_or(|peer| self.silent(peer, clock) < DOUBTFUL_AFTER)
    }

    /// Says whether this node has heard no other member for [`DROPPED_AFTER`], or none has heard it.
    pub fn is_cut_off(&self, members: impl IntoIterator<Item = NodeId>, clock: Duration) -> bool {
        // Half of that time has passed when others, who are heard, say no more that they hear it.
        let heard = self.told.values().map(|told| told.at).max().unwrap_or_default();
        let unheard = heard.saturating_sub(self.heard_by_others) >= DROPPED_AFTER / 2;
        let mut others = members.into_iter().filter(|node| *node != self.me).peekable();
        others.peek().is_some() && (unheard || others.all(|node| self.silent(node, clock) >= DROPPED_AFTER))
    }

    /// Says whether this node has not heard any other member for a moment: then it is more likely out of reach itself than all of them are.
    pub fn hears_nobody(&self, members: impl IntoIterator<Item = NodeId>, clock: Duration) -> bool {
        let mut others = members.into_iter().filter(|node| *node != self.me).peekable();
        others.peek().is_some() && others.all(|node| self.silent(node, clock) >= DOUBTFUL_AFTER)
    }

    /// Says whether most of these are in reach, this node among them.
    pub fn reaches_most(&self, of: impl IntoIterator<Item = NodeId>, clock: Duration) -> bool {
        let in_reach = of.into_iter().map(|node| self.silent(node, clock) < DOUBTFUL_AFTER);
        let (reached, all) = in_reach.fold((0, 0), |(reached, all), is_one| (reached + usize::from(is_one), all + 1));
        reached * 2 > all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Node 1, which is told at once by 2 and 3 that they hear each other and it.
    fn heard(at: u64) -> Hearing<u64> {
        let mut hearing = Hearing::new(node(1));
        hearing.hear(node(2), vec![node(1), node(3)], ms(at));
        hearing.hear(node(3), vec![node(1), node(2)], ms(at));
        hearing
    }

    #[test]
    fn who_is_heard_by_another_that_is_heard_is_not_lost() {
        let mut hearing = heard(1_000);
        hearing.hear(node(3), vec![node(2)], ms(4_000));
        assert_eq!(hearing.silent(node(2), ms(4_100)), ms(3_100));
        assert!(!hearing.is_lost(node(2), ms(4_100)) && hearing.is_doubtful(node(2), ms(4_100)));
        hearing.hear(node(3), vec![], ms(4_200));
        assert!(hearing.is_lost(node(2), ms(4_300)));
        assert!(!hearing.is_lost(node(3), ms(7_100)) && hearing.is_lost(node(3), ms(7_200)), "whom a lost node heard is not kept by that");
    }

    #[test]
    fn who_does_not_hear_is_silent_until_it_is_reached_by_another_way() {
        let mut hearing = heard(1_000);
        hearing.look_at_acknowledged([(node(2), 7)], ms(1_000));
        hearing.look_at_acknowledged([(node(2), 7)], ms(2_000));
        hearing.hear(node(2), vec![], ms(4_500));
        assert_eq!(hearing.silent(node(2), ms(4_500)), ms(3_500), "it is heard, and hears nothing");
        hearing.look_at_acknowledged([], ms(4_600));
        assert_eq!(hearing.silent(node(2), ms(4_700)), ms(200), "there is no connection: it is heard through another");
        hearing.look_at_acknowledged([(node(2), 1)], ms(4_800));
        assert_eq!(hearing.silent(node(2), ms(4_900)), ms(400), "a new connection begins with what it has");
    }

    #[test]
    fn a_way_through_one_that_is_silent_is_none() {
        let hearing = heard(1_000);
        assert!(hearing.is_good_way(None, ms(9_000)) && hearing.is_good_way(Some(node(2)), ms(2_400)));
        assert!(!hearing.is_good_way(Some(node(2)), ms(2_500)));
    }

    #[test]
    fn whose_process_has_ended_is_lost_before_its_silence_says_so() {
        let mut hearing = heard(1_000);
        assert!(!hearing.has_ended(node(2), Some(ms(500)), ms(1_900)), "it may be starting anew");
        assert!(!hearing.has_ended(node(2), Some(ms(1_200)), ms(2_000)), "it was heard since");
        assert!(hearing.has_ended(node(2), Some(ms(500)), ms(2_000)));
        assert!(hearing.set_ended([node(2)].into()) && !hearing.set_ended([node(2)].into()));
        hearing.hear(node(3), vec![node(2)], ms(2_000));
        assert!(!hearing.is_lost(node(2), ms(2_000)), "another hears it");
        hearing.hear(node(3), vec![], ms(2_100));
        assert!(hearing.is_lost(node(2), ms(2_100)));
        assert_eq!(hearing.hears(ms(2_100)), [node(3)]);
    }

    #[test]
    fn a_node_that_hears_nobody_or_that_nobody_hears_is_cut_off() {
        let members = || [node(1), node(2), node(3)];
        let mut hearing = heard(4_000);
        assert!(!hearing.hears_nobody(members(), ms(5_400)) && hearing.hears_nobody(members(), ms(5_500)));
        assert!(!hearing.is_cut_off(members(), ms(6_900)) && hearing.is_cut_off(members(), ms(7_000)));
        assert!(hearing.reaches_most(members(), ms(5_400)) && !hearing.reaches_most(members(), ms(5_500)));
        hearing.hear(node(2), vec![node(3)], ms(5_500));
        assert!(hearing.is_cut_off(members(), ms(5_500)), "it hears others, and they say that they do not hear it");
        assert!(!hearing.is_cut_off([node(1)], ms(60_000)), "it is alone by right");
    }
}
