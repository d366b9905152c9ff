//! Proving that everything is whole: every chunk has its bytes, and everything that is named has all of its chunks.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, Digest};
use shoal_storage::keep::{Added, Mark};
use shoal_storage::store::{Checked, Damage};

use super::Failure;
use super::gc::describe;
use super::named::{Named, Needs};
use crate::api::{Api, Error, blocking};

/// What `shoal store check` found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckReport {
    /// Nothing is damaged, and nothing is missing that is named.
    pub(crate) whole: bool,
    /// Chunks that were read and proven.
    pub(crate) chunks: u64,
    /// Their length on disk.
    pub(crate) bytes: u64,
    /// Chunks that were damaged, and were written again from a copy.
    pub(crate) repaired: Vec<DamageLine>,
    /// Chunks that were damaged, and are dropped: whatever needs them has to be made again.
    pub(crate) dropped: Vec<DamageLine>,
    /// Chunks that are damaged, and that a node can write again from a copy. None is, where a node runs.
    #[serde(default)]
    pub(crate) mendable: Vec<DamageLine>,
    /// Chunks that are damaged, and were left as they are. None is, where a node runs.
    #[serde(default)]
    pub(crate) lost: Vec<DamageLine>,
    /// Things that are named: images, results of build steps, files, definitions, blobs.
    pub(crate) named: u64,
    /// Those of them that are not whole.
    pub(crate) incomplete: Vec<Incomplete>,
    /// What could not be looked at, and why, in sentences.
    #[serde(default)]
    pub(crate) unseen: Vec<String>,
    /// How many copies of what is named are missing in the cluster, as far as it can be found out.
    #[serde(default)]
    pub(crate) copies_missing: u64,
    /// No node ran: its folder was looked at as it lies.
    #[serde(default)]
    pub(crate) offline: bool,
}

/// A damaged chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DamageLine {
    /// The chunk.
    pub(crate) digest: String,
    /// The file it was in.
    pub(crate) pack: String,
    /// Where in it.
    pub(crate) offset: u64,
    /// How it shows.
    pub(crate) what: String,
}

/// Something that lacks chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Incomplete {
    /// What it is, with its id.
    pub(crate) what: String,
    /// How many chunks it lacks, of those that could be looked for.
    pub(crate) missing: usize,
    /// One of them.
    pub(crate) first: String,
    /// What to do.
    pub(crate) cure: String,
}

impl From<&Damage> for DamageLine {
    fn from(damage: &Damage) -> Self {
        let Damage { digest, pack, offset, what } = damage;
        Self { digest: digest.to_string(), pack: pack.display().to_string(), offset: *offset, what: (*what).to_owned() }
    }
}

/// Ends a check when whoever asked for it is gone.
#[derive(Debug, Default)]
struct Asked(Arc<AtomicBool>);

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads every chunk, then walks everything that is named.
pub(crate) async fn check(api: &Api) -> Result<CheckReport, Error> {
    let asked = Asked::default();
    let (store, gone) = (api.store.clone(), Arc::clone(&asked.0));
    let ended = move |_, _| if gone.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let checked = blocking(move || store.check(ended)).await.map_err(Error::failed("cannot read the chunk store"))?;
    let state = api.read_latest().await?;
    let blobs = api.blobs.clone();
    let blobs = blocking(move || blobs.all()).await.map_err(Error::failed("cannot read the table of blobs"))?;
    let store = api.store.clone();
    let walked = blocking(move || walk(Mark::new(store), &Named::of(&state), &blobs));
    let (named, mut incomplete) = walked.await.map_err(Error::failed("cannot walk what is named"))?;
    if api.local().members.len() > 1 {
        // What is not on this node may be on another.
        incomplete.clear();
    }
    drop(asked);
    let copies_missing = api.copies.missing().await.copies;
    Ok(CheckReport { copies_missing, ..CheckReport::of(&checked, named, incomplete, Vec::new()) })
}

impl CheckReport {
    /// Puts together what was found.
    pub(super) fn of(checked: &Checked, named: u64, incomplete: Vec<Incomplete>, unseen: Vec<String>) -> Self {
        let lines = |damage: &[Damage]| damage.iter().map(Into::into).collect();
        let damaged = [&checked.repaired, &checked.dropped, &checked.mendable, &checked.lost].into_iter().any(|found| !found.is_empty());
        Self {
            whole: !damaged && incomplete.is_empty() && unseen.is_empty(),
            chunks: checked.chunks,
            bytes: checked.bytes,
            repaired: lines(&checked.repaired),
            dropped: lines(&checked.dropped),
            mendable: lines(&checked.mendable),
            lost: lines(&checked.lost),
            named,
            incomplete,
            unseen,
            copies_missing: 0,
            offline: false,
        }
    }
}

/// Looks whether all that is named is whole; returns how much was looked at, and what is not.
pub(super) fn walk(mut mark: Mark, named: &Named, blobs: &[(BlobId, Digest)]) -> Result<(u64, Vec<Incomplete>), Failure> {
    let mut walk = Walk { mark: &mut mark, named: 0, incomplete: Vec::new() };
    for digest in BTreeSet::from_iter(&named.definitions) {
        walk.look(format!("the definition {digest} of a function"), "deploy its app again", |mark, added| {
            mark.chunk(*digest, added).map_err(Into::into)
        })?;
    }
    for needs in &named.used {
        walk.look(describe(needs.thing), "build it again with force_build=True, and deploy its app again", |mark, added| {
            parts(mark, needs, added)
        })?;
    }
    for needs in &named.cached {
        walk.look(describe(needs.thing), "nothing: `shoal store gc` forgets it, and it is made again when it is needed", |mark, added| {
            parts(mark, needs, added)
        })?;
    }
    for (id, list) in blobs {
        walk.look(format!("blob {id}"), "its call has to be made again", |mark, added| mark.list(*list, added).map_err(Into::into))?;
    }
    Ok((walk.named, walk.incomplete))
}

struct Walk<'a> {
    mark: &'a mut Mark,
    named: u64,
    incomplete: Vec<Incomplete>,
}

impl Walk<'_> {
    fn look(&mut self, what: String, cure: &str, of: impl FnOnce(&mut Mark, &mut Added) -> Result<(), Failure>) -> Result<(), Failure> {
        let mut added = Added::default();
        of(self.mark, &mut added)?;
        self.named += 1;
        let Some(first) = added.missing.first() else { return Ok(()) };
        let (missing, first) = (added.missing.len(), first.to_string());
        self.incomplete.push(Incomplete { what, missing, first, cure: cure.to_owned() });
        // What others lack too is told of them too.
        self.mark.undo(&added);
        Ok(())
    }
}

fn parts(mark: &mut Mark, needs: &Needs, added: &mut Added) -> Result<(), Failure> {
    if let Some(record) = needs.record {
        mark.chunk(record, added)?;
    }
    if let Some(tree) = needs.tree {
        mark.tree(tree, added)?;
    }
    Ok(())
}
