//! `shoal recover`: the cluster goes on with one survivor.

use std::path::PathBuf;

use clap::Args;

use super::lists::print_json;
use crate::recovery;

/// `shoal recover`
#[derive(Debug, Args)]
pub(super) struct Recover {
    /// The folder of the node that survived. It must not run.
    #[arg(long, env = "SHOAL_DATA", default_value = "/var/lib/shoal")]
    data: PathBuf,
    /// Do it. Without it, only what may be lost is said.
    #[arg(long)]
    yes: bool,
    /// Print what may be lost as JSON.
    #[arg(long)]
    json: bool,
}

impl Recover {
    /// Runs the command.
    pub(super) fn run(self) -> anyhow::Result<i32> {
        let plan = if self.yes { recovery::recover(&self.data)? } else { recovery::plan(&self.data)? };
        if self.json {
            print_json(&plan)?;
            return Ok(i32::from(!self.yes));
        }
        println!("The cluster goes on with {} alone, as its generation {}. What is lost, or may be:", plan.survivor, plan.generation);
        plan.costs().iter().for_each(|cost| println!("  - {cost}"));
        if self.yes {
            println!("It is done. Start the node; let others join with `shoal token create --node`.");
            return Ok(0);
        }
        println!(
            "Nothing was changed. First start every node that can still be started: with a majority of those that vote nothing is lost."
        );
        println!("If that is impossible, make sure that the other nodes stay away, and run this again with --yes.");
        Ok(1)
    }
}
