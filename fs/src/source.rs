//! Where the bytes of files come from.

use std::error;
use std::time::Instant;

use bytes::Bytes;
use shoal_state::Digest;
use shoal_storage::store::{self, Store};

/// Gives chunks by their digest.
///
/// Whoever implements this proves the bytes by their digest when they come from a disk or from another machine; the
/// mount hands them on as they are.
pub trait Source: Send + Sync + 'static {
    /// Returns a chunk that this machine has, and None if it must come from elsewhere.
    ///
    /// Takes no longer than a disk does. The default has nothing at hand.
    fn local(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        let _ = digest;
        Ok(None)
    }

    /// Returns a chunk from wherever it is. Blocks, but not beyond `deadline`.
    ///
    /// Reads do not wait longer than that anyway; a call that goes on holds a thread of the mount.
    fn chunk(&self, digest: &Digest, deadline: Instant) -> Result<Bytes, SourceError>;

    /// Is told of chunks that will probably be read next: the small files beside one that is not on this machine.
    ///
    /// Whoever pays for each round trip can bring those that are missing in one. Comes right before the call of
    /// [`Self::chunk`], at most once for each directory of a bound tree; returns without waiting. The default does nothing.
    fn expect(&self, digests: &[Digest]) {
        let _ = digests;
    }

    /// Says why a chunk that is asked for has not come yet, in words: who was asked, and what stood in the way. None where nothing
    /// stands in the way so far. The default knows nothing.
    fn why_not(&self, digest: &Digest) -> Option<String> {
        let _ = digest;
        None
    }
}

/// Why a chunk could not be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named in the sentence of its variant")]
pub enum SourceError {
    /// Nobody has it.
    #[error("chunk {digest} is on no node that could be asked")]
    Missing { digest: Digest },

    /// It did not come in time. Another attempt may help.
    #[error("chunk {digest} did not come in time: waited for {waited_for}")]
    Late { digest: Digest, waited_for: String },

    /// Getting it failed.
    #[error("chunk {digest} cannot be read")]
    Failed {
        digest: Digest,
        #[source]
        source: Box<dyn error::Error + Send + Sync>,
    },
}

/// The chunks of this node's store, and what it gets from elsewhere.
#[derive(Debug, Clone)]
pub struct StoreSource {
    store: Store,
}

impl StoreSource {
    /// Returns the chunks of `store` as a source.
    pub fn new(store: Store) -> Self {
        Self { store }
    }
}

impl Source for StoreSource {
    fn local(&self, digest: &Digest) -> Result<Option<Bytes>, SourceError> {
        match self.store.get(digest) {
            Ok(bytes) => Ok(Some(bytes)),
            // A damaged chunk is dropped by the store, and is then simply not here.
            Err(store::Error::Missing { .. } | store::Error::Corrupt { .. }) => Ok(None),
            Err(error) => Err(SourceError::Failed { digest: *digest, source: error.into() }),
        }
    }

    fn chunk(&self, digest: &Digest, deadline: Instant) -> Result<Bytes, SourceError> {
        self.store.get_anywhere(digest, Some(deadline)).map_err(|error| match error {
            store::Error::Missing { .. } | store::Error::Corrupt { .. } => SourceError::Missing { digest: *digest },
            store::Error::Unreached { why, .. } => SourceError::Late { digest: *digest, waited_for: why },
            error => SourceError::Failed { digest: *digest, source: error.into() },
        })
    }

    fn expect(&self, digests: &[Digest]) {
        // It is a hint: whoever needs a chunk gets it, or hears why not.
        let _ = self.store.expect(digests);
    }

    fn why_not(&self, digest: &Digest) -> Option<String> {
        self.store.why_not(digest)
    }
}
