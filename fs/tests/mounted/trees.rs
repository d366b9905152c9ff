//! Names and attributes.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use shoal_fs::StoreSource;
use shoal_storage::manifest::Xattrs;
use shoal_storage::store::{self, Store};

use super::*;

/// A tree with every kind of entry and every attribute.
fn everything(far: &Far) -> Tree {
    let mut all = far.tree(&[("a/b", "text"), ("a/sub/deep", "x"), ("empty", "")]);
    let mut put = |path: &[u8], kind, mode| {
        all.insert(&Path::parse(path).unwrap(), Entry::new(kind, mode)).unwrap();
    };
    put(b"a/hard", Kind::Hardlink { to: p("a/b") }, 0);
    put(b"hard too", Kind::Hardlink { to: p("a/b") }, 0);
    put(b"link", Kind::Symlink { target: b"a/../a/b".into() }, 0o777);
    put(b"bytes\xff\xfe\n", Kind::Symlink { target: b"\xfd nowhere".into() }, 0o777);
    put(b"dev/char", Kind::Char { rdev: libc::makedev(1, 3) }, 0o666);
    put(b"dev/block", Kind::Block { rdev: libc::makedev(259, 70_000) }, 0o660);
    put(b"dev/fifo", Kind::Fifo, 0o600);
    put(b"dev/socket", Kind::Socket, 0o755);
    put(b"tmp", Kind::Dir, 0o1777);
    all.edit(|path, attributes| {
        *attributes.uid = 1000 + path.as_bytes().len() as u32;
        *attributes.gid = 7;
        *attributes.mtime_ns = 1_600_000_000_123_456_789;
        match path.as_bytes() {
            b"a/b" => {
                *attributes.mode = 0o4751;
                let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
                *attributes.xattrs = Xattrs::from([(b"security.capability".to_vec(), capability), (b"user.note".into(), b"n\0n".into())]);
            }
            b"empty" => *attributes.mtime_ns = -1_500_000_000,
            _ => {}
        }
    });
    all
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let tree = everything(&mount.far);
    let dir = mount.bind("all", &tree);
    // The walk looks at everything that lstat, listxattr, readdir, readlink and read say.
    let objects = Memory::default();
    assert_eq!(Tree::from_dir(&dir, &objects).unwrap(), tree);
    assert_eq!(fs::read(dir.join("hard too")).unwrap(), b"text");
    assert_eq!(fs::read(dir.join("link")).unwrap(), b"text");
    assert_eq!(fs::metadata(dir.join("a/b")).unwrap().nlink(), 3);
    assert_eq!(fs::metadata(dir.join("empty")).unwrap().size(), 0);
    assert!(!dir.join(OsStr::from_bytes(b"a/none\xff")).exists());
    assert_eq!(fs::read(dir.join("a")).unwrap_err().raw_os_error(), Some(libc::EISDIR));
    assert_eq!(fs::write(dir.join("a/new"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
}

#[test]
fn attributes_that_are_not_there_are_said_so() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let plain = mount.bind("plain", &mount.far.tree(&[("f", "x")]));
    let ask = |path: &HostPath, buffer: &mut [u8]| rustix::fs::lgetxattr(path, "user.note", buffer);
    assert_eq!(ask(&plain.join("f"), &mut [0; 9]), Err(rustix::io::Errno::NODATA));
    let rich = mount.bind("rich", &everything(&mount.far));
    assert_eq!(ask(&rich.join("a/b"), &mut [0; 9]), Ok(3));
    assert_eq!(ask(&rich.join("a/b"), &mut [0; 2]), Err(rustix::io::Errno::RANGE));
}

#[test]
fn a_large_directory_is_listed_whole_and_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut tree = Tree::new();
    let file = mount.far.file(b"same");
    let names: HashSet<String> = (0..20_000).map(|number| format!("entry-{number}-with-a-name-of-some-length")).collect();
    names.iter().for_each(|name| drop(tree.insert(&p("big").join(name.as_bytes()), file.clone()).unwrap()));
    let dir = mount.bind("t", &tree).join("big");
    for _again_from_the_cache in 0..2 {
        let listed: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).collect();
        assert_eq!(listed.len(), names.len());
        assert!(listed.iter().all(|entry| names.contains(entry.file_name().to_str().unwrap())));
        let inodes: HashSet<_> = listed.iter().map(|entry| entry.metadata().unwrap().ino()).collect();
        assert_eq!(inodes.len(), names.len(), "equal files of one tree are files of their own");
    }
}

fn stat(path: &HostPath) -> Metadata {
    fs::symlink_metadata(path).unwrap()
}

