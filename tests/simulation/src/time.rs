//! Virtual time, and who runs in it: one thread polls what is ready, in an order that the seed says, and when nothing is, time jumps to
//! where something is due.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, Either, LocalBoxFuture, select};
use parking_lot::Mutex;

use crate::dice::Dice;

/// Who a task belongs to: a start of a node, or the world.
pub type Owner = u64;

/// What is not a node's.
pub const WORLD: Owner = 0;

/// So many polls are a world that turns in circles.
const POLLS_MAX: u64 = 20_000_000;

/// The time of a world. Clones are the same.
#[derive(Debug, Clone)]
pub struct Time {
    base: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    now: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    timers_made: u64,
}

impl Time {
    fn new() -> Self {
        Self { base: Instant::now(), inner: Arc::default() }
    }

    /// Returns the time since the world began.
    pub fn now(&self) -> Duration {
        self.inner.lock().now
    }

    /// Returns the time as an instant: only differences say something.
    pub fn instant(&self) -> Instant {
        self.base + self.now()
    }

    /// Waits for so long.
    pub fn sleep(&self, wait: Duration) -> Sleep {
        Sleep { time: self.clone(), at: self.now() + wait, set: None }
    }

    /// Waits until an instant of [`Self::instant`].
    pub fn sleep_until(&self, at: Instant) -> Sleep {
        Sleep { time: self.clone(), at: at.saturating_duration_since(self.base), set: None }
    }

    /// Waits for something, up to `wait`.
    pub async fn within<F: Future>(&self, wait: Duration, what: F) -> Option<F::Output> {
        match select(std::pin::pin!(what), self.sleep(wait)).await {
            Either::Left((found, _)) => Some(found),
            Either::Right(_) => None,
        }
    }

    /// Goes on to the next time at which something is due; false if nothing is.
    fn advance(&self) -> bool {
        let waker = {
            let mut inner = self.inner.lock();
            let Some(((at, _), waker)) = inner.timers.pop_first() else { return false };
            inner.now = inner.now.max(at);
            waker
        };
        waker.wake();
        true
    }
}

/// Waits for a time.
#[derive(Debug)]
pub struct Sleep {
    time: Time,
    at: Duration,
    set: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let time = self.time.clone();
        let mut inner = time.inner.lock();
        if let Some(set) = self.set.take() {
            inner.timers.remove(&(self.at, set));
        }
        if inner.now >= self.at {
            return Poll::Ready(());
        }
        inner.timers_made += 1;
        let number = inner.timers_made;
        inner.timers.insert((self.at, number), context.waker().clone());
        self.set = Some(number);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(set) = self.set {
            self.time.inner.lock().timers.remove(&(self.at, set));
        }
    }
}

struct Task {
    owner: Owner,
    future: LocalBoxFuture<'static, ()>,
    waker: Waker,
}

struct Wakes {
    task: u64,
    ready: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.ready.lock().insert(self.task);
    }
}

/// Where tasks are left by those that must not know what runs them. Clones are the same.
#[derive(Clone, Default)]
pub struct Inbox(Arc<Mutex<Vec<Brought>>>);

type Brought = (Owner, BoxFuture<'static, ()>);

impl Inbox {
    /// Leaves something that an owner is to run.
    pub fn leave(&self, owner: Owner, task: BoxFuture<'static, ()>) {
        self.0.lock().push((owner, task));
    }

    fn take(&self) -> Vec<Brought> {
        std::mem::take(&mut *self.0.lock())
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Inbox").field(&self.0.lock().len()).finish()
    }
}

/// Runs tasks in virtual time. Clones are the same.
#[derive(Clone)]
pub struct Runs(Rc<Running>);

struct Running {
    time: Time,
    tasks: RefCell<BTreeMap<u64, Task>>,
    begun: RefCell<Vec<(Owner, LocalBoxFuture<'static, ()>)>>,
    inbox: Inbox,
    ready: Arc<Mutex<BTreeSet<u64>>>,
    ended: RefCell<Vec<Owner>>,
    paused: RefCell<BTreeSet<Owner>>,
    next: Cell<u64>,
    dice: RefCell<Dice>,
}

impl std::fmt::Debug for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runs").field("tasks", &self.0.tasks.borrow().len()).finish_non_exhaustive()
    }
}

