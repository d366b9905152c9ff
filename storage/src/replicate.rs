//! Which nodes keep a chunk: rendezvous hashing, pure.
//!
//! Every node ranks the members of the cluster for a chunk in the same way, with no table: the first ones are its *homes*.
//! A member that comes takes over just the chunks for which it ranks first, and one that goes leaves its chunks to the next
//! in their ranks; nothing else moves.
//!
//! The ranks are of the members that the state names, not of those that are up: else a node that is away for a minute would
//! move everything twice. Chunks rank by themselves, not by the tree or blob that they are of: a build step adds a little to a
//! large tree, and only that little has to go anywhere.

use shoal_state::{Digest, NodeId};

/// The members that may keep chunks, and how many of them keep each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// Each member with the number that it ranks by.
    members: Vec<(u64, NodeId)>,
    copies: usize,
}

impl Placement {
    /// Places `copies` of each chunk, one at least, on members in whatever order.
    pub fn new(members: impl IntoIterator<Item = NodeId>, copies: usize) -> Self {
        let mut members: Vec<_> = members.into_iter().map(|node| (number(&Digest::of(&node.bits().to_le_bytes())), node)).collect();
        members.sort_unstable();
        members.dedup();
        Self { members, copies: copies.max(1) }
    }

    /// Returns how many nodes keep each chunk: fewer than was asked for where there are not so many.
    pub fn copies(&self) -> usize {
        self.copies.min(self.members.len())
    }

    /// Returns all members, the first for a chunk first.
    pub fn ranked(&self, chunk: &Digest) -> Vec<NodeId> {
        let mut ranked: Vec<(u64, NodeId)> = self.scores(chunk).collect();
        ranked.sort_unstable_by(|one, other| other.cmp(one));
        ranked.into_iter().map(|(_, node)| node).collect()
    }

    /// Returns the nodes that are to keep a chunk, the first first.
    pub fn homes(&self, chunk: &Digest) -> Vec<NodeId> {
        let mut ranked = self.ranked(chunk);
        ranked.truncate(self.copies);
        ranked
    }

    /// Says whether a node is to keep a chunk.
    pub fn is_home(&self, node: NodeId, chunk: &Digest) -> bool {
        let Some(own) = self.scores(chunk).find(|(_, member)| *member == node) else { return false };
        self.scores(chunk).filter(|other| *other > own).count() < self.copies
    }

    fn scores(&self, chunk: &Digest) -> impl Iterator<Item = (u64, NodeId)> {
        let chunk = number(chunk);
        self.members.iter().map(move |(member, node)| (mixed(chunk ^ member), *node))
    }
}

/// Returns the first eight bytes of a digest: they are as random as all of it.
fn number(digest: &Digest) -> u64 {
    let (first, _) = digest.as_bytes().split_first_chunk().expect("a digest has more than eight bytes");
    u64::from_le_bytes(*first)
}

/// Spreads what differs in one bit over all of them (the finalizer of splitmix64). It decides who keeps what in every cluster, so
/// it never changes.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    const CHUNKS: u32 = 20_000;

    fn node(number: u128) -> NodeId {
        NodeId::from_random(number)
    }

    fn chunks() -> impl Iterator<Item = Digest> {
        (0..CHUNKS).map(|number| Digest::of(&number.to_le_bytes()))
    }

    fn of(members: impl IntoIterator<Item = u128>, copies: usize) -> Placement {
        Placement::new(members.into_iter().map(node), copies)
    }

    #[test]
    fn every_node_keeps_its_share() {
        for (members, copies) in [(3, 2), (5, 2), (20, 3)] {
            let placement = of(0..members, copies);
            let mut kept = BTreeMap::<NodeId, u32>::new();
            for chunk in chunks() {
                let homes = placement.homes(&chunk);
                assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), copies, "as many nodes as copies");
                homes.into_iter().for_each(|home| *kept.entry(home).or_default() += 1);
            }
            let share = CHUNKS * copies as u32 / members as u32;
            assert_eq!(kept.len(), members as usize);
            for (node, kept) in kept {
                assert!(kept.abs_diff(share) * 10 < share, "{node} keeps {kept}, where {share} would be fair");
            }
        }
    }

    #[test]
    fn whoever_comes_takes_only_what_is_its_own() {
        let (before, after) = (of(0..4, 2), of(0..5, 2));
        let mut moved = 0;
        for chunk in chunks() {
            let (before, after) = (before.homes(&chunk), after.homes(&chunk));
            let new: Vec<_> = after.iter().filter(|home| !before.contains(home)).collect();
            assert!(new.is_empty() || new == [&node(4)], "between those who were there nothing moves");
            moved += new.len() as u32;
        }
        let share = CHUNKS * 2 / 5;
        assert!(moved.abs_diff(share) * 10 < share, "{moved} copies moved, where {share} are the share of the new node");
    }

    #[test]
    fn what_a_lost_node_had_goes_to_the_next_in_rank() {
        let (before, after) = (of(0..4, 2), of([0, 1, 3], 2));
        for chunk in chunks() {
            let left: Vec<_> = before.ranked(&chunk).into_iter().filter(|home| *home != node(2)).collect();
            assert_eq!(after.ranked(&chunk), left);
        }
    }

    #[test]
    fn the_order_in_which_members_are_named_does_not_count_and_all_agree_who_is_home() {
        let (one, other) = (of([3, 1, 2, 0], 2), of([0, 1, 2, 3, 3], 2));
        assert_eq!(one, other);
        for chunk in chunks().take(500) {
            let homes = one.homes(&chunk);
            assert_eq!(homes[..], one.ranked(&chunk)[..2]);
            (0..5).for_each(|number| assert_eq!(one.is_home(node(number), &chunk), homes.contains(&node(number))));
        }
    }

    #[test]
    fn ranks_are_those_of_every_release() {
        let placement = of(0..5, 2);
        let first = |text: &str| placement.homes(&Digest::of(text.as_bytes())).iter().map(|home| home.bits()).collect::<Vec<_>>();
        assert_eq!([first("a"), first("b"), first("c")], [vec![0, 2], vec![0, 2], vec![4, 1]], "else all chunks would move");
    }

    #[test]
    fn where_there_are_fewer_members_than_copies_all_have_all() {
        let placement = of([7], 2);
        assert_eq!((placement.copies(), placement.homes(&Digest::of(b"x"))), (1, vec![node(7)]));
        assert!(placement.is_home(node(7), &Digest::of(b"x")) && !placement.is_home(node(8), &Digest::of(b"x")));
        assert_eq!(of([], 2).homes(&Digest::of(b"x")), []);
        assert_eq!(of([1], 0).copies(), 1);
    }
}
