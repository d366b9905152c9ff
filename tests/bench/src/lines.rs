//! How fast a program's lines come out of a plain container, by a pipe.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::json;

use crate::raw::{Program, Raw};
use crate::root::Root;
use crate::say;

/// Where the root is, and how much to print.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    root: Root,
    /// How many lines.
    #[arg(long, default_value_t = 20_000)]
    lines: usize,
}

/// Measures once, and prints {"seconds"} from the first line to the last.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let mut raw = Raw::new(&options.root.runsc, &options.root.work, &[])?;
    let text =
        format!("print('first'); [print(f'line {{i}} of a program that says much') for i in range({})]; print('last')", options.lines);
    let program = Program {
        root: options.root.folder,
        // Unbuffered, as the node's entrypoints are.
        argv: ["python3", "-u", "-c", &text].map(str::to_owned).to_vec(),
        env: options.root.env,
        cwd: "/".to_owned(),
        binds: vec![],
    };
    let container = raw.prepare(&program)?;
    let mut child = container.run(Stdio::piped(), Stdio::inherit())?;
    let mut began = None;
    for line in BufReader::new(child.stdout.take().context("no pipe")?).lines() {
        match line.context("cannot read a container's output")?.as_str() {
            "first" => began = Some(Instant::now()),
            "last" => {
                let seconds = began.context("the last line came first")?.elapsed().as_secs_f64();
                child.wait().context("cannot wait for runsc")?;
                say(&json!({"seconds": seconds}));
                return Ok(());
            }
            _ => {}
        }
    }
    bail!("the container ended before its last line")
}
