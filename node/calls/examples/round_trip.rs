//! How fast calls go through one node: `cargo run --release -p shoal-calls --example round_trip [FOLDER]`.
//!
//! One caller alone gives the time of a round trip (open, put, lease by a waiting task, finish, outputs); many callers and tasks
//! give inputs per second, for calls that count when written and for calls that count when synced; and one map.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use shoal_calls::{Calls, calls::*};
use shoal_state::model::Shard;
use shoal_state::{CallId, FunctionId, NodeId, ShardId, TaskId};

const WAIT: Duration = Duration::from_secs(50);

fn pool() -> FunctionId {
    FunctionId::from_random(9)
}

fn open(number: u64, kind: CallKind, invocation: Invocation) -> OpenCall {
    let shard = ShardId::new((number % 256) as u16).expect("there are so many shards");
    OpenCall {
        call: CallId::derive_in(shard, &[&number.to_le_bytes()]),
        function: pool(),
        pool: pool(),
        kind,
        invocation,
        parent: None,
        created_ms: SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64,
        policy: Policy::default(),
    }
}

async fn work(calls: Calls, task: TaskId, max: u32) {
    for number in 0u64.. {
        let key = number.to_string();
        let request = LeaseRequest { pool: pool(), task, max, wait_ms: 50_000, linger_ms: 0, key };
        let Ok(Leased::Inputs(inputs)) = calls.lease(request).await else { return };
        let ended = inputs.into_iter().map(|input| Outcome {
            input: input.input,
            retry_count: input.retry_count,
            status: Status::Success,
            result: input.payload,
        });
        calls.finish(Some((task, pool())), ended.collect()).await.expect("an outcome is taken");
    }
}

async fn round_trip(calls: &Calls, number: u64, invocation: Invocation) {
    let opened = open(number, CallKind::Unary, invocation);
    let call = opened.call;
    let item = NewInput { idx: 0, payload: vec![7; 200].into() };
    calls.open_call_with(opened, vec![item], "k").await.expect("a call is opened");
    let outputs = calls.outputs(call, Entry::default(), 1, WAIT, true).await.expect("a call is read");
    assert_eq!(outputs.items.len(), 1);
}

async fn alone(calls: &Calls, first: u64, invocation: Invocation, rounds: u64) {
    let mut times = Vec::new();
    for number in first..first + rounds {
        let began = Instant::now();
        round_trip(calls, number, invocation).await;
        times.push(began.elapsed());
    }
    times.sort();
    let at = |part: usize| times[times.len() * part / 100];
    println!("{invocation:?}, one caller: p50 {:?}, p99 {:?}", at(50), at(99));
}

async fn together(calls: &Calls, first: u64, invocation: Invocation, callers: u64, each: u64) {
    let began = Instant::now();
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let calls = calls.clone();
            tokio::spawn(async move {
                for number in 0..each {
                    round_trip(&calls, first + caller * each + number, invocation).await;
                }
            })
        })
        .collect();
    let all = callers.len() as u64 * each;
    for caller in callers {
        caller.await.expect("a caller ends");
    }
    println!("{invocation:?}, many callers: {:.0} calls/s", all as f64 / began.elapsed().as_secs_f64());
}

async fn map(calls: &Calls, number: u64, inputs: u32) {
    let opened = open(number, CallKind::Map, Invocation::Sync);
    let call = opened.call;
    let began = Instant::now();
    calls.open_call(opened).await.expect("a call is opened");
    let putter = calls.clone();
    let put = tokio::spawn(async move {
        for first in (0..inputs).step_by(49) {
            let items = (first..(first + 49).min(inputs)).map(|idx| NewInput { idx, payload: vec![7; 200].into() });
            putter.put_inputs(call, items.collect(), &first.to_string()).await.expect("inputs are put");
        }
    });
    let (mut seen, mut last) = (0, Entry::default());
    while seen < inputs as usize {
        let outputs = calls.outputs(call, last, 100, WAIT, false).await.expect("a call is read");
        (seen, last) = (seen + outputs.items.len(), outputs.last);
    }
    put.await.expect("the putter ends");
    println!("Sync, one map: {:.0} inputs/s", f64::from(inputs) / began.elapsed().as_secs_f64());
}

#[tokio::main]
async fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| format!("/tmp/shoal-round-trip-{}", std::process::id()));
    let me = NodeId::from_random(1);
    let calls = Calls::open(&Options::new(Path::new(&folder).join("shards"), me), None).expect("calls open");
    let config = Shard { epoch: 1, home: me, in_sync: vec![me], joining: vec![] };
    calls.configure(ShardId::all().map(|shard| (shard, config.clone())).collect()).await.expect("shards are taken");
    calls.reports_complete(shoal_state::ShardId::all().collect()).await.expect("nothing is inherited");
    let worker = tokio::spawn(work(calls.clone(), TaskId::from_random(0), 1));
    alone(&calls, 0, Invocation::Sync, 5_000).await;
    alone(&calls, 10_000, Invocation::Async, 1_000).await;
    let workers: Vec<_> = (1..16).map(|task| tokio::spawn(work(calls.clone(), TaskId::from_random(task), 4))).collect();
    together(&calls, 100_000, Invocation::Sync, 64, 1_000).await;
    together(&calls, 1_000_000, Invocation::Async, 256, 200).await;
    map(&calls, 5_000_000, 50_000).await;
    calls.stop().await.expect("calls stop");
    for worker in workers.into_iter().chain([worker]) {
        worker.await.expect("a worker ends");
    }
    std::fs::remove_dir_all(&folder).expect("the folder is removed");
}
