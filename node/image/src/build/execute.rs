//! One build from request to image: plans stages as they are needed, takes what is known from the cache, and executes the
//! rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use shoal_state::Digest;
use shoal_storage::manifest::Tree;

use crate::bases::{Base, Bases, ImageReference, write_tree};
use crate::cache::LayerRecord;
use crate::config::ImageConfig;
use crate::error::{Error, FailureKind, Result};
use crate::key::KeyBuilder;
use crate::log::BuildLog;
use crate::recipe::{Globals, Recipe, Step};

use super::Inner;
use super::plan::{Origin, PlannedStep, StageBase, StagePlan, Walk};
use super::request::BuildRequest;
use super::sandbox::Sandbox;
use super::transfer;

/// How deep bases may need recipes of their own. One level is what there is.
const DEPTH_MAX: usize = 3;

/// A build on its way.
pub(super) struct Execution<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) request: &'a BuildRequest,
    pub(super) log: &'a dyn BuildLog,
    pub(super) recipe: Recipe,
    pub(super) globals: Globals,
    pub(super) context: Arc<Tree>,
    pub(super) deadline: Instant,
    depth: usize,
    plans: HashMap<usize, Arc<StagePlan>>,
    trees: HashMap<usize, Arc<Tree>>,
    /// Images that were named, with their keys.
    images: HashMap<String, (Digest, LayerRecord)>,
}

/// What a build leads to.
pub(super) struct Built {
    pub(super) manifest: Digest,
    pub(super) config: ImageConfig,
    pub(super) tree: Arc<Tree>,
}

impl<'a> Execution<'a> {
    /// Reads the recipe and the context.
    pub(super) async fn prepare(inner: &'a Arc<Inner>, request: &'a BuildRequest, log: &'a dyn BuildLog, depth: usize) -> Result<Self> {
        let recipe = Recipe::parse(&request.commands)?;
        let globals = Globals::new(&recipe, &request.build_args)?;
        let context = Arc::new(inner.context(request).await?);
        let deadline = Instant::now() + inner.config.timeout();
        let (plans, trees, images) = Default::default();
        Ok(Execution { inner, request, log, recipe, globals, context, deadline, depth, plans, trees, images })
    }

    /// Builds the last stage.
    pub(super) async fn build(&mut self) -> Result<Built> {
        let target = self.recipe.stages.len() - 1;
        let plan = self.plan(target).await?;
        let tree = self.realise(target).await?;
        let manifest = write_tree(&self.inner.store, Tree::clone(&tree), "the image").await?;
        Ok(Built { manifest, config: plan.config.clone(), tree })
    }

