//! How a chunk looks in a pack file, and how an index entry looks. Pure.
//!
//! A pack file begins with 16 bytes (magic, number of the pack, crc32). Records follow, each at a multiple of 8:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | magic |
//! | 4 | 1 if the bytes are compressed with lz4 |
//! | 8..12 | length as stored |
//! | 12..16 | length of the chunk |
//! | 16..48 | digest of the chunk |
//! | 48..52 | crc32 of the 48 bytes before |
//! | 56.. | the bytes |
//!
//! The digest proves the bytes, so the checksum only has to say where a record begins and ends.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::Digest;

use super::OBJECT_BYTES_MAX;
use super::stored::{Proven, Stored};

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = 56;

/// Length of the header of a pack file.
pub(super) const PACK_HEADER_BYTES: usize = 16;

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

const PACK_MAGIC: [u8; 8] = *b"SHOALPK1";
const MAGIC: [u8; 4] = *b"SHCK";

/// Returns the first bytes of a pack file.
pub(super) fn pack_header(pack: u32) -> [u8; PACK_HEADER_BYTES] {
    let mut bytes = [0; PACK_HEADER_BYTES];
    bytes[..8].copy_from_slice(&PACK_MAGIC);
    bytes[8..12].copy_from_slice(&pack.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) digest: Digest,
    pub(super) lz4: bool,
    /// Length as stored.
    pub(super) stored_bytes: u32,
    /// Length of the chunk.
    pub(super) plain_bytes: u32,
}

impl Header {
    /// Returns the header of a chunk that is stored as these bytes, whose lengths were checked.
    pub(super) fn new(digest: Digest, lz4: bool, stored: &[u8], plain: &[u8]) -> Self {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("the length of a chunk was checked");
        Self { digest, lz4, stored_bytes: length(stored), plain_bytes: length(plain) }
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.lz4.into();
        bytes[8..12].copy_from_slice(&self.stored_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.plain_bytes.to_le_bytes());
        bytes[16..48].copy_from_slice(self.digest.as_bytes());
        let crc = crc32fast::hash(&bytes[..48]);
        bytes[48..52].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the header, or nothing where these bytes are none.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[0..4] != MAGIC || number(48) != crc32fast::hash(&bytes[..48]) {
            return None;
        }
        let digest = Digest::from_bytes(bytes[16..48].try_into().expect("32 bytes"));
        let header = Self { digest, lz4: bytes[4] == 1, stored_bytes: number(8), plain_bytes: number(12) };
        (header.stored_bytes.max(header.plain_bytes) as usize <= OBJECT_BYTES_MAX).then_some(header)
    }

    /// Bytes from the beginning of this record to the beginning of the next.
    pub(super) fn stride(&self) -> u64 {
        (HEADER_BYTES + self.stored_bytes as usize).next_multiple_of(ALIGN) as u64
    }
}

/// A record as it is written.
pub(super) struct Record<'a> {
    pub(super) header: Header,
    head: [u8; HEADER_BYTES],
    stored: Cow<'a, [u8]>,
}

impl<'a> Record<'a> {
    fn new(header: Header, stored: Cow<'a, [u8]>) -> Self {
        Self { header, head: header.encode(), stored }
    }

    /// Returns the record of a chunk that was stored before, here or on another node.
    pub(super) fn of(proven: &'a Proven) -> Self {
        let (header, stored) = proven.record();
        Self::new(header, Cow::Borrowed(stored))
    }

    /// Returns the parts of the record, one behind the other: what is long in them is not copied.
    pub(super) fn parts(&self) -> [&[u8]; 3] {
        let padding = self.header.stride() as usize - HEADER_BYTES - self.stored.len();
        [&self.head, &self.stored, &[0; ALIGN][..padding]]
    }
}

/// Makes the record of a chunk, compressed where that helps.
pub(super) fn pack(digest: Digest, plain: &[u8]) -> Record<'_> {
    let compressed = compress(plain);
    let stored = compressed.map_or(Cow::Borrowed(plain), Cow::Owned);
    let header = Header::new(digest, matches!(stored, Cow::Owned(_)), &stored, plain);
    Record::new(header, stored)
}

/// Returns the chunk of a record, or how one sees that the bytes are not those.
pub(super) fn unpack(header: &Header, stored: Bytes) -> Result<Bytes, &'static str> {
    Stored::of(header, stored).prove(header.digest).map(Proven::into_plain)
}

/// Chunks shorter than this are stored as they are.
const COMPRESS_BYTES_MIN: usize = 256;

/// Longer chunks are tried on samples first, so that what is compressed already costs little.
const SAMPLED_BYTES_MIN: usize = 64 << 10;
const SAMPLE_BYTES: usize = 4 << 10;

fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    if plain.len() < COMPRESS_BYTES_MIN || !samples_shrink(plain) {
        return None;
    }
    let compressed = lz4_flex::block::compress(plain);
    helps(compressed.len(), plain.len()).then_some(compressed)
}

fn samples_shrink(plain: &[u8]) -> bool {
    if plain.len() < SAMPLED_BYTES_MIN {
        return true;
    }
    let step = (plain.len() - SAMPLE_BYTES) / 3;
    let sample = |number: usize| &plain[number * step..number * step + SAMPLE_BYTES];
    (0..4).any(|number| helps(lz4_flex::block::compress(sample(number)).len(), SAMPLE_BYTES))
}

