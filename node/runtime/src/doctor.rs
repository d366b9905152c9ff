//! What is wrong with this machine for containers, and how to repair it.
//!
//! Each check reads or tries one thing and says what it found. Nothing is changed, except that one
//! throwaway sandbox runs to see whether gVisor's platform works here.

use std::{
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::{Resource, getrlimit};
use tokio::{process::Command, time::timeout};

use crate::{
    RUNSC_STAMP, blocking,
    cgroup::{Available, Cgroups},
    engine::runsc_version,
    network::resolver::Resolver,
};

/// The oldest kernel with what is used: waiting for processes by pidfd.
const KERNEL_MIN: (u32, u32) = (5, 4);
/// How many memory mappings a process should be allowed; gVisor asks for it.
const MAP_COUNT_WANTED: u64 = 4_194_304;
/// How many files the node should be allowed to open: some ten for each container.
const OPEN_FILES_WANTED: u64 = 8192;
/// How long a throwaway sandbox may take. A platform that does not work here hangs.
const SANDBOX_DEADLINE: Duration = Duration::from_secs(20);
/// How long nft may take to list.
const LIST_DEADLINE: Duration = Duration::from_secs(10);

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Containers run, with less than they could have.
    Warning,
    /// Containers do not run.
    Bad,
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How much it matters.
    pub verdict: Verdict,
    /// What was found, as a sentence.
    pub found: String,
    /// What to do about it; `None` when all is well.
    pub fix: Option<String>,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good, found: found.into(), fix: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn bad(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { verdict: Verdict::Bad, ..Self::warning(name, found, fix) }
    }
}

/// Checks this machine, with the runsc and the platform that the node would use. Takes a second,
/// or twenty where the platform hangs.
pub async fn doctor_checks(runsc: &Path, platform: &str) -> Vec<Finding> {
    let mut findings = blocking(|| {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        vec![
            user(rustix::process::geteuid().is_root()),
            kernel(&read("/proc/sys/kernel/osrelease")),
            fuse(fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").err()),
            cgroups(Cgroups::available().ok()),
            map_count(read("/proc/sys/vm/max_map_count").trim().parse().ok()),
            open_files(limit),
            forwarding(&read("/proc/sys/net/ipv4/ip_forward")),
            names(&read("/etc/resolv.conf"), Resolver::of_machine()),
        ]
    })
    .await;
    findings.push(firewall(list_rules().await));
    let version = runsc_version(runsc).await;
    let right = version.as_ref().is_ok_and(|found| found == RUNSC_STAMP);
    findings.push(runsc_is(runsc, version.map_err(|e| e.to_string())));
    if right {
        findings.push(sandbox(platform, try_sandbox(runsc, platform).await));
    }
    findings
}

fn user(root: bool) -> Finding {
    match root {
        true => Finding::good("user", "the node runs as root"),
        false => Finding::bad(
            "user",
            "not root: mounts, network namespaces and cgroups need it",
            "run the node as root (sudo, or a systemd unit)",
        ),
    }
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().ok());
    let version = numbers.next().flatten().zip(numbers.next().flatten());
    let (major, minor) = KERNEL_MIN;
    match version {
        Some(version) if version >= KERNEL_MIN => Finding::good("kernel", format!("Linux {}", release.trim())),
        _ => Finding::bad(
            "kernel",
            format!("Linux {}, which is older than {major}.{minor}", release.trim()),
            format!("boot a kernel of {major}.{minor} or newer"),
        ),
    }
}

fn fuse(obstacle: Option<std::io::Error>) -> Finding {
    match obstacle {
        None => Finding::good("fuse", "/dev/fuse can be opened"),
        Some(error) => Finding::bad(
            "fuse",
            format!("/dev/fuse cannot be opened: {error}"),
            "modprobe fuse; in a container, pass the device in (--device /dev/fuse)",
        ),
    }
}

