//! Group commit: one thread syncs, and each sync serves everyone who asked before it began.
//!
//! Callers that come while a sync runs wait for the next one, so that the number of fsyncs follows the disk and
//! not the number of callers.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How long a blocking caller waits for a sync before it is told that the disk hangs.
pub(crate) const SYNC_DEADLINE: Duration = Duration::from_secs(60);

/// Why a caller was not served.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Unserved<E> {
    /// A sync failed: this one or an earlier one.
    #[error("the sync failed")]
    Failed(E),
    /// The disk did not answer in time; the sync may still end well.
    #[error("no answer within {0:?}")]
    Late(Duration),
    /// The syncing thread ended.
    #[error("the syncing thread ended")]
    Ended,
}

/// The thread that syncs, and those who wait for it.
#[derive(Debug)]
pub(crate) struct Group<E> {
    shared: Arc<Shared<E>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared<E> {
    rounds: Mutex<Rounds<E>>,
    asked: Condvar,
    served: Condvar,
}

#[derive(Debug)]
struct Rounds<E> {
    /// Number of the latest request.
    asked: u64,
    /// All requests up to this one are served.
    served: u64,
    over: Option<Unserved<E>>,
    closing: bool,
    wakers: Vec<Waker>,
}

impl<E: Clone + Send + 'static> Group<E> {
    /// Starts the thread; `sync` makes durable whatever was written before it was called.
    pub(crate) fn start(name: &str, sync: impl FnMut() -> Result<(), E> + Send + 'static) -> io::Result<Self> {
        Self::run(name, None, sync)
    }

    /// Starts the thread, which syncs also when nobody has asked for it for a time: where little may be left unsynced.
    pub(crate) fn start_restless(name: &str, after: Duration, sync: impl FnMut() -> Result<(), E> + Send + 'static) -> io::Result<Self> {
        Self::run(name, Some(after), sync)
    }

    fn run(name: &str, rest: Option<Duration>, sync: impl FnMut() -> Result<(), E> + Send + 'static) -> io::Result<Self> {
        let rounds = Rounds { asked: 0, served: 0, over: None, closing: false, wakers: Vec::new() };
        let shared = Arc::new(Shared { rounds: Mutex::new(rounds), asked: Condvar::new(), served: Condvar::new() });
        let of_thread = shared.clone();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || of_thread.run(rest, sync))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Blocks until a sync that began after this call has ended.
    pub(crate) fn wait(&self) -> Result<(), Unserved<E>> {
        let deadline = Instant::now() + SYNC_DEADLINE;
        let mut rounds = self.shared.rounds.lock();
        let request = rounds.ask();
        self.shared.asked.notify_one();
        loop {
            if let Some(answer) = rounds.answer(request) {
                return answer;
            }
            if self.shared.served.wait_until(&mut rounds, deadline).timed_out() {
                return rounds.answer(request).unwrap_or(Err(Unserved::Late(SYNC_DEADLINE)));
            }
        }
    }

    /// Asks for a sync; the future ends when one that began after this call has ended.
    ///
    /// The sync runs whether or not the future is polled.
    pub(crate) fn ask(&self) -> Waiting<E> {
        let request = self.shared.rounds.lock().ask();
        self.shared.asked.notify_one();
        Waiting { shared: self.shared.clone(), request }
    }

    /// Returns why syncs fail from now on, if they do.
    pub(crate) fn over(&self) -> Option<Unserved<E>> {
        self.shared.rounds.lock().over.clone()
    }

    /// Refuses every later request with this error.
    pub(crate) fn fail(&self, error: E) {
        let mut rounds = self.shared.rounds.lock();
        rounds.end(Unserved::Failed(error));
        self.shared.served.notify_all();
    }
}

impl<E> Drop for Group<E> {
    fn drop(&mut self) {
        self.shared.rounds.lock().closing = true;
        self.shared.asked.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic of the thread was already told to those who waited for it.
            let _ = thread.join();
        }
    }
}

impl<E: Clone> Shared<E> {
    fn run(&self, rest: Option<Duration>, mut sync: impl FnMut() -> Result<(), E>) {
        let ending = Ending(self);
        while let Some(request) = self.next(rest) {
            let result = sync();
            let mut rounds = self.rounds.lock();
            match result {
                Ok(()) => rounds.served = request,
                Err(error) => rounds.end(Unserved::Failed(error)),
            }
            let wakers = std::mem::take(&mut rounds.wakers);
            drop(rounds);
            self.served.notify_all();
            wakers.into_iter().for_each(Waker::wake);
        }
        drop(ending);
    }

