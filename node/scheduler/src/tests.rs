//! Tables: a small cluster, some load, and the commands that must come out.

mod gangs;
mod places;
mod scaling;
mod sharing;

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

fn scaling(containers_min: u32, containers_max: u32, containers_buffer: u32) -> Scaling {
    Scaling { containers_min, containers_max, containers_buffer, scaledown_ms: 60_000 }
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
