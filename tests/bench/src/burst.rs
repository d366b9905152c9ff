//! How long many containers take that start at once: from the order until each has said its first word.
//!
//! By the engine as a node uses it, with as many sandboxes made ahead as a node keeps, and by as many plain `runsc run`s of
//! the same program on a folder. One side after the other, and which comes first changes with each round. The program stays,
//! so that no container ends while others start.

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde_json::json;
use shoal_runtime::{Container, ContainerSpec, Engine};
use tokio::task::{JoinSet, spawn_blocking};

use crate::containers::ms;
use crate::raw::{self, Raw};
use crate::root::Root;
use crate::{ahead, say};

/// What is started: a program that says a word and waits.
const PROGRAM: [&str; 3] = ["python3", "-c", "import time; print('started', flush=True); time.sleep(3600)"];

/// How long all containers of a round may take to say a word, and how long the sandboxes for one to be made ahead.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where the root is, and how much to start.
#[derive(Args, Debug)]
pub(crate) struct Options {
    #[command(flatten)]
    root: Root,
    /// How many containers at once.
    #[arg(long, default_value_t = 20)]
    count: usize,
    /// How many sandboxes wait when a round begins.
    #[arg(long, default_value_t = 2)]
    ahead: usize,
    /// How many rounds.
    #[arg(long, default_value_t = 5)]
    times: usize,
}

/// Measures, and prints a line for each side of a round: {"by", "ms"}.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    options.root.with_engine(options.ahead, async |engine, shown| rounds(&options, engine, shown).await).await
}

async fn rounds(options: &Options, engine: &Engine, shown: &ahead::Shown) -> anyhow::Result<()> {
    let mut raw = options.root.raw()?;
    // The first round reads everything from disk; it is not counted.
    for round in 0..=options.times {
        for turn in 0..2 {
            let (by, taken) = if (round + turn) % 2 == 0 {
                ("engine", by_engine(options, engine, shown).await?)
            } else {
                ("runsc", by_runsc(options, &mut raw).await?)
            };
            if round > 0 {
                say(&json!({"by": by, "ms": ms(taken)}));
            }
        }
    }
    Ok(())
}

async fn by_engine(options: &Options, engine: &Engine, shown: &ahead::Shown) -> anyhow::Result<Duration> {
    let spec = shown.container(&PROGRAM, options.root.environment(), &options.root.work)?;
    let until = Instant::now() + DEADLINE;
    while engine.waiting() < options.ahead {
        ensure!(Instant::now() < until, "{} sandboxes were not made ahead within {DEADLINE:?}", options.ahead);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut starts, mut containers) = (JoinSet::new(), Vec::new());
    let began = Instant::now();
    for _ in 0..options.count {
        starts.spawn(one_by_engine(engine.clone(), spec.clone()));
    }
    let mut failed = None;
    while let Some(started) = starts.join_next().await {
        match started? {
            Ok(container) => containers.push(container),
            Err(error) => failed = Some(error),
        }
    }
    let taken = began.elapsed();
    for container in containers {
        container.destroy().await.context("cannot take a container down")?;
    }
    failed.map_or(Ok(taken), Err)
}

/// Starts a container and waits for its word.
async fn one_by_engine(engine: Engine, spec: ContainerSpec) -> anyhow::Result<Container> {
    let container = engine.create(spec).await.context("the engine cannot create a container")?;
    let said = async {
        let stdout = File::from(container.take_stdio().context("a container without pipes")?.stdout);
        container.start().await.context("the engine cannot start a container")?;
        let said = tokio::time::timeout(DEADLINE, spawn_blocking(move || word(stdout))).await;
        said.with_context(|| format!("a container of the engine said nothing within {DEADLINE:?}"))??
    };
    match said.await {
        Ok(()) => Ok(container),
        Err(error) => {
            container.destroy().await.context("cannot take a container down")?;
            Err(error)
        }
    }
}

async fn by_runsc(options: &Options, raw: &mut Raw) -> anyhow::Result<Duration> {
    let program = options.root.program(&PROGRAM);
    let (mut words, mut running) = (JoinSet::new(), Vec::<(raw::Container, Child)>::new());
    // Writing the descriptions counts: the engine does it too.
    let began = Instant::now();
    for _ in 0..options.count {
        let container = raw.prepare(&program)?;
        let mut child = container.run(Stdio::piped(), Stdio::inherit())?;
        let stdout = child.stdout.take().context("no pipe")?;
        words.spawn_blocking(move || word(stdout));
        running.push((container, child));
    }
    let said = tokio::time::timeout(DEADLINE, async {
        while let Some(word) = words.join_next().await {
            word??;
        }
        anyhow::Ok(())
    });
    let said = said.await;
    let taken = began.elapsed();
    tokio::task::block_in_place(|| {
        running.into_iter().try_for_each(|(container, mut child)| {
            drop(container);
            child.wait().context("cannot wait for runsc").map(drop)
        })
    })?;
    said.with_context(|| format!("containers of `runsc run` said nothing within {DEADLINE:?}"))?.map(|()| taken)
}

fn word(mut stdout: impl std::io::Read) -> anyhow::Result<()> {
    let read = stdout.read(&mut [0; 64]).context("cannot read a container's output")?;
    ensure!(read > 0, "a container ended without a word");
    Ok(())
}
