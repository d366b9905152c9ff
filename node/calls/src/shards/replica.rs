//! The rules for one shard at one node: who may order records, who takes them, when they count. Pure.
//!
//! The home calls [`Replica::propose`] for each record, every member tells the home how far it has written and synced
//! ([`Replica::acked`]), and what all members have counts ([`Replica::counted`]). The other members call
//! [`Replica::receive`]. A change of the members comes from Raft and enters by [`Replica::adopt`].
//!
//! While the home has asked Raft for a change and does not know the answer ([`Replica::ask`]), a record counts only when
//! the members before *and* after the change have it: whichever set turns out to hold, it has everything.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_state::model::{Shard, ShardChange};
use shoal_state::{NodeId, ShardId};

/// The epoch and index of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Mark {
    /// The epoch in which it was ordered.
    pub epoch: u64,
    /// Its place in the shard; the first record is 1.
    pub index: u64,
}

/// How far all members have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counted {
    /// Every member has written the records up to this index.
    pub written: u64,
    /// Every member has synced the records up to this index.
    pub synced: u64,
}

/// How many indexes are left out after a restart of the machine without partners: more than can have been written and not synced.
///
/// Readers may hold cursors at records that are lost; what is written from now on must come after them.
const RESTART_GAP: u64 = 1 << 32;

/// What a node is to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Orders the records.
    Home,
    /// Takes the home's records, as a member or to become one.
    Follower,
    /// Has nothing to do with it.
    Outside,
    /// The machine restarted while the node had partners: it may miss records that they have. As a member it waits to be
    /// asked to join; as the only one, while others are joining, for a new epoch (Promote itself).
    Suspect,
}

/// A no, with what the asker needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refused {
    /// Another node orders the records.
    #[error("{shard}: node {home} is home in epoch {epoch}, not this node")]
    NotHome {
        /// The shard.
        shard: ShardId,
        /// Its home as far as this node knows.
        home: NodeId,
        /// The epoch that this node has applied.
        epoch: u64,
    },
    /// The node may miss records, see [`Role::Suspect`].
    #[error("{shard}: this machine restarted and may miss records; the shard waits for another member")]
    Suspect {
        /// The shard.
        shard: ShardId,
    },
    /// The message is of another epoch than the one this node has applied.
    #[error("{shard}: a message of epoch {epoch} is refused in epoch {current}")]
    Epoch {
        /// The shard.
        shard: ShardId,
        /// The epoch of the message.
        epoch: u64,
        /// The epoch that this node has applied.
        current: u64,
    },
    /// Records are missing between what this node has and what was sent.
    #[error("{shard}: the records begin after {}, and this node has them up to {}", after.index, tail.index)]
    Gap {
        /// The shard.
        shard: ShardId,
        /// What was sent begins after this mark.
        after: Mark,
        /// The last record this node has.
        tail: Mark,
    },
    /// A node that is to join has not said that it has everything that counts.
    #[error("{shard}: node {node} does not have everything that was acknowledged without it")]
    Behind {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// The home asked for a change before and does not know the answer yet.
    #[error("{shard}: another change of its members is not settled")]
    Unsettled {
        /// The shard.
        shard: ShardId,
    },
}

/// What a node does with received records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// First, records after this index are void, if any: another home never had them.
    pub cut: Option<u64>,
    /// Then the records from this one of those received on are written; those before it are here.
    pub take: usize,
}

/// One shard at one node.
#[derive(Debug, Clone)]
pub struct Replica {
    id: ShardId,
    me: NodeId,
    config: Shard,
    suspect: bool,
    /// How many indexes the next record leaves out, unless it begins an epoch.
    skip: u64,
    asked: Option<ShardChange>,
    /// Records count only while so many nodes have all of them.
    min_copies: usize,
    tail: Mark,
    /// Where each epoch began, oldest first: what a rejoining node is compared with.
    began: Vec<Mark>,
    members: BTreeMap<NodeId, Counted>,
    counted: Counted,
    /// Up to where the home of this epoch has shown that it has the same records as this node.
    shared: u64,
}

impl Replica {
    /// Begins with what the log of this node holds: `began` says where each epoch began, oldest first.
    ///
    /// `suspect` says that the machine restarted since, so that unsynced records may be missing.
    pub fn new(id: ShardId, me: NodeId, tail: Mark, began: Vec<Mark>, suspect: bool) -> Self {
        let config = Shard { epoch: 0, home: me, in_sync: Vec::new(), joining: Vec::new() };
        let (asked, members, counted) = (None, BTreeMap::new(), Counted::default());
        Self { id, me, config, suspect, skip: 0, asked, min_copies: 1, tail, began, members, counted, shared: 0 }
    }

    /// Lets nothing more count while fewer nodes than this have all records: it waits until there are as many.
    pub fn require_copies(&mut self, copies: usize) {
        self.min_copies = copies;
    }

    /// Says whether what this home writes does not count, for want of nodes that have all records.
    pub fn lacks_copies(&self) -> bool {
        self.config.in_sync.len() < self.min_copies
    }

