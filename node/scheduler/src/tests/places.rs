//! Where containers go: what nodes have, what they are labelled with, and whether they are there.

use super::*;

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
