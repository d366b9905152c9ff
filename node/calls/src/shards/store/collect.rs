//! Space of the log that is given back, and what lives there carried forward before.

use bytes::Bytes;

use super::{Shards, StoreError, length};
use crate::shards::index::{Release, Slot};
use crate::shards::record::{Header, Kind};

impl Shards {
    /// Gives back log space in two steps: what was carried forward the last time is released, then what still lives in a front part
    /// of little worth is carried forward. Calls should be a minute or so apart, so that who still reads at an old place is done.
    ///
    /// Blocks for a sync when something was carried forward.
    pub fn collect(&mut self) -> Result<(), StoreError> {
        if let Some(release) = self.releasing.take() {
            self.log.sync()?;
            self.log.release_before(release.before)?;
            self.space.released(release.before);
        }
        if let Some(release) = self.space.releasable() {
            self.carry_forward(release)?;
            self.releasing = Some(release);
        }
        Ok(())
    }

    fn carry_forward(&mut self, release: Release) -> Result<(), StoreError> {
        let ends = self.shards.iter().filter(|(_, one)| one.replica.tail().index > 0 && one.tail_at < release.before);
        let tails = ends.map(|(id, one)| Header { kind: Kind::Tail, shard: *id, mark: one.replica.tail(), owner: 0 });
        let all = self.shards.values().flat_map(|one| one.index.iter());
        let live: Vec<Slot> = all.filter(|slot| release.live > 0 && slot.position < release.before).collect();
        let mut headers: Vec<Header> = live.iter().map(|slot| slot.header).collect();
        let mut records = Vec::with_capacity(headers.len());
        for slot in &live {
            records.push(self.log.read(slot.position)?);
        }
        for tail in tails {
            headers.push(tail);
            records.push(Bytes::copy_from_slice(&tail.encode()));
        }
        let slices: Vec<&[u8]> = records.iter().map(|record| &record[..]).collect();
        let positions = self.log.append(&slices)?;
        for ((header, record), position) in headers.into_iter().zip(&records).zip(positions) {
            let one = self.shards.get_mut(&header.shard).expect("every shard is there from open on");
            one.index.take(Slot { header, position, bytes: length(record.len()) }, &mut self.space);
            if header.mark == one.replica.tail() {
                one.tail_at = position;
            }
        }
        Ok(())
    }
}
