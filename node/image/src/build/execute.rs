//! One build from request to image: plans stages as they are needed, takes what is known from the cache, and executes the
//! rest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use shoal_state::Digest;
use shoal_storage::manifest::{Entry, Kind, Path, Tree, UNDATED_NS, put_content};

use crate::bases::{Base, Bases, ImageReference, write_tree};
use crate::cache::LayerRecord;
use crate::config::ImageConfig;
use crate::error::{Error, FailureKind, Result, TreeContext, blocking};
use crate::key::KeyBuilder;
use crate::log::{BuildLog, Tail};
use crate::recipe::{Globals, Network, Recipe, RunStep, Step, TransferStep};

use super::copy::{self, Attributes};
use super::plan::{self, Origin, PlannedStep, StageBase, StagePlan, Walk};
use super::probe::{self, ImageMetadata};
use super::request::BuildRequest;
use super::sandbox::{Ended, Equipment, Exec, Sandbox};
use super::users::Accounts;
use super::{Inner, add, mounts};

/// The largest `/etc/passwd` that is read.
const ACCOUNTS_BYTES_MAX: u64 = 4 << 20;

/// A container that has written more than this is replaced, because each step exports all that it wrote.
const EXPORT_BYTES_MAX: u64 = 256 << 20;

/// How deep bases may need recipes of their own. One level is what there is.
const DEPTH_MAX: usize = 3;

