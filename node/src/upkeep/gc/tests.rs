//! What a collection keeps and forgets, on a real store and a state in memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shoal_state::model::{App, AppState, Definition, Environment, Function, Image, Layer};
use shoal_state::{AppId, Command, EnvironmentId, FunctionId, ImageId, ShardId, Timestamp, VERSION_KNOWN};
use shoal_storage::kv::Kv;
use shoal_storage::manifest::{Entry, Kind, Path, Tree, put_content};
use shoal_storage::store::Options;
use tempfile::TempDir;

use super::*;

mod race;

const KEEP: u64 = 1000;
const FILE_BYTES: usize = 100_000;

/// A store with a clock of its own, a table of uses, and a state with an environment and an app.
struct World {
    _dir: TempDir,
    store: Store,
    uses: Uses,
    state: State,
    clock: &'static AtomicU64,
}

macro_rules! world {
    () => {{
        static CLOCK: AtomicU64 = AtomicU64::new(1_000_000);
        World::new(|| CLOCK.load(Ordering::Relaxed), &CLOCK)
    }};
}

impl World {
    fn new(now: fn() -> u64, clock: &'static AtomicU64) -> Self {
        let dir = TempDir::new().unwrap();
        let options = Options { clock: now, keep: Duration::from_secs(KEEP), disk_used_percent: |_| Ok(0), ..Options::default() };
        let store = Store::open(&dir.path().join("chunks"), options).unwrap();
        let uses = Uses::open(&Kv::open(&dir.path().join("kv")).unwrap()).unwrap();
        let mut state = State::default();
        state.apply(&Command::SetVersion { version: VERSION_KNOWN }).unwrap();
        let environment = Environment::new(EnvironmentId::from_random(1), "main", Timestamp(0));
        let app = App { description: "an app".into(), ..App::new(environment.id, AppState::Detached, Timestamp(0)) };
        state.apply(&Command::CreateEnvironment { environment }).unwrap();
        state.apply(&Command::CreateApp { id: app_id(), app }).unwrap();
        Self { _dir: dir, store, uses, state, clock }
    }

    /// Writes a tree with a file for each number; equal numbers are equal files.
    fn tree(&self, files: &[u8]) -> Digest {
        let mut tree = Tree::new();
        for file in files {
            let noise: Vec<u8> =
                (0..FILE_BYTES as u32 / 32).flat_map(|at| *Digest::of(&[&[*file], &at.to_le_bytes()[..]].concat()).as_bytes()).collect();
            let (size, content) = put_content(&noise[..], "a file", &self.store).unwrap();
            tree.insert(&Path::parse(format!("{file}")).unwrap(), Entry::new(Kind::File { size, content }, 0o644)).unwrap();
        }
        let digest = tree.write(&self.store).unwrap();
        self.store.sync().unwrap();
        digest
    }

    /// Adds an image, used for the last time now.
    fn image(&mut self, number: u128, files: &[u8]) -> Thing {
        let (id, manifest) = (ImageId::from_random(number), Some(self.tree(files)));
        let image = Image { key: Digest::of(&[1]), manifest, record: Definition::default(), built: Timestamp(0) };
        self.state.apply(&Command::PutImage { id, image }).unwrap();
        self.use_now(Thing::Image(id))
    }

    fn layer(&mut self, number: u8, files: &[u8]) -> Thing {
        let (key, manifest) = (Digest::of(&[number]), self.tree(files));
        self.state.apply(&Command::PutLayer { key, layer: Layer { manifest, record: Definition::default() } }).unwrap();
        self.use_now(Thing::Layer(key))
    }

    fn use_now(&self, thing: Thing) -> Thing {
        self.uses.touch(thing, self.store.now());
        thing
    }

    /// Adds a function that needs an image.
    fn function(&mut self, image: u128) {
        let id = FunctionId::derive_in(ShardId::all().next().unwrap(), &[&image.to_le_bytes()]);
        let function = Function { image: Some(ImageId::from_random(image)), ..Function::new(app_id(), "f", Timestamp(0)) };
        self.state.apply(&Command::PutFunction { id, function: Box::new(function) }).unwrap();
    }

