//! What containers are measured on: a root with its environment, by a runsc, in a folder for that.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use shoal_runtime::{Engine, EngineConfig};

use crate::ahead::{self, Shown};
use crate::containers::environment_of;
use crate::raw::{Program, Raw};

/// Where the root is, and what runs it.
#[derive(Args, Debug)]
pub(crate) struct Root {
    /// The root, a folder with a python3.
    #[arg(long)]
    pub(crate) folder: PathBuf,
    /// The image's own environment, "NAME=value".
    #[arg(long)]
    pub(crate) env: Vec<String>,
    /// An empty folder to work in.
    #[arg(long)]
    pub(crate) work: PathBuf,
    /// The program that runs containers.
    #[arg(long, default_value = "/usr/local/bin/runsc")]
    pub(crate) runsc: PathBuf,
}

impl Root {
    /// Returns the environment of programs in it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        environment_of(&self.env)
    }

    /// Opens an engine that keeps so many sandboxes ahead, and shows it the root as a tree.
    async fn engine(&self, ahead: usize) -> anyhow::Result<(Engine, Shown)> {
        let engine = EngineConfig { runsc: self.runsc.clone(), ..EngineConfig::new(self.work.join("engine")) };
        let engine = Engine::open(engine).await.context("cannot open an engine")?;
        let shown = ahead::show(&self.folder, &self.work, ahead).context("cannot show the folder as a tree")?;
        engine.make_ahead(shown.config.clone());
        Ok((engine, shown))
    }

    /// Measures with such an engine, which is closed then.
    pub(crate) async fn with_engine(
        &self,
        ahead: usize,
        measure: impl AsyncFnOnce(&Engine, &Shown) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (engine, shown) = self.engine(ahead).await?;
        let measured = measure(&engine, &shown).await;
        engine.close().await.context("cannot close the engine")?;
        measured
    }

    /// Returns plain `runsc run`s of it, beside an engine.
    pub(crate) fn raw(&self) -> anyhow::Result<Raw> {
        Raw::new(&self.runsc, &self.work.join("raw"), &[])
    }

    /// Returns a program in it for a plain `runsc run`.
    pub(crate) fn program(&self, argv: &[&str]) -> Program {
        Program {
            root: self.folder.clone(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            env: self.environment().into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: "/".to_owned(),
            binds: vec![],
        }
    }
}
