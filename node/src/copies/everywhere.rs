//! All members at once: how many copies are missing, and a round of repair on each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use shoal_state::{NodeId, State};

use super::Copies;
use super::asks::Ask;
use super::repair::{Progress, Report};

/// How long a member may take to tell what its last round found.
const REPORT_WAIT: Duration = Duration::from_secs(3);
/// How long a member that does not answer is looked for before it is left out.
const FIND_WAIT: Duration = Duration::from_secs(10);
/// How often is looked how far each has come, and how long a member may take to say it.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// How long a round may stand still before nobody waits for it any more.
const STILL_MAX: Duration = Duration::from_secs(60);

/// How many copies of objects are missing in the cluster, as far as it can be found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    /// How many, of those that are known of.
    pub(crate) copies: u64,
    /// How many nodes have not looked yet for what they are to keep.
    pub(crate) unseen: usize,
    /// Why, in sentences: who is away, who has not caught up.
    pub(crate) why: Vec<String>,
}

impl Missing {
    /// Returns how many are missing; none while nobody knows.
    pub(crate) fn known(&self) -> Option<u64> {
        (self.unseen == 0 || self.copies > 0).then_some(self.copies)
    }

    fn of(reports: &BTreeMap<NodeId, Report>, silent: impl IntoIterator<Item = (NodeId, Silent)>) -> Self {
        let unseen = reports.values().filter(|report| report.at_seconds == 0).count();
        let mut missing = Self { unseen, ..Self::default() };
        if unseen > 0 {
            missing.why.push(format!("{unseen} of {} nodes have not looked yet for what they are to keep", reports.len()));
        }
        for (node, report) in reports {
            missing.copies += report.lacking;
            match report {
                Report { at_seconds: 0, .. } | Report { lacking: 0, .. } => {}
                Report { lacking, mine, .. } => {
                    missing.why.push(format!("node {node} lacks {lacking} of {mine} objects that it is to keep"))
                }
            }
        }
        for (node, silent) in silent {
            let kept = reports.values().filter_map(|report| report.homes.get(&node)).max().copied().unwrap_or(0);
            let (copies, why) = match silent {
                Silent::Away(why) => (kept, format!("{why}; it is to keep {kept} objects")),
                Silent::Busy { left, why } => (left, why),
            };
            missing.copies += copies;
            missing.why.push(why);
        }
        missing
    }
}

/// Why a member told nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Silent {
    /// It could not be asked.
    Away(String),
    /// It has not come to an end, and is to bring so many chunks yet, as far as it said.
    Busy { left: u64, why: String },
}

/// What is heard of a member while it repairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// It does not answer, and is looked for.
    Nothing,
    /// It has come so far.
    Progress(Progress),
}

/// Hears of members how far they are.
pub(crate) type Say<'a> = dyn Fn(NodeId, Heard) + Send + Sync + 'a;

/// Waits for a round on one node: as long as it goes on, and no longer than until a time.
struct Watch {
    until: Instant,
    moved: Instant,
    last: Option<Progress>,
}

impl Watch {
    /// Takes in how far a round has come, at a time; returns whether there is news, or why nobody waits any more. Pure.
    fn take(&mut self, now: Instant, progress: Option<Progress>) -> Result<bool, String> {
        let news = progress.is_some() && progress != self.last;
        if news || progress.is_some_and(|progress| progress.rests) {
            self.moved = now;
        }
        self.last = progress.or(self.last);
        if now >= self.until {
            return Err("has not come to an end in time".to_owned());
        }
        if now.duration_since(self.moved) >= STILL_MAX {
            return Err(format!("has stood still for {} s", STILL_MAX.as_secs()));
        }
        Ok(news)
    }
}

impl Copies {
    /// Finds out how many copies are missing.
    pub(crate) async fn missing(&self) -> Missing {
        if self.is_alone() {
            return Missing::default();
        }
        let (mut reports, silent) = self.ask_all::<Report>(&Ask::Report, REPORT_WAIT).await;
        reports.insert(self.others().me(), self.report());
        Missing::of(&reports, silent.into_iter().map(|node| (node, Silent::Away(format!("node {node} does not answer")))))
    }

