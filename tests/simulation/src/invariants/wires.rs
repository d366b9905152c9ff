//! Which wires are whole, and which nodes run without a trouble of their own, each since when; in worlds in which things are said around
//! wires that are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::history::Event;

/// Troubles that are a node's own, not its wires'.
const OWN: [&str; 3] = ["stands still", "slow", "applies slowly"];
/// What is said when such a trouble is over.
const OWN_OVER: [&str; 2] = ["goes on", "quick again"];

/// What is known so far.
#[derive(Default)]
pub(super) struct Wires {
    cut: BTreeSet<(usize, usize)>,
    /// When something about the wire between two nodes changed last.
    touched: BTreeMap<(usize, usize), Duration>,
    /// Since when each node runs.
    runs: BTreeMap<usize, Duration>,
    /// Those that do not run for now.
    stopped: BTreeSet<usize>,
    departed: BTreeSet<usize>,
    /// How many troubles of its own a node has, and when that changed last.
    troubles: BTreeMap<usize, (u32, Duration)>,
    /// When anything of all that changed last.
    changed: Duration,
}

impl Wires {
    /// Takes what happened.
    pub(super) fn hear(&mut self, at: Duration, event: &Event) {
        match event {
            Event::Wire { from, to, cut } => {
                let has_changed = if *cut { self.cut.insert((*from, *to)) } else { self.cut.remove(&(*from, *to)) };
                if !has_changed {
                    return;
                }
                self.touched.insert((*from.min(to), *from.max(to)), at);
            }
            Event::NodeStarted { node, .. } => {
                self.runs.insert(*node, at);
                self.stopped.remove(node);
            }
            Event::NodeStopped { node } => {
                self.runs.remove(node);
                if !self.departed.contains(node) {
                    self.stopped.insert(*node);
                }
            }
            Event::Departed { node } => drop(self.departed.insert(*node)),
            Event::Trouble { node, what } if OWN.contains(what) => {
                let (now, last) = self.troubles.entry(*node).or_default();
                (*now, *last) = (*now + 1, at);
            }
            Event::Trouble { node, what } if OWN_OVER.contains(what) => {
                let (now, last) = self.troubles.entry(*node).or_default();
                (*now, *last) = (now.saturating_sub(1), at);
            }
            _ => return,
        }
        self.changed = at;
    }

    /// Returns since when nothing has changed.
    pub(super) fn calm_since(&self) -> Duration {
        self.changed
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        self.runs.keys().copied()
    }

    /// Says whether a node has run without a trouble of its own since then.
    pub(super) fn is_well(&self, node: usize, since: Duration) -> bool {
        self.runs.get(&node).is_some_and(|at| *at <= since)
            && self.troubles.get(&node).is_none_or(|(now, last)| *now == 0 && *last <= since)
    }

    /// Says whether the wire between two nodes has been whole in both ways since then.
    pub(super) fn is_whole(&self, one: usize, other: usize, since: Duration) -> bool {
        let is_cut = self.cut.contains(&(one, other)) || self.cut.contains(&(other, one));
        !is_cut && self.touched.get(&(one.min(other), one.max(other))).is_none_or(|at| *at <= since)
    }

    /// Says whether a third node, and the wires to it, have led from one to the other since then.
    pub(super) fn is_around(&self, one: usize, other: usize, since: Duration) -> bool {
        let leads = |third: usize| self.is_well(third, since) && self.is_whole(one, third, since) && self.is_whole(third, other, since);
        self.running().any(|third| third != one && third != other && leads(third))
    }

    /// Says whether a node was well, and all that run have reached it since then, be it through a third node.
    pub(super) fn is_reached(&self, node: usize, since: Duration) -> bool {
        let reaches = |other| other == node || self.is_whole(node, other, since) || self.is_around(node, other, since);
        self.is_well(node, since) && self.running().all(reaches)
    }

    /// Says whether all run and have reached each other since then.
    pub(super) fn is_connected(&self, since: Duration) -> bool {
        self.stopped.is_empty() && self.running().all(|node| self.is_reached(node, since))
    }
}
