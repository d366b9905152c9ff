//! Objects that are not what a tree wrote: cut short, changed, of something else.

use proptest::prelude::*;

use super::*;

/// What happens to the bytes of an object.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || any::<prop::sample::Index>();
    prop_oneof![
        4 => (at(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => at().prop_map(Damage::Cut),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (at(), at()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn apply(damage: &Damage, bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    match damage {
        Damage::Flip(at, bits) => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Insert(at, more) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more.iter().copied());
        }
        Damage::Repeat(from, to) => {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.extend(piece);
        }
    }
}

fn some_tree(objects: &Memory) -> Tree {
    let mut tree =
        tree("bin->usr/bin usr/ usr/bin/ usr/bin/sh=program usr/bin/bash==usr/bin/sh tmp/@1777 empty= a/ a/b/ a/b/c=text", objects);
    tree.insert(&p("pipe"), Entry::new(Kind::Fifo, 0o600)).unwrap();
    let chunks = (0u32..3).map(|number| Digest::of(&number.to_le_bytes())).collect();
    tree.insert(&p("a/large"), Entry::new(Kind::File { size: 3 << 20, content: Content::Chunks(chunks) }, 0o644)).unwrap();
    tree
}

/// Takes what it can read apart; nothing of it may end in a panic.
fn use_all(tree: &Tree, objects: &Memory) {
    for (path, _) in tree.iter() {
        let _ = tree.read_file(path, 4096, objects);
        let _ = tree.resolve(path);
    }
    let digest = tree.write(objects).expect("what was read can be written");
    assert_eq!(&Tree::read(objects, &digest).expect("and read again"), tree);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    /// A damaged object is refused, or is another tree that is one in every way.
    #[test]
    fn a_damaged_object_is_refused_or_a_tree(which: prop::sample::Index, damages in prop::collection::vec(damage(), 1..4)) {
        let objects = Memory::default();
        let root = some_tree(&objects).write(&objects).unwrap();
        let mut parts = Vec::new();
        reachable(&objects, &root, &mut |digest, _| { parts.push(digest); true }).unwrap();
        let part = *which.get(&parts);
        let Ok(bytes) = objects.get(&part) else { return Ok(()) };
        let mut bytes = bytes.to_vec();
        damages.iter().for_each(|damage| apply(damage, &mut bytes));
        let damaged = objects.put(&bytes).unwrap();
        if let Ok(read) = Tree::read(&objects, &damaged) {
            use_all(&read, &objects);
        }
        let _ = summary(&objects, &damaged);
        let _ = reachable(&objects, &damaged, &mut |_, _| true);
    }

    /// An archive of a layer comes from a registry, and may be anything.
    #[test]
    fn a_damaged_archive_is_refused_or_a_tree(damages in prop::collection::vec(damage(), 1..6)) {
        let objects = Memory::default();
        let mut small = Tree::new();
        for line in ["usr/", "usr/a=text", "usr/b==usr/a", "c->usr/a", "d/@1777"] {
            put_line(&mut small, line, &objects).unwrap();
        }
        let mut archive = Vec::new();
        small.to_tar(&mut archive, &objects).unwrap();
        damages.iter().for_each(|damage| apply(damage, &mut archive));
        let mut tree = Tree::new();
        if let Ok(layer) = from_tar(&archive[..], &objects)
            && tree.apply_layer(layer).is_ok()
        {
            use_all(&tree, &objects);
        }
    }

    #[test]
    fn bytes_of_anything_are_no_tree(bytes in prop::collection::vec(any::<u8>(), 0..200), magic in prop::sample::select(vec![&b""[..], b"SHOALMI1", b"SHOALML1"])) {
        let objects = Memory::default();
        let digest = objects.put(&[magic, &bytes].concat()).unwrap();
        if let Ok(tree) = Tree::read(&objects, &digest) {
            use_all(&tree, &objects);
        }
    }
}
