//! Tables: a small cluster, some load, and the commands that must come out.

use std::collections::BTreeSet;

use shoal_gpu::Request;
use shoal_state::imbl::OrdMap;
use shoal_state::model::{
    App, AppLayout, AppState, Definition, Deployment, Environment, Function, Image, Node, Resources, Sandbox, Scaling, Task, TaskEnd,
};
use shoal_state::{AppId, BootId, Command, Digest, EnvironmentId, FunctionId, ImageId, NodeId, SandboxId, State, TaskId, Timestamp};

use super::{LOOK_AGAIN_MS, Load, Placement, Plan, PoolLoad, Why, explain, next_at, plan};

const NOW: Timestamp = Timestamp(1_000_000);
const GIB: u64 = 1 << 30;

fn app() -> AppId {
    AppId::from_random(1)
}

fn fu(number: u128) -> FunctionId {
    FunctionId::from_random(number)
}

fn no(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn ta(number: u128) -> TaskId {
    TaskId::from_random(number)
}

fn resources(cpu_milli: u32) -> Resources {
    Resources { cpu_milli, memory_bytes: GIB, ..Resources::default() }
}

struct Cluster {
    state: State,
    load: Load,
}

impl Cluster {
    /// An app, an image, and nodes n1, n2, … with this much CPU each.
    fn new(nodes_cpu_milli: &[u32]) -> Self {
        let mut cluster = Self { state: State::default(), load: Load::default() };
        let environment = Environment::new(EnvironmentId::from_random(1), "main", Timestamp(0));
        let record = App::new(environment.id, AppState::Ephemeral, Timestamp(0));
        cluster.apply(Command::CreateEnvironment { environment });
        cluster.apply(Command::CreateApp { id: app(), app: record });
        let image = Image { key: Digest::of(b"i"), manifest: Some(Digest::of(b"m")), record: Definition::default(), built: Timestamp(0) };
        cluster.apply(Command::PutImage { id: ImageId::from_random(1), image });
        for (number, cpu_milli) in (1..).zip(nodes_cpu_milli) {
            cluster.node(number, Resources { cpu_milli: *cpu_milli, memory_bytes: 64 * GIB, ..Resources::default() });
        }
        cluster
    }

    fn apply(&mut self, command: Command) {
        self.state.apply(&command).unwrap();
    }

    fn node(&mut self, number: u128, capacity: Resources) {
        let node = Node::new(format!("n{number}"), BootId::from_random(number), capacity, Timestamp(0));
        self.apply(Command::PutNode { id: no(number), node });
    }

    fn function(&mut self, number: u128, resources: Resources, scaling: Scaling) {
        self.function_with(number, resources, scaling, 1);
    }

    fn function_with(&mut self, number: u128, resources: Resources, scaling: Scaling, inputs_concurrent: u32) {
        let plain = Function::new(app(), format!("f{number}"), Timestamp(0));
        let function = Function { image: Some(ImageId::from_random(1)), resources, scaling, inputs_concurrent, ..plain };
        self.apply(Command::PutFunction { id: fu(number), function: Box::new(function) });
        let functions = self.state.functions.iter().map(|(id, function)| (function.tag.clone(), *id)).collect();
        self.apply(Command::PublishApp {
            id: app(),
            layout: AppLayout { functions, classes: OrdMap::new() },
            deployment: None,
            detached: false,
        });
    }

    fn task(&mut self, number: u128, function: u128, node: u128) {
        let resources = self.state.functions[&fu(function)].resources;
        let boot = self.state.nodes[&no(node)].boot;
        let gpus = (0..resources.gpus).collect();
        let task = Task { resources, gpus, ..Task::new((fu(function), app()), (no(node), boot), Timestamp(0)) };
        self.apply(Command::Assign { id: ta(number), task });
    }

    fn work(&mut self, function: u128, waiting: u64, running: u64) {
        self.load.pools.insert(fu(function), PoolLoad { waiting, running, oldest_waiting_ms: waiting * 1500, input_ms: None });
    }

    fn idle(&mut self, task: u128, for_ms: u64) {
        self.load.idle_since.insert(ta(task), Timestamp(NOW.0 - for_ms));
    }

    fn plan(&self) -> Plan {
        let mut next = self.state.tasks.keys().map(|task| task.bits()).max().unwrap_or_default().max(1000);
        plan(&self.state, &self.load, NOW, &mut || {
            next += 1;
            next
        })
    }

    /// Plans, applies what came out (none may be refused), and writes it down.
    fn step(&mut self) -> Vec<String> {
        let plan = self.plan();
        for command in &plan.commands {
            self.state.apply(command).unwrap();
        }
        plan.commands.iter().map(|command| self.describe(command)).collect()
    }

    fn describe(&self, command: &Command) -> String {
        match command {
            Command::Assign { task, .. } => {
                format!("start {} on {}", self.state.functions[&task.function].tag, self.state.nodes[&task.node].name)
            }
            Command::AssignGang { tasks, .. } => {
                let nodes: Vec<_> = tasks.iter().map(|(_, task)| self.state.nodes[&task.node].name.as_str()).collect();
                format!("start {} on {}", self.state.functions[&tasks[0].1.function].tag, nodes.join(" and "))
            }
            Command::StopTask { id, why } => format!("stop {}: {why}", id.bits()),
            other => panic!("a plan holds no {other:?}"),
        }
    }
}

impl Cluster {
    /// A clustered function of gangs of this size.
    fn clustered(&mut self, number: u128, resources: Resources, size: u32) {
        self.apply(Command::SetVersion { version: 7 });
        self.function(number, resources, Scaling::default());
        self.load.placements.insert(fu(number), Placement { gang: Some(size), ..Placement::default() });
    }

    fn why(&self, function: u128) -> String {
        let plan = self.plan();
        let why = plan.waiting.iter().find(|(id, _)| *id == fu(function)).map(|(_, why)| why.to_string());
        why.unwrap_or_default()
    }
}

#[test]
fn a_gang_is_placed_all_or_none_and_says_what_it_waits_for() {
    let mut cluster = Cluster::new(&[2_000, 2_000]);
    cluster.clustered(1, resources(1_000), 3);
    cluster.function(2, resources(2_000), Scaling::default());
    cluster.task(1, 2, 1);
    cluster.state.tasks.get_mut(&ta(1)).unwrap().created = Timestamp(NOW.0 - 5_000);
    cluster.work(1, 1, 0);
    assert_eq!(cluster.step(), Vec::<String>::new());
    assert_eq!(
        cluster.why(1),
        "waiting for room for all 3 containers of a cluster at once, each 1 core, 1024 MiB memory: 2 fit now; node n1 has 0 cores free"
    );
    cluster.idle(1, 5_000);
    cluster.work(2, 0, 0);
    assert_eq!(cluster.step(), ["stop 1: idle, makes room for fu-0000000000000000000001"]);
    assert_eq!(cluster.why(1), "waiting for containers to stop on node n1");
    cluster.apply(Command::EndTask { id: ta(1), generation: 1, end: TaskEnd { at: NOW, how: String::new() } });
    assert_eq!(cluster.step(), ["start f1 on n1 and n2 and n1"]);
    let text = explain(&cluster.state, &cluster.load, fu(1), NOW);
    assert!(text.contains("1 cluster of 3 containers, of at most 666"), "{text}");
}

#[test]
fn disk_is_set_aside_on_nodes_that_say_how_much_they_have() {
    let mut cluster = Cluster::new(&[]);
    cluster.apply(Command::SetVersion { version: 7 });
    cluster.node(1, Resources { disk_bytes: 10 * GIB, ..resources(8_000) });
    let wants = |gib: u64| Resources { cpu_milli: 100, memory_bytes: 1 << 20, disk_bytes: gib * GIB, ..Resources::default() };
    cluster.function(1, wants(6), Scaling::default());
    cluster.work(1, 2, 0);
    assert_eq!(cluster.step(), ["start f1 on n1"]);
    assert_eq!(cluster.why(1), "waiting for 6144 MiB of disk: node n1 has 4096 MiB of disk left");
    cluster.function(2, wants(11), Scaling::default());
    cluster.work(2, 1, 0);
    assert_eq!(cluster.step(), Vec::<String>::new());
    assert_eq!(cluster.why(2), "cannot start: needs 11264 MiB of disk; the largest node has 10240 MiB of disk");
}

#[test]
fn the_first_choice_of_gpus_that_is_free_anywhere_is_taken() {
    let mut cluster = Cluster::new(&[]);
    cluster.apply(Command::SetVersion { version: 7 });
    for (node, kinds) in [(1, &["H100", "H100", "A100-40GB"][..]), (2, &["A100-80GB", "A100-80GB"]), (3, &[])] {
        cluster.node(node, Resources { gpus: kinds.len() as u32, memory_bytes: 64 * GIB, ..resources(64_000) });
        cluster.apply(Command::PutGpus { id: no(node), kinds: kinds.iter().map(|kind| (*kind).to_owned()).collect() });
    }
    let wants = |cluster: &mut Cluster, number, choices: &[(&str, u32)]| {
        cluster.function(number, Resources { gpus: choices[0].1, ..resources(1_000) }, Scaling::default());
        let gpus = choices.iter().map(|(name, count)| Request::new(name, *count)).collect();
        cluster.load.placements.insert(fu(number), Placement { gpus, ..Placement::default() });
    };
    let held = |cluster: &Cluster| {
        let mut held: Vec<_> =
            cluster.state.tasks.values().map(|task| (task.function.bits(), task.node.bits(), task.gpus.clone())).collect();
        held.sort_unstable();
        held
    };
    wants(&mut cluster, 1, &[("H100", 2), ("A100", 1)]);
    cluster.work(1, 5, 0);
    cluster.step();
    // As named first, then with more memory; what is left would be of no choice.
    let all = [(1, 1, vec![0, 1]), (1, 1, vec![2]), (1, 2, vec![0]), (1, 2, vec![1])];
    assert_eq!(held(&cluster), all);
    assert_eq!(
        cluster.why(1),
        "waiting for gpu=\"H100:2\" or \"A100\": node n1 has none of them free, node n2 has none of them free, node n3 has none of them free"
    );
    wants(&mut cluster, 2, &[("H100", 3)]);
    cluster.work(2, 1, 0);
    assert_eq!(cluster.step(), Vec::<String>::new());
    assert_eq!(cluster.why(2), "cannot start: needs gpu=\"H100:3\", and no node has that; there are H100:2, A100-40GB, A100-80GB:2");
}

#[test]
fn a_gang_that_no_nodes_could_hold_says_so() {
    let mut cluster = Cluster::new(&[2_000, 2_000]);
    cluster.clustered(1, resources(1_500), 3);
    cluster.work(1, 1, 0);
    assert_eq!(cluster.step(), Vec::<String>::new());
    assert_eq!(
        cluster.why(1),
        "cannot start: 3 containers, each 1.5 cores, 1024 MiB memory, are to run at once, and all nodes it may run on have room for 2 of them, even when empty"
    );
}

#[test]
fn a_gang_that_lost_a_node_is_stopped_at_once_and_replaced_when_the_node_has_surely_stopped() {
    let mut cluster = Cluster::new(&[2_000, 2_000, 2_000]);
    cluster.clustered(1, resources(2_000), 2);
    cluster.work(1, 1, 0);
    assert_eq!(cluster.step(), ["start f1 on n1 and n2"]);
    let gang = cluster.state.gangs.values().next().unwrap().tasks.clone();
    cluster.load.down.insert(no(2));
    assert_eq!(cluster.step(), [format!("stop {}: node n2 of its gang is down", gang[0].bits())]);
    cluster.apply(Command::EndTask { id: gang[0], generation: 1, end: TaskEnd { at: NOW, how: String::new() } });
    assert_eq!(cluster.step(), Vec::<String>::new(), "the container on n2 may run still");
    assert_eq!(cluster.why(1), "waiting until node n2, which is down, has surely stopped its containers: a cluster must not run twice");
    cluster.apply(Command::EndTask { id: gang[1], generation: 1, end: TaskEnd { at: NOW, how: "its node is lost".to_owned() } });
    assert_eq!(cluster.step(), ["start f1 on n1 and n3"]);
}

#[test]
fn what_runs_on_a_node_that_may_be_down_is_replaced_ahead_where_there_is_room() {
    let mut cluster = Cluster::new(&[2_000, 2_000, 2_000]);
    cluster.function(1, resources(2_000), scaling(0, 0, 0));
    cluster.function(2, resources(2_000), scaling(0, 1, 0));
    cluster.task(1, 1, 1);
    cluster.task(2, 2, 2);
    cluster.work(1, 0, 1);
    cluster.work(2, 0, 1);
    assert_eq!(cluster.step(), Vec::<String>::new());
    cluster.load.doubtful = [no(1), no(2)].into();
    assert_eq!(cluster.step(), ["start f1 on n3"], "f2 may have one container");
    cluster.function(3, resources(1_000), scaling(0, 0, 0));
    cluster.work(3, 1, 0);
    cluster.load.asked.insert(ta(1001));
    assert_eq!(cluster.step(), Vec::<String>::new(), "where nobody is heard nothing is put");
    cluster.work(3, 0, 0);

    // It was a moment: nothing was stopped, and the one too many goes when it has been idle for long enough.
    cluster.load.doubtful.clear();
    cluster.idle(1001, 10_000);
    assert_eq!(cluster.step(), Vec::<String>::new());
    cluster.idle(1001, 60_000);
    assert_eq!(cluster.step(), ["stop 1001: idle for 60 s"]);
}

#[test]
fn nobody_makes_room_for_what_is_started_ahead() {
    let mut cluster = Cluster::new(&[2_000, 2_000]);
    cluster.function(1, resources(2_000), scaling(0, 0, 0));
    cluster.function(2, resources(2_000), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.task(2, 2, 2);
    cluster.work(1, 0, 1);
    cluster.work(2, 0, 0);
    cluster.idle(2, 50_000);
    cluster.load.doubtful.insert(no(1));
    assert_eq!(cluster.step(), Vec::<String>::new());
    cluster.load.doubtful.clear();
    cluster.load.down.insert(no(1));
    assert_eq!(cluster.step(), ["stop 2: idle, makes room for fu-0000000000000000000001"]);
}

#[test]
fn a_gang_is_scaled_down_as_one() {
    let mut cluster = Cluster::new(&[4_000]);
    cluster.clustered(1, resources(1_000), 2);
    cluster.work(1, 2, 0);
    assert_eq!(cluster.step(), ["start f1 on n1 and n1", "start f1 on n1 and n1"]);
    let gangs: Vec<_> = cluster.state.gangs.values().map(|gang| gang.tasks.clone()).collect();
    cluster.work(1, 0, 1);
    cluster.idle(gangs[0][0].bits(), 70_000);
    assert_eq!(cluster.step(), [format!("stop {}: idle for 70 s", gangs[0][0].bits())]);
    let stopping = |task: &TaskId| cluster.state.tasks[task].stopping.is_some();
    assert!(gangs[0].iter().all(stopping) && !gangs[1].iter().any(stopping));
}

#[test]
fn functions_run_where_the_labels_of_nodes_let_them() {
    let mut cluster = Cluster::new(&[64_000, 64_000, 64_000]);
    cluster.apply(Command::SetVersion { version: 3 });
    for (node, labels) in [(1, &[("region", "eu-west")][..]), (2, &[("region", "us-east"), ("cloud", "aws"), ("preemptible", "true")])] {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        cluster.apply(Command::LabelNode { id: no(node), labels });
    }
    let regions =
        |regions: &[&str]| Placement { regions: regions.iter().map(|region| (*region).to_owned()).collect(), ..Placement::default() };
    let of = |cloud: &str| Placement { cloud: Some(cloud.to_owned()), ..Placement::default() };
    let table = [
        (regions(&["eu"]), Ok(&["n1"][..])),
        (regions(&["ap", "us-east"]), Ok(&["n2"])),
        (of("AWS"), Ok(&["n2"])),
        (Placement { nonpreemptible: true, ..Placement::default() }, Ok(&["n1", "n3"])),
        (
            Placement { nonpreemptible: true, ..regions(&["us"]) },
            Err("needs region us, a node that is not preemptible, and no node is that"),
        ),
        (regions(&["ap"]), Err("needs region ap, and no node is that: nodes are labelled region eu-west and us-east")),
    ];
    for (number, (placement, allowed)) in (1..).zip(table) {
        cluster.function(number, resources(1000), scaling(0, 0, 0));
        cluster.work(number, 6, 0);
        cluster.load.placements.insert(fu(number), placement.clone());
        let plan = cluster.plan();
        let (nodes, why): (BTreeSet<_>, Vec<_>) = (
            plan.commands.iter().map(|command| cluster.describe(command).rsplit_once(' ').unwrap().1.to_owned()).collect(),
            plan.waiting.iter().map(|(_, why)| why.to_string()).collect(),
        );
        match allowed {
            Ok(allowed) => {
                assert!(!nodes.is_empty() && nodes.iter().all(|node| allowed.contains(&node.as_str())), "{placement:?}: {nodes:?}")
            }
            Err(words) => assert!(nodes.is_empty() && why[0].contains(words), "{placement:?}: {nodes:?} {why:?}"),
        }
        cluster.load.pools.clear();
    }
    // A node of the right region that is full is another matter.
    cluster.function(9, resources(64_000), scaling(0, 0, 0));
    cluster.load.placements.insert(fu(9), regions(&["eu"]));
    cluster.task(1, 9, 1);
    cluster.work(9, 1, 1);
    let why = cluster.plan().waiting[0].1.to_string();
    assert_eq!(
        why,
        "waiting for 64 cores and a node in its region: node n1 has 0 cores free, node n2 is in another region, node n3 is in another region"
    );
    cluster.load.unread.insert(fu(9));
    assert_eq!(cluster.plan().waiting[0].1, Why::NotRead);
}

#[test]
fn what_no_node_is_labelled_with_is_not_asked_for() {
    let mut cluster = Cluster::new(&[64_000]);
    cluster.function(1, resources(1000), scaling(0, 0, 0));
    cluster.work(1, 1, 0);
    let anywhere =
        Placement { regions: vec!["eu".to_owned()], cloud: Some("gcp".to_owned()), nonpreemptible: true, ..Placement::default() };
    cluster.load.placements.insert(fu(1), anywhere);
    assert_eq!(cluster.step(), ["start f1 on n1"]);
}

fn scaling(containers_min: u32, containers_max: u32, containers_buffer: u32) -> Scaling {
    Scaling { containers_min, containers_max, containers_buffer, scaledown_ms: 60_000 }
}

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
fn gangs_of_a_function_start_one_after_the_other_where_cores_are_few() {
    let mut cluster = Cluster::new(&[2_000]);
    cluster.clustered(1, resources(10), 3);
    cluster.function(2, resources(10), Scaling::default());
    cluster.work(2, 2, 0);
    assert_eq!(cluster.step().len(), 2);
    cluster.work(1, 100, 0);
    assert_eq!(cluster.step(), ["start f1 on n1 and n1 and n1"], "others that start, and its own size, keep no gang waiting");
    assert_eq!(cluster.plan().waiting, [(fu(1), Why::NextPlan)]);
    assert_eq!(cluster.step(), [""; 0]);
    let gang = cluster.state.gangs.values().next().unwrap().tasks.clone();
    cluster.load.asked.extend(&gang[..2]);
    assert_eq!(cluster.step(), [""; 0], "one of them starts still");
    cluster.load.asked.extend(&gang);
    assert_eq!(cluster.step().len(), 1);
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
fn cpu_work_is_spread_and_draining_or_full_nodes_get_nothing() {
    let mut cluster = Cluster::new(&[4_000, 4_000, 4_000, 500]);
    cluster.function(1, resources(1_000), scaling(0, 0, 0));
    cluster.apply(Command::DrainNode { id: no(3), draining: true });
    cluster.work(1, 4, 0);
    assert_eq!(cluster.step(), ["start f1 on n1", "start f1 on n2", "start f1 on n1", "start f1 on n2"]);
}

#[test]
fn gpu_work_is_packed_and_gets_free_devices() {
    let mut cluster = Cluster::new(&[]);
    for node in 1..=2 {
        cluster.node(node, Resources { cpu_milli: 8_000, memory_bytes: 64 * GIB, gpus: 4 * node as u32, ..Resources::default() });
    }
    cluster.function(1, Resources { gpus: 2, ..resources(100) }, scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.work(1, 2, 1);
    let gpus: Vec<_> = cluster
        .plan()
        .commands
        .iter()
        .map(|c| match c {
            Command::Assign { task, .. } => (task.node, task.gpus.clone()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(gpus, [(no(1), vec![2, 3]), (no(2), vec![0, 1])]);
}

#[test]
fn scarce_room_goes_round_and_the_longest_waiting_come_first() {
    let mut cluster = Cluster::new(&[3_000]);
    cluster.function(1, resources(1_000), scaling(0, 0, 0));
    cluster.function(2, resources(1_000), scaling(0, 0, 0));
    cluster.work(1, 10, 0);
    cluster.work(2, 20, 0);
    assert_eq!(cluster.step(), ["start f2 on n1", "start f1 on n1", "start f2 on n1"]);
}

#[test]
fn idle_containers_of_others_make_room_once() {
    let mut cluster = Cluster::new(&[2_000]);
    cluster.function(1, resources(1_000), scaling(0, 0, 0));
    cluster.function(2, resources(1_000), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.task(2, 1, 1);
    cluster.idle(1, 10);
    cluster.idle(2, 20);
    cluster.work(1, 0, 0);
    cluster.work(2, 1, 0);
    assert_eq!(cluster.step(), [format!("stop 2: idle, makes room for {}", fu(2))]);
    assert_eq!(cluster.step(), Vec::<String>::new(), "what stops already is room enough");
    assert_eq!(cluster.plan().waiting, [(fu(2), Why::RoomSoon { node: "n1".into() })]);
    cluster.apply(Command::EndTask { id: ta(2), generation: 1, end: shoal_state::model::TaskEnd { at: NOW, how: String::new() } });
    assert_eq!(cluster.step(), ["start f2 on n1"]);
}

#[test]
fn tasks_of_a_lost_start_of_a_node_are_replaced() {
    let mut cluster = Cluster::new(&[2_000]);
    cluster.function(1, resources(500), scaling(0, 0, 0));
    cluster.task(1, 1, 1);
    cluster.work(1, 0, 1);
    let node = Node { boot: BootId::from_random(99), ..cluster.state.nodes[&no(1)].clone() };
    cluster.apply(Command::PutNode { id: no(1), node });
    assert_eq!(cluster.step(), ["start f1 on n1"]);
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

#[test]
fn what_no_node_can_hold_is_told_with_numbers() {
    let mut cluster = Cluster::new(&[2_000, 4_000]);
    let mut told = |needs: Resources| {
        cluster.function(1, needs, scaling(0, 0, 0));
        cluster.work(1, 1, 0);
        let text = explain(&cluster.state, &cluster.load, fu(1), NOW);
        text.rsplit_once("; cannot start: ").map(|(_, why)| why.to_owned()).unwrap_or(text)
    };
    assert_eq!(told(resources(64_000)), "needs 64 cores; the largest node has 4 cores");
    let gpus = Resources { gpus: 2, ..resources(125) };
    assert_eq!(told(gpus), "needs 2 GPUs; the largest node has no GPU");
    let both = Resources { memory_bytes: 1 << 50, ..resources(64_500) };
    assert!(told(both).starts_with("needs 64.5 cores and 1073741824 MiB memory; the largest node has 4 cores and "));
}

/// Plans on random clusters until nothing changes: no command is refused, and with the same work the plans come to rest,
/// also when room is scarce and idle containers are stopped for others.
#[test]
fn plans_are_never_refused_and_come_to_rest() {
    for seed in 1..=300u64 {
        let mut bits = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut below = move |bound: u64| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            bits % bound
        };
        let nodes: Vec<u32> = (0..=below(4)).map(|_| 500 * (1 + below(8) as u32)).collect();
        let mut cluster = Cluster::new(&nodes);
        let functions = 1 + u128::from(below(5));
        for function in 1..=functions {
            let scaling = scaling(below(3) as u32, below(6) as u32, below(2) as u32);
            cluster.function_with(function, resources(250 * (1 + below(6) as u32)), scaling, 1 + below(3) as u32);
        }
        let mut next = 0;
        for change in 0..4 {
            for function in 1..=functions {
                cluster.work(function, below(6), below(3));
            }
            let mut rest = false;
            for round in 0..60 {
                let live: Vec<TaskId> = cluster.state.tasks.keys().copied().collect();
                let idle_ms = if below(2) == 0 { 1 } else { 100_000 };
                cluster.load.idle_since.extend(live.into_iter().map(|task| (task, Timestamp(NOW.0 - idle_ms))));
                if round < 10 && below(4) == 0 {
                    (1..=functions).for_each(|function| cluster.work(function, below(6), below(3)));
                }
                let planned = plan(&cluster.state, &cluster.load, NOW, &mut || {
                    next += 1;
                    next
                });
                for command in &planned.commands {
                    let applied = cluster.state.apply(command);
                    assert!(applied.is_ok(), "seed {seed}, change {change}: {applied:?}");
                }
                rest = planned.commands.is_empty();
                let stopping: Vec<TaskId> =
                    cluster.state.tasks.iter().filter(|(_, task)| task.stopping.is_some()).map(|(id, _)| *id).collect();
                for id in stopping.iter().filter(|_| below(2) == 0 || rest) {
                    let end = shoal_state::model::TaskEnd { at: NOW, how: String::new() };
                    cluster.apply(Command::EndTask { id: *id, generation: 1, end });
                }
                if rest && stopping.is_empty() {
                    break;
                }
                rest = false;
            }
            assert!(rest, "seed {seed}, change {change}: still planning");
        }
    }
}

/// A cluster of one node with so many cores, and functions of one core each: the first has all of them, busy, and 1,000 inputs that wait.
fn crowded(cores: u32, functions: u128) -> Cluster {
    let mut cluster = Cluster::new(&[cores * 1000]);
    (1..=functions).for_each(|function| cluster.function(function, resources(1000), Scaling::default()));
    (1..=u128::from(cores)).for_each(|task| cluster.task(task, 1, 1));
    cluster.load.asked = cluster.state.tasks.keys().copied().collect();
    cluster.work(1, 1000, cores.into());
    cluster
}

/// Lets a task end.
fn ends(cluster: &mut Cluster, task: u128) {
    let end = shoal_state::model::TaskEnd { at: NOW, how: "done".to_owned() };
    let generation = cluster.state.tasks[&ta(task)].generation;
    cluster.apply(Command::EndTask { id: ta(task), generation, end });
    cluster.load.yielding.remove(&ta(task));
}

fn why(plan: &Plan, function: u128) -> String {
    plan.waiting.iter().find(|(id, _)| *id == fu(function)).map(|(_, why)| why.to_string()).unwrap_or_default()
}

#[test]
fn a_function_with_a_thousand_inputs_gives_way_to_one_with_one_and_no_more_than_that() {
    let mut cluster = crowded(4, 2);
    cluster.work(2, 1, 0);
    let plan = cluster.plan();
    assert!(plan.commands.is_empty(), "what runs is not touched: {plan:?}");
    assert_eq!(plan.yields.len(), 1);
    assert!(why(&plan, 2).contains("gives way when it is done"), "{}", why(&plan, 2));

    // Nobody else is asked while that one takes its time.
    let asked = plan.yields[0];
    cluster.load.yielding = [asked].into();
    let plan = cluster.plan();
    assert_eq!((plan.yields.len(), plan.commands.len()), (0, 0));
    assert!(why(&plan, 2).contains("containers to stop on node n1"), "{}", why(&plan, 2));

    // What becomes free is for the one that has nothing, though the other has waited for longer.
    ends(&mut cluster, asked.bits());
    cluster.work(1, 1000, 3);
    assert_eq!(cluster.step(), ["start f2 on n1"]);
}

#[test]
fn those_that_wait_share_evenly_and_then_leave_each_other_alone() {
    let mut cluster = crowded(6, 3);
    cluster.work(2, 1000, 0);
    cluster.work(3, 1000, 0);
    for _ in 0..20 {
        let plan = cluster.plan();
        for task in &plan.yields {
            assert_eq!(cluster.state.tasks[task].function, fu(1), "only who has more than the others is asked");
            ends(&mut cluster, task.bits());
        }
        cluster.step();
        cluster.load.asked = cluster.state.tasks.keys().copied().collect();
    }
    let of = |function| cluster.state.tasks.values().filter(|task| task.function == fu(function)).count();
    assert_eq!([of(1), of(2), of(3)], [2, 2, 2]);
    let plan = cluster.plan();
    assert_eq!((plan.yields.len(), plan.commands.len()), (0, 0), "{plan:?}");
}

#[test]
fn the_only_place_is_had_in_turns_by_those_that_have_nothing() {
    let mut cluster = crowded(1, 2);
    cluster.work(2, 5, 0);
    let young = |cluster: &mut Cluster, task: u128, ms: u64| {
        let task = cluster.state.tasks.get_mut(&ta(task)).unwrap();
        task.created = Timestamp(NOW.0 - ms);
    };
    young(&mut cluster, 1, 15_000);
    assert_eq!(cluster.plan().yields, [], "its turn has just begun");
    young(&mut cluster, 1, 25_000);
    assert_eq!(cluster.plan().yields, [ta(1)]);
}

#[test]
fn a_gang_gives_way_as_a_whole_and_others_give_way_to_one() {
    let mut cluster = Cluster::new(&[2_000, 2_000]);
    cluster.clustered(1, resources(2_000), 2);
    (2..=4).for_each(|number| cluster.function(number, resources(2_000), Scaling::default()));
    cluster.work(1, 1, 0);
    cluster.step();
    let gang = cluster.state.gangs.values().next().unwrap().tasks.clone();
    gang.iter().for_each(|task| cluster.state.tasks.get_mut(task).unwrap().created = Timestamp(0));
    cluster.work(1, 0, 1);
    // Two wait, and one gang is room for both: it is asked once, by its rank 0.
    cluster.work(2, 1, 0);
    cluster.work(3, 1, 0);
    let made = cluster.plan();
    assert_eq!((made.yields.as_slice(), made.commands.len()), ([gang[0]].as_slice(), 0), "{made:?}");
    assert!(why(&made, 3).contains("containers to stop"), "{}", why(&made, 3));
    cluster.load.yielding = [gang[0]].into();
    let made = cluster.plan();
    assert_eq!((made.yields.len(), made.commands.len()), (0, 0), "{made:?}");
    assert!([2, 3].iter().all(|function| why(&made, *function).contains("containers to stop")), "{made:?}");
    // The third finds nothing in what the two were promised.
    cluster.work(4, 1, 0);
    assert!(why(&cluster.plan(), 4).starts_with("waiting for 2 cores"), "{}", why(&cluster.plan(), 4));

    // The other way round: two containers of two functions are asked for the sake of a gang.
    gang.iter().for_each(|task| ends(&mut cluster, task.bits()));
    cluster.work(4, 0, 0);
    cluster.step();
    cluster.state.tasks.iter().map(|(id, _)| *id).collect::<Vec<_>>().iter().for_each(|task| {
        cluster.state.tasks.get_mut(task).unwrap().created = Timestamp(0);
    });
    for function in [2, 3] {
        cluster.work(function, 0, 1);
    }
    cluster.work(1, 1, 0);
    assert_eq!(cluster.plan().yields.len(), 2, "{:?}", cluster.plan());
}

#[test]
fn a_gang_that_has_more_takes_no_place_of_a_container_that_was_just_used() {
    let mut cluster = Cluster::new(&[4_000]);
    cluster.clustered(1, resources(1_000), 2);
    cluster.function(2, resources(2_000), Scaling::default());
    cluster.work(1, 1, 0);
    cluster.step();
    cluster.task(9, 2, 1);
    cluster.work(1, 1, 1);
    cluster.work(2, 0, 0);
    cluster.idle(9, 3_000);
    assert_eq!(cluster.step(), [""; 0]);
    cluster.idle(9, 12_000);
    assert_eq!(cluster.step(), [format!("stop 9: idle, makes room for {}", fu(1))]);
}

#[test]
fn a_container_that_was_just_used_stays_when_one_that_has_more_wants_its_place() {
    let mut cluster = crowded(4, 2);
    ends(&mut cluster, 4);
    cluster.task(9, 2, 1);
    cluster.work(2, 0, 0);
    cluster.idle(9, 3_000);
    assert_eq!(cluster.step(), [""; 0]);
    cluster.idle(9, 12_000);
    assert_eq!(cluster.step(), [format!("stop 9: idle, makes room for {}", fu(1))]);
}

#[test]
fn sandboxes_builds_and_minimums_are_not_asked_to_give_way() {
    let mut cluster = crowded(2, 2);
    cluster.work(2, 1, 0);
    let function = cluster.state.functions[&fu(1)].clone();
    let with = |cluster: &mut Cluster, change: fn(&mut Function)| {
        let mut function = function.clone();
        change(&mut function);
        cluster.state.functions.insert(fu(1), function);
    };
    assert_eq!(cluster.plan().yields.len(), 1);
    with(&mut cluster, |function| function.scaling.containers_min = 2);
    assert_eq!(cluster.plan().yields, []);
    with(&mut cluster, |function| function.builder = true);
    assert_eq!(cluster.plan().yields, []);
}
