//! The binary `shoal`: a node, and the command line that asks it. See ARCHITECTURE.md for the map.

mod admin;
mod api;
mod cli;
mod cluster;
mod config;
mod keeper;
mod server;

fn main() {
    match cli::run() {
        Ok(code) => std::process::exit(code),
        Err(error) => {
            eprintln!("shoal: {error:#}");
            std::process::exit(1);
        }
    }
}
