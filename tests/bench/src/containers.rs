//! How fast a container starts: from the order to the program's first byte of output.
//!
//! By the engine as a node uses it (the root is a FUSE tree, a network namespace, an overlay on disk), in a sandbox made ahead
//! and in one made for it, and by a plain `runsc run` of the same program on a folder. One after the other, and which comes
//! first changes with each round.

use std::io::Read;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;
use shoal_runtime::{ContainerSpec, DEFAULT_PATH, Engine, NetworkMode, Way};

use crate::ahead;
use crate::raw::Raw;
use crate::root::Root;
use crate::say;

/// What is started: (name, arguments). Both print something at once.
const PROGRAMS: [(&str, &[&str]); 2] = [("echo", &["/bin/echo", "started"]), ("python", &["python3", "-c", "print('started')"])];

/// How long the making of a sandbox ahead may take.
const MADE_AHEAD_WITHIN: Duration = Duration::from_secs(60);

/// Where the roots are, and how often each start is measured.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The root for the engine: a tree that a node shows, with the same content.
    #[arg(long)]
    tree: PathBuf,
    #[command(flatten)]
    root: Root,
    /// Gives the engine's containers no network either, to see what it costs.
    #[arg(long)]
    no_network: bool,
    /// How many starts of each kind.
    #[arg(long, default_value_t = 20)]
    times: usize,
}

/// Measures, and prints a line for each start: {"program", "by", "ms", …}.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    options.root.with_engine(1, async |engine, shown| rounds(&options, engine, shown).await).await
}

async fn rounds(options: &Options, engine: &Engine, shown: &ahead::Shown) -> anyhow::Result<()> {
    let mut raw = options.root.raw()?;
    // The first round reads everything from disk; it is not counted.
    for round in 0..=options.times {
        for (name, argv) in PROGRAMS {
            for turn in 0..3 {
                let found = match (round + turn) % 3 {
                    0 => by_engine(engine, made(options, argv), "engine").await?,
                    1 => in_one_made_ahead(options, engine, shown, argv).await?,
                    _ => {
                        let taken = tokio::task::block_in_place(|| by_runsc(options, &mut raw, argv))?;
                        json!({"by": "runsc", "ms": ms(taken)})
                    }
                };
                if round > 0 {
                    let mut line = found;
                    line["program"] = name.into();
                    say(&line);
                }
            }
        }
    }
    Ok(())
}

/// Returns milliseconds.
pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Returns the environment of a program: PATH, and what "NAME=value"s say.
pub(crate) fn environment_of(own: &[String]) -> Vec<(String, String)> {
    let own = own.iter().filter_map(|pair| pair.split_once('=')).map(|(name, value)| (name.to_owned(), value.to_owned()));
    std::iter::once(("PATH".to_owned(), DEFAULT_PATH.to_owned())).chain(own).collect()
}

/// A container that gets a sandbox of its own.
fn made(options: &Options, argv: &[&str]) -> ContainerSpec {
    let mut spec = ContainerSpec::new(&options.tree, argv.iter().copied());
    spec.env = options.root.environment();
    spec.network = if options.no_network { NetworkMode::None } else { NetworkMode::Nat };
    spec
}

/// Waits until a sandbox is there, which is not counted, and starts a container in it.
async fn in_one_made_ahead(options: &Options, engine: &Engine, shown: &ahead::Shown, argv: &[&str]) -> anyhow::Result<serde_json::Value> {
    let spec = shown.container(argv, options.root.environment(), &options.root.work)?;
    let until = Instant::now() + MADE_AHEAD_WITHIN;
    while engine.waiting() == 0 {
        ensure!(Instant::now() < until, "no sandbox was made ahead within {MADE_AHEAD_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let line = by_engine(engine, spec, "ahead").await?;
    ensure!(line["way"] == format!("{:?}", Way::Ahead), "the container did not start in the sandbox made ahead");
    Ok(line)
}

async fn by_engine(engine: &Engine, spec: ContainerSpec, by: &str) -> anyhow::Result<serde_json::Value> {
    let began = Instant::now();
    let container = engine.create(spec).await.context("the engine cannot create a container")?;
    let mut stdout = std::fs::File::from(container.take_stdio().context("a container without pipes")?.stdout);
    container.start().await.context("the engine cannot start a container")?;
    let mut said = [0; 64];
    let read = tokio::task::spawn_blocking(move || stdout.read(&mut said)).await?;
    let taken = began.elapsed();
    ensure!(read.context("cannot read a container's output")? > 0, "a container of the engine ended without a word");
    let timings = container.timings();
    container.destroy().await.context("cannot take a container down")?;
    Ok(json!({
        "by": by, "ms": ms(taken), "way": format!("{:?}", timings.way),
        "network": ms(timings.network), "prepare": ms(timings.prepare), "create": ms(timings.create),
        "start": timings.start.map(ms),
    }))
}

fn by_runsc(options: &Options, raw: &mut Raw, argv: &[&str]) -> anyhow::Result<Duration> {
    let program = options.root.program(argv);
    // Writing the description counts: the engine does it too.
    let began = Instant::now();
    let container = raw.prepare(&program)?;
    let mut child = container.run(Stdio::piped(), Stdio::inherit())?;
    let mut said = [0; 64];
    let read = child.stdout.as_mut().context("no pipe")?.read(&mut said);
    let taken = began.elapsed();
    child.wait().context("cannot wait for runsc")?;
    ensure!(read.context("cannot read a container's output")? > 0, "a container of `runsc run` ended without a word");
    Ok(taken)
}
