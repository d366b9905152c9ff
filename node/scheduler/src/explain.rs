//! A function's situation in words.

use std::fmt::Write;

use shoal_state::model::AppState;
use shoal_state::{Command, FunctionId, State, Timestamp};

use crate::{Load, demand, plan};

/// Says what a function has, what waits for it, and why.
///
/// For example: `3 inputs wait (the oldest for 1.5 s), 1 runs; 1 container of at most 10; waiting for 2 cores:
/// node n1 has 0.5 cores free`.
pub fn explain(state: &State, load: &Load, id: FunctionId, now: Timestamp) -> String {
    let Some(function) = state.functions.get(&id) else { return format!("there is no function {id}") };
    match state.apps.get(&function.app) {
        None => return format!("its app {} does not exist", function.app),
        Some(app) if app.state == AppState::Stopped => {
            let why = app.stopped.as_ref().map_or("", |(_, why)| why.as_str());
            return format!("its app {} is stopped: {why}", function.app);
        }
        Some(_) => {}
    }
    let mut text = inputs(load, id);
    let pool = demand::pool(state, load, id);
    let serving = pool.serving.len();
    let (most, at_once) = (demand::containers_max(function), demand::at_once(load, id));
    let _ = match load.placements.get(&id).and_then(|placement| placement.gang) {
        Some(size) => write!(text, "; {serving} cluster{} of {size} containers, of at most {}", plural(serving as u64), most / at_once),
        None => write!(text, "; {serving} container{} of at most {most}", plural(serving as u64)),
    };
    for (count, what) in [(pool.outgoing.len(), "to be replaced"), (pool.stopping, "stopping"), (pool.lost, "lost with their node")] {
        if count > 0 {
            let _ = write!(text, ", {count} {what}");
        }
    }
    let mut next = 0;
    let planned = plan(state, load, now, &mut || {
        next += 1;
        next
    });
    let starts = planned
        .commands
        .iter()
        .map(|command| match command {
            Command::Assign { task, .. } if task.function == id => 1,
            Command::AssignGang { tasks, .. } if tasks.iter().any(|(_, task)| task.function == id) => tasks.len(),
            _ => 0,
        })
        .sum::<usize>();
    if starts > 0 {
        let _ = write!(text, "; {starts} about to start");
    }
    if let Some((_, why)) = planned.waiting.iter().find(|(function, _)| *function == id) {
        let _ = write!(text, "; {why}");
    }
    text
}

fn inputs(load: &Load, id: FunctionId) -> String {
    let Some(pool) = load.pools.get(&id) else { return "no report of its inputs yet".to_owned() };
    let oldest = match pool.waiting {
        0 => String::new(),
        _ => format!(" (the oldest for {}.{} s)", pool.oldest_waiting_ms / 1000, pool.oldest_waiting_ms % 1000 / 100),
    };
    format!("{} input{} waiting{oldest}, {} running", pool.waiting, plural(pool.waiting), pool.running)
}

fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}
