//! A bounded queue that many threads take from.

use std::collections::VecDeque;

use parking_lot::{Condvar, Mutex};

#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    length_max: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(length_max: usize) -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), closed: false }), filled: Condvar::new(), length_max }
    }

    /// Adds one, and says false if the queue is full or closed.
    pub(crate) fn push(&self, one: T) -> bool {
        let mut state = self.state.lock();
        if state.closed || state.waiting.len() >= self.length_max {
            return false;
        }
        state.waiting.push_back(one);
        self.filled.notify_one();
        true
    }

    /// Takes the next one, and waits for it; None when the queue is closed.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(one) = state.waiting.pop_front() {
                return Some(one);
            }
            self.filled.wait(&mut state);
        }
    }

    /// Ends all waiting, and drops what waits.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.waiting.clear();
        self.filled.notify_all();
    }
}
