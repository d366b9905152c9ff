//! All shards of a node on one log.
//!
//! Owned by one thread, which writes batches ([`Shards::append`]) and tells who is to be sent what through [`Replicas`].
//! Reading a record needs no owner: [`Slot::position`] says where it stands, and [`Shards::log`] is a handle that anyone may use.
//!
//! Caveats: a node whose log lost its middle to damage does not start; the operator must let it join as a new one.

mod collect;
mod found;
#[cfg(test)]
mod tests;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use shoal_state::model::{Shard, ShardChange};
use shoal_state::{NodeId, ShardId};
use shoal_storage::log::{self, Log, Position};

use self::found::{Found, read_kept, write_kept};
use self::words::encode;
pub use self::words::{Ack, Append, Draft, Replicas, ShardView, StoreError};
use super::index::{Index, Release, Slot, Space};
use super::record::{HEADER_BYTES, Header, Kind};
use super::replica::{Counted, Mark, Replica, Role};

/// How the shards of a node are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// The machine was started anew since the shards were last open: unsynced records may be missing.
    pub machine_restarted: bool,
    /// Size of a segment of the log.
    pub segment_bytes: u64,
    /// On how many nodes records must be to count.
    pub min_copies: usize,
}

struct One {
    replica: Replica,
    index: Index,
    /// Where the log shows how far the shard has come.
    tail_at: Position,
    /// Synced here up to this index.
    synced: u64,
}

/// The shards of this node.
pub struct Shards {
    log: Log,
    me: NodeId,
    shards: BTreeMap<ShardId, One>,
    space: Space,
    releasing: Option<Release>,
    /// Shards of which something is written here and not yet given to a sync.
    unsynced: BTreeSet<ShardId>,
    /// Shards of other homes that were synced here since their homes were told.
    untold: BTreeSet<ShardId>,
    /// The nodes that are sent each new record of a shard: they have all before it.
    fed: BTreeSet<(NodeId, ShardId)>,
    peers: Option<Box<dyn Replicas>>,
}

impl std::fmt::Debug for Shards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shards").field("me", &self.me).field("log", &self.log).finish_non_exhaustive()
    }
}

