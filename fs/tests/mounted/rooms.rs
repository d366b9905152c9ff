//! Rooms: directories that show a tree later.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

/// What is mounted on in the rooms of these tests, as empty things.
fn empty(far: &Far) -> Tree {
    let mut empty = far.tree(&[("etc/hosts", "")]);
    for dir in ["mnt", "mnt/place"] {
        empty.insert(&p(dir), Entry::dir()).unwrap();
    }
    empty
}

fn full(far: &Far) -> Tree {
    let mut full = far.tree(&[("a/b", "text"), ("etc/hosts", "of the tree"), ("etc/passwd", "root"), ("mnt/place/hidden", "x")]);
    full.edit(|path, attributes| {
        if path == &p("mnt") {
            *attributes.mode = 0o711;
        }
    });
    full
}

/// A bind mount that goes with the test.
struct Mounted(PathBuf);

impl Mounted {
    fn over(place: &HostPath, what: &HostPath) -> Self {
        rustix::mount::mount_bind(what, place).unwrap();
        Self(place.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_filled_room_shows_the_tree_and_keeps_what_was_mounted_in_it() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let bound = mount.bind("full", &full(&mount.far));
    let room = mount.trees().open_room("room", &empty(&mount.far)).unwrap();
    // All of this the kernel knows by now, and the mounts keep it known.
    assert!(!room.join("a").exists() && !room.join("etc/passwd").exists());
    assert_eq!(fs::read_dir(&room).unwrap().count(), 2);
    let mode = |path: &str| fs::metadata(room.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("mnt"), 0o755);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("seen"), "outside").unwrap();
    let _dir = Mounted::over(&room.join("mnt/place"), outside.path());
    let _file = Mounted::over(&room.join("etc/hosts"), &outside.path().join("seen"));
    let root = fs::metadata(&room).unwrap().ino();

    mount.trees().fill("room", "full").unwrap();
    assert_eq!(fs::read(room.join("a/b")).unwrap(), b"text");
    assert_eq!(fs::read(room.join("etc/passwd")).unwrap(), b"root");
    assert_eq!(fs::read(room.join("etc/hosts")).unwrap(), b"outside");
    assert_eq!(fs::read(room.join("mnt/place/seen")).unwrap(), b"outside");
    assert_eq!(fs::read_dir(&room).unwrap().count(), 3);
    assert_eq!(fs::read_dir(room.join("etc")).unwrap().count(), 2);
    assert_eq!(mode("mnt"), 0o711, "attributes are the tree's");
    assert_eq!(fs::metadata(&room).unwrap().ino(), root);
    assert!(!room.join("none").exists());
    // Files are shared with the tree, directories are not: the kernel wants one name for each.
    let ino = |dir: &HostPath, path: &str| fs::metadata(dir.join(path)).unwrap().ino();
    assert_eq!(ino(&room, "a/b"), ino(&bound, "a/b"));
    assert_ne!(ino(&room, "a"), ino(&bound, "a"));
    assert_eq!(fs::canonicalize(room.join("a/b/../../a")).unwrap_err().raw_os_error(), Some(libc::ENOTDIR));
    assert_eq!(fs::canonicalize(room.join("a/..")).unwrap(), room);
}

#[test]
fn rooms_of_one_tree_come_and_go_by_themselves() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    mount.bind("full", &full(&mount.far));
    let rooms: Vec<_> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let room = mount.trees().open_room(name, &empty(&mount.far)).unwrap();
            mount.trees().fill(name, "full").unwrap();
            assert_eq!(fs::read(room.join("a/b")).unwrap(), b"text");
            room
        })
        .collect();
    assert!(mount.trees().unbind("full"), "rooms outlive what they were filled with");
    assert_eq!(fs::read(rooms[0].join("etc/passwd")).unwrap(), b"root");
    assert!(mount.trees().unbind("one"));
    assert!(!rooms[0].exists());
    assert_eq!(fs::read(rooms[1].join("a/b")).unwrap(), b"text");
    assert!(mount.trees().unbind("two"));
    assert!(mount.trees().names().is_empty());
}

#[test]
fn a_tree_without_the_places_does_not_fit() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut linked = full(&mount.far);
    linked.remove(&p("mnt/place/hidden")).unwrap();
    linked.remove(&p("mnt/place")).unwrap();
    linked.insert(&p("mnt/place"), Entry::new(Kind::Symlink { target: b"../a".into() }, 0o777)).unwrap();
    mount.bind("linked", &linked);
    mount.bind("bare", &mount.far.tree(&[("a/b", "text")]));
    let room = mount.trees().open_room("room", &empty(&mount.far)).unwrap();
    for tree in ["linked", "bare", "none"] {
        let error = mount.trees().fill("room", tree).unwrap_err();
        assert!(error.to_string().contains(&format!("cannot show the tree {tree:?}")), "{error}");
    }
    assert!(room.join("mnt/place").is_dir(), "and the room is as it was");
}