    /// Returns what this node is to the shard.
    pub fn role(&self) -> Role {
        if self.config.epoch == 0 {
            return Role::Outside;
        }
        let member = self.config.in_sync.contains(&self.me);
        if self.suspect && member && self.has_partners() {
            return Role::Suspect;
        }
        match (self.config.home == self.me, member || self.config.joining.contains(&self.me)) {
            (true, _) => Role::Home,
            (false, true) => Role::Follower,
            (false, false) => Role::Outside,
        }
    }

    fn has_partners(&self) -> bool {
        self.config.in_sync.len() > 1 || !self.config.joining.is_empty()
    }

    /// Returns the members as this node knows them.
    pub fn config(&self) -> &Shard {
        &self.config
    }

    /// Returns the last record this node has.
    pub fn tail(&self) -> Mark {
        self.tail
    }

    /// Returns up to where this node surely has what the home of this epoch has: what it may acknowledge. Behind it there may be
    /// records of a home before.
    pub fn shared(&self) -> u64 {
        self.shared
    }

    /// Forgets how far a node has come: it may have started anew.
    pub fn forget(&mut self, node: NodeId) {
        if node != self.me {
            self.members.remove(&node);
        }
    }

    /// Returns how far the members have come, as far as the home knows.
    pub fn counted(&self) -> Counted {
        self.counted
    }

    /// Applies the members that Raft decided. Older ones are ignored.
    ///
    /// Returns true when this node is home of a new epoch: it must then write a record that says so
    /// ([`super::Kind::Began`]) before any other.
    pub fn adopt(&mut self, config: Shard) -> bool {
        if config.epoch <= self.config.epoch {
            return false;
        }
        let was = std::mem::replace(&mut self.config, config);
        self.asked = None;
        self.shared = 0;
        // Whoever joins anew is compared with the home's log first; and when nobody else has records, none has more.
        if self.suspect && !(self.config.in_sync.contains(&self.me) && self.has_partners()) {
            self.suspect = false;
            self.skip = if self.config.in_sync.contains(&self.me) { RESTART_GAP } else { 0 };
        }
        if self.role() != Role::Home {
            self.members.clear();
            return false;
        }
        self.keep_members(was.home == self.me && was.epoch > 0);
        if self.config.in_sync == [self.me] && (was.home != self.me || was.epoch == 0) {
            // A promoted member commits what it has. A home that starts again with partners waits for what they say: its last
            // records may not have reached them.
            self.counted.written = self.tail.index;
        }
        self.count();
        self.tail.epoch < self.config.epoch
    }

    /// Keeps what is known of those who stay; a new home knows only of itself.
    fn keep_members(&mut self, stays_home: bool) {
        if !stays_home {
            self.members.clear();
            self.members.insert(self.me, Counted { written: self.tail.index, synced: 0 });
        }
        let config = &self.config;
        self.members.retain(|node, _| config.in_sync.contains(node) || config.joining.contains(node));
    }

    /// Orders the next record: returns its mark, or why this node may not.
    pub fn propose(&mut self) -> Result<Mark, Refused> {
        match self.role() {
            Role::Home => {}
            Role::Suspect => return Err(Refused::Suspect { shard: self.id }),
            Role::Follower | Role::Outside => {
                return Err(Refused::NotHome { shard: self.id, home: self.config.home, epoch: self.config.epoch });
            }
        }
        let mut index = self.tail.index + 1;
        // Between two epochs there is no gap: where the older one ends is told by where the next one begins.
        if self.tail.epoch == self.config.epoch {
            index += std::mem::take(&mut self.skip);
        }
        self.take(Mark { epoch: self.config.epoch, index });
        Ok(self.tail)
    }

    /// Returns the index of the next record, once the epoch has begun.
    pub fn next_index(&self) -> u64 {
        self.tail.index + 1 + self.skip
    }

    fn take(&mut self, mark: Mark) {
        if self.tail.epoch < mark.epoch {
            self.began.push(mark);
        }
        self.tail = mark;
    }

    /// Notes how far a node has come, this one included. Returns what counts now.
    pub fn acked(&mut self, from: NodeId, epoch: u64, far: Counted) -> Result<Counted, Refused> {
        self.check_epoch(epoch)?;
        if self.role() == Role::Home {
            let member = self.members.entry(from).or_default();
            member.written = member.written.max(far.written);
            member.synced = member.synced.max(far.synced);
            self.count();
        }
        Ok(self.counted)
    }

    /// Decides what to do with records of the home that follow `after`.
    pub fn receive(&mut self, epoch: u64, after: Mark, records: &[Mark]) -> Result<Received, Refused> {
        self.check_epoch(epoch)?;
        if self.role() != Role::Follower {
            return Err(Refused::NotHome { shard: self.id, home: self.config.home, epoch });
        }
        let cut = self.differs_from(after, records);
        if let Some(last) = cut {
            self.cut(last);
        }
        if after.index > self.tail.index {
            return Err(Refused::Gap { shard: self.id, after, tail: self.tail });
        }
        let take = records.iter().take_while(|mark| mark.index <= self.tail.index).count();
        for mark in &records[take..] {
            self.take(*mark);
        }
        self.shared = self.shared.max(records.last().map_or(after.index, |mark| mark.index));
        Ok(Received { cut, take })
    }

