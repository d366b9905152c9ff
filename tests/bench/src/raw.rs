//! Containers without Shoal: a bundle and a plain `runsc run`, the least that runs a program in gVisor.
//!
//! The root is a folder on the machine's own disk, changes stay in memory, and there is no network. So a plain start does
//! less than the engine's, which gives a network namespace, limits and an overlay on disk besides.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use serde_json::{Value, json};
use shoal_runtime::DEFAULT_CAPABILITIES;

/// What a plain container runs.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    /// The root directory.
    pub(crate) root: PathBuf,
    /// The program and its arguments.
    pub(crate) argv: Vec<String>,
    /// "NAME=value".
    pub(crate) env: Vec<String>,
    /// The working directory.
    pub(crate) cwd: String,
    /// Folders of the machine that it sees: (here, there).
    pub(crate) binds: Vec<(PathBuf, String)>,
}

/// The place of plain containers: bundles and runsc's own state.
#[derive(Debug)]
pub(crate) struct Raw {
    runsc: PathBuf,
    dir: PathBuf,
    made: u32,
}

impl Raw {
    /// Keeps everything in `dir`.
    pub(crate) fn new(runsc: &Path, dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { runsc: runsc.to_owned(), dir: dir.to_owned(), made: 0 })
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.runsc);
        command.arg(format!("--root={}", self.dir.join("state").display()));
        command.args(["--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=root:memory", "--host-uds=open"]);
        command
    }

    /// Describes a container; what `run` takes is ready then.
    pub(crate) fn prepare(&mut self, program: &Program) -> anyhow::Result<Container<'_>> {
        self.made += 1;
        // Ids of one length: runsc takes prefixes of ids for ids.
        let id = format!("bench-{:06}", self.made);
        let bundle = self.dir.join(&id);
        fs::create_dir_all(&bundle).with_context(|| format!("cannot make {}", bundle.display()))?;
        fs::write(bundle.join("config.json"), describe(program).to_string())
            .with_context(|| format!("cannot write {}/config.json", bundle.display()))?;
        Ok(Container { raw: self, id, bundle })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // runsc mounts an empty network namespace there and leaves it.
        let _ = rustix::mount::unmount(self.dir.join("state/null-netns"), rustix::mount::UnmountFlags::DETACH);
    }
}

/// A plain container: nothing is left of it once it is dropped.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    raw: &'a Raw,
    id: String,
    bundle: PathBuf,
}

impl Container<'_> {
    /// Runs it: `runsc run`, which ends with the program.
    pub(crate) fn run(&self, stdout: Stdio, stderr: Stdio) -> anyhow::Result<Child> {
        let mut command = self.raw.command();
        command.args(["run", "--bundle"]).arg(&self.bundle).arg(&self.id);
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().context("cannot run runsc")
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        let _ = self.raw.command().args(["delete", "--force", &self.id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = fs::remove_dir_all(&self.bundle);
    }
}

fn describe(program: &Program) -> Value {
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
        json!({"destination": "/tmp", "type": "tmpfs", "source": "tmp"}),
    ];
    mounts.extend(
        program.binds.iter().map(|(here, there)| json!({"destination": there, "type": "bind", "source": here, "options": ["rbind", "rw"]})),
    );
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": program.argv,
            "env": program.env,
            "cwd": program.cwd,
            "capabilities": {"bounding": DEFAULT_CAPABILITIES, "effective": DEFAULT_CAPABILITIES, "permitted": DEFAULT_CAPABILITIES},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 65536, "hard": 65536}],
        },
        "root": {"path": program.root, "readonly": false},
        "hostname": "bench",
        "mounts": mounts,
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}
