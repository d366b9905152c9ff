//! What containers of an image read first: recorded at its first start on a node, and brought in bulk where it starts next.
//!
//! A container reads some hundreds of files one after the other, and on a node that lacks them each is a round trip. So the chunks that
//! were read are listed, in their order, when an image has run for a moment; a node that is to start the image asks the others for
//! their list, and brings all of it at once while the container is being made. What is not on the list comes as it is read.
//!
//! Caveats: reads that the kernel's cache answered are not seen, so what was read of an image before, while others ran, counts as
//! read by it. Lists are kept by this node alone, the latest ones.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shoal_state::Digest;
use shoal_storage::file;

use crate::api::blocking;
use crate::copies::Copies;
use crate::copies::asks::Ask;
use crate::roots::{Root, Roots};

/// How long after the start of an image what it has read by then is listed.
const RECORD_AFTER: Duration = Duration::from_secs(10);
/// The most chunks of a list.
const CHUNKS_MAX: usize = 8192;
/// How many lists are kept. Beyond it the oldest goes.
const LISTS_MAX: usize = 1000;
/// How long another node may take to give its list.
const LIST_WAIT: Duration = Duration::from_secs(1);
/// How many images are remembered as looked after. Beyond it all are forgotten, and looked after again.
const DONE_MAX: usize = 10_000;

/// The lists of this node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Touched {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    roots: Roots,
    copies: Copies,
    /// Images that were looked after since this process began.
    done: Mutex<HashSet<Digest>>,
    /// Of these, images whose first reads are to be listed.
    unlisted: Mutex<HashSet<Digest>>,
}

impl Touched {
    /// Keeps lists in `dir` of what is read of `roots`.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn open(dir: PathBuf, roots: Roots, copies: Copies) -> Result<Self, file::Failed> {
        file::create_dir(&dir)?;
        Ok(Self { inner: Arc::new(Inner { dir, roots, copies, done: Mutex::default(), unlisted: Mutex::default() }) })
    }

    /// Is told that a container is about to start on a root of these trees, the image first: brings their structure, and lets what
    /// such a container reads first come meanwhile.
    pub(crate) async fn starts(&self, trees: &[Digest]) {
        let Some(image) = trees.first().copied() else { return };
        {
            let mut done = self.inner.done.lock();
            if done.len() >= DONE_MAX {
                done.clear();
            }
            if !done.insert(image) {
                return;
            }
        }
        let list = match self.find(image).await {
            Some(list) => Some(list),
            None if self.inner.copies.is_alone() => None,
            None => self.ask(image).await,
        };
        let Some(list) = list else {
            self.inner.unlisted.lock().insert(image);
            return self.structure(trees).await;
        };
        if self.inner.copies.is_alone() {
            return;
        }
        let store = self.inner.copies.chunks().store().clone();
        let lacks: Vec<Digest> = blocking(move || list.into_iter().filter(|digest| !store.has(digest).unwrap_or(true)).collect()).await;
        let copies = self.inner.copies.clone();
        // The container's reads join what is on its way.
        tokio::spawn(async move { copies.chunks().bring(lacks).await });
        self.structure(trees).await;
    }

    /// Brings the structure of trees, in few requests.
    async fn structure(&self, trees: &[Digest]) {
        if self.inner.copies.is_alone() {
            return;
        }
        // Whoever reads the trees says what stands in the way.
        if let Err(error) = self.inner.copies.bring_trees(trees, |_| false).await {
            tracing::debug!(error = &*error as &dyn std::error::Error, "cannot bring the structure of an image");
        }
    }

    /// Asks the other nodes for their list, and keeps it.
    async fn ask(&self, image: Digest) -> Option<Vec<Digest>> {
        let (answers, _) = self.inner.copies.ask_all::<Option<Vec<Digest>>>(&Ask::Touched(image), LIST_WAIT).await;
        let list = answers.into_values().flatten().max_by_key(Vec::len)?;
        self.keep(image, list.clone()).await;
        Some(list)
    }

    /// Returns the list of an image, if this node has one.
    pub(crate) async fn find(&self, image: Digest) -> Option<Vec<Digest>> {
        let path = self.path(image);
        let bytes = blocking(move || std::fs::read(path)).await.ok()?;
        postcard::from_bytes(&bytes).ok()
    }

    async fn keep(&self, image: Digest, list: Vec<Digest>) {
        let (path, dir) = (self.path(image), self.inner.dir.clone());
        let kept = blocking(move || {
            let bytes = postcard::to_stdvec(&list).map_err(std::io::Error::other)?;
            forget_oldest(&dir)?;
            file::write(&path, &bytes).map_err(std::io::Error::other)
        });
        if let Err(error) = kept.await {
            tracing::warn!(%image, %error, "cannot keep what an image reads first");
        }
    }

    fn path(&self, image: Digest) -> PathBuf {
        self.inner.dir.join(image.to_string())
    }

    /// Is told that a container of an image starts on a root: what it reads first is listed, should nobody have done so.
    pub(crate) fn started(&self, image: Digest, root: &Root) {
        if !self.inner.unlisted.lock().remove(&image) {
            return;
        }
        let (this, root) = (self.clone(), root.name());
        tokio::spawn(async move {
            tokio::time::sleep(RECORD_AFTER).await;
            let roots = this.inner.roots.clone();
            let mut list = blocking(move || roots.touched(&root)).await;
            list.truncate(CHUNKS_MAX);
            if !list.is_empty() {
                tracing::debug!(%image, chunks = list.len(), "listed what an image reads first");
                this.keep(image, list).await;
            }
        });
    }
}

/// Makes room for one list more.
fn forget_oldest(dir: &std::path::Path) -> std::io::Result<()> {
    let mut lists = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        lists.push((entry.metadata()?.modified()?, entry.path()));
    }
    lists.sort();
    let too_many = (lists.len() + 1).saturating_sub(LISTS_MAX);
    lists.into_iter().take(too_many).try_for_each(|(_, path)| std::fs::remove_file(path))
}