    fn later(&self, seconds: u64) {
        self.clock.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Chooses within a budget of so many files.
    fn choose(&self, files: u64, pins: &Pins) -> Chosen {
        // Nodes of trees are small beside a file.
        let budget = files * (FILE_BYTES as u64 + 5_000);
        choose(&self.store, &self.uses, &self.state, pins, &Others::none(), budget).unwrap().0
    }

    /// Forgets and deletes as a collection does.
    fn collect(&mut self, files: u64) -> Swept {
        for needs in self.choose(files, &Pins::default()).forgotten {
            match needs.thing {
                Thing::Image(id) => drop(self.state.apply(&Command::RemoveImage { id }).unwrap()),
                Thing::Layer(key) => drop(self.state.apply(&Command::RemoveLayers { keys: vec![key] }).unwrap()),
                other => panic!("{other:?} was not expected"),
            }
        }
        let read = Read { state: Arc::new(self.state.clone()), as_of: self.store.now(), pins: Pins::default(), others: Others::none() };
        let (condemned, _) = condemn(&self.store, &self.uses, &read, 0, |_| vec![]).unwrap();
        self.store.sweep(&condemned).unwrap()
    }
}

fn app_id() -> AppId {
    AppId::from_random(1)
}

fn forgotten(chosen: &Chosen) -> Vec<Thing> {
    chosen.forgotten.iter().map(|needs| needs.thing).collect()
}

#[test]
fn what_was_not_used_for_the_longest_time_goes_first_and_only_as_much_as_is_too_much() {
    let mut world = world!();
    let first = world.image(1, &[1]);
    world.later(100);
    let second = world.layer(2, &[2]);
    world.later(100);
    let third = world.image(3, &[3]);
    world.later(KEEP * 2);
    assert_eq!(forgotten(&world.choose(3, &Pins::default())), [], "all fit");
    assert_eq!(forgotten(&world.choose(2, &Pins::default())), [first]);
    assert_eq!(forgotten(&world.choose(1, &Pins::default())), [second, first]);
    world.use_now(first);
    world.later(KEEP + 1);
    assert_eq!(forgotten(&world.choose(1, &Pins::default())), [third, second], "it was used since");
}

#[test]
fn what_may_run_what_is_shown_and_what_was_used_lately_stays_whatever_the_budget() {
    let mut world = world!();
    let needed = world.image(1, &[1]);
    world.function(1);
    let shown = world.layer(2, &[2]);
    let old = world.layer(3, &[3]);
    world.later(KEEP * 2);
    let young = world.image(4, &[4]);
    let pins = Pins { trees: vec![world.tree(&[2])], lists: vec![] };
    world.later(KEEP - 1);
    let gone = forgotten(&world.choose(0, &pins));
    assert_eq!(gone, [old], "not {needed:?}, not {young:?}; {shown:?} shares all with what is shown");
    world.later(KEEP);
    world.state.apply(&Command::StopApp { id: app_id(), at: Timestamp(1), why: "test".into() }).unwrap();
    // What was needed was used until now: the choice above noted it.
    let gone = forgotten(&world.choose(0, &Pins::default()));
    assert!(gone.contains(&young) && gone.contains(&old) && gone.contains(&shown), "{gone:?}");
    world.later(KEEP * 2);
    assert!(forgotten(&world.choose(0, &Pins::default())).contains(&needed), "nobody runs it any more");
}

#[test]
fn what_shares_its_chunks_with_what_stays_costs_nothing_and_stays() {
    let mut world = world!();
    let step = world.layer(1, &[1]);
    let other = world.layer(2, &[2]);
    world.later(100);
    world.image(3, &[1, 3]);
    world.function(3);
    world.later(KEEP * 2);
    let gone = forgotten(&world.choose(0, &Pins::default()));
    assert!(gone.contains(&other), "{gone:?}");
    // Its own nodes are its own: a few hundred bytes are too much for a budget of none.
    assert!(gone.contains(&step), "{gone:?}");
    let gone = forgotten(&world.choose(3, &Pins::default()));
    assert_eq!(gone, []);
}

#[test]
fn a_collection_deletes_what_is_forgotten_and_leaves_the_rest_whole() {
    let mut world = world!();
    world.image(1, &[1, 2]);
    world.function(1);
    world.image(2, &[2, 3]);
    world.later(KEEP * 2);
    let unnamed = world.store.put(&[9; 50_000]).unwrap();
    world.store.sync().unwrap();
    world.later(KEEP * 2);
    let swept = world.collect(2);
    assert!(swept.bytes > FILE_BYTES as u64 && swept.chunks >= 3, "{swept:?}");
    assert!(!world.store.has(&unnamed).unwrap());
    assert_eq!(world.state.images.len(), 1);
    let (chosen, mark) = choose(&world.store, &world.uses, &world.state, &Pins::default(), &Others::none(), u64::MAX).unwrap();
    assert_eq!((chosen.incomplete, forgotten(&Chosen { forgotten: chosen.forgotten, ..Chosen::default() })), (vec![], vec![]));
    assert!(mark.bytes() > 2 * FILE_BYTES as u64);
    assert_eq!(world.collect(2), Swept::default(), "nothing is left to delete");
}

#[test]
fn what_lacks_chunks_is_forgotten_unless_it_is_needed_and_then_it_is_told() {
    let mut world = world!();
    let needed = world.image(1, &[1]);
    world.function(1);
    let cached = world.layer(2, &[1, 2]);
    world.later(KEEP * 2);
    let condemned = world.store.condemn(|_| false).unwrap();
    world.store.sweep(&condemned).unwrap();
    let chosen = world.choose(10, &Pins::default());
    assert_eq!(forgotten(&chosen), [cached]);
    assert!(chosen.incomplete.len() == 1 && chosen.incomplete[0].starts_with(&describe(needed)), "{:?}", chosen.incomplete);
}

#[test]
fn who_needs_an_image_is_told_by_name() {
    let mut world = world!();
    world.image(1, &[1]);
    assert_eq!(users_of(&world.state, ImageId::from_random(1)), []);
    world.function(1);
    let users = users_of(&world.state, ImageId::from_random(1));
    assert_eq!((users.len(), users[0].function.as_str(), users[0].app.as_str()), (1, "f", "an app"));
    let refused = world.state.apply(&Command::RemoveImage { id: ImageId::from_random(1) }).unwrap_err();
    assert!(refused.to_string().contains("is used by function"), "{refused}");
    world.state.apply(&Command::StopApp { id: app_id(), at: Timestamp(1), why: "test".into() }).unwrap();
    world.state.apply(&Command::RemoveImage { id: ImageId::from_random(1) }).unwrap();
}
