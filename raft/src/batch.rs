//! What one entry of the log carries: a version and a list of commands.
//!
//! The commands stay encoded until they are applied. So a node stores and forwards entries that it does not understand,
//! and stops, with a sentence, only where it would have to apply one.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0 | format of this encoding |
//! | varint | version of the rules that the entry needs |
//! | varint, then the commands | a postcard list |

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_state::{Command, VERSION_KNOWN};

/// The first byte of an encoded batch. Another layout gets another number.
const FORMAT: u8 = 1;

/// The most bytes of commands that are put together into one entry.
///
/// openraft sends one message at a time to each follower and syncs once per entry, so batching is the throughput;
/// larger entries delay the heartbeats behind them.
pub const ENTRY_BYTES_MAX: usize = 48 << 10;

/// The largest single command, in bytes. One that is larger than an entry travels alone in its own.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;

/// A list of encoded commands and the version of the rules that they need.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batch {
    encoded: Bytes,
}

/// Why a batch cannot be applied here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotReadable {
    #[error("it is in format {format}, and this build knows format {FORMAT}: upgrade this node")]
    Format { format: u8 },
    #[error("it needs version {version} of the rules, and this build knows versions up to {VERSION_KNOWN}: upgrade this node")]
    Version { version: u32 },
    #[error("its bytes are not a list of commands ({why}): this node's log is damaged, or the node that wrote it is not of this cluster")]
    Damaged { why: postcard::Error },
}

impl Batch {
    /// Puts encoded commands together under the version that is active where they are proposed.
    pub(crate) fn new<'a>(version: u32, commands: impl ExactSizeIterator<Item = &'a Bytes>) -> Self {
        let mut encoded = vec![FORMAT];
        push(&mut encoded, &version);
        push(&mut encoded, &commands.len());
        for command in commands {
            encoded.extend_from_slice(command);
        }
        Self { encoded: encoded.into() }
    }

    /// Reads the commands, or says why this build must not apply them.
    pub(crate) fn commands(&self) -> Result<Vec<Command>, NotReadable> {
        let damaged = |why| NotReadable::Damaged { why };
        let (format, rest) = self.encoded.split_first().ok_or(damaged(postcard::Error::DeserializeUnexpectedEnd))?;
        if *format != FORMAT {
            return Err(NotReadable::Format { format: *format });
        }
        let (version, rest) = postcard::take_from_bytes::<u32>(rest).map_err(damaged)?;
        if version > VERSION_KNOWN {
            return Err(NotReadable::Version { version });
        }
        postcard::from_bytes(rest).map_err(damaged)
    }

    /// Returns the size of the encoded batch.
    pub(crate) fn len(&self) -> usize {
        self.encoded.len()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.len())
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Encodes one command as a batch carries it.
pub(crate) fn encode(command: &Command) -> Bytes {
    let mut bytes = Vec::new();
    push(&mut bytes, command);
    bytes.into()
}

/// Appends a value's encoding. Values of this crate always have one: they hold no maps of unknown length.
pub(crate) fn push(bytes: &mut Vec<u8>, value: &impl Serialize) {
    let taken = std::mem::take(bytes);
    *bytes = postcard::to_extend(value, taken).expect("values that the log carries have a known length");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str) -> Command {
        Command::SetSetting { key: key.into(), value: "1".into() }
    }

    #[test]
    fn commands_encoded_one_by_one_read_back_as_a_list() {
        let commands: Vec<_> = (0..300).map(|n| setting(&n.to_string())).collect();
        let encoded: Vec<_> = commands.iter().map(encode).collect();
        assert_eq!(Batch::new(1, encoded.iter()).commands(), Ok(commands));
        assert_eq!(Batch::new(1, [].iter()).commands(), Ok(vec![]));
    }

    #[test]
    fn a_batch_of_a_version_that_this_build_does_not_know_says_so_before_its_commands_are_read() {
        let nonsense = Bytes::from_static(&[0xff; 4]);
        let refused = Batch::new(VERSION_KNOWN + 1, [nonsense].iter()).commands().unwrap_err();
        assert_eq!(refused, NotReadable::Version { version: VERSION_KNOWN + 1 });
        assert!(refused.to_string().contains("upgrade this node"), "{refused}");
    }

    #[test]
    fn bytes_that_are_no_batch_are_called_damaged() {
        let nonsense = Bytes::from_static(&[0xff; 4]);
        assert!(matches!(Batch::new(1, [nonsense].iter()).commands(), Err(NotReadable::Damaged { .. })));
        let other = Batch { encoded: Bytes::from_static(&[9, 0]) };
        assert_eq!(other.commands(), Err(NotReadable::Format { format: 9 }));
    }
}
