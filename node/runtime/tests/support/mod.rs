//! What the tests with a real runsc share: a root directory with one static program, an engine in
//! a folder of its own, and helpers to read what containers print.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::{
    fs::{self, File},
    hash::{Hash, Hasher},
    io::Read,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use shoal_runtime::{Container, ContainerSpec, Engine, EngineConfig, Exit, NetworkConfig};

/// No step of a test takes this long, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Why the tests of this file cannot run here; `None` when they can.
pub fn obstacle() -> Option<&'static str> {
    let runsc = EngineConfig::new("/nonexistent").runsc;
    let root = nix::unistd::geteuid().is_root();
    match (root, runsc.exists()) {
        (false, _) => Some("not root"),
        (_, false) => Some("no runsc: run scripts/install-runsc"),
        _ => None,
    }
}

/// Ends a test with a message where containers cannot run.
#[macro_export]
macro_rules! needs_runsc {
    () => {
        if let Some(reason) = support::obstacle() {
            eprintln!("skipped: {reason}");
            return;
        }
    };
}

/// An engine in a temporary folder, and a root directory for its containers.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub engine: Engine,
}

impl Bench {
    pub async fn open() -> Self {
        Self::open_with(Some(NetworkConfig { slots_ahead: 2, ..NetworkConfig::default() })).await
    }

    pub async fn without_network() -> Self {
        Self::open_with(None).await
    }

    pub async fn open_with(network: Option<NetworkConfig>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = open_engine(folder.path(), network).await;
        Self { folder, engine }
    }

    /// A description of a container that runs the probe.
    pub fn probe(&self, words: &[&str]) -> ContainerSpec {
        let argv = std::iter::once("/probe").chain(words.iter().copied());
        ContainerSpec::new(root_directory(), argv)
    }

    pub async fn start(&self, spec: ContainerSpec) -> Container {
        let container = self.engine.create(spec).await.unwrap();
        container.start().await.unwrap();
        container
    }

    /// Runs the probe to its end: its exit, stdout and stderr.
    pub async fn run(&self, spec: ContainerSpec) -> (Exit, String, String) {
        let container = self.start(spec).await;
        let stdio = container.take_stdio().unwrap();
        let out = read_all(stdio.stdout);
        let err = read_all(stdio.stderr);
        let exit = within("the container's exit", container.exit()).await.unwrap();
        let (out, err) = (out.await.unwrap(), err.await.unwrap());
        container.destroy().await.unwrap();
        (exit, out, err)
    }

    /// Closes the engine and fails if anything that carries its tag is left.
    pub async fn close(self) {
        let tag = self.engine.tag().to_string();
        self.engine.close().await.unwrap();
        assert_eq!(traces_of(&tag, self.folder.path()), Vec::<String>::new());
    }
}

pub async fn open_engine(folder: &Path, network: Option<NetworkConfig>) -> Engine {
    let config = EngineConfig { network, ..EngineConfig::new(folder.join("state")) };
    Engine::open(config).await.unwrap()
}

// A test that fails must not leave its sandboxes and links to the machine.
impl Drop for Bench {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let engine = self.engine.clone();
            let closing = std::thread::spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(engine.close())
            });
            eprintln!("cleaned up after a failed test: {:?}", closing.join());
        }
    }
}

/// Everything on this machine that carries a tag.
pub fn traces_of(tag: &str, folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let output = |program: &str, words: &[&str]| {
        let output = Command::new(program).args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut note = |what: &str, text: &str| {
        found.extend(text.lines().filter(|line| line.contains(tag)).map(|line| format!("{what}: {line}")));
    };
    note("link", &output("ip", &["-o", "link"]));
    note("firewall", &output("nft", &["list", "tables"]));
    note("mount", &fs::read_to_string("/proc/self/mountinfo").unwrap());
    note("process", &output("ps", &["axww", "-o", "args"]));
    note("file", &output("find", &["/run/shoal", "-mindepth", "1"]));
    note("cgroup", &output("find", &["/sys/fs/cgroup", "-type", "d", "-name", &format!("*{tag}*")]));
    let overlay = output("find", &[folder.to_str().unwrap(), "-mindepth", "3"]);
    found.extend(overlay.lines().map(|line| format!("overlay: {line}")));
    found
}

/// A root directory with the probe and nothing else; built anew when the probe has changed.
pub fn root_directory() -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let mut hasher = std::hash::DefaultHasher::new();
        include_str!("probe.rs").hash(&mut hasher);
        let within = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = within.join(format!("probe-root-{:x}", hasher.finish()));
        if !folder.exists() {
            let making = tempfile::tempdir_in(within).unwrap();
            for name in ["etc", "tmp", "proc", "sys", "dev"] {
                fs::create_dir(making.path().join(name)).unwrap();
            }
            fs::write(making.path().join("etc/fixed"), "as it was").unwrap();
            build_probe(&making.path().join("probe"));
            fs::set_permissions(making.path(), PermissionsExt::from_mode(0o755)).unwrap();
            // Another test process may have been first.
            if fs::rename(making.path(), &folder).is_ok() {
                let _ = making.keep();
            }
        }
        folder
    })
    .clone()
}

fn build_probe(to: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/probe.rs");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "--target", &target])
        .arg(source)
        .arg("-o")
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success(), "the probe does not build");
}

/// Reads a pipe to its end, on a thread of its own.
pub fn read_all(pipe: OwnedFd) -> tokio::task::JoinHandle<String> {
    tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        File::from(pipe).read_to_string(&mut text).unwrap();
        text
    })
}

/// Reads one line, leaving the rest in the pipe.
pub async fn read_line(pipe: OwnedFd) -> (String, OwnedFd) {
    let reading = tokio::task::spawn_blocking(move || {
        let (mut file, mut line) = (File::from(pipe), Vec::new());
        let mut byte = [0];
        while file.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        (String::from_utf8(line).unwrap(), OwnedFd::from(file))
    });
    within("a line", reading).await.unwrap()
}

/// Waits for something, and fails by name if it does not come.
pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {DEADLINE:?}"),
    }
}
