//! Which steps are known again, and which are not.

use super::*;
use crate::recipe::{Globals, Recipe};

/// Keys of the steps of the last stage, with `mini` as its base.
fn keys(world: &World, request: &BuildRequest) -> Vec<Digest> {
    let recipe = Recipe::parse(&request.commands).unwrap();
    let globals = Globals::new(&recipe, &request.build_args).unwrap();
    let context = match &request.context {
        Some(digest) => Tree::read(&world.store, digest).unwrap(),
        None => Tree::new(),
    };
    let walk = plan::Walk {
        request,
        recipe: &recipe,
        globals: &globals,
        context: &context,
        stage: recipe.stages.len() - 1,
        stage_keys: HashMap::new(),
        image_keys: HashMap::new(),
    };
    let plan = walk.plan(plan::StageBase::Empty, Digest::of(b"base"), ImageConfig::default(), BTreeMap::new()).unwrap();
    plan.steps.iter().map(|step| step.key).collect()
}

/// How many keys at the start are the same.
fn common(left: &[Digest], right: &[Digest]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

#[test]
fn a_changed_byte_gives_new_keys_from_exactly_that_run_on() {
    let world = World::plain();
    let list = ["FROM mini:1", "RUN a", "RUN b", "ENV X=1", "RUN c", "RUN d"];
    let before = keys(&world, &request(&list));
    for changed in 1..list.len() {
        let mut commands = list.map(str::to_owned);
        commands[changed].push('!');
        let after = keys(&world, &request(&commands.each_ref().map(String::as_str)));
        assert_eq!(common(&before, &after), changed - 1, "{}", list[changed]);
        assert!(after[changed - 1..].iter().all(|key| !before.contains(key)));
    }
}

#[test]
fn comments_spelling_and_other_apps_change_nothing() {
    let world = World::plain();
    let plain = keys(&world, &request(&["FROM mini:1", "RUN a", "COPY x /"]).with_context(&world, "X"));
    let other = keys(&world, &request(&["# note", "from mini:1", "", "run a", "ARG UNUSED", "copy   x  /"]).with_context(&world, "X"));
    assert_eq!(plain, [other[0], other[2]]);
}

impl BuildRequest {
    fn with_context(mut self, world: &World, x: &str) -> BuildRequest {
        self.context = Some(world.context(&[("x", x), ("y", "unused")]));
        self
    }
}

#[test]
fn a_copy_depends_on_what_it_copies_and_on_nothing_else() {
    let world = World::plain();
    let with = |files: &[(&str, &str)]| {
        let mut request = request(&["FROM mini:1", "COPY x /", "RUN a"]);
        request.context = Some(world.context(files));
        keys(&world, &request)
    };
    assert_eq!(with(&[("x", "1"), ("y", "2")]), with(&[("x", "1"), ("z", "3")]));
    assert_eq!(common(&with(&[("x", "1")]), &with(&[("x", "2")])), 0);
}

#[test]
fn runs_depend_on_secrets_and_declared_arguments_and_not_on_proxies() {
    let world = World::plain();
    let list = ["FROM mini:1", "RUN before", "ARG A", "RUN after"];
    let plain = keys(&world, &request(&list));
    let mut with_argument = request(&list);
    with_argument.build_args.insert("A".to_owned(), "1".to_owned());
    assert_eq!(common(&plain, &keys(&world, &with_argument)), 2);
    let mut with_proxy = request(&list);
    with_proxy.build_args.insert("http_proxy".to_owned(), "http://p".to_owned());
    assert_eq!(plain, keys(&world, &with_proxy));
    let mut with_secret = request(&list);
    let env = BTreeMap::from([("K".to_owned(), "v".to_owned())]);
    with_secret.secrets.push(BuildSecret { identity: Digest::of(b"hmac"), env: env.clone() });
    let with_secret = keys(&world, &with_secret);
    assert_eq!(common(&plain, &with_secret), 0);
    let mut same_secret = request(&list);
    same_secret.secrets.push(BuildSecret { identity: Digest::of(b"hmac"), env });
    assert_eq!(with_secret, keys(&world, &same_secret));
}

#[tokio::test]
async fn known_steps_are_not_executed_again_unless_that_is_asked_for() {
    let world = World::plain();
    let with = |text: &str| {
        let mut request = request(&["FROM mini:1", "COPY a /a", "COPY b /b"]);
        request.context = Some(world.context(&[("a", "A"), ("b", text)]));
        request
    };
    world.build(with("1")).await.unwrap();
    let known = world.cache.len();
    let handle = world.builder.get_or_start(with("2"), None);
    handle.wait().await.unwrap();
    let log = log_text(&handle);
    assert!(log.contains("the result of COPY a /a is known") && log.contains("COPY b /b\n"), "{log}");
    assert_eq!(world.cache.len(), known + 1);

    let forced = BuildRequest { force_build: true, ..with("2") };
    let handle = world.builder.get_or_start(forced, None);
    handle.wait().await.unwrap();
    assert!(!log_text(&handle).contains("is known"), "{}", log_text(&handle));
    assert_eq!(world.cache.len(), known + 1);

    let ignoring = BuildRequest { ignore_cache: true, ..with("3") };
    world.build(ignoring).await.unwrap();
    assert_eq!(world.cache.len(), known + 1, "ignore_cache leaves nothing behind");
}
