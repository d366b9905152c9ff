//! What a node that was killed leaves on its machine, taken away without starting it again.
//!
//! Containers are processes of their own: they go on when their node is killed, with mounts, cgroups and links. The next start of the
//! node takes all of that away before anything else; this is for one that does not come back.

use std::path::Path;

use anyhow::Context as _;
use shoal_runtime::Leftovers;

use crate::folder;

/// Takes away what the node of a data folder left, and says what it was. The data stay; the folder may be gone.
///
/// To be called where the node's own network is.
///
/// # Errors
/// When a node runs on the folder, or something does not go.
pub(crate) fn clean_up(data: &Path) -> anyhow::Result<Leftovers> {
    let _folder = folder::keep_nodes_out(data)?;
    let mut found = shoal_runtime::clean_up(&data.join("runtime")).context("cannot take away what containers left")?;
    for folder in ["images/work", "images/bases"] {
        shoal_image::remove_work_folder(&data.join(folder)).context("cannot take away what builds of images left")?;
    }
    found.mounts += shoal_fs::unmount_leftovers(&data.join("trees")).context("cannot take away the mount of images' trees")?;
    Ok(found)
}
