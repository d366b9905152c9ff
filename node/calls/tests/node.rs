//! Calls on a real log: the whole way of a call, restarts, kills amid load, and two nodes that keep each other's records.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use shoal_calls::shards::{Append, Replicas};
use shoal_calls::{Calls, Error, calls::*};
use shoal_state::model::Shard;
use shoal_state::{CallId, FunctionId, NodeId, ShardId, TaskId};
use tokio::sync::mpsc;

const NOW: Duration = Duration::ZERO;
const SOON: Duration = Duration::from_secs(20);

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

fn call(number: u64) -> CallId {
    CallId::derive_in(shard(), &[&number.to_le_bytes()])
}

fn task(number: u128) -> TaskId {
    TaskId::from_random(number)
}

fn pool() -> FunctionId {
    FunctionId::from_random(9)
}

fn opened(number: u64, kind: CallKind, invocation: Invocation) -> OpenCall {
    OpenCall {
        call: call(number),
        function: pool(),
        pool: pool(),
        kind,
        invocation,
        parent: None,
        created_ms: now_ms(),
        policy: Policy::default(),
    }
}

fn now_ms() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_millis() as Millis
}

fn input(idx: u32) -> NewInput {
    NewInput { idx, payload: format!("payload {idx}").into() }
}

fn want(task: TaskId, max: u32, key: &str) -> LeaseRequest {
    LeaseRequest { pool: pool(), task, max, wait_ms: 20_000, linger_ms: 0, key: key.to_owned() }
}

fn success(input: &LeasedInput) -> Outcome {
    let result = [b"result of ", &input.payload[..]].concat();
    Outcome { input: input.input, retry_count: input.retry_count, status: Status::Success, result: result.into() }
}

fn alone() -> Vec<(ShardId, Shard)> {
    let config = Shard { epoch: 1, home: node(1), in_sync: vec![node(1)], joining: vec![] };
    ShardId::all().map(|shard| (shard, config.clone())).collect()
}

async fn start(dir: &Path) -> Calls {
    let calls = Calls::open(&Options::new(dir.join("shards"), node(1)), None).unwrap();
    calls.configure(alone()).await.unwrap();
    calls.reports_complete(ShardId::all().collect()).await.unwrap();
    calls
}

/// Works as a container does: takes inputs and succeeds, until told to stop.
async fn work(calls: Calls, task: TaskId, max: u32) {
    for number in 0.. {
        match calls.lease(want(task, max, &number.to_string())).await {
            Ok(Leased::Inputs(inputs)) => {
                let outcomes = inputs.iter().map(success).collect();
                if calls.finish(Some((task, pool())), outcomes).await.is_err() {
                    return;
                }
            }
            Ok(Leased::Stop) | Err(_) => return,
        }
    }
}

