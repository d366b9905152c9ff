//! What a container changed in its root, as a tree.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::BufReader;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use shoal_runtime::Container;
use shoal_storage::manifest::{Change, Entry, Kind, Path, Tree, from_tar};
use shoal_storage::store::Store;

use crate::error::{Error, Result, TreeContext, blocking};

use super::settings::OWN_FOLDER;

/// How many bytes of the archive are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Places that belong to the running container and never to an image.
const RUN_TIME_PLACES: [&str; 6] = ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts", "etc/hostname"];

/// Places of the client in containers of functions and sandboxes: to be hidden when one of those is captured.
pub const CLIENT_PLACES: [&str; 2] = ["__modal", "pkg"];

/// What of a container's root is not its own: changes of it are left out.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    /// Folders and files with all that is in them: mounts, volumes, [`CLIENT_PLACES`].
    pub places: Vec<Path>,
    /// Single files that were laid over the root, by their real paths. What Python compiles of them is hidden too: the
    /// file may be another one next time, and nothing would tell, since such files have no times.
    pub files: BTreeSet<Path>,
}

impl Hidden {
    fn hides(&self, path: &Path) -> bool {
        self.places.iter().any(|place| path.is_in(place))
            || self.files.contains(path)
            || source_of(path).is_some_and(|source| self.files.contains(&source))
    }
}

/// Returns of which source a file in `__pycache__` was compiled.
fn source_of(path: &Path) -> Option<Path> {
    let folder = path.parent().filter(|folder| folder.name() == Some(b"__pycache__"))?;
    let name = path.name()?;
    let stem = name.split(|byte| *byte == b'.').next()?;
    Some(folder.parent()?.join(&[stem, b".py"].concat()))
}

/// Returns the root of a running container as a tree: `base` with its changes.
///
/// What is [`Hidden`] and what belongs to any running container (`/proc`, `/etc/hosts`…) is as in `base`. The bytes are
/// in the store when this returns, not yet durable.
pub async fn capture(container: &Container, base: &Tree, hidden: &Hidden, store: &Store) -> Result<Tree> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| Error::File {
        action: "create",
        path: "a pipe".into(),
        source: error.into(),
    })?;
    let store = store.clone();
    let reading = blocking("reading a container's changes", move || {
        let reader = BufReader::with_capacity(BUFFER_BYTES, File::from(reader));
        let mut changes = from_tar(reader, &store).tree("a container's changes")?;
        decode_access_lists(&mut changes);
        Ok(changes)
    });
    let exporting = async {
        let done = container.export_upper(&writer).await;
        // The end of the archive, for the reader.
        drop(writer);
        done
    };
    let (changes, exported) = tokio::join!(reading, exporting);
    // When the reader gives up first, the export breaks for that reason.
    let changes = changes?;
    exported.map_err(|source| Error::Runtime { action: "export the changes of", source })?;
    let mut hidden = hidden.clone();
    hidden.places.extend(RUN_TIME_PLACES.map(crate::bases::path));
    hidden.places.push(crate::bases::path(OWN_FOLDER));
    let mut tree = base.clone();
    tree.apply_layer(own(changes, &hidden)).tree("a container's changes")?;
    Ok(tree)
}

/// Extended attributes with access control lists: the sandbox's archive has their values in base64 without padding. The image
/// keeps them; gVisor itself shows and heeds only those that were set in the running container.
const ACCESS_LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Gives access control lists the values that a filesystem keeps.
fn decode_access_lists(changes: &mut [Change]) {
    for change in changes {
        let Change::Put(_, Entry { xattrs, .. }) = change else { continue };
        for name in ACCESS_LISTS {
            if let Some(value) = xattrs.get_mut(name)
                && let Ok(list) = BASE64_STANDARD_NO_PAD.decode(&*value)
            {
                *value = list;
            }
        }
    }
}

/// Leaves out what is hidden. A name that a hidden file was given elsewhere stays, as a file of its own.
fn own(changes: Vec<Change>, hidden: &Hidden) -> Vec<Change> {
    let path_of = |change: &Change| match change {
        Change::Put(path, _) | Change::Remove(path) | Change::Opaque(path) => path.clone(),
    };
    let (left_out, mut own): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| hidden.hides(&path_of(change)));
    let contents: HashMap<Path, Kind> = left_out
        .into_iter()
        .filter_map(|change| match change {
            Change::Put(path, Entry { kind, .. }) => Some((path, kind)),
            Change::Remove(_) | Change::Opaque(_) => None,
        })
        .collect();
    for change in &mut own {
        if let Change::Put(_, Entry { kind, .. }) = change
            && let Kind::Hardlink { to } = kind
            && let Some(content) = contents.get(to)
        {
            *kind = content.clone();
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bases::path;
    use shoal_storage::manifest::Content;

    fn put(name: &str, kind: Kind) -> Change {
        Change::Put(path(name), Entry::new(kind, 0o644))
    }

    #[test]
    fn access_lists_are_what_a_filesystem_keeps() {
        let list = [2_u8, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255];
        let entry = |value: Vec<u8>| {
            let mut entry = Entry::new(Kind::Fifo, 0o644);
            entry.xattrs = [(b"system.posix_acl_access".to_vec(), value), (b"user.x".to_vec(), b"AgAA".to_vec())].into();
            Change::Put(path("pipe"), entry)
        };
        let mut changes = [entry(BASE64_STANDARD_NO_PAD.encode(list).into_bytes())];
        decode_access_lists(&mut changes);
        assert_eq!(changes, [entry(list.to_vec())]);
    }

    #[test]
    fn what_was_laid_over_the_root_stays_out_with_what_was_compiled_of_it() {
        let hidden = Hidden { places: vec![path("pkg"), path("data/volume")], files: BTreeSet::from([path("root/program.py")]) };
        let file = || Kind::File { size: 0, content: Content::EMPTY };
        let changes = vec![
            put("root/program.py", Kind::File { size: 7, content: Content::EMPTY }),
            put("root/other.py", file()),
            put("root/__pycache__/program.cpython-312.pyc", file()),
            put("root/__pycache__/program.cpython-312.opt-1.pyc", file()),
            put("root/__pycache__/other.cpython-312.pyc", file()),
            put("pkg/modal/x.py", file()),
            Change::Remove(path("data/volume/x")),
            Change::Remove(path("data/x")),
            put("linked", Kind::Hardlink { to: path("root/program.py") }),
        ];
        let kept = own(changes, &hidden);
        let expected = vec![
            put("root/other.py", file()),
            put("root/__pycache__/other.cpython-312.pyc", file()),
            Change::Remove(path("data/x")),
            put("linked", Kind::File { size: 7, content: Content::EMPTY }),
        ];
        assert_eq!(kept, expected);
    }
}
