"""`modal.Queue`: what a program sees of it, alone, from many threads and from containers, over restarts, and on the command line."""

import json
import queue
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import wait_for

pytestmark = pytest.mark.timeout(300)


def test_a_queue_is_first_in_first_out(sdk):
    """Everything that `modal.Queue` can do, on an ephemeral one."""
    with sdk.Queue.ephemeral() as q:
        q.put("a")
        q.put_many([1, None, {"deep": b"bytes"}])
        assert q.len() == 4 and list(q.iterate()) == ["a", 1, None, {"deep": b"bytes"}] and q.len() == 4
        assert q.get() == "a" and q.get_many(2) == [1, None] and q.get_many(10) == [{"deep": b"bytes"}]
        assert q.get(block=False) is None and q.get_many(3, block=False) == []
        with pytest.raises(queue.Empty):
            q.get(timeout=0.2)
        q.put_many([0, 1], partition="p")
        q.put(2, partition="q")
        assert (q.len(), q.len(partition="p"), q.len(total=True)) == (0, 2, 3)
        assert q.get(partition="q") == 2 and q.get(block=False, partition="q") is None
        q.put(3)
        q.clear(partition="p")
        assert (q.len(partition="p"), q.len()) == (0, 1)
        q.put(4, partition="q")
        q.clear(all=True)
        assert q.len(total=True) == 0
        q.put_many(list(range(2500)))
        assert list(q.iterate()) == list(range(2500)), "pages of a long queue"
        assert q.get_many(2500) == list(range(2500))


def test_who_waits_is_woken_at_once(sdk):
    """A blocking get returns as soon as something is put, not at the next look; so does an iteration that waits. Who waits
    longer is served first, and who has given up gets nothing."""
    with sdk.Queue.ephemeral() as q, ThreadPoolExecutor(4) as pool:
        gave_up = pool.submit(lambda: q.get(timeout=0.3, partition="p"))
        with pytest.raises(queue.Empty):
            gave_up.result(timeout=30)
        late = pool.submit(lambda: (q.get(timeout=30, partition="p"), time.monotonic()))
        reader = pool.submit(lambda: (next(iter(q.iterate(partition="p", item_poll_timeout=30))), time.monotonic()))
        time.sleep(1.5)
        assert not late.done() and not reader.done()
        began = time.monotonic()
        q.put_many(["x", "y"], partition="p")
        (got, at), (seen, seen_at) = late.result(timeout=30), reader.result(timeout=30)
        assert got == "x" and seen in ("x", "y")
        assert max(at, seen_at) - began < 15, "it was not woken"


def test_each_item_goes_to_one(sdk, unique):
    """Twenty threads and some containers take what others put: each item once, in whatever hands."""
    app = sdk.App(unique)

    @app.function(serialized=True, max_containers=3)
    @sdk.concurrent(max_inputs=10)
    def take(q, count: int):
        return [q.get(timeout=60) for _ in range(count)]

    with sdk.Queue.ephemeral() as q, ThreadPoolExecutor(40) as pool:
        with app.run():
            far = take.spawn(q, 30), take.spawn(q, 30)
            near = [pool.submit(lambda: [q.get(timeout=60) for _ in range(20)]) for _ in range(20)]
            for number in range(46):
                pool.submit(q.put_many, list(range(number * 10, number * 10 + 10)))
            got = [item for one in near for item in one.result(timeout=120)]
            got += [item for one in far for item in one.get(timeout=120)]
        assert sorted(got) == list(range(460)) and q.len() == 0


def test_limits_and_the_time_of_a_partition(sdk):
    """A full partition raises `queue.Full` or waits for room; what is too large, or kept too long, is refused by name; a
    partition ends when its time is over."""
    with sdk.Queue.ephemeral() as q, ThreadPoolExecutor(1) as pool:
        q.put_many([0] * 5000)
        with pytest.raises(queue.Full, match="5000"):
            q.put(1, block=False)
        with pytest.raises(queue.Full):
            q.put(1, timeout=0.5)
        q.put("elsewhere", partition="p", partition_ttl=1)
        waits = pool.submit(q.put, "last", timeout=60)
        time.sleep(0.3)
        assert not waits.done() and len(q.get_many(5000)) == 5000
        waits.result(timeout=60)
        assert q.get() == "last"
        item = b"x" * ((1 << 20) - 100)
        q.put_many([item] * 3, partition="large")
        assert q.get_many(3, partition="large") == [item] * 3
        with pytest.raises(sdk.exception.RequestSizeError):
            q.put(b"x" * (1 << 20))
        with pytest.raises(sdk.exception.InvalidError, match="86400"):
            q.put(1, partition_ttl=86401)
        wait_for("the partition to end", lambda: q.len(partition="p") == 0, 30)


def test_what_was_put_is_there_after_a_crash(node, sdk, unique):
    """The node is killed while items are put and taken: none is lost, none comes twice."""
    q = sdk.Queue.from_name(unique, create_if_missing=True)
    q.put_many(list(range(20)))
    assert q.get_many(5) == [0, 1, 2, 3, 4]
    with ThreadPoolExecutor(2) as pool:
        putting = pool.submit(lambda: [q.put(n) for n in range(20, 80)])
        old = node.kill_child()
        node.wait_reborn(old)
        putting.result(timeout=120)
    assert [q.get(timeout=30) for _ in range(75)] == list(range(5, 80)) and q.len() == 0
    sdk.Queue.objects.delete(unique)
    with pytest.raises(sdk.exception.NotFoundError, match=q.object_id):
        q.put(1)


def test_the_command_line(client, sdk, unique):
    """`modal queue create|list|peek|len|clear|delete`."""
    client.modal("queue", "create", unique).ok(60)
    q = sdk.Queue.from_name(unique)
    q.put_many(["first", "second"])
    q.put("third", partition="p")
    rows = {row["name"]: row for row in json.loads(client.modal("queue", "list", "--json").ok(60).text("stdout"))}
    assert (rows[unique]["partitions"], rows[unique]["total_size"]) == (2, 3)
    assert client.modal("queue", "peek", unique, "2").ok(60).text("stdout").split() == ["first", "second"]
    assert client.modal("queue", "len", "--total", unique).ok(60).text("stdout").strip() == "3"
    client.modal("queue", "clear", "--yes", "--all", unique).ok(60)
    assert q.len(total=True) == 0
    client.modal("queue", "delete", "--yes", unique).ok(60)
    missing = client.modal("queue", "len", unique)
    assert missing.wait(60) != 0 and unique in missing.text() and "not found" in missing.text()
