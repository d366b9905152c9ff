"""Calls as objects: spawned, found again, waited for, cancelled, looked at."""

import asyncio
import datetime
import json
import time

import pytest
from harness import wait_for
from programs import functions
from programs.functions import Overripe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/functions.py for all tests of this file."""
    with functions.app.run():
        yield


def test_spawn_and_get(running, sdk):
    """`.spawn()` gives a call whose result can be asked for twice, and by id from another object."""
    call = functions.square.spawn(12)
    assert call.get(timeout=60) == 144
    assert call.get(timeout=5) == 144
    assert sdk.FunctionCall.from_id(call.object_id).get(timeout=5) == 144


def test_get_with_a_timeout_says_not_yet(running):
    """`get(timeout=…)` on a call that still runs raises TimeoutError in time, and the call goes on."""
    call = functions.sleep.spawn(8, "slept")
    for timeout in (0, 0.5):
        # One that comes late, when the call has ended, is no TimeoutError.
        with pytest.raises(TimeoutError):
            call.get(timeout=timeout)
    assert call.get(timeout=60) == "slept"


def test_cancel_of_a_running_call_is_at_once(running, sdk):
    """`.cancel()` ends the waiting `.get()` and the input, and does not wait for the container's next heartbeat."""
    call = functions.sleep.spawn(300)
    assert any("sleeping 300" in entry.message for entry in call.logs.stream(timeout=60)), "it is in the function"
    begin = time.monotonic()
    call.cancel()
    with pytest.raises(sdk.exception.RemoteError):
        call.get(timeout=20)
    # A heartbeat is held for 14 s.
    assert time.monotonic() - begin < 10
    # The container is free again for the next input and was not thrown away.
    assert functions.sleep.remote(0, "next") == "next"


def test_cancel_of_a_queued_call(token, sdk):
    """A call that is cancelled before it ran never runs."""
    from programs import lifecycle

    with lifecycle.app.run():
        first = lifecycle.one_at_a_time.spawn(300)
        second = lifecycle.one_at_a_time.spawn(300)
        second.cancel()
        with pytest.raises(sdk.exception.RemoteError):
            second.get(timeout=10)
        first.cancel()


def test_gather(running, sdk):
    """FunctionCall.gather waits for several calls and keeps their order."""
    calls = [functions.sleep.spawn(delay, delay) for delay in (0.5, 0.0, 0.2)]
    assert sdk.FunctionCall.gather(*calls) == [0.5, 0.0, 0.2]


def test_spawn_map_accepts_and_runs_all(running):
    """A spawned map hands its inputs over, and its call, which the client gives back when asked, ends when all have run."""
    assert functions.square.spawn_map(range(3)) is None
    call = functions.square.experimental_spawn_map(range(60))
    assert call.num_inputs() == 60
    assert list(call.iter()) == [x**2 for x in range(60)]
    assert call.get(timeout=60, index=30) == 900


def test_gather_raises_what_a_call_raised(running, sdk):
    """FunctionCall.gather gives the exception of the call that failed, although others go on."""
    calls = [functions.sleep.spawn(0, 1), functions.fail.spawn("fig", 2), functions.sleep.spawn(3, 3)]
    with pytest.raises(Overripe) as caught:
        sdk.FunctionCall.gather(*calls)
    assert caught.value.days == 2
    assert calls[2].get(timeout=60) == 3


def test_call_that_never_was(running, sdk):
    """A call's id that no call has, and one that is no id at all, are refused by name."""
    unknown = functions.square.spawn(1).object_id[:-4] + "0000"
    with pytest.raises(sdk.exception.NotFoundError, match=unknown):
        sdk.FunctionCall.from_id(unknown).get(timeout=5)
    with pytest.raises(Exception, match="fc-"):
        sdk.FunctionCall.from_id("fc-nonsense").get(timeout=5)


def test_call_of_another_process(running, sdk, client):
    """A call that one process spawned is read by another one, by its id."""
    call = functions.square.spawn(13)
    code = f"import modal; print('got', modal.FunctionCall.from_id({call.object_id!r}).get(timeout=60))"
    assert "got 169" in client.start("-c", code).ok(90).text()


def test_cancelled_map_ends_for_its_reader(running, sdk):
    """Cancelling a spawned map ends what runs and what waits; what was done stays readable."""
    call = functions.sleep.experimental_spawn_map([0, 300, 300, 300, 300, 300])
    assert call.get(timeout=60, index=0) is None
    call.cancel()
    for index in (1, 5):
        with pytest.raises(sdk.exception.RemoteError, match="cancel"):
            call.get(timeout=30, index=index)
    assert call.get(timeout=5, index=0) is None


def test_cancel_with_its_containers(running, sdk, node):
    """`cancel(terminate_containers=True)` ends the container too; the function goes on in another one."""
    call = functions.sleep.spawn(300)
    wait_for("the call to run", lambda: functions.sleep.get_current_stats().num_running_inputs == 1, 60)
    before = {task["task_id"] for task in node.tasks() if task["function"] == "sleep"}
    call.cancel(terminate_containers=True)
    with pytest.raises(sdk.exception.RemoteError):
        call.get(timeout=30)
    wait_for("its container to end", lambda: before - {task["task_id"] for task in node.tasks()}, 40)
    assert functions.sleep.remote(0, "next") == "next"


def test_cancel_twice_and_after_the_end(running):
    """Cancelling a cancelled call, or one that has its result, changes nothing."""
    done = functions.square.spawn(3)
    assert done.get(timeout=60) == 9
    done.cancel()
    assert done.get(timeout=5) == 9
    call = functions.sleep.spawn(300)
    call.cancel()
    call.cancel()


