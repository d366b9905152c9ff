//! The containers of entrypoints: as a node starts them, or each by a plain `runsc run`.

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use shoal_runtime::{Bind, Container, ContainerSpec, Engine, NetworkMode};

use super::pools::Pool;
use super::{FunctionSetup, Setup};
use crate::raw::{self, Program, Raw};

/// How many of those that stay are started at a time.
const STARTS_AT_ONCE: usize = 4;

/// Starts an entrypoint as a node does, but for the root, which is a folder.
pub(super) async fn start(setup: &Setup, engine: &Engine, function: &FunctionSetup) -> anyhow::Result<Container> {
    let mut spec = ContainerSpec::new(&setup.folder, setup.argv.iter().cloned());
    spec.env.clone_from(&setup.env);
    spec.cwd.clone_from(&setup.cwd);
    spec.network = NetworkMode::Nat;
    spec.binds = binds(setup, function).into_iter().map(|(source, target)| Bind { source, target, read_only: false }).collect();
    let container = engine.create(spec).await.context("cannot create an entrypoint's container")?;
    let stdio = container.take_stdio().context("a container without pipes")?;
    for pipe in [stdio.stdout, stdio.stderr] {
        std::thread::spawn(move || std::io::copy(&mut std::fs::File::from(pipe), &mut std::io::stderr()));
    }
    container.start().await.context("cannot start an entrypoint")?;
    Ok(container)
}

fn binds(setup: &Setup, function: &FunctionSetup) -> Vec<(PathBuf, String)> {
    let own = (function.dir.clone(), setup.task_dir.clone());
    setup.binds.iter().cloned().chain([own]).collect()
}

/// An entrypoint by a plain `runsc run`. Ended by [`Bare::end`].
pub(super) struct Bare {
    container: raw::Container,
    process: Child,
}

impl Bare {
    /// Takes it down. Blocks.
    fn end(mut self) -> anyhow::Result<()> {
        drop(self.container);
        self.process.wait().context("cannot wait for runsc")?;
        Ok(())
    }
}

fn run_bare(setup: &Setup, raw: &mut Raw, function: &FunctionSetup) -> anyhow::Result<Bare> {
    let program = Program {
        root: setup.folder.clone(),
        argv: setup.argv.clone(),
        env: setup.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: setup.cwd.clone(),
        binds: binds(setup, function),
    };
    let container = raw.prepare(&program)?;
    let process = container.run(Stdio::null(), Stdio::inherit())?;
    Ok(Bare { container, process })
}

/// Runs entrypoints at once and measures until each has asked for its first input.
pub(super) async fn bare(setup: &Setup, raw: &mut Raw, pool: &Pool, function: &FunctionSetup, count: usize) -> anyhow::Result<Duration> {
    // Other processes may have the numbers of earlier ones.
    pool.known.lock().clear();
    let began = Instant::now();
    let runs: Vec<Bare> = (0..count).map(|_| run_bare(setup, raw, function)).collect::<anyhow::Result<_>>()?;
    let asked = pool.all_asked(count).await;
    let taken = began.elapsed();
    end_all(runs)?;
    asked.map(|()| taken)
}

/// Runs entrypoints, some at a time, that stay.
pub(super) async fn keep(
    setup: &Setup,
    raw: &mut Raw,
    pool: &Pool,
    function: &FunctionSetup,
    count: usize,
    kept: &mut Vec<Bare>,
) -> anyhow::Result<()> {
    for begun in (0..count).step_by(STARTS_AT_ONCE) {
        let some = STARTS_AT_ONCE.min(count - begun);
        for _ in 0..some {
            kept.push(run_bare(setup, raw, function)?);
        }
        pool.all_asked(some).await?;
    }
    Ok(())
}

/// Takes all of them down. Blocks.
pub(super) fn end_all(runs: Vec<Bare>) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| runs.into_iter().try_for_each(Bare::end))
}