/// A build on its way.
pub(super) struct Execution<'a> {
    inner: &'a Arc<Inner>,
    request: &'a BuildRequest,
    log: &'a dyn BuildLog,
    recipe: Recipe,
    globals: Globals,
    context: Arc<Tree>,
    deadline: Instant,
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
                        self.close(sandbox).await;
                        return Err(error);
                    }
                };
            }
            self.close(sandbox).await;
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
                self.close(sandbox.take()).await;
                directory(&tree, path).map_err(|problem| step.failed(problem))?
            }
            Step::Transfer(transfer) => {
                self.close(sandbox.take()).await;
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

    async fn close(&self, sandbox: Option<Sandbox>) {
        if let Some(sandbox) = sandbox
            && let Err(error) = sandbox.close().await
        {
            tracing::warn!(error = error.full_text(), "a build container left something behind");
        }
    }

    async fn transfer(&mut self, stage: usize, step: &PlannedStep, transfer: &TransferStep, into: &Tree) -> Result<Tree> {
        let failed = |problem: String| step.failed(problem);
        let (selected, keeps_owner) = match plan::origin(&self.recipe, stage, transfer.from.as_deref()) {
            Origin::Context => (plan::context_selection(transfer, &self.context).map_err(failed)?, false),
            other => {
                let (from, what) = self.origin_tree(other).await?;
                (copy::select(transfer, &transfer.sources, &from, &what).map_err(failed)?, true)
            }
        };
        let mut selected = selected;
        if transfer.is_add && transfer.unpack != Some(false) {
            self.unpack(&mut selected).map_err(failed)?;
        }
        for source in transfer.sources.iter().filter(|source| plan::is_remote(transfer, source)) {
            selected.push(self.fetch(step, transfer, source).await?);
        }
        for inline in &transfer.inline {
            let store = &self.inner.store;
            let (size, content) = put_content(inline.content.as_bytes(), &inline.name, store).tree(&inline.name)?;
            let entry = Entry { mtime_ns: UNDATED_NS, ..Entry::new(Kind::File { size, content }, 0o644) };
            let path = Path::parse(&inline.name).map_err(|error| step.failed(error.to_string()))?;
            selected.push(copy::Selected { path, tree: Tree::of(entry), from_pattern: false });
        }
        let owner = match &transfer.chown {
            Some(owner) => Some(self.accounts(into)?.owner(owner).map_err(failed)?),
            None => (!keeps_owner).then_some((0, 0)),
        };
        let mut tree = into.clone();
        copy::place(&mut tree, transfer, selected, Attributes { owner, mode: transfer.chmod }).map_err(failed)?;
        Ok(tree)
    }

    /// Replaces archives by what is in them.
    fn unpack(&self, selected: &mut [copy::Selected]) -> Result<(), copy::Problem> {
        for selected in selected {
            if matches!(selected.tree.root().kind, Kind::File { .. })
                && let Some(tree) = add::unpacked(&selected.tree, &self.inner.store)?
            {
                selected.tree = tree;
            }
        }
        Ok(())
    }

    async fn fetch(&self, step: &PlannedStep, transfer: &TransferStep, source: &str) -> Result<copy::Selected> {
        if add::is_repository(source) {
            return Err(step.failed("repositories are not fetched: use git in a RUN"));
        }
        let wanted = transfer.destination.rsplit('/').next().unwrap_or_default();
        let name = add::file_name(source)
            .or_else(|| (!wanted.is_empty()).then(|| wanted.to_owned()))
            .ok_or_else(|| step.failed(format!("{source} has no file name: give a destination that is not a folder")))?;
        let folder = self.inner.folder()?;
        let file = folder.path().join("fetched");
        self.log.info(format!("fetching {source}"));
        let fetched = add::fetch(source, self.inner.config.egress.ca_bundle.as_deref(), &file);
        let hash = self.in_time(step, &Tail::default(), fetched).await??.map_err(|problem| step.failed(problem))?;
        if let Some(expected) = &transfer.checksum
            && *expected != hash
        {
            return Err(step.failed(format!("{source} has the checksum {hash}, expected {expected}")));
        }
        let mut tree = add::fetched(&file, &name, &self.inner.store).map_err(|problem| step.failed(problem))?;
        if transfer.unpack == Some(true)
            && let Some(unpacked) = add::unpacked(&tree, &self.inner.store).map_err(|problem| step.failed(problem))?
        {
            tree = unpacked;
        }
        let path = Path::parse(&name).map_err(|error| step.failed(error.to_string()))?;
        Ok(copy::Selected { path, tree, from_pattern: false })
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

    fn accounts(&self, tree: &Tree) -> Result<Accounts> {
        let text = |name: &str| -> Result<String> {
            let bytes = tree.read_file(&crate::bases::path(name), ACCOUNTS_BYTES_MAX, &self.inner.store).tree(name)?;
            Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
        };
        Ok(Accounts { passwd: text("etc/passwd")?, group: text("etc/group")? })
    }

    async fn in_time<T>(&self, step: &PlannedStep, tail: &Tail, work: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout_at(self.deadline.into(), work).await.map_err(|_| self.late(step, tail))
    }

    fn late(&self, step: &PlannedStep, tail: &Tail) -> Error {
        let limit = self.inner.config.timeout();
        Error::Timeout { line: step.line, instruction: step.text.clone(), limit, tail: tail.text() }
    }

    async fn run(
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
            self.close(sandbox.take()).await;
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
                self.close(Some(running)).await;
                return Err(error);
            }
        }
        let saved = running.tree(&self.inner.store).await;
        match &saved {
            Ok(changed) if plain && changed.content_bytes() < running.base_bytes() + EXPORT_BYTES_MAX => *sandbox = Some(running),
            _ => self.close(Some(running)).await,
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
        let equipment = Equipment {
            network: inner.config.network && network == Network::Default,
            binds: volumes.chain(mounted.binds.iter().cloned()).collect(),
            gpu: self.request.gpu.clone(),
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

    /// Asks a finished image for its Python and packages.
    pub(super) async fn probe(&self, built: &Built) -> Result<ImageMetadata> {
        let mut metadata = ImageMetadata {
            workdir: built.config.workdir.clone(),
            image_builder_version: self.request.builder_version.clone(),
            libc_version_info: libc_of(&built.tree),
            ..ImageMetadata::default()
        };
        if !has_python(&built.tree, built.config.path()) || self.inner.containers.is_none() {
            return Ok(metadata);
        }
        let mut sandbox = self.start(Network::None, built.tree.clone(), &mounts::Mounted::default()).await?;
        let mut env = built.config.env.clone();
        env.entry("PATH".to_owned()).or_insert_with(|| crate::config::DEFAULT_PATH.to_owned());
        let limit = Instant::now() + probe::LIMIT;
        for program in ["python", "python3"] {
            let argv = [program, "-c", probe::SCRIPT].map(str::to_owned).to_vec();
            let exec = Exec { argv, env: env.clone(), cwd: "/".to_owned(), user: shoal_runtime::User::default(), script: None };
            let output = probe::Collected::default();
            if sandbox.run(&exec, limit, &output, &mut Tail::default()).await? == Ended::Well {
                probe::read_answer(&output.text(), &mut metadata);
                break;
            }
        }
        self.close(Some(sandbox)).await;
        Ok(metadata)
    }

    pub(super) fn parts(&self) -> (&'a Arc<Inner>, &'a BuildRequest) {
        (self.inner, self.request)
    }

    pub(super) fn recipe(&self) -> &Recipe {
        &self.recipe
    }
}

/// Makes sure that a folder exists, and leaves one that does alone.
fn directory(tree: &Tree, path: &str) -> Result<Tree, copy::Problem> {
    let path = Path::parse(path).map_err(|error| error.to_string())?;
    let real = tree.follow(&path).map_err(|error| error.to_string())?;
    let mut tree = tree.clone();
    match tree.get(&real) {
        Some(entry) if entry.is_dir() => {}
        Some(_) => return Err(format!("{path} is there and not a folder")),
        None => make_directories(&mut tree, &real).map_err(|error| error.to_string())?,
    }
    Ok(tree)
}

/// Makes a folder and those above it that are missing.
fn make_directories(tree: &mut Tree, path: &Path) -> shoal_storage::manifest::Result<()> {
    if let Some(parent) = path.parent()
        && tree.get(&parent).is_none()
    {
        make_directories(tree, &parent)?;
    }
    tree.insert(path, Entry { mtime_ns: UNDATED_NS, ..Entry::dir() }).map(drop)
}

fn has_python(tree: &Tree, search: &str) -> bool {
    let there = |folder: &str, name: &str| {
        let path = Path::parse(format!("{folder}/{name}")).ok()?;
        tree.get(&tree.follow(&path).ok()?)
    };
    search.split(':').any(|folder| ["python", "python3"].iter().any(|name| there(folder, name).is_some()))
}

/// Tells musl by its loader; for glibc the interpreter knows more.
fn libc_of(tree: &Tree) -> Option<String> {
    let there = |name: &str| {
        let path = crate::bases::path(name);
        tree.follow(&path).is_ok_and(|real| tree.get(&real).is_some())
    };
    match (there("lib/ld-musl-x86_64.so.1"), there("lib64/ld-linux-x86-64.so.2")) {
        (true, _) => Some("musl".to_owned()),
        (false, true) => Some("glibc".to_owned()),
        (false, false) => None,
    }
}

impl Inner {
    /// Puts the context together: the mount with the single files over it.
    async fn context(&self, request: &BuildRequest) -> Result<Tree> {
        let (store, context, files) = (self.store.clone(), request.context, request.context_files.clone());
        blocking("reading the build context", move || {
            let mut tree = match context {
                Some(digest) => Tree::read(&store, &digest).tree("the build context")?,
                None => Tree::new(),
            };
            for (name, bytes) in &files {
                let path = Path::parse(name).map_err(|error| Error::Tree { what: "the build context".to_owned(), source: error.into() })?;
                let (size, content) = put_content(&bytes[..], name, &store).tree(name)?;
                let entry = Entry { mtime_ns: UNDATED_NS, ..Entry::new(Kind::File { size, content }, 0o644) };
                tree.insert(&path, entry).tree(name)?;
            }
            Ok(tree)
        })
        .await
    }
}
