//! How the tool speaks to a node as a client does: with a token, and not for ever.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tonic::Request;
use tonic::metadata::MetadataMap;

/// How long one request may take before the run counts as broken.
const DEADLINE: Duration = Duration::from_secs(20);

/// The token, if the server wants one.
#[derive(Debug, Args)]
pub(crate) struct Login {
    #[arg(long, default_value = "")]
    token_id: String,
    #[arg(long, default_value = "")]
    token_secret: String,
}

impl Login {
    /// Returns what goes with each request.
    pub(crate) fn metadata(&self) -> anyhow::Result<MetadataMap> {
        let mut metadata = MetadataMap::new();
        for (name, value) in [("x-modal-token-id", &self.token_id), ("x-modal-token-secret", &self.token_secret)] {
            metadata.insert(name, value.parse().context("a token that cannot be sent")?);
        }
        Ok(metadata)
    }
}

/// Makes a request.
pub(crate) fn request<T>(metadata: &MetadataMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    *request.metadata_mut() = metadata.clone();
    request.set_timeout(DEADLINE);
    request
}
