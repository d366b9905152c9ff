//! Chunks that are on other nodes.
//!
//! The store itself is of this node. What it lacks may be had from elsewhere, where somebody has said how: for reading a chunk,
//! not for saying whether it is here.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use shoal_state::Digest;

use super::{Error, Result, Store};

/// How long a chunk from elsewhere is waited for when nobody says.
const FETCH_WAIT: Duration = Duration::from_secs(30);

/// How long is waited until nodes that could not be asked are asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(250);

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

/// Why chunks that somebody waits for could not be had so far.
#[derive(Debug, Default)]
pub(super) struct Unreached(Mutex<HashMap<Digest, String>>);

impl Unreached {
    fn note(&self, digest: Digest, why: &str) {
        self.0.lock().insert(digest, why.to_owned());
    }

    fn forget(&self, digest: &Digest) {
        self.0.lock().remove(digest);
    }
}

impl Store {
    /// Says from where chunks can be had that are not here. Only the first call counts.
    pub fn set_elsewhere(&self, elsewhere: Arc<dyn Elsewhere>) {
        let _ = self.inner.elsewhere.set(elsewhere);
    }

    /// Returns the bytes of a chunk from here or, until `deadline`, from elsewhere; then it is here too.
    ///
    /// With a deadline, nodes that could not be asked are asked again until then: a program that reads a file of an image would
    /// be killed by a no, and a node that does not answer now may a second later. Without one, one round of asking is all.
    ///
    /// # Errors
    /// [`Error::Missing`] when nobody has it, [`Error::Unreached`] when that could not be found out.
    pub fn get_anywhere(&self, digest: &Digest, deadline: Option<Instant>) -> Result<Bytes> {
        let found = self.get(digest);
        let (Err(Error::Missing { .. } | Error::Corrupt { .. }), Some(elsewhere)) = (&found, self.inner.elsewhere.get()) else {
            return found;
        };
        let patient_until = deadline;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + FETCH_WAIT);
        let fetched = loop {
            let fetched = elsewhere.fetch(digest, deadline);
            let again = Instant::now() + ASK_AGAIN_AFTER;
            match &fetched {
                Err(why) if patient_until.is_some_and(|until| again < until) => self.inner.unreached.note(*digest, why),
                _ => break fetched,
            }
            std::thread::sleep(ASK_AGAIN_AFTER);
        };
        self.inner.unreached.forget(digest);
        match fetched {
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

    /// Says why a chunk that somebody waits for could not be had from elsewhere so far; none where nothing was in the way.
    pub fn why_not(&self, digest: &Digest) -> Option<String> {
        self.inner.unreached.0.lock().get(digest).cloned()
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::Options;
    use super::*;

    /// A node that does not answer the first times.
    #[derive(Debug)]
    struct Slow {
        silent: AtomicU32,
    }

    impl Elsewhere for Slow {
        fn fetch(&self, _: &Digest, _: Instant) -> std::result::Result<Option<Bytes>, String> {
            let silent = self.silent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if silent.is_ok() { Err("the node does not answer".to_owned()) } else { Ok(Some(Bytes::from_static(b"bytes"))) }
        }

        fn bring(&self, _: Vec<Digest>, _: Instant) {}

        fn expect(&self, _: Vec<Digest>) {}
    }

    #[test]
    fn who_reads_until_a_deadline_outlasts_a_node_that_is_silent_for_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let read = |silent, wait: Option<Duration>| {
            let store = Store::open(&dir.path().join(format!("{silent}-{}", wait.is_some())), Options::default()).unwrap();
            store.set_elsewhere(Arc::new(Slow { silent: AtomicU32::new(silent) }));
            store.get_anywhere(&Digest::of(b"bytes"), wait.map(|wait| Instant::now() + wait))
        };
        assert_eq!(read(2, Some(Duration::from_secs(20))).unwrap(), "bytes");
        assert!(matches!(read(u32::MAX, Some(Duration::from_millis(600))), Err(Error::Unreached { .. })));
        assert!(matches!(read(1, None), Err(Error::Unreached { .. })), "others are told at once");
    }

    #[test]
    fn who_waits_for_a_chunk_can_be_told_why_it_does_not_come() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Options::default()).unwrap();
        store.set_elsewhere(Arc::new(Slow { silent: AtomicU32::new(u32::MAX) }));
        let (reader, digest) = (store.clone(), Digest::of(b"bytes"));
        let reads = std::thread::spawn(move || reader.get_anywhere(&digest, Some(Instant::now() + Duration::from_secs(2))));
        let end = Instant::now() + Duration::from_secs(20);
        while store.why_not(&digest).is_none() {
            assert!(Instant::now() < end && !reads.is_finished(), "it is never said");
            std::thread::yield_now();
        }
        assert_eq!(store.why_not(&digest).unwrap(), "the node does not answer");
        assert!(matches!(reads.join().unwrap(), Err(Error::Unreached { .. })));
        assert_eq!(store.why_not(&digest), None, "nobody waits for it any more");
    }
}
