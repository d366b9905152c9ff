//! The connections between nodes, as each end sees its own: made where packets go there and back, given up by an end that has heard nothing
//! of the other for long. So a wire that is cut in one way is noticed at its ends at different times, and one that is whole again is used
//! a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use shoal_peer::detours::IDLE_MAX;

use crate::dice::Dice;

/// How often connections are looked at.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A dial that was in vain for long comes through at one look in so many: its packets become rare.
const DIALS: u64 = 8;

/// One end of a connection.
#[derive(Debug)]
struct End {
    /// Of which connection.
    number: u64,
    /// When it heard the other one last.
    heard: Duration,
    /// How often what it sent was acknowledged.
    acknowledged: u64,
    there_and_back: Duration,
}

/// All connections. Each end is that of the first node to the second one.
#[derive(Debug)]
pub(super) struct Connections {
    dice: Dice,
    ends: BTreeMap<(usize, usize), End>,
    /// Nodes that have just started: all is dialled anew.
    fresh: BTreeSet<usize>,
    made: u64,
}

impl Connections {
    /// Begins without any.
    pub(super) fn new(dice: Dice) -> Self {
        Self { dice, ends: BTreeMap::new(), fresh: BTreeSet::new(), made: 0 }
    }

    /// A process has started.
    pub(super) fn came(&mut self, node: usize) {
        self.went(node);
        self.fresh.insert(node);
    }

    /// A process has ended. The others do not know it yet.
    pub(super) fn went(&mut self, node: usize) {
        self.ends.retain(|(at, _), _| *at != node);
    }

    /// Returns which connection a node has to another.
    pub(super) fn number(&self, at: usize, to: usize) -> Option<u64> {
        self.ends.get(&(at, to)).map(|end| end.number)
    }

    /// Says whether both nodes have the same connection to each other.
    pub(super) fn is_whole(&self, one: usize, other: usize) -> bool {
        self.number(one, other).is_some_and(|number| self.number(other, one) == Some(number))
    }

    /// Returns to whom a node is connected, as it sees it, and how long a packet takes there and back.
    pub(super) fn of(&self, node: usize) -> impl Iterator<Item = (usize, Duration)> {
        self.ends.range((node, 0)..=(node, usize::MAX)).map(|((_, to), end)| (*to, end.there_and_back))
    }

    /// Returns of a node's connections how much was acknowledged on each.
    pub(super) fn acknowledged(&self, node: usize) -> Vec<(usize, (u64, u64))> {
        self.ends.range((node, 0)..=(node, usize::MAX)).map(|((_, to), end)| (*to, (end.number, end.acknowledged))).collect()
    }

    /// Looks who hears whom, of those that run and do not stand still.
    pub(super) fn look(
        &mut self,
        awake: &BTreeSet<usize>,
        now: Duration,
        passes: impl Fn(usize, usize) -> bool,
        slow: impl Fn(usize, usize) -> Duration,
    ) {
        let heard: Vec<(usize, usize)> =
            self.ends.keys().copied().filter(|(at, from)| awake.contains(from) && passes(*from, *at)).collect();
        for (at, from) in heard.into_iter().filter(|(at, _)| awake.contains(at)) {
            if self.is_whole(at, from)
                && let Some(end) = self.ends.get_mut(&(at, from))
            {
                end.heard = now;
                end.acknowledged += u64::from(passes(at, from));
            }
        }
        self.ends.retain(|(at, _), end| !awake.contains(at) || now.saturating_sub(end.heard) < IDLE_MAX);
        for one in awake {
            for other in awake.range(one + 1..) {
                let can = passes(*one, *other) && passes(*other, *one) && !self.is_whole(*one, *other);
                let at_once = self.fresh.contains(one) || self.fresh.contains(other);
                if can && (at_once || self.dice.one_in(DIALS)) {
                    self.made += 1;
                    let there_and_back = slow(*one, *other) + slow(*other, *one) + Duration::from_micros(self.dice.from(400, 4_000));
                    let end = || End { number: self.made, heard: now, acknowledged: 0, there_and_back };
                    self.ends.extend([((*one, *other), end()), ((*other, *one), end())]);
                }
            }
        }
        self.fresh.clear();
    }
}
