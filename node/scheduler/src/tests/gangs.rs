//! Containers of clustered functions: all or none, and as one to their end.

use super::*;

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
