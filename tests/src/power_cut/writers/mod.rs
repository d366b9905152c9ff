//! The writers whose claims are put to the test.

mod aged;
mod folders;
mod gc;
mod kv;
mod log;
mod raft;
mod store;

use super::Writer;

/// All writers.
pub const ALL: &[Writer] = &[folders::WRITER, log::WRITER, kv::WRITER, store::WRITER, gc::WRITER, raft::WRITER, raft::VOTE_WRITER];

/// Returns the writer of this name.
pub fn named(name: &str) -> Option<&'static Writer> {
    ALL.iter().find(|writer| writer.name == name)
}
