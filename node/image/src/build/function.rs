//! Functions as build steps: one function runs in a container of the base, and what it leaves there becomes the image.
//!
//! What the function's program is and how it gets its input and gives its result is the node's to know
//! ([`FunctionRunner`]). Here its container is run like that of any command: the image with the files that the program
//! needs laid over it, and none of those in what it leaves.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use shoal_runtime::{Bind, Limits, NetworkMode, User};
use shoal_state::Digest;
use shoal_storage::manifest::Tree;

use crate::bases::{path, write_tree};
use crate::cache::LayerRecord;
use crate::error::{Error, Result};
use crate::key::KeyBuilder;
use crate::log::{BuildLog, Tail};

use super::Inner;
use super::capture::CLIENT_PLACES;
use super::execute::Built;
use super::request::{BaseImage, BuildRequest};
use super::sandbox::{Ended, Equipment, Exec, Sandbox};

/// A failure of the node, in words.
pub type RunnerFailure = Box<dyn std::error::Error + Send + Sync>;

/// A function that makes an image.
#[derive(Clone)]
pub struct BuildFunction {
    /// Its name, for people.
    pub name: String,
    /// What identifies it: its source text, the globals it uses, its arguments.
    pub identity: Digest,
    /// Knows how it is run.
    pub runner: Arc<dyn FunctionRunner>,
}

impl std::fmt::Debug for BuildFunction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BuildFunction({}, {})", self.name, self.identity)
    }
}

/// The node, as it runs functions of builds.
pub trait FunctionRunner: Send + Sync {
    /// Gets ready what the function's container needs. `image` is the [key](BuildRequest::key) of what is built.
    fn prepare(&self, image: Digest) -> BoxFuture<'_, Result<PreparedFunction, RunnerFailure>>;
}

/// What the container of a function is to be.
pub struct PreparedFunction {
    /// Trees over the image, the first lowest; nothing of them becomes part of what is built.
    pub over: Vec<Digest>,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// Its working folder.
    pub cwd: String,
    /// Folders of the machine that it sees.
    pub binds: Vec<Bind>,
    /// What it may use; what is not said is as for other builds.
    pub limits: Limits,
    /// Whom it may talk to.
    pub network: NetworkMode,
    /// How long its program may take to start.
    pub startup: Duration,
    /// How long it may take after that.
    pub timeout: Duration,
    /// What has become of the function; held until its container is gone.
    pub run: Box<dyn FunctionRun>,
}

/// A function on its way.
pub trait FunctionRun: Any + Send + Sync {
    /// Returns how it ended, once it has said so; the text is for its author.
    fn outcome(&self) -> Option<Result<(), String>>;
}

impl Inner {
    /// Builds an image by a function.
    pub(super) async fn build_function(&self, request: &BuildRequest, function: &BuildFunction, log: &dyn BuildLog) -> Result<Built> {
        let failed = |problem: String| Error::Function { name: function.name.clone(), problem, tail: String::new() };
        let base = request.bases.values().next().ok_or_else(|| failed("names no image to run in".to_owned()))?;
        let key = KeyBuilder::new("function 1").digest("base", &base.key).digest("function", &function.identity).finish();
        if request.reads_cache()
            && let Some(record) = self.lookup(key).await?
            && let Ok(tree) = self.read_tree(record.manifest).await
        {
            log.info(format!("the result of the function {} is known", function.name));
            return Ok(Built { manifest: record.manifest, config: record.config, tree });
        }
        log.info(format!("=> Step 0: running function '{}'", function.name));
        let prepared = function.runner.prepare(request.key()).await.map_err(|error| failed(format!("cannot be run: {error}")))?;
        let tree = self.run_function(base, function, prepared, log).await?;
        let manifest = write_tree(&self.store, Tree::clone(&tree), "the image").await?;
        let config = base.record.config.clone();
        if request.writes_cache() {
            self.remember(key, LayerRecord { manifest, config: config.clone() }).await?;
        }
        Ok(Built { manifest, config, tree })
    }

