//! `shoal doctor`: what on this machine keeps a node from its work, and how to repair it.
//!
//! Needs no running node. What containers need is checked by `shoal-runtime`; here is what the node itself needs: its
//! configuration, room on the disk, its ports, and what images are made from.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use shoal_image::bases::interpreters::{self, Interpreter};
use shoal_runtime::{EngineConfig, Finding, Verdict, doctor_checks};

use super::Common;
use super::admin::ask;
use super::lists::{print_json, print_table};
use crate::admin::StatusReport;
use crate::config::Config;

/// With less room than this a node soon fails, in bytes.
const DISK_BYTES_MIN: u64 = 2 << 30;
/// With less room than this images of some size do not fit, in bytes.
const DISK_BYTES_WANTED: u64 = 20 << 30;

/// The flags of `shoal doctor`.
#[derive(Debug, Args, Serialize)]
pub(super) struct Doctor {
    /// The configuration file [default: /etc/shoal/shoal.toml, if it exists]
    #[arg(long)]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The folder of the node [default: /var/lib/shoal]
    #[arg(long)]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Print the checks as JSON.
    #[arg(long)]
    #[serde(skip)]
    json: bool,
}

/// How much a check matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Good,
    /// A node works, with less than it could have.
    Warn,
    /// A node does not work.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What was looked at.
    check: String,
    /// How it is.
    status: Status,
    /// What was found.
    found: String,
    /// What to do about it; none when all is well.
    fix: Option<String>,
}

impl Check {
    fn good(check: impl Into<String>, found: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Good, found: found.into(), fix: None }
    }

    fn warn(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Warn, found: found.into(), fix: Some(fix.into()) }
    }

    fn bad(check: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Bad, ..Self::warn(check, found, fix) }
    }
}

impl From<Finding> for Check {
    fn from(finding: Finding) -> Self {
        let check = match finding.name {
            "vm.max_map_count" => "sysctl vm.max_map_count".to_owned(),
            "ip forwarding" => "sysctl net.ipv4.ip_forward".to_owned(),
            "names" => "resolv.conf".to_owned(),
            name => name.to_owned(),
        };
        let status = match finding.verdict {
            Verdict::Good => Status::Good,
            Verdict::Warning => Status::Warn,
            Verdict::Bad => Status::Bad,
        };
        Self { check, status, found: finding.found, fix: finding.fix }
    }
}

impl Doctor {
    /// Checks everything; ends with 1 when something is bad.
    pub(super) fn run(&self) -> anyhow::Result<i32> {
        let checks = self.checks()?;
        if self.json {
            print_json(&checks)?;
        } else {
            print(&checks);
        }
        Ok(i32::from(checks.iter().any(|check| check.status == Status::Bad)))
    }

