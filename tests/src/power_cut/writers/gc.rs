//! `storage::keep`: trees that are built on each other and named while what nobody names is deleted.
//!
//! Two threads build: a tree that is named gets a file more, is promised, and named in a table, as a build does with images.
//! A third takes names away and collects, as a node does. The clock jumps beyond every promise before each collection, but
//! not between a promise and the name that it is for: that is what promises are long for.
//!
//! What the index forgets in a power cut is found in the packs and promised anew, so its sync is not among those that must not
//! be left out here: the writer `store` shows what it is for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use shoal_state::Digest;
use shoal_storage::keep::{Added, Mark, Promises};
use shoal_storage::kv::Kv;
use shoal_storage::manifest::{self, Entry, Kind, Tree, put_content};
use shoal_storage::store::Store;

use super::aged::{NOW, PROMISES_END, options};
use crate::power_cut::{Random, Sync, Writer, say};

pub(super) const WRITER: Writer = Writer {
    name: "gc",
    work,
    check,
    syncs: &[
        Sync { what: "the bytes of a pack", call: "fdatasync", path_end: ".pack" },
        Sync { what: "the names", call: "fdatasync", path_end: "names/db" },
    ],
};

const BUILDERS: u64 = 2;
const BUILDS: u64 = 40;
const COLLECTIONS: u64 = 8;

/// Held for reading between a promise and the name, for writing while the clock jumps.
static TIME: RwLock<()> = RwLock::new(());

struct Place {
    store: Store,
    names: Kv,
}

impl Place {
    fn open(dir: &Path) -> Result<Self> {
        Ok(Self { store: Store::open(&dir.join("store"), options())?, names: Kv::open(&dir.join("names"))? })
    }

    /// Returns what is named now, by name.
    fn named(&self) -> Result<BTreeMap<String, Digest>> {
        let mut named = BTreeMap::new();
        for pair in self.names.tree("names")?.range(..) {
            let (name, digest) = pair?;
            named.insert(String::from_utf8(name.to_vec())?, Digest::from_bytes(digest[..].try_into()?));
        }
        Ok(named)
    }
}

fn work(dir: &Path, seed: u64) -> Result<()> {
    let place = &Place::open(dir)?;
    std::thread::scope(|scope| {
        let build = |number: u64| scope.spawn(move || builds(place, number, (seed << 8) | number));
        let mut threads: Vec<_> = (0..BUILDERS).map(build).collect();
        threads.push(scope.spawn(move || collections(place, (seed << 8) | 255)));
        threads.into_iter().try_for_each(|thread| thread.join().expect("a working thread"))
    })
}

fn builds(place: &Place, thread: u64, seed: u64) -> Result<()> {
    let (mut random, promises) = (Random::new(seed), Promises::new(place.store.clone()));
    for number in 0..BUILDS {
        // A slow build: what it put may be gone when it is to be named, and the promise says so.
        let slow = random.below(3) == 0;
        let early = (!slow).then(|| TIME.read().expect("no panic"));
        let Some(root) = build(place, &mut random) else { continue };
        let late = slow.then(|| TIME.read().expect("no panic"));
        if promises.tree(&root)?.is_empty() {
            let name = format!("{thread}-{number}");
            place.names.tree("names")?.insert(name.as_bytes(), root.as_bytes())?;
            place.names.sync()?;
            say(&format!("named {name} {root}"));
        }
        drop((early, late));
    }
    Ok(())
}

/// Writes a tree that has one file more than one that is named, whose other files are not put again. None when the tree that
/// it began with was deleted on the way.
fn build(place: &Place, random: &mut Random) -> Option<Digest> {
    let named: Vec<Digest> = place.named().ok()?.into_values().collect();
    let mut tree = match random.below(named.len() as u64 + 1) as usize {
        0 => Tree::new(),
        base => Tree::read(&place.store, &named[base - 1]).ok()?,
    };
    let length = [300, 5_000, 60_000][random.below(3) as usize];
    let bytes = random.bytes(length);
    let (size, content) = put_content(&bytes[..], "a file", &place.store).ok()?;
    let path = manifest::Path::parse(format!("file-{}", random.below(12))).ok()?;
    tree.insert(&path, Entry::new(Kind::File { size, content }, 0o644)).ok()?;
    tree.write(&place.store).ok()
}

fn collections(place: &Place, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    for _ in 0..COLLECTIONS {
        std::thread::sleep(std::time::Duration::from_millis(5 + random.below(20)));
        for name in place.named()?.into_keys().filter(|_| random.below(3) == 0) {
            say(&format!("forgets {name}"));
            place.names.tree("names")?.remove(name.as_bytes())?;
        }
        // Before anything is deleted: a name that came back after a power cut would be a name of nothing.
        place.names.sync()?;
        {
            let _nobody_names = TIME.write().expect("no panic");
            NOW.fetch_add(PROMISES_END, Ordering::Relaxed);
        }
        let (mut mark, mut added) = (Mark::new(place.store.clone()), Added::default());
        for root in place.named()?.into_values() {
            mark.tree(root, &mut added)?;
        }
        ensure!(added.missing.is_empty(), "named and missing: {:?}", added.missing);
        let condemned = place.store.condemn(|digest| mark.contains(digest))?;
        place.store.sweep(&condemned)?;
        place.store.compact()?;
    }
    Ok(())
}

fn check(dir: &Path, said: &[String]) -> Result<()> {
    let (mut named, mut forgotten) = (BTreeMap::new(), BTreeSet::new());
    for line in said {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["named", name, root] => drop(named.insert(name.to_owned(), root.parse::<Digest>()?)),
            ["forgets", name] => drop(forgotten.insert(name.to_owned())),
            _ => anyhow::bail!("what is this: {line}"),
        }
    }
    let place = Place::open(dir)?;
    let found = place.named()?;
    for (name, root) in named.iter().filter(|(name, _)| !forgotten.contains(*name)) {
        ensure!(found.get(name) == Some(root), "{name} was acknowledged and names {:?} now", found.get(name));
    }
    for (name, root) in &found {
        let whole = |root: &Digest| -> Result<()> {
            let tree = Tree::read(&place.store, root)?;
            for (path, _) in tree.iter() {
                tree.read_file(path, u64::MAX, &place.store)?;
            }
            Ok(())
        };
        whole(root).with_context(|| format!("{name} is named and not whole"))?;
    }
    Ok(())
}
