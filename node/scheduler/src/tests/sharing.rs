//! Who gets scarce room, and who is asked to give way.

use super::*;

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

/// Task 9, of function 2, keeps its place while it was just used, and gives it to function 1 after that.
fn gives_its_place_once_it_was_idle(mut cluster: Cluster) {
    cluster.work(2, 0, 0);
    cluster.idle(9, 3_000);
    assert_eq!(cluster.step(), [""; 0]);
    cluster.idle(9, 12_000);
    assert_eq!(cluster.step(), [format!("stop 9: idle, makes room for {}", fu(1))]);
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
    gives_its_place_once_it_was_idle(cluster);
}

#[test]
fn a_container_that_was_just_used_stays_when_one_that_has_more_wants_its_place() {
    let mut cluster = crowded(4, 2);
    ends(&mut cluster, 4);
    cluster.task(9, 2, 1);
    gives_its_place_once_it_was_idle(cluster);
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
