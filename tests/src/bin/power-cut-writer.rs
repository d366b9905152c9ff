//! Runs the workload of one writer: what the power-cut rig traces.

use std::path::Path;

use anyhow::{Context, bail};
use shoal_tests::power_cut::writers;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, writer, dir, seed] = &args[..] else { bail!("usage: power-cut-writer WRITER FOLDER SEED") };
    let writer = writers::named(writer).with_context(|| format!("there is no writer called {writer}"))?;
    (writer.work)(Path::new(dir), seed.parse()?)
}
