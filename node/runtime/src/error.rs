//! What can go wrong between the node and its containers.

use std::{io, path::PathBuf, time::Duration};

use crate::ContainerId;

/// A failure of the runtime. None of these is an answer to a user's program: the program's own
/// end, however bad, is an [`Exit`](crate::Exit).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no runsc, or it does not run.
    #[error("cannot run {path}: install gVisor's runsc with scripts/install-runsc")]
    RunscMissing {
        /// Where it was looked for.
        path: PathBuf,
        /// Why it did not run.
        #[source]
        source: io::Error,
    },
    /// This runsc is another version than the one whose control protocol the node speaks.
    #[error("{path} is version {found:?}, but this node needs {wanted}: run scripts/install-runsc")]
    RunscVersion {
        /// The program.
        path: PathBuf,
        /// What it calls itself.
        found: String,
        /// What the node needs.
        wanted: &'static str,
    },
    /// A sandbox made ahead has ended before anything used it.
    #[error("a sandbox made ahead has ended: see the machine's log for a lack of memory")]
    NotAlive,
    /// Another process has an engine open on the same folder.
    #[error("the runtime folder {path} is in use by another process")]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A system call on a file, folder or mount failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried, as an infinitive: "create", "write".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something about network devices, addresses or sockets.
    #[error("cannot {action}")]
    Network {
        /// What was tried, with the device's name.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `nft` is missing, hangs, or refused our rules.
    #[error("cannot {action} the firewall table {table}: {message}")]
    Firewall {
        /// What was tried.
        action: &'static str,
        /// The table of this engine.
        table: String,
        /// What nft said.
        message: String,
    },
    /// A container wants a network, and this engine was opened without one.
    #[error("container {container} wants a network, but this engine has none")]
    NoNetwork {
        /// The container that was to be created.
        container: ContainerId,
    },
    /// Every address of the subnet belongs to a container. A retry helps when one has ended.
    #[error("no free address is left in {subnet}")]
    NoFreeAddress {
        /// The range that is used up.
        subnet: String,
    },
    /// The container's description cannot be carried out.
    #[error("container {container} cannot be described to runsc: {reason}")]
    Description {
        /// The container.
        container: ContainerId,
        /// What is wrong with it.
        reason: String,
    },
    /// `runsc create` failed.
    #[error("runsc could not create container {container}: {message}")]
    Create {
        /// The container.
        container: ContainerId,
        /// What runsc wrote to its stderr.
        message: String,
    },
    /// The sandbox answered a call with an error.
    #[error("sandbox of {container} refused {method}: {message}")]
    Refused {
        /// The container.
        container: ContainerId,
        /// The control method.
        method: &'static str,
        /// The sandbox's words.
        message: String,
    },
    /// The sandbox went away, or spoke nonsense, during a call.
    #[error("the control connection of {container} broke during {method}")]
    Broken {
        /// The container.
        container: ContainerId,
        /// The control method.
        method: &'static str,
        /// How it broke.
        #[source]
        source: io::Error,
    },
    /// Something took longer than it may.
    #[error("container {container}: {what} did not happen within {waited:?}")]
    Deadline {
        /// The container.
        container: ContainerId,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// The sandbox does not die of SIGKILL. The usual reason is a FUSE server that hangs: abort
    /// its connection, then call `destroy` again.
    #[error("sandbox process {pid} of {container} survives SIGKILL: is a FUSE server below it hanging?")]
    Stuck {
        /// The container.
        container: ContainerId,
        /// The host process.
        pid: i32,
    },
    /// The sandbox's exit status was taken by someone else, or there is none.
    #[error("the exit status of {container} is lost")]
    StatusLost {
        /// The container.
        container: ContainerId,
        /// What waitid said.
        #[source]
        source: io::Error,
    },
    /// A former process left something that does not go away.
    #[error("cannot clean what a former process left: {what}")]
    Leftover {
        /// What is still there.
        what: String,
    },
}

/// The result of a runtime operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns a closure for `map_err` that names the action and the path.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// Returns a closure for `map_err` that names the action on the network.
    pub(crate) fn network<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Network { action, source: source.into() }
    }

    /// True where trying the same again, later, can succeed without anybody repairing anything.
    pub fn retry_helps(&self) -> bool {
        matches!(self, Self::NoFreeAddress { .. } | Self::Deadline { .. } | Self::Broken { .. } | Self::InUse { .. })
    }
}
