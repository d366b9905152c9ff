//! What a collection asks the other members before it forgets or deletes anything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use shoal_state::Digest;
use shoal_storage::keep::Survey;

use super::super::{Failure, Named, Thing};
use crate::api::{Error, blocking};
use crate::copies::Copies;
use crate::copies::asks::Ask;

/// How long a member may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How many things are asked for at once when they were last used.
const USES_AT_ONCE: usize = 20_000;
/// How deep the structure of trees can be.
const DEPTH_MAX: usize = 64;

type Mine = dyn Fn(&Digest) -> bool + Send + Sync;

/// What other members say.
#[derive(Clone)]
pub(super) struct Others {
    /// There are none: all is kept here.
    pub(super) alone: bool,
    /// Trees that containers of others are shown.
    pub(super) shown: Vec<Digest>,
    /// When things were last used elsewhere, in seconds of the Unix clock.
    last: HashMap<Thing, u64>,
    /// When things may have been used last that nobody says anything of.
    last_of_silent: u64,
    /// What this node is to keep.
    mine: Arc<Mine>,
}

impl Others {
    /// Of a node that keeps all.
    pub(super) fn none() -> Self {
        Self { alone: true, shown: Vec::new(), last: HashMap::new(), last_of_silent: 0, mine: Arc::new(|_: &Digest| true) }
    }

    /// Asks the other members what their containers are shown, and when they last used what nothing needs.
    ///
    /// # Errors
    /// When a member cannot be asked that may come back soon: what it needs must not be deleted.
    pub(super) async fn ask(copies: &Copies, named: &Named) -> Result<Self, Error> {
        if copies.is_alone() {
            return Ok(Self::none());
        }
        let (shown, mut silent) = copies.ask_all::<Vec<Digest>>(&Ask::Shown, ANSWER_WAIT).await;
        let lost = copies.others().lost();
        if let Some(away) = silent.iter().find(|node| !lost.contains(node)) {
            return Err(Error::Unavailable(format!(
                "node {away} does not say what its containers are shown: nothing is deleted until it does, was away for long (repair.after_seconds), or is removed"
            )));
        }
        let mut last: HashMap<Thing, u64> = HashMap::new();
        let things: Vec<Thing> = named.cached.iter().map(|needs| needs.thing).collect();
        for some in things.chunks(USES_AT_ONCE) {
            let (answers, more): (BTreeMap<_, Vec<Option<u64>>>, _) = copies.ask_all(&Ask::Uses(some.to_vec()), ANSWER_WAIT).await;
            silent.extend(more);
            for (thing, at) in answers.values().flat_map(|answer| some.iter().zip(answer)) {
                let known = last.entry(*thing).or_default();
                *known = at.unwrap_or(0).max(*known);
            }
        }
        // It may have used anything until it was heard of for the last time.
        let now = copies.chunks().store().now();
        let heard_of = silent.iter().map(|node| now.saturating_sub(copies.others().silence(*node).as_secs())).max();
        let shown = shown.into_values().flatten().collect();
        Ok(Self { alone: false, shown, last, last_of_silent: heard_of.unwrap_or(0), mine: Arc::new(copies.mine()) })
    }

    /// Of members whose containers are shown these trees, and who never used anything.
    #[cfg(test)]
    pub(super) fn of(copies: &Copies, shown: Vec<Digest>) -> Self {
        Self { alone: false, shown, mine: Arc::new(copies.mine()), ..Self::none() }
    }

    /// Says whether this node is to keep a chunk.
    pub(super) fn is_mine(&self, chunk: &Digest) -> bool {
        (self.mine)(chunk)
    }

    /// Returns when a thing may have been used elsewhere for the last time; 0 = never.
    pub(super) fn last(&self, thing: Thing) -> u64 {
        self.last.get(&thing).copied().unwrap_or(0).max(self.last_of_silent)
    }

    /// Brings the structure of all that is named, and returns everything that is named. Nothing, where this node keeps all.
    ///
    /// # Errors
    /// When some structure cannot be had, and somebody does not answer who may have it: what it names cannot be told from what
    /// nothing names.
    pub(super) async fn structure(&self, copies: &Copies, named: &Named) -> Result<Survey, Failure> {
        let store = copies.chunks().store().clone();
        let mut survey = Survey::new(store.clone());
        if self.alone {
            return Ok(survey);
        }
        let mut failures = Vec::new();
        for _ in 0..DEPTH_MAX {
            let (of, named, shown) = (store.clone(), named.clone(), self.shown.clone());
            survey = blocking(move || {
                let mut survey = Survey::new(of);
                named.definitions.iter().for_each(|digest| survey.chunk(*digest, &mut |_, _| ()));
                named.all().filter_map(|needs| needs.record).for_each(|record| survey.chunk(record, &mut |_, _| ()));
                named.all().filter_map(|needs| needs.tree).chain(shown).try_for_each(|tree| survey.tree(tree, &mut |_, _| ()))?;
                Ok::<_, Failure>(survey)
            })
            .await?;
            if survey.unread.is_empty() {
                return Ok(survey);
            }
            let came = copies.chunks().bring(survey.unread.clone()).await;
            failures = came.failures;
            if came.chunks == 0 {
                break;
            }
        }
        match survey.unread.first() {
            // All were asked, and none has it: it is lost, and so is what it names.
            _ if failures.is_empty() => Ok(survey),
            first => {
                let object = first.map(Digest::to_string).unwrap_or_default();
                Err(format!("what {object} names cannot be found out: {}", failures.join("; ")).into())
            }
        }
    }
}
