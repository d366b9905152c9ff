//! A cluster of one, and what is said of it.

use std::time::{Duration, Instant};

use shoal_calls::calls::{Counts, Invocation, OpenCall, Policy};
use shoal_scheduler::PoolLoad;
use shoal_state::model::{App, AppState, Definition, Environment, Function, Image, Node, Resources, Task, TaskEnd};
use shoal_state::{BootId, Command, Digest, EnvironmentId, InputId};

use super::*;

const NOW: Timestamp = Timestamp(1_000_000);
const MIB: u64 = 1 << 20;

fn app() -> AppId {
    AppId::from_random(1)
}

fn function() -> FunctionId {
    FunctionId::from_random(2)
}

fn task() -> TaskId {
    TaskId::from_random(3)
}

fn node() -> NodeId {
    NodeId::from_random(4)
}

fn apply(state: &mut State, command: Command) {
    state.apply(&command).unwrap();
}

/// An app with one function that asks for this much memory, on one node that has 1 GiB.
fn cluster(memory_bytes: u64) -> State {
    let (mut state, environment, image) = (State::default(), EnvironmentId::from_random(5), ImageId::from_random(6));
    apply(&mut state, Command::CreateEnvironment { environment: Environment::new(environment, "main", Timestamp(0)) });
    let record = App { description: "my app".into(), ..App::new(environment, AppState::Ephemeral, Timestamp(NOW.0 - 3_200)) };
    apply(&mut state, Command::CreateApp { id: app(), app: record });
    let built = Image { key: Digest::of(b"key"), manifest: Some(Digest::of(b"tree")), record: Definition::default(), built: NOW };
    apply(&mut state, Command::PutImage { id: image, image: built });
    let capacity = Resources { cpu_milli: 2000, memory_bytes: 1024 * MIB, ..Resources::default() };
    let this = Node { address: "n1:7470".into(), ..Node::new("n1", BootId::from_random(1), capacity, NOW) };
    apply(&mut state, Command::PutNode { id: node(), node: this });
    let resources = Resources { cpu_milli: 100, memory_bytes, ..Resources::default() };
    let wanted = Function { image: Some(image), resources, ..Function::new(app(), "huge", NOW) };
    apply(&mut state, Command::PutFunction { id: function(), function: Box::new(wanted) });
    state
}

fn assign(state: &mut State) {
    let resources = Resources { cpu_milli: 100, memory_bytes: 128 * MIB, ..Resources::default() };
    let decided = Task::new((function(), app()), (node(), BootId::from_random(1)), Timestamp(NOW.0 - 1_500));
    let assigned = Task { resources, ..decided };
    apply(state, Command::Assign { id: task(), task: assigned });
}

fn phases() -> Vec<PhaseTime> {
    let time = |phase, ms| PhaseTime { phase, after: Duration::from_millis(ms) };
    vec![time(Phase::Preparing, 0), time(Phase::Creating, 4), time(Phase::Loading, 100), time(Phase::Ready, 700)]
}

fn load(waiting: u64) -> Load {
    let mut load = Load::default();
    load.pools.insert(function(), PoolLoad { waiting, running: 0, oldest_waiting_ms: 2_000, input_ms: None });
    load
}

