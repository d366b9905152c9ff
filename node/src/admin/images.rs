//! Images, as `shoal image` shows and removes them.

use axum::Json;
use axum::extract::{Path as UrlPath, State as Shared};
use serde::{Deserialize, Serialize};
use shoal_state::model::Image;
use shoal_state::{ImageId, State};
use shoal_storage::manifest;
use shoal_storage::store::Store;

use super::Answer;
use crate::api::{self, Api, blocking};
use crate::upkeep::gc::{Use, users_of};
use crate::upkeep::{Thing, Uses};

/// A line of `shoal image list`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ImageLine {
    /// The image's id.
    pub(crate) image_id: String,
    /// `built`, `failed`, or `incomplete` when its tree cannot be read.
    pub(crate) state: String,
    /// How many bytes its files hold. Images share most of them.
    pub(crate) size_bytes: u64,
    /// How many files, folders and links it has.
    pub(crate) entries: u64,
    /// The functions that may run and need it.
    pub(crate) used_by: Vec<Use>,
    /// When it was last used on this node, in milliseconds since 1970; none when that is not known.
    pub(crate) last_used_ms: Option<u64>,
    /// The digest of its tree.
    pub(crate) manifest: Option<String>,
    /// When the build ended, in milliseconds since 1970.
    pub(crate) built_ms: u64,
}

pub(super) async fn images(Shared(api): Shared<Api>) -> Answer<Vec<ImageLine>> {
    let state = api.read_latest().await?;
    let (store, uses) = (api.store.clone(), api.upkeep.uses.clone());
    let mut lines =
        blocking(move || state.images.iter().map(|(id, image)| line(&state, &store, &uses, *id, image)).collect::<Vec<_>>()).await;
    lines.sort_by_key(|line| std::cmp::Reverse(line.built_ms));
    Ok(Json(lines))
}

fn line(state: &State, store: &Store, uses: &Uses, id: ImageId, image: &Image) -> ImageLine {
    let summary = image.manifest.map(|manifest| manifest::summary(store, &manifest));
    let name = match &summary {
        None => "failed",
        Some(Ok(_)) => "built",
        Some(Err(_)) => "incomplete",
    };
    let summary = summary.and_then(Result::ok).unwrap_or_default();
    ImageLine {
        image_id: id.to_string(),
        state: name.to_owned(),
        size_bytes: summary.content_bytes,
        entries: summary.entries,
        used_by: users_of(state, id),
        last_used_ms: uses.last(Thing::Image(id)).ok().flatten().map(|seconds| seconds * 1000),
        manifest: image.manifest.map(|manifest| manifest.to_string()),
        built_ms: image.built.0,
    }
}

pub(super) async fn remove(Shared(api): Shared<Api>, UrlPath(id): UrlPath<String>) -> Answer<()> {
    api::image::remove(&api, id.parse()?).await?;
    Ok(Json(()))
}
