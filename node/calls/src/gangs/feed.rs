//! What the container of rank 0 was given, for the others of its gang: in order, each once.
//!
//! Nothing piles up: rank 0 is given its next input when all others wait for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use shoal_state::GangId;
use tokio::sync::watch;

use crate::calls::Ground;

/// How many words a slow container may be behind. Of inputs there is never more than one; of cancellations the oldest are forgotten:
/// what they were about is over by then.
const WORDS_MAX: usize = 64;

/// What words are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kind {
    /// Inputs.
    Inputs,
    /// Cancellations of inputs.
    Cancels,
}

/// Words of one kind, counted from 0.
#[derive(Debug, Default)]
struct Feed {
    /// The number of the first that is kept.
    first: u64,
    words: VecDeque<Bytes>,
    /// How many each of the other ranks has had.
    had: HashMap<u16, u64>,
}

impl Feed {
    fn next(&self) -> u64 {
        self.first + self.words.len() as u64
    }

    /// Adds a word. The same again is the answer to the same request.
    fn tell(&mut self, word: Bytes) {
        if self.words.back() == Some(&word) {
            return;
        }
        if self.words.len() == WORDS_MAX {
            self.words.pop_front();
            self.first += 1;
        }
        self.words.push_back(word);
    }

    /// Returns the word after `had`, or the oldest that there still is.
    fn hear(&mut self, rank: u16, had: u64) -> Option<Bytes> {
        let known = self.had.entry(rank).or_default();
        *known = had.max(*known);
        self.words.get(usize::try_from(had.saturating_sub(self.first)).unwrap_or(usize::MAX)).cloned()
    }

    /// Says whether all others of so many containers have had everything.
    fn all_wait(&self, containers: usize) -> bool {
        self.had.len() + 1 >= containers && self.had.values().all(|had| *had >= self.next())
    }
}

#[derive(Debug, Default)]
struct Words {
    inputs: Feed,
    cancels: Feed,
}

impl Words {
    fn of(&mut self, kind: Kind) -> &mut Feed {
        match kind {
            Kind::Inputs => &mut self.inputs,
            Kind::Cancels => &mut self.cancels,
        }
    }
}

/// What the gangs of this node were given whose rank 0 is here. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Feeds {
    gangs: Arc<Mutex<HashMap<GangId, Words>>>,
    changed: Arc<watch::Sender<()>>,
    ground: Arc<dyn Ground>,
}

impl Feeds {
    /// Begins with none.
    pub(super) fn new(ground: Arc<dyn Ground>) -> Self {
        Self { gangs: Arc::default(), changed: Arc::new(watch::channel(()).0), ground }
    }

    /// Adds a word.
    pub(super) fn tell(&self, gang: GangId, kind: Kind, word: Bytes) {
        self.gangs.lock().entry(gang).or_default().of(kind).tell(word);
        self.changed.send_replace(());
    }

    /// Returns the word after `had` words, once there is one; none after `wait`. Who asks has had all before.
    pub(super) async fn hear(&self, gang: GangId, rank: u16, kind: Kind, had: u64, wait: Duration) -> Option<Bytes> {
        let mut changed = self.changed.subscribe();
        if let Some(word) = self.gangs.lock().entry(gang).or_default().of(kind).hear(rank, had) {
            return Some(word);
        }
        // Who waits for this container may go on.
        self.changed.send_replace(());
        let heard = async {
            loop {
                if changed.changed().await.is_err() {
                    return None;
                }
                let mut gangs = self.gangs.lock();
                if let Some(word) = gangs.get_mut(&gang).and_then(|words| words.of(kind).hear(rank, had)) {
                    return Some(word);
                }
            }
        };
        self.ground.within(wait, heard).await.flatten()
    }

    /// Waits until all others have had all inputs, and wait for the next; false after `wait`.
    pub(super) async fn all_wait(&self, gang: GangId, containers: usize, wait: Duration) -> bool {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !self.gangs.lock().entry(gang).or_default().inputs.all_wait(containers) {
                if changed.changed().await.is_err() {
                    return false;
                }
            }
            true
        };
        self.ground.within(wait, waiting).await.unwrap_or(false)
    }

    /// Forgets a gang.
    pub(super) fn forget(&self, gang: GangId) {
        self.gangs.lock().remove(&gang);
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_hears_each_word_once_and_a_lost_answer_again() {
        let mut feed = Feed::default();
        assert!(!feed.all_wait(3), "nobody has asked yet");
        assert!((feed.hear(1, 0).is_none(), feed.hear(2, 0).is_none()) == (true, true) && feed.all_wait(3));
        feed.tell("one".into());
        feed.tell("one".into());
        assert!(!feed.all_wait(3));
        assert_eq!(feed.hear(1, 0), Some("one".into()));
        assert_eq!(feed.hear(1, 0), Some("one".into()), "the answer was lost");
        assert_eq!(feed.hear(1, 1), None);
        assert!(!feed.all_wait(3), "rank 2 has not had it");
        assert_eq!(feed.hear(2, 0), Some("one".into()));
        assert_eq!(feed.hear(2, 1), None);
        assert!(feed.all_wait(3));
        (0..WORDS_MAX).for_each(|number| feed.tell(number.to_string().into()));
        assert_eq!(feed.hear(1, 1), Some("0".into()));
        assert_eq!(feed.words.len(), WORDS_MAX);
    }

    #[test]
    fn a_container_alone_waits_for_nobody() {
        assert!(Feed::default().all_wait(1));
    }
}