impl Shards {
    /// Opens the log in `dir` and finds what lives in it. `seen` is called for each record in the order of the log, live or not:
    /// with it a caller can keep what it needs of the bodies without reading them again.
    pub fn open(
        dir: &Path,
        options: &Options,
        peers: Option<Box<dyn Replicas>>,
        mut seen: impl FnMut(&Header, &[u8]),
    ) -> Result<Self, StoreError> {
        let log = Log::open(dir, log::Options { segment_bytes: options.segment_bytes })?;
        let mut space = Space::new(options.segment_bytes);
        let mut found: BTreeMap<ShardId, Found> = BTreeMap::new();
        for record in log.scan(Position::START) {
            let (position, bytes) = record?;
            let header = Header::decode(&bytes).map_err(|source| StoreError::Record { position, source })?;
            let slot = Slot { header, position, bytes: length(bytes.len()) };
            let taken = found.entry(header.shard).or_default().take(slot, &bytes[HEADER_BYTES..], &mut space);
            taken.map_err(|source| StoreError::Record { position, source })?;
            seen(&header, &bytes[HEADER_BYTES..]);
        }
        let shards = ShardId::all().map(|id| {
            let Found { tail, began, index, tail_at } = found.remove(&id).unwrap_or_default();
            let mut replica = Replica::new(id, options.node, tail, began, options.machine_restarted);
            replica.require_copies(options.min_copies);
            // Opening the log has synced what it holds.
            (id, One { replica, index, tail_at, synced: tail.index })
        });
        let (shards, unsynced, untold, fed) = (shards.collect(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        Ok(Self { log, me: options.node, shards, space, releasing: None, unsynced, untold, fed, peers })
    }

    /// Returns the log, for reading and syncing.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn one(&self, shard: ShardId) -> &One {
        self.shards.get(&shard).expect("every shard is there from open on")
    }

    fn one_mut(&mut self, shard: ShardId) -> &mut One {
        self.shards.get_mut(&shard).expect("every shard is there from open on")
    }

    /// Returns the rules' view of a shard.
    pub fn replica(&self, shard: ShardId) -> &Replica {
        &self.one(shard).replica
    }

    /// Returns the live records of a shard.
    pub fn index_of(&self, shard: ShardId) -> &Index {
        &self.one(shard).index
    }

    /// Applies the members that Raft decided for a shard, and returns what this node is to it now.
    ///
    /// At the home of a new epoch this writes the record that begins it.
    pub fn adopt(&mut self, shard: ShardId, config: Shard) -> Result<Role, StoreError> {
        let epoch = self.one(shard).replica.config().epoch;
        let begins = self.one_mut(shard).replica.adopt(config);
        let replica = &self.shards[&shard].replica;
        let (role, changed) = (replica.role(), replica.config().epoch != epoch);
        if changed {
            let sent_to: BTreeSet<NodeId> = if role == Role::Home { replica.sent_to().collect() } else { BTreeSet::new() };
            self.fed.retain(|(node, of)| *of != shard || sent_to.contains(node));
        }
        if begins {
            self.append(&[Draft { shard, kind: Kind::Began, owner: 0, body: [Bytes::new(), Bytes::new()] }])?;
        }
        self.tell_synced(shard);
        if changed && role == Role::Follower {
            // The home is to hear of what was synced before.
            self.untold.insert(shard);
        }
        if changed && role == Role::Home {
            // What they said in the epoch before may be on its way, and says nothing of this one.
            self.ask_how_far(shard);
        }
        Ok(role)
    }

    fn ask_how_far(&mut self, shard: ShardId) {
        let (Some(peers), replica) = (&mut self.peers, &self.shards[&shard].replica) else { return };
        for node in replica.sent_to().filter(|node| self.fed.contains(&(*node, shard))) {
            peers.send(node, Append { shard, epoch: replica.config().epoch, after: replica.tail(), records: Vec::new() });
        }
    }

    /// Writes records of shards that are at home here, in order, and sends them on. They are readable at once.
    pub fn append(&mut self, drafts: &[Draft]) -> Result<Vec<Mark>, StoreError> {
        let mut marks = Vec::with_capacity(drafts.len());
        let mut records = Vec::with_capacity(drafts.len());
        let mut before = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let replica = &mut self.one_mut(draft.shard).replica;
            before.push(replica.tail());
            let mark = replica.propose()?;
            marks.push(mark);
            records.push(encode(draft, mark));
        }
        self.write(&records)?;
        for ((draft, after), record) in drafts.iter().zip(before).zip(records) {
            self.send(draft.shard, after, record);
        }
        Ok(marks)
    }

    /// Writes records, takes them into the index and notes how far this node has come.
    fn write(&mut self, records: &[Bytes]) -> Result<(), StoreError> {
        let slices: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
        let positions = self.log.append(&slices)?;
        for (record, position) in records.iter().zip(positions) {
            let header = Header::decode(record).map_err(|source| StoreError::Record { position, source })?;
            let slot = Slot { header, position, bytes: length(record.len()) };
            let me = self.me;
            let one = self.shards.get_mut(&header.shard).expect("every shard is there from open on");
            one.index.take(slot, &mut self.space);
            if header.kind == Kind::Kept {
                let kept = read_kept(&record[HEADER_BYTES..]).map_err(|source| StoreError::Record { position, source })?;
                one.index.keep_only(header.mark.index, &kept, &mut self.space);
                continue;
            }
            one.tail_at = position;
            let (epoch, index) = (one.replica.config().epoch, header.mark.index);
            self.unsynced.insert(header.shard);
            one.replica.acked(me, epoch, Counted { written: index, synced: 0 })?;
        }
        Ok(())
    }

    fn send(&mut self, shard: ShardId, after: Mark, record: Bytes) {
        let Some(peers) = &mut self.peers else { return };
        let replica = &self.shards[&shard].replica;
        for node in replica.sent_to().filter(|node| self.fed.contains(&(*node, shard))) {
            peers.send(node, Append { shard, epoch: replica.config().epoch, after, records: vec![record.clone()] });
        }
    }

