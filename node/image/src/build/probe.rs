//! What is asked of a finished image: its Python, its packages, its C library.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_runtime::User;
use shoal_storage::manifest::{Path, Tree};

use crate::config::DEFAULT_PATH;
use crate::error::Result;
use crate::log::{BuildLog, Stream, Tail};

use super::Inner;
use super::execute::Built;
use super::sandbox::{Ended, Equipment, Exec, Sandbox};

/// How long the answer may take. It was seen to take 0.6 s.
const LIMIT: Duration = Duration::from_secs(120);

/// What the SDK wants to know of an image, and what the node needs to equip its containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageMetadata {
    /// As `python -VV` says it; `None` when the image has no Python.
    pub python_version_info: Option<String>,
    /// Installed packages with their versions.
    pub python_packages: BTreeMap<String, String>,
    /// Working folder, when one was ever set.
    pub workdir: Option<String>,
    /// For example `glibc 2.36` or `musl`.
    pub libc_version_info: Option<String>,
    /// The version of the builder that the client used.
    pub image_builder_version: String,
    /// The interpreter's binary interface, for example `cp312` or `cp314t`.
    pub python_abi: Option<String>,
    /// The interpreter's path.
    pub python_path: Option<String>,
}

impl Inner {
    /// Asks a finished image for its Python and packages.
    pub(super) async fn probe(&self, built: &Built, builder_version: &str) -> Result<ImageMetadata> {
        let mut metadata = ImageMetadata {
            workdir: built.config.workdir.clone(),
            image_builder_version: builder_version.to_owned(),
            libc_version_info: libc_of(&built.tree),
            ..ImageMetadata::default()
        };
        let Some(containers) = self.containers.as_ref().filter(|_| has_python(&built.tree, built.config.path())) else {
            return Ok(metadata);
        };
        let mut sandbox = Sandbox::start(containers, &self.work_dir, &self.config, Arc::clone(&built.tree), Equipment::default()).await?;
        let answered = ask(&mut sandbox, &built.config.env, &mut metadata).await;
        sandbox.close().await;
        answered.map(|()| metadata)
    }
}

async fn ask(sandbox: &mut Sandbox, env: &BTreeMap<String, String>, metadata: &mut ImageMetadata) -> Result<()> {
    let mut env = env.clone();
    env.entry("PATH".to_owned()).or_insert_with(|| DEFAULT_PATH.to_owned());
    let limit = Instant::now() + LIMIT;
    for program in ["python", "python3"] {
        let argv = [program, "-c", SCRIPT].map(str::to_owned).to_vec();
        let exec = Exec { argv, env: env.clone(), cwd: "/".to_owned(), user: User::default(), script: None };
        let output = Collected::default();
        if sandbox.run(&exec, limit, &output, &mut Tail::default()).await? == Ended::Well {
            read_answer(&output.text(), metadata);
            break;
        }
    }
    Ok(())
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
/// Prints one line of JSON behind a mark. Runs on every Python 3.
const SCRIPT: &str = r#"
import json, platform, sys, sysconfig
packages = {}
try:
    from importlib import metadata
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name:
            packages.setdefault(name, found.version)
except ImportError:
    pass
version = sys.version_info
free = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
print("\n__shoal_probe__" + json.dumps({
    "version": "Python " + sys.version,
    "abi": "cp%d%d%s" % (version[0], version[1], free),
    "path": sys.executable,
    "libc": " ".join(platform.libc_ver()).strip(),
    "packages": packages,
}))
"#;

/// Keeps what a command prints to stdout.
#[derive(Debug, Default)]
struct Collected {
    text: Mutex<String>,
}

impl Collected {
    fn text(&self) -> String {
        self.text.lock().clone()
    }
}

impl BuildLog for Collected {
    fn write(&self, stream: Stream, data: &str) {
        if stream == Stream::Stdout {
            self.text.lock().push_str(data);
        }
    }
}

#[derive(Debug, Deserialize)]
struct Answer {
    version: String,
    abi: String,
    path: String,
    libc: String,
    packages: BTreeMap<String, String>,
}

/// Reads what the script printed into the metadata; leaves it alone when there is no answer.
fn read_answer(output: &str, metadata: &mut ImageMetadata) {
    let lines = output.lines().rev().find_map(|line| line.strip_prefix("__shoal_probe__"));
    let Some(answer) = lines.and_then(|line| serde_json::from_str::<Answer>(line).ok()) else { return };
    metadata.python_version_info = Some(answer.version.replace('\n', ""));
    metadata.python_abi = Some(answer.abi);
    metadata.python_path = Some(answer.path).filter(|path| !path.is_empty());
    metadata.python_packages = answer.packages;
    if !answer.libc.is_empty() {
        metadata.libc_version_info = Some(answer.libc);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_answers_and_noise_is_ignored() {
        let output = std::process::Command::new("python3").args(["-c", SCRIPT]).output();
        let Ok(output) = output else {
            eprintln!("skipped: this machine has no python3");
            return;
        };
        let text = format!("noise of a sitecustomize\n{}", String::from_utf8_lossy(&output.stdout));
        let mut metadata = ImageMetadata::default();
        read_answer(&text, &mut metadata);
        assert!(metadata.python_version_info.unwrap().starts_with("Python 3."));
        assert!(metadata.python_abi.unwrap().starts_with("cp3"));
        let mut untouched = ImageMetadata::default();
        read_answer("no answer", &mut untouched);
        assert_eq!(untouched, ImageMetadata::default());
    }
}
