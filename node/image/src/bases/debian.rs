//! A Debian root file system made by mmdebstrap from the sources that the machine uses itself.

use std::path::Path as HostPath;
use std::time::Duration;

use tokio::process::Command;

use crate::error::Result;
use crate::host::{HostCommand, WorkFolder};
use crate::log::BuildLog;

use super::official;
use super::reference::DebianTag;

/// How long mmdebstrap may take. It was seen to take 20 to 50 s.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// Packages beside the minimal set: what the official Python images have.
const PACKAGES: &str = "ca-certificates,netbase,tzdata";

/// Makes the root file system as a tar file in a folder.
pub(super) async fn make(tag: &DebianTag, folder: &WorkFolder, tar: &HostPath, log: &dyn BuildLog) -> Result<()> {
    let sources = Sources::of_this_machine().for_suite(&tag.suite);
    let first = mmdebstrap(tag, folder, tar, &sources, log).await;
    match first {
        // A suite without update or security archives.
        Err(error) if sources.len() > 1 => {
            log.info(format!("mmdebstrap: {error}"));
            log.info("trying again with the suite alone");
            mmdebstrap(tag, folder, tar, &sources[..1], log).await
        }
        other => other,
    }
}

async fn mmdebstrap(tag: &DebianTag, folder: &WorkFolder, tar: &HostPath, sources: &[String], log: &dyn BuildLog) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--format=tar"]).arg(format!("--include={PACKAGES}"));
    for option in apt_options().await {
        command.arg(format!("--aptopt={option}"));
    }
    if tag.slim {
        command.args(official::SLIM_DPKG.map(|option| format!("--dpkgopt={option}")));
    }
    command.arg("--aptopt=Acquire::Languages \"none\"").arg(&tag.suite).arg(tar).args(sources);
    // Its temporary files lie beside the tar, and go with it and with what it mounts there.
    let (name, marked) = folder.mark();
    command.env("TMPDIR", folder.path()).env(name, marked);
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let what = format!("mmdebstrap of {}", tag.suite);
    HostCommand { what, command, limit: LIMIT, log: Some(log) }.run().await?;
    Ok(())
}

/// The machine's settings without which its sources may not work: proxies, and whether dates are checked.
async fn apt_options() -> Vec<String> {
    let mut command = Command::new("apt-config");
    command.arg("dump");
    let what = "apt-config".to_owned();
    let dump = HostCommand { what, command, limit: Duration::from_secs(10), log: None }.run().await.unwrap_or_default();
    let wanted = ["Acquire::Check-Valid-Until ", "Acquire::Check-Date ", "Acquire::http::Proxy ", "Acquire::https::Proxy "];
    dump.lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)) && !line.ends_with(" \"\";"))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

/// A value of `/etc/os-release`.
fn release_value(release: &str, name: &str) -> Option<String> {
    let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.map(|value| value.trim_matches('"').to_owned())
}

/// The suite of this machine; nothing when it is not Debian.
pub(super) fn machine_suite() -> Option<String> {
    let release = std::fs::read_to_string("/etc/os-release").ok()?;
    release_value(&release, "ID").filter(|id| id == "debian")?;
    release_value(&release, "VERSION_CODENAME")
}

/// The machine's own Debian sources.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sources {
    codename: String,
    /// Address, suite and components.
    lines: Vec<(String, String, String)>,
}

impl Sources {
    fn of_this_machine() -> Sources {
        let Some(codename) = machine_suite() else { return Sources::default() };
        let mut sources = Sources { codename, lines: Vec::new() };
        let folder = "/etc/apt/sources.list.d";
        let mut files: Vec<_> =
            std::fs::read_dir(folder).map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect()).unwrap_or_default();
        files.sort();
        files.insert(0, "/etc/apt/sources.list".into());
        for file in files {
            // Files that cannot be read are as good as not there.
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.add_lines(&text),
                Some("sources") => sources.add_stanzas(&text),
                _ => {}
            }
        }
        sources
    }

    /// `deb [options] address suite component …`
    fn add_lines(&mut self, text: &str) {
        for line in text.lines() {
            let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
            let rest = rest.trim();
            let rest = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(rest, |(_, rest)| rest.trim());
            let mut words = rest.split_ascii_whitespace();
            if let (Some(address), Some(suite)) = (words.next(), words.next()) {
                self.add(address, suite, &words.collect::<Vec<_>>().join(" "));
            }
        }
    }

    /// Stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
    fn add_stanzas(&mut self, text: &str) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                let line = stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.map(str::trim).unwrap_or_default().to_owned()
            };
            if !field("Types").split_ascii_whitespace().any(|kind| kind == "deb") || field("Enabled") == "no" {
                continue;
            }
            for address in field("URIs").split_ascii_whitespace() {
                for suite in field("Suites").split_ascii_whitespace() {
                    self.add(address, suite, &field("Components"));
                }
            }
        }
    }

    /// Keeps Debian's own archives: those whose suite is the machine's codename, or its updates or security.
    fn add(&mut self, address: &str, suite: &str, components: &str) {
        let Some(kind) = suite.strip_prefix(&self.codename) else { return };
        if ["", "-updates", "-security"].contains(&kind) && components.split(' ').any(|component| component == "main") {
            let line = (address.to_owned(), kind.to_owned(), components.to_owned());
            if !self.lines.contains(&line) {
                self.lines.push(line);
            }
        }
    }

    /// Returns source lines for a suite, the suite itself first. Empty when the machine has no Debian sources: then
    /// mmdebstrap's own are used.
    fn for_suite(&self, suite: &str) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.sort_by_key(|(_, kind, _)| !kind.is_empty());
        // Rolling suites have neither.
        let rolling = ["sid", "unstable"].contains(&suite);
        lines.retain(|(_, kind, _)| kind.is_empty() || !rolling);
        lines.iter().map(|(address, kind, components)| format!("deb {address} {suite}{kind} {components}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_both_forms_serve_another_suite() {
        let mut sources = Sources { codename: "bookworm".to_owned(), lines: Vec::new() };
        sources.add_lines(
            "# deb http://old.example bookworm main\ndeb [arch=amd64] http://a.example/debian bookworm main contrib\n\
             deb http://other.example/x stable main\ndeb http://b.example/cloud cloud-bookworm main\n",
        );
        sources.add_stanzas(
            "Types: deb deb-src\nURIs: http://s.example/sec\nSuites: bookworm-security\nComponents: main\n\n\
             Types: deb-src\nURIs: http://s.example/src\nSuites: bookworm\nComponents: main\n",
        );
        assert_eq!(
            sources.for_suite("trixie"),
            ["deb http://a.example/debian trixie main contrib", "deb http://s.example/sec trixie-security main"]
        );
        assert_eq!(sources.for_suite("sid"), ["deb http://a.example/debian sid main contrib"]);
    }
}
