//! Layers: whiteouts of both kinds, and archives with everything.

use ::tar::{Builder, EntryType, Header};

use super::*;

/// Type, name, link or bytes, PAX records.
type Told<'a> = (EntryType, &'a str, &'a [u8], &'a [(&'a str, &'a [u8])]);

/// Appends a member: its type, name, link or bytes, and PAX records.
fn add(builder: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, more: &[u8], records: &[(&str, &[u8])]) {
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    match kind {
        EntryType::Link | EntryType::Symlink => {
            builder.append_link(&mut header, name, std::str::from_utf8(more).unwrap()).unwrap();
        }
        _ => {
            header.set_size(more.len() as u64);
            builder.append_data(&mut header, name, more).unwrap();
        }
    }
}

fn layer(objects: &Memory, members: &[Told<'_>]) -> Vec<Change> {
    let mut builder = Builder::new(Vec::new());
    members.iter().for_each(|(kind, name, more, records)| add(&mut builder, *kind, name, more, records));
    from_tar(&builder.into_inner().unwrap()[..], objects).unwrap()
}

#[test]
fn whiteouts_of_a_registry_layer_hide_only_what_is_below() {
    let objects = Memory::default();
    let mut below = tree("a/old=1 a/keep/x=1 b/gone=1 b/stays=1 c=1", &objects);
    let changes = layer(
        &objects,
        &[
            (EntryType::Regular, "a/new", b"2", &[]),
            (EntryType::Regular, "a/.wh..wh..opq", b"", &[]),
            (EntryType::Regular, "b/.wh.gone", b"", &[]),
            (EntryType::Regular, ".wh.c", b"", &[]),
            (EntryType::Regular, "c", b"again", &[]),
            (EntryType::Regular, ".wh..wh.plnk", b"", &[]),
            (EntryType::Regular, "b/.wh.never-was", b"", &[]),
        ],
    );
    below.apply_layer(changes).unwrap();
    assert_tree(&below, "a/ a/new=2 b/ b/stays=1 c=again", &objects);
}

#[test]
fn whiteouts_of_an_overlay_mean_the_same() {
    let objects = Memory::default();
    let mut below = tree("a/old=1 b/gone=1 b/gone-too=1 b/stays=1", &objects);
    let opaque: &[(&str, &[u8])] = &[("SCHILY.xattr.trusted.overlay.opaque", b"y")];
    let changes = layer(
        &objects,
        &[
            (EntryType::Directory, "a", b"", opaque),
            (EntryType::Regular, "a/new", b"2", &[]),
            (EntryType::Directory, "fresh", b"", opaque),
            (EntryType::Char, "b/gone", b"", &[]),
            // gVisor makes one device and links it to the other places.
            (EntryType::Link, "./b/gone-too", b"./b/gone", &[]),
        ],
    );
    below.apply_layer(changes).unwrap();
    assert_tree(&below, "a/ a/new=2 b/ b/stays=1 fresh/", &objects);
    assert!(below.iter().all(|(_, entry)| entry.xattrs.is_empty()));
}

#[test]
fn an_archive_with_everything_is_read_as_written() {
    let objects = Memory::default();
    let long = "n".repeat(200) + "/" + &"m".repeat(120);
    let changes = layer(
        &objects,
        &[
            (EntryType::Regular, "no/parents/here", b"deep", &[("mtime", b"-1.25"), ("uid", b"3000000")]),
            (EntryType::Link, "early", b"no/later", &[]),
            (EntryType::Regular, "no/later", b"late", &[]),
            (EntryType::Regular, &long, b"long", &[]),
            (EntryType::Symlink, "s", long.as_bytes(), &[]),
            (EntryType::Regular, "cap", b"", &[("SCHILY.xattr.security.capability", b"\x01\n20 \n=\n"), ("size", b"0")]),
        ],
    );
    let mut all = Tree::new();
    all.apply_layer(changes).unwrap();
    let here = all.get(&p("no/parents/here")).unwrap();
    assert_eq!((here.mtime_ns, here.uid), (-1_250_000_000, 3_000_000));
    assert_eq!(all.get(&p("cap")).unwrap().xattrs[&b"security.capability"[..]], b"\x01\n20 \n=\n");
    let (n, m) = long.split_once('/').unwrap();
    let expected = format!("cap= early=late {n}/ {n}/{m}=long no/ no/later==early no/parents/ no/parents/here=deep s->{long}");
    assert_tree(&all, &expected, &objects);
}

#[test]
fn a_tree_survives_its_archive() {
    let objects = Memory::default();
    let mut all = tree("a/b=1@4755 a/c==a/b d/@1777 s->a", &objects);
    all.insert(&p("dev/null"), Entry::new(Kind::Char { rdev: libc::makedev(1, 3) }, 0o666)).unwrap();
    all.insert(&p("dev/sda"), Entry::new(Kind::Block { rdev: libc::makedev(8, 0) }, 0o660)).unwrap();
    let mut fifo = Entry::new(Kind::Fifo, 0o600);
    (fifo.mtime_ns, fifo.xattrs) = (1_700_000_000_000_000_001, Xattrs::from([(b"user.x".into(), b"a\nb".into())]));
    all.insert(&p("fifo"), fifo).unwrap();
    let mut archive = Vec::new();
    all.to_tar(&mut archive, &objects).unwrap();
    let mut back = Tree::new();
    back.apply_layer(from_tar(&archive[..], &objects).unwrap()).unwrap();
    assert_eq!(back, all);
}

#[test]
fn a_sparse_file_gets_its_zeros() {
    let objects = Memory::default();
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("sparse").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(3);
    let gnu = header.as_gnu_mut().unwrap();
    let octal = |field: &mut [u8; 12], number: u64| field.copy_from_slice(format!("{number:011o}\0").as_bytes());
    octal(&mut gnu.sparse[0].offset, 4);
    octal(&mut gnu.sparse[0].numbytes, 3);
    octal(&mut gnu.realsize, 10);
    header.set_cksum();
    let mut archive = header.as_bytes().to_vec();
    archive.extend_from_slice(b"mid");
    archive.resize(512 * 4, 0);
    let changes = from_tar(&archive[..], &objects).unwrap();
    let [Change::Put(_, Entry { kind: Kind::File { size, content }, .. })] = &changes[..] else { panic!("{changes:?}") };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut read_content(*size, content, &objects).unwrap(), &mut bytes).unwrap();
    assert_eq!(bytes, b"\0\0\0\0mid\0\0\0");
}

#[test]
fn a_broken_archive_says_where() {
    let objects = Memory::default();
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, EntryType::Regular, "fine", b"1", &[]);
    add(&mut builder, EntryType::Regular, "cut", &[1; 5000], &[]);
    let archive = builder.into_inner().unwrap();
    let message = |bytes: &[u8]| from_tar(bytes, &objects).unwrap_err().to_string();
    assert_eq!(message(&archive[..3000]), r#"cannot read the content of cut"#);
    let mut damaged = archive.clone();
    damaged[1024 + 5] ^= 1;
    assert_eq!(message(&damaged), r#"the archive cannot be read after entry "fine""#);
    let out = [("path", &b"../etc/passwd"[..])];
    let mut builder = Builder::new(Vec::new());
    add(&mut builder, EntryType::Regular, "x", b"", &out);
    assert!(message(&builder.into_inner().unwrap()).contains("has a name `..`"));
}
