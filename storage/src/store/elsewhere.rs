//! Chunks that are on other nodes.
//!
//! The store itself is of this node. What it lacks may be had from elsewhere, where somebody has said how: for reading a chunk,
//! not for saying whether it is here.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shoal_state::Digest;

use super::{Error, Result, Store};

/// How long a chunk from elsewhere is waited for when nobody says.
const FETCH_WAIT: Duration = Duration::from_secs(30);

/// Brings chunks from other nodes.
pub trait Elsewhere: Debug + Send + Sync + 'static {
    /// Returns a chunk whose bytes were proven by its digest; none when nobody has it. Blocks until the deadline at the latest.
    ///
    /// # Errors
    /// Words that say who was asked, and what stood in the way: another attempt may help.
    fn fetch(&self, digest: &Digest, deadline: Instant) -> std::result::Result<Option<Bytes>, String>;

    /// Brings chunks into the store, as many as can be had until the deadline. Blocks.
    fn bring(&self, digests: Vec<Digest>, deadline: Instant);

    /// Is told of chunks that will be wanted soon, and returns at once.
    fn expect(&self, digests: Vec<Digest>);
}

impl Store {
    /// Says from where chunks can be had that are not here. Only the first call counts.
    pub fn set_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        let _ = self.inner.elsewhere.set(elsewhere);
    }

    /// Returns the bytes of a chunk from here or, until `deadline`, from elsewhere; then it is here too.
    ///
    /// # Errors
    /// [`Error::Missing`] when nobody has it, [`Error::Unreached`] when that could not be found out.
    pub fn get_anywhere(&self, digest: &Digest, deadline: Option<Instant>) -> Result<Bytes> {
        let found = self.get(digest);
        let (Err(Error::Missing { .. } | Error::Corrupt { .. }), Some(elsewhere)) = (&found, self.inner.elsewhere.get()) else {
            return found;
        };
        let deadline = deadline.unwrap_or_else(|| Instant::now() + FETCH_WAIT);
        match elsewhere.fetch(digest, deadline) {
            Ok(Some(bytes)) => {
                // A full disk is no reason not to answer.
                match self.put(&bytes) {
                    Ok(_) | Err(Error::Full { .. }) => Ok(bytes),
                    Err(error) => Err(error),
                }
            }
            Ok(None) => found,
            Err(why) => Err(Error::Unreached { digest: *digest, why }),
        }
    }

    /// Brings chunks here that are elsewhere, as many as can be had until the deadline. Returns whether there is an elsewhere.
    pub fn bring(&self, digests: Vec<Digest>, deadline: Instant) -> bool {
        let elsewhere = self.inner.elsewhere.get();
        elsewhere.is_some_and(|elsewhere| {
            elsewhere.bring(digests, deadline);
            true
        })
    }

    /// Tells of chunks that will be wanted soon: those that are not here are brought meanwhile.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn expect(&self, digests: &[Digest]) -> Result<()> {
        let Some(elsewhere) = self.inner.elsewhere.get() else { return Ok(()) };
        let mut wanted = Vec::new();
        for digest in digests {
            if !self.has(digest)? {
                wanted.push(*digest);
            }
        }
        if !wanted.is_empty() {
            elsewhere.expect(wanted);
        }
        Ok(())
    }
}
