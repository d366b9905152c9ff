//! What containers print: tagged, kept on this node in rotated files, fetched by filter, followed by cursor.
//!
//! ```text
//! pipe ── LineCutter ── LogStore::append_all ── write(2) ──► 000000000000002a.log, …2b.log, …2c.log (the newest)
//!                                │                            a closed file has an index beside it: which blocks have lines
//!                                └── wakes followers          of which app, function, task and time; fetch reads from the end
//! ```
//!
//! - An [`Entry`] is a line, or a piece of one: valid UTF-8, at most [`LINE_BYTES_MAX`] bytes, with its newline.
//! - A [`Cursor`] is a place in the store, written `file-offset`. It survives restarts; when what it names was dropped, it
//!   means the oldest line there is.
//! - The store is bounded by bytes and by age. The oldest file goes first, and readers are told how many lines an app lost.
//!
//! | module | holds |
//! |---|---|
//! | `entry` | a line, what selects lines, a place |
//! | `cutter` | from pipes to lines |
//! | `file` | how lines lie in a file |
//! | `index` | where in a file which lines are |
//! | `files` | the files, from the newest to the oldest |
//! | `losses` | what was dropped |
//! | `store`, `read` | appending, reading |
//!
//! Caveats: files are written, not synced: they survive the end of the process, not a power cut. Entries are in the order
//! in which they were appended; only `fetch` sorts by time.

mod cutter;
mod entry;
mod file;
mod files;
mod index;
mod losses;
mod read;
mod store;
#[cfg(test)]
mod tests;

pub use cutter::{LINE_BYTES_MAX, LineCutter};
pub use entry::{Cursor, Entry, Filter, NotACursor, Stream};
pub use read::{Batch, Counts, FETCH_BYTES_MAX, FOLLOW_BYTES_MAX, FOLLOW_ENTRIES_MAX, fitting};
pub use store::{Error, LogStore, Options};