    /// Plans a stage and the stages it needs.
    fn plan(&mut self, stage: usize) -> BoxFuture<'_, Result<Arc<StagePlan>>> {
        Box::pin(async move {
            if let Some(plan) = self.plans.get(&stage) {
                return Ok(plan.clone());
            }
            let from = self.recipe.stages[stage].from.clone();
            let name = self.globals.base(&from)?;
            let (base, key, config, args) = match self.recipe.stage(&name, stage) {
                _ if name == "scratch" => {
                    (StageBase::Empty, KeyBuilder::new("scratch 1").finish(), ImageConfig::default(), BTreeMap::new())
                }
                Some(earlier) => {
                    let plan = self.plan(earlier).await?;
                    (StageBase::Stage(earlier), plan.key, plan.config.clone(), plan.args.clone())
                }
                None => {
                    let (key, record) = self.image(&name, from.line, &from.text).await?;
                    (StageBase::Image(record.manifest), key, record.config, BTreeMap::new())
                }
            };
            let (mut stage_keys, mut image_keys) = (HashMap::new(), HashMap::new());
            let needs = self.walk(stage, HashMap::new(), HashMap::new()).needs(config.clone(), args.clone())?;
            for needed in needs.stages {
                stage_keys.insert(needed, self.plan(needed).await?.key);
            }
            for (name, line, text) in needs.images {
                let (key, _) = self.image(&name, line, &text).await?;
                image_keys.insert(name, key);
            }
            let plan = Arc::new(self.walk(stage, stage_keys, image_keys).plan(base, key, config, args)?);
            self.plans.insert(stage, plan.clone());
            Ok(plan)
        })
    }

    fn walk(&self, stage: usize, stage_keys: HashMap<usize, Digest>, image_keys: HashMap<String, Digest>) -> Walk<'_> {
        Walk { request: self.request, recipe: &self.recipe, globals: &self.globals, context: &self.context, stage, stage_keys, image_keys }
    }

    /// Finds an image that FROM or `--from` names.
    async fn image(&mut self, name: &str, line: u32, text: &str) -> Result<(Digest, LayerRecord)> {
        if let Some(base) = self.request.bases.get(name) {
            return Ok((base.key, base.record.clone()));
        }
        if let Some(found) = self.images.get(name) {
            return Ok(found.clone());
        }
        let failed = |error: Error| match error.kind() {
            FailureKind::Build => Error::Instruction { line, instruction: text.to_owned(), problem: error.full_text() },
            _ => error,
        };
        let reference = ImageReference::parse(name).map_err(failed)?;
        let credentials = &self.request.registry.credentials;
        let key = Bases::key(&reference, credentials);
        let record = match self.inner.bases.resolve(&reference, credentials, self.log).await.map_err(failed)? {
            Base::Ready(record) => *record,
            Base::Recipe(commands) => {
                let record = self.build_base(commands).await.map_err(failed)?;
                self.inner.remember(key, record.clone()).await?;
                record
            }
        };
        self.images.insert(name.to_owned(), (key, record.clone()));
        Ok((key, record))
    }

    /// Builds a base by a recipe of our own.
    fn build_base(&self, commands: Vec<String>) -> BoxFuture<'_, Result<LayerRecord>> {
        Box::pin(async move {
            if self.depth == DEPTH_MAX {
                return Err(Error::NotAnImage { reference: "a base".to_owned(), why: "needs itself to be made".to_owned() });
            }
            let request = BuildRequest { commands, builder_version: self.request.builder_version.clone(), ..BuildRequest::default() };
            let mut execution = Execution::prepare(self.inner, &request, self.log, self.depth + 1).await?;
            let built = execution.build().await?;
            Ok(LayerRecord { manifest: built.manifest, config: built.config })
        })
    }

    /// Returns the tree at the end of a stage.
    fn realise(&mut self, stage: usize) -> BoxFuture<'_, Result<Arc<Tree>>> {
        Box::pin(async move {
            if let Some(tree) = self.trees.get(&stage) {
                return Ok(tree.clone());
            }
            let plan = self.plan(stage).await?;
            let (mut tree, first) = match self.known(&plan).await? {
                Some((tree, index)) => (tree, index + 1),
                None => (self.base_tree(&plan.base).await?, 0),
            };
            let mut sandbox = None;
            for (number, step) in plan.steps.iter().enumerate().skip(first) {
                // As the SDK's own builders say it: FROM is step 0.
                self.log.info(format!("=> Step {}: {}", number + 1, step.text));
                let outcome = self.step(stage, step, tree, &mut sandbox).await;
                tree = match outcome {
                    Ok(tree) => tree,
                    Err(error) => {
                        close(sandbox).await;
                        return Err(error);
                    }
                };
            }
            close(sandbox).await;
            self.trees.insert(stage, tree.clone());
            Ok(tree)
        })
    }

    /// Finds the last step that is known, with its tree.
    async fn known(&self, plan: &StagePlan) -> Result<Option<(Arc<Tree>, usize)>> {
        if !self.request.reads_cache() {
            return Ok(None);
        }
        for (index, step) in plan.steps.iter().enumerate().rev() {
            if step.step == Step::Config {
                continue;
            }
            let Some(record) = self.inner.lookup(step.key).await? else { continue };
            match self.inner.read_tree(record.manifest).await {
                Ok(tree) => {
                    self.log.info(format!("the result of {} is known", step.text));
                    return Ok(Some((tree, index)));
                }
                // A record without its tree is worth nothing; the step is built again.
                Err(error) => self.log.info(error.full_text()),
            }
        }
        Ok(None)
    }

    async fn base_tree(&mut self, base: &StageBase) -> Result<Arc<Tree>> {
        match base {
            StageBase::Empty => Ok(Arc::new(Tree::new())),
            StageBase::Image(manifest) => self.inner.read_tree(*manifest).await,
            StageBase::Stage(stage) => self.realise(*stage).await,
        }
    }

    /// Executes one step and remembers its result.
    async fn step(&mut self, stage: usize, step: &PlannedStep, tree: Arc<Tree>, sandbox: &mut Option<Sandbox>) -> Result<Arc<Tree>> {
        let changed = match &step.step {
            Step::Config => return Ok(tree),
            Step::Directory(path) => {
                close(sandbox.take()).await;
                transfer::directory(&tree, path).map_err(|problem| step.failed(problem))?
            }
            Step::Transfer(transfer) => {
                close(sandbox.take()).await;
                self.transfer(stage, step, transfer, &tree).await?
            }
            Step::Run(run) => self.run(stage, step, run, tree, sandbox).await?,
        };
        let changed = Arc::new(changed);
        if self.request.writes_cache() {
            let manifest = write_tree(&self.inner.store, Tree::clone(&changed), &step.text).await?;
            self.inner.remember(step.key, LayerRecord { manifest, config: step.config.clone() }).await?;
        }
        Ok(changed)
    }

    /// Returns the tree of a stage, an image or the context, with its name for messages.
    pub(super) async fn origin_tree(&mut self, origin: Origin<'_>) -> Result<(Arc<Tree>, String)> {
        match origin {
            Origin::Context => Ok((self.context.clone(), "the build context".to_owned())),
            Origin::Stage(stage) => {
                let name = self.recipe.stages[stage].from.value.name.clone().unwrap_or_else(|| stage.to_string());
                Ok((self.realise(stage).await?, format!("the stage {name}")))
            }
            Origin::Image(name) => {
                let (_, record) = self.image(name, 0, name).await?;
                Ok((self.inner.read_tree(record.manifest).await?, format!("the image {name}")))
            }
        }
    }
}

/// Takes a container down, if there is one.
pub(super) async fn close(sandbox: Option<Sandbox>) {
    if let Some(sandbox) = sandbox {
        sandbox.close().await;
    }
}
