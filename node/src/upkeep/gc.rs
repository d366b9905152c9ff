//! Collecting: forgetting what was not used for the longest time until the rest fits, and deleting what nothing names.
//!
//! 1. From a linearizable read of the state, everything that is needed is marked first: definitions, images and files of
//!    functions that may run, blobs of calls that are kept, roots that containers are shown. Then what is only kept because
//!    it may be used again, the latest used first, as long as it fits into the budget. What does not fit is forgotten, by
//!    commands that the state may refuse; what was used within the time that the store keeps what it promised never is,
//!    since deleting it would give no space back.
//! 2. From a second read, after these commands, everything that is still named is marked, and the store deletes what is
//!    neither marked nor promised to anyone.
//!
//! Whoever names a tree has it promised before (`Promises`), so what is named between the second read and the deletion stays.
//!
//! Where there are other members, a node must keep what it is home of, the structure of all trees, and what its containers are
//! shown. The rest of what is named and here is a cache: it goes, the least lately used first, once its homes have said that they
//! keep it. What nobody uses is forgotten for all: by when it was last used anywhere (`others`).

pub(crate) mod blobs;
mod others;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shoal_state::{BlobId, Command, Digest, ImageId, State};
use shoal_storage::keep::{Added, Mark};
use shoal_storage::store::{Condemned, Store, Swept};

use super::Failure;
use super::named::{Named, Needs};
use super::uses::{Thing, Uses};
use crate::api::{Api, Error, blocking};
use crate::copies::Copies;
use others::Others;

/// How long the record of a failed build is kept that nobody asked for again, in seconds.
const FAILED_KEPT: u64 = 7 * 24 * 3600;

/// How many results of build steps one command forgets: an entry of the log stays small.
const LAYERS_AT_ONCE: usize = 500;

/// How many commands are put into the log at once.
const COMMANDS_AT_ONCE: usize = 100;

/// What a collection did, or would do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collected {
    /// Nothing was changed: this is what would be.
    pub(crate) dry_run: bool,
    /// Images that were forgotten.
    pub(crate) images: Vec<String>,
    /// How many results of build steps were forgotten.
    pub(crate) layers: usize,
    /// How many sets of files were forgotten.
    pub(crate) mounts: usize,
    /// How many blobs were forgotten.
    pub(crate) blobs: usize,
    /// How many chunks were deleted.
    pub(crate) chunks: u64,
    /// Their length on disk.
    pub(crate) bytes: u64,
    /// How many packs were rewritten because most of them was deleted.
    pub(crate) packs: u64,
    /// The length on disk of what is named.
    pub(crate) named_bytes: u64,
    /// How much the store may take of the disk.
    pub(crate) budget_bytes: u64,
    /// How much it takes now.
    pub(crate) disk_bytes: u64,
    /// What is needed and lacks chunks, in sentences. `shoal store check` says more.
    pub(crate) incomplete: Vec<String>,
}

/// What must stay whatever its age: beside what the state says.
#[derive(Debug, Clone, Default)]
struct Pins {
    /// Trees that containers are shown now.
    trees: Vec<Digest>,
    /// Lists of chunks of blobs.
    lists: Vec<Digest>,
}

