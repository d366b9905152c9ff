//! A bounded cache of chunks. Pure.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use shoal_state::Digest;

/// Chunks by digest, up to a number of bytes.
///
/// What was read to its end goes first (the kernel has it in its page cache by then), then what was not used for longest.
#[derive(Debug)]
pub(crate) struct Cache {
    bytes_max: usize,
    bytes: usize,
    next: u64,
    chunks: HashMap<Digest, (Rank, Bytes)>,
    ranks: BTreeMap<Rank, Digest>,
}

/// The order in which chunks leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    wanted: bool,
    last_use: u64,
}

impl Cache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, next: 0, chunks: HashMap::new(), ranks: BTreeMap::new() }
    }

    /// Returns a chunk. It is used now.
    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        let bytes = self.chunks.get(digest)?.1.clone();
        self.rank(*digest, true);
        Some(bytes)
    }

    /// Says if a chunk is here, without using it.
    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.chunks.contains_key(digest)
    }

    /// Keeps a chunk and lets others go for it. A chunk that is larger than all of the cache is not kept.
    pub(crate) fn insert(&mut self, digest: Digest, bytes: Bytes) {
        if bytes.len() > self.bytes_max || self.chunks.contains_key(&digest) {
            return;
        }
        self.bytes += bytes.len();
        while self.bytes > self.bytes_max {
            let (_, oldest) = self.ranks.pop_first().expect("bytes are those of chunks");
            let (_, bytes) = self.chunks.remove(&oldest).expect("a ranked chunk is here");
            self.bytes -= bytes.len();
        }
        let rank = self.new_rank(true);
        self.chunks.insert(digest, (rank, bytes));
        self.ranks.insert(rank, digest);
    }

    /// Notes that a chunk was read to its end.
    pub(crate) fn read_to_end(&mut self, digest: Digest) {
        self.rank(digest, false);
    }

    fn new_rank(&mut self, wanted: bool) -> Rank {
        self.next += 1;
        Rank { wanted, last_use: self.next }
    }

    fn rank(&mut self, digest: Digest, wanted: bool) {
        let new = self.new_rank(wanted);
        if let Some((rank, _)) = self.chunks.get_mut(&digest) {
            self.ranks.remove(rank);
            *rank = new;
            self.ranks.insert(new, digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u8) -> (Digest, Bytes) {
        (Digest::of(&[number]), Bytes::from(vec![number; 10]))
    }

    #[test]
    fn what_was_read_to_its_end_goes_first_then_the_oldest() {
        let mut cache = Cache::new(35);
        let chunks: Vec<_> = (0..5).map(chunk).collect();
        chunks[..3].iter().for_each(|(digest, bytes)| cache.insert(*digest, bytes.clone()));
        cache.read_to_end(chunks[1].0);
        assert_eq!(cache.get(&chunks[0].0), Some(chunks[0].1.clone()));
        cache.insert(chunks[3].0, chunks[3].1.clone());
        assert_eq!(chunks.iter().map(|(digest, _)| cache.has(digest)).collect::<Vec<_>>(), [true, false, true, true, false]);
        cache.insert(chunks[4].0, chunks[4].1.clone());
        assert_eq!(chunks.iter().map(|(digest, _)| cache.has(digest)).collect::<Vec<_>>(), [true, false, false, true, true]);
        assert_eq!((cache.bytes, cache.ranks.len()), (30, 3));
    }

    #[test]
    fn a_chunk_larger_than_all_is_not_kept() {
        let mut cache = Cache::new(5);
        cache.insert(chunk(1).0, chunk(1).1);
        assert_eq!((cache.has(&chunk(1).0), cache.bytes), (false, 0));
    }
}
