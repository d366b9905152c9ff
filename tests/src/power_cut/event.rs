//! What happens in a folder.

use std::path::PathBuf;

/// Something that happened. Paths are relative to the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file or folder has this name now, if it had not.
    Made {
        /// Its path.
        path: PathBuf,
        /// Whether it is a folder.
        dir: bool,
    },
    /// Bytes were written.
    Wrote {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Bytes were written at the end of the file.
    Appended {
        /// The file.
        path: PathBuf,
        /// What.
        bytes: Vec<u8>,
    },
    /// The file was cut or extended to this length.
    Length {
        /// The file.
        path: PathBuf,
        /// Its length now.
        length: u64,
    },
    /// The file is at least this long.
    Allocated {
        /// The file.
        path: PathBuf,
        /// Its least length now.
        length: u64,
    },
    /// A part of the file became zeros.
    Punched {
        /// The file.
        path: PathBuf,
        /// Where the zeros begin.
        offset: u64,
        /// How many there are.
        length: u64,
    },
    /// A file or folder has another name.
    Renamed {
        /// Its old path.
        from: PathBuf,
        /// Its new path.
        to: PathBuf,
    },
    /// A name is gone.
    Removed {
        /// The path.
        path: PathBuf,
    },
    /// A sync of a file or folder began.
    SyncBegan {
        /// Who called it.
        thread: u32,
        /// `fsync` or `fdatasync`.
        call: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// The sync that this thread began has ended well.
    SyncEnded {
        /// Who called it.
        thread: u32,
    },
    /// The writer said a line.
    Said(String),
}
