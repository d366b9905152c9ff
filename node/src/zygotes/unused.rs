//! Zygotes of images that are gone are dropped.

use std::collections::HashSet;
use std::time::Duration;

use shoal_state::Digest;
use tokio_util::sync::CancellationToken;

use super::Zygotes;
use crate::api::Api;

/// How often zygotes are held against the images that are there.
const EVERY: Duration = Duration::from_secs(60);

/// Drops them until `stop`.
pub(crate) async fn run(api: Api, zygotes: Zygotes, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = stop.cancelled() => return,
        }
        let images: HashSet<Digest> = api.local().images.values().filter_map(|image| image.manifest).collect();
        zygotes.keep_those_of(|image| images.contains(image));
    }
}
