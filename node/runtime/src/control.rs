//! The sandbox's control socket: what the runsc command itself speaks to a running sandbox.
//!
//! A call is one JSON object on a unix stream socket, `{"method": M, "arg": A}`, with descriptors
//! attached to its first bytes; the answer is one JSON object. A direct call takes 4 ms where the
//! command takes 12. The protocol belongs to one exact version of runsc, which is why the engine
//! refuses any other.
//!
//! Each call has a connection of its own, so a wait that lasts for hours holds up nobody, and
//! dropping the future ends the call.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::UnixStream,
    time::timeout,
};

use crate::{ContainerId, Error, Result, ShortPath};

/// How many descriptors one call may carry: stdin, stdout, stderr of an exec, with room to spare.
const DESCRIPTORS_MAX: usize = 8;
/// The longest answer that is read. The list of a container's processes is the longest there is.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Speaks to the sandbox of one container.
#[derive(Clone, Debug)]
pub(crate) struct Control {
    container: ContainerId,
    socket: PathBuf,
}

#[derive(Serialize)]
struct Call<'a, A> {
    method: &'static str,
    arg: &'a A,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    err: String,
    #[serde(default)]
    result: serde_json::Value,
}

impl Control {
    pub(crate) fn new(container: ContainerId, socket: PathBuf) -> Self {
        Self { container, socket }
    }

    /// Makes one call and waits at most `within` for its answer.
    pub(crate) async fn call<A: Serialize, R: DeserializeOwned>(
        &self,
        method: &'static str,
        arg: &A,
        descriptors: &[BorrowedFd<'_>],
        within: Duration,
    ) -> Result<R> {
        match timeout(within, self.call_patiently(method, arg, descriptors)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::Deadline { container: self.container, what: method, waited: within }),
        }
    }

    /// Makes one call that ends when something in the sandbox ends, or the sandbox itself does.
    pub(crate) async fn call_patiently<A: Serialize, R: DeserializeOwned>(
        &self,
        method: &'static str,
        arg: &A,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<R> {
        let broken = |source| Error::Broken { container: self.container, method, source };
        let request = serde_json::to_vec(&Call { method, arg }).map_err(|e| broken(e.into()))?;
        let mut stream = UnixStream::connect(ShortPath::to(&self.socket).map_err(broken)?.path()).await.map_err(broken)?;
        send(&mut stream, &request, descriptors).await.map_err(broken)?;
        let answer = receive(&mut stream).await.map_err(broken)?;
        if !answer.success {
            return Err(Error::Refused { container: self.container, method, message: answer.err });
        }
        serde_json::from_value(answer.result).map_err(|e| broken(e.into()))
    }
}

/// Sends the request, its descriptors with the first bytes.
async fn send(stream: &mut UnixStream, request: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one call"));
            }
            let stream = stream.as_fd();
            Ok(sendmsg(stream, &[IoSlice::new(request)], &mut control, SendFlags::NOSIGNAL)?)
        })
        .await?;
    stream.write_all(&request[sent..]).await
}

/// Reads until one whole JSON value is there. Nothing marks its end but its own last brace.
async fn receive(stream: &mut UnixStream) -> io::Result<Answer> {
    let mut bytes = Vec::with_capacity(1024);
    loop {
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match serde_json::Deserializer::from_slice(&bytes).into_iter().next() {
            Some(Ok(answer)) => return Ok(answer),
            Some(Err(error)) if !error.is_eof() => return Err(error.into()),
            _ if bytes.len() > ANSWER_BYTES_MAX => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is too long"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::identity::Tag;

    /// A sandbox that reads one request and then writes these pieces.
    fn sandbox(folder: &Path, pieces: &'static [&'static str]) -> Control {
        let socket = folder.join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
            for piece in pieces {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        Control::new(ContainerId::new(Tag::of(folder), 1), socket)
    }

    #[tokio::test]
    async fn an_answer_in_pieces_is_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let control = sandbox(folder.path(), &[r#"{"success":tr"#, r#"ue,"err":"","result":768}"#]);
        let status: u32 = control.call("m", &"id", &[], Duration::from_secs(5)).await.unwrap();
        assert_eq!(status, 768);
    }

    #[tokio::test]
    async fn a_refusal_carries_the_words_of_the_sandbox() {
        let folder = tempfile::tempdir().unwrap();
        let control = sandbox(folder.path(), &[r#"{"success":false,"err":"no such file","result":null}"#]);
        let error = control.call::<_, ()>("m", &"id", &[], Duration::from_secs(5)).await.unwrap_err();
        assert!(error.to_string().contains("refused m: no such file"), "{error}");
    }

    #[tokio::test]
    async fn a_sandbox_that_dies_ends_the_call() {
        let folder = tempfile::tempdir().unwrap();
        let control = sandbox(folder.path(), &[r#"{"success""#]);
        let error = control.call::<_, ()>("m", &"id", &[], Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, Error::Broken { .. }), "{error}");
    }
}
