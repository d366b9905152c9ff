//! A home that was replaced wrote something that nobody else has. Its log is cut back, and it must not come to mind again, not even when the
//! process starts anew and takes the shard home.
//!
//! What set the trap: records are read once when the log is opened, those too that were cut off since, and their heads are kept by their
//! indexes. Where the epoch of the new home began at the index of such a record, there was no other head to take its place.

use bytes::Bytes;
use shoal_calls::Calls;
use shoal_calls::calls::record::Record;
use shoal_calls::calls::{CallKind, Entry, InputStatus, Invocation, OpenCall, Options, Policy, Status};
use shoal_calls::shards::{self, Draft, Kind, Mark, Shards};
use shoal_state::model::Shard;
use shoal_state::{CallId, FunctionId, InputId, NodeId, ShardId};

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn shard() -> ShardId {
    ShardId::new(7).unwrap()
}

fn draft(record: &Record) -> Draft {
    Draft { shard: shard(), kind: Kind::Calls, owner: record.call().bits(), body: [record.encode(), Bytes::from_static(b"bytes")] }
}

fn members(epoch: u64, home: u128, joining: &[u128]) -> Shard {
    Shard { epoch, home: node(home), in_sync: vec![node(home)], joining: joining.iter().copied().map(node).collect() }
}

#[tokio::test]
async fn what_was_cut_off_is_not_read_again() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = root.path().join("calls");
    let options = |number| shards::Options { node: node(number), machine_restarted: false, segment_bytes: 64 << 10, min_copies: 1 };
    let (call, input, pool) = (CallId::in_shard(shard(), 1), InputId::in_shard(shard(), 2), FunctionId::in_shard(shard(), 3));
    let (kind, invocation) = (CallKind::Unary, Invocation::Sync);
    let open = OpenCall { call, function: pool, pool, kind, invocation, parent: None, created_ms: 1, policy: Policy::default() };
    let outcome = Record::Outcome { call, of: vec![(input, 0)], status: Status::Success, started_ms: 1, at_ms: 1, task: None };

    // Both have the input; the first home alone has an outcome.
    let mut first = Shards::open(&dir, &options(1), None, |_, _| ()).unwrap();
    first.adopt(shard(), members(1, 1, &[2])).unwrap();
    first.append(&[draft(&Record::Opened(Box::new(open))), draft(&Record::Input { call, input, idx: 0, at_ms: 1 })]).unwrap();
    let mut second = Shards::open(other.path(), &options(2), None, |_, _| ()).unwrap();
    second.adopt(shard(), members(1, 1, &[2])).unwrap();
    second.receive(&first.feed(node(2), shard(), Mark::default(), u64::MAX).unwrap()).unwrap();
    let cut_off = first.append(&[draft(&outcome)]).unwrap()[0];

    // The second is home from where that outcome stands.
    second.adopt(shard(), members(2, 2, &[1])).unwrap();
    assert_eq!(second.replica(shard()).tail(), Mark { epoch: 2, index: cut_off.index });
    first.adopt(shard(), members(2, 2, &[1])).unwrap();
    let tail = first.replica(shard()).tail();
    first.receive(&second.feed(node(1), shard(), tail, u64::MAX).unwrap()).unwrap();
    drop(first);

    let calls = Calls::open(&Options::new(&dir, node(1)), None).unwrap();
    calls.configure(vec![(shard(), members(3, 1, &[]))]).await.unwrap();
    calls.reports_complete(vec![shard()]).await.unwrap();
    assert_eq!(calls.inputs(call).await.unwrap()[0].status, InputStatus::Waiting);
    let outputs = calls.outputs(call, Entry::default(), 10, std::time::Duration::ZERO, false).await.unwrap();
    assert_eq!((outputs.items.len(), outputs.unfinished), (0, 1));
}
