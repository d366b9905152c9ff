//! The config of an image: what a container of it starts with.
//!
//! Replaced by instructions, inherited from the base, stored with the image. `None` of a list means "never said", an
//! empty list means "said to be empty" (`ENTRYPOINT []` silences the base image's).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The shell of the shell form when no SHELL was given.
const DEFAULT_SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// `PATH` of an image that sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container of an image starts with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working folder, absolute; `None` when no WORKDIR was ever given.
    pub workdir: Option<String>,
    /// Program in front of the command.
    pub entrypoint: Option<Vec<String>>,
    /// Default command.
    pub cmd: Option<Vec<String>>,
    /// Shell of the shell form.
    pub shell: Option<Vec<String>>,
    /// `name[:group]` or numbers.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `port[/protocol]`, no effect.
    pub exposed_ports: BTreeSet<String>,
    /// Paths, no effect.
    pub volumes: BTreeSet<String>,
    /// No effect.
    pub stop_signal: Option<String>,
    /// No effect.
    pub healthcheck: Option<Vec<String>>,
    /// Instructions for images made from this one.
    pub on_build: Vec<String>,
}

impl ImageConfig {
    /// The working folder of commands.
    pub fn workdir_or_root(&self) -> &str {
        self.workdir.as_deref().unwrap_or("/")
    }

    /// The shell of the shell form.
    pub fn shell_or_default(&self) -> &[String] {
        static DEFAULT: std::sync::LazyLock<Vec<String>> = std::sync::LazyLock::new(|| DEFAULT_SHELL.map(str::to_owned).to_vec());
        self.shell.as_deref().unwrap_or(&DEFAULT)
    }

    /// The search path of commands.
    pub fn path(&self) -> &str {
        self.env.get("PATH").map_or(DEFAULT_PATH, String::as_str)
    }
}
