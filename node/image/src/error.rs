//! What can go wrong while an image is made. Recipes have [their own](crate::recipe::Error).

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use shoal_state::Digest;
use shoal_storage::{manifest, store};

use crate::recipe;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be made.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each field is named in the sentence of its variant")]
pub enum Error {
    /// The recipe is wrong. The user has to change it.
    #[error(transparent)]
    Recipe(#[from] recipe::Error),

    /// A command of the recipe failed. The user has to change it; the text is for them.
    #[error("line {line}: {instruction}\nthe command ended with {ended}{}", tail_text(tail))]
    Command { line: u32, instruction: String, ended: String, tail: String },

    /// A command of the recipe was killed because the container had no memory left.
    #[error("line {line}: {instruction}\nthe command ran out of memory (limit: {limit_bytes} bytes){}", tail_text(tail))]
    OutOfMemory { line: u32, instruction: String, limit_bytes: u64, tail: String },

    /// A command of the recipe was killed because its container took the most of a disk that was used up.
    #[error(
        "line {line}: {instruction}\nthe build was killed: {over}: let it write less, or the node have more for containers (disk.overlays_bytes){}",
        tail_text(tail)
    )]
    OutOfDisk { line: u32, instruction: String, over: shoal_runtime::OverDisk, tail: String },

    /// A command of the recipe took too long.
    #[error("line {line}: {instruction}\nthe build did not end within {} s{}", limit.as_secs(), tail_text(tail))]
    Timeout { line: u32, instruction: String, limit: Duration, tail: String },

    /// An instruction that cannot be carried out with the files there are.
    #[error("line {line}: {instruction}\n{problem}")]
    Instruction { line: u32, instruction: String, problem: String },

    /// A function that was to make an image failed. The text is for its author.
    #[error("the function {name} {problem}{}", tail_text(tail))]
    Function { name: String, problem: String, tail: String },

    /// Nothing could provide a base image; each attempt with its reason.
    #[error("no source has the base image {reference}:\n{}", tried.iter().map(|line| format!("  - {line}")).collect::<Vec<_>>().join("\n"))]
    NoBase { reference: String, tried: Vec<String> },

    /// A registry answered, and refused or broke off.
    #[error("registry {registry}: cannot {action} {reference}")]
    Registry { registry: String, reference: String, action: &'static str, source: Box<oci_client::errors::OciDistributionError> },

    /// A registry wants to know who asks, or does not let them.
    #[error(
        "registry {registry} does not let {who} read {reference}: give from_registry a secret with the variables \
         REGISTRY_USERNAME and REGISTRY_PASSWORD of somebody who may"
    )]
    RegistryDenied { registry: String, reference: String, who: String },

    /// A registry did not answer.
    #[error("registry {registry} cannot be reached: {why}")]
    Unreachable { registry: String, why: String },

    /// What a registry or a layout holds is not an image for this machine.
    #[error("image {reference} {why}")]
    NotAnImage { reference: String, why: String },

    /// A program of the host failed.
    #[error("{what} failed: {ended}{}", tail_text(tail))]
    Host { what: String, ended: String, tail: String },

    /// A program of the host took too long and was killed.
    #[error("{what} did not end within {} s", limit.as_secs())]
    HostTimeout { what: String, limit: Duration },

    /// A program of the host is missing.
    #[error("{program} is needed for {purpose} and cannot be started: install it, or name another source for the image")]
    NoProgram {
        program: String,
        purpose: String,
        #[source]
        source: io::Error,
    },

    /// A file or folder of the host could not be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    /// A secret that is to give access to a registry does not.
    #[error("the registry's secret {why}")]
    RegistrySecret { why: String },

    /// A named mount that this server does not know how to make.
    #[error("mount {name}: {why}")]
    NoMount { name: String, why: String },

    /// A tree could not be read, put together or written.
    #[error("the files of {what} cannot be put together")]
    Tree {
        what: String,
        #[source]
        source: manifest::Error,
    },

    /// The chunk store refused.
    #[error("cannot store {what}")]
    Store {
        what: String,
        #[source]
        source: store::Error,
    },

    /// The container runtime failed, which is not the recipe's fault. Another try can help.
    #[error("cannot {action} the build container")]
    Runtime {
        action: &'static str,
        #[source]
        source: shoal_runtime::Error,
    },

    /// Trees could not be mounted.
    #[error("cannot mount the files of {what}")]
    Mount {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The cache of build results failed.
    #[error("the build cache cannot {action} {key}")]
    Cache {
        action: &'static str,
        key: Digest,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A build was ended because nobody waited for it any more.
    #[error("the build was ended: all who waited for it left")]
    Abandoned,

    /// A task of the node ended before its work did: the node is stopping.
    #[error("{what} was interrupted because the node is stopping")]
    Stopping { what: &'static str },
}

fn tail_text(tail: &str) -> String {
    match tail.trim_end() {
        "" => String::new(),
        tail => format!("\nlast output:\n{tail}"),
    }
}

/// How the client is to see a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The recipe or what it runs is at fault.
    Build,
    /// It took too long.
    Timeout,
    /// The container was out of memory.
    OutOfMemory,
    /// The node is at fault; trying again may help.
    Node,
}

impl Error {
    /// Says whose fault it is.
    pub fn kind(&self) -> FailureKind {
        match self {
            Error::Timeout { .. } => FailureKind::Timeout,
            Error::OutOfMemory { .. } => FailureKind::OutOfMemory,
            Error::OutOfDisk { .. }
            | Error::Store { .. }
            | Error::Runtime { .. }
            | Error::Mount { .. }
            | Error::Cache { .. }
            | Error::Stopping { .. } => FailureKind::Node,
            _ => FailureKind::Build,
        }
    }

    /// The error and its causes in one text.
    pub fn full_text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }
}

/// Adds the path to a failed file operation.
pub(crate) trait FileContext<T> {
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T> FileContext<T> for io::Result<T> {
    fn file(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.into(), source })
    }
}

/// Adds what a tree belongs to.
pub(crate) trait TreeContext<T> {
    fn tree(self, what: impl Into<String>) -> Result<T>;
}

impl<T> TreeContext<T> for manifest::Result<T> {
    fn tree(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Tree { what: what.into(), source })
    }
}

/// Runs blocking work beside the async tasks.
pub(crate) async fn blocking<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Stopping { what }),
    }
}
