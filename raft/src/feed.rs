//! What a voter tells those that follow it: entries that are decided, how far it is, and that it is there.
//!
//! A follower says how far it is, and gets everything behind that, out of the log, as long as both are there; a snapshot where the log
//! begins later. The voter keeps nothing of a follower but this one stream. It tells no more than it has applied itself, so
//! what it tells is decided.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::error::with_causes;
use crate::log::LogStore;
use crate::machine::{Machine, blocking};
use crate::network::encode;
use crate::pulse::Pulse;
use crate::snapshot::SnapshotData;
use crate::types::{Entry, LogId, StoredMembership};
use crate::view::Applied;

/// How often a follower hears something, should nothing change.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// How many nodes may follow one voter at once. Further ones are sent elsewhere.
const FOLLOWERS_MAX: usize = 256;

/// The most bytes of entries, or of a snapshot, that are told at once, if it is more than one entry: a follower on a slow wire must not take a
/// long message for silence.
const PIECE_BYTES: usize = 128 << 10;

/// What a follower asks: everything behind this entry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Follow {
    pub(crate) after: Option<LogId>,
}

/// What a voter tells a follower. New words are added at the end.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Word {
    /// How it stands, and up to which entry it has applied the log.
    Stands { pulse: Pulse, applied: u64 },
    /// The next entries that are decided.
    Entries(Vec<Entry>),
    /// The log begins behind what the follower has: a snapshot comes, in pieces.
    Snapshot,
    /// The next piece of it; an empty one is the end.
    Piece(Bytes),
    /// It votes no more, or too many follow it. These are the members as it knows them.
    Elsewhere { members: StoredMembership },
    /// What the follower takes for decided is not what was decided here.
    Differs { here: LogId },
}

/// What a voter tells from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) log: LogStore,
    pub(crate) machine: Machine,
    pub(crate) pulse: watch::Receiver<Pulse>,
    pub(crate) followers: Arc<AtomicUsize>,
}

/// One follower's place.
struct Telling {
    source: Source,
    applied: watch::Receiver<Applied>,
    /// The last entry that the follower has.
    told: Option<LogId>,
    /// Whether that entry was held against the log here.
    checked: bool,
    said: Option<(Pulse, Instant)>,
    snapshot: Option<(SnapshotData, LogId)>,
    over: bool,
    _place: Place,
}

/// Counts a follower as long as it is told something.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells a follower what it asked for, until it listens no more or this node votes no more.
pub(crate) fn tell(source: Source, asked: Follow) -> BoxStream<'static, Bytes> {
    let crowd = source.followers.fetch_add(1, Ordering::Relaxed);
    let place = Place(source.followers.clone());
    if crowd >= FOLLOWERS_MAX || !source.pulse.borrow().votes {
        return stream::iter([elsewhere(&source.machine)]).boxed();
    }
    let applied = source.machine.view().watch();
    let telling = Telling { source, applied, told: asked.after, checked: false, said: None, snapshot: None, over: false, _place: place };
    stream::unfold(telling, |mut telling| async move { telling.next().await.map(|word| (word, telling)) }).boxed()
}

/// Says where a follower is to look instead.
pub(crate) fn elsewhere(machine: &Machine) -> Bytes {
    encode(&Word::Elsewhere { members: machine.membership() })
}

impl Telling {
    /// Returns the next word; none when there is nothing more to say.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        match self.word().await {
            Ok(word) => {
                self.over = matches!(word, Word::Elsewhere { .. } | Word::Differs { .. });
                Some(encode(&word))
            }
            Err(why) => {
                tracing::warn!(why, "a follower is not told any more what is decided; it will ask again");
                None
            }
        }
    }

    async fn word(&mut self) -> Result<Word, String> {
        if self.snapshot.is_some() {
            return self.piece().await;
        }
        loop {
            let (pulse, applied) = (self.source.pulse.borrow_and_update().clone(), self.applied.borrow_and_update().index);
            if !pulse.votes || self.source.pulse.has_changed().is_err() {
                return Ok(Word::Elsewhere { members: self.source.machine.membership() });
            }
            let due = self.said.as_ref().map_or_else(Instant::now, |(_, at)| *at + KEEP_ALIVE);
            if self.said.as_ref().is_none_or(|(said, _)| *said != pulse) || due <= Instant::now() {
                self.said = Some((pulse.clone(), Instant::now()));
                return Ok(Word::Stands { pulse, applied });
            }
            if let Some(word) = self.decided(applied).await? {
                return Ok(word);
            }
            tokio::select! {
                // An error says that this node votes no more, and shows in the next round.
                _ = self.source.pulse.changed() => {}
                changed = self.applied.changed() => changed.map_err(|_| "Raft has ended here".to_owned())?,
                () = sleep_until(due) => {}
            }
        }
    }

    /// Returns what the follower lacks of what is decided, if anything.
    async fn decided(&mut self, applied: u64) -> Result<Option<Word>, String> {
        let (log, next) = (&self.source.log, self.told.map_or(0, |told| told.index + 1));
        if let Some(told) = self.told.filter(|told| !self.checked && told.index <= applied) {
            match log.id_at(told.index) {
                Some(here) if here != told => return Ok(Some(Word::Differs { here })),
                Some(_) => self.checked = true,
                None => {}
            }
        }
        if next > applied || (next == 0 && self.source.machine.applied().is_none()) {
            return Ok(None);
        }
        let entries = log.committed(next, applied, PIECE_BYTES).map_err(|error| with_causes(&error))?;
        match entries.last() {
            Some(last) => {
                (self.told, self.checked) = (Some(last.log_id), true);
                Ok(Some(Word::Entries(entries)))
            }
            None => self.begin_snapshot(next).await.map(Some),
        }
    }

    async fn begin_snapshot(&mut self, next: u64) -> Result<Word, String> {
        let folder = self.source.machine.folder().clone();
        let current = blocking(move || folder.current()).await.map_err(|error| with_causes(&error))?;
        let newest = current.and_then(|(meta, data)| Some((data, meta.last_log_id?)));
        let newest = newest.filter(|(_, last)| last.index >= next);
        self.snapshot = Some(newest.ok_or_else(|| format!("entry {next} is not in the log any more, and no snapshot holds it"))?);
        Ok(Word::Snapshot)
    }

    async fn piece(&mut self) -> Result<Word, String> {
        let (mut data, last) = self.snapshot.take().expect("it was looked at");
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut data).take(PIECE_BYTES as u64).read_to_end(&mut piece).await.map_err(|error| format!("cannot read a snapshot: {error}"))?;
        if piece.is_empty() {
            (self.told, self.checked) = (Some(last), true);
        } else {
            self.snapshot = Some((data, last));
        }
        Ok(Word::Piece(piece.into()))
    }
}