impl Runs {
    /// Begins with nothing to run.
    pub fn new(dice: Dice) -> Self {
        Self(Rc::new(Running {
            time: Time::new(),
            tasks: RefCell::default(),
            begun: RefCell::default(),
            inbox: Inbox::default(),
            ready: Arc::default(),
            ended: RefCell::default(),
            paused: RefCell::default(),
            next: Cell::new(1),
            dice: RefCell::new(dice),
        }))
    }

    /// Returns the time in which all runs.
    pub fn time(&self) -> Time {
        self.0.time.clone()
    }

    /// Returns where tasks may be left that are to be run.
    pub fn inbox(&self) -> Inbox {
        self.0.inbox.clone()
    }

    /// Runs something for an owner.
    pub fn spawn(&self, owner: Owner, task: impl Future<Output = ()> + 'static) {
        self.0.begun.borrow_mut().push((owner, Box::pin(task)));
    }

    /// Ends all that an owner runs, once the present task has had its turn.
    pub fn end(&self, owner: Owner) {
        self.0.ended.borrow_mut().push(owner);
        self.0.paused.borrow_mut().remove(&owner);
    }

    /// Lets an owner stand still, or go on.
    pub fn pause(&self, owner: Owner, paused: bool) {
        let mut all = self.0.paused.borrow_mut();
        if paused {
            all.insert(owner)
        } else {
            all.remove(&owner)
        };
    }

    /// Says whether an owner stands still.
    pub fn is_paused(&self, owner: Owner) -> bool {
        self.0.paused.borrow().contains(&owner)
    }

    fn add(&self, owner: Owner, future: LocalBoxFuture<'static, ()>) {
        let task = self.0.next.get();
        self.0.next.set(task + 1);
        let waker = Waker::from(Arc::new(Wakes { task, ready: self.0.ready.clone() }));
        self.0.tasks.borrow_mut().insert(task, Task { owner, future, waker });
        self.0.ready.lock().insert(task);
    }

    /// Takes what was begun, and takes away what has ended.
    fn tidy(&self) {
        let begun = std::mem::take(&mut *self.0.begun.borrow_mut());
        begun.into_iter().for_each(|(owner, task)| self.add(owner, task));
        self.0.inbox.take().into_iter().for_each(|(owner, task)| self.add(owner, task));
        for owner in std::mem::take(&mut *self.0.ended.borrow_mut()) {
            let numbers: Vec<u64> =
                self.0.tasks.borrow().iter().filter(|(_, task)| task.owner == owner).map(|(number, _)| *number).collect();
            let tasks: Vec<Task> = numbers.iter().filter_map(|number| self.0.tasks.borrow_mut().remove(number)).collect();
            drop(tasks);
        }
    }

    /// Takes the next task that is ready.
    fn next(&self) -> Option<(u64, Task)> {
        let mut ready = self.0.ready.lock();
        let mut tasks = self.0.tasks.borrow_mut();
        ready.retain(|number| tasks.contains_key(number));
        let paused = self.0.paused.borrow();
        let can: Vec<u64> = ready.iter().copied().filter(|number| !paused.contains(&tasks[number].owner)).take(8).collect();
        let number = self.0.dice.borrow_mut().pick(&can)?;
        ready.remove(&number);
        Some((number, tasks.remove(&number)?))
    }

    /// Runs until `over`, or until nothing is left that could happen.
    pub fn run_until(&self, over: impl Fn() -> bool) {
        let mut polls = 0;
        while !over() {
            self.tidy();
            let Some((number, mut task)) = self.next() else {
                if self.0.time.advance() {
                    continue;
                }
                return;
            };
            polls += 1;
            assert!(polls < POLLS_MAX, "something turns in circles at {:?}", self.0.time.now());
            let waker = task.waker.clone();
            if task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                self.0.tasks.borrow_mut().insert(number, task);
            }
        }
    }

    /// Ends everything.
    pub fn clear(&self) {
        self.tidy();
        let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
        drop(tasks);
        self.0.begun.borrow_mut().clear();
        drop(self.0.inbox.take());
    }
}
