//! The pack files of a store: one that is written, and all that are read.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, fallocate};

use super::record::{HEADER_BYTES, PACK_HEADER_BYTES, Place, Record, pack_header};
use crate::file::{self, Failed, failed};

/// How many pack files are kept open. Beyond it some are closed, and opened again when they are read.
const OPEN_MAX: usize = 512;

/// Space is given back in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

/// The folder of the pack files, and those that are open.
#[derive(Debug)]
pub(super) struct Packs {
    pub(super) dir: PathBuf,
    open: Mutex<HashMap<u32, Arc<File>>>,
}

impl Packs {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, open: Mutex::default() }
    }

    pub(super) fn path(&self, pack: u32) -> PathBuf {
        self.dir.join(format!("{pack:010}.pack"))
    }

    /// Returns the numbers of all packs, in order.
    pub(super) fn list(&self) -> Result<Vec<u32>, Failed> {
        let mut packs = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed("list", &self.dir))? {
            let name = entry.map_err(failed("list", &self.dir))?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(".pack"));
            packs.extend(stem.and_then(|stem| stem.parse::<u32>().ok()));
        }
        packs.sort_unstable();
        Ok(packs)
    }

    pub(super) fn open(&self, pack: u32) -> Result<Arc<File>, Failed> {
        if let Some(file) = self.open.lock().get(&pack) {
            return Ok(file.clone());
        }
        let path = self.path(pack);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?;
        Ok(self.keep(pack, Arc::new(file)))
    }

    fn keep(&self, pack: u32, file: Arc<File>) -> Arc<File> {
        let mut open = self.open.lock();
        if open.len() >= OPEN_MAX {
            // Any will do: the hot ones are opened again at once.
            let any = open.keys().next().copied();
            any.map(|any| open.remove(&any));
        }
        open.insert(pack, file.clone());
        file
    }

    fn create(&self, pack: u32) -> Result<Arc<File>, Failed> {
        let path = self.path(pack);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path);
        let file = options.map_err(failed("create", &path))?;
        file.write_all_at(&pack_header(pack), 0).map_err(failed("write", &path))?;
        Ok(self.keep(pack, Arc::new(file)))
    }

    /// Reads the stored bytes of a record.
    pub(super) fn read(&self, place: &Place) -> Result<Bytes, Failed> {
        let file = self.open(place.pack)?;
        let bytes = file::read_at(&file, place.stored_bytes as usize, place.offset + HEADER_BYTES as u64);
        bytes.map_err(failed("read", &self.path(place.pack)))
    }

    /// Reads a whole record: its header, and the stored bytes.
    pub(super) fn read_record(&self, place: &Place) -> Result<([u8; HEADER_BYTES], Bytes), Failed> {
        let mut header = [0; HEADER_BYTES];
        let file = self.open(place.pack)?;
        file.read_exact_at(&mut header, place.offset).map_err(failed("read", &self.path(place.pack)))?;
        Ok((header, self.read(place)?))
    }

    /// Returns how much of the disk the packs take, in bytes.
    pub(super) fn disk_bytes(&self) -> Result<u64, Failed> {
        let mut bytes = 0;
        for pack in self.list()? {
            let path = self.path(pack);
            match fs::metadata(&path) {
                Ok(metadata) => bytes += metadata.blocks() * 512,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("look at", &path)(error)),
            }
        }
        Ok(bytes)
    }

    /// Gives the whole blocks back that the bytes of a record take. Its header stays, so that the pack can still be walked.
    pub(super) fn punch(&self, place: &Place) -> Result<(), Failed> {
        let start = (place.offset + HEADER_BYTES as u64).next_multiple_of(BLOCK_BYTES);
        let end = (place.offset + HEADER_BYTES as u64 + u64::from(place.stored_bytes)) / BLOCK_BYTES * BLOCK_BYTES;
        if start >= end {
            return Ok(());
        }
        let file = self.open(place.pack)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&*file, flags, start, end - start) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(failed("give space back of", &self.path(place.pack))(errno)),
        }
    }

    /// Removes a pack file. Whoever is reading it goes on.
    pub(super) fn remove(&self, pack: u32) -> Result<(), Failed> {
        self.open.lock().remove(&pack);
        file::remove(&self.path(pack))?;
        file::sync_dir(&self.dir)
    }
}

/// The end of the pack that is written. Held while a record is added.
#[derive(Debug)]
pub(super) struct Writer {
    /// The pack that takes records.
    pub(super) pack: u32,
    /// The file of that pack, once it is there.
    file: Option<Arc<File>>,
    /// Where the next record goes.
    pub(super) end: u64,
    /// What was written since the last sync.
    pub(super) unsynced: Unsynced,
}

/// What has to be synced.
#[derive(Debug, Default)]
pub(super) struct Unsynced {
    /// Packs with new records, each with the end of them.
    pub(super) packs: HashMap<u32, (Arc<File>, u64)>,
    /// Whether a pack file is new, so that its name must be synced too.
    pub(super) new_names: bool,
    /// Bytes of new records.
    pub(super) bytes: u64,
}

impl Unsynced {
    /// Says whether nothing was written.
    pub(super) fn is_empty(&self) -> bool {
        self.packs.is_empty() && !self.new_names
    }
}

impl Writer {
    /// Goes on after `end` of a pack, whose file is made when it is not given.
    pub(super) fn new(pack: u32, file: Option<Arc<File>>, end: u64) -> Self {
        Self { pack, file, end, unsynced: Unsynced::default() }
    }

    /// Writes a record. When this fails, the next one takes its place.
    pub(super) fn append(&mut self, packs: &Packs, pack_bytes: u64, record: &Record<'_>) -> Result<Place, Failed> {
        let bytes = record.header.stride();
        let file = self.room(packs, pack_bytes, bytes)?;
        file::write_parts_at(&file, record.parts(), self.end).map_err(failed("write to", &packs.path(self.pack)))?;
        let place = Place::new(self.pack, self.end, &record.header);
        self.end = place.end();
        self.unsynced.bytes += bytes;
        self.unsynced.packs.insert(self.pack, (file, self.end));
        Ok(place)
    }

    /// Returns the file to write to, after beginning a new one where the present one is full.
    fn room(&mut self, packs: &Packs, pack_bytes: u64, bytes: u64) -> Result<Arc<File>, Failed> {
        let empty = self.end <= PACK_HEADER_BYTES as u64;
        if !empty && self.end + bytes > pack_bytes {
            self.pack += 1;
            self.file = None;
        }
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let file = packs.create(self.pack)?;
        self.end = PACK_HEADER_BYTES as u64;
        self.unsynced.new_names = true;
        self.file = Some(file.clone());
        Ok(file)
    }
}

/// Says whether a read failed because the file is shorter than it should be, or gone.
pub(super) fn is_lost(error: &Failed) -> bool {
    matches!(error.source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

/// Returns how full the disk under `dir` is, as `df` counts.
pub(super) fn disk_used_percent(dir: &Path) -> io::Result<u8> {
    let disk = rustix::fs::statvfs(dir)?;
    let used = disk.f_blocks.saturating_sub(disk.f_bfree);
    let usable = used + disk.f_bavail;
    Ok((used * 100).checked_div(usable).unwrap_or(100) as u8)
}
