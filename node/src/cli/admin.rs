//! Asks the node on this machine, over its admin socket.

use std::ops::ControlFlow;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Common;
use shoal_runtime::ShortPath;

use crate::admin::{Refusal, UNDECIDED};
use crate::config::admin_socket;
use crate::folder;

/// How long a node may take to answer, and be silent in the middle of an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The longest line of an answer in lines, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Asks and waits for the answer.
pub(super) fn ask<T: DeserializeOwned>(common: &Common, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    let asked = async {
        let answer = async { send(common, method, path, body).await?.into_body().collect().await.context("the node's answer broke off") };
        Ok(in_time(&format!("answer {method} {path}"), answer).await?.to_bytes())
    };
    let bytes = run(asked)?;
    serde_json::from_slice(&bytes).with_context(|| format!("cannot read the node's answer to {method} {path}"))
}

/// Asks for an answer in lines and hands each to `each`, without its newline and as it comes, until that breaks. Empty
/// lines only say that the node is alive.
pub(super) fn stream(
    common: &Common,
    path: &str,
    body: &impl Serialize,
    mut each: impl FnMut(&[u8]) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    run(async {
        let mut body = in_time(&format!("answer POST {path}"), send(common, "POST", path, body)).await?.into_body();
        let mut lines = Lines::default();
        loop {
            let frame = in_time("go on with its answer", async { Ok(body.frame().await) }).await?;
            let Some(frame) = frame else { return Ok(()) };
            let frame = frame.context("the node's answer broke off: it stopped or was started anew")?;
            if lines.push(frame.data_ref().map_or(&[][..], |data| data), &mut each)?.is_break() {
                return Ok(());
            }
        }
    })
}

/// Cuts an answer into lines.
#[derive(Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], each: &mut impl FnMut(&[u8]) -> anyhow::Result<ControlFlow<()>>) -> anyhow::Result<ControlFlow<()>> {
        self.pending.extend_from_slice(bytes);
        let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        for line in self.pending[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if each(line)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.pending.drain(..whole);
        if self.pending.len() > LINE_BYTES_MAX {
            bail!("the node's answer has a line of more than {LINE_BYTES_MAX} bytes");
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Says whether a node is known not to run on a folder: nobody listens at its socket.
pub(super) fn is_away(common: &Common) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let connected = ShortPath::to(&admin_socket(&common.data)).and_then(|short| std::os::unix::net::UnixStream::connect(short.path()));
    connected.is_err_and(|error| matches!(error.kind(), ConnectionRefused | NotFound))
}

fn run<T>(asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(asked)
}

async fn in_time<T>(what: &str, asked: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let late = || format!("the node did not {what} within {} s", ANSWER_WITHIN.as_secs());
    tokio::time::timeout(ANSWER_WITHIN, asked).await.with_context(late)?
}

/// Sends a request; returns the answer, which is not a refusal.
async fn send(common: &Common, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<Response<Incoming>> {
    let socket = admin_socket(&common.data);
    let connected = async { UnixStream::connect(ShortPath::to(&socket)?.path()).await };
    let stream = connected.await.with_context(|| match folder::holder(&common.data) {
        Some(pid) => format!(
            "the node of {} (process {pid}) does not answer yet: it starts or stops, and what it says on stderr tells whether it waits for something, as for the other seeds",
            common.data.display()
        ),
        None => format!("cannot reach a node at {}: is it running (`shoal start`), are you root, is --data right?", socket.display()),
    })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak to the node")?;
    tokio::spawn(connection);
    let bytes = serde_json::to_vec(body).context("cannot encode the request")?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "shoal")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(bytes)))
        .context("cannot make the request")?;
    let response = sender.send_request(request).await.with_context(|| format!("the node did not answer {method} {path}"))?;
    let undecided = response.headers().get(UNDECIDED).map(|why| String::from_utf8_lossy(why.as_bytes()).into_owned());
    if response.status().is_success() {
        // These tell of it themselves.
        if let Some(why) = undecided.filter(|_| !["/status", "/nodes"].contains(&path)) {
            eprintln!("note: this is what the node knows: {why}");
        }
        return Ok(response);
    }
    let bytes = response.into_body().collect().await.context("the node's answer broke off")?.to_bytes();
    let refusal: Refusal =
        serde_json::from_slice(&bytes).unwrap_or_else(|_| Refusal { error: String::from_utf8_lossy(&bytes).into_owned() });
    match undecided {
        Some(why) => bail!("{}\nnote: {why}", refusal.error),
        None => bail!("{}", refusal.error),
    }
}

/// Writes a text so that it can be a part of a path or the value of a query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.as_bytes().iter().map(|byte| if plain(byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_however_they_come_and_empty_ones_are_dropped() {
        let mut seen = Vec::new();
        let mut each = |line: &[u8]| {
            seen.push(String::from_utf8_lossy(line).into_owned());
            Ok(ControlFlow::Continue(()))
        };
        let mut lines = Lines::default();
        for piece in ["on", "e\n\n\ntw", "o", "\nthree"] {
            assert!(lines.push(piece.as_bytes(), &mut each).unwrap().is_continue());
        }
        assert_eq!(seen, ["one", "two"]);
        assert_eq!(lines.pending, b"three");
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut lines = Lines::default();
        assert!(lines.push(&vec![b'x'; LINE_BYTES_MAX + 1], &mut |_| Ok(ControlFlow::Continue(()))).is_err());
    }

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(escaped("my-app_1.x"), "my-app_1.x");
        assert_eq!(escaped("a/b?c d%é"), "a%2Fb%3Fc%20d%25%C3%A9");
    }
}
