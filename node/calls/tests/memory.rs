//! What waits costs an index and nothing else: the process grows by little for each input, and not by what the input holds.
//!
//! One test, alone in its process: what it looks at is the process.

use shoal_calls::{Calls, calls::*};
use shoal_state::model::Shard;
use shoal_state::{CallId, FunctionId, NodeId, ShardId};

/// As many inputs as are put in each way.
const INPUTS: u32 = 50_000;

/// What each input holds.
const PAYLOAD_BYTES: usize = 2000;

/// What an input of a map may cost.
const MAP_BYTES_MAX: u64 = 450;

/// What a spawned call may cost, with its one input.
const SPAWN_BYTES_MAX: u64 = 1200;

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn function() -> FunctionId {
    FunctionId::from_random(9)
}

fn opened(number: u32, kind: CallKind) -> OpenCall {
    OpenCall {
        call: CallId::derive_in(ShardId::new(7).unwrap(), &[&number.to_le_bytes()]),
        function: function(),
        pool: function(),
        kind,
        invocation: Invocation::Async,
        parent: None,
        // Kept for a while from then on.
        created_ms: u64::MAX / 2,
        policy: Policy::default(),
    }
}

fn inputs(range: std::ops::Range<u32>) -> Vec<NewInput> {
    range.map(|idx| NewInput { idx, payload: vec![7; PAYLOAD_BYTES].into() }).collect()
}

async fn map(calls: &Calls, number: u32, count: u32) {
    let open = opened(number, CallKind::Map);
    let call = open.call;
    calls.open_call(open).await.unwrap();
    for first in (0..count).step_by(500) {
        calls.put_inputs(call, inputs(first..first + 500), &first.to_string()).await.unwrap();
    }
}

/// Spawns calls, some hundred at once as clients do.
async fn spawn(calls: &Calls, numbers: std::ops::Range<u32>) {
    for first in numbers.step_by(250) {
        let spawned = (first..first + 250).map(|number| {
            let calls = calls.clone();
            async move { calls.open_call_with(opened(number, CallKind::Unary), inputs(0..1), "key").await.unwrap() }
        });
        futures::future::join_all(spawned).await;
    }
}

#[tokio::test]
async fn an_input_that_waits_costs_an_index_and_not_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let calls = Calls::open(&Options::new(dir.path().join("shards"), NodeId::from_random(1)), None).unwrap();
    let config = Shard { epoch: 1, home: NodeId::from_random(1), in_sync: vec![NodeId::from_random(1)], joining: vec![] };
    calls.configure(ShardId::all().map(|shard| (shard, config.clone())).collect()).await.unwrap();
    calls.reports_complete(ShardId::all().collect()).await.unwrap();
    // Buffers and whatever else comes with the first of everything.
    map(&calls, 0, 1000).await;
    spawn(&calls, 1..1001).await;
    let before = resident_bytes();
    map(&calls, 2_000_000, INPUTS).await;
    let between = resident_bytes();
    spawn(&calls, 1_000_000..1_000_000 + INPUTS).await;
    let after = resident_bytes();
    let each = |from: u64, to: u64| (to - from) / u64::from(INPUTS);
    let (of_map, of_spawn) = (each(before, between), each(between, after));
    println!("{of_map} bytes an input of a map, {of_spawn} bytes a spawned call");
    assert!(of_map <= MAP_BYTES_MAX, "{of_map} bytes an input of a map");
    assert!(of_spawn <= SPAWN_BYTES_MAX, "{of_spawn} bytes a spawned call");
}
