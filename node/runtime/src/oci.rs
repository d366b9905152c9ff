//! The OCI description of a container (`config.json`), from our own. Pure.

use std::path::Path;

use serde_json::{Value, json};

use crate::spec::{Bind, ContainerSpec, Limits, User};

/// Docker's default capabilities.
pub const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// Open files for each process, soft and hard. Enough for servers; small enough for old programs
/// that close every number up to the limit before they start another.
const OPEN_FILES_MAX: u64 = 65_536;
/// Makes the kernel prefer a sandbox over the node when memory runs out.
const OOM_SCORE_ADJ: i32 = 900;
/// Docker's size of /dev/shm.
const SHM_BYTES_MIN: u64 = 64 << 20;

/// Renders the description. `binds` are all binds, those for added files and for /etc included;
/// `network_namespace` is a path under which the namespace can be opened.
pub(crate) fn render(spec: &ContainerSpec, hostname: &str, binds: &[Bind], network_namespace: Option<&Path>) -> Value {
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "ipc"}), json!({"type": "uts"}), json!({"type": "mount"})];
    if let Some(path) = network_namespace {
        namespaces.push(json!({"type": "network", "path": path}));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": process(spec),
        "root": {"path": spec.rootfs, "readonly": false},
        "hostname": hostname,
        "mounts": mounts(&spec.limits, binds),
        "annotations": spec.annotations,
        "linux": {
            "namespaces": namespaces,
            "devices": spec.devices.iter().map(|device| json!({
                "path": device.path, "type": "c", "major": device.major, "minor": device.minor,
                "fileMode": 0o666, "uid": 0, "gid": 0,
            })).collect::<Vec<_>>(),
        },
    })
}

fn process(spec: &ContainerSpec) -> Value {
    let all = capabilities(spec);
    // Docker gives capabilities to root alone; others can gain them by set-user-id programs.
    let active = active_capabilities(&spec.user, &all);
    let mut user = json!({"uid": spec.user.uid, "gid": spec.user.gid});
    if !spec.user.groups.is_empty() {
        // runsc tells an empty list from none when it compares a container with a snapshot.
        user["additionalGids"] = json!(spec.user.groups);
    }
    json!({
        "terminal": spec.terminal.is_some(),
        "user": user,
        "args": spec.argv,
        "env": environment(&spec.env),
        "cwd": spec.cwd,
        "capabilities": {
            "bounding": all, "effective": active, "permitted": active,
        },
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": OPEN_FILES_MAX, "hard": OPEN_FILES_MAX}],
        "noNewPrivileges": false,
        "oomScoreAdj": OOM_SCORE_ADJ,
    })
}

/// All capabilities a container's processes may come to have.
pub(crate) fn capabilities(spec: &ContainerSpec) -> Vec<String> {
    let mut all: Vec<_> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    all.extend(spec.capabilities.iter().filter(|extra| !DEFAULT_CAPABILITIES.contains(&extra.as_str())).cloned());
    all
}

/// Those that a process of this user has from its start.
pub(crate) fn active_capabilities(user: &User, all: &[String]) -> Vec<String> {
    if user.uid == 0 { all.to_vec() } else { Vec::new() }
}

/// "NAME=value" for each name once, the last value given, in the order of first appearance.
pub(crate) fn environment(pairs: &[(String, String)]) -> Vec<String> {
    let mut names: Vec<(&str, &str)> = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        match names.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value,
            None => names.push((name, value)),
        }
    }
    names.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

fn mounts(limits: &Limits, binds: &[Bind]) -> Vec<Value> {
    let shm = limits.shm_bytes.unwrap_or_else(|| limits.memory_bytes.map_or(SHM_BYTES_MIN, |memory| (memory / 2).max(SHM_BYTES_MIN)));
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={shm}")]}),
    ];
    // gVisor puts a tmpfs over an empty /tmp, which would take what programs leave there out of
    // the overlay. It does not where /tmp is mounted, and it skips a mount of an unknown type.
    if !binds.iter().any(|bind| bind.target == "/tmp") {
        mounts.push(json!({"destination": "/tmp", "type": "as-in-the-root", "source": "none"}));
    }
    mounts.extend(binds.iter().map(|bind| {
        json!({
            "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", if bind.read_only { "ro" } else { "rw" }],
        })
    }));
    mounts
}

/// Numbers of the capabilities that Linux has, for the sandbox's own exec call, which takes a mask.
pub(crate) fn capability_mask(names: &[String]) -> u64 {
    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];
    let number = |name: &String| {
        let name = name.strip_prefix("CAP_").unwrap_or(name);
        NAMES.iter().position(|known| *known == name)
    };
    names.iter().filter_map(number).fold(0, |mask, bit| mask | 1 << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(spec: &ContainerSpec) -> Value {
        render(spec, "h", &spec.binds, Some(Path::new("/proc/1/fd/9")))
    }

    #[test]
    fn the_last_value_of_a_name_counts() {
        let pairs = [("A", "1"), ("B", "2"), ("A", "3")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(environment(&pairs), ["A=3", "B=2"]);
    }

    #[test]
    fn root_has_dockers_capabilities_and_others_have_none_to_start_with() {
        let mut spec = ContainerSpec::new("/r", ["true"]);
        let root = rendered(&spec);
        assert_eq!(root["process"]["capabilities"]["effective"].as_array().unwrap().len(), 14);
        spec.user.uid = 1000;
        let other = rendered(&spec);
        assert_eq!(other["process"]["capabilities"]["effective"], json!([]));
        assert_eq!(other["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 14);
    }

    #[test]
    fn shared_memory_follows_the_memory_limit() {
        let mut spec = ContainerSpec::new("/r", ["true"]);
        let size = |spec: &ContainerSpec| rendered(spec)["mounts"].to_string();
        assert!(size(&spec).contains("size=67108864"));
        spec.limits.memory_bytes = Some(8 << 30);
        assert!(size(&spec).contains("size=4294967296"));
    }

    #[test]
    fn tmp_stays_in_the_overlay_unless_something_is_bound_there() {
        let mut spec = ContainerSpec::new("/r", ["true"]);
        assert!(rendered(&spec)["mounts"].to_string().contains("as-in-the-root"));
        spec.binds.push(Bind { source: "/x".into(), target: "/tmp".into(), read_only: false });
        assert!(!rendered(&spec)["mounts"].to_string().contains("as-in-the-root"));
    }

    #[test]
    fn a_tree_with_the_named_places_has_all_that_are_mounted_on() {
        for mount in rendered(&ContainerSpec::new("/r", ["true"]))["mounts"].as_array().unwrap() {
            let place = mount["destination"].as_str().unwrap().trim_start_matches('/');
            assert!(crate::MOUNTED_FOLDERS.contains(&place) || crate::MOUNTED_FILES.contains(&place), "{place}");
        }
    }

    #[test]
    fn masks_have_the_kernels_numbers() {
        assert_eq!(capability_mask(&["CAP_CHOWN".into(), "CAP_KILL".into()]), 0b10_0001);
        // What `capsh --decode` calls Docker's default set.
        let all: Vec<_> = DEFAULT_CAPABILITIES.iter().map(|n| (*n).to_owned()).collect();
        assert_eq!(capability_mask(&all), 0xa804_25fb);
    }
}
