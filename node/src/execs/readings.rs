//! Who reads through this node what a process prints.
//!
//! Clients that are told of the end of a process print nothing more of it. So the answer that tells it is kept back until what they
//! read has been passed on to them: the two go different ways between nodes, and the shorter one may be the end's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_state::TaskId;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::At;

/// How long a reader may take nothing until it is not waited for any more.
const SILENCE: Duration = Duration::from_secs(3);
/// How long readers are waited for at most.
const WAIT_MAX: Duration = Duration::from_secs(8);
/// A process whose end is known so soon had ended when it was asked for: its reader may not have come yet.
const AT_ONCE: Duration = Duration::from_millis(50);
/// How long that reader is waited for. Clients ask for both in one breath.
const READER_COMES: Duration = Duration::from_millis(20);

type Process = (TaskId, String);

/// What is read of one process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Open {
    streams: usize,
    passed_bytes: u64,
}

/// All that is read through this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readings(Arc<watch::Sender<BTreeMap<Process, Open>>>);

/// Somebody reads, until this is dropped.
#[derive(Debug)]
pub(super) struct Reading {
    of: Readings,
    process: Process,
}

impl Readings {
    /// Notes that somebody reads from now on.
    pub(super) fn enter(&self, at: &At) -> Reading {
        let process = (at.task, at.exec.clone());
        self.0.send_modify(|open| open.entry(process.clone()).or_default().streams += 1);
        Reading { of: self.clone(), process }
    }

    /// Waits, now that the end of a process is known, until its readers have all that it printed, or take no more of it. `asked` is
    /// when somebody asked for the end.
    pub(super) async fn passed_on(&self, at: &At, asked: Instant) {
        if asked.elapsed() < AT_ONCE {
            sleep(READER_COMES).await;
        }
        self.drained(at, SILENCE).await;
    }

    async fn drained(&self, at: &At, silence: Duration) {
        let process = (at.task, at.exec.clone());
        let (until, mut open) = (Instant::now() + WAIT_MAX, self.0.subscribe());
        let mut before = None;
        while Instant::now() < until {
            if timeout(silence, open.wait_for(|open| !open.contains_key(&process))).await.is_ok() {
                return;
            }
            let now = self.0.borrow().get(&process).copied();
            if now == before {
                return;
            }
            before = now;
        }
    }
}

impl Reading {
    /// Notes that so much was passed on.
    pub(super) fn passed(&self, bytes: usize) {
        self.of.0.send_if_modified(|open| {
            if let Some(open) = open.get_mut(&self.process) {
                open.passed_bytes += bytes as u64;
            }
            false
        });
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.of.0.send_modify(|open| {
            let left = open.get_mut(&self.process).map(|open| {
                open.streams -= 1;
                open.streams
            });
            if left == Some(0) {
                open.remove(&self.process);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use shoal_state::NodeId;

    use super::*;

    fn at() -> At {
        At { node: NodeId::from_random(1), task: TaskId::from_random(2), exec: "one".to_owned() }
    }

    fn long_ago() -> Instant {
        Instant::now().checked_sub(AT_ONCE * 2).expect("this machine has run for a while")
    }

    #[tokio::test]
    async fn the_end_is_told_after_all_that_was_read() {
        let readings = Readings::default();
        let (stdout, stderr) = (readings.enter(&at()), readings.enter(&at()));
        let ended = tokio::spawn({
            let readings = readings.clone();
            async move { readings.passed_on(&at(), long_ago()).await }
        });
        drop(stderr);
        sleep(READER_COMES * 2).await;
        assert!(!ended.is_finished(), "its stdout is on the way");
        drop(stdout);
        timeout(SILENCE / 2, ended).await.expect("nobody reads any more").unwrap();
        assert!(readings.0.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_reader_that_takes_nothing_is_not_waited_for_long() {
        let readings = Readings::default();
        let reading = readings.enter(&at());
        let (silence, began) = (Duration::from_millis(400), Instant::now());
        let at = at();
        let drained = readings.drained(&at, silence);
        let takes = async {
            for _ in 0..8 {
                sleep(silence / 2).await;
                reading.passed(1);
            }
        };
        let ((), ()) = tokio::join!(drained, takes);
        assert!(began.elapsed() >= silence * 5, "it was waited for while it took something");
    }

    #[tokio::test]
    async fn a_reader_that_comes_right_after_is_waited_for() {
        let readings = Readings::default();
        let ended = tokio::spawn({
            let readings = readings.clone();
            async move { readings.passed_on(&at(), Instant::now()).await }
        });
        tokio::task::yield_now().await;
        let reading = readings.enter(&at());
        sleep(READER_COMES * 2).await;
        assert!(!ended.is_finished());
        drop(reading);
        timeout(SILENCE / 2, ended).await.expect("nobody reads any more").unwrap();
    }
}
