//! Containers without Shoal: a bundle and a plain `runsc run`, the least that runs a program in gVisor.
//!
//! The root is a folder on the machine's own disk, changes stay in memory, and there is no network. So a plain start does
//! less than the engine's, which gives a network namespace, limits and an overlay on disk besides.

use std::ffi::OsString;
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

/// Enters the groups before "--", then becomes the program after it: what runsc starts is in them from the beginning.
const ENTER: &str = r#"while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@""#;

/// The place of plain containers: bundles and runsc's own state. Outlives its containers.
#[derive(Debug)]
pub(crate) struct Raw {
    place: Place,
    made: u32,
}

#[derive(Clone, Debug)]
struct Place {
    runsc: PathBuf,
    dir: PathBuf,
    groups: Vec<PathBuf>,
}

impl Place {
    fn words(&self) -> Vec<OsString> {
        let mut words = vec![self.runsc.clone().into(), format!("--root={}", self.dir.join("state").display()).into()];
        let options = ["--platform=systrap", "--network=none", "--ignore-cgroups", "--overlay2=root:memory", "--host-uds=open"];
        words.extend(options.map(OsString::from));
        words
    }
}

impl Raw {
    /// Keeps everything in `dir`; containers are members of these control groups.
    pub(crate) fn new(runsc: &Path, dir: &Path, groups: &[PathBuf]) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let place = Place { runsc: runsc.to_owned(), dir: dir.to_owned(), groups: groups.to_vec() };
        Ok(Self { place, made: 0 })
    }

    /// Describes a container; what `run` takes is ready then.
    pub(crate) fn prepare(&mut self, program: &Program) -> anyhow::Result<Container> {
        self.made += 1;
        // Ids of one length: runsc takes prefixes of ids for ids.
        let id = format!("bench-{:06}", self.made);
        let bundle = self.place.dir.join(&id);
        fs::create_dir_all(&bundle).with_context(|| format!("cannot make {}", bundle.display()))?;
        fs::write(bundle.join("config.json"), describe(program).to_string())
            .with_context(|| format!("cannot write {}/config.json", bundle.display()))?;
        Ok(Container { place: self.place.clone(), id, bundle })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // runsc mounts an empty network namespace there and leaves it; several that start at once mount it several times.
        let place = self.place.dir.join("state/null-netns");
        while rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    }
}

/// A plain container: nothing is left of it once it is dropped.
#[derive(Debug)]
pub(crate) struct Container {
    place: Place,
    id: String,
    bundle: PathBuf,
}

impl Container {
    /// Runs it: `runsc run`, which ends with the program.
    pub(crate) fn run(&self, stdout: Stdio, stderr: Stdio) -> anyhow::Result<Child> {
        let mut words = self.place.words();
        words.extend(["run".into(), "--bundle".into(), self.bundle.clone().into(), self.id.clone().into()]);
        let mut command = if self.place.groups.is_empty() {
            Command::new(words.remove(0))
        } else {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", ENTER, "sh"]).args(&self.place.groups).arg("--");
            shell
        };
        command.args(words).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().context("cannot run runsc")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let words = self.place.words();
        let mut command = Command::new(&words[0]);
        let _ = command.args(&words[1..]).args(["delete", "--force", &self.id]).stdout(Stdio::null()).stderr(Stdio::null()).status();
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
