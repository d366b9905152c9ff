//! How many containers a function has, and when they come and go.

use super::*;

#[test]
fn short_inputs_need_few_containers_until_one_has_waited_for_long() {
    // (waiting, running, how long inputs take, how long the oldest has waited) → more than the one that is there
    let table = [
        ((1000, 1, Some(5), 100), 3),
        ((1000, 1, Some(0), 100), 1),
        ((10, 1, Some(10_000), 100), 10),
        ((10, 1, Some(10), 100), 1),
        ((10, 1, None, 100), 10),
        ((10, 1, Some(10), 5_000), 10),
        ((0, 1, Some(10), 0), 0),
    ];
    for ((waiting, running, input_ms, oldest_waiting_ms), more) in table {
        let mut cluster = Cluster::new(&[64_000]);
        cluster.function(1, resources(100), scaling(0, 0, 0));
        cluster.task(1, 1, 1);
        cluster.load.pools.insert(fu(1), PoolLoad { waiting, running, oldest_waiting_ms, input_ms });
        assert_eq!(cluster.step().len(), more, "{waiting} inputs of {input_ms:?} ms, the oldest for {oldest_waiting_ms} ms");
    }
}

#[test]
fn a_container_that_is_used_once_serves_one_input_and_no_other() {
    let mut cluster = Cluster::new(&[64_000]);
    cluster.function_with(1, resources(100), scaling(0, 0, 0), 8);
    let mut function = cluster.state.functions[&fu(1)].clone();
    function.single_use = true;
    cluster.apply(Command::PutFunction { id: fu(1), function: Box::new(function) });
    // However short they are and however many a container could hold: each waiting input needs one of its own.
    cluster.load.pools.insert(fu(1), PoolLoad { waiting: 5, running: 0, oldest_waiting_ms: 100, input_ms: Some(1) });
    assert_eq!(cluster.step().len(), 5);
    assert_eq!(cluster.step().len(), 0);
    // Those that have done theirs are about to end, and no help for what comes.
    let tasks: Vec<TaskId> = cluster.state.tasks.keys().copied().collect();
    cluster.load.asked.extend(&tasks);
    cluster.load.used.extend(&tasks[..2]);
    cluster.load.pools.insert(fu(1), PoolLoad { waiting: 1, running: 3, oldest_waiting_ms: 100, input_ms: Some(1) });
    assert_eq!(cluster.step().len(), 1);
}

#[test]
fn time_alone_asks_for_a_plan_only_when_it_would_be_another_one() {
    let mut cluster = Cluster::new(&[64_000]);
    cluster.function(1, resources(100), scaling(0, 0, 0));
    let next = |cluster: &Cluster| next_at(&cluster.state, &cluster.load, &cluster.plan(), NOW).map(|at| at.0 - NOW.0);
    cluster.work(1, 0, 0);
    assert_eq!(next(&cluster), None, "nothing waits and nothing runs");
    cluster.task(1, 1, 1);
    assert_eq!(next(&cluster), None, "one that starts changes the load when it is there");
    cluster.idle(1, 59_000);
    assert_eq!(next(&cluster), Some(1_000), "then it has been idle for long enough");
    cluster.idle(1, 61_000);
    assert_eq!(next(&cluster), Some(LOOK_AGAIN_MS), "should what this plan says not be done");
    cluster.apply(Command::ScaleFunction { id: fu(1), scaling: scaling(1, 0, 0) });
    assert_eq!(next(&cluster), None, "it is kept, however long it idles");
    cluster.work(1, 1, 1);
    assert_eq!(next(&cluster), Some(LOOK_AGAIN_MS));
    // A minimum that finds no room is looked at again without any input.
    let mut cluster = Cluster::new(&[1_000]);
    cluster.function(1, resources(2_000), scaling(1, 0, 0));
    cluster.work(1, 0, 0);
    assert_eq!(next(&cluster), Some(LOOK_AGAIN_MS));
}

