//! A leader that no majority answers leads no more, and a candidate that nobody answers does not stand again and again.
//!
//! openraft lets it lead on until somebody tells it of a newer term. Where its words still arrive and no answer comes back, a wire that
//! is broken in one way, its heartbeats would keep the others from electing one who can do the work. So it gives up the lead, and does
//! not stand for election until it hears somebody again: until then it could not win, and would only disturb the others. A candidate
//! whose questions arrive and who hears no answer disturbs them likewise: each of its questions, of a newer term than the last, may end
//! a leader's time. So it rests too, and asks whether somebody is there, which disturbs nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::raft::VoteRequest;
use openraft::{CommittedLeaderId, ServerState};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::heard::Heard;
use crate::network::{Links, Request, encode};
use crate::types::{Core, LogId, Metrics, Peer, Vote};

/// A time for which this node itself did nothing, this many rounds or more, is no silence of the others.
const STOOD_STILL_ROUNDS: u32 = 5;

/// How often one that rests asks whether somebody is there, in rounds, and how long it waits for a word.
const ASKS_EVERY_ROUNDS: u32 = 5;
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// The candidate that a leader votes for when it gives up the lead. No node has this number, so nobody is elected by it.
const NOBODY: u64 = 0;

/// Looks every `every` whether a majority has answered a leader, or anybody a candidate, within `patience`, until Raft ends.
pub(crate) async fn watch(core: Core, links: Links, every: Duration, patience: Duration) {
    let heard = links.heard.clone();
    let mut round = interval(every);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = Instant::now();
    // Answers count from here on: silence before it was not heard, or was another's to judge.
    let mut since = last;
    // Since when this candidate has not heard anybody.
    let mut alone = last;
    let mut gave_up: Option<Instant> = None;
    let mut rounds: u32 = 0;
    loop {
        round.tick().await;
        let now = Instant::now();
        let metrics = core.metrics().borrow().clone();
        if metrics.running_state.is_err() {
            return;
        }
        let stood_still = now - last > every * STOOD_STILL_ROUNDS;
        if metrics.state != ServerState::Leader || stood_still {
            since = now;
        }
        if metrics.state != ServerState::Candidate || stood_still || heard.anything_since(alone) {
            alone = now;
        }
        last = now;
        rounds = rounds.wrapping_add(1);
        if gave_up.is_some_and(|at| heard.anything_since(at)) {
            core.runtime_config().elect(true);
            gave_up = None;
        }
        if gave_up.is_some() && rounds.is_multiple_of(ASKS_EVERY_ROUNDS) {
            let others = metrics.membership_config.voter_ids().filter(|id| *id != metrics.id);
            let others = others.filter_map(|id| metrics.membership_config.membership().get_node(&id).cloned());
            others.for_each(|peer| drop(tokio::spawn(ask(links.clone(), peer))));
        }
        if metrics.state == ServerState::Candidate && gave_up.is_none() && now - alone > patience {
            tracing::warn!(term = metrics.current_term, "nobody answers this candidate: it stands again when it hears somebody");
            core.runtime_config().elect(false);
            gave_up = Some(now);
        }
        let silent = now - answered(&metrics, &heard, now).map_or(since, |at| at.max(since));
        if metrics.state == ServerState::Leader && silent > patience {
            tracing::warn!(?silent, term = metrics.current_term, "no majority of the voters answers this leader: it gives up the lead");
            core.runtime_config().elect(false);
            gave_up = Some(now);
            let asked = VoteRequest::new(Vote::new(metrics.current_term + 1, NOBODY), Some(last_of_all()));
            if let Err(error) = core.vote(asked).await {
                return tracing::warn!(%error, "cannot give up the lead");
            }
            since = now;
        }
    }
}

/// Asks a peer for a word, whatever it says.
async fn ask(links: Links, peer: Peer) {
    let said = links.transport.call(&peer, encode(&Request::ReadIndex), ANSWER_WAIT);
    if tokio::time::timeout(ANSWER_WAIT, said).await.is_ok_and(|said| said.is_ok()) {
        links.heard.note(peer.node);
    }
}

/// Returns when a majority of the voters, and of those that will vote, had answered for the last time; none if one never did.
fn answered(metrics: &Metrics, heard: &Heard, now: Instant) -> Option<Instant> {
    let heard_at = |id: &u64| metrics.membership_config.membership().get_node(id).and_then(|peer| heard.at(peer.node));
    let majority = |voters: &BTreeSet<u64>| {
        let mut times: Vec<_> = voters.iter().map(|id| if *id == metrics.id { Some(now) } else { heard_at(id) }).collect();
        times.sort_unstable_by(|one, other| other.cmp(one));
        times.get(voters.len() / 2).copied().flatten()
    };
    let configs = metrics.membership_config.membership().get_joint_config();
    configs.iter().map(majority).min().flatten()
}

/// A position that no log is beyond: what is asked with it is judged by its term alone.
fn last_of_all() -> LogId {
    LogId::new(CommittedLeaderId::new(u64::MAX, NOBODY), u64::MAX)
}
