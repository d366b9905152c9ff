//! Asks the node on this machine, over its admin socket.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Common;
use crate::admin::Refusal;
use crate::config::admin_socket;

/// How long a node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Asks and waits for the answer.
pub(super) fn ask<T: DeserializeOwned>(common: &Common, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    let asked = async {
        tokio::time::timeout(ANSWER_WITHIN, exchange(common, method, path, body))
            .await
            .with_context(|| format!("the node did not answer {method} {path} within {} s", ANSWER_WITHIN.as_secs()))?
    };
    runtime.block_on(asked)
}

async fn exchange<T: DeserializeOwned>(common: &Common, method: &str, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
    let socket = admin_socket(&common.data);
    let stream = UnixStream::connect(&socket).await.with_context(|| {
        format!("cannot reach a node at {}: is it running (`shoal start`), are you root, is --data right?", socket.display())
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
    let status = response.status();
    let bytes = response.into_body().collect().await.context("the node's answer broke off")?.to_bytes();
    if !status.is_success() {
        let refusal: Refusal =
            serde_json::from_slice(&bytes).unwrap_or_else(|_| Refusal { error: String::from_utf8_lossy(&bytes).into_owned() });
        bail!("{}", refusal.error);
    }
    serde_json::from_slice(&bytes).with_context(|| format!("cannot read the node's answer to {method} {path}"))
}
