//! `shoal cleanup`: nothing of a node that does not run is left on its machine, but its data.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use shoal_runtime::Leftovers;

use super::lists::print_json;
use crate::cleanup;

/// `shoal cleanup`
#[derive(Debug, Args)]
pub(super) struct Cleanup {
    /// The folder of the node that was killed. It must not run; the folder may be gone.
    #[arg(long, env = "SHOAL_DATA", default_value = "/var/lib/shoal")]
    data: PathBuf,
    /// Print what was taken away as JSON.
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Found {
    processes: usize,
    containers: usize,
    links: usize,
    mounts: usize,
}

impl Cleanup {
    /// Runs the command.
    pub(super) fn run(&self) -> anyhow::Result<i32> {
        let found = cleanup::clean_up(&self.data)?;
        if self.json {
            let Leftovers { processes, cgroups, links, mounts } = found;
            print_json(&Found { processes, containers: cgroups, links, mounts })?;
        } else {
            println!("{}", told(found));
        }
        Ok(0)
    }
}

fn told(found: Leftovers) -> String {
    if found == Leftovers::default() {
        return "nothing of the node was left on this machine but its data".to_owned();
    }
    let Leftovers { processes, cgroups, links, mounts } = found;
    format!("taken away: {cgroups} container(s) with {processes} process(es), {links} network link(s), {mounts} mount(s)")
}
