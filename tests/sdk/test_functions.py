"""Calls of every plain kind, from this process by the real client."""

import asyncio
import random
import time

import pytest
from programs import functions
from programs.functions import Overripe, app

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def running(token):
    """The app of programs/functions.py, running for the length of a test."""
    with app.run():
        yield


def test_remote(running):
    """`.remote()` gives the function's return value."""
    assert functions.square.remote(7) == 49


def test_remote_of_an_async_function(running):
    """An `async def` function is called like any other."""
    assert functions.square_async.remote(7) == 49


def test_async_caller(token):
    """`.remote.aio()` and `.map.aio()` inside an event loop, several at once."""

    async def calls():
        async with app.run():
            many = await asyncio.gather(*(functions.square.remote.aio(x) for x in range(20)))
            mapped = [y async for y in functions.square_async.map.aio(range(20))]
            return many, mapped

    many, mapped = asyncio.run(calls())
    assert many == mapped == [x**2 for x in range(20)]


@pytest.mark.parametrize("value", [None, 0, "text", b"bytes", [1, {"a": (2, 3)}], {1: "x"}, 1.5, float("inf"), 2**100, set("ab")])
def test_values_survive_both_ways(running, value):
    """What is sent comes back equal, of the same type."""
    back = functions.echo.remote(value)
    assert back == value and type(back) is type(value)


def test_map_of_1000_keeps_the_order(running):
    """1,000 inputs: results in the order of the inputs, although some take longer than those behind them."""
    assert list(functions.slow_last_first.map(range(1000))) == list(range(1000))


def test_map_unordered_gives_each_once(running):
    """`order_outputs=False`: every result once, in any order."""
    assert sorted(functions.square.map(range(200), order_outputs=False)) == [x**2 for x in range(200)]


def test_starmap_and_for_each(running):
    """starmap spreads arguments; for_each waits for all and gives nothing."""
    assert list(functions.sleep.starmap([(0.0, "a"), (0.0, "b")])) == ["a", "b"]
    assert functions.square.for_each(range(10)) is None


def test_map_of_nothing(running):
    """A map over no inputs ends."""
    assert list(functions.square.map([])) == []


def test_map_raises_at_the_failed_input(running):
    """The first failing input's exception comes out of the map; with return_exceptions it takes its place."""
    with pytest.raises(Overripe):
        list(functions.fail_on_odd.map(range(4)))
    results = list(functions.fail_on_odd.map(range(4), return_exceptions=True))
    assert [results[0], results[2]] == [0, 2]
    assert all("Overripe" in repr(one) or isinstance(one, Overripe) for one in (results[1], results[3]))


def test_spawn_and_get(running, sdk):
    """`.spawn()` gives a call whose result can be asked for twice, and by id from another object."""
    call = functions.square.spawn(12)
    assert call.get(timeout=60) == 144
    assert call.get(timeout=5) == 144
    assert sdk.FunctionCall.from_id(call.object_id).get(timeout=5) == 144


def test_get_with_a_timeout_says_not_yet(running):
    """`get(timeout=…)` on a call that still runs raises TimeoutError in time, and the call goes on."""
    call = functions.sleep.spawn(5, "slept")
    for timeout in (0, 0.5):
        begin = time.monotonic()
        with pytest.raises(TimeoutError):
            call.get(timeout=timeout)
        assert time.monotonic() - begin < timeout + 1
    assert call.get(timeout=60) == "slept"


def test_cancel_of_a_running_call_is_at_once(running, sdk):
    """`.cancel()` ends the waiting `.get()` and the input within a second: the heartbeat is held for it."""
    functions.sleep.remote(0)  # A container is there, so that what follows is not a start.
    call = functions.sleep.spawn(300)
    time.sleep(2)  # Into the function.
    begin = time.monotonic()
    call.cancel()
    with pytest.raises(sdk.exception.RemoteError):
        call.get(timeout=20)
    assert time.monotonic() - begin < 1.5
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


def test_generator(running):
    """A generator's items come in order, from a plain and from an async generator."""
    assert list(functions.count.remote_gen(50)) == list(range(50))
    assert list(functions.count_async.remote_gen(50)) == list(range(50))


def test_generator_of_nothing_and_of_many(running):
    """No item at all, and more items than one batch of the data channel holds."""
    assert list(functions.count.remote_gen(0)) == []
    assert list(functions.count.remote_gen(5000)) == list(range(5000))


def test_generator_that_fails_gives_its_items_first(running):
    """Items that were yielded before an exception arrive before it."""
    got = []
    with pytest.raises(Overripe):
        for item in functions.count_then_fail.remote_gen(3):
            got.append(item)
    assert got == [0, 1, 2]


def test_exception_keeps_type_message_and_remote_traceback(running):
    """The caller gets the exception's own type and arguments, and a traceback that reaches into remote code."""
    import traceback

    with pytest.raises(Overripe) as caught:
        functions.fail.remote("fig", 3)
    assert (caught.value.fruit, caught.value.days) == ("fig", 3)
    shown = "".join(traceback.format_exception(caught.value))
    assert "inner" in shown and "functions.py" in shown


def test_failing_import_reaches_the_caller(client, node):
    """A module that can't be imported in the container fails the call with the import's error, in seconds, once."""
    running = client.run("broken_import.py")
    assert running.wait(100) != 0
    assert "package_that_nobody_has" in running.text()
    assert running.text().count("ModuleNotFoundError") < 10, "the container is not started over and over"


def test_function_that_calls_another(running):
    """A function calls another of its app, by a call and by a map, from inside its container."""
    assert functions.sum_of_squares.remote(5) == 25 + 0 + 1 + 4 + 9 + 16


def test_calls_from_many_threads(running):
    """Calls of 30 threads at once all get their own answer."""
    from concurrent.futures import ThreadPoolExecutor

    values = random.sample(range(10_000), 120)
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(functions.square.remote, values)) == [x**2 for x in values]


def test_warm_container_is_used_again(running):
    """A second call finds the container of the first: it takes far less than a start."""
    functions.square.remote(1)
    begin = time.monotonic()
    functions.square.remote(2)
    assert time.monotonic() - begin < 1.0


def test_spawn_map_accepts_and_runs_all(running):
    """A spawned map hands its inputs over, and its call, which the client gives back when asked, ends when all have run."""
    assert functions.square.spawn_map(range(3)) is None
    call = functions.square.experimental_spawn_map(range(60))
    assert call.num_inputs() == 60
    assert list(call.iter()) == [x**2 for x in range(60)]
    assert call.get(timeout=60, index=30) == 900


def test_current_stats_say_what_runs(running):
    """`.get_current_stats()` counts the containers and inputs of a function while it works, and none of it afterwards."""
    call = functions.sleep.spawn(5)
    deadline = time.monotonic() + 60
    while functions.sleep.get_current_stats().num_running_inputs != 1:
        assert time.monotonic() < deadline, functions.sleep.get_current_stats()
        time.sleep(0.1)
    busy = functions.sleep.get_current_stats()
    assert (busy.backlog, busy.num_total_runners) == (0, 1)
    call.get(timeout=60)
    assert functions.sleep.get_current_stats().num_running_inputs == 0


def test_answers_come_without_waiting_out_a_poll(running):
    """Ten calls in a row on a warm container are answered within a second each."""
    functions.square.remote(0)
    for x in range(10):
        begin = time.monotonic()
        assert functions.square.remote(x) == x**2
        assert time.monotonic() - begin < 1.0
