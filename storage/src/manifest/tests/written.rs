//! Trees as objects.

use std::collections::{BTreeMap, HashSet};

use super::*;

/// A tree of so many files, one hundred in a directory, made without reading anything.
fn many(files: u32) -> Tree {
    let mut entries = BTreeMap::from(["", "usr", "usr/lib", "usr/lib/python3"].map(|dir| (p(dir), Entry::dir())));
    for number in 0..files {
        let dir = p(&format!("usr/lib/python3/package-{:04}", number / 100));
        let digest = Digest::of(&number.to_le_bytes());
        let kind = Kind::File { size: 7, content: Content::Chunks(vec![digest]) };
        entries.insert(dir.join(format!("module_{number:06}.py").as_bytes()), Entry::new(kind, 0o644));
        if number % 100 == 0 {
            entries.insert(dir, Entry::dir());
        }
    }
    Tree::from_entries(entries).unwrap()
}

fn change(tree: &mut Tree, path: &str) {
    let content = Content::Chunks(vec![Digest::of(b"changed")]);
    tree.insert(&p(path), Entry::new(Kind::File { size: 8, content }, 0o644)).unwrap();
}

#[test]
fn one_changed_file_of_many_writes_one_leaf_and_the_index() {
    let objects = Memory::default();
    let mut tree = many(100_000);
    let before = tree.write(&objects).unwrap();
    let leaves = objects.len();
    assert!((100..400).contains(&leaves), "{leaves} objects");
    let path = "usr/lib/python3/package-0500/module_050033.py";
    change(&mut tree, path);
    let after = tree.write(&objects).unwrap();
    assert!((2..=3).contains(&(objects.len() - leaves)), "{} objects more", objects.len() - leaves);

    let found = diff(&objects, &before, &after).unwrap();
    let [Difference::Changed { path: at, before: old, after: new }] = &found[..] else { panic!("{found:?}") };
    assert_eq!((at, old.content_bytes(), new.content_bytes()), (&p(path), 7, 8));
    assert_eq!(Tree::read(&objects, &after).unwrap(), tree);
    assert_eq!(summary(&objects, &after).unwrap(), Summary { entries: tree.len() as u64, content_bytes: 700_001 });
}

#[test]
fn what_both_trees_share_is_not_read() {
    let objects = Memory::default();
    let mut tree = many(20_000);
    let before = tree.write(&objects).unwrap();
    change(&mut tree, "usr/lib/python3/package-0007/new.py");
    tree.remove(&p("usr/lib/python3/package-0100")).unwrap();
    let after = tree.write(&objects).unwrap();
    let mut seen = [HashSet::new(), HashSet::new()];
    for (digest, seen) in [before, after].iter().zip(&mut seen) {
        reachable(&objects, digest, &mut |object, _| seen.insert(object)).unwrap();
    }
    for shared in seen[0].intersection(&seen[1]) {
        objects.remove(shared);
    }
    let found = diff(&objects, &before, &after).unwrap();
    assert_eq!(found.iter().filter(|one| matches!(one, Difference::Removed(..))).count(), 101);
    assert_eq!(found.iter().filter(|one| matches!(one, Difference::Added(..))).count(), 1);
    assert_eq!(found.len(), 102);
    assert!(diff(&objects, &after, &after).unwrap().is_empty());
}