#[tokio::test]
async fn a_call_goes_the_whole_way_and_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    for (number, invocation) in [(1, Invocation::Sync), (2, Invocation::Async)] {
        let open = opened(number as u64, CallKind::Unary, invocation);
        let put = calls.open_call_with(open.clone(), vec![input(0)], "k").await.unwrap();
        let reader = calls.clone();
        let read = tokio::spawn(async move { reader.outputs(open.call, Entry::default(), 10, SOON, false).await });
        let Leased::Inputs(inputs) = calls.lease(want(task(number), 1, "a")).await.unwrap() else { panic!("told to stop") };
        assert_eq!((inputs[0].input, &inputs[0].payload[..]), (put[0].input, &b"payload 0"[..]));
        let forged = calls.finish(Some((task(9), FunctionId::from_random(10))), vec![success(&inputs[0])]).await;
        assert!(matches!(forged, Err(Error::Refused(Refused::OfAnotherPool { .. }))), "{forged:?}");
        calls.finish(Some((task(number), pool())), vec![success(&inputs[0])]).await.unwrap();
        let outputs = read.await.unwrap().unwrap();
        assert_eq!(outputs.items[0].result, "result of payload 0");
        assert_eq!((outputs.items[0].task, outputs.unfinished), (Some(task(number)), 0));
        assert!(outputs.items[0].started_ms <= outputs.items[0].at_ms && outputs.items[0].started_ms > 0);
        calls.task_lost(task(number), pool(), Lost::Platform { result: Bytes::new() }).await.unwrap();
        let stopped = calls.lease(want(task(number), 1, "b")).await.unwrap();
        assert_eq!(stopped, Leased::Stop);
    }
    let waiting = calls.open_call_with(opened(9, CallKind::Map, Invocation::Async), vec![input(3), input(4)], "k").await.unwrap();
    calls.stop().await.unwrap();
    assert!(matches!(calls.info(call(9)).await, Err(Error::Ended { .. })));
    drop(calls);

    let calls = start(dir.path()).await;
    let outputs = calls.outputs(call(1), Entry::default(), 10, NOW, false).await.unwrap();
    assert_eq!(outputs.items[0].result, "result of payload 0");
    let again = calls.put_inputs(call(9), vec![input(3), input(4)], "k").await.unwrap();
    assert_eq!(again, waiting);
    let Leased::Inputs(inputs) = calls.lease(want(task(2), 5, "a")).await.unwrap() else { panic!("told to stop") };
    assert_eq!(inputs.iter().map(|input| input.idx).collect::<Vec<_>>(), [3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_of_a_thousand_inputs_comes_back_whole_through_one_cursor() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    calls.open_call(opened(1, CallKind::Map, Invocation::Sync)).await.unwrap();
    let workers: Vec<_> = (0..4).map(|number| tokio::spawn(work(calls.clone(), task(number), 3))).collect();
    let putter = calls.clone();
    let put = tokio::spawn(async move {
        for first in (0..1000).step_by(49) {
            let items: Vec<NewInput> = (first..(first + 49).min(1000)).map(input).collect();
            putter.put_inputs(call(1), items.clone(), &first.to_string()).await.unwrap();
            putter.put_inputs(call(1), items, &first.to_string()).await.unwrap();
        }
    });
    let (mut results, mut last) = (BTreeMap::new(), Entry::default());
    while results.len() < 1000 {
        let outputs = calls.outputs(call(1), last, 20, SOON, false).await.unwrap();
        assert!(!outputs.items.is_empty(), "only {} outputs within {SOON:?}", results.len());
        for item in outputs.items {
            assert!(item.entry > last && results.insert(item.idx, item.result).is_none());
            last = item.entry;
        }
    }
    put.await.unwrap();
    assert!(results.iter().all(|(idx, result)| result == format!("result of payload {idx}").as_bytes()));
    let some = calls.outputs_of(call(1), 3..=4, NOW, false).await.unwrap();
    let mut idxs: Vec<u32> = some.items.iter().map(|item| item.idx).collect();
    idxs.sort_unstable();
    assert_eq!(idxs, [3, 4], "the outputs of two inputs, whatever was read before");
    let end = calls.outputs(call(1), last, 20, NOW, true).await.unwrap();
    assert_eq!((end.items.len(), end.unfinished, end.last), (0, 0, last));
    calls.stop().await.unwrap();
    for worker in workers {
        worker.await.unwrap();
    }
}

/// How many calls are made while copies are taken.
const CALLS: u64 = 400;

/// What clients were told, while the node's folder is copied as it is at some moment: what a kill leaves.
#[derive(Default)]
struct Told {
    put: Mutex<BTreeSet<(u64, u32)>>,
    read: Mutex<BTreeMap<u64, Bytes>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    let told = Arc::new(Told::default());
    let mut busy = vec![tokio::spawn(work(calls.clone(), task(1), 1)), tokio::spawn(work(calls.clone(), task(2), 4))];
    for client in 0..4 {
        let (calls, told) = (calls.clone(), told.clone());
        busy.push(tokio::spawn(async move {
            for number in (client..CALLS).step_by(4) {
                let invocation = if number % 2 == 0 { Invocation::Sync } else { Invocation::Async };
                calls.open_call_with(opened(number, CallKind::Unary, invocation), vec![input(0)], "k").await.unwrap();
                told.put.lock().insert((number, 0));
                let outputs = calls.outputs(call(number), Entry::default(), 1, SOON, true).await.unwrap();
                told.read.lock().insert(number, outputs.items[0].result.clone());
            }
        }));
    }
    for moment in 0..10 {
        // The next copy is made when some more calls have come back; those that are under way make each one different.
        while (told.read.lock().len() as u64) < moment * CALLS / 10 {
            tokio::task::yield_now().await;
        }
        let (put, read) = (told.put.lock().clone(), told.read.lock().clone());
        let copy = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), copy.path());
        let killed = start(copy.path()).await;
        for (number, _) in &put {
            let info = killed.info(call(*number)).await.unwrap();
            assert_eq!(info.inputs, 1, "call {number} lost its input");
        }
        for (number, result) in read {
            let outputs = killed.outputs(call(number), Entry::default(), 1, NOW, false).await.unwrap();
            assert_eq!(outputs.items.first().map(|item| &item.result), Some(&result), "call {number} lost its output");
        }
        // What had no outcome is worked on again, and ends.
        let worker = tokio::spawn(work(killed.clone(), task(9), 10));
        for info in killed.calls_of(pool()).await.unwrap().iter().filter(|info| info.inputs > 0) {
            let outputs = killed.outputs(info.open.call, Entry::default(), 1, SOON, false).await.unwrap();
            assert_eq!((outputs.items.len(), outputs.unfinished), (1, 0));
        }
        killed.stop().await.unwrap();
        worker.await.unwrap();
    }
    for client in busy.drain(2..) {
        client.await.unwrap();
    }
    assert_eq!(told.read.lock().len() as u64, CALLS);
    calls.stop().await.unwrap();
}

