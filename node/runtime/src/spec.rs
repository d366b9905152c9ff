//! What a container is to be: the description that the worker hands to the engine.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, path::PathBuf, time::Duration};

use crate::{Link, TerminalSize};

/// Folders that every container has something mounted on.
pub const MOUNTED_FOLDERS: [&str; 6] = ["proc", "sys", "dev", "dev/pts", "dev/shm", "tmp"];

/// Files that every container has something mounted on.
pub const MOUNTED_FILES: [&str; 3] = ["etc/resolv.conf", "etc/hosts", "etc/hostname"];

/// A container to create. [`ContainerSpec::new`] fills in what most do not care about.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// The root directory. It is never written to: changes go to an overlay of the container's
    /// own. It may be empty until [`Container::start`](crate::Container::start), if it then has
    /// its content at the same place. Where it can't be written to, as in a mounted tree, it must have a place for each
    /// mount: [`MOUNTED_FOLDERS`], [`MOUNTED_FILES`] and the targets of `binds`.
    pub rootfs: PathBuf,
    /// The program and its arguments. A name without a slash is looked up in the PATH of `env`.
    pub argv: Vec<String>,
    /// The environment, as (name, value). Names may repeat; the last one counts.
    pub env: Vec<(String, String)>,
    /// The working directory. It is made in the overlay if the tree lacks it.
    pub cwd: String,
    /// Who runs the program.
    pub user: User,
    /// The name of the machine, as programs see it. Clients die of an empty one, so an empty one
    /// is replaced by the container's address, or "shoal".
    pub hostname: String,
    /// Host directories and files to be seen inside.
    pub binds: Vec<Bind>,
    /// A folder of files and sockets that only this container has, on the file system of the engine's state folder. What is
    /// in it when the container is made is seen inside; what comes later may not be.
    pub own: Option<Bind>,
    /// The folder of a snapshot that [`Container::checkpoint`](crate::Container::checkpoint) wrote, of a program that waits
    /// for what to run on its stdin. Where the container fits a sandbox made ahead, that program goes on in it and is told
    /// the rest of this description; else this is of no meaning.
    pub snapshot: Option<PathBuf>,
    /// Small files to be seen inside, read-only.
    pub files: Vec<AddedFile>,
    /// Devices, such as GPUs.
    pub devices: Vec<Device>,
    /// What it may use.
    pub limits: Limits,
    /// Where changes of the root go.
    pub overlay: Overlay,
    /// Whom it may talk to.
    pub network: NetworkMode,
    /// One more network interface, whose packets whoever made it carries. It needs a network besides.
    pub link: Option<Link>,
    /// Capabilities besides Docker's default ones, such as "CAP_NET_ADMIN".
    pub capabilities: Vec<String>,
    /// Whether stdin is a pipe, which [`Stdio::stdin`](crate::Stdio) then holds, or /dev/null.
    pub stdin: bool,
    /// Whether all three streams of the first process are a terminal, of this size. Our ends of its stdin and stdout are then both the
    /// terminal's, and nothing comes from its stderr.
    pub terminal: Option<TerminalSize>,
    /// More flags for runsc, such as "--nvproxy". The engine's own come first.
    pub runsc_flags: Vec<String>,
    /// Annotations of the OCI description, for gVisor's own features.
    pub annotations: BTreeMap<String, String>,
}

impl ContainerSpec {
    /// A container that runs `argv` in `rootfs` as root, without network, limits or stdin.
    pub fn new(rootfs: impl Into<PathBuf>, argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            rootfs: rootfs.into(),
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![("PATH".into(), DEFAULT_PATH.into())],
            cwd: "/".into(),
            user: User::default(),
            hostname: String::new(),
            binds: Vec::new(),
            own: None,
            snapshot: None,
            files: Vec::new(),
            devices: Vec::new(),
            limits: Limits::default(),
            overlay: Overlay::Disk,
            network: NetworkMode::None,
            link: None,
            capabilities: Vec::new(),
            stdin: false,
            terminal: None,
            runsc_flags: Vec::new(),
            annotations: BTreeMap::new(),
        }
    }
}