/// Collects. One at a time; another waits for it.
pub(crate) async fn collect(api: &Api, budget_bytes: u64, dry_run: bool) -> Result<Collected, Error> {
    let _alone = api.upkeep.collecting.lock().await;
    let mut done = Collected { dry_run, budget_bytes, ..Collected::default() };
    let blobs = blobs::unneeded(api).await?;
    done.blobs = blobs.len();
    if !dry_run {
        blobs::forget(api, &blobs).await?;
    }
    let pins = pins(api, &blobs).await?;
    let state = api.read_latest().await?;
    let others = Others::ask(&api.copies, &Named::of(&state)).await?;
    let (store, uses, pinned, of_others) = (api.store.clone(), api.upkeep.uses.clone(), pins.clone(), others.clone());
    let index_bytes = done.budget_bytes / 20;
    let chunks_bytes = budget_bytes.saturating_sub(index_bytes);
    let (chosen, mark) = blocking(move || choose(&store, &uses, &state, &pinned, &of_others, chunks_bytes))
        .await
        .map_err(Error::failed("cannot find out what the chunk store must keep"))?;
    done.told(&chosen);
    if dry_run {
        let store = api.store.clone();
        let condemned = blocking(move || {
            let condemned = store.condemn(|digest| mark.contains(digest))?;
            Ok::<_, shoal_storage::store::Error>((condemned.len() as u64, condemned.bytes(), mark.bytes(), store.disk_bytes()?))
        });
        let found = condemned.await.map_err(Error::failed("cannot look for chunks that nothing names"))?;
        (done.chunks, done.bytes, done.named_bytes, done.disk_bytes) = found;
        return Ok(done);
    }
    drop(mark);
    forget(api, &chosen.forgotten).await?;
    let as_of = api.store.now();
    let state = api.read_latest().await?;
    let (uses, secrets) = (api.upkeep.uses.clone(), state.secrets.clone());
    blocking(move || uses.forget_secrets(|id| secrets.contains_key(&id)))
        .await
        .map_err(Error::failed("cannot forget when secrets were used that are gone"))?;
    let roots = api.roots.clone();
    // A root that only waits to be shown again keeps nothing; one that was shown since the pins were read does.
    let shown = move |mark: &Mark| roots.forget_idle(|part| mark.contains(part));
    let read = Read { state, as_of, pins, others };
    let swept = delete(&api.copies, &api.upkeep.uses, read, chunks_bytes, shown)
        .await
        .map_err(Error::failed("cannot delete chunks that nothing names"))?;
    (done.chunks, done.bytes, done.packs) = (swept.swept.chunks, swept.swept.bytes, swept.packs);
    (done.named_bytes, done.disk_bytes) = (swept.named_bytes, swept.disk_bytes);
    if swept.swept.chunks > 0 {
        let files = api.files.clone();
        blocking(move || files.forget_incomplete()).await.map_err(Error::failed("cannot forget uploaded files whose chunks are gone"))?;
    }
    tracing::info!(
        images = done.images.len(),
        layers = done.layers,
        mounts = done.mounts,
        blobs = done.blobs,
        chunks = done.chunks,
        bytes = done.bytes,
        disk_bytes = done.disk_bytes,
        budget_bytes,
        "collected what nothing needs"
    );
    Ok(done)
}

impl Collected {
    fn told(&mut self, chosen: &Chosen) {
        for needs in &chosen.forgotten {
            match needs.thing {
                Thing::Image(id) => self.images.push(id.to_string()),
                Thing::Layer(_) => self.layers += 1,
                Thing::Mount(_) => self.mounts += 1,
                Thing::Blob(_) | Thing::Secret(_) => {}
            }
        }
        self.incomplete.clone_from(&chosen.incomplete);
    }
}

async fn pins(api: &Api, forgotten: &[BlobId]) -> Result<Pins, Error> {
    let (blobs, forgotten) = (api.blobs.clone(), BTreeSet::from_iter(forgotten));
    let all = blocking(move || blobs.all()).await.map_err(Error::failed("cannot read the table of blobs"))?;
    let lists = all.into_iter().filter(|(id, _)| !forgotten.contains(id)).map(|(_, list)| list).collect();
    Ok(Pins { trees: api.roots.parts_in_use(), lists })
}

/// What is to be forgotten, and what is broken.
#[derive(Debug, Default)]
struct Chosen {
    forgotten: Vec<Needs>,
    incomplete: Vec<String>,
}

