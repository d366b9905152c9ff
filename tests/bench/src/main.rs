//! What `scripts/bench` runs besides the node and its clients: the things that Shoal is measured against.
//!
//! - `relay` is the least that lets the real client reach real entrypoints ([`relay`]).
//! - `containers` starts the same program by the engine and by a plain `runsc run`, in turn ([`containers`]).
//! - `burst` does so with many of them at once ([`burst`]).
//! - `lines` prints lines in a plain container ([`lines`]).
//! - `writes` gives many small writes to Shoal or to etcd ([`writes`]).
//! - `placements` places containers by three nodes that are nothing else ([`placements`]).
//! - `objects` puts into queues and dicts, of Shoal or of Redis, and takes it out ([`objects`]).
//! - `copy-serve` and `copy-fetch` copy a file by TLS over TCP ([`copy`]).
//! - `store` writes and reads the chunk store and plain files, in turn ([`store`]).
//!
//! What it finds goes to stdout as JSON, one object a line; `scripts/benches` makes figures of it. Alone it is of little use.

use clap::{Parser, Subcommand};

mod ahead;
mod burst;
mod containers;
mod copy;
mod lines;
mod load;
mod login;
mod objects;
mod placements;
mod raw;
mod relay;
mod root;
mod store;
mod writes;

/// The parts of scripts/bench that are written in Rust; run scripts/bench instead.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves clients from memory, with real entrypoints behind; takes orders on stdin, ends with it.
    Relay(relay::Options),
    /// Starts containers by the engine and by `runsc run`, in turn.
    Containers(containers::Options),
    /// Starts many containers at once by the engine, then by as many `runsc run`s.
    Burst(burst::Options),
    /// Reads what a plain container prints.
    Lines(lines::Options),
    /// Writes and reads chunks by the store and by plain files, in turn.
    Store(store::Options),
    /// Writes to Shoal or etcd by many clients at once.
    Writes(writes::Options),
    /// Places containers by the scheduler and Raft of three nodes.
    Placements(placements::Options),
    /// Puts into queues and dicts, of Shoal or of Redis, by many clients at once, and takes it out again.
    Objects(objects::Options),
    /// Serves a file by TLS over TCP, until it is killed.
    CopyServe(copy::Serve),
    /// Fetches it.
    CopyFetch(copy::Fetch),
}

/// Prints one line of what was found.
fn say(found: &serde_json::Value) {
    println!("{found}");
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match cli.command {
        Command::Relay(options) => runtime.block_on(relay::run(options)),
        Command::Containers(options) => runtime.block_on(containers::run(options)),
        Command::Burst(options) => runtime.block_on(burst::run(options)),
        Command::Lines(options) => lines::run(options),
        Command::Store(options) => store::run(options),
        Command::Writes(options) => runtime.block_on(writes::run(options)),
        Command::Placements(options) => runtime.block_on(placements::run(options)),
        Command::Objects(options) => runtime.block_on(objects::run(options)),
        Command::CopyServe(options) => runtime.block_on(copy::serve(options)),
        Command::CopyFetch(options) => runtime.block_on(copy::fetch(options)),
    }
}
