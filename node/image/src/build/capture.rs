//! What a container changed in its root, as a tree.

use std::fs::File;
use std::io::BufReader;

use shoal_runtime::Container;
use shoal_storage::manifest::{Change, Path, Tree, from_tar};
use shoal_storage::store::Store;

use crate::error::{Error, Result, TreeContext, blocking};

use super::settings::OWN_FOLDER;

/// How many bytes of the archive are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Places that belong to the running container and never to an image.
const RUN_TIME_PLACES: [&str; 6] = ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts", "etc/hostname"];

/// Places of the client in containers of functions and sandboxes: to be hidden when one of those is captured.
pub const CLIENT_PLACES: [&str; 2] = ["__modal", "pkg"];

/// Returns the root of a running container as a tree: `base` with its changes.
///
/// What lies in `hidden` (mounts, volumes, [`CLIENT_PLACES`]) and what belongs to any running container (`/proc`,
/// `/etc/hosts`…) is as in `base`. The bytes are in the store when this returns, not yet durable.
pub async fn capture(container: &Container, base: &Tree, hidden: &[Path], store: &Store) -> Result<Tree> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|error| Error::File {
        action: "create",
        path: "a pipe".into(),
        source: error.into(),
    })?;
    let store = store.clone();
    let reading = blocking("reading a container's changes", move || {
        let reader = BufReader::with_capacity(BUFFER_BYTES, File::from(reader));
        from_tar(reader, &store).tree("a container's changes")
    });
    let exporting = async {
        let done = container.export_upper(&writer).await;
        // The end of the archive, for the reader.
        drop(writer);
        done
    };
    let (changes, exported) = tokio::join!(reading, exporting);
    // When the reader gives up first, the export breaks for that reason.
    let mut changes = changes?;
    exported.map_err(|source| Error::Runtime { action: "export the changes of", source })?;
    let mut hidden = hidden.to_vec();
    hidden.extend(RUN_TIME_PLACES.map(crate::bases::path));
    hidden.push(crate::bases::path(OWN_FOLDER));
    changes.retain(|change| {
        let path = match change {
            Change::Put(path, _) | Change::Remove(path) | Change::Opaque(path) => path,
        };
        !hidden.iter().any(|place| path.is_in(place))
    });
    let mut tree = base.clone();
    tree.apply_layer(changes).tree("a container's changes")?;
    Ok(tree)
}
