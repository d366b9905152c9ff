//! Limits of a container, as control groups: plain files, for both versions of the kernel's
//! interface (v2, and v1 with one hierarchy per controller).
//!
//! runsc runs with `--ignore-cgroups`, because its own handling costs 25 ms for each start. The
//! node makes the groups and the child puts itself into them before it becomes runsc.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Error, Limits, Result, identity::Tag};

/// The period over which a CPU quota is counted, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// How many host tasks one container may have. Only a backstop: a guest process takes two, and a
/// sandbox that meets this limit crashes instead of answering EAGAIN.
const TASKS_MAX: u64 = 16_384;
/// How long a group may stay busy after its last process was killed.
const REMOVAL_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// The controllers in use.
const CONTROLLERS: [&str; 4] = ["memory", "cpu", "pids", "cpuacct"];

/// Where this machine's controllers are, and this instance's folder in each of them.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    version: Version,
    /// (controller, folder of this instance). In v2 all share one folder.
    folders: Vec<(&'static str, PathBuf)>,
}

/// What the machine offers, for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Available {
    pub(crate) version: u8,
    pub(crate) controllers: Vec<&'static str>,
}

/// The groups of one container.
#[derive(Debug)]
pub(crate) struct Cgroup {
    version: Version,
    folders: Vec<(&'static str, PathBuf)>,
}

impl Cgroups {
    /// Finds the hierarchies and makes this instance's folder in each. A controller that the
    /// machine does not have is left out; `doctor` says so.
    pub(crate) fn open(tag: Tag) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(Error::file("read", "/proc/self/mountinfo"))?;
        let (version, roots) = hierarchies(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default());
        let mut folders: Vec<_> = roots.into_iter().map(|(name, root)| (name, root.join(tag.cgroup()))).collect();
        for (_, folder) in &folders {
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        if version == Version::V2 {
            folders.retain(|(controller, folder)| delegate(controller, folder));
        }
        Ok(Self { version, folders })
    }

    /// Says what the machine offers, without making anything.
    pub(crate) fn available() -> io::Result<Available> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let (version, roots) = hierarchies(&mounts, |root| fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default());
        let controllers = roots.into_iter().map(|(name, _)| name).collect();
        Ok(Available { version: if version == Version::V2 { 2 } else { 1 }, controllers })
    }

    /// Makes the groups of a container and writes its limits.
    pub(crate) fn create(&self, name: &str, limits: &Limits) -> Result<Cgroup> {
        let folders = self.folders.iter().map(|(c, folder)| (*c, folder.join(name))).collect();
        let group = Cgroup { version: self.version, folders };
        let made = group.make(limits);
        if made.is_err() {
            // What was made before the failure must not stay.
            let _ = group.remove();
        }
        made.map(|()| group)
    }

    /// Removes every container's groups, killing what is in them, and says how many containers had some. For leftovers.
    pub(crate) fn remove_all_containers(&self) -> Result<usize> {
        let mut names = BTreeSet::new();
        for (_, folder) in &self.folders {
            for child in fs::read_dir(folder).into_iter().flatten().flatten() {
                if child.path().is_dir() {
                    remove_group(&child.path())?;
                    names.insert(child.file_name());
                }
            }
        }
        Ok(names.len())
    }

    /// Removes this instance's own folders. Containers must be gone.
    pub(crate) fn remove(&self) -> Result<()> {
        self.folders.iter().try_for_each(|(_, folder)| remove_group(folder))
    }
}

impl Cgroup {
    fn make(&self, limits: &Limits) -> Result<()> {
        for (_, folder) in &self.folders {
            // In v2 the folder of the second controller exists already.
            fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
        }
        self.limit(limits)
    }

