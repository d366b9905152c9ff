//! COPY, ADD and WORKDIR in a build: what they take, from where, and the tree they lead to.
//!
//! What a source selects and where it goes is [`copy`]; what ADD fetches and unpacks is [`add`].

use shoal_storage::manifest::{Entry, Kind, Path, Tree, UNDATED_NS, put_content};

use crate::error::{Error, Result, TreeContext, blocking};
use crate::log::Tail;
use crate::recipe::TransferStep;

use super::copy::{self, Attributes};
use super::execute::Execution;
use super::plan::{self, Origin, PlannedStep};
use super::request::BuildRequest;
use super::{Inner, add};

impl Execution<'_> {
    /// Carries out a COPY or an ADD on a tree.
    pub(super) async fn transfer(&mut self, stage: usize, step: &PlannedStep, transfer: &TransferStep, into: &Tree) -> Result<Tree> {
        let failed = |problem: String| step.failed(problem);
        let (selected, keeps_owner) = match plan::origin(&self.recipe, stage, transfer.from.as_deref()) {
            Origin::Context => (plan::context_selection(transfer, &self.context).map_err(failed)?, false),
            other => {
                let (from, what) = self.origin_tree(other).await?;
                (copy::select(transfer, &transfer.sources, &from, &what).map_err(failed)?, true)
            }
        };
        let mut selected = selected;
        if transfer.is_add && transfer.unpack != Some(false) {
            self.unpack(&mut selected).map_err(failed)?;
        }
        for source in transfer.sources.iter().filter(|source| plan::is_remote(transfer, source)) {
            selected.push(self.fetch(step, transfer, source).await?);
        }
        for inline in &transfer.inline {
            let store = &self.inner.store;
            let (size, content) = put_content(inline.content.as_bytes(), &inline.name, store).tree(&inline.name)?;
            let entry = Entry { mtime_ns: UNDATED_NS, ..Entry::new(Kind::File { size, content }, 0o644) };
            let path = Path::parse(&inline.name).map_err(|error| step.failed(error.to_string()))?;
            selected.push(copy::Selected { path, tree: Tree::of(entry), from_pattern: false });
        }
        let owner = match &transfer.chown {
            Some(owner) => Some(self.accounts(into)?.owner(owner).map_err(failed)?),
            None => (!keeps_owner).then_some((0, 0)),
        };
        let mut tree = into.clone();
        copy::place(&mut tree, transfer, selected, Attributes { owner, mode: transfer.chmod }).map_err(failed)?;
        Ok(tree)
    }

    /// Replaces archives by what is in them.
    fn unpack(&self, selected: &mut [copy::Selected]) -> Result<(), copy::Problem> {
        for selected in selected {
            if matches!(selected.tree.root().kind, Kind::File { .. })
                && let Some(tree) = add::unpacked(&selected.tree, &self.inner.store)?
            {
                selected.tree = tree;
            }
        }
        Ok(())
    }

    async fn fetch(&self, step: &PlannedStep, transfer: &TransferStep, source: &str) -> Result<copy::Selected> {
        if add::is_repository(source) {
            return Err(step.failed("repositories are not fetched: use git in a RUN"));
        }
        let wanted = transfer.destination.rsplit('/').next().unwrap_or_default();
        let name = add::file_name(source)
            .or_else(|| (!wanted.is_empty()).then(|| wanted.to_owned()))
            .ok_or_else(|| step.failed(format!("{source} has no file name: give a destination that is not a folder")))?;
        let folder = self.inner.folder()?;
        let file = folder.path().join("fetched");
        self.log.info(format!("fetching {source}"));
        let fetched = add::fetch(source, self.inner.config.egress.ca_bundle.as_deref(), &file);
        let hash = self.in_time(step, &Tail::default(), fetched).await??.map_err(|problem| step.failed(problem))?;
        if let Some(expected) = &transfer.checksum
            && *expected != hash
        {
            return Err(step.failed(format!("{source} has the checksum {hash}, expected {expected}")));
        }
        let mut tree = add::fetched(&file, &name, &self.inner.store).map_err(|problem| step.failed(problem))?;
        if transfer.unpack == Some(true)
            && let Some(unpacked) = add::unpacked(&tree, &self.inner.store).map_err(|problem| step.failed(problem))?
        {
            tree = unpacked;
        }
        let path = Path::parse(&name).map_err(|error| step.failed(error.to_string()))?;
        Ok(copy::Selected { path, tree, from_pattern: false })
    }
}

/// Makes sure that a folder exists, and leaves one that does alone.
pub(super) fn directory(tree: &Tree, path: &str) -> Result<Tree, copy::Problem> {
    let path = Path::parse(path).map_err(|error| error.to_string())?;
    let real = tree.follow(&path).map_err(|error| error.to_string())?;
    let mut tree = tree.clone();
    match tree.get(&real) {
        Some(entry) if entry.is_dir() => {}
        Some(_) => return Err(format!("{path} is there and not a folder")),
        None => make_directories(&mut tree, &real).map_err(|error| error.to_string())?,
    }
    Ok(tree)
}

/// Makes a folder and those above it that are missing.
fn make_directories(tree: &mut Tree, path: &Path) -> shoal_storage::manifest::Result<()> {
    if let Some(parent) = path.parent()
        && tree.get(&parent).is_none()
    {
        make_directories(tree, &parent)?;
    }
    tree.insert(path, Entry { mtime_ns: UNDATED_NS, ..Entry::dir() }).map(drop)
}

impl Inner {
    /// Puts the context together: the mount with the single files over it.
    pub(super) async fn context(&self, request: &BuildRequest) -> Result<Tree> {
        let (store, context, files) = (self.store.clone(), request.context, request.context_files.clone());
        blocking("reading the build context", move || {
            let mut tree = match context {
                Some(digest) => Tree::read(&store, &digest).tree("the build context")?,
                None => Tree::new(),
            };
            for (name, bytes) in &files {
                let path = Path::parse(name).map_err(|error| Error::Tree { what: "the build context".to_owned(), source: error.into() })?;
                let (size, content) = put_content(&bytes[..], name, &store).tree(name)?;
                let entry = Entry { mtime_ns: UNDATED_NS, ..Entry::new(Kind::File { size, content }, 0o644) };
                tree.insert(&path, entry).tree(name)?;
            }
            Ok(tree)
        })
        .await
    }
}
