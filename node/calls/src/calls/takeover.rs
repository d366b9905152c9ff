//! What a shard's new home hears of the tasks of all nodes before it leases what it inherited, and later of those that were silent.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use shoal_state::{NodeId, ShardId};

use super::away::{Asked, Told};
use super::error::Error;
use super::handle::Calls;
use super::running::Held;

/// How long a node may take to say what its tasks run.
const REPORT_WAIT: Duration = Duration::from_secs(2);
/// How long a silent node is asked again: the tasks of one that is away for longer are ended.
const ASKED_FOR: Duration = Duration::from_secs(60);
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Shards that came home, each with how often it had moved by then.
type Came = BTreeMap<ShardId, u64>;

impl Calls {
    /// Takes over what the tasks of all nodes run of shards that have come home, then lets the rest of what they inherited be leased.
    ///
    /// `nodes` are the members that may be up; one that does not answer, or for which `until_lost` ends before, is taken for lost. `lost`
    /// are those that count as such already. Either may have tasks that live on: they are asked again for a while, so that their tasks hear
    /// what they work on in vain.
    ///
    /// What was said of a shard that has left meanwhile is of no use any more, and of none should it have come back: whoever took it over
    /// then asks anew.
    pub async fn take_over<F>(
        &self,
        shards: Vec<ShardId>,
        nodes: &[NodeId],
        lost: Vec<NodeId>,
        until_lost: impl Fn(NodeId) -> F,
    ) -> Result<(), Error>
    where
        F: Future<Output = ()>,
    {
        let came: Came = shards.iter().map(|shard| (*shard, self.away.moves(*shard))).collect();
        let others: Vec<NodeId> = nodes.iter().copied().filter(|node| *node != self.away.me).collect();
        let silent = self.hear(&others, &came, until_lost).await?;
        self.adopt_all(self.running.of(&shards), &came).await?;
        self.reports_complete(self.stay(&came)).await?;
        let silent: Vec<NodeId> = silent.into_iter().chain(lost.into_iter().filter(|node| *node != self.away.me)).collect();
        if !silent.is_empty() {
            let calls = self.clone();
            self.ground.spawn(Box::pin(async move { calls.hear_late(silent, came).await }));
        }
        Ok(())
    }

    /// Returns the shards that have not left since they came.
    fn stay(&self, came: &Came) -> Vec<ShardId> {
        came.keys().copied().filter(|shard| self.stays(came, *shard)).collect()
    }

    /// Says whether a shard is one that came, and has not left since.
    fn stays(&self, came: &Came, shard: ShardId) -> bool {
        came.get(&shard).is_some_and(|moves| self.away.moves(shard) == *moves)
    }

    /// Hears what the tasks of nodes run, of each until `lost` ends. Returns the nodes that did not say.
    async fn hear<F>(&self, nodes: &[NodeId], came: &Came, lost: impl Fn(NodeId) -> F) -> Result<Vec<NodeId>, Error>
    where
        F: Future<Output = ()>,
    {
        let lost = &lost;
        let asked = Asked::Running { home: self.away.me, shards: self.stay(came) };
        let reports = join_all(nodes.iter().map(async |node| {
            let asking = async {
                tokio::select! {
                    told = self.ask_away(*node, "hear what its tasks run", Duration::ZERO, &asked) => Some(told),
                    () = lost(*node) => None,
                }
            };
            match self.ground.within(REPORT_WAIT, asking).await.flatten() {
                Some(Ok(Told::Running(held, data))) => {
                    for key in data {
                        self.streams().origins().note(&key, *node);
                    }
                    Ok(held)
                }
                Some(Ok(other)) => {
                    tracing::warn!(%node, ?other, "a node does not say what its tasks run");
                    Err(*node)
                }
                Some(Err(error)) => {
                    tracing::debug!(%node, %error, "what the tasks of a node ran is leased again");
                    Err(*node)
                }
                None => {
                    tracing::debug!(%node, "what the tasks of a node ran is leased again: it does not answer");
                    Err(*node)
                }
            }
        }));
        let mut silent = Vec::new();
        for report in reports.await {
            match report {
                Ok(held) => self.adopt_all(held, came).await?,
                Err(node) => silent.push(node),
            }
        }
        Ok(silent)
    }

    async fn adopt_all(&self, held: Vec<Held>, came: &Came) -> Result<(), Error> {
        for Held { task, pool, inputs } in held {
            if pool.shard().is_some_and(|shard| self.stays(came, shard)) {
                self.adopt(task, pool, inputs).await?;
            }
        }
        Ok(())
    }

    /// Asks nodes that did not say what their tasks run, until they do, the shards have moved, or they are away for too long.
    async fn hear_late(self, mut silent: Vec<NodeId>, came: Came) {
        let until = self.ground.now() + ASKED_FOR;
        while !silent.is_empty() && self.ground.now() < until && !self.stay(&came).is_empty() {
            self.ground.sleep(ASKED_AGAIN_AFTER).await;
            match self.hear(&silent, &came, |_| std::future::pending()).await {
                Ok(still) => silent = still,
                Err(error) => return tracing::debug!(%error, "cannot take up what tasks of silent nodes run"),
            }
        }
    }

    /// Says what this node's tasks run, once it knows that the asker is home: what comes later of an earlier home's leases is void.
    pub(super) async fn report(&self, home: NodeId, shards: &[ShardId]) -> Result<Told, Error> {
        let known = self.away.until(|| shards.iter().all(|shard| self.away.is_home(home, Some(*shard))));
        match self.ground.within(REPORT_WAIT, known).await {
            Some(()) => Ok(Told::Running(self.running.of(shards), self.streams().origins().own(shards))),
            None => Err(Error::Late { what: "learn that shards have moved", waited: REPORT_WAIT }),
        }
    }
}
