//! How records and segment headers look on disk. Pure.
//!
//! A record is 24 bytes of header, the payload, and zeros up to a multiple of 8:
//!
//! | bytes | |
//! |---|---|
//! | 0..4 | length of the payload |
//! | 4..8 | crc32 of the segment's salt, the rest of this header and the payload |
//! | 8..16 | position of this record |
//! | 16..24 | position up to which the log was known to be synced when this was written |
//!
//! The position and the salt keep bytes that merely look like a record from being taken for one: a copy of a record,
//! or one inside another's payload, stands at another place; a record of an earlier file has another salt.

/// Length of a record's header.
pub(super) const HEADER_BYTES: usize = 24;

/// Length of the header of a segment file; the first record follows it.
pub(super) const SEGMENT_HEADER_BYTES: u64 = 64;

/// Records begin at multiples of this.
pub(super) const ALIGN: usize = 8;

const MAGIC: [u8; 8] = *b"SHOALLG1";

/// The header of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) crc: u32,
    pub(super) position: u64,
    pub(super) synced: u64,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            length: u32::from_le_bytes(bytes[0..4].try_into().expect("4 bytes")),
            crc: u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes")),
            position: u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes")),
            synced: u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes")),
        }
    }

    /// Says whether the payload, and this header, are what was written.
    pub(super) fn matches(&self, salt: u64, payload: &[u8]) -> bool {
        self.length as usize == payload.len() && self.crc == self.checksum(salt, payload)
    }

    fn checksum(&self, salt: u64, payload: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&salt.to_le_bytes());
        crc.update(&self.length.to_le_bytes());
        crc.update(&self.position.to_le_bytes());
        crc.update(&self.synced.to_le_bytes());
        crc.update(payload);
        crc.finalize()
    }

    /// Bytes from the beginning of this record to the beginning of the next.
    pub(super) fn stride(&self) -> u64 {
        stride(self.length as usize)
    }
}

/// Bytes that a record with a payload of this length takes.
pub(super) fn stride(payload_bytes: usize) -> u64 {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN) as u64
}

/// Appends a record to `buffer`.
pub(super) fn encode(buffer: &mut Vec<u8>, salt: u64, position: u64, synced: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("the length of a record was checked");
    let mut header = Header { length, crc: 0, position, synced };
    header.crc = header.checksum(salt, payload);
    buffer.extend_from_slice(&header.length.to_le_bytes());
    buffer.extend_from_slice(&header.crc.to_le_bytes());
    buffer.extend_from_slice(&header.position.to_le_bytes());
    buffer.extend_from_slice(&header.synced.to_le_bytes());
    buffer.extend_from_slice(payload);
    buffer.resize(buffer.len().next_multiple_of(ALIGN), 0);
}

/// The header of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Position of the first byte of the file.
    pub(super) base: u64,
    /// No record of this segment lies at or beyond this many bytes.
    pub(super) capacity: u64,
    /// A random number that goes into the checksums of this file's records.
    pub(super) salt: u64,
    /// Records from this position up to `base` are truncated, also where they still stand in older files.
    pub(super) void_from: u64,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES as usize] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.base.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.capacity.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.void_from.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns the header, or nothing where these bytes are none.
    pub(super) fn parse(bytes: &[u8; SEGMENT_HEADER_BYTES as usize]) -> Option<Self> {
        let field = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let crc = u32::from_le_bytes(bytes[40..44].try_into().expect("4 bytes"));
        let whole = bytes[0..8] == MAGIC && crc == crc32fast::hash(&bytes[..40]);
        whole.then(|| Self { base: field(8), capacity: field(16), salt: field(24), void_from: field(32) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> (Header, &[u8]) {
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
        (header, &bytes[HEADER_BYTES..HEADER_BYTES + header.length as usize])
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_written(payload: Vec<u8>, salt: u64, position: u64, synced: u64) {
            let mut bytes = Vec::new();
            encode(&mut bytes, salt, position, synced, &payload);
            prop_assert_eq!(bytes.len() as u64, stride(payload.len()));
            let (header, read) = parse(&bytes);
            prop_assert_eq!(read, &payload[..]);
            prop_assert!(header.matches(salt, read));
            prop_assert_eq!((header.position, header.synced), (position, synced));
            prop_assert!(!header.matches(salt ^ 1, read), "a record of another file was accepted");
        }

        #[test]
        fn any_flipped_bit_shows(payload in prop::collection::vec(any::<u8>(), 0..200), at: prop::sample::Index) {
            let mut bytes = Vec::new();
            encode(&mut bytes, 1, 2, 3, &payload);
            let bit = at.index((HEADER_BYTES + payload.len()) * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
            let end = (HEADER_BYTES as u64 + u64::from(header.length)).min(bytes.len() as u64) as usize;
            prop_assert!(!header.matches(1, &bytes[HEADER_BYTES..end]));
        }

        #[test]
        fn a_segment_header_is_read_as_written(base: u64, capacity: u64, salt: u64, void_from: u64, at in 0..44usize * 8) {
            let header = SegmentHeader { base, capacity, salt, void_from };
            let mut bytes = header.encode();
            prop_assert_eq!(SegmentHeader::parse(&bytes), Some(header));
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(SegmentHeader::parse(&bytes), None);
        }
    }
}
