//! Whole images: which are here, and bringing one here.

use serde::{Deserialize, Serialize};
use shoal_state::Digest;
use shoal_storage::keep::Survey;
use shoal_storage::manifest::Part;
use shoal_storage::store::Store;

use super::Copies;
use crate::api::blocking;
use crate::upkeep::Failure;

/// How deep the structure of trees can be.
const DEPTH_MAX: usize = 64;

/// What came of bringing a tree to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Warmed {
    /// How many chunks came.
    pub(crate) chunks: u64,
    /// Their length, in bytes.
    pub(crate) bytes: u64,
    /// How many it still lacks, as far as its structure could be had.
    pub(crate) lacking: u64,
    /// Why.
    pub(crate) why: Vec<String>,
}

/// Says of each tree whether all of it is in a store.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn whole(store: &Store, roots: &[Digest]) -> Result<Vec<bool>, Failure> {
    let mut survey = Survey::new(store.clone());
    let mut answers = Vec::new();
    for root in roots {
        let lacking = lacking(store, &mut survey, &[*root], |_| true)?;
        let is_whole = lacking.is_empty() && survey.unread.is_empty();
        if !is_whole {
            // What this one lacks others may lack too.
            survey = Survey::new(store.clone());
        }
        answers.push(is_whole);
    }
    Ok(answers)
}

/// Lists what a store lacks of trees and `survey` has not seen: of the chunks of files those that are `wanted`, and structure first.
pub(crate) fn lacking(
    store: &Store,
    survey: &mut Survey,
    roots: &[Digest],
    wanted: impl Fn(&Digest) -> bool,
) -> Result<Vec<Digest>, Failure> {
    let (mut structure, mut chunks, mut failed) = (Vec::new(), Vec::new(), None);
    let mut see = |digest: Digest, part: Part| match store.has(&digest) {
        Ok(true) => {}
        Ok(false) if part != Part::Chunk => structure.push(digest),
        Ok(false) if wanted(&digest) => chunks.push(digest),
        Ok(false) => {}
        Err(error) => failed = Some(error),
    };
    roots.iter().try_for_each(|root| survey.tree(*root, &mut see))?;
    structure.append(&mut chunks);
    failed.map_or(Ok(structure), |error| Err(error.into()))
}

impl Copies {
    /// Brings trees here: their structure, and those chunks of their files that are wanted.
    ///
    /// # Errors
    /// When the store cannot be read. What cannot be had is no error: see [`Warmed::lacking`].
    pub(crate) async fn bring_trees(
        &self,
        roots: &[Digest],
        wanted: impl Fn(&Digest) -> bool + Clone + Send + 'static,
    ) -> Result<Warmed, Failure> {
        let mut warmed = Warmed::default();
        for _ in 0..DEPTH_MAX {
            let (store, roots, wanted) = (self.chunks().store().clone(), roots.to_vec(), wanted.clone());
            let lacks = blocking(move || lacking(&store, &mut Survey::new(store.clone()), &roots, wanted)).await?;
            warmed.lacking = lacks.len() as u64;
            if lacks.is_empty() {
                break;
            }
            let came = self.chunks().bring(lacks).await;
            (warmed.chunks, warmed.bytes) = (warmed.chunks + came.chunks, warmed.bytes + came.bytes);
            warmed.why = came.failures;
            if came.chunks == 0 {
                break;
            }
        }
        Ok(warmed)
    }
}
