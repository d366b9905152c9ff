//! What a container does with an input: it takes its time, and of some it yields data meanwhile.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use shoal_calls::calls::streams::{DataChunk, Direction, StreamKey};
use shoal_state::{CallId, TaskId};

use super::AGAIN_AFTER;
use crate::history::Event;
use crate::node::Node;
use crate::world::World;

/// How an input says that so many items are to be yielded.
const YIELDS: &[u8] = b"yields ";
/// How long a container that yields faster than it is read is held.
const ROOM_WAIT: Duration = Duration::from_secs(50);

/// Makes an input that has a container yield the numbers below this one.
pub fn yielding(items: u64) -> Bytes {
    [YIELDS, items.to_string().as_bytes()].concat().into()
}

/// Works on an input: yields what it asks for, or else takes so long.
pub(super) async fn work(world: &World, node: &Rc<Node>, of: (TaskId, CallId, u32), payload: &[u8], takes: Duration) {
    let items = payload.strip_prefix(YIELDS).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok());
    match items {
        Some(items) => yield_all(world, node, of, items).await,
        None => world.time.sleep(takes).await,
    }
}

/// Puts one item after the other, each until the node has it.
async fn yield_all(world: &World, node: &Rc<Node>, (task, call, retry_count): (TaskId, CallId, u32), items: u64) {
    let key = StreamKey::of_try(call, retry_count, Direction::Out);
    for index in 1..=items {
        let ms = if world.draw(0, 9) == 0 { world.draw(300, 2_000) } else { world.draw(1, 200) };
        world.time.sleep(Duration::from_millis(ms)).await;
        let chunk = || DataChunk { index, data: Bytes::copy_from_slice(&(index - 1).to_le_bytes()) };
        while node.calls.put_data(&key, vec![chunk()], ROOM_WAIT).await.is_err() {
            world.time.sleep(AGAIN_AFTER).await;
        }
        world.history.note(Event::YieldTaken { call, task, node: node.me, index });
    }
}
