//! What a shard's record looks like in the log of its node.
//!
//! A fixed header, little-endian, then the body, which only the owner of the record's kind understands. The log adds length
//! and checksum.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version of this layout |
//! | 1 | kind |
//! | 2 | shard |
//! | 8 | epoch in which the record was ordered |
//! | 8 | index in the shard |
//! | 16 | owner |

use shoal_state::ShardId;

use super::replica::Mark;

/// Length of a header.
pub const HEADER_BYTES: usize = 36;

const VERSION: u8 = 1;

/// What a record is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An epoch begins at this index.
    Began,
    /// Of this node alone: records of the shard after this index, written before this record, are void.
    Cut,
    /// The owner's records before this one are dead.
    Dropped,
    /// Of this node alone: the shard has had records up to this mark, though none of the last ones may live any more.
    Tail,
    /// Of this node alone: of the shard's records up to this mark those live that are listed, and no others. A node that was away
    /// while records died hears of it so.
    Kept,
    /// A record of calls.
    Calls,
    /// A record of dicts and queues.
    Objects,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Began => 1,
            Self::Cut => 2,
            Self::Dropped => 3,
            Self::Tail => 4,
            Self::Kept => 5,
            Self::Calls => 16,
            Self::Objects => 17,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Began,
            2 => Self::Cut,
            3 => Self::Dropped,
            4 => Self::Tail,
            5 => Self::Kept,
            16 => Self::Calls,
            17 => Self::Objects,
            _ => return None,
        })
    }
}

/// What stands before a record's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the record is for.
    pub kind: Kind,
    /// The shard it belongs to.
    pub shard: ShardId,
    /// Its epoch and index.
    pub mark: Mark,
    /// What it belongs to within the shard: the number of a call's id, say. 0 for the shard itself.
    pub owner: u128,
}

/// Bytes that are not a record of a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// Shorter than a header.
    #[error("a shard's record has {HEADER_BYTES} bytes or more, this one has {bytes}")]
    Short {
        /// How many bytes there were.
        bytes: usize,
    },
    /// Written by a version of Shoal that this one does not know.
    #[error("the record has layout {version}, and this version of shoal knows {VERSION}")]
    Version {
        /// The layout it has.
        version: u8,
    },
    /// Written by a version of Shoal that this one does not know.
    #[error("the record is of kind {code}, which this version of shoal does not know")]
    Kind {
        /// The kind it has.
        code: u8,
    },
    /// A list of the records that live cannot be read.
    #[error("the list of the records that live cannot be read")]
    Kept,
    /// No cluster has that shard.
    #[error("the record names shard {number}")]
    Shard {
        /// The shard it names.
        number: u16,
    },
}

impl Header {
    /// Returns the bytes of the header.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[0] = VERSION;
        out[1] = self.kind.code();
        out[2..4].copy_from_slice(&self.shard.number().to_le_bytes());
        out[4..12].copy_from_slice(&self.mark.epoch.to_le_bytes());
        out[12..20].copy_from_slice(&self.mark.index.to_le_bytes());
        out[20..36].copy_from_slice(&self.owner.to_le_bytes());
        out
    }

    /// Reads the header at the front of a record.
    pub fn decode(record: &[u8]) -> Result<Self, NotARecord> {
        let bytes: &[u8; HEADER_BYTES] = record.first_chunk().ok_or(NotARecord::Short { bytes: record.len() })?;
        if bytes[0] != VERSION {
            return Err(NotARecord::Version { version: bytes[0] });
        }
        let kind = Kind::of(bytes[1]).ok_or(NotARecord::Kind { code: bytes[1] })?;
        let number = u16::from_le_bytes(array(&bytes[2..4]));
        let shard = ShardId::new(number).ok_or(NotARecord::Shard { number })?;
        let epoch = u64::from_le_bytes(array(&bytes[4..12]));
        let index = u64::from_le_bytes(array(&bytes[12..20]));
        Ok(Self { kind, shard, mark: Mark { epoch, index }, owner: u128::from_le_bytes(array(&bytes[20..36])) })
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        for kind in [Kind::Began, Kind::Cut, Kind::Dropped, Kind::Tail, Kind::Kept, Kind::Calls, Kind::Objects] {
            let mark = Mark { epoch: u64::MAX - 1, index: 1 << 40 };
            let header = Header { kind, shard: ShardId::new(255).unwrap(), mark, owner: u128::MAX - 7 };
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let mark = Mark { epoch: 1, index: 1 };
        let good = Header { kind: Kind::Calls, shard: ShardId::new(0).unwrap(), mark, owner: 0 }.encode();
        let with = |at: usize, byte: u8| {
            let mut bytes = good;
            bytes[at] = byte;
            Header::decode(&bytes)
        };
        assert_eq!(Header::decode(&good[..35]), Err(NotARecord::Short { bytes: 35 }));
        assert_eq!(with(0, 9), Err(NotARecord::Version { version: 9 }));
        assert_eq!(with(1, 200), Err(NotARecord::Kind { code: 200 }));
        assert_eq!(with(3, 1), Err(NotARecord::Shard { number: 256 }));
    }
}