    /// Takes records from the shard's home. Returns how far this node has come: the acknowledgement.
    pub fn receive(&mut self, append: &Append) -> Result<Ack, StoreError> {
        let headers: Result<Vec<_>, _> = append.records.iter().map(|record| Header::decode(record)).collect();
        let headers = headers.map_err(|source| StoreError::Record { position: self.log.end(), source })?;
        let (kept, sent): (Vec<_>, Vec<_>) = headers.iter().zip(&append.records).partition(|(header, _)| header.kind == Kind::Kept);
        let marks: Vec<Mark> = sent.iter().map(|(header, _)| header.mark).collect();
        let one = self.one_mut(append.shard);
        let received = one.replica.receive(append.epoch, append.after, &marks)?;
        let mut records = Vec::new();
        if let Some(last) = received.cut {
            one.synced = one.synced.min(last);
            let mark = Mark { epoch: append.epoch, index: last };
            let cut = Draft { shard: append.shard, kind: Kind::Cut, owner: 0, body: [Bytes::new(), Bytes::new()] };
            records.push(encode(&cut, mark));
        }
        records.extend(sent[received.take..].iter().map(|(_, record)| (*record).clone()));
        self.write(&records)?;
        for (header, record) in kept {
            let listed = read_kept(&record[HEADER_BYTES..]).map_err(|source| StoreError::Record { position: self.log.end(), source })?;
            if self.one(append.shard).index.has_others(header.mark.index, &listed) {
                self.write(std::slice::from_ref(record))?;
            }
        }
        Ok(self.ack(append.shard))
    }

    fn ack(&self, shard: ShardId) -> Ack {
        let One { replica, synced, .. } = self.one(shard);
        let written = replica.shared();
        Ack { shard, epoch: replica.config().epoch, far: Counted { written, synced: written.min(*synced) } }
    }

    /// Takes what was synced here of shards that are at home at a node, and that it was not told.
    pub fn take_untold(&mut self, home: NodeId) -> Vec<Ack> {
        let of_home: Vec<ShardId> = self.untold.iter().copied().filter(|shard| self.one(*shard).replica.config().home == home).collect();
        for shard in &of_home {
            self.untold.remove(shard);
        }
        of_home.into_iter().map(|shard| self.ack(shard)).collect()
    }

    /// Notes that what was sent to a node may not have come: it is sent nothing more until it is fed.
    pub fn gone(&mut self, node: NodeId) {
        self.fed.retain(|(fed, _)| *fed != node);
        for one in self.shards.values_mut() {
            one.replica.forget(node);
        }
    }

    /// Notes that a node refused records of a shard: it is sent nothing more of it until it is fed.
    pub fn starved(&mut self, node: NodeId, shard: ShardId) {
        self.fed.remove(&(node, shard));
        self.one_mut(shard).replica.forget(node);
    }

    /// Asks the members to sync what they were sent of these shards.
    pub fn ask_sync(&mut self, shards: &[(ShardId, Mark)]) {
        let Some(peers) = &mut self.peers else { return };
        let nodes: BTreeSet<NodeId> = shards.iter().flat_map(|(shard, _)| self.shards[shard].replica.sent_to()).collect();
        for node in nodes {
            peers.sync(node);
        }
    }

    /// Returns what is known of a shard.
    pub fn view(&self, shard: ShardId) -> ShardView {
        let replica = &self.one(shard).replica;
        let fed: Vec<NodeId> = replica.sent_to().filter(|node| self.fed.contains(&(*node, shard))).collect();
        let caught_up = fed.iter().copied().filter(|node| replica.has_all_that_counts(*node)).collect();
        let (config, role) = (replica.config().clone(), replica.role());
        ShardView { shard, config, role, tail: replica.tail(), asked: replica.asked(), fed, caught_up }
    }

