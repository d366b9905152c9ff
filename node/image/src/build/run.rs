//! RUN in a build: one command in a container on the tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_runtime::NetworkMode;
use shoal_storage::manifest::Tree;

use crate::error::{Error, Result, TreeContext};
use crate::log::Tail;
use crate::recipe::{Network, RunStep};

use super::execute::{Execution, close};
use super::mounts;
use super::plan::PlannedStep;
use super::sandbox::{Ended, Equipment, Exec, Sandbox};
use super::users::Accounts;

/// The largest `/etc/passwd` that is read.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

/// A container that has written more than this is replaced, because each step exports all that it wrote.
const EXPORT_BYTES_MAX: u64 = 256 << 20;

impl Execution<'_> {
    /// Runs a command on a tree. The container stays in `sandbox` for the next command where it can serve again.
    pub(super) async fn run(
        &mut self,
        stage: usize,
        step: &PlannedStep,
        run: &RunStep,
        tree: Arc<Tree>,
        sandbox: &mut Option<Sandbox>,
    ) -> Result<Tree> {
        let accounts = self.accounts(&tree)?;
        let account = accounts.account(run.user.as_deref().unwrap_or("root")).or_else(|problem| match run.user {
            // An image without any users has a root all the same.
            None => accounts.account("0"),
            Some(_) => Err(problem),
        });
        let account = account.map_err(|problem| step.failed(problem))?;
        let plain = run.mounts.is_empty() && run.network == Network::Default;
        if !plain || sandbox.as_ref().is_some_and(|sandbox| sandbox.is_stale) {
            close(sandbox.take()).await;
        }
        let mounted = mounts::prepare(self, stage, step, run).await?;
        let mut running = match sandbox.take() {
            Some(running) => running,
            None => self.start(run.network, tree, &mounted).await?,
        };
        let exec = Exec {
            argv: run.argv.clone(),
            env: self.env(run, &mounted.env, &account.home),
            cwd: run.workdir.clone(),
            user: account.user,
            script: run.script.clone(),
        };
        let mut tail = Tail::default();
        let ended = running.run(&exec, self.deadline, self.log, &mut tail).await;
        match ended.and_then(|ended| self.judge(step, ended, &tail)) {
            Ok(()) => {}
            Err(error) => {
                running.close().await;
                return Err(error);
            }
        }
        let saved = running.tree(&self.inner.store).await;
        match &saved {
            Ok(changed) if plain && changed.content_bytes() < running.base_bytes() + EXPORT_BYTES_MAX => *sandbox = Some(running),
            _ => running.close().await,
        }
        drop(mounted);
        saved
    }

    async fn start(&self, network: Network, tree: Arc<Tree>, mounted: &mounts::Mounted) -> Result<Sandbox> {
        let inner = self.inner;
        let containers = inner.containers()?;
        let volumes = self.request.volumes.iter().map(|volume| shoal_runtime::Bind {
            source: volume.source.clone(),
            target: volume.target.clone(),
            read_only: volume.read_only,
        });
        let reaches = inner.config.network && network == Network::Default;
        let equipment = Equipment {
            network: if reaches { NetworkMode::Nat } else { NetworkMode::None },
            binds: volumes.chain(mounted.binds.iter().cloned()).collect(),
            gpu: self.request.gpu.clone(),
            ..Equipment::default()
        };
        Sandbox::start(containers, &inner.work_dir, &inner.config, tree, equipment).await
    }

    fn judge(&self, step: &PlannedStep, ended: Ended, tail: &Tail) -> Result<()> {
        let (line, instruction, tail_text) = (step.line, step.text.clone(), tail.text());
        match ended {
            Ended::Well => Ok(()),
            Ended::Badly(ended) => Err(Error::Command { line, instruction, ended, tail: tail_text }),
            Ended::OutOfMemory => {
                let limit_bytes = self.inner.config.memory_bytes.unwrap_or(0);
                Err(Error::OutOfMemory { line, instruction, limit_bytes, tail: tail_text })
            }
            Ended::OutOfDisk(over) => Err(Error::OutOfDisk { line, instruction, over, tail: tail_text }),
            Ended::Late => Err(self.late(step, tail)),
        }
    }

    /// Environment of a command: the node's way out, proxies, the image's own, secrets; later ones win.
    fn env(&self, run: &RunStep, mounted: &BTreeMap<String, String>, home: &str) -> BTreeMap<String, String> {
        let mut env = self.inner.config.egress.env();
        env.insert("HOME".to_owned(), home.to_owned());
        env.insert("PATH".to_owned(), crate::config::DEFAULT_PATH.to_owned());
        env.extend(self.globals.scope(BTreeMap::new()).proxies());
        env.extend(run.env.clone());
        env.extend(self.request.secret_env());
        env.extend(mounted.clone());
        env
    }

    pub(super) fn accounts(&self, tree: &Tree) -> Result<Accounts> {
        let text = |name: &str| -> Result<String> {
            let bytes = tree.read_file(&crate::bases::path(name), ACCOUNTS_BYTES_MAX, &self.inner.store).tree(name)?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        Ok(Accounts { passwd: text("etc/passwd")?, group: text("etc/group")? })
    }

    /// Waits for work until the deadline of the build.
    pub(super) async fn in_time<T>(&self, step: &PlannedStep, tail: &Tail, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout_at(self.deadline.into(), work).await.map_err(|_| self.late(step, tail))
    }

    fn late(&self, step: &PlannedStep, tail: &Tail) -> Error {
        let limit = self.inner.config.timeout();
        Error::Timeout { line: step.line, instruction: step.text.clone(), limit, tail: tail.text() }
    }
}
