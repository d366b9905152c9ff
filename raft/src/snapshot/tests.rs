use openraft::{CommittedLeaderId, LogId, StoredMembership};
use shoal_state::Command;

use super::*;

fn meta(index: u64) -> SnapshotMeta {
    let last_log_id = Some(LogId::new(CommittedLeaderId::new(1, 1), index));
    SnapshotMeta { last_log_id, last_membership: StoredMembership::default(), snapshot_id: format!("1-{index}") }
}

fn contents(value: &str) -> Contents {
    let mut contents = Contents::default();
    contents.state.apply(&Command::SetSetting { key: "k".into(), value: value.into() }).unwrap();
    contents
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_snapshot_reads_back_and_the_one_before_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, none) = Folder::open(dir.path(), 0).unwrap();
    assert!(none.is_none());
    for index in [10, 20, 30] {
        folder.write(&meta(index), &contents(&index.to_string())).unwrap();
    }
    assert_eq!(names(dir.path()).len(), KEPT);
    fs::write(dir.path().join("7.part"), "half").unwrap();
    let (_, newest) = Folder::open(dir.path(), 31).unwrap();
    assert_eq!(newest, Some((meta(30), contents("30"))));
    assert_eq!(names(dir.path()).len(), KEPT, "what a former process left half-written is still there");
}

#[test]
fn an_older_snapshot_that_is_finished_late_does_not_take_the_newest_ones_place() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = Folder::open(dir.path(), 0).unwrap();
    folder.write(&meta(20), &contents("20")).unwrap();
    folder.write(&meta(10), &contents("10")).unwrap();
    assert_eq!(folder.current().unwrap().unwrap().0, meta(20));
    assert_eq!(names(dir.path()).len(), 1);
}

#[test]
fn a_damaged_snapshot_is_set_aside_for_the_one_before_if_the_log_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, _) = Folder::open(dir.path(), 0).unwrap();
    folder.write(&meta(10), &contents("10")).unwrap();
    folder.write(&meta(20), &contents("20")).unwrap();
    let newest = dir.path().join(name(&meta(20)));
    let mut bytes = fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&newest, bytes).unwrap();
    assert!(matches!(folder.current(), Err(Error::Damaged { .. })), "a damaged snapshot would be sent to a peer");
    let copy = tempfile::tempdir().unwrap();
    for name in names(dir.path()) {
        fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let (_, found) = Folder::open(dir.path(), 11).unwrap();
    assert_eq!(found, Some((meta(10), contents("10"))));
    assert!(names(dir.path()).iter().any(|name| name.ends_with(DAMAGED_SUFFIX)));
    assert!(matches!(Folder::open(copy.path(), 12), Err(Error::Gap { first: 12 })));
}

#[test]
fn every_torn_snapshot_is_known_as_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one");
    write_to(&File::create(&path).unwrap(), &meta(10), &contents("10")).unwrap();
    let whole = fs::read(&path).unwrap();
    assert!(parse(&path, &whole).is_ok());
    for length in 0..whole.len() {
        let torn = parse(&path, &whole[..length]).map(drop);
        assert!(matches!(torn, Err(Error::Damaged { .. })), "{length} of {} bytes: {torn:?}", whole.len());
    }
}

#[test]
fn a_snapshot_of_a_newer_version_or_format_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name(&meta(10)));
    let mut newer = contents("10");
    newer.state.apply(&Command::SetVersion { version: VERSION_KNOWN + 1 }).unwrap();
    write_to(&File::create(&path).unwrap(), &meta(10), &newer).unwrap();
    assert!(matches!(Folder::open(dir.path(), 0), Err(Error::Version { .. })));
    let mut bytes = fs::read(&path).unwrap();
    bytes[MAGIC.len()] = FORMAT + 1;
    let summed = bytes.len() - 4;
    let sum = crc32fast::hash(&bytes[..summed]).to_le_bytes();
    bytes[summed..].copy_from_slice(&sum);
    fs::write(&path, bytes).unwrap();
    assert!(matches!(Folder::open(dir.path(), 0), Err(Error::Format { .. })));
    assert!(path.exists());
}
