//! Nodes that are no members of consensus, and follow those that vote.

mod net;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use net::{Cluster, id, patient, peer, set, soon, tuning, until};
use shoal_raft::{FOLLOWERS_SINCE, Raft, Role, Tuning, first_difference};
use shoal_state::{Command, NodeId};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Starts three nodes that vote, with the rules of followers.
async fn three(tuning: Tuning) -> (Cluster, Raft) {
    let cluster = Cluster::new(3, tuning).await;
    let all: Vec<_> = (1..=3).map(|number| cluster.node(id(number))).collect();
    let leader = cluster.leader_among(&all).await;
    leader.propose_by(&[Command::SetVersion { version: FOLLOWERS_SINCE }], soon()).await.unwrap();
    (cluster, leader)
}

/// Invites a node until it hears a voter, as the leader's driver does.
async fn invited(cluster: &Cluster, node: NodeId) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let leader = cluster.net.nodes().into_iter().find(|raft| raft.leads() && raft.node() != node);
        if let Some(leader) = leader
            && leader.invite(&peer(node)).await.unwrap_or(false)
        {
            return;
        }
        assert!(Instant::now() < deadline, "waited in vain for {node} to follow");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Starts three that vote and a fourth node that follows them.
async fn three_and_one(tuning: Tuning) -> (Cluster, Raft, Raft) {
    let (mut cluster, leader) = three(tuning).await;
    let follower = cluster.start(id(4)).await;
    invited(&cluster, id(4)).await;
    (cluster, leader, follower)
}

fn fed_by(raft: &Raft) -> Option<NodeId> {
    match raft.status().role {
        Role::Follower(by) => by,
        Role::Member => None,
    }
}

fn is_member(raft: &Raft) -> bool {
    raft.status().role == Role::Member
}

/// Proposes one setting after the other through a node until it is ended; returns those that were acknowledged.
struct Writer {
    over: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<Vec<usize>>,
}