fn cgroups(available: Option<Available>) -> Finding {
    let Some(Available { version, controllers }) = available else {
        return Finding::bad("cgroups", "/proc/self/mountinfo cannot be read", "mount /proc");
    };
    let needed = ["memory", "cpu", "pids"];
    let missing: Vec<_> = needed.into_iter().filter(|name| !controllers.contains(name)).collect();
    if missing.is_empty() {
        return Finding::good("cgroups", format!("version {version} with {}", needed.join(", ")));
    }
    Finding::warning(
        "cgroups",
        format!("no controller for {}: such limits are not kept", missing.join(", ")),
        "mount the cgroup hierarchies below /sys/fs/cgroup, or boot with cgroup_enable=memory",
    )
}

fn map_count(count: Option<u64>) -> Finding {
    match count {
        Some(count) if count >= MAP_COUNT_WANTED => Finding::good("vm.max_map_count", count.to_string()),
        _ => Finding::warning(
            "vm.max_map_count",
            format!("{}: programs with very many mappings can fail in a sandbox", count.unwrap_or(0)),
            format!("sysctl -w vm.max_map_count={MAP_COUNT_WANTED} (and a line in /etc/sysctl.d to keep it)"),
        ),
    }
}

fn open_files(limit: u64) -> Finding {
    if limit >= OPEN_FILES_WANTED {
        return Finding::good("open files", format!("up to {limit}"));
    }
    Finding::warning(
        "open files",
        format!("only {limit} allowed: enough for some {} containers", limit / 20),
        format!("ulimit -Hn {OPEN_FILES_WANTED}, or LimitNOFILE= in the unit"),
    )
}

fn forwarding(value: &str) -> Finding {
    match value.trim() {
        "1" => Finding::good("ip forwarding", "on"),
        "0" => Finding::good("ip forwarding", "off; the node switches it on when it starts"),
        _ => Finding::bad("ip forwarding", "/proc/sys/net is not there", "mount /proc with its sys folder"),
    }
}

fn names(resolv_conf: &str, usable: Option<Resolver>) -> Finding {
    if let Some(resolver) = usable {
        let servers: Vec<_> = resolver.servers.iter().map(ToString::to_string).collect();
        return Finding::good("names", format!("containers ask {}", servers.join(", ")));
    }
    let found: Vec<_> = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).collect();
    let loopback = |text: &&str| text.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let found = match found.first() {
        None => "/etc/resolv.conf names no server".to_owned(),
        Some(first) if found.iter().all(loopback) => {
            format!("/etc/resolv.conf names only {first}, which inside a container is the container itself")
        }
        Some(first) => format!("/etc/resolv.conf names only {first}, and containers have no IPv6"),
    };
    Finding::warning(
        "names",
        format!("{found}: names do not resolve in containers"),
        "name an IPv4 server that containers can reach, in /etc/resolv.conf or in the node's configuration",
    )
}

/// Whether nft works, and whether another's rules keep containers from the world.
fn firewall(rules: Result<String, String>) -> Finding {
    let rules = match rules {
        Ok(rules) => rules,
        Err(message) => {
            return Finding::bad(
                "firewall",
                format!("nft does not work: {message}"),
                "install nftables (apt-get install nftables), and load the module nf_tables",
            );
        }
    };
    match closed_forward_table(&rules) {
        None => Finding::good("firewall", "nft works, and nothing forbids forwarding"),
        Some(table) => Finding::warning(
            "firewall",
            format!("the table {table:?} drops what is forwarded: containers do not reach the world"),
            "let it accept packets from and to interfaces named sh* (with Docker: two ACCEPT rules in the chain DOCKER-USER)",
        ),
    }
}

/// The first table, other than ours, with a forward chain that drops what no rule accepts.
fn closed_forward_table(rules: &str) -> Option<&str> {
    let mut table = "";
    for line in rules.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {");
        }
        let ours = table.contains("shoal_");
        if line.contains("hook forward") && line.contains("policy drop") && !ours {
            return Some(table);
        }
    }
    None
}

