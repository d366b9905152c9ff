//! A container of a gang: that of rank 0 takes inputs once all others wait for the next, and what it was given they are given too.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::{LeaseRequest, Leased, Outcome, Status};
use shoal_calls::gangs::{Given, Place, Waited};
use shoal_state::model::Task;
use shoal_state::{InputId, TaskId};

use super::{AGAIN_AFTER, INPUTS_WAIT, finish};
use crate::gangs::Side;
use crate::history::Event;
use crate::mutant::Mutant;
use crate::node::Node;
use crate::world::World;

/// A try of an input.
type Try = (InputId, u32);

/// Works as the container of some rank until there is nothing more for its gang.
pub(super) async fn work(side: &Side, id: TaskId, task: &Task) {
    let mut number = 0;
    loop {
        number += 1;
        let Some(place) = Place::of(&side.world.council.local(side.node.me), id) else { return };
        let key = format!("{id}-{number}");
        let given = if place.rank == 0 { lease(side, id, task, &place, &key).await } else { hear(side, id, &place, &key).await };
        let Some(given) = given else { return };
        for of in given {
            match place.rank {
                0 => do_first(side, id, task, of).await,
                _ => do_other(side, id, task, &place, of).await,
            }
        }
    }
}

/// Takes inputs for all; none if nothing more comes.
async fn lease(side: &Side, id: TaskId, task: &Task, place: &Place, key: &str) -> Option<Vec<Try>> {
    let (world, node) = (&side.world, &side.node);
    let hasty = world.has(Mutant::GangWaitsForNobody);
    match if hasty { Waited::Ready } else { node.gangs.rules.all_wait(side, id, place, INPUTS_WAIT).await } {
        Waited::Ready => {}
        Waited::Stops => return None,
        Waited::NotYet => return Some(vec![]),
    }
    let request = || LeaseRequest {
        pool: task.function,
        task: id,
        max: 1,
        wait_ms: u64::try_from(INPUTS_WAIT.as_millis()).unwrap_or(u64::MAX),
        linger_ms: 0,
        key: key.to_owned(),
    };
    let leased = loop {
        match node.calls.lease(request()).await {
            Ok(Leased::Stop) => return None,
            Ok(Leased::Inputs(inputs)) => break inputs,
            Err(_) => world.time.sleep(AGAIN_AFTER).await,
        }
    };
    let given: Vec<Try> = leased.iter().map(|input| (input.input, input.retry_count)).collect();
    if !given.is_empty() {
        node.gangs.has.borrow_mut().extend(given.iter().map(|(input, retry_count)| (id, *input, *retry_count)));
        let words: Vec<String> = given.iter().map(|(input, retry_count)| format!("{input} {retry_count}")).collect();
        node.gangs.rules.tell(place, words.join(",").into());
    }
    Some(given)
}

/// Hears what rank 0 was given; none if nothing more comes.
async fn hear(side: &Side, id: TaskId, place: &Place, key: &str) -> Option<Vec<Try>> {
    match side.node.gangs.rules.next(side, id, place, key, INPUTS_WAIT).await {
        Given::Stop => None,
        Given::Nothing => Some(vec![]),
        Given::Inputs(words) => {
            let words = std::str::from_utf8(&words).expect("it was told words");
            let one = |word: &str| {
                let (input, retry_count) = word.split_once(' ').expect("an input and its try");
                (input.parse().expect("an input"), retry_count.parse().expect("a number"))
            };
            Some(words.split(',').map(one).collect())
        }
    }
}

fn takes(world: &World) -> Duration {
    Duration::from_millis(if world.draw(0, 5) == 0 { world.draw(2_000, 9_000) } else { world.draw(10, 900) })
}

/// What rank 0 brings counts.
async fn do_first(side: &Side, id: TaskId, task: &Task, (input, retry_count): Try) {
    let (world, node) = (&side.world, &side.node);
    world.history.note(Event::RunBegan { task: id, node: node.me, input, retry_count });
    world.time.sleep(takes(world)).await;
    world.history.note(Event::WorkDone { task: id, input });
    node.gangs.has.borrow_mut().remove(&(id, input, retry_count));
    let status = if world.draw(0, 9) == 0 { Status::Failed } else { Status::Success };
    bring(world, node, id, task, (input, retry_count), status).await;
    world.history.note(Event::RunEnded { task: id, input, retry_count });
}

/// Of the others a failure is told.
async fn do_other(side: &Side, id: TaskId, task: &Task, place: &Place, (input, retry_count): Try) {
    let (world, node) = (&side.world, &side.node);
    node.gangs.rules.works_on(id, input, retry_count);
    world.history.note(Event::RankBegan { task: id, node: node.me, input, retry_count });
    world.time.sleep(takes(world)).await;
    node.gangs.rules.done(id, input);
    let fails = world.draw(0, 9) == 0;
    if world.has(Mutant::GangOthersBringOutcomes) {
        bring(world, node, id, task, (input, retry_count), Status::Success).await;
    } else if fails {
        let (told, place) = (side.clone(), place.clone());
        let outcome = Outcome { input, retry_count, status: Status::Failed, result: result(id, (input, retry_count)) };
        world.runs.spawn(node.owner, async move { told.node.gangs.rules.failed(&told, &place, outcome, false).await });
    }
    world.history.note(Event::RankEnded { task: id, input, retry_count });
}

fn result(id: TaskId, (input, retry_count): Try) -> Bytes {
    Bytes::from(format!("{input} {retry_count} by {id}"))
}

async fn bring(world: &World, node: &Rc<Node>, id: TaskId, task: &Task, of: Try, status: Status) {
    let outcome = || Outcome { input: of.0, retry_count: of.1, status, result: result(id, of) };
    finish(world, node, (id, task.function), outcome).await;
}

/// A container is gone: what it worked on fails with it, if it was not stopped.
pub(super) async fn leave(side: &Side, id: TaskId, place: &Place, is_own_doing: bool) {
    side.node.gangs.has.borrow_mut().retain(|(task, ..)| *task != id);
    let works_on = side.node.gangs.rules.forget(id, place);
    let is_stopping = side.world.council.local(side.node.me).tasks.get(&id).is_none_or(|task| task.stopping.is_some());
    if place.rank == 0 || is_stopping || !is_own_doing {
        return;
    }
    let mut works_on: Vec<Try> = works_on.into_iter().collect();
    works_on.sort_unstable();
    for (input, retry_count) in works_on {
        let outcome = Outcome { input, retry_count, status: Status::Failed, result: result(id, (input, retry_count)) };
        side.node.gangs.rules.failed(side, place, outcome, true).await;
    }
}