    /// Writes limits. Those that are not given stay as they are.
    pub(crate) fn limit(&self, limits: &Limits) -> Result<()> {
        for (file, value, needed) in settings(self.version, limits) {
            let controller = file.split('.').next().unwrap_or_default();
            let Some(folder) = self.folder(controller) else { continue };
            match write(&folder.join(file), &value) {
                Err(_) if !needed => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn folder(&self, controller: &str) -> Option<&Path> {
        self.folders.iter().find(|(name, _)| *name == controller).map(|(_, folder)| &**folder)
    }

    /// Opens the files through which a process enters these groups, by writing "0".
    pub(crate) fn entrances(&self) -> Result<Vec<File>> {
        let mut folders: Vec<_> = self.folders.iter().map(|(_, folder)| folder).collect();
        folders.dedup();
        let open = |folder: &PathBuf| {
            let path = folder.join("cgroup.procs");
            OpenOptions::new().write(true).open(&path).map_err(Error::file("open", &path))
        };
        folders.into_iter().map(open).collect()
    }

    /// The file that lists all threads of the container, one a line.
    pub(crate) fn threads(&self) -> Option<PathBuf> {
        let file = match self.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        };
        self.folders.first().map(|(_, folder)| folder.join(file))
    }

    /// True when the kernel killed a process of this container because it reached its memory
    /// limit. Ask before the groups are removed.
    pub(crate) fn oom_killed(&self) -> bool {
        let file = match self.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        self.read("memory", file).is_some_and(|text| value_of(&text, "oom_kill") > 0)
    }

    /// Reads what the container uses now; zeros where the machine does not count.
    pub(crate) fn usage(&self) -> crate::Usage {
        let number = |text: Option<String>| text.and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        let (memory_bytes, cpu_us) = match self.version {
            Version::V1 => (number(self.read("memory", "memory.usage_in_bytes")), number(self.read("cpuacct", "cpuacct.usage")) / 1000),
            Version::V2 => (
                number(self.read("memory", "memory.current")),
                self.read("cpu", "cpu.stat").map_or(0, |text| value_of(&text, "usage_usec")),
            ),
        };
        crate::Usage { memory_bytes, cpu: Duration::from_micros(cpu_us) }
    }

    fn read(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.folder(controller)?.join(file)).ok()
    }

    /// Kills what is still inside and removes the groups. Blocks for as long as the kernel needs.
    pub(crate) fn remove(&self) -> Result<()> {
        self.folders.iter().try_for_each(|(_, folder)| remove_group(folder))
    }
}

/// The files to write for these limits: (file, value, whether it must succeed).
fn settings(version: Version, limits: &Limits) -> Vec<(&'static str, String, bool)> {
    let mut files = Vec::new();
    let quota_us = limits.cpu_millis.map(|millis| (millis * CPU_PERIOD_US / 1000).max(1000));
    match version {
        Version::V1 => {
            if let Some(bytes) = limits.memory_bytes {
                files.push(("memory.limit_in_bytes", bytes.to_string(), true));
                // Only where the kernel accounts swap.
                files.push(("memory.memsw.limit_in_bytes", bytes.to_string(), false));
            }
            if let Some(quota) = quota_us {
                files.push(("cpu.cfs_period_us", CPU_PERIOD_US.to_string(), true));
                files.push(("cpu.cfs_quota_us", quota.to_string(), true));
            }
            if let Some(millis) = limits.cpu_request_millis {
                files.push(("cpu.shares", (millis * 1024 / 1000).clamp(2, 262_144).to_string(), true));
            }
        }
        Version::V2 => {
            if let Some(bytes) = limits.memory_bytes {
                files.push(("memory.max", bytes.to_string(), true));
                files.push(("memory.swap.max", "0".into(), false));
                // The sandbox is one program: half of it cannot go on.
                files.push(("memory.oom.group", "1".into(), false));
            }
            if let Some(quota) = quota_us {
                files.push(("cpu.max", format!("{quota} {CPU_PERIOD_US}"), true));
            }
            if let Some(millis) = limits.cpu_request_millis {
                files.push(("cpu.weight", (millis / 10).clamp(1, 10_000).to_string(), true));
            }
        }
    }
    files.push(("pids.max", TASKS_MAX.to_string(), false));
    files
}

/// Finds the hierarchies in the text of /proc/self/mountinfo. v2 is used where it has controllers;
/// `controllers_of` reads the list of a v2 root.
fn hierarchies(mountinfo: &str, controllers_of: impl Fn(&Path) -> String) -> (Version, Vec<(&'static str, PathBuf)>) {
    let mut v1 = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(root) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        if kind == "cgroup2" {
            let list = controllers_of(&root);
            if list.split_whitespace().any(|name| name == "memory") {
                // v2 counts CPU time in cpu.stat: it has no cpuacct.
                let named = |name: &&&str| list.split_whitespace().any(|have| have == **name);
                let folders = CONTROLLERS.iter().filter(named).map(|name| (*name, root.clone()));
                return (Version::V2, folders.collect());
            }
        } else if kind == "cgroup" {
            let has = |name: &&&str| options.split(',').any(|option| option == **name);
            let new = CONTROLLERS.iter().filter(has).map(|name| (*name, root.clone()));
            v1.extend(new.filter(|(name, _)| !v1.iter().any(|(n, _)| n == name)).collect::<Vec<_>>());
        }
    }
    (Version::V1, v1)
}

/// Lets the children of a v2 folder have a controller; false where the machine refuses. It does so
/// where the root of what we see has processes itself, as in a container with a group of its own.
fn delegate(controller: &str, folder: &Path) -> bool {
    let root = folder.parent().unwrap_or(folder);
    for group in [root, folder] {
        if let Err(error) = fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::warn!(%controller, group = %group.display(), %error, "limits are not kept");
            return false;
        }
    }
    true
}