async fn list_rules() -> Result<String, String> {
    let run = Command::new("nft").args(["list", "ruleset"]).kill_on_drop(true).output();
    match timeout(LIST_DEADLINE, run).await {
        Err(_) => Err(format!("no answer within {LIST_DEADLINE:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

fn runsc_is(path: &Path, version: Result<String, String>) -> Finding {
    let wrong = match version {
        Ok(found) if found == RUNSC_STAMP => {
            return Finding::good("runsc", format!("{} is {found}", path.display()));
        }
        Ok(found) => format!("{} is version {found:?}, and the node needs {RUNSC_STAMP}", path.display()),
        Err(message) => message,
    };
    Finding::bad("runsc", wrong, "run scripts/install-runsc")
}

/// Runs the shortest program there is in a sandbox of its own; says how long it took.
async fn try_sandbox(runsc: &Path, platform: &str) -> Result<Duration, String> {
    let root = std::env::temp_dir().join(format!("shoal-doctor-{}", std::process::id()));
    fs::create_dir_all(&root).map_err(|e| e.to_string())?;
    let began = Instant::now();
    let run = Command::new(runsc)
        .arg(format!("--root={}", root.display()))
        .arg(format!("--platform={platform}"))
        .args(["--network=none", "--ignore-cgroups", "do", "/bin/true"])
        .kill_on_drop(true)
        .output();
    let result = match timeout(SANDBOX_DEADLINE, run).await {
        Err(_) => Err(format!("it did not end within {SANDBOX_DEADLINE:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        Ok(Ok(output)) if output.status.success() => Ok(began.elapsed()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    };
    let folder = root.clone();
    // What a hanging sandbox leaves is killed and unmounted like a former process's.
    let _ = blocking(move || crate::leftover::clean_sandboxes(&folder)).await;
    result
}

fn sandbox(platform: &str, tried: Result<Duration, String>) -> Finding {
    match tried {
        Ok(took) => Finding::good("sandbox", format!("a program ran on {platform} in {} ms", took.as_millis())),
        Err(message) => Finding::bad(
            "sandbox",
            format!("no program runs on the platform {platform}: {message}"),
            "use the platform systrap; where the node is in a container itself, give it the capabilities SYS_ADMIN and SYS_PTRACE and no seccomp filter",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_told_apart() {
        assert_eq!(kernel("6.18.0-rc1\n").verdict, Verdict::Good);
        assert_eq!(kernel("5.4.0-42-generic\n").verdict, Verdict::Good);
        assert_eq!(kernel("4.19.0\n").verdict, Verdict::Bad);
        assert_eq!(kernel("what\n").verdict, Verdict::Bad);
    }

    #[test]
    fn a_missing_controller_is_named() {
        let available = Available { version: 1, controllers: vec!["cpu", "pids"] };
        let finding = cgroups(Some(available));
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.found.contains("memory"), "{}", finding.found);
    }

    #[test]
    fn a_loopback_resolver_is_explained() {
        let finding = names("nameserver 127.0.0.53\n", None);
        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.found.contains("127.0.0.53") && finding.fix.is_some());
    }

    #[test]
    fn a_closed_forward_chain_of_someone_else_is_found() {
        let docker = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n";
        assert_eq!(closed_forward_table(docker), Some("ip filter"));
        assert_eq!(closed_forward_table(&docker.replace("ip filter", "inet shoal_ab12cd")), None);
        assert_eq!(closed_forward_table(&docker.replace("policy drop", "policy accept")), None);
    }

    #[test]
    fn a_wrong_runsc_says_what_is_needed() {
        let finding = runsc_is(Path::new("/x/runsc"), Ok("release-1".into()));
        assert_eq!(finding.verdict, Verdict::Bad);
        assert!(finding.found.contains("release-1") && finding.found.contains(RUNSC_STAMP));
    }
}
