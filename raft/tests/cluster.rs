//! Several nodes in one process, joined by a network in memory that can be cut.

mod net;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use net::{Cluster, id, patient, peer, set, soon, tuning, until};
use shoal_raft::{Error, Raft, Tuning, first_difference};
use shoal_state::{Command, VERSION_KNOWN};
use tokio::time::Instant;

/// Waits until one of these has led for a while, and returns it. A busy machine may miss heartbeats now and then; where somebody stands
/// for election again and again, nobody leads for so long.
async fn steady_among(cluster: &Cluster, nodes: &[Raft], span: Duration) -> Raft {
    for _ in 0..8 {
        let leader = cluster.leader_among(nodes).await;
        let term = leader.term();
        tokio::time::sleep(span).await;
        if leader.leads() && nodes.iter().all(|raft| raft.term() == term) {
            return leader;
        }
    }
    panic!("nobody led for {span:?}: somebody stands for election again and again");
}

#[tokio::test]
async fn a_leader_that_is_known_to_be_gone_is_replaced_before_the_time_is_up() {
    // By time alone nobody would stand before the test has failed.
    let patient = Tuning { election_min: Duration::from_secs(20), election_max: Duration::from_secs(25), ..tuning() };
    let cluster = Cluster::new(3, patient).await;
    let leader = cluster.leader_among(&cluster.net.nodes()).await;
    cluster.stop(leader.node()).await;
    let others = cluster.others(leader.node());
    // All who know stand, one after the other or at once, and one of them is elected.
    for raft in &others {
        raft.succeed(leader.node()).await;
    }
    let next = cluster.leader_among(&others).await;
    assert_ne!(next.node(), leader.node());
    // Of one who leads it is not believed.
    let term = next.term();
    for raft in &others {
        raft.succeed(leader.node()).await;
    }
    assert_eq!(next.propose(vec![set("after", 1)]).await.unwrap().len(), 1);
    assert_eq!(next.term(), term);
    cluster.end().await;
}

#[tokio::test]
async fn a_voter_that_is_heard_and_hears_nobody_does_not_stand_again_and_again() {
    let tuning = Tuning { quorum_lost: Duration::from_secs(2), ..tuning() };
    let cluster = Cluster::new(3, tuning).await;
    let leader = cluster.leader_among(&cluster.net.nodes()).await;
    let deaf = cluster.others(leader.node()).remove(0);
    cluster.net.deafen(deaf.node());
    // Until it rests, each of its questions may end a leader's time.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let hearing = cluster.others(deaf.node());
    steady_among(&cluster, &hearing, Duration::from_secs(3)).await;
    for number in 0..10 {
        hearing[0].propose_by(&[set(number, "decided")], soon()).await.unwrap();
    }
    cluster.net.heal();
    until("it to have what was decided", || deaf.local().settings.len() == 10).await;
    // Where nobody hears anybody all rest, and find each other again.
    cluster.net.nodes().iter().for_each(|raft| cluster.net.cut_off(raft.node()));
    tokio::time::sleep(Duration::from_secs(6)).await;
    cluster.net.heal();
    hearing[0].propose_by(&[set("after", 1)], soon()).await.unwrap();
    cluster.end().await;
}

#[tokio::test]
async fn nobody_waits_for_a_leader_that_vanished_once_there_is_another() {
    let cluster = Cluster::new(3, patient()).await;
    let leader = cluster.leader_among(&cluster.net.nodes()).await;
    let others = cluster.others(leader.node());
    cluster.net.vanish(leader.node());
    // Both ask the leader that they know, long before another one is elected.
    let (one, other) = (others[0].clone(), others[1].clone());
    let patience = Duration::from_secs(600);
    let proposed = tokio::spawn(async move { one.propose_by(&[set("sent", 1)], Instant::now() + patience).await });
    let read = tokio::spawn(async move { other.read_latest_by(Instant::now() + patience).await });
    let within = Duration::from_secs(60);
    let proposed = tokio::time::timeout(within, proposed).await.expect("the proposal waits for who is gone").unwrap();
    assert!(matches!(proposed, Err(Error::Unanswered { .. })), "it may have been done: {proposed:?}");
    tokio::time::timeout(within, read).await.expect("the read waits for who is gone").unwrap().unwrap();
    cluster.net.heal();
    cluster.end().await;
}

