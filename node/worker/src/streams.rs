//! Our ends of the streams of processes in containers.

use std::io;
use std::os::fd::OwnedFd;

/// Makes our end of a pipe, or of a terminal, ready to be waited for.
pub(crate) fn opened<T>(fd: OwnedFd, open: impl FnOnce(OwnedFd) -> io::Result<T>) -> Option<T> {
    let opened = rustix::io::ioctl_fionbio(&fd, true).map_err(io::Error::from).and_then(|()| open(fd));
    opened.inspect_err(|error| tracing::error!(%error, "cannot use a stream of a process")).ok()
}
