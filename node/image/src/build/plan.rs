//! The plan of a stage: its steps with their keys, before anything is executed.
//!
//! The key of a step is a hash of the key before it and of everything the step's result depends on: the instruction with
//! its variables filled in, the config it runs under, the content of what it copies, the identities of secrets, GPU and
//! volumes. So a changed byte gives new keys from exactly that step on, and the same program gives the same keys wherever
//! it comes from.

use std::collections::{BTreeMap, HashMap};

use shoal_state::Digest;
use shoal_storage::manifest::{Kind, Path, Tree};

use crate::config::ImageConfig;
use crate::error::{Error, Result};
use crate::key::KeyBuilder;
use crate::recipe::{Globals, Instruction, Located, MountKind, Recipe, RunStep, Step, TransferStep};

use super::copy::{self, Selected};
use super::request::BuildRequest;
use super::{add, copy::Problem};

/// A stage with its keys.
#[derive(Debug)]
pub(super) struct StagePlan {
    pub(super) base: StageBase,
    pub(super) steps: Vec<PlannedStep>,
    /// What identifies the stage's result.
    pub(super) key: Digest,
    /// The config at the end.
    pub(super) config: ImageConfig,
    /// Arguments that a stage made from this one inherits.
    pub(super) args: BTreeMap<String, String>,
}

/// What a stage begins with.
#[derive(Debug, Clone)]
pub(super) enum StageBase {
    /// Nothing.
    Empty,
    /// The tree of an image.
    Image(Digest),
    /// An earlier stage.
    Stage(usize),
}

/// One step of a stage.
#[derive(Debug)]
pub(super) struct PlannedStep {
    pub(super) line: u32,
    pub(super) text: String,
    pub(super) step: Step,
    pub(super) key: Digest,
    pub(super) config: ImageConfig,
}

impl PlannedStep {
    /// Adds the place of the instruction to a problem.
    pub(super) fn failed(&self, problem: impl Into<Problem>) -> Error {
        Error::Instruction { line: self.line, instruction: self.text.clone(), problem: problem.into() }
    }
}

/// Where files of a COPY or a mount come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin<'a> {
    Context,
    Stage(usize),
    Image(&'a str),
}

/// Says what a `--from` means within a stage.
pub(super) fn origin<'a>(recipe: &Recipe, stage: usize, from: Option<&'a str>) -> Origin<'a> {
    match from {
        None => Origin::Context,
        Some(name) => recipe.stage(name, stage).map_or(Origin::Image(name), Origin::Stage),
    }
}

/// Walks down a stage.
pub(super) struct Walk<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) recipe: &'a Recipe,
    pub(super) globals: &'a Globals,
    pub(super) context: &'a Tree,
    pub(super) stage: usize,
    /// Keys of the stages and images that the steps name.
    pub(super) stage_keys: HashMap<usize, Digest>,
    pub(super) image_keys: HashMap<String, Digest>,
}

/// What must be known before a stage can be planned.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) stages: Vec<usize>,
    pub(super) images: Vec<(String, u32, String)>,
}

