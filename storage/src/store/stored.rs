//! A chunk as it is kept, so that it can go from one node's store to another's without being made anew on the way.

use bytes::Bytes;
use shoal_state::Digest;

use super::OBJECT_BYTES_MAX;
use super::record::Header;

/// The bytes of a chunk as they are kept. Nothing proves yet that they are those of the chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// As they are.
    Plain(Bytes),
    /// As one block of lz4.
    Lz4 {
        /// How long the chunk is said to be, in bytes.
        plain_bytes: u32,
        /// The block.
        block: Bytes,
    },
}

/// A chunk that is proven to be the one of its name, plain and as it is kept.
#[derive(Debug, Clone)]
pub struct Proven {
    digest: Digest,
    stored: Stored,
    plain: Bytes,
}

impl Stored {
    pub(super) fn of(header: &Header, bytes: Bytes) -> Self {
        if header.lz4 { Self::Lz4 { plain_bytes: header.plain_bytes, block: bytes } } else { Self::Plain(bytes) }
    }

    /// Returns how long the chunk is said to be, in bytes.
    pub fn plain_bytes(&self) -> usize {
        match self {
            Self::Plain(bytes) => bytes.len(),
            Self::Lz4 { plain_bytes, .. } => *plain_bytes as usize,
        }
    }

    /// Proves that this is the chunk of that name.
    ///
    /// # Errors
    /// How one sees that it is not.
    pub fn prove(self, digest: Digest) -> Result<Proven, &'static str> {
        let plain = match &self {
            Self::Plain(bytes) => bytes.clone(),
            Self::Lz4 { plain_bytes, .. } if *plain_bytes as usize > OBJECT_BYTES_MAX => return Err("it is longer than a chunk may be"),
            Self::Lz4 { plain_bytes, block } => {
                lz4_flex::block::decompress(block, *plain_bytes as usize).map_err(|_| "it does not decompress")?.into()
            }
        };
        if Digest::of(&plain) != digest {
            return Err("its digest does not match");
        }
        Ok(Proven { digest, stored: self, plain })
    }
}

impl Proven {
    /// Returns the name of the chunk.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the bytes of the chunk.
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }

    /// Returns the bytes of the chunk, and nothing of how they were kept.
    pub fn into_plain(self) -> Bytes {
        self.plain
    }

    /// Returns what is written for the chunk.
    pub(super) fn record(&self) -> (Header, &[u8]) {
        let (lz4, bytes) = match &self.stored {
            Stored::Plain(bytes) => (false, bytes),
            Stored::Lz4 { block, .. } => (true, block),
        };
        (Header::new(self.digest, lz4, bytes, &self.plain), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_the_chunk_is_not_proven() {
        let plain = Bytes::from_static(b"again and again and again and again");
        let (digest, block) = (Digest::of(&plain), Bytes::from(lz4_flex::block::compress(&plain)));
        let lz4 = |plain_bytes: u32, block: &Bytes| Stored::Lz4 { plain_bytes, block: block.clone() };
        for good in [Stored::Plain(plain.clone()), lz4(plain.len() as u32, &block)] {
            assert_eq!(good.prove(digest).unwrap().plain(), &plain);
        }
        let why = |stored: Stored| stored.prove(digest).unwrap_err();
        assert_eq!(why(Stored::Plain(block.clone())), "its digest does not match");
        assert_eq!(why(lz4(plain.len() as u32, &block.slice(1..))), "it does not decompress");
        assert_eq!(why(lz4(plain.len() as u32 - 1, &block)), "it does not decompress");
        assert_eq!(why(lz4(u32::MAX, &block)), "it is longer than a chunk may be");
    }
}