#[tokio::test]
async fn what_many_propose_at_once_on_a_node_that_follows_is_answered_to_each() {
    let cluster = Cluster::new(3, tuning()).await;
    let leader = cluster.leader_among(&cluster.net.nodes()).await;
    let follower = cluster.others(leader.node()).remove(0);
    for version in [1, VERSION_KNOWN] {
        if version > 1 {
            follower.propose(vec![Command::SetVersion { version }]).await.unwrap();
        }
        let calls = (0..300).map(|number| {
            let (follower, refused) = (follower.clone(), Command::DrainNode { id: id(1000 + number), draining: true });
            tokio::spawn(async move {
                let mut commands = vec![set(format!("{version}-{number}"), number)];
                if number % 3 == 0 {
                    commands.insert(0, refused);
                }
                (number, follower.propose(commands).await.unwrap(), follower.local())
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let (number, answers, state) = call.await.unwrap();
            let refusals: Vec<_> = answers.iter().map(Result::is_err).collect();
            assert_eq!(refusals, if number % 3 == 0 { vec![true, false] } else { vec![false] });
            assert_eq!(state.settings.get(&format!("{version}-{number}")), Some(&number.to_string()), "it is here when it is answered");
        }
    }
    cluster.end().await;
}

#[tokio::test]
async fn any_node_takes_proposals_and_sees_them_and_all_give_the_same_answers() {
    let cluster = Cluster::new(3, tuning()).await;
    for number in 1..=3 {
        let raft = cluster.node(id(number));
        raft.propose_by(&[set(number, "here")], soon()).await.unwrap();
        assert!(raft.local().settings.contains_key(&number.to_string()), "node {number} does not see its own write");
        for reader in 1..=3 {
            let state = cluster.node(id(reader)).read_latest_by(soon()).await.unwrap();
            assert_eq!(state.settings.len() as u128, number, "node {reader} reads an old state");
        }
    }
    let far = cluster.node(id(2)).propose(vec![Command::SetVersion { version: u32::MAX }]).await.unwrap_err();
    assert!(matches!(far, Error::VersionUnknown { .. }), "{far}");
    // Enough entries for a mark, from all sides at once.
    let calls = (0..1200).map(|n| {
        let raft = cluster.node(id(1 + n % 3));
        tokio::spawn(async move {
            for m in 0..5 {
                raft.propose_by(&[set(n, m)], soon()).await.unwrap();
            }
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    while cluster.node(id(1)).status().last_log < 1000 {
        cluster.node(id(1)).propose_by(&[set("more", 1)], soon()).await.unwrap();
    }
    let mut marks = Vec::new();
    for number in 1..=3 {
        cluster.node(id(number)).read_latest_by(soon()).await.unwrap();
        marks.push(cluster.node(id(number)).status().marks);
    }
    assert!(marks[0].iter().any(|mark| mark.index == shoal_raft::MARK_EVERY));
    assert_eq!(first_difference(&marks[0], &marks[1]).or(first_difference(&marks[0], &marks[2])), None);
    cluster.end().await;
}

/// A founder whose log begins behind a snapshot, and a learner that has everything by it.
async fn with_a_learner_by_snapshot() -> (Cluster, Raft, Raft) {
    let tuning = Tuning { snapshot_every: 20, entries_kept: 0, ..tuning() };
    let mut cluster = Cluster::new(1, tuning).await;
    let founder = cluster.node(id(1));
    for n in 0..100 {
        founder.propose_by(&[set(n, "x".repeat(2000))], soon()).await.unwrap();
    }
    until("a purge", || founder.status().purged > 50).await;
    let learner = cluster.start(id(2)).await;
    founder.add_learner(peer(id(2))).await.unwrap();
    until("the learner to have everything", || learner.local() == founder.local()).await;
    (cluster, founder, learner)
}

#[tokio::test]
async fn a_learner_that_joins_after_a_snapshot_and_a_purge_gets_the_snapshot_and_then_the_log() {
    let (mut cluster, founder, learner) = with_a_learner_by_snapshot().await;
    assert!(learner.watch().borrow().replaced > 0, "it did not come by a snapshot");
    founder.propose_by(&[set("later", 1)], soon()).await.unwrap();
    until("the learner to follow the log", || learner.local().settings.contains_key("later")).await;
    // It starts again from the snapshot it was sent.
    cluster.stop(id(2)).await;
    founder.propose_by(&[set("meanwhile", 1)], soon()).await.unwrap();
    let learner = cluster.start(id(2)).await;
    assert!(learner.local().settings.len() > 50);
    until("the learner to catch up", || learner.local() == founder.local()).await;
    assert_eq!(founder.status().learners, [peer(id(2))]);
    cluster.end().await;
}

/// A leader that is cut off writes entries that nobody confirms: who looks at its disk does not take them for decided.
#[tokio::test]
async fn entries_that_are_not_known_to_be_committed_are_left_out_of_what_a_disk_says() {
    let cluster = Cluster::new(3, patient()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    leader.propose_by(&[set("decided", 1)], soon()).await.unwrap();
    cluster.net.cut_off(leader.node());
    let before = leader.status().last_log;
    let unheard = leader.propose_by(&[set("undecided", 1)], Instant::now() + Duration::from_millis(300)).await;
    assert!(unheard.is_err());
    until("it to be written", || leader.status().last_log > before).await;
    cluster.stop(leader.node()).await;
    let left = shoal_raft::look(cluster.dirs[&leader.node()].path()).unwrap();
    assert!(left.state.settings.contains_key("decided") && !left.state.settings.contains_key("undecided"));
    assert!(left.undecided >= 1);
    cluster.end().await;
}

#[tokio::test]
async fn when_the_leader_stops_another_takes_over_and_nothing_that_was_acknowledged_is_lost() {
    let mut cluster = Cluster::new(3, tuning()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    let writer = cluster.others(leader.node())[0].clone();
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let writing = tokio::spawn({
        let (writer, acknowledged) = (writer.clone(), acknowledged.clone());
        async move {
            for n in 0..300 {
                // One that was lost on the way may or may not have been applied.
                if writer.propose_by(&[set(n, n)], soon()).await.is_ok() {
                    acknowledged.lock().unwrap().push(n);
                }
            }
        }
    });
    until("some writes", || acknowledged.lock().unwrap().len() > 50).await;
    cluster.stop(leader.node()).await;
    let new_leader = cluster.leader_among(&cluster.others(leader.node())).await;
    assert_ne!(new_leader.node(), leader.node());
    writing.await.unwrap();
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(acknowledged.len() >= 290, "only {} of 300 writes went through a failover", acknowledged.len());
    let back = cluster.start(leader.node()).await;
    let state = back.read_latest_by(soon()).await.unwrap();
    for n in acknowledged {
        assert_eq!(state.settings[&n.to_string()], n.to_string());
    }
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_that_is_cut_off_confirms_no_read_and_gives_up_what_it_could_not_commit() {
    let cluster = Cluster::new(3, patient()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let old = cluster.leader_among(&all).await;
    cluster.net.cut_off(old.node());
    let new = cluster.leader_among(&cluster.others(old.node())).await;
    new.propose_by(&[set("side", "majority")], soon()).await.unwrap();
    // The old leader still takes itself for one.
    assert!(old.leads());
    let read = old.read_latest_by(Instant::now() + Duration::from_secs(1)).await;
    assert!(matches!(read, Err(Error::Unconfirmed { .. } | Error::NoLeader { .. })), "{:?}", read.map(|state| state.settings.clone()));
    let hasty = old.propose_by(&[set("hasty", "minority")], Instant::now() + Duration::from_millis(300)).await;
    assert!(matches!(hasty, Err(Error::Unanswered { .. })), "{hasty:?}");
    let patient = tokio::spawn({
        let old = old.clone();
        async move { old.propose_by(&[set("patient", "either")], soon()).await }
    });
    until("the proposal to be in its log", || old.status().last_log > old.status().applied + 1).await;
    cluster.net.heal();
    // What is cut from its log was surely not applied, so the call goes on with the new leader.
    patient.await.unwrap().unwrap();
    let state = old.read_latest_by(soon()).await.unwrap();
    assert_eq!(state.settings["side"], "majority");
    assert_eq!(state.settings["patient"], "either");
    assert!(!state.settings.contains_key("hasty"));
    cluster.end().await;
}

/// A wire that is broken in one way: what the leader says arrives, and nothing comes back.
#[tokio::test]
async fn a_leader_that_hears_nobody_gives_up_and_follows_the_next_once_it_hears_again() {
    let cluster = Cluster::new(3, Tuning { quorum_lost: Duration::from_secs(2), ..tuning() }).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let old = cluster.leader_among(&all).await;
    cluster.net.deafen(old.node());
    let new = cluster.leader_among(&cluster.others(old.node())).await;
    assert!(!old.leads(), "its words kept the others from electing one: it must have given up first");
    new.propose_by(&[set("meanwhile", 1)], soon()).await.unwrap();
    // Who hears nobody does not stand for election.
    steady_among(&cluster, &cluster.others(old.node()), Duration::from_secs(2)).await;
    cluster.net.heal();
    until("it to follow", || old.leader().is_some_and(|peer| peer.node != old.node())).await;
    old.propose_by(&[set("after", 1)], soon()).await.unwrap();
    cluster.end().await;
}

/// Nobody can lead while two of three are away; the one that gave up may have the only log that is long enough to win.
#[tokio::test]
async fn a_leader_that_gave_up_with_the_longest_log_leads_again_when_one_of_the_others_is_back() {
    let cluster = Cluster::new(3, Tuning { quorum_lost: Duration::from_secs(2), ..tuning() }).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let old = cluster.leader_among(&all).await;
    let others = cluster.others(old.node());
    others[1].shutdown().await;
    cluster.net.detach(others[1].node());
    cluster.net.cut_off(others[0].node());
    let alone = old.propose_by(&[set("alone", 1)], Instant::now() + Duration::from_secs(1)).await;
    assert!(matches!(alone, Err(Error::Unanswered { .. })), "{alone:?}");
    until("it to give up", || !old.leads()).await;
    cluster.net.heal();
    let (old, back) = (old.clone(), others[0].clone());
    until("it to lead again", || old.leads() && back.leader().is_some_and(|peer| peer.node == old.node())).await;
    old.propose_by(&[set("together", 1)], soon()).await.unwrap();
    cluster.end().await;
}

/// Packets take longer there and back than a heartbeat, an append of which openraft gives up after that time.
#[tokio::test]
async fn a_cluster_on_slow_wires_decides_reads_and_elects() {
    let tuning = Tuning { quorum_lost: Duration::from_secs(2), ..Tuning::default() };
    let mut cluster = Cluster::new(3, tuning).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    cluster.leader_among(&all).await;
    cluster.net.slow(Duration::from_millis(200));
    for n in 0..5 {
        for raft in &all {
            raft.propose(vec![set(n, raft.node())]).await.unwrap();
            assert_eq!(raft.read_latest().await.unwrap().settings[&n.to_string()], raft.node().to_string());
        }
    }
    // The others hear the leader, and it hears them.
    let leader = steady_among(&cluster, &all, Duration::from_secs(8)).await;
    let is_soon = |heard: Option<Duration>| heard.is_some_and(|ago| ago < Duration::from_secs(1));
    until("all to be heard", || leader.status().followers.iter().all(|follower| is_soon(follower.heard))).await;
    cluster.stop(leader.node()).await;
    let others = cluster.others(leader.node());
    let next = cluster.leader_among(&others).await;
    next.propose(vec![set("next", 1)]).await.unwrap();
    let back = cluster.start(leader.node()).await;
    assert_eq!(back.read_latest().await.unwrap().settings["next"], "1");
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_that_cannot_be_reached_is_named() {
    // Who is cut off knows its leader for long.
    let cluster =
        Cluster::new(3, Tuning { election_min: Duration::from_secs(20), election_max: Duration::from_secs(25), ..tuning() }).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    let follower = cluster.others(leader.node())[0].clone();
    cluster.net.cut_off(follower.node());
    let refused = follower.propose_by(&[set("a", 1)], Instant::now() + Duration::from_millis(200)).await.unwrap_err();
    match &refused {
        Error::LeaderUnreachable { leader: named, .. } => assert_eq!(*named, leader.node()),
        other => panic!("{other}"),
    }
    assert!(refused.to_string().contains("the wire is cut"), "{refused}");
    cluster.end().await;
}

#[tokio::test]
async fn a_leader_that_gives_up_its_vote_steps_down_and_follows() {
    let cluster = Cluster::new(3, tuning()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let old = cluster.leader_among(&all).await;
    let others = cluster.others(old.node());
    until("all to be heard", || old.status().followers.iter().all(|follower| follower.heard.is_some())).await;
    assert_eq!(old.status().followers.len(), 2);
    assert!(!old.has_no_vote().await && old.status().changing_to.is_none());
    old.set_voters(&others.iter().map(Raft::node).collect::<Vec<_>>()).await.unwrap();
    // For a moment it may think that it leads. What it then wants to change is for the next leader.
    assert!(old.add_learner(peer(old.node())).await.unwrap_err().to_string().contains("votes no more"));
    let new = cluster.leader_among(&others).await;
    assert!(old.has_no_vote().await && !old.leads() && old.status().followers.is_empty());
    // It is no member any more, until the new leader makes it one that follows.
    assert!(new.status().learners.is_empty());
    new.add_learner(peer(old.node())).await.unwrap();
    new.propose_by(&[set("after", 1)], soon()).await.unwrap();
    until("the old leader to follow", || old.local().settings.contains_key("after")).await;
    assert_eq!((new.status().learners, old.leader().map(|peer| peer.node)), (vec![peer(old.node())], Some(new.node())));
    new.remove_learner(old.node()).await.unwrap();
    assert!(new.status().learners.is_empty());
    // The other two can lose one more, by its own removal.
    let last = others.iter().find(|raft| raft.node() != new.node()).unwrap();
    new.set_voters(&[last.node()]).await.unwrap();
    until("the last one to lead", || last.leads()).await;
    last.propose_by(&[set("alone", 1)], soon()).await.unwrap();
    cluster.end().await;
}

/// What a node says of its peers must not be taken from before it led.
#[tokio::test]
async fn a_follower_that_is_cut_off_is_no_longer_heard() {
    let cluster = Cluster::new(3, patient()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    let lost = cluster.others(leader.node())[0].node();
    let heard = |node| leader.status().followers.iter().find(|follower| follower.node == node).and_then(|follower| follower.heard);
    until("both to be heard", || all.iter().all(|raft| raft.node() == leader.node() || heard(raft.node()).is_some())).await;
    cluster.net.cut_off(lost);
    until("the one that is cut off to be silent", || heard(lost).is_some_and(|ago| ago > Duration::from_secs(1))).await;
    let other = cluster.others(leader.node()).into_iter().find(|raft| raft.node() != lost).unwrap();
    let is_soon = |heard: Option<Duration>| heard.is_some_and(|ago| ago < Duration::from_secs(1));
    until("the other one and so a majority to be heard", || is_soon(heard(other.node())) && is_soon(leader.status().quorum_heard)).await;
    cluster.net.cut_off(other.node());
    until("no majority to be heard", || leader.status().quorum_heard.is_some_and(|ago| ago > Duration::from_secs(1))).await;
    cluster.end().await;
}

/// Two of three are gone for good: the third goes on alone with all that it has, also with what it had only just been told.
#[tokio::test]
async fn a_survivor_goes_on_alone_with_all_that_it_has() {
    let mut cluster = Cluster::new(3, patient()).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    for n in 0..20 {
        leader.propose_by(&[set(n, n)], soon()).await.unwrap();
    }
    for raft in cluster.others(leader.node()) {
        cluster.stop(raft.node()).await;
    }
    let before = leader.status().last_log;
    let hasty = leader.propose_by(&[set("undecided", 1)], Instant::now() + Duration::from_millis(300)).await;
    assert!(hasty.is_err(), "there was no majority");
    until("it to be written", || leader.status().last_log > before).await;
    let survivor = leader.node();
    drop((all, leader));
    cluster.stop(survivor).await;
    let dir = cluster.dirs[&survivor].path().to_owned();
    let other = shoal_raft::recover(&dir, peer(id(9))).unwrap_err();
    assert!(other.to_string().contains("belongs to node"), "{other}");
    // Once more is fine: whoever was interrupted does it again.
    shoal_raft::recover(&dir, peer(survivor)).unwrap();
    shoal_raft::recover(&dir, peer(survivor)).unwrap();
    let alone = cluster.start(survivor).await;
    let state = alone.read_latest_by(soon()).await.unwrap();
    assert!((0..20).all(|n: i32| state.settings.contains_key(&n.to_string())) && state.settings.contains_key("undecided"));
    assert_eq!((alone.status().voters, alone.status().learners), (vec![peer(survivor)], vec![]));
    alone.propose_by(&[set("after", 1)], soon()).await.unwrap();
    // Another one joins it.
    let joiner = cluster.start(id(4)).await;
    alone.add_learner(peer(id(4))).await.unwrap();
    until("the other one to have everything", || joiner.local() == alone.local()).await;
    cluster.end().await;
    let empty = tempfile::tempdir().unwrap();
    let nothing = shoal_raft::recover(empty.path(), peer(id(1))).unwrap_err();
    assert!(nothing.to_string().contains("no cluster ever wrote to it"), "{nothing}");
}

/// A survivor that came by a snapshot, and whose log begins behind it.
#[tokio::test]
async fn a_survivor_that_came_by_a_snapshot_goes_on_alone() {
    let (mut cluster, founder, learner) = with_a_learner_by_snapshot().await;
    drop((founder, learner));
    cluster.stop(id(1)).await;
    cluster.stop(id(2)).await;
    shoal_raft::recover(cluster.dirs[&id(2)].path(), peer(id(2))).unwrap();
    let alone = cluster.start(id(2)).await;
    assert_eq!(alone.read_latest_by(soon()).await.unwrap().settings.len(), 100);
    alone.propose_by(&[set("after", 1)], soon()).await.unwrap();
    cluster.end().await;
}
