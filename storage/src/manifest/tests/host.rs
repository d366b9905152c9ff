//! Directories of the host. These tests make devices, so they need root.

use std::os::unix::fs::MetadataExt;

use super::*;

fn everything(objects: &Memory) -> Tree {
    let mut all = tree("a/b=1@4755 a/c==a/b d/@1777 s->a/b empty/ big=x z==s", objects);
    for (name, kind) in [
        ("char", Kind::Char { rdev: libc::makedev(1, 3) }),
        ("block", Kind::Block { rdev: libc::makedev(300, 70_000) }),
        ("fifo", Kind::Fifo),
        ("socket", Kind::Socket),
    ] {
        all.insert(&p("dev").join(name.as_bytes()), Entry::new(kind, 0o640)).unwrap();
    }
    all.insert(&p("dev").join(b"\xffbytes"), Entry::symlink(&b"\xfe"[..])).unwrap();
    all.edit(|path, attributes| {
        (*attributes.uid, *attributes.gid) = (12, 34);
        *attributes.mtime_ns = 1_600_000_000_123_456_789 - path.as_bytes().len() as i64;
        if path.as_bytes() == b"a/b" {
            *attributes.xattrs = Xattrs::from([(b"user.note".into(), b"any\0bytes\n".into())]);
        }
    });
    all
}

#[test]
fn a_directory_becomes_a_tree_and_back() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making devices and owners needs root");
        return;
    }
    let (objects, dir) = (Memory::default(), tempfile::tempdir().unwrap());
    let all = everything(&objects);
    all.to_dir(dir.path(), &objects).unwrap();
    assert_eq!(Tree::from_dir(dir.path(), &objects).unwrap(), all);
    assert_eq!(dir.path().join("a/b").metadata().unwrap().nlink(), 2);
}

#[test]
fn what_cannot_be_read_is_said() {
    let objects = Memory::default();
    let error = Tree::from_dir(std::path::Path::new("/nonexistent/dir"), &objects).unwrap_err();
    assert_eq!(error.to_string(), "cannot find /nonexistent/dir");
}
