//! How files and blobs are cut into chunks, and the list that names the chunks of one. Pure.
//!
//! Chunks are cut at fixed bounds from the beginning of the file, so the bytes of any range lie in chunks whose
//! numbers follow from the offset alone.

use std::ops::Range;

use shoal_state::Digest;

/// Length of every chunk of a file but the last.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The chunks of a file or a blob, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct List {
    /// Length of the whole.
    pub size: u64,
    /// One digest for each [`CHUNK_BYTES`] begun.
    pub chunks: Vec<Digest>,
}

/// Bytes that are not a list of chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("these {bytes} bytes are not a list of chunks")]
pub struct NotAList {
    bytes: usize,
}

const MAGIC: &[u8; 8] = b"SHOALCL1";

impl List {
    /// Returns the list as bytes: what a store keeps of it.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 32 * self.chunks.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.size.to_le_bytes());
        self.chunks.iter().for_each(|digest| bytes.extend_from_slice(digest.as_bytes()));
        bytes
    }

    /// Reads what [`Self::encode`] returned.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAList> {
        let not_a_list = NotAList { bytes: bytes.len() };
        let rest = bytes.strip_prefix(MAGIC).ok_or(not_a_list.clone())?;
        let (size, rest) = rest.split_first_chunk().ok_or(not_a_list.clone())?;
        let size = u64::from_le_bytes(*size);
        let (chunks, rest) = rest.as_chunks();
        if !rest.is_empty() || chunks.len() as u64 != count(size) {
            return Err(not_a_list);
        }
        Ok(Self { size, chunks: chunks.iter().map(|bytes| Digest::from_bytes(*bytes)).collect() })
    }
}

/// Returns how many chunks a file of this size has.
pub fn count(size: u64) -> u64 {
    size.div_ceil(CHUNK_BYTES as u64)
}

/// Returns the length of chunk `number` of a file of this size.
pub fn length(size: u64, number: u64) -> usize {
    let start = number.saturating_mul(CHUNK_BYTES as u64);
    size.saturating_sub(start).min(CHUNK_BYTES as u64) as usize
}

/// A part of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Which chunk of the file.
    pub number: u64,
    /// Which bytes of the chunk.
    pub bytes: Range<usize>,
}

/// Returns the pieces that make up `range` of a file, cut to its size, in order.
pub fn pieces(size: u64, range: Range<u64>) -> impl Iterator<Item = Piece> {
    let whole = CHUNK_BYTES as u64;
    let end = range.end.min(size);
    let start = range.start.min(end);
    (start / whole..count(end)).filter(move |_| start < end).map(move |number| {
        let first = number * whole;
        let bytes = (start.saturating_sub(first)) as usize..(end - first).min(whole) as usize;
        Piece { number, bytes }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_range_over_a_bound_takes_both_sides() {
        let size = 2 * CHUNK_BYTES as u64 + 10;
        let bound = CHUNK_BYTES as u64;
        let found: Vec<_> = pieces(size, bound - 1..bound + 2).collect();
        let expected = [Piece { number: 0, bytes: CHUNK_BYTES - 1..CHUNK_BYTES }, Piece { number: 1, bytes: 0..2 }];
        assert_eq!(found, expected);
        assert_eq!((count(size), length(size, 2), length(size, 3)), (3, 10, 0));
        assert_eq!((count(0), pieces(0, 0..9).count(), pieces(9, 4..4).count()), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn pieces_cover_the_range_once(size in 0..5_000_000u64, start in 0..6_000_000u64, length in 0..6_000_000u64) {
            let end = start + length;
            let mut at = start.min(size);
            for piece in pieces(size, start..end) {
                prop_assert_eq!(piece.number * CHUNK_BYTES as u64 + piece.bytes.start as u64, at);
                prop_assert!(!piece.bytes.is_empty() && piece.bytes.end <= super::length(size, piece.number));
                at += piece.bytes.len() as u64;
            }
            prop_assert_eq!(at, end.min(size).max(start.min(size)));
        }

        #[test]
        fn a_list_is_read_as_written(size in 0..20_000_000u64) {
            let chunks = (0..count(size)).map(|number| Digest::of(&number.to_le_bytes())).collect();
            let list = List { size, chunks };
            let bytes = list.encode();
            prop_assert_eq!(List::decode(&bytes), Ok(list));
            prop_assert!(List::decode(&bytes[..bytes.len() - 1]).is_err());
            prop_assert!(List::decode(&[&bytes[..], &[0; 32]].concat()).is_err());
        }
    }
}