/// The number after a word in a file of "word number" lines; 0 when it is not there.
fn value_of(text: &str, word: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == word)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}

fn write(path: &Path, value: &str) -> Result<()> {
    let open = OpenOptions::new().write(true).open(path);
    open.and_then(|mut file| file.write_all(value.as_bytes())).map_err(Error::file("write", path))
}

/// Kills the processes of a group and removes it. One that is gone already is no error.
fn remove_group(folder: &Path) -> Result<()> {
    let until = Instant::now() + REMOVAL_DEADLINE;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() > until => return Err(Error::file("remove", folder)(e)),
            Err(_) => kill_members(folder),
        }
        // The kernel lets go of a group a moment after its last process is gone, and offers
        // nothing to wait on.
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn kill_members(folder: &Path) {
    let members = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
31 25 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 25 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_machines_count_as_v1_and_shared_hierarchies_are_found() {
        let (version, folders) = hierarchies(HYBRID, |_| String::new());
        assert_eq!(version, Version::V1);
        let at = |name: &str| folders.iter().find(|f| f.0 == name).map(|f| f.1.to_str().unwrap());
        assert_eq!(at("cpu"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(at("cpuacct"), Some("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(at("memory"), Some("/sys/fs/cgroup/memory"));
        assert_eq!(at("pids"), Some("/sys/fs/cgroup/pids"));
    }

    #[test]
    fn a_unified_hierarchy_with_a_memory_controller_counts_as_v2() {
        let line = "24 30 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate";
        let (version, folders) = hierarchies(line, |_| "cpuset cpu io memory pids\n".into());
        assert_eq!(version, Version::V2);
        assert_eq!(folders.iter().map(|f| f.0).collect::<Vec<_>>(), ["memory", "cpu", "pids"]);
    }

    #[test]
    fn limits_become_files() {
        let limits = Limits { cpu_millis: Some(1500), cpu_request_millis: Some(125), memory_bytes: Some(1 << 30), ..Limits::default() };
        let find = |version, file| {
            let all = settings(version, &limits);
            all.into_iter().find(|s| s.0 == file).map(|s| s.1).unwrap_or_default()
        };
        assert_eq!(find(Version::V1, "cpu.cfs_quota_us"), "150000");
        assert_eq!(find(Version::V1, "cpu.shares"), "128");
        assert_eq!(find(Version::V1, "memory.limit_in_bytes"), "1073741824");
        assert_eq!(find(Version::V2, "cpu.max"), "150000 100000");
        assert_eq!(find(Version::V2, "cpu.weight"), "12");
        assert_eq!(find(Version::V2, "memory.max"), "1073741824");
    }

    #[test]
    fn kill_counts_are_read_from_both_kinds_of_file() {
        assert_eq!(value_of("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "oom_kill"), 2);
        assert_eq!(value_of("low 0\noom 1\noom_kill 1\noom_group_kill 1\n", "oom_kill"), 1);
        assert_eq!(value_of("low 0\n", "oom_kill"), 0);
    }
}