    async fn run_function(
        &self,
        base: &BaseImage,
        function: &BuildFunction,
        prepared: PreparedFunction,
        log: &dyn BuildLog,
    ) -> Result<Arc<Tree>> {
        let PreparedFunction { over: manifests, argv, env, cwd, binds, limits, network, startup, timeout, run } = prepared;
        let mut over = Vec::new();
        for manifest in &manifests {
            over.push(self.read_tree(*manifest).await?);
        }
        let tree = self.read_tree(base.record.manifest).await?;
        let memory_bytes = limits.memory_bytes.or(self.config.memory_bytes);
        let hidden = CLIENT_PLACES.map(path).to_vec();
        let equipment = Equipment { network, binds, gpu: None, over, hidden, folders: vec![cwd.clone()], limits };
        let mut sandbox = Sandbox::start(self.containers()?, &self.work_dir, &self.config, tree, equipment).await?;
        let exec = Exec { argv, env, cwd, user: User::default(), script: None };
        let mut tail = Tail::default();
        let ended = sandbox.run(&exec, Instant::now() + startup + timeout, log, &mut tail).await;
        let left = match ended {
            Ok(ended) => match problem(ended, run.outcome(), timeout, memory_bytes) {
                None => sandbox.tree(&self.store).await.map(Arc::new),
                Some(problem) => Err(Error::Function { name: function.name.clone(), problem, tail: tail.text() }),
            },
            Err(error) => Err(error),
        };
        sandbox.close().await;
        drop(run);
        left
    }
}

/// Says what went wrong, if anything did. What the function itself said of its end counts most.
fn problem(ended: Ended, outcome: Option<Result<(), String>>, timeout: Duration, memory_bytes: Option<u64>) -> Option<String> {
    match (ended, outcome) {
        (Ended::OutOfMemory, _) => {
            Some(format!("ran out of memory (limit: {} bytes): give it more with memory=", memory_bytes.unwrap_or(0)))
        }
        (Ended::OutOfDisk(over), _) => Some(format!("was killed: {over}")),
        (_, Some(Err(said))) => Some(said),
        (Ended::Late, _) => Some(format!("did not end within {} s: give it longer with timeout=", timeout.as_secs_f64())),
        (Ended::Badly(how), _) => Some(format!("ended with {how}")),
        (Ended::Well, Some(Ok(()))) => None,
        (Ended::Well, None) => Some("ended without a result".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use shoal_runtime::OverDisk;

    use super::*;

    #[test]
    fn a_function_is_judged_by_what_it_says_and_by_how_it_ends() {
        let second = Duration::from_millis(1500);
        let judge = |ended, outcome| problem(ended, outcome, second, Some(64));
        assert_eq!(judge(Ended::Well, Some(Ok(()))), None);
        assert_eq!(judge(Ended::Well, None).unwrap(), "ended without a result");
        assert_eq!(judge(Ended::Well, Some(Err("raised X".into()))).unwrap(), "raised X");
        assert_eq!(judge(Ended::Badly("exit code 1".into()), Some(Err("raised X".into()))).unwrap(), "raised X");
        assert_eq!(judge(Ended::Badly("signal 9".into()), Some(Ok(()))).unwrap(), "ended with signal 9");
        assert_eq!(judge(Ended::Late, None).unwrap(), "did not end within 1.5 s: give it longer with timeout=");
        assert_eq!(judge(Ended::OutOfMemory, None).unwrap(), "ran out of memory (limit: 64 bytes): give it more with memory=");
        let over = OverDisk { own_bytes: 3 << 20, all_bytes: 5 << 20, budget_bytes: 4 << 20 };
        assert!(judge(Ended::OutOfDisk(over), None).unwrap().starts_with("was killed: it took 3 MiB"));
    }
}