#[test]
fn a_node_starts_as_many_containers_at_a_time_as_it_has_cores() {
    let mut cluster = Cluster::new(&[3_000, 1_000]);
    cluster.function(1, resources(10), scaling(0, 0, 0));
    cluster.work(1, 100, 0);
    let mut first = cluster.step();
    first.sort();
    assert_eq!(first, ["start f1 on n1", "start f1 on n1", "start f1 on n1", "start f1 on n2", "start f1 on n2"]);
    assert_eq!(cluster.plan().waiting, [(fu(1), Why::NextPlan)]);
    assert_eq!(cluster.step(), [""; 0], "all of them still start");
    let started: Vec<TaskId> = cluster.state.tasks.keys().copied().collect();
    cluster.load.asked.extend(&started[..2]);
    assert_eq!(cluster.step().len(), 2, "two have started");
    // A start that takes very long keeps no others waiting.
    let mut cluster = Cluster::new(&[2_000]);
    cluster.function(1, resources(10), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.task(2, 1, 1);
    cluster.work(1, 100, 0);
    assert_eq!(cluster.step().len(), 2);
}

#[test]
fn containers_follow_waiting_and_running_inputs_within_the_limits() {
    // (waiting, running, tasks there, inputs a container, min, max, buffer) → started
    let table = [
        ((0, 0, 0, 1, 0, 0, 0), 0),
        ((1, 0, 0, 1, 0, 0, 0), 1),
        ((5, 0, 0, 1, 0, 0, 0), 5),
        ((5, 0, 0, 2, 0, 0, 0), 3),
        ((5, 0, 0, 1, 0, 3, 0), 3),
        // Two are starting: only three more.
        ((5, 0, 2, 1, 0, 0, 0), 3),
        // One is busy with one of four inputs: three of the five fit there.
        ((5, 1, 1, 4, 0, 0, 0), 1),
        ((1, 2, 2, 1, 0, 0, 0), 1),
        // A minimum without work, a buffer only with work.
        ((0, 0, 0, 1, 2, 0, 3), 2),
        ((0, 1, 1, 1, 0, 0, 2), 2),
    ];
    for ((waiting, running, tasks, inputs, min, max, buffer), started) in table {
        let mut cluster = Cluster::new(&[64_000]);
        cluster.function_with(1, resources(100), scaling(min, max, buffer), inputs);
        for task in 0..tasks {
            cluster.task(task, 1, 1);
        }
        cluster.work(1, waiting, running);
        let step = cluster.step();
        assert_eq!(step, vec!["start f1 on n1"; started], "waiting {waiting} running {running} tasks {tasks} inputs {inputs}");
        assert_eq!(cluster.step(), Vec::<String>::new(), "a plan that was carried out asks for nothing more");
    }
}

#[test]
fn idle_containers_stop_after_their_time_and_the_longest_idle_first() {
    let mut cluster = Cluster::new(&[8_000]);
    cluster.function(1, resources(100), scaling(2, 0, 0));
    for task in 1..=3 {
        cluster.task(task, 1, 1);
    }
    cluster.work(1, 0, 0);
    cluster.idle(1, 59_999);
    cluster.idle(2, 61_000);
    cluster.idle(3, 75_000);
    assert_eq!(cluster.step(), ["stop 3: idle for 75 s"], "the minimum stays");
    cluster.apply(Command::ScaleFunction { id: fu(1), scaling: scaling(0, 0, 0) });
    assert_eq!(cluster.step(), ["stop 2: idle for 61 s"], "the other is not idle for long enough");
}

#[test]
fn an_idle_container_whose_home_did_not_hear_that_it_stops_is_not_stopped() {
    let mut cluster = Cluster::new(&[8_000]);
    cluster.function(1, resources(100), scaling(0, 0, 0));
    cluster.function(2, resources(100), scaling(0, 0, 0));
    (1..=3).for_each(|task| cluster.task(task, 1 + u128::from(task == 3), 1));
    cluster.work(1, 0, 0);
    (1..=3).for_each(|task| cluster.idle(task, 61_000));
    let mut plan = cluster.plan();
    plan.stop_idle_only(&[ta(2)].into());
    let stops: Vec<_> = plan.commands.iter().map(|command| cluster.describe(command)).collect();
    assert_eq!(stops, ["stop 2: idle for 61 s"]);
    let mut plan = Plan { idle: BTreeSet::new(), ..cluster.plan() };
    plan.stop_idle_only(&BTreeSet::new());
    assert_eq!(plan.commands.len(), 2, "what stops for another reason goes whatever it does: {plan:?}");
}

#[test]
fn a_function_without_a_report_is_not_scaled_down() {
    let mut cluster = Cluster::new(&[8_000]);
    cluster.function(1, resources(100), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.idle(1, 900_000);
    assert_eq!(cluster.step(), Vec::<String>::new());
    cluster.work(1, 0, 0);
    assert_eq!(cluster.step(), ["stop 1: idle for 900 s"]);
}

#[test]
fn a_new_deployment_replaces_idle_containers_at_once_and_busy_ones_when_they_are_done() {
    let mut cluster = Cluster::new(&[8_000]);
    cluster.function(1, resources(500), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.task(2, 1, 1);
    cluster.idle(1, 5);
    cluster.work(1, 0, 1);
    let deployment = Deployment { version: 0, name: "a".into(), tag: String::new(), at: Timestamp(10), client_version: String::new() };
    let layout = cluster.state.apps[&app()].layout.clone();
    cluster.apply(Command::PublishApp { id: app(), layout, deployment: Some(deployment), detached: false });
    assert_eq!(cluster.step(), ["stop 1: replaced by a newer deployment"]);
    cluster.work(1, 1, 1);
    assert_eq!(cluster.step(), ["start f1 on n1"]);
}

#[test]
fn a_sandbox_has_one_container_once() {
    let mut cluster = Cluster::new(&[8000, 8000]);
    cluster.apply(Command::SetVersion { version: shoal_state::VERSION_KNOWN });
    let id = SandboxId::from_random(9);
    let function = Function { image: Some(ImageId::from_random(1)), resources: resources(1000), ..Function::new(app(), "sandbox", NOW) };
    let sandbox = Sandbox { app: app(), sealed: Vec::new(), timeout_ms: 1000, created: NOW, created_by: String::new(), ended: None };
    cluster.apply(Command::CreateSandbox { id, sandbox: Box::new(sandbox), function: Box::new(function) });
    let planned = cluster.plan().commands;
    assert!(matches!(planned[..], [Command::Assign { .. }]), "{planned:?}");
    planned.into_iter().for_each(|command| cluster.apply(command));
    assert_eq!(cluster.plan().commands, []);
    // Nothing moves it: neither a drain of its node nor a deployment of its app.
    let (task, on) = cluster.state.tasks.iter().map(|(id, task)| (*id, task.node)).next().unwrap();
    cluster.apply(Command::DrainNode { id: on, draining: true });
    assert_eq!(cluster.plan().commands, []);
    // Nor does another come in its place.
    let end = shoal_state::model::TaskEnd { at: NOW, how: "node restarted".to_owned() };
    let generation = cluster.state.tasks[&task].generation;
    cluster.apply(Command::EndTask { id: task, generation, end });
    assert_eq!(cluster.plan().commands, []);
}

#[test]
fn stopped_apps_get_nothing() {
    let mut cluster = Cluster::new(&[8_000]);
    cluster.function(1, resources(500), scaling(3, 0, 0));
    cluster.apply(Command::StopApp { id: app(), at: NOW, why: "by user".into() });
    cluster.work(1, 5, 0);
    assert_eq!(cluster.step(), Vec::<String>::new());
    assert_eq!(explain(&cluster.state, &cluster.load, fu(1), NOW), format!("its app {} is stopped: by user", app()));
}

#[test]
fn explain_says_what_it_waits_for() {
    let mut cluster = Cluster::new(&[2_500]);
    cluster.function(1, resources(2_000), scaling(0, 10, 0));
    cluster.task(1, 1, 1);
    cluster.work(1, 1, 1);
    assert_eq!(
        explain(&cluster.state, &cluster.load, fu(1), NOW),
        "1 input waiting (the oldest for 1.5 s), 1 running; 1 container of at most 10; waiting for 2 cores: node n1 has 0.5 cores free"
    );
    cluster.load.held_until.insert(fu(1), Timestamp(NOW.0 + 2_001));
    assert!(explain(&cluster.state, &cluster.load, fu(1), NOW).ends_with("next try in 3 s"));
    cluster.load.held_until.clear();
    cluster.function(2, resources(9_000), scaling(0, 0, 0));
    cluster.work(2, 1, 0);
    assert!(explain(&cluster.state, &cluster.load, fu(2), NOW).ends_with("cannot start: needs 9 cores; the largest node has 2.5 cores"));
}