#[test]
fn equal_files_of_two_trees_are_one_inode_and_read_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let one = mount.bind("one", &mount.far.tree(&[("lib/same", "shared text"), ("lib/twin", "shared text"), ("own", "1")]));
    let mut other = mount.far.tree(&[("else/same", "shared text"), ("own", "2")]);
    let other_dir = mount.bind("other", &other);
    assert_eq!(stat(&one.join("lib/same")).ino(), stat(&other_dir.join("else/same")).ino());
    assert_ne!(stat(&one.join("lib/same")).ino(), stat(&one.join("lib/twin")).ino());
    assert_ne!(stat(&one.join("own")).ino(), stat(&other_dir.join("own")).ino());

    assert_eq!(fs::read(one.join("lib/same")).unwrap(), b"shared text");
    let asked = mount.trees().chunks_asked();
    mount.far.hold(Digest::of(b"shared text"));
    assert_eq!(fs::read(other_dir.join("else/same")).unwrap(), b"shared text");
    assert_eq!(mount.trees().chunks_asked(), asked);

    // Another owner makes it another file, as does another name.
    other.edit(|_, attributes| *attributes.uid = 5);
    other.insert(&p("else/link"), Entry::new(Kind::Hardlink { to: p("else/same") }, 0)).unwrap();
    let third = mount.bind("third", &other);
    assert_ne!(stat(&one.join("lib/same")).ino(), stat(&third.join("else/same")).ino());
    assert_eq!(stat(&third.join("else/link")).ino(), stat(&third.join("else/same")).ino());
}

#[test]
fn trees_come_and_go() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let top = mount.trees().mountpoint().to_owned();
    assert!(!top.join("a").exists(), "and the kernel must not remember that");
    let listed = || fs::read_dir(&top).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>();
    assert!(listed().is_empty());
    let a = mount.bind("a", &mount.far.tree(&[("f", "first"), ("same", "kept")]));
    let b = mount.bind("b", &mount.far.tree(&[("same", "kept")]));
    assert_eq!(listed(), ["a", "b"]);
    assert_eq!(mount.trees().names(), ["a", "b"]);
    assert!(matches!(mount.trees().bind("a", &Tree::new()), Err(shoal_fs::Error::NameTaken { .. })));
    assert!(matches!(mount.trees().bind("a/b", &Tree::new()), Err(shoal_fs::Error::BadName { .. })));

    let open = fs::File::open(a.join("f")).unwrap();
    assert_eq!(fs::read(a.join("same")).unwrap(), b"kept");
    assert!(mount.trees().unbind("a") && !mount.trees().unbind("a"));
    assert!(!a.exists() && !a.join("f").exists());
    assert_eq!(io::read_to_string(&open).unwrap_err().raw_os_error(), Some(libc::ESTALE));
    assert_eq!(fs::read(b.join("same")).unwrap(), b"kept");
    assert_eq!(listed(), ["b"]);

    let a = mount.bind("a", &mount.far.tree(&[("f", "second")]));
    assert_eq!(fs::read(a.join("f")).unwrap(), b"second");
}

#[test]
fn what_a_former_process_left_is_taken_off() {
    if !can_mount() {
        return;
    }
    let mut mount = Mount::new();
    let dir = mount.bind("t", &mount.far.tree(&[("f", "x")]));
    let top = mount.trees().mountpoint().to_owned();
    mount.trees().abort().unwrap();
    assert_eq!(fs::read_dir(&top).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    // The former process is gone without a word; only its mount is there.
    std::mem::forget(mount.trees.take());

    mount.trees = Some(Trees::mount(&top, mount.far.clone()).unwrap());
    assert_eq!(mount.bind("t", &mount.far.tree(&[("f", "y")])), dir);
    assert_eq!(fs::read(dir.join("f")).unwrap(), b"y");
    drop(mount.trees.take());
    assert!(fs::read_dir(mount.dir.path().join("trees")).unwrap().next().is_none(), "an empty folder is left");
}

#[test]
fn the_store_of_a_node_is_a_source() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store"), store::Options::default()).unwrap();
    let far = Far::default();
    let (from, objects) = (dir.path().join("from"), Memory::default());
    fs::create_dir(&from).unwrap();
    everything(&far).to_dir(&from, &far.objects).unwrap();
    let digest = Tree::from_dir(&from, &store).unwrap().write(&store).unwrap();

    let trees = Trees::mount(&dir.path().join("mount"), Arc::new(StoreSource::new(store.clone()))).unwrap();
    let shown = trees.bind("t", &Tree::read(&store, &digest).unwrap()).unwrap();
    assert_eq!(Tree::from_dir(&shown, &objects).unwrap().write(&objects).unwrap(), digest);
    assert_eq!(trees.chunks_asked(), 0, "all was at hand");
}

#[test]
fn the_kernel_reads_ahead_a_whole_chunk() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let device = stat(mount.trees().mountpoint()).dev();
    let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
    let Ok(found) = fs::read_to_string(&path) else {
        eprintln!("skipped: there is no {path}");
        return;
    };
    assert_eq!(found.trim(), "1024");
}

#[test]
fn space_is_that_of_the_trees() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let dir = mount.bind("t", &mount.far.tree(&[("f", &"x".repeat(5000))]));
    let found = rustix::fs::statvfs(&dir).unwrap();
    assert_eq!((found.f_blocks, found.f_bfree, found.f_files, found.f_namemax), (2, 0, 2, 255));
}
