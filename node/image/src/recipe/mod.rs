//! Recipes: what clients send to describe an image, read without touching anything.
//!
//! A client sends a list of strings that, joined by newlines, is a Dockerfile. [`Recipe::parse`] cuts it into stages
//! of typed instructions, each with its line number. Values of variables depend on the base image and on what stands
//! before an instruction, so they are filled in later and one by one: a [`Scope`] walks down a stage, keeps the
//! variables, applies each instruction to the [`ImageConfig`](crate::config::ImageConfig) and returns the [`Step`]
//! that is to be executed. Everything here is pure: same text, same arguments, same steps.
//!
//! | file | subject |
//! |---|---|
//! | `lines` | directives, continuations, comments, heredocs |
//! | `words` | quotes and variables |
//! | `instruction` | the typed instructions |
//! | `parse` | one line becomes one typed instruction |
//! | `scope` | who sees which variable; instructions become steps |
//! | `step` | resolved steps, `--mount` |
//!
//! Understood and refused with a reason: `RUN --mount=type=ssh`, `RUN --security=insecure`, platforms other than
//! linux/amd64. `COPY` words outside JSON are cut at blanks whatever their quotes, as everywhere.

mod error;
mod instruction;
mod lines;
mod parse;
mod scope;
mod step;
mod words;

#[cfg(test)]
mod tests;

pub use error::{Error, Problem};
pub use instruction::{Command, From, Healthcheck, Instruction, InstructionName, Run, Transfer};
pub use lines::Heredoc;
pub(crate) use scope::absolute;
pub use scope::{Globals, Scope};
pub use step::{Inline, Mount, MountKind, Network, RunStep, Sharing, Step, TransferStep};
pub use words::Template;

use parse::Parsed;

/// A parsed recipe: at least one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// ARG instructions before the first FROM.
    pub global_args: Vec<Located<(String, Option<Template>)>>,
    /// Stages in the order of the text; the last one is the image.
    pub stages: Vec<Stage>,
}

/// FROM and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// How it begins.
    pub from: Located<From>,
    /// What is done then.
    pub instructions: Vec<Located<Instruction>>,
}

/// Something with its place in the recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// Line on which the instruction starts, from 1.
    pub line: u32,
    /// The instruction as written, continuation lines joined, for messages.
    pub text: String,
    /// The thing.
    pub value: T,
}

impl<T> Located<T> {
    /// First word of the instruction as written.
    pub fn name(&self) -> &str {
        self.text.split_ascii_whitespace().next().unwrap_or_default()
    }
}

impl Recipe {
    /// Parses the elements that a client sent. An element may be a whole file, an empty line, a comment or a piece of
    /// a continued line.
    pub fn parse<S: AsRef<str>>(elements: &[S]) -> Result<Recipe, Error> {
        let text = elements.iter().map(AsRef::as_ref).collect::<Vec<_>>().join("\n");
        let lines = lines::split(&text)?;
        let mut recipe = Recipe { global_args: Vec::new(), stages: Vec::new() };
        for line in &lines.logical {
            let fail = |problem: Problem| problem.at(line.line, &line.name);
            let text = format!("{} {}", line.name, line.rest).trim_end().to_owned();
            match (parse::parse(line, lines.escape).map_err(fail)?, recipe.stages.last_mut()) {
                (Parsed::From(value), _) => {
                    recipe.stages.push(Stage { from: Located { line: line.line, text, value }, instructions: Vec::new() })
                }
                (Parsed::Other(value), Some(stage)) => {
                    stage.instructions.push(Located { line: line.line, text, value });
                }
                (Parsed::Other(Instruction::Arg(args)), None) => {
                    let located = |value| Located { line: line.line, text: text.clone(), value };
                    recipe.global_args.extend(args.into_iter().map(located));
                }
                (Parsed::Other(_), None) => return Err(fail(Problem::BeforeFrom)),
            }
        }
        match recipe.stages.is_empty() {
            true => Err(Problem::NoStage.at(text.lines().count().max(1) as u32, "recipe")),
            false => Ok(recipe),
        }
    }

    /// Parses one instruction outside a recipe: what an ONBUILD of the base image says.
    ///
    /// `line` is the place that errors name: that of FROM.
    pub fn parse_trigger(text: &str, line: u32) -> Result<Located<Instruction>, Error> {
        let lines = lines::split(text)?;
        let [logical] = &lines.logical[..] else {
            let problem = Problem::Arguments { expected: "one instruction", found: text.to_owned() };
            return Err(problem.at(line, "ONBUILD"));
        };
        match parse::parse(logical, lines.escape).map_err(|problem| problem.at(line, "ONBUILD"))? {
            Parsed::Other(value) => Ok(Located { line, text: format!("{} {}", logical.name, logical.rest), value }),
            Parsed::From(_) => Err(Problem::UnknownInstruction.at(line, "ONBUILD")),
        }
    }

    /// Returns the stage with this name, or this number, among those before `before`.
    pub fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let named = self.stages[..before]
            .iter()
            .rposition(|stage| stage.from.value.name.as_deref().is_some_and(|known| known.eq_ignore_ascii_case(name)));
        named.or_else(|| name.parse().ok().filter(|index| *index < before))
    }
}