    /// Waits for a request, or for `rest` if that is shorter; `None` when it is time to end.
    fn next(&self, rest: Option<Duration>) -> Option<u64> {
        let until = rest.map(|rest| Instant::now() + rest);
        let (mut rounds, mut rested) = (self.rounds.lock(), false);
        while rounds.asked == rounds.served && !rounds.closing && rounds.over.is_none() && !rested {
            match until {
                Some(until) => rested = self.asked.wait_until(&mut rounds, until).timed_out(),
                // Nothing to be late for: the owner wakes this thread for a request or to end.
                None => self.asked.wait(&mut rounds),
            }
        }
        let goes_on = rounds.asked > rounds.served || !rounds.closing;
        (goes_on && rounds.over.is_none()).then_some(rounds.asked)
    }
}

/// Tells everyone who waits when the thread ends, also by a panic.
struct Ending<'a, E: Clone>(&'a Shared<E>);

impl<E: Clone> Drop for Ending<'_, E> {
    fn drop(&mut self) {
        self.0.rounds.lock().end(Unserved::Ended);
        self.0.served.notify_all();
    }
}

impl<E: Clone> Rounds<E> {
    fn ask(&mut self) -> u64 {
        self.asked += 1;
        self.asked
    }

    fn answer(&self, request: u64) -> Option<Result<(), Unserved<E>>> {
        if self.served >= request {
            return Some(Ok(()));
        }
        self.over.clone().map(Err)
    }

    /// The first reason stays.
    fn end(&mut self, why: Unserved<E>) {
        self.over.get_or_insert(why);
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

/// A request for a sync that was not served yet.
#[derive(Debug)]
pub(crate) struct Waiting<E> {
    shared: Arc<Shared<E>>,
    request: u64,
}

impl<E: Clone> Future for Waiting<E> {
    type Output = Result<(), Unserved<E>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut rounds = self.shared.rounds.lock();
        if let Some(answer) = rounds.answer(self.request) {
            return Poll::Ready(answer);
        }
        if !rounds.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            rounds.wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// Ends when everything written before it was asked for is on disk.
///
/// The sync goes on when this is dropped. It has no deadline of its own: the caller knows how long its own caller waits.
#[derive(Debug)]
#[must_use = "nothing is known to be on disk before this ends"]
pub struct Synced<E> {
    waiting: Waiting<E>,
    explain: fn(Unserved<E>, &std::path::Path) -> E,
    dir: Arc<std::path::Path>,
}

impl<E: Clone + Send + 'static> Synced<E> {
    pub(crate) fn new(group: &Group<E>, dir: Arc<std::path::Path>, explain: fn(Unserved<E>, &std::path::Path) -> E) -> Self {
        Self { waiting: group.ask(), explain, dir }
    }
}

impl<E: Clone> Future for Synced<E> {
    type Output = Result<(), E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.waiting).poll(context));
        Poll::Ready(answer.map_err(|why| (self.explain)(why, &self.dir)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    #[test]
    fn callers_that_come_during_a_sync_share_the_next() {
        let (began, begun) = mpsc::channel();
        let (go, gate) = mpsc::channel::<()>();
        let group = Group::<()>::start("test", move || {
            began.send(()).unwrap();
            gate.recv().unwrap();
            Ok(())
        })
        .unwrap();
        let first = group.ask();
        begun.recv_timeout(Duration::from_secs(10)).unwrap();
        let later: Vec<_> = (0..100).map(|_| group.ask()).collect();
        go.send(()).unwrap();
        begun.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(first.shared.rounds.lock().answer(first.request).is_some());
        assert!(later[0].shared.rounds.lock().answer(later[0].request).is_none());
        go.send(()).unwrap();
        drop(group);
        for one in later {
            assert!(matches!(one.shared.rounds.lock().answer(one.request), Some(Ok(()))));
        }
        assert!(begun.try_recv().is_err(), "a hundred callers needed more than one sync");
    }

    #[test]
    fn a_failed_sync_fails_all_later_ones() {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = calls.clone();
        let group = Group::start("test", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Err("disk died")
        })
        .unwrap();
        assert!(matches!(group.wait(), Err(Unserved::Failed("disk died"))));
        assert!(matches!(group.wait(), Err(Unserved::Failed("disk died"))));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_nobody_waits_for_is_synced_after_a_rest() {
        let (tell, synced) = mpsc::channel();
        let group = Group::<()>::start_restless("test", Duration::from_millis(1), move || {
            let _ = tell.send(());
            Ok(())
        })
        .unwrap();
        for _ in 0..2 {
            synced.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        group.wait().unwrap();
    }

    #[test]
    fn a_panic_of_the_sync_is_told() {
        let group = Group::<()>::start("test", || panic!("expected by this test")).unwrap();
        assert!(matches!(group.wait(), Err(Unserved::Ended)));
    }
}
