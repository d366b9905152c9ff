//! Images, as `shoal image` shows and removes them.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path as UrlPath, State as Shared};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use shoal_state::model::Image;
use shoal_state::{Digest, ImageId, State};
use shoal_storage::manifest;
use shoal_storage::store::Store;

use super::lists::find;
use super::store::long;
use super::undecided::latest_or_known;
use super::{Answer, Failure};
use crate::api::{self, Api, blocking};
use crate::copies::asks::Ask;
use crate::copies::warm::{self, Warmed};
use crate::upkeep::gc::{Use, users_of};
use crate::upkeep::{Thing, last_anywhere};

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
    /// When it was last used on any node that answers, in milliseconds since 1970; none when that is not known.
    pub(crate) last_used_ms: Option<u64>,
    /// The digest of its tree.
    pub(crate) manifest: Option<String>,
    /// When the build ended, in milliseconds since 1970.
    pub(crate) built_ms: u64,
    /// The names of the nodes that have all of it, of those that answer.
    #[serde(default)]
    pub(crate) whole_on: Vec<String>,
}

/// How long other nodes may take to say which images they have.
const WHOLE_WAIT: Duration = Duration::from_secs(10);
/// How long bringing an image to a node may take.
const WARM_WAIT: Duration = Duration::from_secs(3600);

/// What `shoal image warm` asks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct WarmWanted {
    /// The id or name of the node that is to have the image; none = the one that is asked.
    pub(crate) node: Option<String>,
}

/// What `shoal image warm` did.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct WarmLine {
    /// The image's id.
    pub(crate) image_id: String,
    /// The node's id.
    pub(crate) node_id: String,
    /// The node's name.
    pub(crate) node: String,
    /// All of the image is there now.
    pub(crate) whole: bool,
    /// How many chunks came.
    pub(crate) chunks: u64,
    /// Their length, in bytes.
    pub(crate) bytes: u64,
    /// How many are still lacking.
    pub(crate) lacking: u64,
    /// Why, in sentences.
    pub(crate) why: Vec<String>,
}

pub(super) async fn images(Shared(api): Shared<Api>) -> Answer<Vec<ImageLine>> {
    let state = latest_or_known(&api).await;
    let whole = whole(&api, &state).await;
    let used = last_anywhere(&api, state.images.keys().copied().map(Thing::Image).collect()).await;
    let store = api.store.clone();
    let mut lines = blocking(move || {
        let line = |((id, image), used): ((&ImageId, &Image), Option<u64>)| line(&state, &store, used, &whole, *id, image);
        state.images.iter().zip(used).map(line).collect::<Vec<_>>()
    })
    .await;
    lines.sort_by_key(|line| std::cmp::Reverse(line.built_ms));
    Ok(Json(lines))
}

/// Returns the names of the nodes that have all of a tree, of those that answer.
async fn whole(api: &Api, state: &State) -> HashMap<Digest, Vec<String>> {
    let trees: Vec<Digest> = state.images.values().filter_map(|image| image.manifest).collect();
    let (store, of) = (api.store.clone(), trees.clone());
    let here = blocking(move || warm::whole(&store, &of));
    let ask = Ask::Whole(trees.clone());
    let (here, (mut answers, _)) = tokio::join!(here, api.copies.ask_all::<Vec<bool>>(&ask, WHOLE_WAIT));
    match here {
        Ok(here) => drop(answers.insert(api.cluster.node, here)),
        Err(error) => tracing::warn!(%error, "cannot find out which images are whole"),
    }
    let mut whole: HashMap<Digest, Vec<String>> = HashMap::new();
    for (node, answer) in answers {
        let name = state.nodes.get(&node).map_or_else(|| node.to_string(), |node| node.name.clone());
        for (tree, _) in trees.iter().zip(answer).filter(|(_, is_whole)| *is_whole) {
            whole.entry(*tree).or_default().push(name.clone());
        }
    }
    whole
}

pub(super) async fn warm(
    Shared(api): Shared<Api>,
    UrlPath(id): UrlPath<String>,
    Json(wanted): Json<WarmWanted>,
) -> Result<Response, Failure> {
    let (id, state) = (id.parse::<ImageId>()?, api.read_latest().await?);
    let absent = || api::Error::NotFound(format!("Image '{id}' not found; `shoal image list` shows those that there are"));
    let image = state.images.get(&id).ok_or_else(absent)?;
    let failed = || api::Error::Precondition(format!("image {id} has no files: its build failed"));
    let tree = image.manifest.ok_or_else(failed)?;
    let node = wanted.node.map_or(Ok(api.cluster.node), |which| find(&state, &which))?;
    let name = state.nodes.get(&node).map(|node| node.name.clone()).unwrap_or_default();
    Ok(long(async move {
        let warmed = if node == api.cluster.node {
            api.copies.bring_trees(&[tree], |_| true).await.map_err(api::Error::failed(format!("cannot bring image {id} here")))?
        } else {
            let cannot = |why| api::Error::Unavailable(format!("cannot bring image {id} to node {name}: {why}"));
            api.copies.ask::<Warmed>(node, &Ask::Warm(tree), WARM_WAIT).await.map_err(cannot)?
        };
        let Warmed { chunks, bytes, lacking, why } = warmed;
        Ok(WarmLine { image_id: id.to_string(), node_id: node.to_string(), node: name, whole: lacking == 0, chunks, bytes, lacking, why })
    }))
}

fn line(state: &State, store: &Store, used: Option<u64>, whole: &HashMap<Digest, Vec<String>>, id: ImageId, image: &Image) -> ImageLine {
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
        last_used_ms: used.map(|seconds| seconds * 1000),
        manifest: image.manifest.map(|manifest| manifest.to_string()),
        built_ms: image.built.0,
        whole_on: image.manifest.and_then(|manifest| whole.get(&manifest).cloned()).unwrap_or_default(),
    }
}

pub(super) async fn remove(Shared(api): Shared<Api>, UrlPath(id): UrlPath<String>) -> Answer<()> {
    let id: ImageId = id.parse()?;
    let absent = || api::Error::NotFound(format!("cannot remove image {id}: there is none with this id; `shoal image list` shows them"));
    api.read_latest_unless(|state| state.images.contains_key(&id)).await?.images.get(&id).ok_or_else(absent)?;
    api::image::remove(&api, id).await?;
    Ok(Json(()))
}
