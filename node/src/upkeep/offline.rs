//! Proving that what a node that does not run has on its disk is whole. Nothing is put right: a damaged chunk is told of and left,
//! so that what is brought back from a copy of the disk counts again.
//!
//! Caveats: the small databases (the index of the chunk store, the table of blobs) are opened, and may tidy their own files as
//! they do at a start. Chunks that a crash kept out of the index are not looked at: nothing can name them.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context as _;
use shoal_state::{BlobId, Digest};
use shoal_storage::keep::Mark;
use shoal_storage::kv::Kv;
use shoal_storage::store::{Options, Store};

use super::check::{CheckReport, walk};
use super::named::Named;
use crate::api::blobs_in;
use crate::folder::Folder;

/// Reads every chunk below a data folder, then walks everything that is named, as far as it can be looked at.
pub(crate) fn check(data: &Path) -> anyhow::Result<CheckReport> {
    let _folder = Folder::look(data)?;
    let options = Options { look_only: true, ..Options::default() };
    let store = Store::open(&data.join("chunks"), options).context("cannot open the chunk store")?;
    let checked = store.check(|_, _| ControlFlow::Continue(())).context("cannot read the chunk store")?;
    let mut unseen = Vec::new();
    let (named, members) = named(data, &mut unseen);
    let blobs = blobs(data, &mut unseen);
    let mark = Mark::new(store).without(checked.lost.iter().map(|damage| damage.digest));
    let walked = walk(mark, &named, &blobs).map_err(|failure| anyhow::anyhow!(failure)).context("cannot walk what is named")?;
    if members > 1 && !walked.1.is_empty() {
        unseen.push(format!(
            "whether one of the other {} nodes of the cluster has what is missing here; start this one, and look again",
            members - 1
        ));
    }
    Ok(CheckReport { offline: true, ..CheckReport::of(&checked, walked.0, walked.1, unseen) })
}

/// Returns what the state names, and how many nodes the cluster has, as far as this disk knows the state.
fn named(data: &Path, unseen: &mut Vec<String>) -> (Named, usize) {
    match shoal_raft::look(&data.join("raft")) {
        Ok(left) => {
            if left.undecided > 0 {
                unseen.push(format!(
                    "what the last {} entries of Raft's log name: this node does not know whether they are committed; start it, and look again",
                    left.undecided
                ));
            }
            (Named::of(&left.state), left.state.members.len())
        }
        Err(error) => {
            unseen.push(format!("what images, files and functions name: {error}"));
            (Named::default(), 0)
        }
    }
}

fn blobs(data: &Path, unseen: &mut Vec<String>) -> Vec<(BlobId, Digest)> {
    let found = Kv::open_there(&data.join("kv")).map_err(anyhow::Error::new).and_then(|kv| Ok(blobs_in(&kv)?));
    found.unwrap_or_else(|error| {
        unseen.push(format!("blobs: {error:#}"));
        Vec::new()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;

    use shoal_raft::Raft;
    use shoal_state::model::{Definition, Image};
    use shoal_state::{Command, ImageId, NodeId, Timestamp};
    use shoal_storage::manifest::{Entry, Kind, Path as TreePath, Tree, put_content};

    use super::*;

    /// What a node leaves: one image of one file, and no blob.
    async fn folder_of_a_node(data: &Path) {
        let _folder = Folder::take(data).unwrap();
        Kv::open(&data.join("kv")).unwrap();
        let store = Store::open(&data.join("chunks"), Options::default()).unwrap();
        let noise: Vec<u8> = (0..2000u32).flat_map(|at| *Digest::of(&at.to_le_bytes()).as_bytes()).collect();
        let (size, content) = put_content(&noise[..], "a file", &store).unwrap();
        let mut tree = Tree::new();
        tree.insert(&TreePath::parse("file").unwrap(), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
        let manifest = Some(tree.write(&store).unwrap());
        store.sync().unwrap();
        let raft = Raft::open(shoal_raft::Options::alone(data.join("raft"), NodeId::from_random(1))).await.unwrap();
        raft.bootstrap_alone().await.unwrap();
        let image = Image { key: Digest::of(b"key"), manifest, record: Definition::default(), built: Timestamp(0) };
        raft.propose(vec![Command::PutImage { id: ImageId::from_random(7), image }]).await.unwrap()[0].as_ref().unwrap();
        raft.shutdown().await;
    }

    fn flip(pack: &PathBuf) {
        let file = std::fs::File::options().read(true).write(true).open(pack).unwrap();
        let (mut byte, at) = ([0], 30_000);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }

    #[tokio::test]
    async fn what_a_node_left_is_checked_and_damage_is_told_of_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path();
        folder_of_a_node(data).await;
        let report = check(data).unwrap();
        assert!(report.whole && report.offline && report.chunks >= 2, "{report:?}");
        assert_eq!(report.named, 1);

        let packs = std::fs::read_dir(data.join("chunks/packs")).unwrap().map(|entry| entry.unwrap().path());
        let pack = packs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
        flip(&pack);
        for _ in 0..2 {
            let report = check(data).unwrap();
            assert!(!report.whole && report.dropped.is_empty());
            assert_eq!(report.lost.len(), 1, "{report:?}");
            let [lacks] = report.incomplete.as_slice() else { panic!("{report:?}") };
            assert_eq!((lacks.what.clone(), lacks.missing), (format!("image {}", ImageId::from_random(7)), 1));
        }
        // Brought back from a copy of the disk.
        flip(&pack);
        assert!(check(data).unwrap().whole);

        std::fs::remove_dir_all(data.join("raft/log")).unwrap();
        std::fs::remove_dir_all(data.join("kv")).unwrap();
        let report = check(data).unwrap();
        assert!(!report.whole && report.lost.is_empty() && report.named == 0);
        let [state, blobs] = report.unseen.as_slice() else { panic!("{report:?}") };
        assert!(state.contains("what images, files and functions name: cannot open Raft's folder"), "{state}");
        assert!(blobs.contains("blobs: there is no database"), "{blobs}");
    }
}
