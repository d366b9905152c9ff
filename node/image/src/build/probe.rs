//! What is asked of a finished image: its Python, its packages, its C library.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::log::{BuildLog, Stream};

/// How long the answer may take. It was seen to take 0.6 s.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

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

/// Prints one line of JSON behind a mark. Runs on every Python 3.
pub(super) const SCRIPT: &str = r#"
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
pub(super) struct Collected {
    text: Mutex<String>,
}

impl Collected {
    pub(super) fn text(&self) -> String {
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
pub(super) fn read_answer(output: &str, metadata: &mut ImageMetadata) {
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
