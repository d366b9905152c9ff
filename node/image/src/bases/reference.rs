//! Names of images, and what the names of well-known ones mean.

use oci_client::Reference;

use crate::error::{Error, Result};

/// A parsed image name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageReference {
    oci: Reference,
    short: String,
}

impl ImageReference {
    /// Parses what stands after FROM or `--from=`.
    pub fn parse(text: &str) -> Result<ImageReference> {
        let oci: Reference =
            text.parse().map_err(|error| Error::NotAnImage { reference: text.to_owned(), why: format!("has no proper name: {error}") })?;
        let default: Reference = "x".parse().expect("one letter is a name");
        let repository = match oci.registry() == default.registry() {
            true => oci.repository().strip_prefix("library/").unwrap_or(oci.repository()).to_owned(),
            false => format!("{}/{}", oci.registry(), oci.repository()),
        };
        let short = match (oci.tag(), oci.digest()) {
            (_, Some(digest)) => format!("{repository}@{digest}"),
            (Some(tag), None) => format!("{repository}:{tag}"),
            (None, None) => format!("{repository}:latest"),
        };
        Ok(ImageReference { oci, short })
    }

    /// The shortest name that means the same: no default registry, no `library/`, always a tag or digest.
    pub fn short(&self) -> &str {
        &self.short
    }

    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        self.oci.registry()
    }

    pub(super) fn oci(&self) -> &Reference {
        &self.oci
    }

    /// Returns what can be made without a registry, when the name is one of those.
    pub fn well_known(&self) -> Option<WellKnown> {
        let (repository, tag) = self.short.split_once(':')?;
        match repository {
            "python" => python(tag).map(WellKnown::Python),
            "debian" => Some(WellKnown::Debian(debian(tag)?)),
            _ if repository.ends_with("astral-sh/uv") => Some(WellKnown::Uv(uv(tag)?)),
            _ => None,
        }
    }
}

/// Images that are made here when no registry can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WellKnown {
    /// Python on a slim Debian.
    Python(PythonTag),
    /// A slim Debian.
    Debian(DebianTag),
    /// The `uv` program alone.
    Uv(UvVersion),
}

/// A tag of the Python image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonTag {
    /// For example `3.12`, or `3.14t` for a free-threaded one.
    pub series: String,
    /// The exact version asked for, for example `3.12.1`.
    pub exact: Option<String>,
    /// The distribution below.
    pub debian: DebianTag,
}

/// A Debian suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DebianTag {
    /// For example `bookworm`.
    pub suite: String,
    /// Without documentation.
    pub slim: bool,
}

/// Which uv.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UvVersion {
    /// The newest.
    Latest,
    /// As pip writes it: `0.8.3` or `0.8.*`.
    Pinned(String),
}

/// The suite that names without one mean, as with the official images.
const SUITE_DEFAULT: &str = "trixie";

/// Suites, oldest first: each has a C library at least as new as the one before.
const SUITES: [&str; 7] = ["buster", "bullseye", "bookworm", "trixie", "forky", "testing", "sid"];

impl DebianTag {
    /// Returns the tag for programs that need the C library of `machine`: itself, or that suite if it is newer.
    pub(super) fn at_least(&self, machine: &str) -> DebianTag {
        let age = |suite: &str| SUITES.iter().position(|known| *known == suite);
        match (age(&self.suite), age(machine)) {
            (Some(own), Some(needed)) if own < needed => DebianTag { suite: machine.to_owned(), slim: self.slim },
            _ => self.clone(),
        }
    }
}

fn suite(word: &str) -> Option<&str> {
    match word {
        "10" => Some("buster"),
        "11" => Some("bullseye"),
        "12" => Some("bookworm"),
        "13" => Some("trixie"),
        "stable" | "latest" => Some(SUITE_DEFAULT),
        "buster" | "bullseye" | "bookworm" | "trixie" | "forky" | "testing" | "sid" | "unstable" => Some(word),
        _ => None,
    }
}

fn debian(tag: &str) -> Option<DebianTag> {
    let (name, slim) = match tag.strip_suffix("-slim") {
        Some(name) => (name, true),
        None => (tag, false),
    };
    // A point release or a dated build is the suite as it is now.
    let name = name.split_once(['.', '-']).map_or(name, |(name, _)| name);
    Some(DebianTag { suite: suite(name)?.to_owned(), slim })
}

