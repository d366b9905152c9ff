//! Ids: a prefix that names the kind, a dash, 22 base-62 characters.
//!
//! An id is a number below 62²², kept as `u128`, so ids are `Copy` and order cheaply. Ids of what a request creates are
//! *derived* from who asks and the request's idempotency key: a retry through any node creates the same thing, with no
//! table. Ids whose data lives in a shard begin with two characters that name the shard.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How many shards the data plane has. Fixed for the life of a cluster, because ids carry it.
pub const SHARDS: u16 = 256;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const LENGTH: usize = 22;
/// 62²⁰: what lies below the two characters that name a shard.
const BELOW_SHARD: u128 = 62u128.pow(20);

/// The number of a shard, below [`SHARDS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId(u16);

impl ShardId {
    /// Takes a shard number; `None` when it is not below [`SHARDS`].
    pub const fn new(number: u16) -> Option<Self> {
        if number < SHARDS { Some(Self(number)) } else { None }
    }

    /// Returns the shard number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// Iterates over all shards in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }

    /// Chooses the shard of something that has no shard yet, by hashing its name.
    pub fn of(name: &[u8]) -> Self {
        let hash = blake3::hash(name);
        Self(u16::from(hash.as_bytes()[0]) % SHARDS)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard-{}", self.0)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not an id of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an id of {} {kind}: expected {prefix:?} and 22 letters or digits", article(kind))]
pub struct NotAnId {
    text: String,
    kind: &'static str,
    prefix: &'static str,
}

/// Returns which article a word takes, by its first letter.
fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

fn encode(mut value: u128) -> [u8; LENGTH] {
    let mut out = [b'0'; LENGTH];
    for slot in out.iter_mut().rev() {
        *slot = DIGITS[usize::try_from(value % 62).unwrap_or(0)];
        value /= 62;
    }
    out
}

fn decode(text: &str) -> Option<u128> {
    if text.len() != LENGTH {
        return None;
    }
    text.bytes().try_fold(0u128, |value, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'A'..=b'Z' => byte - b'A' + 10,
            b'a'..=b'z' => byte - b'a' + 36,
            _ => return None,
        };
        value.checked_mul(62)?.checked_add(u128::from(digit))
    })
}

/// Hashes the parts that identify a request, each with its length, so that no two lists of parts collide.
fn hash_parts(kind: &str, parts: &[&[u8]]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes());
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(bytes)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident $prefix:literal $kind:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(u128);

        impl $name {
            /// What every id of this kind begins with, dash included.
            pub const PREFIX: &'static str = $prefix;
            /// The first id in order, for ranges.
            pub const MIN: Self = Self(0);
            /// The last id in order, for ranges.
            pub const MAX: Self = Self(u128::MAX);

            /// Makes an id from 128 random bits, for what no request asked for.
            pub const fn from_random(bits: u128) -> Self {
                Self(bits)
            }

            /// Derives the id from what identifies the request; equal parts give equal ids.
            pub fn derive(parts: &[&[u8]]) -> Self {
                Self(hash_parts($prefix, parts))
            }

            /// Derives an id that names `shard` in its first two characters.
            pub fn derive_in(shard: ShardId, parts: &[&[u8]]) -> Self {
                Self::in_shard(shard, hash_parts($prefix, parts))
            }

            /// Makes an id that names `shard` from random or hashed bits.
            pub const fn in_shard(shard: ShardId, bits: u128) -> Self {
                Self(shard.0 as u128 * BELOW_SHARD + bits % BELOW_SHARD)
            }

            /// Returns the shard that the first two characters name; `None` when no cluster has that shard.
            pub fn shard(self) -> Option<ShardId> {
                u16::try_from(self.0 / BELOW_SHARD).ok().and_then(ShardId::new)
            }

            /// Returns the id's number.
            pub const fn bits(self) -> u128 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(std::str::from_utf8(&encode(self.0)).unwrap_or_default())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                text.strip_prefix($prefix).and_then(decode).map(Self).ok_or_else(|| NotAnId {
                    text: text.chars().take(64).collect(),
                    kind: $kind,
                    prefix: $prefix,
                })
            }
        }
    )*};
}

ids! {
    /// An app.
    AppId "ap-" "app";
    /// A function, or a bound (parametrised) instance of one.
    FunctionId "fu-" "function";
    /// What a function is to be from the next publish on.
    DefinitionId "de-" "definition";
    /// A class.
    ClassId "cs-" "class";
    /// A call: one `.remote()`, `.spawn()` or `.map()`.
    CallId "fc-" "call";
    /// One input of a call.
    InputId "in-" "input";
    /// An image.
    ImageId "im-" "image";
    /// A set of files that a client uploaded.
    MountId "mo-" "mount";
    /// A secret.
    SecretId "st-" "secret";
    /// A volume.
    VolumeId "vo-" "volume";
    /// A dict.
    DictId "di-" "dict";
    /// A queue.
    QueueId "qu-" "queue";
    /// An environment.
    EnvironmentId "en-" "environment";
    /// A task: a container that the cluster decided to run.
    TaskId "ta-" "task";
    /// A gang: the containers of a clustered function that are one; what the SDK calls a cluster.
    GangId "cu-" "gang";
    /// A sandbox.
    SandboxId "sb-" "sandbox";
    /// A blob: bytes too large to travel in a message.
    BlobId "bl-" "blob";
    /// A token that a client shows; what the SDK calls the token id.
    TokenId "ak-" "token";
    /// A node of the cluster. A node whose disk was wiped joins under a new id.
    NodeId "no-" "node";
    /// One start of a machine's node process.
    BootId "bo-" "boot";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        for bits in [0, 1, 61, 62, u128::MAX] {
            let id = AppId::from_random(bits);
            assert_eq!(id.to_string().len(), 25);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_no_id_is_told_so_in_a_sentence() {
        let said = |said: NotAnId| said.to_string();
        assert_eq!(said("x".parse::<ImageId>().unwrap_err()), r#""x" is not an id of an image: expected "im-" and 22 letters or digits"#);
        assert_eq!(said("".parse::<TaskId>().unwrap_err()), r#""" is not an id of a task: expected "ta-" and 22 letters or digits"#);
    }

    #[test]
    fn a_number_over_128_bits_is_refused_not_wrapped() {
        assert!("ap-zzzzzzzzzzzzzzzzzzzzzz".parse::<AppId>().is_err());
        assert!("fu-0000000000000000000000".parse::<AppId>().is_err());
        assert!("ap-000000000000000000000".parse::<AppId>().is_err());
        assert!("ap-00000000000000000000é".parse::<AppId>().is_err());
    }

    #[test]
    fn an_id_names_its_shard_in_its_first_two_characters() {
        let shard = ShardId::new(255).unwrap();
        let one = CallId::derive_in(shard, &[b"token", b"key"]);
        let other = CallId::derive_in(shard, &[b"token", b"other key"]);
        assert_eq!(one.shard(), Some(shard));
        assert_eq!(one.to_string()[..5], other.to_string()[..5]);
        assert_ne!(one, other);
    }

    #[test]
    fn equal_requests_give_equal_ids_and_parts_do_not_run_together() {
        assert_eq!(AppId::derive(&[b"a", b"b"]), AppId::derive(&[b"a", b"b"]));
        assert_ne!(AppId::derive(&[b"ab", b""]), AppId::derive(&[b"a", b"b"]));
    }
}