    /// Lets all members do a round of repair, and waits for those that go on, no longer than `within`; returns what each did that came
    /// to its end, and what is missing still. `say` hears of each how far it is. A round that nobody waits for goes on.
    pub(crate) async fn repair_all(&self, state: &State, within: Duration, say: &Say<'_>) -> (BTreeMap<NodeId, Report>, Missing) {
        let until = Instant::now() + within;
        let nodes = self.others().all().into_keys().chain([self.others().me()]);
        let (mut reports, mut silent) = (BTreeMap::new(), Vec::new());
        for (node, done) in futures::future::join_all(nodes.map(|node| self.repair_one(node, state, until, say))).await {
            match done {
                Ok(report) => drop(reports.insert(node, report)),
                Err(why) => silent.push((node, why)),
            }
        }
        let missing = Missing::of(&reports, silent);
        (reports, missing)
    }

    async fn repair_one(&self, node: NodeId, state: &State, until: Instant, say: &Say<'_>) -> (NodeId, Result<Report, Silent>) {
        if node != self.others().me() {
            return (node, self.repair_there(node, until, say).await);
        }
        // It goes on when nobody waits any more.
        let (copies, state) = (self.clone(), state.clone());
        let round = tokio::spawn(async move { copies.repair(&state).await });
        let round = round.map(|done| Ok(done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))));
        (node, self.watch(node, until, round.boxed(), say).await)
    }

    async fn repair_there(&self, node: NodeId, until: Instant, say: &Say<'_>) -> Result<Report, Silent> {
        let (address, began) = (self.others().address(node).map_err(Silent::Away)?, Instant::now());
        while !self.others().look(node, &address).await {
            if began.elapsed() >= FIND_WAIT || Instant::now() >= until {
                return Err(Silent::Away(format!("node {node} does not answer")));
            }
            say(node, Heard::Nothing);
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let patience = until.saturating_duration_since(Instant::now()) + LOOK_EVERY * 2;
        self.watch(node, until, self.ask(node, &Ask::Repair, patience).boxed(), say).await
    }

    /// Waits for a round, and says how far it is.
    async fn watch(
        &self,
        node: NodeId,
        until: Instant,
        mut round: BoxFuture<'_, Result<Report, String>>,
        say: &Say<'_>,
    ) -> Result<Report, Silent> {
        let mut watch = Watch { until, moved: Instant::now(), last: None };
        loop {
            let heard = async {
                tokio::time::sleep(LOOK_EVERY).await;
                if node == self.others().me() { Ok(self.progress()) } else { self.ask(node, &Ask::Progress, LOOK_EVERY).await }
            };
            let heard: Result<Option<Progress>, String> = tokio::select! {
                done = &mut round => return done.map_err(Silent::Away),
                heard = heard => heard,
            };
            let now = Instant::now();
            if heard.is_err() {
                // A node of an older release knows no such question, and one that is gone ends the round.
                watch.moved = now;
            }
            match watch.take(now, heard.unwrap_or_default()) {
                Ok(true) => watch.last.into_iter().for_each(|progress| say(node, Heard::Progress(progress))),
                Ok(false) => {}
                Err(why) => {
                    let left = watch.last.unwrap_or_default().left;
                    let why = format!("node {node} {why}, with {left} chunks left to bring that are known of; what it does goes on");
                    return Err(Silent::Busy { left, why });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_waited_for_while_it_goes_on_and_no_longer_than_is_set() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut watch = Watch { until: at(600), moved: began, last: None };
        let brought = |brought, rests| Some(Progress { brought, rests, ..Progress::default() });
        assert_eq!(watch.take(at(50), brought(1, false)), Ok(true));
        assert_eq!(watch.take(at(100), brought(1, false)), Ok(false));
        assert!(watch.take(at(110), brought(1, false)).unwrap_err().contains("stood still"));
        assert_eq!(watch.take(at(300), brought(1, true)), Ok(true), "it keeps to its rate");
        assert_eq!(watch.take(at(400), brought(1, true)), Ok(false));
        assert!(watch.take(at(600), brought(2, false)).unwrap_err().contains("in time"));
    }

    #[test]
    fn what_a_node_has_not_brought_yet_is_missing_and_what_one_that_is_away_is_to_keep() {
        let ids = [1, 2, 3].map(NodeId::from_random);
        let mine = Report { at_seconds: 1, mine: 9, homes: [(ids[1], 40)].into(), ..Report::default() };
        let silent = [(ids[1], Silent::Away("node 2 does not answer".to_owned())), (ids[2], Silent::Busy { left: 7, why: "3".to_owned() })];
        let missing = Missing::of(&[(ids[0], mine)].into(), silent);
        assert_eq!(
            (missing.copies, missing.why),
            (47, vec!["node 2 does not answer; it is to keep 40 objects".to_owned(), "3".to_owned()])
        );
    }
}
