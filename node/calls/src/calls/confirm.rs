//! Answers that tell how things stand are confirmed, so that a home that is cut off and was replaced shows nobody what is out of date.
//!
//! With the answer the owner of the calls names the nodes without which nobody else can be home: those that must have each record.
//! Each of them is asked whether it knows of a later epoch. One that says no had not acknowledged anything as a later home when the
//! answer was made, and without all of them nobody has. What is told of something that was written and counts needs no such round:
//! it stays true.
//!
//! All who wait for the same node share a round; the next one begins when it is over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use shoal_state::{NodeId, ShardId};
use tokio::sync::oneshot;

use super::away::{Asked, Told, strange};
use super::driver::Event;
use super::error::Error;
use super::handle::Calls;

/// How long one node may take for a round.
const ROUND_WAIT: Duration = Duration::from_secs(2);
/// How long an answer waits to be confirmed: a member that is lost is dropped within seconds.
const CONFIRM_WAIT: Duration = Duration::from_secs(8);
/// How long is waited between two tries, unless the members of a shard change meanwhile.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// A node without whose knowledge nobody can be home of a shard in a later epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Witness {
    pub(super) shard: ShardId,
    /// The epoch of the home that asks.
    pub(super) epoch: u64,
    pub(super) node: NodeId,
}

/// What became of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// It was true when it was made.
    Yes,
    /// The members of a shard have changed since: whoever is home now is to be asked.
    Changed,
}

/// The rounds of a node.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    confirm: AtomicBool,
    to: Mutex<BTreeMap<NodeId, Waiting>>,
}

/// Who waits for the next round to a node. While a round is under way there is an entry, maybe an empty one.
type Waiting = Vec<(Witness, oneshot::Sender<Result<(), String>>)>;

impl Calls {
    /// Says whether there are other nodes, all of a release that confirms answers. Until then they are given as they are.
    pub fn confirm_answers(&self, confirm: bool) {
        self.rounds.confirm.store(confirm, Ordering::Relaxed);
    }

    pub(super) fn confirms(&self) -> bool {
        self.rounds.confirm.load(Ordering::Relaxed)
    }

    /// Waits until all witnesses have said that they know of no later home.
    pub(super) async fn confirm(&self, what: &'static str, witnesses: &[Witness]) -> Result<Confirmed, Error> {
        let deadline = self.ground.now() + CONFIRM_WAIT;
        loop {
            let answers = join_all(witnesses.iter().map(async |witness| (witness, self.ask_witness(*witness).await)));
            let is_old = |witness: &Witness| !self.away.is_in_epoch(witness.shard, witness.epoch);
            let answers = tokio::select! {
                biased;
                answers = answers => answers,
                // Somebody may be waited for who is lost.
                () = self.away.until(|| witnesses.iter().any(is_old)) => return Ok(Confirmed::Changed),
            };
            let Some((Witness { shard, epoch, node }, why)) = answers.into_iter().find_map(|(who, said)| Some((*who, said.err()?))) else {
                return Ok(Confirmed::Yes);
            };
            let changed = || !self.away.is_in_epoch(shard, epoch);
            self.ground.within(TRY_AGAIN_AFTER, self.away.until(changed)).await;
            if changed() {
                return Ok(Confirmed::Changed);
            }
            if self.ground.now() >= deadline {
                return Err(Error::Unconfirmed { what, shard, node, why, waited: CONFIRM_WAIT });
            }
        }
    }

    async fn ask_witness(&self, witness: Witness) -> Result<(), String> {
        let (reply, said) = oneshot::channel();
        let begins = {
            let mut to = self.rounds.to.lock();
            let begins = !to.contains_key(&witness.node);
            to.entry(witness.node).or_default().push((witness, reply));
            begins
        };
        if begins {
            self.ground.spawn(Box::pin(self.clone().run_rounds(witness.node)));
        }
        said.await.unwrap_or_else(|_| Err("the round was given up".to_owned()))
    }

    /// Asks a node for all who wait, until nobody does.
    async fn run_rounds(self, node: NodeId) {
        loop {
            let waiting = {
                let mut to = self.rounds.to.lock();
                match to.get_mut(&node) {
                    Some(waiting) if !waiting.is_empty() => std::mem::take(waiting),
                    _ => {
                        to.remove(&node);
                        return;
                    }
                }
            };
            let epochs: BTreeMap<ShardId, u64> = waiting.iter().map(|(witness, _)| (witness.shard, witness.epoch)).collect();
            let said = self.ask_round(node, epochs.into_iter().collect()).await;
            for (witness, reply) in waiting {
                let _ = reply.send(match &said {
                    Ok(later) if later.contains(&witness.shard) => Err("it knows of a later home, or has just started".to_owned()),
                    Ok(_) => Ok(()),
                    Err(why) => Err(why.clone()),
                });
            }
        }
    }

    async fn ask_round(&self, node: NodeId, epochs: Vec<(ShardId, u64)>) -> Result<Vec<ShardId>, String> {
        let asked = Asked::Vouch { epochs };
        let told = self.ground.within(ROUND_WAIT, self.ask_away(node, "confirm an answer", Duration::ZERO, &asked)).await;
        match told.ok_or_else(|| format!("it does not answer for {ROUND_WAIT:?}"))?.map_err(|error| error.to_string())? {
            Told::NotVouched(shards) => Ok(shards),
            other => Err(strange(node, &other).to_string()),
        }
    }

    /// Returns of which shards this node cannot say that nobody was home in a later epoch than these.
    pub(super) async fn not_vouched(&self, epochs: Vec<(ShardId, u64)>) -> Result<Vec<ShardId>, Error> {
        let (reply, shards) = oneshot::channel();
        self.send(Event::Vouch { epochs, reply }).await?;
        self.wait("look at the shards", Duration::ZERO, shards).await
    }
}