impl Writer {
    fn through(raft: &Raft) -> Self {
        let (over, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (raft, over, count) = (raft.clone(), over.clone(), count.clone());
            async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // One that was lost on the way may or may not have been applied.
                    if raft.propose_by(&[set(n, "x".repeat(100))], soon()).await.is_ok() {
                        acknowledged.push(n);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                acknowledged
            }
        });
        Self { over, count, task }
    }

    /// Waits for some more of what is written to be acknowledged.
    async fn more(&self, what: &str) {
        let before = self.count.load(Ordering::Relaxed);
        until(what, || self.count.load(Ordering::Relaxed) > before + 30).await;
    }

    async fn end(self) -> Vec<usize> {
        self.over.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// All have the same state, with everything that was acknowledged, by the same answers.
async fn all_agree(cluster: &Cluster, acknowledged: &[usize]) {
    let nodes = cluster.net.nodes();
    let state = nodes[0].read_latest_by(soon()).await.unwrap();
    for raft in &nodes {
        let read = raft.read_latest_by(soon()).await.unwrap();
        assert!(read == state, "{} has another state", raft.node());
        assert_eq!(first_difference(&nodes[0].status().marks, &raft.status().marks), None);
    }
    for n in acknowledged {
        assert!(state.settings.contains_key(&n.to_string()), "{n} was acknowledged, and is lost");
    }
}

#[tokio::test]
async fn a_follower_proposes_and_reads_and_is_no_member() {
    let (cluster, leader, follower) = three_and_one(tuning()).await;
    assert!(fed_by(&follower).is_some_and(|by| by != leader.node()), "{:?}", follower.status());
    for n in 0..20 {
        follower.propose_by(&[set(n, "there")], soon()).await.unwrap();
        assert!(follower.local().settings.contains_key(&n.to_string()), "it sees what it wrote");
        leader.propose_by(&[set("last", n)], soon()).await.unwrap();
        assert_eq!(follower.read_latest_by(soon()).await.unwrap().settings["last"], n.to_string());
    }
    let (there, here) = (leader.status(), follower.status());
    assert_eq!((there.learners, there.voters.len(), there.followers.len()), (vec![], 3, 2));
    assert_eq!((here.voters, here.leader, here.term), (there.voters, Some(leader.node()), there.term));
    assert!(follower.has_no_vote().await && !follower.leads());
    let no = follower.add_learner(peer(id(5))).await.unwrap_err();
    assert!(no.to_string().contains("this node follows"), "{no}");
    all_agree(&cluster, &[]).await;
    // It goes on from its disk alone, and asks for what it has not got.
    cluster.stop(id(4)).await;
    leader.propose_by(&[set("meanwhile", 1)], soon()).await.unwrap();
    let mut cluster = cluster;
    let follower = cluster.start(id(4)).await;
    assert!(follower.local().settings.len() >= 20, "what it had is on its disk");
    until("it to have the rest", || follower.local() == leader.local()).await;
    cluster.end().await;
}

#[tokio::test]
async fn when_its_voter_dies_a_follower_goes_on_with_another_and_loses_nothing() {
    let (cluster, _, follower) = three_and_one(tuning()).await;
    let writer = Writer::through(&follower);
    writer.more("writes").await;
    let first = fed_by(&follower).unwrap();
    cluster.net.cut_off(first);
    until("it to follow another one", || fed_by(&follower).is_some_and(|by| by != first)).await;
    writer.more("writes by the other").await;
    cluster.net.heal();
    // This time the leader of the rest goes, and says so.
    let second = fed_by(&follower).unwrap();
    cluster.stop(second).await;
    until("it to follow a third one", || fed_by(&follower).is_some_and(|by| by != second)).await;
    writer.more("writes by the third").await;
    let acknowledged = writer.end().await;
    all_agree(&cluster, &acknowledged).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_gets_a_snapshot_where_the_log_begins_behind_what_it_has() {
    let tuning = Tuning { snapshot_every: 20, entries_kept: 10, ..tuning() };
    let (mut cluster, leader, follower) = three_and_one(tuning).await;
    for n in 0..100 {
        follower.propose_by(&[set(n, "x".repeat(5000))], soon()).await.unwrap();
    }
    // It makes snapshots of its own, and gives the log back.
    until("its own purge", || follower.status().purged > 40).await;
    assert!(follower.status().snapshot > 40);
    cluster.stop(id(4)).await;
    for n in 100..200 {
        leader.propose_by(&[set(n, "x".repeat(5000))], soon()).await.unwrap();
    }
    until("all to purge", || (1..=3).all(|number| cluster.node(id(number)).status().purged > 150)).await;
    let follower = cluster.start(id(4)).await;
    assert!(follower.local().settings.len() >= 40, "it starts from its own snapshot");
    let before = follower.watch().borrow().replaced;
    until("it to have everything", || follower.local() == leader.local()).await;
    assert_eq!(follower.watch().borrow().replaced, before + 1);
    follower.propose_by(&[set("after", 1)], soon()).await.unwrap();
    // Also what it took over is there after a new start, and the log goes on behind it.
    cluster.stop(id(4)).await;
    let follower = cluster.start(id(4)).await;
    assert!(follower.local().settings.len() >= 200);
    until("it to have everything again", || follower.local() == leader.local()).await;
    all_agree(&cluster, &[]).await;
    cluster.end().await;
}

/// Nothing stands still, and nothing is lost, while a node goes to and fro between following and voting; it is the same process.
#[tokio::test]
async fn a_follower_is_made_a_voter_and_a_follower_again_under_writes() {
    let (mut cluster, leader, follower) = three_and_one(Tuning { snapshot_every: 50, entries_kept: 100, ..tuning() }).await;
    let writer = Writer::through(&follower);
    for round in 0..2 {
        writer.more("writes while it follows").await;
        leader.add_learner(peer(id(4))).await.unwrap();
        until("it to be a member", || is_member(&follower)).await;
        leader.set_voters(&[1, 2, 3, 4].map(id)).await.unwrap();
        writer.more("writes while it votes").await;
        assert!(!follower.has_no_vote().await);
        leader.set_voters(&[1, 2, 3].map(id)).await.unwrap();
        leader.remove_learner(id(4)).await.unwrap();
        if round == 0 {
            // It may have been gone before it could read so: then the leader tells it.
            invited(&cluster, id(4)).await;
        } else {
            // A new start in between changes nothing.
            let acknowledged = writer.end().await;
            cluster.stop(id(4)).await;
            let again = cluster.start(id(4)).await;
            invited(&cluster, id(4)).await;
            assert!(fed_by(&again).is_some());
            all_agree(&cluster, &acknowledged).await;
            break;
        }
        assert!(leader.status().learners.is_empty());
    }
    cluster.end().await;
}

/// One that voted, and led, comes back long after the others went on without it: what it alone had written goes, and it disturbs nobody.
#[tokio::test]
async fn one_that_takes_itself_for_a_voter_is_told_that_it_is_none() {
    // With time enough that nobody else stands for election: a busy machine may miss some heartbeats.
    let slow = Tuning { election_min: Duration::from_secs(2), election_max: Duration::from_secs(3), ..patient() };
    let (mut cluster, old) = three(slow).await;
    cluster.net.cut_off(old.node());
    let hasty = old.propose_by(&[set("hasty", 1)], Instant::now() + Duration::from_millis(300)).await;
    assert!(hasty.is_err());
    let others = cluster.others(old.node());
    let new = cluster.leader_among(&others).await;
    new.set_voters(&others.iter().map(Raft::node).collect::<Vec<_>>()).await.unwrap();
    new.remove_learner(old.node()).await.unwrap();
    new.propose_by(&[set("meanwhile", 1)], soon()).await.unwrap();
    let term = new.term();
    cluster.net.heal();
    invited(&cluster, old.node()).await;
    until("it to have what the others decided", || old.local() == new.local()).await;
    assert!(!old.local().settings.contains_key("hasty"));
    assert_eq!((new.term(), new.leads()), (term, true));
    old.propose_by(&[set("after", 1)], soon()).await.unwrap();
    all_agree(&cluster, &[]).await;
    // Its log is the others' too: as one of them it goes on from there.
    let node = old.node();
    drop(old);
    cluster.stop(node).await;
    let old = cluster.start(node).await;
    assert!(old.local().settings.contains_key("after"));
    new.add_learner(peer(node)).await.unwrap();
    until("it to be a member", || is_member(&old)).await;
    new.set_voters(&[1, 2, 3].map(id)).await.unwrap();
    old.propose_by(&[set("again", 1)], soon()).await.unwrap();
    all_agree(&cluster, &[]).await;
    cluster.end().await;
}

/// The leader gives up its vote and is none of the members: it follows without being told.
#[tokio::test]
async fn a_leader_that_gives_up_its_vote_follows_by_itself() {
    let (cluster, old) = three(tuning()).await;
    let others = cluster.others(old.node());
    old.set_voters(&others.iter().map(Raft::node).collect::<Vec<_>>()).await.unwrap();
    let new = cluster.leader_among(&others).await;
    until("it to follow", || fed_by(&old).is_some()).await;
    new.propose_by(&[set("after", 1)], soon()).await.unwrap();
    until("it to hear of what is decided", || old.local().settings.contains_key("after")).await;
    assert!(old.has_no_vote().await && new.status().learners.is_empty());
    all_agree(&cluster, &[]).await;
    cluster.end().await;
}

#[tokio::test]
async fn a_follower_that_is_cut_off_says_so_and_one_whose_voter_is_goes_to_another() {
    let (cluster, leader, follower) = three_and_one(tuning()).await;
    cluster.net.cut_off(id(4));
    until("it to notice", || follower.leader().is_none()).await;
    let refused = follower.propose_by(&[set("cut", 1)], Instant::now() + Duration::from_millis(300)).await.unwrap_err();
    assert!(refused.to_string().contains("for a leader"), "{refused}");
    assert!(follower.read_latest_by(Instant::now() + Duration::from_millis(300)).await.is_err());
    leader.propose_by(&[set("meanwhile", 1)], soon()).await.unwrap();
    cluster.net.heal();
    assert_eq!(follower.read_latest_by(soon()).await.unwrap().settings["meanwhile"], "1");
    // The one that it follows hears nobody any more, while what it says arrives.
    let by = fed_by(&follower).unwrap();
    cluster.net.deafen(by);
    until("it to go to another", || fed_by(&follower).is_some_and(|now| now != by)).await;
    follower.propose_by(&[set("after", 1)], soon()).await.unwrap();
    cluster.net.heal();
    cluster.end().await;
}

/// Without a majority nothing is decided, and a follower still has all that was.
#[tokio::test]
async fn a_follower_of_a_cluster_without_a_majority_has_what_was_decided() {
    let (mut cluster, leader, follower) = three_and_one(tuning()).await;
    leader.propose_by(&[set("decided", 1)], soon()).await.unwrap();
    until("it to have it", || follower.local().settings.contains_key("decided")).await;
    cluster.stop(id(4)).await;
    let gone = cluster.others(leader.node());
    for raft in &gone {
        cluster.stop(raft.node()).await;
    }
    drop(gone);
    let follower = cluster.start(id(4)).await;
    until("it to hear the one that is left", || fed_by(&follower) == Some(leader.node())).await;
    assert!(follower.local().settings.contains_key("decided"));
    let stands = follower.propose_by(&[set("undecided", 1)], Instant::now() + Duration::from_millis(300)).await;
    assert!(stands.is_err());
    cluster.end().await;
}

/// The whole cluster is lost but for a follower: it is made the only voter, by hand.
#[tokio::test]
async fn a_follower_goes_on_alone_with_all_that_it_has() {
    let (mut cluster, leader, follower) = three_and_one(tuning()).await;
    for n in 0..20 {
        leader.propose_by(&[set(n, n)], soon()).await.unwrap();
    }
    until("it to have everything", || follower.local() == leader.local()).await;
    drop(follower);
    cluster.stop(id(4)).await;
    for number in 1..=3 {
        cluster.stop(id(number)).await;
    }
    drop(leader);
    let dir = cluster.dirs[&id(4)].path().to_owned();
    let left = shoal_raft::look(&dir).unwrap();
    assert!(left.state.settings.len() >= 20 && left.undecided == 0, "{left:?}");
    shoal_raft::recover(&dir, peer(id(4))).unwrap();
    let alone = cluster.start(id(4)).await;
    assert!(alone.read_latest_by(soon()).await.unwrap().settings.len() >= 20);
    alone.propose_by(&[set("after", 1)], soon()).await.unwrap();
    assert_eq!(alone.status().voters, [peer(id(4))]);
    cluster.end().await;
}

/// As long as some node knows nothing of followers, those that do not vote are learners, as before.
#[tokio::test]
async fn before_all_know_of_followers_nobody_becomes_one() {
    let mut cluster = Cluster::new(1, tuning()).await;
    let founder = cluster.node(id(1));
    let learner = cluster.start(id(2)).await;
    founder.add_learner(peer(id(2))).await.unwrap();
    founder.propose_by(&[set("old", 1)], soon()).await.unwrap();
    until("it to have it", || learner.local() == founder.local()).await;
    // One that an older leader takes out for a moment, as it does with its own vote, is called back by it.
    founder.remove_learner(id(2)).await.unwrap();
    founder.propose_by(&[set("between", 1)], soon()).await.unwrap();
    assert!(is_member(&learner));
    founder.add_learner(peer(id(2))).await.unwrap();
    until("it to have that too", || learner.local() == founder.local()).await;
    assert!(is_member(&learner));
    // Then all know of them: it becomes one when it is taken out.
    founder.propose_by(&[Command::SetVersion { version: FOLLOWERS_SINCE }], soon()).await.unwrap();
    founder.remove_learner(id(2)).await.unwrap();
    invited(&cluster, id(2)).await;
    founder.propose_by(&[set("new", 1)], soon()).await.unwrap();
    until("it to have all", || learner.local() == founder.local()).await;
    assert_eq!(fed_by(&learner), Some(id(1)));
    cluster.end().await;
}
