//! The command line. Each command asks the node on this machine over its admin socket and prints a table, or, with
//! `--json`, exactly what the node answered.
//!
//! Exit codes: 0 done; 1 refused or failed, with a sentence on stderr; 2 the command line itself was wrong.

mod admin;
mod lists;
mod start;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Your own serverless cloud: one binary per machine.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    propagate_version = true,
    after_help = "\
Examples:
  shoal start                          start a node; a cluster of one needs no configuration
  shoal token create                   make a token for clients
  MODAL_SERVER_URL=http://localhost:7470 modal run hello.py"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a node and keep it running.
    #[command(after_help = "Examples:\n  shoal start\n  shoal start --data /srv/shoal --api 127.0.0.1:7470")]
    Start(start::Start),
    /// The node itself, under its keeper or systemd.
    #[command(hide = true)]
    Serve(start::Start),
    /// Show how the node and its cluster are.
    #[command(after_help = "Examples:\n  shoal status\n  shoal status --json")]
    Status(Common),
    /// Make, list and revoke tokens.
    #[command(subcommand)]
    Token(lists::TokenCommand),
    /// List and stop apps.
    #[command(subcommand)]
    App(lists::AppCommand),
    /// List and stop tasks: the containers that the cluster runs.
    #[command(subcommand)]
    Task(lists::TaskCommand),
}

/// What every command that asks a node takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// The folder of the node to ask.
    #[arg(long, env = "SHOAL_DATA", default_value = "/var/lib/shoal")]
    data: PathBuf,
    /// Print the node's answer as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<i32> {
    match Cli::parse().command {
        Command::Start(start) => start.keep(),
        Command::Serve(start) => start.serve(),
        Command::Status(common) => lists::status(&common),
        Command::Token(command) => command.run(),
        Command::App(command) => command.run(),
        Command::Task(command) => command.run(),
    }
}
