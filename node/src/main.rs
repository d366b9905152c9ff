//! The binary `shoal`: a node, and the command line that asks it. See ARCHITECTURE.md for the map.

mod admin;
mod api;
mod arguments;
mod audit;
mod authority;
mod build_functions;
mod chunks;
mod cleanup;
mod cli;
mod cluster;
mod config;
mod copies;
mod departure;
mod doors;
mod execs;
mod folder;
mod formation;
mod gangs;
mod homes;
mod images;
mod join;
mod keeper;
mod keys;
mod members;
mod peers;
mod placements;
mod provider;
mod recovery;
mod renewal;
mod reports;
mod room;
mod roots;
mod sandboxes;
mod schedules;
mod scheduling;
mod server;
mod standing;
mod stderr;
mod sweep;
mod tasks;
mod terminals;
mod timeouts;
mod touched;
mod unread;
mod upkeep;
mod zygotes;

/// A busy node makes and drops millions of small things on many threads: a quarter more writes a second than with the C library's, in as
/// much memory. (mimalloc is a little faster yet, and holds two to three times as much.)
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    match cli::run() {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            stderr::say(format_args!("{error:#}"));
            std::process::exit(1);
        }
    }
}