    fn checks(&self) -> anyhow::Result<Vec<Check>> {
        let (config, configuration) = match Config::load(self.config.as_deref(), self) {
            Ok(config) => (config, Check::good("configuration", "can be read")),
            Err(error) => {
                let data = self.data.clone().unwrap_or(Config::default().data);
                let check = Check::bad("configuration", format!("{error:#}"), "repair the file or the SHOAL_… variable that is named");
                (Config { data, ..Config::default() }, check)
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
        let platform = EngineConfig::new(&config.data).platform;
        let mut checks: Vec<Check> = runtime.block_on(doctor_checks(&config.runsc, &platform)).into_iter().map(Check::from).collect();
        checks.push(configuration);
        checks.push(disk(&config.data, room(&config.data)));
        checks.extend(ports(&config));
        checks.push(python_bases(&interpreters::find(&config.images.python_dirs), &config));
        checks.push(debian_bases(in_path("mmdebstrap"), &config));
        Ok(checks)
    }
}

fn print(checks: &[Check]) {
    let word = |check: &Check| match check.status {
        Status::Good => "good",
        Status::Warn => "warn",
        Status::Bad => "BAD",
    };
    print_table(
        ["CHECK", "STATUS", "FOUND"],
        checks.iter().map(|check| [check.check.clone(), word(check).to_owned(), check.found.clone()]),
    );
    let to_fix: Vec<_> = checks.iter().filter_map(|check| Some((check, check.fix.as_ref()?))).collect();
    if !to_fix.is_empty() {
        println!("\nTo repair:");
        to_fix.iter().for_each(|(check, fix)| println!("  {:<4}  {}: {fix}", word(check), check.check));
    }
}

/// Returns the free bytes where a folder is, or will be made.
fn room(data: &Path) -> io::Result<u64> {
    let there = data.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let disk = rustix::fs::statvfs(there)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn disk(data: &Path, free: io::Result<u64>) -> Check {
    let data = data.display();
    let fix = || format!("make room, or name a folder on another disk with --data or the key `data` instead of {data}");
    match free {
        Err(error) => Check::bad("disk", format!("cannot look at the disk of {data}: {error}"), fix()),
        Ok(free) => {
            let found = format!("{:.1} GiB are free at {data}", gibibytes(free));
            match free {
                DISK_BYTES_WANTED.. => Check::good("disk", found),
                DISK_BYTES_MIN.. => Check::warn("disk", format!("{found}: enough for few images"), fix()),
                _ => Check::bad("disk", found, fix()),
            }
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "printed with one decimal place")]
fn gibibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Checks the two ports: those of the node that answers on the data folder, else those that a node would take.
fn ports(config: &Config) -> [Check; 2] {
    let common = Common { data: config.data.clone(), json: true };
    let running: Option<StatusReport> = ask(&common, "GET", "/status", &()).ok();
    let answered = |address: &str, what| {
        let port = address.rsplit(':').next().unwrap_or(address);
        Check::good(format!("port {port}"), format!("the node of {} answers {what} at {address}", config.data.display()))
    };
    match running {
        Some(running) => [answered(&running.api, "clients"), answered(&running.web, "web endpoints")],
        None => [port(config.api, "clients", "api"), port(config.web, "web endpoints", "web")],
    }
}

fn port(address: SocketAddr, what: &str, key: &str) -> Check {
    let holder = || holder(address.port());
    port_is(address, what, key, TcpListener::bind(address).err(), holder)
}

fn port_is(address: SocketAddr, what: &str, key: &str, obstacle: Option<io::Error>, holder: impl Fn() -> Option<Holder>) -> Check {
    let check = format!("port {}", address.port());
    let fix = || format!("end what holds it, or choose another port with --{key} or the key `{key}`");
    match obstacle {
        None => Check::good(check, format!("free, for {what}")),
        Some(error) if error.kind() == io::ErrorKind::AddrInUse => match holder() {
            Some(holder) if holder.name == "shoal" => {
                Check::good(check, format!("held by a node: shoal, process {}, with another data folder", holder.pid))
            }
            Some(holder) => Check::bad(check, format!("held by {}, process {}", holder.name, holder.pid), fix()),
            None => Check::bad(check, "held by a process that cannot be seen from here", fix()),
        },
        Some(error) => Check::bad(check, format!("cannot listen on {address}: {error}"), fix()),
    }
}

/// A process that listens on a port.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    name: String,
}

fn holder(port: u16) -> Option<Holder> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<u64> = tables.iter().flat_map(|table| listening(table, port)).collect();
    let processes = std::fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let pid = processes.into_iter().find(|pid| holds(*pid, &sockets))?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim().to_owned();
    Some(Holder { pid, name })
}

/// Reads the inodes of sockets that listen on a port from a table of the kernel: the second column is the address and the
/// port, the fourth the state (0A = listens), the tenth the inode.
fn listening(table: &str, port: u16) -> Vec<u64> {
    let ending = format!(":{port:04X}");
    let inode = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let listens = columns.get(1)?.ends_with(&ending) && *columns.get(3)? == "0A";
        columns.get(9)?.parse().ok().filter(|_| listens)
    };
    table.lines().skip(1).filter_map(inode).collect()
}

fn holds(pid: u32, sockets: &[u64]) -> bool {
    let Ok(open) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    open.filter_map(|fd| std::fs::metadata(fd.ok()?.path()).ok()).any(|file| sockets.contains(&file.ino()))
}

fn python_bases(found: &[Interpreter], config: &Config) -> Check {
    let check = "bases of Python images";
    let registries = if config.images.registries { "pulled from registries, or " } else { "" };
    let mut series: Vec<&str> = found.iter().map(|interpreter| interpreter.series.as_str()).collect();
    series.dedup();
    if !series.is_empty() {
        return Check::good(check, format!("{registries}made from what this machine has: Python {}", series.join(", ")));
    }
    let fix = "where registries cannot be reached, install interpreters by pyenv or uv, or name root filesystems in the key `images.bases`";
    let elsewhere = !config.images.bases.is_empty();
    match (config.images.registries, elsewhere) {
        (_, true) => Check::good(check, format!("{registries}{} that the configuration names", config.images.bases.len())),
        (true, false) => Check::warn(check, "only from registries or built from source: this machine has no interpreter to copy", fix),
        (false, false) => Check::warn(check, "only built from source, which takes minutes: there is no interpreter to copy", fix),
    }
}

fn debian_bases(mmdebstrap: Option<PathBuf>, config: &Config) -> Check {
    let check = "bases of Debian images";
    match (mmdebstrap, config.images.registries) {
        (Some(program), registries) => {
            let registries = if registries { "pulled from registries, or " } else { "" };
            Check::good(check, format!("{registries}made by {}", program.display()))
        }
        (None, registries) => {
            let found = if registries { "only from registries" } else { "none" };
            Check::warn(check, format!("{found}: mmdebstrap is not there to make one"), "apt-get install mmdebstrap")
        }
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "127.0.0.1:7470";

    fn in_use(holder: Option<&str>) -> Check {
        let holder = || holder.map(|name| Holder { pid: 7, name: name.to_owned() });
        port_is(ADDRESS.parse().unwrap(), "clients", "api", Some(io::ErrorKind::AddrInUse.into()), holder)
    }

    #[test]
    fn a_port_is_good_when_free_or_ours_and_bad_when_another_has_it() {
        assert_eq!(port_is(ADDRESS.parse().unwrap(), "clients", "api", None, || None).status, Status::Good);
        assert_eq!(in_use(Some("shoal")).status, Status::Good);
        let nginx = in_use(Some("nginx"));
        assert!(nginx.status == Status::Bad && nginx.found.contains("nginx, process 7") && nginx.fix.unwrap().contains("--api"));
        assert_eq!(in_use(None).status, Status::Bad);
    }

    #[test]
    fn this_process_is_found_by_its_port() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = holder(listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(found.pid, std::process::id());
    }

    #[test]
    fn only_listening_sockets_of_the_port_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:1D2E 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1\n\
            1: 0100007F:1D2E 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 12 1\n\
            2: 00000000:1D38 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1\n\
            3: broken\n";
        assert_eq!(listening(table, 7470), [11]);
    }

    #[test]
    fn a_disk_is_judged_by_its_room() {
        let status = |free| disk(Path::new("/data"), Ok(free)).status;
        assert_eq!(status(DISK_BYTES_WANTED), Status::Good);
        assert_eq!(status(DISK_BYTES_WANTED - 1), Status::Warn);
        assert_eq!(status(DISK_BYTES_MIN - 1), Status::Bad);
        assert!(disk(Path::new("/data"), Err(io::ErrorKind::NotFound.into())).fix.is_some());
    }

    #[test]
    fn room_is_found_for_a_folder_that_is_not_made_yet() {
        assert!(room(&std::env::temp_dir().join("not/made/yet")).unwrap() > 0);
    }

    #[test]
    fn a_machine_without_interpreters_is_told_what_to_do() {
        let mut config = Config::default();
        config.images.registries = false;
        let none = python_bases(&[], &config);
        assert!(none.status == Status::Warn && none.fix.unwrap().contains("images.bases"));
        let python = |series: &str| Interpreter { prefix: "/p".into(), series: series.to_owned(), version: format!("{series}.1") };
        let some = python_bases(&[python("3.13"), python("3.12"), python("3.12")], &config);
        assert!(some.status == Status::Good && some.found.ends_with("Python 3.13, 3.12"), "{}", some.found);
        assert!(debian_bases(None, &config).fix.unwrap().contains("mmdebstrap"));
    }

    #[test]
    fn checks_are_written_in_lower_case_with_every_field() {
        let json = serde_json::to_value(Check::bad("disk", "full", "make room")).unwrap();
        assert_eq!(json, serde_json::json!({"check": "disk", "status": "bad", "found": "full", "fix": "make room"}));
    }
}