/// The PATH of a container that brings none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user and its groups, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id; 0 is root.
    pub uid: u32,
    /// Main group id.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// A host directory or file that the container sees at a path of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host. Sockets in it can be connected to.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// A file whose content is given, mounted read-only over whatever the tree has there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedFile {
    /// In the container, absolute.
    pub target: String,
    /// The bytes.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// A device node of the host that the container may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its path, the same on the host and inside.
    pub path: String,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// What a container may use. `None` means as much as there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Hard limit of CPU time, in thousandths of a core. The container sees as many cores as it needs to use that up.
    pub cpu_millis: Option<u64>,
    /// Its share when cores are scarce, in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    /// Hard limit of memory. A container that reaches it is killed, and its exit says `oom`.
    pub memory_bytes: Option<u64>,
    /// How much the overlay may hold; more answers ENOSPC.
    pub disk_bytes: Option<u64>,
    /// Size of /dev/shm. `None`: half of the memory limit, at least Docker's 64 MiB.
    pub shm_bytes: Option<u64>,
}

impl Limits {
    /// Returns how many cores a container is shown on a machine of so many: `None` for all.
    pub(crate) fn cores(&self, machine: usize) -> Option<usize> {
        let cores = usize::try_from(self.cpu_millis?.div_ceil(1000)).unwrap_or(usize::MAX).max(1);
        (cores < machine).then_some(cores)
    }
}

/// Where a container's changes to its root are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlay {
    /// In a file of the engine's overlay folder that has no name and goes away with the sandbox.
    #[default]
    Disk,
    /// In memory; it counts towards the memory limit.
    Memory,
}

/// Whom a container may talk to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// The internet by NAT, and the node's own API. Not other containers, not the host.
    Nat,
    /// The node's own API alone.
    NodeOnly,
    /// Nobody: it has a loopback interface of its own.
    #[default]
    None,
}

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// How its first process ended.
    pub status: ExitStatus,
    /// Whether the kernel killed it because of its memory limit.
    pub oom: bool,
    /// Why it was killed, if that was because containers together took too much of the disk.
    pub disk: Option<OverDisk>,
}

/// Why a container was killed that took the most of a disk that all containers together had too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverDisk {
    /// What it took itself.
    pub own_bytes: u64,
    /// What all containers took.
    pub all_bytes: u64,
    /// What they may take.
    pub budget_bytes: u64,
}

impl fmt::Display for OverDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [own, all, budget] = [self.own_bytes, self.all_bytes, self.budget_bytes].map(|bytes| bytes >> 20);
        write!(
            f,
            "it took {own} MiB of the node's disk, the most of all containers, which took {all} MiB together, and {budget} MiB is what they may take"
        )
    }
}

impl Exit {
    /// The status as shells number it: the exit code, or 128 plus the signal.
    pub fn code(&self) -> i32 {
        match self.status {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }

    /// True when the program ended by itself and with success.
    pub fn success(&self) -> bool {
        self.status == ExitStatus::Code(0)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code. A first process that a signal ended *inside* the container shows
    /// as 128 plus the signal, for the sandbox tells no difference.
    Code(i32),
    /// A signal ended it; of a container: the sandbox was killed from outside.
    Signal(i32),
}

/// What a container has used and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory now, with its page cache.
    pub memory_bytes: u64,
    /// CPU time of its whole life.
    pub cpu: Duration,
}

/// In which way a container began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Its sandbox was made for it.
    #[default]
    Made,
    /// Its sandbox was made ahead.
    Ahead,
    /// A snapshot was restored.
    Restored,
}

/// How long each phase of a container's beginning took, for `explain`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// In which way it began.
    pub way: Way,
    /// Until it had a network: near zero when a prepared slot was there.
    pub network: Duration,
    /// Cgroups, description and files.
    pub prepare: Duration,
    /// `runsc create`; zero for a sandbox made ahead.
    pub create: Duration,
    /// From [`Container::start`](crate::Container::start) until its first process ran.
    pub start: Option<Duration>,
}

/// Addresses as the container sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Its own.
    pub own: Ipv4Addr,
    /// Where it reaches the node.
    pub gateway: Ipv4Addr,
}
