//! The command line. Each command asks the node on this machine over its admin socket and prints a table, or, with
//! `--json`, exactly what the node answered. Only `cleanup`, `connect`, `doctor` and `recover` need no node here, and `store check` can
//! do without.
//!
//! Exit codes: 0 done; 1 refused or failed, with a sentence on stderr; 2 the command line itself was wrong.

mod admin;
mod audit;
mod cleanup;
mod connect;
mod doctor;
mod explain;
mod images;
mod lists;
mod logs;
mod node;
mod recover;
mod schedule;
mod start;
mod store;
mod token;

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
  shoal token create --node            let another machine join
  shoal doctor                         look for what is wrong with this machine
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
    /// Lead clients on this machine to whichever node of a cluster is there, so that they outlive the loss of one.
    #[command(
        after_help = "Examples:\n  shoal connect http://n1:7470,http://n2:7470,http://n3:7470\n  MODAL_SERVER_URL=http://127.0.0.1:7470 modal run hello.py"
    )]
    Connect(connect::Connect),
    /// Show how the node and its cluster are.
    #[command(after_help = "Examples:\n  shoal status\n  shoal status --json")]
    Status(Common),
    /// Make, list and revoke tokens.
    #[command(subcommand, after_help = "Examples:\n  shoal token create --label laptop\n  shoal token list\n  shoal token revoke ak-…")]
    Token(token::TokenCommand),
    /// Show who was refused what, and who made or ended a token.
    #[command(
        after_help = "Examples:\n  shoal audit\n  shoal audit --since 1d --who ak-…\n  shoal audit --what token-created --json\n  shoal audit --follow"
    )]
    Audit(audit::Audit),
    /// List and stop apps.
    #[command(subcommand, after_help = "Examples:\n  shoal app list\n  shoal app stop ap-…\n  shoal app stop my-app --env main")]
    App(lists::AppCommand),
    /// List and stop tasks: the containers that the cluster runs.
    #[command(subcommand, after_help = "Examples:\n  shoal task list\n  shoal task stop ta-…")]
    Task(lists::TaskCommand),
    /// List what is called by schedules.
    #[command(subcommand, after_help = "Examples:\n  shoal schedule list\n  shoal schedule list --json")]
    Schedule(schedule::ScheduleCommand),
    /// List, drain, label and remove nodes, and say which of them vote.
    #[command(subcommand, after_help = "Examples:\n  shoal node list\n  shoal node drain gpu-1\n  shoal node remove gpu-1")]
    Node(node::NodeCommand),
    /// Go on with one node alone, when most of those that vote are gone for good. Says what may be lost; needs --yes.
    #[command(after_help = "Examples:\n  shoal recover\n  shoal recover --data /srv/shoal --yes")]
    Recover(recover::Recover),
    /// Take away what a node that was killed left on this machine: containers that still run, their mounts, cgroups and links. Its data stay.
    #[command(after_help = "Examples:\n  shoal cleanup\n  shoal cleanup --data /srv/shoal")]
    Cleanup(cleanup::Cleanup),
    /// List and remove images.
    #[command(subcommand, after_help = "Examples:\n  shoal image list\n  shoal image rm im-…")]
    Image(images::ImageCommand),
    /// Check the chunk store, bring back copies that are missing, and delete what nothing needs.
    #[command(
        subcommand,
        after_help = "Examples:\n  shoal store check\n  shoal store repair\n  shoal store gc --dry-run\n  shoal store gc --budget 20G"
    )]
    Store(store::StoreCommand),
    /// Show what containers printed.
    #[command(
        after_help = "Examples:\n  shoal logs ap-…\n  shoal logs my-app --env main --since 10m\n  shoal logs ta-… --tail 100 --follow --timestamps\n  shoal logs my-app --function train --stream stderr --search Error\n  shoal logs fc-… --json"
    )]
    Logs(logs::Logs),
    /// Say what something does, what it waits for, and why.
    #[command(after_help = "Examples:\n  shoal explain fc-…\n  shoal explain fu-… --json\n  shoal explain my-app --env main")]
    Explain(explain::Explain),
    /// Look for what on this machine keeps a node from its work. Needs no running node; ends with 1 when something is bad.
    #[command(after_help = "Examples:\n  shoal doctor\n  shoal doctor --data /srv/shoal --json")]
    Doctor(doctor::Doctor),
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

/// Has a command end without a word when whoever reads its output has enough, as `shoal status | head` does: printing would panic.
fn end_with_the_reader() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if is_of_the_reader(&panic.to_string()) {
            std::process::exit(0);
        }
        others(panic);
    }));
}

fn is_of_the_reader(panic: &str) -> bool {
    panic.contains("failed printing to std") && panic.contains("Broken pipe")
}

/// Runs the command; returns the exit code.
pub(crate) fn run() -> anyhow::Result<i32> {
    let command = Cli::parse().command;
    // What serves for long ends by its own rules.
    if !matches!(command, Command::Start(_) | Command::Serve(_) | Command::Connect(_)) {
        end_with_the_reader();
    }
    match command {
        Command::Start(start) => start.keep(),
        Command::Serve(start) => start.serve(),
        Command::Connect(connect) => connect.run(),
        Command::Status(common) => lists::status(&common),
        Command::Token(command) => command.run(),
        Command::Audit(audit) => audit.run(),
        Command::App(command) => command.run(),
        Command::Task(command) => command.run(),
        Command::Schedule(command) => command.run(),
        Command::Node(command) => command.run(),
        Command::Recover(recover) => recover.run(),
        Command::Cleanup(cleanup) => cleanup.run(),
        Command::Image(command) => command.run(),
        Command::Store(command) => command.run(),
        Command::Logs(logs) => logs.run(),
        Command::Explain(explain) => explain.run(),
        Command::Doctor(doctor) => doctor.run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Says which commands below this one, hidden ones aside, have no example of themselves in their help.
    fn without_examples(command: &clap::Command, path: &str) -> Vec<String> {
        let help = command.clone().render_long_help().to_string();
        let (_, examples) = help.split_once("Examples:").unwrap_or_default();
        let own = (!examples.contains(path)).then(|| path.to_owned());
        let below = command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help");
        own.into_iter().chain(below.flat_map(|below| without_examples(below, &format!("{path} {}", below.get_name())))).collect()
    }

    #[test]
    fn the_help_of_every_command_shows_how_to_use_it() {
        assert_eq!(without_examples(&Cli::command(), "shoal"), Vec::<String>::new());
    }

    #[test]
    fn only_a_reader_that_has_gone_ends_a_command_without_a_word() {
        assert!(is_of_the_reader("panicked at library/std/src/io/stdio.rs:1:2:\nfailed printing to stdout: Broken pipe (os error 32)"));
        assert!(!is_of_the_reader("failed printing to stdout: No space left on device (os error 28)"));
        assert!(!is_of_the_reader("cannot write: Broken pipe (os error 32)"));
    }

    #[test]
    fn the_command_line_is_put_together_well() {
        Cli::command().debug_assert();
    }
}