impl Walk<'_> {
    /// Plans the stage on a base of this key and config.
    pub(super) fn plan(&self, base: StageBase, key: Digest, config: ImageConfig, args: BTreeMap<String, String>) -> Result<StagePlan> {
        let (mut key, mut config) = (key, config);
        let mut scope = self.globals.scope(args);
        let mut steps = Vec::new();
        for instruction in self.instructions(&mut config)? {
            let before = config.clone();
            let step = scope.resolve(&instruction, &mut config)?;
            let planned = PlannedStep { line: instruction.line, text: instruction.text, step, key, config: config.clone() };
            if planned.step != Step::Config || config != before {
                key = self.step_key(&planned)?;
            }
            steps.push(PlannedStep { key, ..planned });
        }
        Ok(StagePlan { base, steps, key, config, args: scope.args().clone() })
    }

    /// Says which stages and images the steps name: a dry walk.
    pub(super) fn needs(&self, config: ImageConfig, args: BTreeMap<String, String>) -> Result<Needs> {
        let mut config = config;
        let mut scope = self.globals.scope(args);
        let mut needs = Needs::default();
        for instruction in self.instructions(&mut config)? {
            let step = scope.resolve(&instruction, &mut config)?;
            for from in froms(&step) {
                match origin(self.recipe, self.stage, from) {
                    Origin::Stage(stage) => needs.stages.push(stage),
                    Origin::Image(name) => needs.images.push((name.to_owned(), instruction.line, instruction.text.clone())),
                    Origin::Context => {}
                }
            }
        }
        Ok(needs)
    }

    /// The base's triggers, then the stage's own instructions.
    fn instructions(&self, config: &mut ImageConfig) -> Result<Vec<Located<Instruction>>> {
        let stage = &self.recipe.stages[self.stage];
        let triggers = std::mem::take(&mut config.on_build);
        let mut all = Vec::new();
        for trigger in triggers {
            all.push(Recipe::parse_trigger(&trigger, stage.from.line)?);
        }
        all.extend(stage.instructions.iter().cloned());
        Ok(all)
    }

    fn step_key(&self, planned: &PlannedStep) -> Result<Digest> {
        let key = KeyBuilder::new("step 1").digest("before", &planned.key).value("config", &planned.config).value("step", &planned.step);
        let key = match &planned.step {
            Step::Config | Step::Directory(_) => key,
            Step::Run(run) => self.run_key(key, run, planned)?,
            Step::Transfer(transfer) => match origin(self.recipe, self.stage, transfer.from.as_deref()) {
                Origin::Context => {
                    let selected = context_selection(transfer, self.context).map_err(|problem| planned.failed(problem))?;
                    selected.iter().fold(key, selection_key)
                }
                other => key.digest("from", &self.key_of(other)),
            },
        };
        Ok(key.finish())
    }

    fn run_key(&self, key: KeyBuilder, run: &RunStep, planned: &PlannedStep) -> Result<KeyBuilder> {
        let request = self.request;
        let secrets: Vec<_> = request.secrets.iter().map(|secret| *secret.identity.as_bytes()).collect();
        let mut key = key
            .value("secrets", &secrets)
            .value("gpu", &request.gpu.as_ref().map(|gpu| &gpu.request))
            .value("volumes", &request.volume_identities());
        for mount in &run.mounts {
            let MountKind::Bind { from, source, .. } = &mount.kind else { continue };
            key = match origin(self.recipe, self.stage, from.as_deref()) {
                Origin::Context => {
                    let part = part_of(self.context, source).map_err(|problem| planned.failed(problem))?;
                    tree_key(key, &part)
                }
                other => key.digest("from", &self.key_of(other)),
            };
        }
        Ok(key)
    }

    fn key_of(&self, origin: Origin<'_>) -> Digest {
        match origin {
            Origin::Stage(stage) => self.stage_keys[&stage],
            Origin::Image(name) => self.image_keys[name],
            Origin::Context => unreachable!("the context is hashed by content"),
        }
    }
}

fn froms(step: &Step) -> Vec<Option<&str>> {
    match step {
        Step::Transfer(transfer) => vec![transfer.from.as_deref()],
        Step::Run(run) => run
            .mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                MountKind::Bind { from, .. } => Some(from.as_deref()),
                _ => None,
            })
            .collect(),
        Step::Config | Step::Directory(_) => Vec::new(),
    }
}

/// What a COPY or ADD takes from the context; addresses are not part of it.
pub(super) fn context_selection(transfer: &TransferStep, context: &Tree) -> Result<Vec<Selected>, Problem> {
    let local: Vec<String> = transfer.sources.iter().filter(|source| !is_remote(transfer, source)).cloned().collect();
    copy::select(transfer, &local, context, "the build context")
}

/// Whether a source is an address.
pub(super) fn is_remote(transfer: &TransferStep, source: &str) -> bool {
    transfer.is_add && (add::is_address(source) || add::is_repository(source))
}

/// The part of a tree that a mount shows.
pub(super) fn part_of(tree: &Tree, source: &str) -> Result<Tree, Problem> {
    let path = Path::parse(crate::recipe::absolute("/", source)).map_err(|error| error.to_string())?;
    let real = tree.follow(&path).map_err(|error| error.to_string())?;
    tree.subtree(&real).map_err(|_| format!("{source:?} is not in the source of the mount"))
}

fn selection_key(key: KeyBuilder, selected: &Selected) -> KeyBuilder {
    tree_key(key.bytes("source", selected.path.as_bytes()), &selected.tree)
}

/// Adds names, kinds, contents and modes; times and owners of a context mean nothing.
fn tree_key(key: KeyBuilder, tree: &Tree) -> KeyBuilder {
    tree.iter().fold(key.value("entries", &(tree.len() as u64)), |key, (path, entry)| {
        let mode = if matches!(entry.kind, Kind::Symlink { .. }) { 0 } else { entry.mode };
        key.bytes("path", path.as_bytes()).value("kind", &entry.kind).value("mode", &mode)
    })
}