/// `3.12`, `3.12.1-slim`, `3.12-slim-trixie`, `3-bookworm` is not here: a series is needed.
fn python(tag: &str) -> Option<PythonTag> {
    let mut words = tag.split('-');
    let version = words.next()?;
    let digits = version.strip_suffix('t').unwrap_or(version);
    let numbers: Vec<&str> = digits.split('.').collect();
    let is_number = |number: &&str| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if !numbers.iter().all(is_number) || !(2..=3).contains(&numbers.len()) {
        return None;
    }
    let threads = if version.ends_with('t') { "t" } else { "" };
    let series = format!("{}.{}{threads}", numbers[0], numbers[1]);
    let exact = (numbers.len() == 3).then(|| digits.to_owned());
    let (mut slim, mut name) = (false, SUITE_DEFAULT.to_owned());
    for word in words {
        match word {
            "slim" => slim = true,
            word => name = suite(word)?.to_owned(),
        }
    }
    Some(PythonTag { series, exact, debian: DebianTag { suite: name, slim } })
}

fn uv(tag: &str) -> Option<UvVersion> {
    let version = tag.split('-').next()?;
    if version == "latest" {
        return Some(UvVersion::Latest);
    }
    let numbers = version.split('.').count();
    let proper = version.split('.').all(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()));
    match (proper, numbers) {
        (true, 3) => Some(UvVersion::Pinned(version.to_owned())),
        (true, 1 | 2) => Some(UvVersion::Pinned(format!("{version}.*"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(text: &str) -> String {
        ImageReference::parse(text).unwrap().short().to_owned()
    }

    #[test]
    fn names_get_short() {
        let default = ImageReference::parse("python").unwrap().registry().to_owned();
        assert_eq!(short("python"), "python:latest");
        assert_eq!(short(&format!("{default}/library/python:3.12")), "python:3.12");
        assert_eq!(short("library/python:3.12"), "python:3.12");
        assert_eq!(short("a/b:c"), "a/b:c");
        assert_eq!(short("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert!(ImageReference::parse("A B").unwrap_err().to_string().starts_with("image A B has no proper name"));
    }

    #[test]
    fn a_copied_program_needs_a_suite_that_is_new_enough() {
        let tag = |suite: &str| DebianTag { suite: suite.to_owned(), slim: true };
        assert_eq!(tag("bullseye").at_least("bookworm"), tag("bookworm"));
        assert_eq!(tag("trixie").at_least("bookworm"), tag("trixie"));
        assert_eq!(tag("bullseye").at_least("noble"), tag("bullseye"));
    }

    #[test]
    fn well_known_names() {
        let known = |text: &str| ImageReference::parse(text).unwrap().well_known();
        let python = |text: &str| match known(text) {
            Some(WellKnown::Python(tag)) => (tag.series, tag.exact, tag.debian.suite, tag.debian.slim),
            other => panic!("{text}: {other:?}"),
        };
        let exact = Some("3.11.12".to_owned());
        assert_eq!(python("python:3.11.12-slim-bookworm"), ("3.11".into(), exact, "bookworm".into(), true));
        assert_eq!(python("python:3.14t-slim"), ("3.14t".into(), None, "trixie".into(), true));
        assert_eq!(python("python:3.12"), ("3.12".into(), None, "trixie".into(), false));
        for unknown in ["python:3", "python:latest", "python:3.12-alpine", "python:3.12-slim-jammy", "other/python:3.12"] {
            assert_eq!(known(unknown), None, "{unknown}");
        }
        let debian = |suite: &str, slim| Some(WellKnown::Debian(DebianTag { suite: suite.to_owned(), slim }));
        assert_eq!(known("debian:12.5-slim"), debian("bookworm", true));
        assert_eq!(known("debian"), debian("trixie", false));
        assert_eq!(known("registry.example/astral-sh/uv:latest"), Some(WellKnown::Uv(UvVersion::Latest)));
        assert_eq!(known("x.example/astral-sh/uv:0.8"), Some(WellKnown::Uv(UvVersion::Pinned("0.8.*".into()))));
        assert_eq!(known("x.example/astral-sh/uv:0.8.3-alpine"), Some(WellKnown::Uv(UvVersion::Pinned("0.8.3".into()))));
    }
}
