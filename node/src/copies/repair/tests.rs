//! What comes back by itself, on nodes that talk over real sockets.

use shoal_state::model::{Definition, Image};
use shoal_state::{Command, ImageId, Timestamp, VERSION_KNOWN};
use shoal_storage::manifest::{Entry, Kind, Path, Tree, put_content};

use super::*;
use crate::chunks::tests::World;

/// Writes an image of many small files and a long one to a node's store, and a state that names it.
fn image(store: &Store) -> (State, Vec<Digest>) {
    let mut tree = Tree::new();
    for number in 0..200u32 {
        let bytes = number.to_le_bytes().repeat(if number == 0 { 1 << 20 } else { 300 });
        let (size, content) = put_content(&bytes[..], "a file", store).unwrap();
        tree.insert(&Path::parse(format!("{number}")).unwrap(), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
    }
    let manifest = tree.write(store).unwrap();
    store.sync().unwrap();
    let mut state = State::default();
    state.apply(&Command::SetVersion { version: VERSION_KNOWN }).unwrap();
    let image = Image { key: Digest::of(b"key"), manifest: Some(manifest), record: Definition::default(), built: Timestamp(0) };
    state.apply(&Command::PutImage { id: ImageId::from_random(1), image }).unwrap();
    let mut all = Vec::new();
    Survey::new(store.clone()).tree(manifest, &mut |digest, _| all.push(digest)).unwrap();
    (state, all)
}

impl World {
    async fn repair(&self, state: &State) -> Vec<Report> {
        let rounds = self.nodes.iter().map(|node| node.copies.repair(state));
        futures::future::join_all(rounds).await
    }

    fn assert_kept(&self, digests: &[Digest]) {
        for digest in digests {
            let holders = self.holders(digest);
            assert!(self.placement().homes(digest).iter().all(|home| holders.contains(home)), "{digest} is at {holders:?} alone");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_brings_its_part_and_a_second_round_has_nothing_to_do() {
    let world = World::new(3);
    let (state, all) = image(&world.nodes[0].store);
    let first = world.repair(&state).await;
    world.assert_kept(&all);
    assert!(first.iter().all(|report| report.lacking == 0 && report.unread == 0 && report.named == all.len() as u64), "{first:?}");
    assert!(first[0].brought == 0 && first[1].brought > 0 && first[1].brought < all.len() as u64, "{first:?}");
    let second = world.repair(&state).await;
    assert!(second.iter().all(|report| report.brought == 0), "{second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_removed_node_kept_is_copied_from_those_that_are_left() {
    let mut world = World::new(4);
    let (state, all) = image(&world.nodes[0].store);
    world.repair(&state).await;
    // The one that had all of it is gone.
    let gone = world.nodes.remove(0);
    world.members.lock().remove(&gone.id);
    gone.chunks.others().endpoint().close().await;
    let reports = world.repair(&state).await;
    assert!(reports.iter().map(|report| report.brought).sum::<u64>() > 50, "{reports:?}");
    assert!(reports.iter().all(|report| report.lacking == 0), "{reports:?}");
    world.assert_kept(&all);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_counts_as_lost_once_it_was_away_for_as_long_as_is_set() {
    let world = World::with(3, Default::default, Duration::from_millis(1500));
    let (state, all) = image(&world.nodes[0].store);
    world.repair(&state).await;
    let gone = &world.nodes[2];
    let address = world.address(gone.id);
    for node in &world.nodes[..2] {
        node.chunks.others().look(gone.id, &address).await;
    }
    gone.chunks.others().endpoint().close().await;
    let early = world.nodes[0].copies.repair(&state).await;
    assert_eq!(early.brought, 0, "it may come back");
    assert!(early.homes[&gone.id] > 50);
    let deadline = Instant::now() + Duration::from_secs(10);
    while !world.nodes[..2].iter().all(|node| node.chunks.others().lost().contains(&gone.id)) {
        assert!(Instant::now() < deadline, "it is never lost");
        tokio::time::sleep(Duration::from_millis(50)).await;
        // As the loop that looks at all does: the two know of each other that they are there.
        for (one, other) in [(0, 1), (1, 0)] {
            let address = world.address(world.nodes[other].id);
            world.nodes[one].chunks.others().look(world.nodes[other].id, &address).await;
        }
    }
    for node in &world.nodes[..2] {
        assert_eq!(node.copies.repair(&state).await.lacking, 0);
        assert!(all.iter().all(|digest| node.store.has(digest).unwrap()), "two are left, so each has all");
    }
}
