//! Unix sockets anywhere: the kernel takes 107 bytes for a socket's path, and folders may lie deeper.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

/// A short path to a socket, for as long as this lives.
#[derive(Debug)]
pub struct ShortPath {
    _folder: OwnedFd,
    path: PathBuf,
}

impl ShortPath {
    /// Opens the socket's folder, so that the socket is found by way of it.
    ///
    /// # Errors
    /// When the path has no folder or no name, or the folder cannot be opened.
    pub fn to(socket: &Path) -> io::Result<Self> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no socket", socket.display()));
        let (folder, name) = (socket.parent().ok_or_else(no_name)?, socket.file_name().ok_or_else(no_name)?);
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let folder = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
        Ok(Self { _folder: folder, path })
    }

    /// Returns the path. Of this process alone.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_socket_deep_down_is_made_and_found() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        let socket = deep.join("api.sock");
        assert!(UnixListener::bind(&socket).is_err(), "its path is too long for the kernel");
        let _listener = UnixListener::bind(ShortPath::to(&socket).unwrap().path()).unwrap();
        assert!(socket.exists());
        UnixStream::connect(ShortPath::to(&socket).unwrap().path()).unwrap();
        assert!(ShortPath::to(Path::new("/")).is_err());
    }
}