#[test]
fn all_that_a_tree_needs_is_reachable() {
    let objects = Memory::default();
    let mut all = tree("a=one b=two c==a", &objects);
    let long = io::Read::take(io::repeat(5), (65 << 20) - 3);
    let (size, content) = put_content(long, "much", &objects).unwrap();
    assert!(matches!(&content, Content::Lists(lists) if lists.len() == 1));
    assert!(matches!(content.find(64), Some(Place::InList { index: 64, .. })));
    all.insert(&p("long"), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
    let digest = all.write(&objects).unwrap();
    let mut seen = HashSet::new();
    reachable(&objects, &digest, &mut |object, _| seen.insert(object)).unwrap();
    assert_eq!(seen.len(), objects.len());
    assert_eq!(all.read_file(&p("long"), u64::MAX, &objects).unwrap().unwrap().len() as u64, size);
    assert_eq!(all.read_file(&p("long"), 100, &objects).unwrap(), None);
}

#[test]
fn the_name_of_a_small_tree_stays_as_it_is() {
    // A changed encoding would make every image be built again: this name may change only with the magic bytes.
    let objects = Memory::default();
    let mut all = tree("bin->usr/bin etc/passwd=root usr/bin/sh=#! usr/bin/dash==usr/bin/sh", &objects);
    all.insert(&p("dev/null"), Entry::new(Kind::Char { rdev: 259 }, 0o666)).unwrap();
    assert_eq!(all.write(&objects).unwrap().to_string(), "3d2fbfeab8d027973c09b418f15d6668dfc151deb9a34a0324f03026c371c568");
}

#[test]
fn objects_that_are_no_tree_are_refused() {
    let objects = Memory::default();
    let missing = Digest::of(b"not there");
    assert!(matches!(Tree::read(&objects, &missing), Err(Error::Get { digest, .. }) if digest == missing));
    let other = objects.put(b"something else").unwrap();
    assert!(matches!(Tree::read(&objects, &other), Err(Error::Malformed { .. })));
}

#[test]
fn names_of_any_bytes_survive() {
    let objects = Memory::default();
    let mut all = Tree::new();
    for name in [&b"\xff\xfe"[..], b"new\nline", b"\x01", b"sp ace", b"-"] {
        all.insert(&p("d").join(name), Entry::symlink(name)).unwrap();
    }
    let digest = all.write(&objects).unwrap();
    assert_eq!(Tree::read(&objects, &digest).unwrap(), all);
}

mod any_tree {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Put(&'static str, u8),
        Link(&'static str, &'static str),
        Remove(&'static str),
    }

    /// What can be put; see [`entry`].
    const ALL: &[u8] = &[0, 1, 2, 3, 4, 5];
    const NO_SYMLINKS: &[u8] = &[0, 3, 4, 5];

    fn act(what: &'static [u8]) -> impl Strategy<Value = Act> {
        let path = || prop::sample::select(vec!["a", "b", "a/x", "a/y", "b/x", "b/y/z", "c", "c/x"]);
        prop_oneof![
            (path(), prop::sample::select(what)).prop_map(|(path, what)| Act::Put(path, what)),
            (path(), path()).prop_map(|(path, to)| Act::Link(path, to)),
            path().prop_map(Act::Remove),
        ]
    }

    fn entry(what: u8, objects: &Memory) -> Entry {
        match what {
            0 => Entry::dir(),
            1 => Entry::symlink("a"),
            2 => Entry::symlink("../b"),
            3 => Entry::new(Kind::Fifo, 0o600),
            _ => file(&what.to_string(), objects),
        }
    }

    /// Does what can be done of these acts, and calls `check` after each.
    fn grow(acts: Vec<Act>, objects: &Memory, mut check: impl FnMut(&Tree)) -> Tree {
        let mut all = Tree::new();
        for act in acts {
            let _refused = match act {
                Act::Put(path, what) => all.insert(&p(path), entry(what, objects)).map(drop),
                Act::Link(path, to) => all.insert(&p(path), link(to)).map(drop),
                Act::Remove(path) => all.remove(&p(path)).map(drop),
            };
            check(&all);
        }
        all
    }

    fn is_read_as_written(tree: &Tree, objects: &Memory) {
        let digest = tree.write(objects).unwrap();
        assert_eq!(&Tree::read(objects, &digest).unwrap(), tree);
    }

    fn acts(what: &'static [u8]) -> impl Strategy<Value = Vec<Act>> {
        prop::collection::vec(act(what), 0..40)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn stays_a_tree_and_is_read_as_written(acts in acts(ALL)) {
            let objects = Memory::default();
            grow(acts, &objects, |all| is_read_as_written(all, &objects));
        }

        #[test]
        fn over_nothing_it_is_itself_and_survives_its_archive(acts in acts(ALL)) {
            let objects = Memory::default();
            let all = grow(acts, &objects, |_| ());
            let mut copy = Tree::new();
            copy.overlay(&all).unwrap();
            prop_assert_eq!(&copy, &all);
            prop_assert_eq!(&all.subtree(&Path::root()).unwrap(), &all);
            let mut archive = Vec::new();
            all.to_tar(&mut archive, &objects).unwrap();
            let mut back = Tree::new();
            back.apply_layer(from_tar(&archive[..], &objects).unwrap()).unwrap();
            prop_assert_eq!(&back, &all);
        }

        #[test]
        fn over_another_it_is_still_a_tree(below in acts(ALL), above in acts(ALL)) {
            let objects = Memory::default();
            let mut all = grow(below, &objects, |_| ());
            all.overlay(&grow(above, &objects, |_| ())).unwrap();
            is_read_as_written(&all, &objects);
        }

        // Without symbolic links: through those, two directories can land in one place, where the second one's files win.
        #[test]
        fn over_another_it_has_all_its_files(below in acts(NO_SYMLINKS), above in acts(NO_SYMLINKS)) {
            let objects = Memory::default();
            let mut all = grow(below, &objects, |_| ());
            let above = grow(above, &objects, |_| ());
            all.overlay(&above).unwrap();
            for (path, entry) in above.iter().filter(|(_, entry)| !entry.is_dir()) {
                let kind = all.resolve(path).map(|(_, found)| &found.kind);
                let (_, expected) = above.resolve(path).expect("it is of this tree");
                prop_assert_eq!(kind, Some(&expected.kind), "{} is {:?}", path, entry);
            }
        }

        #[test]
        fn a_part_of_it_is_a_tree(acts in acts(ALL), path in prop::sample::select(vec!["a", "b", "b/y", "c"])) {
            let objects = Memory::default();
            let all = grow(acts, &objects, |_| ());
            if let Ok(part) = all.subtree(&p(path)) {
                is_read_as_written(&part, &objects);
            }
        }
    }
}
