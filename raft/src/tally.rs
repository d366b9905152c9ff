//! A rolling hash of all answers, so that nodes can tell whether they still agree.
//!
//! Equal logs give equal answers on every node. If one day they do not (a bug, broken memory, a rule that was changed
//! without a version), the nodes' marks differ from the next one on, and the node that stands alone fetches a snapshot.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use shoal_state::Digest;

use crate::batch::push;
use crate::types::Answers;

/// A mark is kept at every entry whose index is a multiple of this.
pub const MARK_EVERY: u64 = 1000;

/// How many marks are kept; older ones are forgotten.
const MARKS_MAX: usize = 64;

/// The hash of all answers up to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The index of the entry.
    pub index: u64,
    /// The hash of all answers up to it.
    pub digest: Digest,
}

/// The hash so far, and the last marks. Part of a snapshot, so that a node that starts from one goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tally {
    digest: Digest,
    marks: VecDeque<Mark>,
}

impl Default for Tally {
    fn default() -> Self {
        Self { digest: Digest::from_bytes([0; 32]), marks: VecDeque::new() }
    }
}

impl Tally {
    /// Takes the answers of the entry at `index`. Entries come in order, each once.
    pub(crate) fn note(&mut self, index: u64, answers: &Answers) {
        let mut bytes = self.digest.as_bytes().to_vec();
        push(&mut bytes, answers);
        self.digest = Digest::of(&bytes);
        if index.is_multiple_of(MARK_EVERY) {
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back(Mark { index, digest: self.digest });
        }
    }

    pub(crate) fn marks(&self) -> Vec<Mark> {
        self.marks.iter().copied().collect()
    }
}

/// Returns the first entry at which both sides have a mark and the marks differ.
///
/// The answers began to differ at that entry or at one of the [`MARK_EVERY`] before it, if the mark before is equal.
pub fn first_difference(ours: &[Mark], theirs: &[Mark]) -> Option<u64> {
    let differs = |our: &&Mark| theirs.iter().any(|their| their.index == our.index && their.digest != our.digest);
    ours.iter().find(differs).map(|mark| mark.index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_state::Event;

    fn tally(entries: u64, odd_one: Option<u64>) -> Tally {
        let mut tally = Tally::default();
        for index in 1..=entries {
            let event = if odd_one == Some(index) { Event::NodesChanged } else { Event::TokensChanged };
            tally.note(index, &Answers(vec![Ok(vec![event])]));
        }
        tally
    }

    #[test]
    fn one_other_answer_shows_at_the_next_mark_and_in_every_later_one() {
        let (ours, theirs) = (tally(5000, None).marks(), tally(5000, Some(2500)).marks());
        assert_eq!(ours.iter().map(|mark| mark.index).collect::<Vec<_>>(), [1000, 2000, 3000, 4000, 5000]);
        assert_eq!(first_difference(&ours, &theirs), Some(3000));
        assert_eq!(first_difference(&ours[4..], &theirs), Some(5000));
        assert_eq!(first_difference(&ours, &tally(3000, None).marks()), None);
    }

    #[test]
    fn old_marks_are_forgotten() {
        let marks = tally(MARK_EVERY * (MARKS_MAX as u64 + 2), None).marks();
        assert_eq!((marks.len(), marks[0].index), (MARKS_MAX, 3 * MARK_EVERY));
    }
}