    /// Returns the last index that this node has in common with the home, if it has more than that.
    fn differs_from(&self, after: Mark, records: &[Mark]) -> Option<u64> {
        let sent = std::iter::once(&after).chain(records).filter(|mark| mark.index > 0);
        let other = |mark: &&Mark| mark.index <= self.tail.index && !self.has(**mark);
        sent.clone().find(other).map(|mark| mark.index - 1)
    }

    /// Says whether this node has the record with this mark.
    pub fn has(&self, mark: Mark) -> bool {
        mark.index <= self.tail.index && self.epoch_at(mark.index) == mark.epoch
    }

    fn mark_at(&self, index: u64) -> Mark {
        Mark { epoch: self.epoch_at(index), index }
    }

    fn epoch_at(&self, index: u64) -> u64 {
        self.began.iter().rev().find(|began| began.index <= index).map_or(0, |began| began.epoch)
    }

    /// Forgets the records after `last`.
    fn cut(&mut self, last: u64) {
        self.tail = self.mark_at(last);
        self.shared = self.shared.min(last);
        self.began.retain(|began| began.index <= last);
    }

    /// Returns the last index that a node whose log ends at `tail` has in common with this home: it must cut its log
    /// back to there, and is sent what follows.
    ///
    /// Records of one epoch are ordered by one home, so that two logs are equal up to where one of them leaves the epoch.
    pub fn common_with(&self, tail: Mark) -> u64 {
        let next = self.began.iter().find(|began| began.epoch > tail.epoch);
        let end_of_epoch = next.map_or(self.tail.index, |next| next.index - 1);
        tail.index.min(end_of_epoch)
    }

    /// Returns the change that was asked for and is not settled.
    pub fn asked(&self) -> Option<ShardChange> {
        self.asked
    }

    /// Says whether a node has told that it has written and synced everything that counts. Only then may it join: what counted
    /// without it would else be lost with the others.
    pub fn has_all_that_counts(&self, node: NodeId) -> bool {
        let far = self.members.get(&node).copied().unwrap_or_default();
        far.written >= self.counted.written && far.synced >= self.counted.synced
    }

    /// Notes that the home is about to ask Raft for a change in this epoch. The same change may be asked for again.
    pub fn ask(&mut self, epoch: u64, change: ShardChange) -> Result<(), Refused> {
        self.check_epoch(epoch)?;
        if self.asked == Some(change) {
            return Ok(());
        }
        if self.asked.is_some() {
            return Err(Refused::Unsettled { shard: self.id });
        }
        if let ShardChange::Join(node) = change
            && !self.has_all_that_counts(node)
        {
            return Err(Refused::Behind { shard: self.id, node });
        }
        self.asked = Some(change);
        Ok(())
    }

    /// Notes that Raft refused the change, and will not make it any more.
    pub fn refused(&mut self) {
        self.asked = None;
        self.count();
    }

    /// Returns the nodes that must have a record before it counts.
    pub fn must_have(&self) -> Vec<NodeId> {
        let mut nodes = self.config.in_sync.clone();
        if let Some(ShardChange::Join(node)) = self.asked
            && !nodes.contains(&node)
        {
            nodes.push(node);
        }
        nodes
    }

    /// Returns the nodes besides this home without which nobody can be home of a later epoch.
    pub fn witnesses(&self) -> Vec<NodeId> {
        let mut nodes = if self.role() == Role::Home { self.must_have() } else { Vec::new() };
        nodes.retain(|node| *node != self.me);
        nodes
    }

    /// Says whether this node has acknowledged nothing as the home of a later epoch than this, nor will before it hears of one. Its
    /// records tell of epochs that it forgot when it started anew.
    pub fn vouches_for(&self, epoch: u64) -> bool {
        let known = self.config.epoch > 0 && self.role() != Role::Suspect;
        known && self.config.epoch <= epoch && self.tail.epoch <= epoch
    }

    /// Returns the nodes besides this one that are sent every record.
    pub fn sent_to(&self) -> impl Iterator<Item = NodeId> {
        let nodes = self.config.in_sync.iter().chain(&self.config.joining);
        nodes.copied().filter(|node| *node != self.me)
    }

    fn count(&mut self) {
        if self.lacks_copies() {
            return;
        }
        let nodes = self.must_have();
        let far = |node: &NodeId| self.members.get(node).copied().unwrap_or_default();
        let written = nodes.iter().map(|node| far(node).written).min().unwrap_or(0);
        let synced = nodes.iter().map(|node| far(node).synced).min().unwrap_or(0);
        self.counted.written = self.counted.written.max(written);
        self.counted.synced = self.counted.synced.max(synced);
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), Refused> {
        if epoch == self.config.epoch {
            return Ok(());
        }
        Err(Refused::Epoch { shard: self.id, epoch, current: self.config.epoch })
    }
}