/// An eighth less is worth the time of decompressing.
fn helps(compressed_bytes: usize, plain_bytes: usize) -> bool {
    compressed_bytes <= plain_bytes - plain_bytes / 8
}

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) pack: u32,
    /// Where in the pack file the record begins.
    pub(super) offset: u64,
    pub(super) stored_bytes: u32,
    pub(super) plain_bytes: u32,
    pub(super) lz4: bool,
}

impl Place {
    pub(super) fn new(pack: u32, offset: u64, header: &Header) -> Self {
        let Header { lz4, stored_bytes, plain_bytes, .. } = *header;
        Self { pack, offset, stored_bytes, plain_bytes, lz4 }
    }

    pub(super) fn header(&self, digest: Digest) -> Header {
        Header { digest, lz4: self.lz4, stored_bytes: self.stored_bytes, plain_bytes: self.plain_bytes }
    }

    /// Offset after the record.
    pub(super) fn end(&self) -> u64 {
        let stride = (HEADER_BYTES + self.stored_bytes as usize).next_multiple_of(ALIGN);
        self.offset + stride as u64
    }
}

/// What the index keeps of a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) place: Place,
    /// Until then the chunk may not be deleted: seconds of the Unix clock.
    pub(super) keep_until: u64,
    /// The bytes of a small chunk, which are in the pack as well.
    pub(super) inline: Option<Bytes>,
}

/// How an entry is written. Fields are added by new variants, so that old entries stay readable.
#[derive(Serialize, Deserialize)]
enum Versioned<'a> {
    V1 { place: Place, keep_until: u64, inline: Option<Cow<'a, serde_bytes::Bytes>> },
}

impl Entry {
    pub(super) fn encode(&self) -> Vec<u8> {
        let inline = self.inline.as_deref().map(|bytes| Cow::Borrowed(serde_bytes::Bytes::new(bytes)));
        let versioned = Versioned::V1 { place: self.place, keep_until: self.keep_until, inline };
        postcard::to_stdvec(&versioned).expect("an entry is plain data")
    }

    /// Returns the entry, or nothing where these bytes are none.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let Versioned::V1 { place, keep_until, inline } = postcard::from_bytes(bytes).ok()?;
        let inline = inline.map(|bytes| Bytes::copy_from_slice(&bytes));
        Some(Self { place, keep_until, inline })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(record: &[u8]) -> Result<Bytes, &'static str> {
        let header = Header::parse(record.first_chunk().unwrap()).expect("a header");
        let end = HEADER_BYTES + header.stored_bytes as usize;
        unpack(&header, Bytes::copy_from_slice(&record[HEADER_BYTES..end]))
    }

    #[test]
    fn only_what_shrinks_is_compressed() {
        let text = b"the same words again and ".repeat(10_000);
        let noise: Vec<u8> = (0u32..8_000).flat_map(|number| *Digest::of(&number.to_le_bytes()).as_bytes()).collect();
        let mut half = text.clone();
        half[..200_000].copy_from_slice(&noise[..200_000]);
        for (plain, compressed) in [(&text, true), (&noise, false), (&half, true), (&text[..100].to_vec(), false)] {
            let record = pack(Digest::of(plain), plain);
            assert_eq!(record.header.lz4, compressed);
            assert_eq!(read(&record.parts().concat()).unwrap(), plain);
        }
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_written(plain in prop::collection::vec(0..4u8, 0..2000)) {
            let record = pack(Digest::of(&plain), &plain);
            let bytes = record.parts().concat();
            prop_assert_eq!(bytes.len() as u64, record.header.stride());
            prop_assert_eq!(read(&bytes).unwrap(), &plain);
            // As another node gets it.
            let stored = Stored::of(&record.header, Bytes::copy_from_slice(record.parts()[1]));
            let proven = stored.prove(Digest::of(&plain)).unwrap();
            prop_assert_eq!(Record::of(&proven).parts().concat(), bytes);
        }

        #[test]
        fn any_flipped_bit_shows(plain in prop::collection::vec(0..4u8, 1..2000), at: prop::sample::Index) {
            let record = pack(Digest::of(&plain), &plain);
            let bit = at.index((HEADER_BYTES + record.header.stored_bytes as usize) * 8);
            let mut record = record.parts().concat();
            // Four bytes of the header mean nothing.
            prop_assume!(!(52..56).contains(&(bit / 8)));
            record[bit / 8] ^= 1 << (bit % 8);
            let header = Header::parse(record.first_chunk().unwrap());
            let seen = header.is_none() || read(&record).map_or(true, |read| read == plain);
            prop_assert!(seen);
        }

        #[test]
        fn an_entry_is_read_as_written(offset: u64, keep_until: u64, inline in prop::option::of(prop::collection::vec(any::<u8>(), 0..4096))) {
            let place = Place { pack: 7, offset, stored_bytes: 3, plain_bytes: 4, lz4: true };
            let entry = Entry { place, keep_until, inline: inline.map(Bytes::from) };
            prop_assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        }
    }
}
