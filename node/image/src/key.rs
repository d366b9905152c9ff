//! Keys: equal work gets equal keys, whoever asks for it and wherever from.
//!
//! A key is a hash over labelled, length-prefixed parts, so that no two lists of parts give the same bytes.

use serde::Serialize;
use shoal_state::Digest;

/// Collects the parts of a key.
#[derive(Debug, Clone)]
pub(crate) struct KeyBuilder {
    hash: blake3::Hasher,
}

impl KeyBuilder {
    /// Begins a key of a kind. Change the kind's name when what the work does changes.
    pub(crate) fn new(kind: &str) -> KeyBuilder {
        KeyBuilder { hash: blake3::Hasher::new() }.bytes("kind", kind.as_bytes())
    }

    /// Adds bytes under a label.
    pub(crate) fn bytes(mut self, label: &str, bytes: &[u8]) -> KeyBuilder {
        for part in [label.as_bytes(), bytes] {
            self.hash.update(&(part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
        self
    }

    /// Adds a text.
    pub(crate) fn text(self, label: &str, text: &str) -> KeyBuilder {
        self.bytes(label, text.as_bytes())
    }

    /// Adds another key.
    pub(crate) fn digest(self, label: &str, digest: &Digest) -> KeyBuilder {
        self.bytes(label, digest.as_bytes())
    }

    /// Adds a value in its encoded form. Maps must be sorted ones.
    pub(crate) fn value(self, label: &str, value: &impl Serialize) -> KeyBuilder {
        let encoded = postcard::to_stdvec(value).expect("plain data can be encoded");
        self.bytes(label, &encoded)
    }

    /// Ends the key.
    pub(crate) fn finish(self) -> Digest {
        Digest::from_bytes(*self.hash.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_parts_are_cut_matters() {
        let key = |a: &str, b: &str| KeyBuilder::new("x").text("p", a).text("p", b).finish();
        assert_eq!(key("a", "b"), key("a", "b"));
        assert_ne!(key("ab", ""), key("a", "b"));
        assert_ne!(KeyBuilder::new("x").finish(), KeyBuilder::new("y").finish());
    }
}