fn told<T>(state: &State, waiting: u64, known: &(dyn Fn(TaskId) -> Option<Known> + Sync), tell: impl FnOnce(&About<'_>) -> T) -> T {
    tell(&About {
        state,
        load: &load(waiting),
        known,
        begun: &|_| Begun { phases: phases(), way: Some(Way::Restored) },
        disks: Disks { taken_bytes: 30 * MIB, budget_bytes: Some(900 * MIB) },
        here: node(),
        now: NOW,
    })
}

fn info(inputs: u32, unfinished: u32) -> CallInfo {
    let open = OpenCall {
        call: CallId::from_random(7),
        function: function(),
        pool: function(),
        kind: CallKind::Unary,
        invocation: Invocation::Async,
        parent: None,
        created_ms: NOW.0 - 2_000,
        policy: Policy::default(),
    };
    let ended = Counts { succeeded: inputs - unfinished, ..Counts::default() };
    CallInfo { open, inputs, unfinished, ended, inputs_finished: true, cancelled: false, changed_ms: NOW.0 }
}

fn input(idx: u32, status: InputStatus) -> InputInfo {
    InputInfo { input: InputId::from_random(idx.into()), idx, retry_count: 0, status }
}

#[test]
fn a_call_that_fits_nowhere_says_what_is_wanted_and_what_there_is() {
    let state = cluster(9_000_000 * MIB);
    let call = told(&state, 1, &|_| None, |about| about.call(&info(1, 1), vec![input(0, InputStatus::Waiting)]));
    assert_eq!(call.says[0], format!("one call of huge ({}), opened 2.0 s ago: 1 input, 1 without an output, 0 succeeded", function()));
    let [waiting, pool] = call.parts.as_slice() else { panic!("{call:?}") };
    assert_eq!(waiting.says, ["waits for a container"]);
    assert!(pool.says[0].contains("needs 9000000 MiB memory; the largest node has 1024 MiB memory"), "{:?}", pool.says);
}

#[test]
fn a_call_that_is_over_waits_for_nothing() {
    let state = cluster(MIB);
    let call = told(&state, 0, &|_| None, |about| about.call(&info(1, 0), vec![input(0, InputStatus::Done(Status::Success))]));
    assert_eq!(call.parts.len(), 1, "no word of the function: {call:?}");
    assert_eq!(call.parts[0].says, ["returned"]);
}

#[test]
fn of_many_inputs_the_unfinished_are_told_of_first() {
    let count = u32::try_from(PARTS_MAX).unwrap() + 10;
    let done = |idx| input(idx, InputStatus::Done(Status::Success));
    let mut inputs: Vec<InputInfo> = (0..count - 1).map(done).collect();
    inputs.push(input(count - 1, InputStatus::Delayed { due_ms: NOW.0 + 500 }));
    let state = cluster(MIB);
    let call = told(&state, 0, &|_| None, |about| about.call(&info(count, 1), inputs));
    assert_eq!(call.parts[0].says, ["waits 0.5 s for its next try"]);
    assert_eq!(call.parts.len(), PARTS_MAX + 1, "the inputs and the function");
    assert!(call.says.iter().any(|says| says.contains(&format!("{PARTS_MAX} of its {count} inputs"))), "{:?}", call.says);
}

#[test]
fn a_task_that_is_no_more_says_how_it_ended() {
    let mut state = cluster(MIB);
    assign(&mut state);
    let (tasks, at) = (crate::tasks::Tasks::default(), Timestamp(NOW.0 - 1_000));
    tasks.remember(task(), &state.tasks[&task()], TaskEnd { at, how: "killed: it took too much".to_owned() });
    let ended = told(&state, 0, &|_| None, |about| about.ended(task(), &tasks.ended(task()).unwrap()));
    assert_eq!(ended.says[0], format!("ran huge ({}), and ended 1.0 s ago, 0.5 s after it was decided", function()));
    assert_eq!(ended.says[1], "its container ended: killed: it took too much");
}

#[test]
fn a_node_says_what_containers_take_of_its_disk() {
    let told = told(&cluster(MIB), 0, &|_| None, |about| about.node(node())).unwrap();
    assert!(told.says.contains(&"containers take 30 MiB of its disk, and 900 MiB is what they may take".to_owned()), "{told:?}");
}

#[test]
fn a_task_says_how_far_it_has_come() {
    let mut state = cluster(MIB);
    assign(&mut state);
    let starting = told(&state, 0, &|_| None, |about| about.task(task())).unwrap();
    assert_eq!(starting.says[1], "holds 100m CPU and 128 MiB memory");
    assert!(starting.says[0].contains("on node n1, decided 1.5 s ago") && starting.says[4].contains("is starting"), "{starting:?}");
    assert_eq!(starting.says[2], "its container is ready: preparing 4 ms, creating 96 ms, loading 600 ms");
    assert_eq!(starting.says[3], "it went on from its image's zygote, with the client loaded");
    let works_on = Some((InputId::from_random(8), CallId::from_random(7)));
    let known = Known { hello: Some(Instant::now()), works_on, dismissed: false, plain: None, notes: vec!["a note".to_owned()] };
    let working = told(&state, 0, &|_| Some(known.clone()), |about| about.task(task())).unwrap();
    assert!(working.says[4].contains("asked for work") && working.says[5].contains("was given input"), "{working:?}");
    assert_eq!(working.says[6], "a note");
}

#[test]
fn an_app_shows_its_functions_and_they_their_tasks() {
    let mut state = cluster(MIB);
    assign(&mut state);
    let told_app = told(&state, 0, &|_| None, |about| about.app(app())).unwrap();
    assert_eq!((told_app.name.as_str(), told_app.says[0].as_str()), ("my app", "ephemeral in environment main, created 3.2 s ago"));
    assert_eq!(told_app.parts[0].id, function().to_string());
    assert_eq!(told_app.parts[0].parts[0].id, task().to_string());
    assert_eq!(told(&state, 0, &|_| None, |about| about.app(AppId::from_random(99))), None);
}

#[test]
fn a_node_says_what_is_free() {
    let mut state = cluster(MIB);
    assign(&mut state);
    let told_node = told(&state, 0, &|_| None, |about| about.node(node())).unwrap();
    assert_eq!(told_node.says[1], "1900m of 2000m CPU and 896 MiB of 1024 MiB memory are free");
    assert_eq!(told_node.parts.len(), 1);
}

#[test]
fn what_is_not_there_is_named_with_a_hint() {
    for (of, hint) in [("ta-1", "shoal logs"), ("fu-1", "none with this id"), ("my-app", "fc-…")] {
        let Failure(code, text) = absent(of);
        assert!(code == StatusCode::NOT_FOUND && text.contains(of) && text.contains(hint), "{text}");
    }
}

#[test]
fn time_is_written_for_people() {
    for (ms, text) in [(1_250, "1.2 s"), (120_000, "2 min"), (7_200_000, "2 h"), (172_800_000, "2 days")] {
        assert_eq!(lasted(ms), text);
    }
}

#[test]
fn a_container_that_was_not_quick_says_why() {
    assert_eq!(
        way_of(Way::Ahead, Some("zygotes are switched off")),
        "it started in a sandbox made ahead, without a zygote: zygotes are switched off"
    );
    assert_eq!(way_of(Way::Made, None), "it started in a sandbox made for it, without a zygote");
}
