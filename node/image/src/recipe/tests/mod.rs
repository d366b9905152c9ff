//! The lists that clients send, scoping, and a second parser's opinion.

mod client_lists;
mod oracle;
mod scoping;

use std::collections::BTreeMap;

use super::*;
use crate::config::ImageConfig;

/// Resolves the last stage on top of a config; every stage is taken to start from it.
fn resolve_on(config: ImageConfig, elements: &[&str], build_args: &[(&str, &str)]) -> Result<(Vec<Step>, ImageConfig), Error> {
    let recipe = Recipe::parse(elements)?;
    let build_args: BTreeMap<String, String> = build_args.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let globals = Globals::new(&recipe, &build_args)?;
    let stage = recipe.stages.last().unwrap();
    globals.base(&stage.from)?;
    let mut scope = globals.scope(BTreeMap::new());
    let mut config = config;
    let steps = stage.instructions.iter().map(|instruction| scope.resolve(instruction, &mut config)).collect::<Result<Vec<_>, _>>()?;
    Ok((steps, config))
}

fn resolve(elements: &[&str]) -> (Vec<Step>, ImageConfig) {
    resolve_on(ImageConfig::default(), elements, &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// The commands of all RUN steps, each as its last argument.
fn commands(steps: &[Step]) -> Vec<String> {
    let run = |step: &Step| match step {
        Step::Run(run) => run.argv.last().cloned(),
        _ => None,
    };
    steps.iter().filter_map(run).collect()
}

fn run_steps(steps: &[Step]) -> Vec<RunStep> {
    let run = |step: &Step| match step {
        Step::Run(run) => Some(run.clone()),
        _ => None,
    };
    steps.iter().filter_map(run).collect()
}

fn transfers(steps: &[Step]) -> Vec<TransferStep> {
    let transfer = |step: &Step| match step {
        Step::Transfer(transfer) => Some(transfer.clone()),
        _ => None,
    };
    steps.iter().filter_map(transfer).collect()
}
