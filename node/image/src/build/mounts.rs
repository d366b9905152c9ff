//! `RUN --mount`: what is bound into the container of one command.
//!
//! Caches are folders of this node, kept between builds; a `locked` or `private` one has one user at a time. Temporary
//! folders lie on disk.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path as HostPath, PathBuf};
use std::sync::Arc;

use shoal_runtime::Bind;
use shoal_storage::manifest::{Kind, Path, Tree};

use crate::error::{Error, FileContext, Result, TreeContext, blocking};
use crate::key::KeyBuilder;
use crate::recipe::{Mount, MountKind, RunStep, Sharing};

use super::execute::Execution;
use super::plan::{self, PlannedStep};

/// What the mounts of a command need while it runs.
#[derive(Default)]
pub(super) struct Mounted {
    pub(super) binds: Vec<Bind>,
    pub(super) env: BTreeMap<String, String>,
    /// Folders that vanish afterwards.
    folders: Vec<tempfile::TempDir>,
    /// Caches that nobody else may use meanwhile.
    locks: Vec<tokio::sync::OwnedMutexGuard<()>>,
}

/// Prepares all mounts of a command.
pub(super) async fn prepare(execution: &mut Execution<'_>, stage: usize, step: &PlannedStep, run: &RunStep) -> Result<Mounted> {
    let mut mounted = Mounted::default();
    for mount in &run.mounts {
        let bind = match &mount.kind {
            MountKind::Cache { id, sharing, mode, owner } => Some((mounted.cache(execution, id, *sharing, *mode, *owner).await?, false)),
            MountKind::Tmpfs { .. } => Some((mounted.folder(execution, 0o1777)?, false)),
            MountKind::Secret { .. } => mounted.secret(execution, step, mount)?.map(|path| (path, true)),
            MountKind::Bind { from, source, writable } => {
                let origin = plan::origin(&execution.recipe, stage, from.as_deref());
                // The borrow of the recipe ends here; the name lives in the step.
                let (tree, _) = execution.origin_tree(origin).await?;
                let part = plan::part_of(&tree, source).map_err(|problem| step.failed(problem))?;
                Some((mounted.files(execution, part).await?, !writable))
            }
        };
        if let Some((source, read_only)) = bind {
            mounted.binds.push(Bind { source, target: mount.target.clone(), read_only });
        }
    }
    Ok(mounted)
}

impl Mounted {
    fn folder(&mut self, execution: &Execution<'_>, mode: u32) -> Result<PathBuf> {
        let folder = execution.inner.folder()?;
        let path = folder.path().join("mount");
        std::fs::create_dir(&path).file("create", &path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).file("change", &path)?;
        self.folders.push(folder);
        Ok(path)
    }

    async fn cache(&mut self, execution: &Execution<'_>, id: &str, sharing: Sharing, mode: u32, owner: (u32, u32)) -> Result<PathBuf> {
        let inner = execution.inner;
        let key = KeyBuilder::new("cache mount 1").text("id", id).finish();
        if sharing != Sharing::Shared {
            self.locks.push(inner.cache_locks.lock(key).await);
        }
        let path = inner.cache_dir.join(key.to_string());
        if !path.exists() {
            std::fs::create_dir_all(&path).file("create", &path)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).file("change", &path)?;
            std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).file("change the owner of", &path)?;
        }
        Ok(path)
    }

    /// Gives a secret as a variable or as a file, whose path is returned.
    fn secret(&mut self, execution: &Execution<'_>, step: &PlannedStep, mount: &Mount) -> Result<Option<PathBuf>> {
        let MountKind::Secret { id, env, required, mode, owner } = &mount.kind else { unreachable!("it is a secret") };
        let Some(value) = execution.request.secret_env().remove(id) else {
            return match required {
                true => Err(step.failed(format!("no secret of this build has the variable {id}"))),
                false => Ok(None),
            };
        };
        if let Some(name) = env {
            self.env.insert(name.clone(), value.clone());
            if mount.target.is_empty() {
                return Ok(None);
            }
        }
        let path = self.folder(execution, 0o755)?.join("secret");
        std::fs::write(&path, value).file("write", &path)?;
        std::os::unix::fs::chown(&path, Some(owner.0), Some(owner.1)).file("change the owner of", &path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).file("change", &path)?;
        Ok(Some(path))
    }

    /// Writes a tree out: a copy, so that writes to it harm nobody.
    async fn files(&mut self, execution: &Execution<'_>, part: Tree) -> Result<PathBuf> {
        let folder = self.folder(execution, 0o755)?;
        let store = execution.inner.store.clone();
        let part = Arc::new(part);
        blocking("writing a mount out", move || write_out(&part, &folder, &store)).await
    }
}

/// Writes a folder, or a single file into it, and returns the path of what the tree is.
fn write_out(part: &Tree, folder: &HostPath, store: &shoal_storage::store::Store) -> Result<PathBuf> {
    if part.root().is_dir() {
        part.to_dir(folder, store).tree("a mount")?;
        return Ok(folder.to_owned());
    }
    if !matches!(part.root().kind, Kind::File { .. }) {
        return Err(Error::NotAnImage { reference: "a mount".to_owned(), why: "is neither a file nor a folder".to_owned() });
    }
    let mut holder = Tree::new();
    holder.insert(&Path::parse("file").expect("a plain name is a path"), part.root().clone()).tree("a mount")?;
    holder.to_dir(folder, store).tree("a mount")?;
    Ok(folder.join("file"))
}