#[tokio::test]
async fn clients_that_put_too_much_are_held_back_and_finish() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { waiting_max: 10, ..Options::new(dir.path().join("shards"), node(1)) };
    let calls = Calls::open(&options, None).unwrap();
    calls.configure(alone()).await.unwrap();
    calls.reports_complete(ShardId::all().collect()).await.unwrap();
    let put = |number: u64, first: u32| {
        let calls = calls.clone();
        async move { calls.put_inputs(call(number), (first..first + 8).map(input).collect(), &first.to_string()).await }
    };
    for number in 1..=3 {
        calls.open_call(opened(number, CallKind::Map, Invocation::Async)).await.unwrap();
    }
    put(1, 0).await.unwrap();
    let held_back = put(2, 0).await;
    assert!(matches!(held_back, Err(Error::Refused(Refused::TooMany { waiting: 8, max: 10, .. }))), "{held_back:?}");
    assert_eq!(put(1, 0).await.unwrap().len(), 8, "what was taken is found again, however full it is");

    // Three that try again as clients do, while a container works.
    let worker = tokio::spawn(work(calls.clone(), task(1), 2));
    let clients = (1..=3).map(|number| async move {
        for first in (0..40).step_by(8) {
            while let Err(error) = put(number, first).await {
                assert!(matches!(error, Error::Refused(Refused::TooMany { .. })), "{error:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    futures::future::join_all(clients).await;
    for number in 1..=3 {
        calls.finish_inputs(call(number)).await.unwrap();
        let (mut seen, mut last) = (0, Entry::default());
        while seen < 40 {
            let outputs = calls.outputs(call(number), last, 100, SOON, false).await.unwrap();
            assert!(!outputs.items.is_empty(), "{seen} of 40 outputs of call {number} came");
            (seen, last) = (seen + outputs.items.len(), outputs.last);
        }
    }
    calls.stop().await.unwrap();
    worker.await.unwrap();
}

#[tokio::test]
async fn large_outputs_come_in_several_answers() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    calls.open_call_with(opened(1, CallKind::Map, Invocation::Sync), (0..40).map(input).collect(), "k").await.unwrap();
    let Leased::Inputs(inputs) = calls.lease(want(task(1), 40, "a")).await.unwrap() else { panic!("told to stop") };
    let large = |input: &LeasedInput| Outcome { result: vec![7; 2 << 20].into(), ..success(input) };
    for input in &inputs {
        calls.finish(Some((task(1), pool())), vec![large(input)]).await.unwrap();
    }
    let (mut places, mut last) = (Vec::new(), Entry::default());
    while places.len() < 40 {
        let outputs = calls.outputs(call(1), last, 1000, SOON, false).await.unwrap();
        assert!((1..=16).contains(&outputs.items.len()), "{} outputs at once", outputs.items.len());
        places.extend(outputs.items.iter().map(|output| output.idx));
        last = outputs.last;
    }
    assert_eq!(places, (0..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_batch_of_large_inputs_is_given_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    calls.open_call(opened(1, CallKind::Map, Invocation::Sync)).await.unwrap();
    for idx in 0..80 {
        let item = NewInput { idx, payload: vec![7; 2 << 20].into() };
        calls.put_inputs(call(1), vec![item], &idx.to_string()).await.unwrap();
    }
    let mut seen = Vec::new();
    for number in 0.. {
        let Leased::Inputs(inputs) = calls.lease(want(task(1), 80, &number.to_string())).await.unwrap() else { panic!("told to stop") };
        assert!((1..=31).contains(&inputs.len()), "{} inputs at once", inputs.len());
        seen.extend(inputs.iter().map(|input| input.idx));
        if seen.len() == 80 {
            break;
        }
    }
    assert_eq!(seen, (0..80).collect::<Vec<_>>());
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// The way from one node to another in this process, which can be cut.
struct Wire {
    to: mpsc::UnboundedSender<Sent>,
}

enum Sent {
    Append(Append),
    Sync,
}

impl Replicas for Wire {
    fn send(&mut self, _to: NodeId, append: Append) {
        let _ = self.to.send(Sent::Append(append));
    }

    fn sync(&mut self, _to: NodeId) {
        let _ = self.to.send(Sent::Sync);
    }
}

/// Carries records to `follower` and its acknowledgements back to `home`.
async fn carry(home: Calls, follower: Calls, follower_id: NodeId, mut sent: mpsc::UnboundedReceiver<Sent>) {
    while let Some(sent) = sent.recv().await {
        let acks = match sent {
            Sent::Append(append) => follower.receive(vec![append]).await.unwrap().into_iter().flatten().collect(),
            Sent::Sync => follower.synced_for(node(1), true).await.unwrap(),
        };
        home.acked(follower_id, acks).await.unwrap();
    }
}

fn members(epoch: u64, home: u128, in_sync: &[u128], joining: &[u128]) -> Vec<(ShardId, Shard)> {
    let nodes = |numbers: &[u128]| numbers.iter().map(|number| node(*number)).collect();
    vec![(shard(), Shard { epoch, home: node(home), in_sync: nodes(in_sync), joining: nodes(joining) })]
}

#[tokio::test(flavor = "multi_thread")]
async fn where_two_copies_are_required_one_acknowledges_nothing() {
    let (dir1, dir2) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (to2, records) = mpsc::unbounded_channel();
    let options = Options { min_copies: 2, ..Options::new(dir1.path().join("shards"), node(1)) };
    let one = Calls::open(&options, Some(Box::new(Wire { to: to2 }))).unwrap();
    let two = Calls::open(&Options::new(dir2.path().join("shards"), node(2)), None).unwrap();
    one.configure(members(1, 1, &[1], &[])).await.unwrap();
    one.reports_complete(vec![shard()]).await.unwrap();
    let opening = one.open_call_with(opened(1, CallKind::Map, Invocation::Sync), vec![input(0)], "k");
    let mut opening = std::pin::pin!(opening);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut opening).await.is_err(), "one copy acknowledged a call");

    for calls in [&two, &one] {
        calls.configure(members(2, 1, &[1], &[2])).await.unwrap();
    }
    let lacked = one.feed(node(2), shard(), Default::default()).await.unwrap();
    let ack = two.receive(vec![lacked]).await.unwrap().remove(0).unwrap();
    one.acked(node(2), vec![ack]).await.unwrap();
    let carrier = tokio::spawn(carry(one.clone(), two.clone(), node(2), records));
    for calls in [&two, &one] {
        calls.configure(members(3, 1, &[1, 2], &[])).await.unwrap();
    }
    assert_eq!(opening.await.unwrap().len(), 1);
    carrier.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partner_catches_up_holds_what_counts_and_takes_over() {
    let (dir1, dir2) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (to2, records) = mpsc::unbounded_channel();
    let one = Calls::open(&Options::new(dir1.path().join("shards"), node(1)), Some(Box::new(Wire { to: to2 }))).unwrap();
    let two = Calls::open(&Options::new(dir2.path().join("shards"), node(2)), None).unwrap();
    one.configure(members(1, 1, &[1], &[])).await.unwrap();
    one.reports_complete(vec![shard()]).await.unwrap();
    one.open_call_with(opened(1, CallKind::Map, Invocation::Sync), vec![input(0), input(1)], "k").await.unwrap();

    // The partner is invited, fed what it lacks, and joins.
    for calls in [&two, &one] {
        calls.configure(members(2, 1, &[1], &[2])).await.unwrap();
    }
    let lacked = one.feed(node(2), shard(), Default::default()).await.unwrap();
    let ack = two.receive(vec![lacked]).await.unwrap().remove(0).unwrap();
    one.acked(node(2), vec![ack]).await.unwrap();
    for calls in [&two, &one] {
        calls.configure(members(3, 1, &[1, 2], &[])).await.unwrap();
    }

    // Nothing counts that the partner does not have.
    let unsent = tokio::time::timeout(Duration::from_millis(200), one.put_inputs(call(1), vec![input(2)], "k2")).await;
    assert!(unsent.is_err(), "an input was acknowledged that one member does not have");
    let carrier = tokio::spawn(carry(one.clone(), two.clone(), node(2), records));
    one.put_inputs(call(1), vec![input(2)], "k2").await.unwrap();
    // What must be on the disk waits for the partner's too.
    one.open_call_with(opened(2, CallKind::Unary, Invocation::Async), vec![], "k").await.unwrap();
    let Leased::Inputs(inputs) = one.lease(want(task(1), 2, "a")).await.unwrap() else { panic!("told to stop") };
    one.finish(Some((task(1), pool())), inputs.iter().map(success).collect()).await.unwrap();
    let before = one.outputs(call(1), Entry::default(), 10, NOW, false).await.unwrap();

    // The home is lost. The partner has the outputs, with the same cursors, and hands out what is left.
    one.stop().await.unwrap();
    two.configure(members(4, 2, &[2], &[])).await.unwrap();
    two.reports_complete(vec![shard()]).await.unwrap();
    let after = two.outputs(call(1), Entry::default(), 10, NOW, false).await.unwrap();
    assert_eq!(after, before);
    assert_eq!((after.items.len(), after.unfinished), (2, 1));
    let Leased::Inputs(rest) = two.lease(want(task(2), 5, "a")).await.unwrap() else { panic!("told to stop") };
    assert_eq!(rest.iter().map(|input| input.idx).collect::<Vec<_>>(), [2]);
    two.finish(Some((task(2), pool())), vec![success(&rest[0])]).await.unwrap();
    let more = two.outputs(call(1), after.last, 10, NOW, false).await.unwrap();
    assert_eq!((more.items.len(), more.unfinished), (1, 0));

    // What is not at home is not answered but named.
    let refused = two.info(CallId::in_shard(ShardId::new(8).unwrap(), 1)).await;
    assert!(matches!(refused, Err(Error::Refused(Refused::NotHome { .. }))));
    carrier.abort();
}

/// Leads straight to the calls of other nodes; a node that is not there does not answer.
#[derive(Debug, Default, Clone)]
struct Straight(Arc<Mutex<BTreeMap<NodeId, Calls>>>);

impl Road for Straight {
    fn ask<'a>(&'a self, home: NodeId, request: Bytes, _patience: Duration) -> BoxFuture<'a, Result<Bytes, String>> {
        let calls = self.0.lock().get(&home).cloned();
        Box::pin(async move {
            match calls {
                Some(calls) => Ok(calls.serve(request).await),
                None => Err("it is not there".to_owned()),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_home_that_was_replaced_and_does_not_know_shows_nothing_that_is_out_of_date() {
    let (dir1, dir2) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (to2, records) = mpsc::unbounded_channel();
    let one = Calls::open(&Options::new(dir1.path().join("shards"), node(1)), Some(Box::new(Wire { to: to2 }))).unwrap();
    let two = Calls::open(&Options::new(dir2.path().join("shards"), node(2)), None).unwrap();
    let road = Straight::default();
    for (number, calls) in [(1, &one), (2, &two)] {
        calls.configure(members(1, 1, &[1], &[2])).await.unwrap();
        calls.set_road(Arc::new(road.clone()));
        calls.confirm_answers(true);
        road.0.lock().insert(node(number), calls.clone());
    }
    one.reports_complete(vec![shard()]).await.unwrap();
    let fed = one.feed(node(2), shard(), Default::default()).await.unwrap();
    one.acked(node(2), vec![two.receive(vec![fed]).await.unwrap().remove(0).unwrap()]).await.unwrap();
    for calls in [&two, &one] {
        calls.configure(members(2, 1, &[1, 2], &[])).await.unwrap();
    }
    let carrier = tokio::spawn(carry(one.clone(), two.clone(), node(2), records));
    one.open_call_with(opened(1, CallKind::Map, Invocation::Sync), vec![input(0)], "k").await.unwrap();
    assert_eq!(one.info(call(1)).await.unwrap().inputs, 1);
    // Through the other node: one request opens a call and puts its input, where all know of such, else one after the other.
    for known in [false, true] {
        two.open_with_inputs(known);
        let put = two.open_call_with(opened(3, CallKind::Unary, Invocation::Async), vec![input(0)], "k").await.unwrap();
        assert_eq!(put.len(), 1);
        assert_eq!(two.info(call(3)).await.unwrap().inputs, 1, "the same request again puts nothing more");
    }
    let second = two.open_call_with(opened(3, CallKind::Unary, Invocation::Async), vec![input(0)], "another").await;
    assert!(matches!(second, Err(Error::Refused(Refused::OneInput { .. }))), "{second:?}");

    // While its partner does not answer it cannot know.
    road.0.lock().remove(&node(2));
    let unknown = one.info(call(1)).await;
    assert!(matches!(unknown, Err(Error::Unconfirmed { node: who, .. }) if who == node(2)), "{unknown:?}");

    // The partner was made home meanwhile, and has more. What counts is still told; how things stand is not.
    two.configure(members(3, 2, &[2], &[])).await.unwrap();
    two.reports_complete(vec![shard()]).await.unwrap();
    two.put_inputs(call(1), vec![input(1)], "k2").await.unwrap();
    two.open_call_with(opened(2, CallKind::Unary, Invocation::Async), vec![input(0)], "k").await.unwrap();
    road.0.lock().insert(node(2), two.clone());
    let (old, none, new) = tokio::join!(one.info(call(1)), one.outputs(call(1), Entry::default(), 10, NOW, false), one.info(call(2)),);
    for unknown in [old.map(drop), none.map(drop), new.map(drop)] {
        assert!(matches!(unknown, Err(Error::Unconfirmed { .. })), "{unknown:?}");
    }

    // Once it knows it asks the new home.
    let late = one.info(call(1));
    let told = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        one.configure(members(3, 2, &[2], &[])).await.unwrap();
    };
    let (late, ()) = tokio::join!(late, told);
    assert_eq!(late.unwrap().inputs, 2);
    carrier.abort();
}

#[tokio::test]
async fn a_cancelled_wait_for_inputs_gives_its_inputs_back() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    let waiter = calls.clone();
    let wait = tokio::spawn(async move { waiter.lease(want(task(1), 1, "a")).await });
    while calls.load().borrow().pools.get(&pool()).is_none_or(|load| load.parked == 0) {
        calls.load().changed().await.unwrap();
    }
    wait.abort();
    assert!(wait.await.unwrap_err().is_cancelled());
    calls.open_call_with(opened(1, CallKind::Unary, Invocation::Sync), vec![input(0)], "k").await.unwrap();
    let leased = tokio::time::timeout(SOON, calls.lease(want(task(2), 1, "a"))).await.unwrap().unwrap();
    let Leased::Inputs(inputs) = leased else { panic!("told to stop") };
    assert_eq!(inputs.len(), 1);
}

#[tokio::test]
async fn the_load_wakes_whoever_starts_tasks() {
    let dir = tempfile::tempdir().unwrap();
    let calls = start(dir.path()).await;
    let mut load = calls.load();
    load.mark_unchanged();
    calls.open_call_with(opened(1, CallKind::Unary, Invocation::Sync), vec![input(0)], "k").await.unwrap();
    let waits = |load: &Arc<Load>| load.pools.get(&pool()).is_some_and(|load| load.waiting == 1);
    tokio::time::timeout(SOON, load.wait_for(waits)).await.unwrap().unwrap();
    let Leased::Inputs(inputs) = calls.lease(want(task(1), 1, "a")).await.unwrap() else { panic!("told to stop") };
    let runs = |load: &Arc<Load>| load.tasks.get(&task(1)).is_some_and(|task| task.running == 1);
    tokio::time::timeout(SOON, load.wait_for(runs)).await.unwrap().unwrap();
    calls.finish(Some((task(1), pool())), vec![success(&inputs[0])]).await.unwrap();
    let idle = |load: &Arc<Load>| load.tasks.get(&task(1)).is_some_and(|task| task.idle_since_ms.is_some());
    tokio::time::timeout(SOON, load.wait_for(idle)).await.unwrap().unwrap();
}
