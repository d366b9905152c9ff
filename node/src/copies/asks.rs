//! What nodes ask each other about what they keep. New questions come at the end: their numbers are for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shoal_peer::{Service, Stream};
use shoal_state::{BlobId, Digest, NodeId};

use super::Copies;
use super::blobs::lacking;
use super::warm::whole;
use crate::api::{Api, blocking};
use crate::upkeep::Thing;

/// What is asked about what a node keeps.
const KEEPS: Service = Service::new(18, "say what it keeps");

/// A question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// What did the last round of repair find? (`Report`)
    Report,
    /// Does a round of repair now. (`Report`)
    Repair,
    /// A blob was given to this node: it is to be found here, and stays. (`()`)
    KeepBlob {
        /// The blob.
        id: BlobId,
        /// Its list of chunks.
        list: Digest,
    },
    /// When were things last used there, in seconds of the Unix clock? (`Vec<Option<u64>>`)
    Uses(Vec<Thing>),
    /// Which trees are containers shown there? (`Vec<Digest>`)
    Shown,
    /// Of which trees is everything there? (`Vec<bool>`)
    Whole(Vec<Digest>),
    /// Brings all of a tree there. (`Warmed`)
    Warm(Digest),
    /// What do containers of an image read first? (`Option<Vec<Digest>>`)
    Touched(Digest),
    /// Which of these blobs are not whole there? (`Vec<bool>`)
    LacksBlobs(Vec<BlobId>),
    /// A blob was given to this node as [`Ask::KeepBlob`] says, and is not new. (`()`)
    KeepOldBlob {
        /// The blob.
        id: BlobId,
        /// Its list of chunks.
        list: Digest,
        /// When it was last used, in seconds of the Unix clock.
        used: u64,
    },
    /// How far has the round of repair come that goes on? (`Option<Progress>`)
    Progress,
}

/// Answers peers from now on.
pub(crate) fn serve(api: &Api) {
    let of = api.clone();
    api.peers.endpoint.serve(KEEPS, move |stream, _| serve_one(stream, of.clone()));
}

async fn serve_one(mut stream: Stream, api: Api) {
    let Ok(Some(asked)) = stream.next().await else { return };
    let answer = match postcard::from_bytes::<Ask>(&asked) {
        Ok(ask) => answer(&api, ask).await,
        Err(error) => Err(format!("what was asked cannot be read ({error}): are the nodes of one release?")),
    };
    let done = match answer {
        Ok(answer) => async { stream.send(answer).await.and_then(|()| stream.finish()) }.await,
        Err(why) => stream.fail(&why).await,
    };
    if let Err(error) = done {
        tracing::debug!(peer = %stream.peer(), %error, "a peer did not wait for what it asked about what this node keeps");
    }
}

async fn answer(api: &Api, ask: Ask) -> Result<Bytes, String> {
    let words = |error: &dyn std::fmt::Display| error.to_string();
    match ask {
        Ask::Report => encode(&api.copies.report()),
        Ask::Repair => encode(&api.copies.repair(&api.local()).await),
        Ask::Progress => encode(&api.copies.progress()),
        Ask::KeepBlob { id, list } => {
            let blobs = api.blobs.clone();
            encode(&blocking(move || blobs.keep(id, list)).await.map_err(|error| words(&error))?)
        }
        Ask::KeepOldBlob { id, list, used } => {
            let blobs = api.blobs.clone();
            encode(&blocking(move || blobs.keep_used(id, list, used)).await.map_err(|error| words(&error))?)
        }
        Ask::Uses(things) => {
            let uses = api.upkeep.uses.clone();
            encode(&blocking(move || uses.last_of_all(things)).await.map_err(|error| words(&error))?)
        }
        Ask::Shown => encode(&api.roots.parts_in_use()),
        Ask::Whole(trees) => {
            let store = api.store.clone();
            encode(&blocking(move || whole(&store, &trees)).await.map_err(|error| words(&error))?)
        }
        Ask::Warm(tree) => encode(&api.copies.bring_trees(&[tree], |_| true).await.map_err(|error| words(&error))?),
        Ask::Touched(image) => encode(&api.touched.find(image).await),
        Ask::LacksBlobs(ids) => {
            let blobs = api.blobs.clone();
            encode(&blocking(move || lacking(&blobs, &ids)).await.map_err(|error| words(&error))?)
        }
    }
}

fn encode(answer: &impl Serialize) -> Result<Bytes, String> {
    postcard::to_stdvec(answer).map(Into::into).map_err(|error| error.to_string())
}

impl Copies {
    /// Asks a member.
    ///
    /// # Errors
    /// When it does not answer within `patience`, or has failed, in words.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, node: NodeId, ask: &Ask, patience: Duration) -> Result<T, String> {
        let address = self.others().address(node)?;
        let asked = postcard::to_stdvec(ask).map_err(|error| error.to_string())?.into();
        let answer = self.others().endpoint().call(node, &address, KEEPS, asked, patience);
        let answer = self.others().wait(node, "say what it keeps", patience, answer).await?;
        postcard::from_bytes(&answer).map_err(|error| format!("the answer of node {node} cannot be read: {error}"))
    }

    /// Asks all other members at once; returns what those answered that are up, and who did not.
    pub(crate) async fn ask_all<T: DeserializeOwned>(&self, ask: &Ask, patience: Duration) -> (BTreeMap<NodeId, T>, BTreeSet<NodeId>) {
        let (all, up) = (self.others().all(), self.others().up().await);
        let asked = up.keys().map(|node| async move { (*node, self.ask(*node, ask, patience).await) });
        let mut answers = BTreeMap::new();
        for (node, answer) in futures::future::join_all(asked).await {
            match answer {
                Ok(answer) => drop(answers.insert(node, answer)),
                Err(error) => tracing::debug!(%node, error, "a node does not say what it keeps"),
            }
        }
        let silent = all.into_keys().filter(|node| !answers.contains_key(node)).collect();
        (answers, silent)
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::written::hold;

    use super::*;

    #[test]
    fn what_nodes_of_version_6_ask_is_understood() {
        hold::<Ask>("what is asked", include_str!("../../tests/written/6/copies-asked.txt"), 0);
    }
}