def test_calls_from_an_event_loop(running, sdk):
    """spawn, get, from_id, gather, cancel, num_inputs and iter by their `.aio` forms."""

    async def calls():
        one = await functions.square.spawn.aio(4)
        assert await one.get.aio(timeout=60) == 16
        assert await sdk.FunctionCall.from_id(one.object_id).get.aio(timeout=5) == 16
        two = [await functions.square.spawn.aio(x) for x in range(3)]
        assert list(await sdk.FunctionCall.gather.aio(*two)) == [0, 1, 4]
        many = await functions.square.experimental_spawn_map.aio(range(5))
        assert await many.num_inputs.aio() == 5
        assert [x async for x in many.iter.aio()] == [0, 1, 4, 9, 16]
        assert [x async for x in many.iter.aio(start=1, end=3)] == [1, 4]
        assert await functions.square.spawn_map.aio(range(3)) is None
        assert (await functions.square.get_current_stats.aio()).num_total_runners >= 1
        slow = await functions.sleep.spawn.aio(300)
        await slow.cancel.aio()
        with pytest.raises(sdk.exception.RemoteError):
            await slow.get.aio(timeout=30)
        with pytest.raises(TimeoutError):
            await (await functions.sleep.spawn.aio(2)).get.aio(timeout=0)

    asyncio.run(calls())


def test_call_graph(running, sdk):
    """The graph of a call that calls others has each input under the one that made it, with its function and how it ended."""
    call = functions.sum_of_squares.spawn(2)
    assert call.get(timeout=60) == 4 + 0 + 1
    (top,) = call.get_call_graph()
    assert (top.function_call_id, top.function_name, top.module_name) == (call.object_id, "sum_of_squares", "programs.functions")
    assert top.status == sdk.types.InputStatus.SUCCESS
    assert top.task_id.startswith("ta-")
    # One by a call and two by a map, all of the same function.
    assert [child.function_name for child in top.children] == ["square"] * 3
    assert len({child.function_call_id for child in top.children}) == 2
    # The same graph from a call inside of it.
    inner = sdk.FunctionCall.from_id(top.children[0].function_call_id)
    assert [one.input_id for one in inner.get_call_graph()] == [top.input_id]


def test_call_graph_tells_how_inputs_ended(running, sdk):
    """An input that failed, one that runs and one that was cancelled are told apart in the graph."""
    failed = functions.fail.spawn("fig", 1)
    with pytest.raises(Overripe):
        failed.get(timeout=60)
    assert [one.status for one in failed.get_call_graph()] == [sdk.types.InputStatus.FAILURE]
    call = functions.sleep.spawn(300)
    assert [one.status for one in call.get_call_graph()] == [sdk.types.InputStatus.PENDING]
    call.cancel()
    with pytest.raises(sdk.exception.RemoteError):
        call.get(timeout=30)
    assert [one.status for one in call.get_call_graph()] == [sdk.types.InputStatus.TERMINATED]


def test_a_function_tells_what_it_did(running, client):
    """`stats` counts the inputs of a span of time by how they ended, with how long they took, and of an app those of all functions;
    `metrics` tells of them in series; `modal function calls` lists them, by number and by time."""
    since = datetime.datetime.now(datetime.timezone.utc)
    with pytest.raises(Overripe):
        functions.ripen.remote(8)
    call = functions.ripen.spawn(7)
    assert call.get(timeout=60) == 7
    done = functions.ripen.stats(since=since)
    assert (done.input_success_count, done.input_failure_count) == (1, 1)
    assert done.container_total_count >= 1 and set(done.input_percentile_stats) == {"Execution time (s)", "End-to-end latency (s)"}
    assert "2 total" in client.modal("function", "stats", functions.ripen.object_id, "--since", since.isoformat()).ok(60).text()
    app = functions.app.stats(since=since)
    calls = app.functions["ripen"].counts.calls
    assert (calls.succeeded, calls.failed, app.sandboxes.total) == (1, 1, 0)
    # What tests before have left may end meanwhile.
    assert app.functions.total.calls.succeeded >= 1 and app.functions.total.calls.failed >= 1
    assert app.functions["ripen"].object_id == functions.ripen.object_id and app.lifecycle.state.name == "EPHEMERAL", app
    minute = datetime.timedelta(minutes=1)
    series = functions.ripen.metrics.export(since=since, until=since + 5 * minute, bucket_size=minute, groups=["calls", "latency"]).series
    for name in ("successful_calls_count", "failed_calls_count"):
        assert sum(point.value for point in series[name].points) == 1
    # The two may be of two minutes.
    assert [point.value is not None for point in series["execution_time_p50"].points].count(True) in (1, 2)
    assert set(series) == {metric.name for group in functions.ripen.metrics.schema().values() for metric in group.definitions}
    refused = client.modal("function", "metrics", functions.ripen.object_id, "--group", "gpu")
    assert refused.wait(60) != 0 and "there is no group of metrics 'gpu'" in refused.text()
    assert "latency" in client.modal("function", "metrics", functions.ripen.object_id).ok(60).text()
    for which in (["--tail", "1"], ["--since", "5m"]):
        *_, row = json.loads(client.modal("function", "calls", functions.ripen.object_id, "--json", *which).ok(60).text("stdout"))
        assert (row["function_call_id"], row["status"]) == (call.object_id, "success")
        assert row["container_id"].startswith("ta-") and row["enqueued_at"] <= row["started_at"] and row["execution_time_seconds"] < 60


def test_log_of_one_call_ends_with_it(running):
    """`call.logs.stream()` gives the lines of this call and ends by itself once the call is over."""
    call = functions.sleep.spawn(3)
    begin = time.monotonic()
    lines = [entry.message for entry in call.logs.stream(timeout=100)]
    assert time.monotonic() - begin < 90
    assert [line for line in lines if "sleeping 3" in line], lines