/// Marks what stays within a budget (bytes on disk); returns what does not.
fn choose(store: &Store, uses: &Uses, state: &State, pins: &Pins, others: &Others, budget_bytes: u64) -> Result<(Chosen, Mark), Failure> {
    let (named, mut mark, mut chosen) = (Named::of(state), Mark::new(store.clone()), Chosen::default());
    let now = store.now();
    mark_pins(&mut mark, &named, pins, others)?;
    let mut order = Vec::new();
    for needs in named.used {
        order.push((uses.last_or_now(needs.thing, now)?, needs.clone()));
        uses.touch(needs.thing, now);
        let added = needed(&mut mark, &needs, others)?;
        mark.take(&added);
        // What this node lacks another may have.
        if let Some(first) = added.missing.first().filter(|_| others.alone) {
            let lacks = format!("{} lacks {} chunks, {first} among them", describe(needs.thing), added.missing.len());
            chosen.incomplete.push(lacks);
        }
    }
    let mut cached = Vec::new();
    for needs in named.cached {
        let here = uses.last_or_now(needs.thing, now)?;
        cached.push((others.last(needs.thing).max(here), here, needs));
    }
    cached.sort_by_key(|(last, _, needs)| (std::cmp::Reverse(*last), needs.thing));
    let mut full = false;
    for (last, here, needs) in cached {
        let added = needed(&mut mark, &needs, others)?;
        let young = last + store.keep().as_secs() > now;
        full |= !young && mark.bytes() + added.bytes > budget_bytes;
        let failed_long_ago = needs.tree.is_none() && last + FAILED_KEPT <= now;
        let is_broken = others.alone && !added.missing.is_empty();
        // What shares all of its chunks with what stays costs nothing.
        if is_broken || failed_long_ago || (!young && full && added.bytes > 0) {
            mark.undo(&added);
            chosen.forgotten.push(needs);
        } else {
            mark.take(&added);
            order.push((here, needs));
        }
    }
    let mark = if others.alone { mark } else { mark_cached(mark, order, budget_bytes)? };
    Ok((chosen, mark))
}

/// Marks what others are to keep and is here too, the latest used first, as long as it fits.
fn mark_cached(mark: Mark, mut order: Vec<(u64, Needs)>, budget_bytes: u64) -> Result<Mark, Failure> {
    let mut mark = mark.again();
    order.sort_by_key(|(last, needs)| (std::cmp::Reverse(*last), needs.thing));
    for (_, needs) in order {
        let added = needed(&mut mark, &needs, &Others::none())?;
        if mark.bytes() + added.bytes > budget_bytes {
            mark.undo(&added);
            break;
        }
        mark.take(&added);
    }
    Ok(mark)
}

fn mark_pins(mark: &mut Mark, named: &Named, pins: &Pins, others: &Others) -> Result<(), Failure> {
    let mut added = Added::default();
    for definition in &named.definitions {
        mark.chunk(*definition, &mut added)?;
    }
    for tree in &pins.trees {
        mark.tree(*tree, &mut added)?;
    }
    for list in &pins.lists {
        mark.list(*list, &mut added)?;
    }
    for tree in &others.shown {
        mark.tree_of(*tree, |chunk| others.is_mine(chunk), &mut added)?;
    }
    mark.take(&added);
    Ok(())
}

/// Marks what is to be kept here of what a thing needs.
fn needed(mark: &mut Mark, needs: &Needs, others: &Others) -> Result<Added, Failure> {
    let mut added = Added::default();
    if let Some(record) = needs.record {
        mark.chunk(record, &mut added)?;
    }
    if let Some(tree) = needs.tree {
        mark.tree_of(tree, |chunk| others.is_mine(chunk), &mut added)?;
    }
    Ok(added)
}

/// Writes what a thing is, for people.
pub(super) fn describe(thing: Thing) -> String {
    match thing {
        Thing::Image(id) => format!("image {id}"),
        Thing::Layer(key) => format!("the result of build step {key}"),
        Thing::Mount(id) => format!("files {id}"),
        Thing::Blob(id) => format!("blob {id}"),
        Thing::Secret(id) => format!("secret {id}"),
    }
}

/// Takes things out of the state. What the state refuses is needed again, and stays.
async fn forget(api: &Api, forgotten: &[Needs]) -> Result<(), Error> {
    let (mut commands, mut layers) = (Vec::new(), Vec::new());
    for needs in forgotten {
        match needs.thing {
            Thing::Image(id) => commands.push(Command::RemoveImage { id }),
            Thing::Mount(id) => commands.push(Command::RemoveMount { id }),
            Thing::Layer(key) => layers.push(key),
            Thing::Blob(_) | Thing::Secret(_) => {}
        }
    }
    commands.extend(layers.chunks(LAYERS_AT_ONCE).map(|keys| Command::RemoveLayers { keys: keys.to_vec() }));
    for some in commands.chunks(COMMANDS_AT_ONCE) {
        for refused in api.cluster.propose_all(some.to_vec()).await?.into_iter().filter_map(Result::err) {
            tracing::debug!(%refused, "what was to be forgotten is needed");
        }
    }
    let (uses, things): (_, Vec<Thing>) = (api.upkeep.uses.clone(), forgotten.iter().map(|needs| needs.thing).collect());
    blocking(move || things.into_iter().try_for_each(|thing| uses.forget(thing)))
        .await
        .map_err(Error::failed("cannot forget when things were used"))
}

