//! A snapshot on its way: what openraft reads from on the one side and writes to on the other.

use std::fs::File;
use std::io::SeekFrom;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use super::Temporary;

/// A file that is sent, or one that is received and removed again unless it is installed.
#[derive(Debug)]
pub(crate) struct SnapshotData {
    file: tokio::fs::File,
    temporary: Option<Temporary>,
}

impl SnapshotData {
    pub(super) fn new(file: File, temporary: Option<Temporary>) -> Self {
        Self { file: tokio::fs::File::from_std(file), temporary }
    }

    /// Ends the transfer: waits for writes on their way, and gives the file and its temporary name.
    pub(crate) async fn into_parts(self) -> (File, Option<Temporary>) {
        (self.file.into_std().await, self.temporary)
    }
}

impl AsyncRead for SnapshotData {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_read(context, buffer)
    }
}

impl AsyncWrite for SnapshotData {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.file).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.file).poll_shutdown(context)
    }
}

impl AsyncSeek for SnapshotData {
    fn start_seek(mut self: Pin<&mut Self>, position: SeekFrom) -> std::io::Result<()> {
        Pin::new(&mut self.file).start_seek(position)
    }

    fn poll_complete(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<u64>> {
        Pin::new(&mut self.file).poll_complete(context)
    }
}
