//! What can be wrong with a recipe: always which line, which instruction, and what was expected there.

use super::InstructionName;

/// A recipe that cannot be understood or resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {instruction}: {problem}")]
pub struct Error {
    /// Line of the joined recipe on which the instruction starts, from 1.
    pub line: u32,
    /// First word of the instruction, as written.
    pub instruction: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with one instruction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The first word is not an instruction.
    #[error("unknown instruction, expected one of {}", InstructionName::list())]
    UnknownInstruction,
    /// Something that is not ARG stands before the first FROM.
    #[error("expected FROM or ARG, because no stage has begun")]
    BeforeFrom,
    /// A recipe without any FROM.
    #[error("expected at least one FROM")]
    NoStage,
    /// Arguments are missing or too many.
    #[error("expected {expected}, found {found:?}")]
    Arguments {
        /// The form that the instruction has.
        expected: &'static str,
        /// The text that was there.
        found: String,
    },
    /// A flag that this instruction does not have.
    #[error("unknown flag --{flag}, expected {known}")]
    UnknownFlag {
        /// Name without dashes.
        flag: String,
        /// The flags that would be accepted.
        known: &'static str,
    },
    /// A flag or option whose value is wrong.
    #[error("{what} is {value:?}, expected {expected}")]
    Value {
        /// The flag or option.
        what: String,
        /// What it was set to.
        value: String,
        /// What it can be set to.
        expected: &'static str,
    },
    /// A JSON array with something else than strings in it.
    #[error("expected a JSON array of strings, found {found}")]
    Json {
        /// The text that was there.
        found: String,
    },
    /// No line ends the heredoc.
    #[error("heredoc <<{name} has no line that says {name}")]
    Heredoc {
        /// The delimiter.
        name: String,
    },
    /// `${...}` that is not a substitution.
    #[error("bad substitution {text:?}: {expected}")]
    Substitution {
        /// The text from the dollar sign on.
        text: String,
        /// What was expected.
        expected: &'static str,
    },
    /// `${NAME:?message}` of a variable without value.
    #[error("variable {name} has no value: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The text after the question mark.
        message: String,
    },
    /// A parser directive with a value that has no meaning.
    #[error("parser directive {name}={value}: expected {expected}")]
    Directive {
        /// The directive.
        name: String,
        /// Its value.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// Understood, and deliberately not done.
    #[error("{what} is not supported: {reason}")]
    Unsupported {
        /// The feature.
        what: String,
        /// Why, and what to do instead.
        reason: &'static str,
    },
}

impl Problem {
    /// Adds the place to the problem.
    pub(crate) fn at(self, line: u32, instruction: &str) -> Error {
        Error { line, instruction: instruction.to_owned(), problem: self }
    }
}
