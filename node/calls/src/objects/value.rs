//! The ids of blobs with values that are too long for a record.
//!
//! Such an id names the object's shard, and can be told from the id of what a client uploaded: its last 32 bits follow from the rest.
//! So whoever collects knows without a table that the home of the shard, and nobody else, can name the blob.
//!
//! Caveat: values that were put before ids were made so are taken for uploads, and stay longer.

use shoal_state::{BlobId, ObjectId, ShardId};

/// How many bits of an id follow from the others.
const CHECK_BITS: u32 = 32;

/// Returns the id of the blob with what a request about an object brings; none for an object that names no shard.
pub fn value_id(object: ObjectId, key: u128) -> Option<BlobId> {
    let shard = object.shard()?;
    // Cut to what an id has room for beside its shard.
    let derived = BlobId::derive_in(shard, &[&object.bits().to_le_bytes(), &key.to_le_bytes()]);
    Some(checked(shard, below(derived, shard) >> CHECK_BITS))
}

/// Says whether a blob holds values of a dict or a queue. What a client uploaded seems to do so once in four billion times.
pub fn is_value(blob: BlobId) -> bool {
    blob.shard().is_some_and(|shard| checked(shard, below(blob, shard) >> CHECK_BITS) == blob)
}

/// Returns what of an id is not its shard.
fn below(blob: BlobId, shard: ShardId) -> u128 {
    blob.bits() - BlobId::in_shard(shard, 0).bits()
}

/// Makes an id of its shard and its upper bits.
fn checked(shard: ShardId, upper: u128) -> BlobId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"value of an object").update(&shard.number().to_le_bytes()).update(&upper.to_le_bytes());
    let mut check = [0; 4];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..4]);
    BlobId::in_shard(shard, upper << CHECK_BITS | u128::from(u32::from_le_bytes(check)))
}

#[cfg(test)]
mod tests {
    use shoal_state::DictId;

    use super::*;

    #[test]
    fn a_value_is_known_by_its_id_and_the_same_request_gives_the_same() {
        for shard in ShardId::all() {
            for key in 0..8 {
                let object = DictId::derive_in(shard, &[b"a dict"]).into();
                let id = value_id(object, key).unwrap();
                assert_eq!((id.shard(), is_value(id), value_id(object, key)), (Some(shard), true, Some(id)));
                assert_ne!(value_id(object, key + 1), Some(id));
                assert!(!is_value(BlobId::from_random(id.bits() ^ 1)) && !is_value(BlobId::from_random(id.bits() ^ (1 << 40))));
                assert!(!is_value(BlobId::derive(&[b"uploaded", &[shard.number() as u8, key as u8]])));
            }
        }
    }
}
