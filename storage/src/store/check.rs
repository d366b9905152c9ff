//! Reading every chunk of a store, to prove that what is on disk is what was put there.

use std::ops::ControlFlow;
use std::path::PathBuf;

use bytes::Bytes;
use shoal_state::Digest;

use super::packs::is_lost;
use super::record::{self, Place};
use super::{Core, Error, Result, Store};

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// Chunks that were read.
    pub chunks: u64,
    /// Their length on disk.
    pub bytes: u64,
    /// Chunks whose bytes on disk were damaged, and that were written again from the copy in the index.
    pub repaired: Vec<Damage>,
    /// Chunks that were damaged, and are dropped.
    pub dropped: Vec<Damage>,
    /// Where the store is only looked at: chunks that are damaged, and of which there is a copy to write them again from.
    pub mendable: Vec<Damage>,
    /// Where the store is only looked at: chunks that are damaged, and would be dropped.
    pub lost: Vec<Damage>,
}

/// A chunk that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The chunk.
    pub digest: Digest,
    /// The pack file.
    pub pack: PathBuf,
    /// Where in the pack its record begins.
    pub offset: u64,
    /// How the damage shows.
    pub what: &'static str,
}

impl Store {
    /// Reads every chunk from its pack, in the order of the disk, and proves it by its digest.
    ///
    /// A damaged chunk is written again where its bytes are whole or the index has a copy, and dropped otherwise: as long as it is named
    /// here, nobody would bring it again. One that is only looked at changes nothing. `progress` is told how many chunks of how many are done, and may end the check.
    ///
    /// # Errors
    /// When the disk fails; a damaged chunk is no error.
    pub fn check(&self, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<Checked> {
        let core = self.core();
        self.sync()?;
        let mut places: Vec<(Place, Digest)> = Vec::new();
        core.each(|digest, entry| {
            places.push((entry.place, *digest));
            Ok(())
        })?;
        places.sort_unstable_by_key(|(place, _)| (place.pack, place.offset));
        let (all, mut checked) = (places.len() as u64, Checked::default());
        for (place, digest) in places {
            if progress(checked.chunks, all).is_break() {
                break;
            }
            checked.chunks += 1;
            checked.bytes += place.end() - place.offset;
            core.check(&digest, &mut checked)?;
        }
        self.sync()?;
        Ok(checked)
    }
}

/// A record that is not as it should be.
struct Damaged {
    what: &'static str,
    /// The chunk, where only the header is damaged.
    plain: Option<Bytes>,
}

impl Core {
    fn check(&self, digest: &Digest, checked: &mut Checked) -> Result<()> {
        // Twice, since the chunk may be moved while it is read.
        for _ in 0..2 {
            let Some(entry) = self.entry(digest)? else { return Ok(()) };
            let Some(Damaged { what, plain }) = self.damage(digest, &entry.place)? else { return Ok(()) };
            if self.entry(digest)?.is_none_or(|now| now.place != entry.place) {
                continue;
            }
            let damage = Damage { digest: *digest, pack: self.packs.path(entry.place.pack), offset: entry.place.offset, what };
            let copy = plain.or_else(|| entry.inline.clone().filter(|inline| Digest::of(inline) == *digest));
            match copy {
                Some(_) if self.options.look_only => checked.mendable.push(damage),
                None if self.options.look_only => checked.lost.push(damage),
                Some(copy) => {
                    self.write_record(&record::pack(*digest, &copy), entry.inline, entry.keep_until)?;
                    checked.repaired.push(damage);
                }
                None => match self.drop_corrupt(digest, &entry.place, what) {
                    Error::Corrupt { .. } => checked.dropped.push(damage),
                    error => return Err(error),
                },
            }
            return Ok(());
        }
        Ok(())
    }

    /// Says how the record of a chunk is damaged on disk, if it is.
    fn damage(&self, digest: &Digest, place: &Place) -> Result<Option<Damaged>> {
        let (header, stored) = match self.packs.read_record(place) {
            Ok(read) => read,
            Err(error) if is_lost(&error) => return Ok(Some(Damaged { what: "the pack ends before it", plain: None })),
            Err(error) => return Err(error.into()),
        };
        match record::unpack(&place.header(*digest), stored) {
            Err(what) => Ok(Some(Damaged { what, plain: None })),
            // The header is what finds the chunk when the index is lost.
            Ok(plain) if record::Header::parse(&header) != Some(place.header(*digest)) => {
                Ok(Some(Damaged { what: "its header is damaged", plain: Some(plain) }))
            }
            Ok(_) => Ok(None),
        }
    }
}
