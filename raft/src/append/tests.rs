use std::sync::Arc;
use std::time::Duration;

use openraft::{CommittedLeaderId, EntryPayload, Vote};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::*;
use crate::types::Entry;

fn at(index: u64) -> Option<LogId> {
    (index > 0).then(|| LogId::new(CommittedLeaderId::new(1, 7), index))
}

fn append(prev: u64, last: u64) -> Request {
    let entry = |index| Entry { log_id: at(index).unwrap(), payload: EntryPayload::Blank };
    let entries = (prev + 1..=last).map(entry).collect();
    Request { vote: Vote::new_committed(1, 7), prev_log_id: at(prev), leader_commit: None, entries }
}

fn range(prev: u64, last: u64) -> Range {
    Range::of(&append(prev, last))
}

#[test]
fn an_answer_counts_for_what_it_says_of_the_log() {
    let says = |sent, answer, asked| meaning(sent, answer, asked);
    let success = |sent, asked| says(sent, Response::Success, asked);
    assert_eq!(success(range(5, 8), range(5, 8)), Meaning::Answer(Response::Success));
    assert_eq!(success(range(5, 8), range(5, 10)), Meaning::Answer(Response::PartialSuccess(at(8))));
    assert_eq!(success(range(5, 10), range(5, 8)), Meaning::Answer(Response::Success));
    assert_eq!(success(range(5, 5), range(5, 8)), Meaning::Nothing, "a heartbeat tells nothing of entries");
    assert_eq!(success(range(5, 5), range(5, 5)), Meaning::Answer(Response::Success));
    assert_eq!(success(range(0, 0), range(5, 5)), Meaning::Nothing);
    assert_eq!(success(range(0, 3), range(5, 8)), Meaning::Nothing);
    let conflict = |sent, asked| says(sent, Response::Conflict, asked);
    assert_eq!(conflict(range(5, 8), range(5, 9)), Meaning::Answer(Response::Conflict));
    assert_eq!(conflict(range(9, 9), range(5, 9)), Meaning::Nothing, "that was asked before less was tried");
    let higher = || Response::HigherVote(Vote::new(2, 8));
    assert_eq!(says(range(1, 1), higher(), range(5, 9)), Meaning::Answer(higher()));
}

type Answered = Result<Response, &'static str>;

/// What was sent, and how it is to be answered.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Vec<Sent>>>);

type Sent = (Range, oneshot::Sender<Answered>);

impl Wire {
    fn send(&self, request: Request) -> impl Future<Output = Answered> + Send + 'static {
        let (reply, answer) = oneshot::channel();
        self.0.lock().push((Range::of(&request), reply));
        async { answer.await.unwrap_or(Err("the wire was cut")) }
    }

    fn sent(&self) -> Vec<Range> {
        self.0.lock().iter().map(|(range, _)| *range).collect()
    }

    fn answer(&self, number: usize, answer: Answered) {
        self.0.lock().remove(number).1.send(answer).expect("it is waited for");
    }
}

/// Asks as openraft does: for a heartbeat's time.
async fn ask(appends: &mut Appends<&'static str>, wire: &Wire, request: Request) -> Option<Answered> {
    timeout(Duration::from_millis(20), appends.ask(request, |request| wire.send(request))).await.ok()
}

#[tokio::test]
async fn an_append_that_was_given_up_is_answered_all_the_same_and_its_entries_are_sent_once() {
    let (mut appends, wire) = (Appends::default(), Wire::default());
    assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, None);
    assert_eq!(ask(&mut appends, &wire, append(5, 9)).await, None);
    assert_eq!(wire.sent(), [range(5, 8), range(5, 5)], "while entries are on their way, heartbeats follow");
    wire.answer(1, Ok(Response::Success));
    assert_eq!(ask(&mut appends, &wire, append(5, 10)).await, None, "a heartbeat's answer is none");
    wire.answer(0, Ok(Response::Success));
    assert_eq!(ask(&mut appends, &wire, append(5, 10)).await, Some(Ok(Response::PartialSuccess(at(8)))));
    assert_eq!(ask(&mut appends, &wire, append(8, 10)).await, None);
    assert_eq!(wire.sent().last(), Some(&range(8, 10)));
}

#[tokio::test]
async fn after_an_error_or_a_conflict_nothing_that_was_on_its_way_counts() {
    for answer in [|| Err("nobody is there"), || Ok(Response::Conflict)] {
        let (mut appends, wire) = (Appends::default(), Wire::default());
        assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, None);
        assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, None);
        wire.answer(1, answer());
        assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, Some(answer()));
        assert_eq!(ask(&mut appends, &wire, append(3, 8)).await, None);
        assert_eq!(wire.sent().last(), Some(&range(3, 8)), "they are sent anew");
        assert!(wire.0.lock()[0].1.is_closed(), "the first one is not waited for any more");
    }
}

#[tokio::test]
async fn no_more_are_on_their_way_than_may_be() {
    let (mut appends, wire) = (Appends::default(), Wire::default());
    for _ in 0..IN_THE_AIR_MAX * 2 {
        assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, None);
    }
    assert_eq!(wire.sent().len(), IN_THE_AIR_MAX);
    wire.answer(0, Ok(Response::Success));
    assert_eq!(ask(&mut appends, &wire, append(5, 8)).await, Some(Ok(Response::Success)));
}
