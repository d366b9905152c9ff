use super::*;

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

fn open(dir: &Path) -> Shards {
    let options = Options { node: node(1), machine_restarted: false, segment_bytes: 64 << 10, min_copies: 1 };
    Shards::open(dir, &options, None, |_, _| ()).unwrap()
}

fn alone(epoch: u64) -> Shard {
    Shard { epoch, home: node(1), in_sync: vec![node(1)], joining: vec![] }
}

fn draft(kind: Kind, owner: u128) -> Draft {
    Draft { shard: shard(), kind, owner, body: [Bytes::from_static(b"head"), vec![7; 4 << 10].into()] }
}

fn live(shards: &Shards) -> Vec<(u64, u128)> {
    let all = shards.index_of(shard()).iter().filter(|slot| slot.header.kind == Kind::Calls);
    all.map(|slot| (slot.header.mark.index, slot.header.owner)).collect()
}

#[test]
fn space_is_given_back_and_survivors_keep_their_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let mut shards = open(dir.path());
    shards.adopt(shard(), alone(1)).unwrap();
    for owner in 1..=200 {
        shards.append(&[draft(Kind::Calls, owner)]).unwrap();
    }
    for owner in (1..=200).filter(|owner| owner % 50 != 0) {
        shards.append(&[Draft { body: [Bytes::new(), Bytes::new()], ..draft(Kind::Dropped, owner) }]).unwrap();
    }
    let (before, tail, front) = (live(&shards), shards.replica(shard()).tail(), shards.log().front());
    assert_eq!(before, [(51, 50), (101, 100), (151, 150), (201, 200)]);

    // Carried forward first; released only when nobody reads at the old places any more.
    let old = shards.index_of(shard()).get(51).unwrap().position;
    shards.collect().unwrap();
    assert!(shards.log().read(old).is_ok());
    shards.collect().unwrap();
    assert!(shards.log().read(old).is_err());
    assert!(shards.log().front() > front);
    let new = shards.index_of(shard()).get(51).unwrap().position;
    assert_eq!(&shards.log().read(new).unwrap()[HEADER_BYTES..HEADER_BYTES + 4], b"head");

    // After a restart the same is there, and no index is given twice, though the last records are gone.
    drop(shards);
    let mut shards = open(dir.path());
    assert_eq!((live(&shards), shards.replica(shard()).tail()), (before, tail));
    shards.adopt(shard(), alone(1)).unwrap();
    assert_eq!(shards.append(&[draft(Kind::Calls, 9)]).unwrap()[0].index, tail.index + 1);
}

#[test]
fn a_rejoined_node_is_cut_back_and_stays_so_after_a_restart() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut shards = open(dir.path());
    shards.adopt(shard(), alone(1)).unwrap();
    for owner in 1..=3 {
        shards.append(&[draft(Kind::Calls, owner)]).unwrap();
    }
    // Another home began epoch 2 after record 2, and has other records since.
    let options = Options { node: node(2), machine_restarted: false, segment_bytes: 64 << 10, min_copies: 1 };
    let mut home = Shards::open(other.path(), &options, None, |_, _| ()).unwrap();
    let joining = |epoch, home, other| Shard { epoch, home, in_sync: vec![home], joining: vec![other] };
    home.adopt(shard(), joining(1, node(1), node(2))).unwrap();
    let mut feed = shards.feed(node(2), shard(), Mark::default(), u64::MAX).unwrap();
    feed.records.truncate(2);
    home.receive(&feed).unwrap();
    home.adopt(shard(), joining(2, node(2), node(1))).unwrap();
    home.append(&[draft(Kind::Calls, 99)]).unwrap();

    shards.adopt(shard(), joining(2, node(2), node(1))).unwrap();
    let feed = home.feed(node(1), shard(), shards.replica(shard()).tail(), u64::MAX).unwrap();
    assert_eq!(shards.receive(&feed).unwrap().far.written, home.replica(shard()).tail().index);
    let same = live(&home);
    assert_eq!((live(&shards), &same[..]), (same.clone(), &[(2, 1), (4, 99)][..]));
    drop(shards);
    let shards = open(dir.path());
    assert_eq!((live(&shards), shards.replica(shard()).tail()), (same, home.replica(shard()).tail()));
}

#[test]
fn a_node_that_was_away_hears_which_records_died_and_remembers() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut home = open(dir.path());
    let joining = |epoch| Shard { epoch, home: node(1), in_sync: vec![node(1)], joining: vec![node(2)] };
    home.adopt(shard(), joining(1)).unwrap();
    let objects = |owner| draft(Kind::Objects, owner);
    let dead = |owner| Draft { body: [Bytes::new(), Bytes::new()], ..draft(Kind::Dropped, owner) };
    home.append(&[objects(1), objects(2), objects(3)]).unwrap();
    let options = Options { node: node(2), machine_restarted: false, segment_bytes: 64 << 10, min_copies: 1 };
    let mut away = Shards::open(other.path(), &options, None, |_, _| ()).unwrap();
    away.adopt(shard(), joining(1)).unwrap();
    away.receive(&home.feed(node(2), shard(), Mark::default(), u64::MAX).unwrap()).unwrap();
    let owners = |shards: &Shards| {
        let slots = shards.index_of(shard()).iter().filter(|slot| slot.header.kind == Kind::Objects);
        slots.map(|slot| slot.header.owner).collect::<Vec<_>>()
    };
    assert_eq!(owners(&away), [1, 2, 3]);

    // Away when one died, it has the record still, and nothing that it lacks says so.
    home.append(&[dead(2), objects(4)]).unwrap();
    let tail = away.replica(shard()).tail();
    let feed = home.feed(node(2), shard(), tail, u64::MAX).unwrap();
    assert_eq!((feed.end(), feed.is_empty()), (home.replica(shard()).tail(), false));
    away.receive(&feed).unwrap();
    assert_eq!((owners(&away), away.replica(shard()).tail()), (vec![1, 3, 4], feed.end()));
    let last = home.feed(node(2), shard(), feed.end(), u64::MAX).unwrap();
    assert!(last.is_empty() && last.end() == feed.end());
    let end = away.log().end();
    away.receive(&last).unwrap();
    assert_eq!(away.log().end(), end, "what says nothing new is not written");
    drop(away);
    let away = Shards::open(other.path(), &options, None, |_, _| ()).unwrap();
    assert_eq!((owners(&away), away.replica(shard()).tail()), (vec![1, 3, 4], feed.end()));
}