struct Deleted {
    swept: Swept,
    packs: u64,
    named_bytes: u64,
    disk_bytes: u64,
}

/// What is deleted by.
struct Read {
    state: Arc<State>,
    /// When, at the latest, the state was read, in seconds of the store's clock.
    as_of: u64,
    pins: Pins,
    others: Others,
}

/// Lists what is neither marked, nor `shown`; returns also the length on disk of what is marked.
fn condemn(
    store: &Store,
    uses: &Uses,
    read: &Read,
    budget_bytes: u64,
    shown: impl FnOnce(&Mark) -> Vec<Digest>,
) -> Result<(Condemned, u64), Failure> {
    let Read { state, as_of, pins, others } = read;
    let (named, mut mark, mut order) = (Named::of(state), Mark::new(store.clone()), Vec::new());
    mark_pins(&mut mark, &named, pins, others)?;
    for needs in named.all() {
        let added = needed(&mut mark, needs, others)?;
        mark.take(&added);
        order.push((uses.last(needs.thing)?.unwrap_or(0), needs.clone()));
    }
    let mut mark = if others.alone { mark } else { mark_cached(mark, order, budget_bytes)? };
    let mut added = Added::default();
    shown(&mark).into_iter().try_for_each(|part| mark.tree(part, &mut added))?;
    mark.take(&added);
    Ok((store.condemn_as_of(*as_of, |digest| mark.contains(digest))?, mark.bytes()))
}

/// Deletes what is neither named, nor pinned, nor `shown`: that is asked last, with what is marked by then. What is named and others
/// are to keep goes too where it does not fit, once they have said that they keep it.
async fn delete(
    copies: &Copies,
    uses: &Uses,
    read: Read,
    budget_bytes: u64,
    shown: impl FnOnce(&Mark) -> Vec<Digest> + Send + 'static,
) -> Result<Deleted, Failure> {
    let structure = read.others.structure(copies, &Named::of(&read.state)).await?;
    let (store, uses) = (copies.chunks().store().clone(), uses.clone());
    let marked = blocking(move || condemn(&store, &uses, &read, budget_bytes, shown));
    let (mut condemned, named_bytes) = marked.await?;
    let theirs: Vec<Digest> = condemned.digests().iter().filter(|digest| structure.contains(digest)).copied().collect();
    let kept = copies.are_kept(theirs).await;
    condemned.retain(|digest| !structure.contains(digest) || kept.contains(digest));
    let store = copies.chunks().store().clone();
    let deleted = blocking(move || {
        let swept = store.sweep(&condemned)?;
        Ok::<_, Failure>(Deleted { swept, packs: store.compact()?, named_bytes, disk_bytes: store.disk_bytes()? })
    });
    deleted.await
}

/// What `shoal image rm` would take, or what stands against it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    /// The function that needs it.
    pub(crate) function_id: String,
    /// Its tag.
    pub(crate) function: String,
    /// Its app.
    pub(crate) app_id: String,
    /// What people call the app.
    pub(crate) app: String,
}

/// Returns the functions that may run and need an image, each once.
pub(crate) fn users_of(state: &State, image: ImageId) -> Vec<Use> {
    let mut seen = BTreeSet::new();
    let users = state.runnable().filter(|(id, function)| function.image == Some(image) && seen.insert(*id));
    let told = users.map(|(id, function)| {
        let app = state.apps.get(&function.app);
        let app = app.map(|app| if app.name.is_empty() { &app.description } else { &app.name });
        Use {
            function_id: id.to_string(),
            function: function.tag.clone(),
            app_id: function.app.to_string(),
            app: app.cloned().unwrap_or_default(),
        }
    });
    told.collect()
}

#[cfg(test)]
mod tests;
