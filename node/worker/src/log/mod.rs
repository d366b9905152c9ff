//! What containers print: tagged, kept on this node in rotated files, fetched by filter, followed by cursor.
//!
//! ```text
//! pipe ── LineCutter ── LogStore::append_all ── write(2) ──► 000000000000002a.log, …2b.log, …2c.log (the newest)
//!                                │                            a sealed file has a summary beside it: times, apps, tasks
//!                                └── wakes followers          LogStore::fetch reads from the newest file back
//! ```
//!
//! - An [`Entry`] is a line, or a piece of one: valid UTF-8, at most [`LINE_BYTES_MAX`] bytes, with its newline.
//! - A [`Cursor`] is a place in the store, written `file-offset`. It survives restarts; when what it names was dropped, it
//!   means the oldest line there is.
//! - The store is bounded by bytes. The oldest file goes first, and [`LogStore::fetch`] says how many lines an app lost.
//!
//! Caveats: files are written, not synced: they survive the end of the process, not a power cut. Entries are in the order
//! in which they were appended; only `fetch` sorts by time.

mod cutter;
mod entry;
mod file;
mod store;
#[cfg(test)]
mod tests;

pub use cutter::{LINE_BYTES_MAX, LineCutter};
pub use entry::{Cursor, Entry, Filter, NotACursor, Stream};
pub use store::{Batch, Counts, Error, FOLLOW_ENTRIES_MAX, LogStore, Options};