    /// Returns what is known of every shard whose members this node was told.
    pub fn views(&self) -> Vec<ShardView> {
        let told = self.shards.iter().filter(|(_, one)| one.replica.config().epoch > 0);
        told.map(|(shard, _)| self.view(*shard)).collect()
    }

    /// Notes that the home is about to ask Raft for a change in this epoch.
    pub fn ask(&mut self, shard: ShardId, epoch: u64, change: ShardChange) -> Result<(), StoreError> {
        Ok(self.one_mut(shard).replica.ask(epoch, change)?)
    }

    /// Notes that Raft refused the change that was asked for in this epoch. Returns what counts now.
    pub fn change_refused(&mut self, shard: ShardId, epoch: u64) -> Counted {
        let replica = &mut self.one_mut(shard).replica;
        if replica.config().epoch == epoch {
            replica.refused();
        }
        replica.counted()
    }

    /// Notes how far another node has come with a shard. Returns what counts now.
    pub fn acked(&mut self, from: NodeId, shard: ShardId, epoch: u64, far: Counted) -> Result<Counted, StoreError> {
        Ok(self.one_mut(shard).replica.acked(from, epoch, far)?)
    }

    /// Reads the records that a node lacks whose log ends at `tail`, up to `bytes_max` bytes and at least one.
    ///
    /// The node cuts its log back by itself, because the first of them follows the last that both have. Once these are the last,
    /// the node is sent each new record: what is returned must reach it before those.
    pub fn feed(&mut self, to: NodeId, shard: ShardId, tail: Mark, bytes_max: u64) -> Result<Append, StoreError> {
        let One { replica, index, .. } = &self.shards[&shard];
        let common = replica.common_with(tail);
        let before = index.last_up_to(common);
        let epoch = before.map_or(0, |slot| slot.header.mark.epoch);
        let mut append = Append { shard, epoch: replica.config().epoch, after: Mark { epoch, index: common }, records: Vec::new() };
        let (mut bytes, mut last) = (0, common);
        for slot in index.after(common) {
            if bytes > 0 && bytes + u64::from(slot.bytes) > bytes_max {
                break;
            }
            bytes += u64::from(slot.bytes);
            append.records.push(self.log.read(slot.position)?);
            last = slot.header.mark.index;
        }
        let all = index.after(last).next().is_none();
        if all && index.has_objects() {
            // From here on it is sent what dies; what died before it hears now.
            let mark = Mark { epoch: append.epoch, index: last };
            let body = write_kept(index.iter().map(|slot| slot.header.mark.index).filter(|index| *index <= last));
            append.records.push(encode(&Draft { shard, kind: Kind::Kept, owner: 0, body: [body, Bytes::new()] }, mark));
        }
        if all && replica.role() == Role::Home && replica.sent_to().any(|node| node == to) {
            self.fed.insert((to, shard));
        }
        Ok(append)
    }

    /// Says whether something is written here and not synced, nor given to a sync by [`Self::take_unsynced`].
    pub fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Returns what is written here and not synced, by shard. After a sync that began later, give it to [`Self::synced`].
    pub fn take_unsynced(&mut self) -> Vec<(ShardId, Mark)> {
        let unsynced = std::mem::take(&mut self.unsynced);
        unsynced.into_iter().map(|shard| (shard, self.one(shard).replica.tail())).collect()
    }

    /// Notes that this node has synced a shard up to this record, unless it was cut since. Returns what counts now.
    pub fn synced(&mut self, shard: ShardId, mark: Mark) -> Counted {
        let one = self.one_mut(shard);
        if one.replica.has(mark) {
            one.synced = one.synced.max(mark.index);
            if one.replica.role() == Role::Follower {
                self.untold.insert(shard);
            }
        }
        self.tell_synced(shard)
    }

    fn tell_synced(&mut self, shard: ShardId) -> Counted {
        let me = self.me;
        let one = self.one_mut(shard);
        let (epoch, far) = (one.replica.config().epoch, Counted { written: one.synced, synced: one.synced });
        one.replica.acked(me, epoch, far).unwrap_or_else(|_| one.replica.counted())
    }
}

fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("the log takes no records of 4 GiB")
}
