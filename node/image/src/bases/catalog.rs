//! The base catalogue: what the configuration says about where bases come from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::ImageConfig;

/// Where bases come from. The default tries a registry, then makes what can be made here.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BasesConfig {
    /// Rules; the first whose pattern fits is tried first.
    pub base: Vec<BaseRule>,
    /// Settings of registries by host (and port).
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Folders with Python installations, beside those looked for anyway.
    pub python_dirs: Vec<PathBuf>,
    /// Never ask a registry.
    pub offline: bool,
    /// Build Python from the distribution's source when the machine has no interpreter of a series.
    pub build_python: Option<bool>,
}

/// A pattern of names and where they come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRule {
    /// Pattern of short names: `*` is anything, `{name}` is anything without `:` and `/` and can be used in paths.
    #[serde(rename = "match")]
    pub pattern: String,
    /// Where they come from.
    pub source: BaseSource,
    /// Config of the image, where the source has none.
    #[serde(default)]
    pub config: ImageConfig,
}

/// Where a base comes from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BaseSource {
    /// A folder with a root file system.
    Directory {
        /// The folder.
        path: String,
    },
    /// A tar of a root file system; gzip and zstd are recognised.
    Tar {
        /// The file.
        path: String,
    },
    /// A folder in the OCI image layout.
    OciLayout {
        /// The folder.
        path: String,
        /// Which of its images; the only one when not given.
        tag: Option<String>,
    },
    /// A registry and nothing else.
    Registry,
    /// Made here and nothing else.
    Recipe,
}

/// How a registry is talked to.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Host (and port) to ask instead.
    pub mirror: Option<String>,
    /// Plain HTTP.
    pub insecure: bool,
    /// Name of the environment variable with the user name.
    pub username_env: Option<String>,
    /// Name of the environment variable with the password.
    pub password_env: Option<String>,
}

impl BasesConfig {
    /// Returns the first rule whose pattern fits, with its paths filled in.
    pub fn rule(&self, short: &str) -> Option<BaseRule> {
        self.base.iter().find_map(|rule| {
            let found = captures(&rule.pattern, short)?;
            let fill = |text: &str| found.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value));
            let source = match &rule.source {
                BaseSource::Directory { path } => BaseSource::Directory { path: fill(path) },
                BaseSource::Tar { path } => BaseSource::Tar { path: fill(path) },
                BaseSource::OciLayout { path, tag } => BaseSource::OciLayout { path: fill(path), tag: tag.as_deref().map(fill) },
                BaseSource::Registry => BaseSource::Registry,
                BaseSource::Recipe => BaseSource::Recipe,
            };
            Some(BaseRule { source, ..rule.clone() })
        })
    }
}

/// Matches a pattern against a whole name and returns what its `{names}` stand for.
fn captures(pattern: &str, text: &str) -> Option<Vec<(String, String)>> {
    let Some(first) = pattern.chars().next() else { return text.is_empty().then(Vec::new) };
    if let Some(rest) = pattern.strip_prefix('*') {
        return text.char_indices().map(|(at, _)| at).chain([text.len()]).find_map(|at| captures(rest, &text[at..]));
    }
    if let Some((name, rest)) = pattern.strip_prefix('{').and_then(|tail| tail.split_once('}')) {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        return ends.take_while(|end| !text[..*end].contains([':', '/'])).find_map(|end| {
            let mut found = captures(rest, &text[end..])?;
            found.push((name.to_owned(), text[..end].to_owned()));
            Some(found)
        });
    }
    captures(&pattern[first.len_utf8()..], text.strip_prefix(first)?)
}

/// How long a connection to a registry may take to be made.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// How long a registry may say nothing while it is asked for a manifest.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// How long a registry that could not be reached is not asked again.
pub(super) const UNREACHABLE_FOR: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_fill_their_paths_from_the_name() {
        let rule = |pattern: &str, path: &str| BaseRule {
            pattern: pattern.to_owned(),
            source: BaseSource::Tar { path: path.to_owned() },
            config: ImageConfig::default(),
        };
        let config = BasesConfig {
            base: vec![rule("python:{series}-slim-{suite}", "/b/{suite}/{series}.tar"), rule("*/uv:{version}", "/uv-{version}")],
            ..BasesConfig::default()
        };
        let path = |name: &str| match config.rule(name)?.source {
            BaseSource::Tar { path } => Some(path),
            _ => None,
        };
        assert_eq!(path("python:3.12-slim-trixie").as_deref(), Some("/b/trixie/3.12.tar"));
        assert_eq!(path("x.example/a/uv:0.8.3").as_deref(), Some("/uv-0.8.3"));
        assert_eq!(path("python:3.12"), None);
    }
}
