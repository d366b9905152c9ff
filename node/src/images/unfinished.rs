//! What is being built, on disk: a node that starts anew builds on for clients that still wait.
//!
//! A client that lost its node in the middle of a build asks the next one for the build by the image's id alone. So what it
//! asked for is kept, durably, from the beginning of a build until its outcome is in the state. Steps that were done are
//! in the cache of steps, so that what is built again is the step that was interrupted.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use prost::Message as _;
use shoal_proto::modal_client as pb;
use shoal_state::ImageId;
use shoal_storage::file;

use crate::api::Error;

/// How long a build that nobody asks for is kept.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// What a client asked for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// Its request.
    pub(crate) request: pb::ImageGetOrCreateRequest,
    /// What keeps its image apart from equal ones; empty for most.
    pub(crate) apart: String,
}

/// The builds of this node that have not ended.
#[derive(Debug, Clone)]
pub(crate) struct Unfinished {
    dir: PathBuf,
    /// Held while a file is written: a client asks several times at once for an image that others of its program are built on.
    writing: Arc<Mutex<()>>,
}

impl Unfinished {
    /// Opens the folder, and forgets builds that nobody has asked for in a day.
    pub(crate) fn open(dir: PathBuf) -> anyhow::Result<Self> {
        file::create_dir(&dir)?;
        for entry in fs::read_dir(&dir)?.flatten() {
            let since = entry.metadata().and_then(|file| file.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if since.elapsed().is_ok_and(|age| age > KEEP) || entry.path().extension().is_some() {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(Self { dir, writing: Arc::default() })
    }

    fn file(&self, id: ImageId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Keeps what a build was asked for. It is on disk when this returns.
    pub(crate) fn keep(&self, id: ImageId, asked: &Asked) -> Result<(), Error> {
        let mut bytes = Vec::new();
        bytes.extend(u32::try_from(asked.apart.len()).unwrap_or(0).to_le_bytes());
        bytes.extend(asked.apart.as_bytes());
        bytes.extend(asked.request.encode_to_vec());
        let _writing = self.writing.lock();
        file::write(&self.file(id), &bytes).map_err(Error::failed(format!("cannot keep what image {id} is built of")))
    }

    /// Returns what a build was asked for that has not ended; none when it has, or never began here.
    pub(crate) fn find(&self, id: ImageId) -> Option<Asked> {
        let bytes = fs::read(self.file(id)).ok()?;
        let (length, rest) = bytes.split_first_chunk()?;
        let (apart, request) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        let request = pb::ImageGetOrCreateRequest::decode(request).ok()?;
        Some(Asked { request, apart: String::from_utf8(apart.to_vec()).ok()? })
    }

    /// Forgets a build that has ended.
    pub(crate) fn forget(&self, id: ImageId) {
        let _ = fs::remove_file(self.file(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_image_is_asked_for_many_times_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::open(dir.path().to_owned()).unwrap();
        let (id, asked) = (ImageId::from_random(1), Asked { request: pb::ImageGetOrCreateRequest::default(), apart: String::new() });
        std::thread::scope(|scope| {
            let keep = || (0..20).for_each(|_| unfinished.keep(id, &asked).unwrap());
            (0..8).for_each(|_| drop(scope.spawn(keep)));
        });
        assert_eq!(unfinished.find(id), Some(asked));
    }

    #[test]
    fn what_was_asked_is_found_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Unfinished::open(dir.path().join("unfinished")).unwrap();
        let id = ImageId::from_random(7);
        let request = pb::ImageGetOrCreateRequest { builder_version: "2025.06".to_owned(), force_build: true, ..Default::default() };
        let asked = Asked { request, apart: "of its own".to_owned() };
        assert_eq!(open().find(id), None);
        open().keep(id, &asked).unwrap();
        assert_eq!(open().find(id), Some(asked));
        assert_eq!(open().find(ImageId::from_random(8)), None);
        open().forget(id);
        assert_eq!(open().find(id), None);
    }

    #[test]
    fn what_is_not_whole_is_no_build() {
        let dir = tempfile::tempdir().unwrap();
        let unfinished = Unfinished::open(dir.path().to_owned()).unwrap();
        let id = ImageId::from_random(7);
        for bytes in [&b""[..], b"\x01\0", b"\xff\xff\xff\xff", b"\x01\0\0\0\xff", b"\0\0\0\0\xff\xff"] {
            fs::write(unfinished.file(id), bytes).unwrap();
            assert_eq!(unfinished.find(id), None, "{bytes:?}");
        }
    }
}
