"""Calls of every plain kind, from this process by the real client.

test_calls.py has spawned calls, test_generators.py generators, test_faults.py errors.
"""

import asyncio
import random
import threading
import time

import modal
import pytest
from harness import PROGRAMS, wait_for
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


def test_function_that_calls_another(running):
    """A function calls another of its app, by a call and by a map, from inside its container."""
    assert functions.sum_of_squares.remote(5) == 25 + 0 + 1 + 4 + 9 + 16


def test_calls_from_many_threads(running):
    """Calls of 30 threads at once all get their own answer."""
    from concurrent.futures import ThreadPoolExecutor

    values = random.sample(range(10_000), 120)
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(functions.square.remote, values)) == [x**2 for x in values]


def test_warm_container_is_used_again(running, node):
    """A second call finds the container of the first."""
    functions.square.remote(1)
    (first,) = node.tasks(app.app_id)
    functions.square.remote(2)
    assert [task["task_id"] for task in node.tasks(app.app_id)] == [first["task_id"]]


def test_current_stats_say_what_runs(running):
    """`.get_current_stats()` counts the containers and inputs of a function while it works, and none of it afterwards."""
    call = functions.sleep.spawn(300)
    wait_for("the input to run", lambda: functions.sleep.get_current_stats().num_running_inputs == 1, 60, every=0.1)
    busy = functions.sleep.get_current_stats()
    assert (busy.backlog, busy.num_total_runners) == (0, 1)
    call.cancel()
    wait_for("no input to run", lambda: functions.sleep.get_current_stats().num_running_inputs == 0, 60, every=0.1)


def test_answers_come_without_waiting_out_a_poll(running):
    """Calls in a row on a warm container are answered within a second; single ones may be held up by what else the machine does."""
    functions.square.remote(0)
    took = []
    for x in range(11):
        begin = time.monotonic()
        assert functions.square.remote(x) == x**2
        took.append(time.monotonic() - begin)
    assert sorted(took)[5] < 1.0, took


def test_local(running):
    """`.local()` runs the function here: no container takes part, and what it raises is raised as it is."""
    assert functions.square.local(7) == 49
    assert list(functions.count.local(3)) == [0, 1, 2]
    with pytest.raises(Overripe):
        functions.fail.local("fig", 1)


def test_arguments_by_name_and_default(running):
    """Positional, named, defaulted and keyword-only arguments arrive where they belong, from calls and from maps."""
    assert functions.add.remote(1, y=2) == 3
    assert functions.add.remote(5, times=3) == 15
    assert list(functions.add.map([1, 2, 3], [10, 20, 30])) == [11, 22, 33]
    assert list(functions.add.map([1, 2], kwargs={"times": 10})) == [10, 20]
    assert list(functions.add.starmap([(1, 2), (3, 4)], kwargs={"times": 2})) == [6, 14]


def test_wrong_arguments_are_the_callers_error(running):
    """A call with an argument too many raises TypeError with the function's name, and the container lives on."""
    with pytest.raises(TypeError, match="square"):
        functions.square.remote(1, 2, 3)
    assert functions.square.remote(3) == 9


@pytest.mark.parametrize("ordered", [True, False])
def test_map_over_an_iterator_that_raises(running, ordered):
    """What an input iterator raises comes out of the map, after what it gave before; the function can be called again."""

    def inputs():
        yield 1
        yield 2
        raise KeyError("the iterator broke")

    with pytest.raises(KeyError, match="the iterator broke"):
        list(functions.square.map(inputs(), order_outputs=ordered))
    assert functions.square.remote(3) == 9


def test_map_takes_inputs_as_they_come(running):
    """A map over an iterator that waits gives the first results before the last inputs exist."""
    given, came = [], threading.Event()

    def inputs():
        for x in range(200):
            given.append(x)
            yield x
            if came.is_set():
                return
            time.sleep(0.3)
        raise AssertionError("the first result waits for the last input")

    results = iter(functions.square.map(inputs()))
    assert next(results) == 0
    came.set()
    assert list(results) == [x**2 for x in given[1:]]


def test_map_that_is_abandoned(running):
    """Leaving a map after its first result leaves nothing behind that holds up the next call."""
    for result in functions.square.map(range(1000)):
        assert result == 0
        break
    assert functions.square.remote(5) == 25


def test_map_and_for_each_with_failures(running):
    """`return_exceptions` keeps failures at their places, also unordered; for_each raises, or goes on when told to."""
    results = list(functions.fail_on_odd.map(range(6), return_exceptions=True, order_outputs=False))
    assert sorted(one for one in results if isinstance(one, int)) == [0, 2, 4]
    assert sorted(one.days for one in results if isinstance(one, Overripe)) == [1, 3, 5]
    with pytest.raises(Overripe):
        functions.fail_on_odd.for_each(range(4))
    assert functions.fail_on_odd.for_each(range(4), ignore_exceptions=True) is None


def test_every_kind_of_map_from_an_event_loop(running):
    """map, starmap and for_each by their `.aio` forms, over plain and async iterators, failures included."""

    async def inputs():
        for x in range(5):
            await asyncio.sleep(0.01)
            yield x

    async def broken():
        yield 1
        raise KeyError("the iterator broke")

    async def maps():
        assert [x async for x in functions.square.map.aio(inputs())] == [0, 1, 4, 9, 16]
        assert sorted([x async for x in functions.square.map.aio(range(5), order_outputs=False)]) == [0, 1, 4, 9, 16]
        assert [x async for x in functions.add.starmap.aio([(1, 2), (3, 4)])] == [3, 7]
        assert await functions.square.for_each.aio(inputs()) is None
        assert [x async for x in functions.square.map.aio([])] == []
        mixed = [x async for x in functions.fail_on_odd.map.aio(range(3), return_exceptions=True)]
        assert (mixed[0], mixed[2]) == (0, 2) and isinstance(mixed[1], Overripe)
        with pytest.raises(KeyError, match="the iterator broke"):
            async for _ in functions.square.map.aio(broken()):
                pass
        with pytest.raises(Overripe):
            await functions.fail.remote.aio("fig", 2)

    asyncio.run(maps())


def test_a_container_knows_where_it_is(running):
    """In a container: not local, the ids of its input and call; a local, a spawned and a generator call made from it work."""
    assert modal.is_local() and modal.current_input_id() is None and modal.current_function_call_id() is None
    call = functions.whereabouts.spawn("as given")
    seen = call.get(timeout=100)
    assert seen["local"] is False
    assert seen["call"] == call.object_id
    assert seen["input"].startswith("in-")
    assert (seen["local call"], seen["spawned"], seen["generated"], seen["x"]) == (49, 36, [0, 1, 2], "as given")


def test_ids_of_inputs_are_their_own(running):
    """Each input of a map sees an id of its own and the same call's id, in a plain and in an async function."""
    seen = list(functions.whereabouts.map(range(3)))
    assert len({one["input"] for one in seen}) == 3 and len({one["call"] for one in seen}) == 1
    inputs = [functions.whereabouts_async.remote() for _ in range(2)]
    assert inputs[0] != inputs[1] and all(input_id.startswith("in-") for input_id, _ in inputs)


def test_serialized_function_with_what_it_closes_over(token):
    """`serialized=True`: a function made inside another one runs with the values and functions around it."""
    offset = 100
    small = modal.App("serialized")

    def helper(x):
        return x * 2

    @small.function(serialized=True)
    def shifted(x: int) -> int:
        return helper(x) + offset

    @small.function(serialized=True, name="with-a-name")
    def counted(n: int):
        yield from range(n)

    @small.function(serialized=True)
    async def waited(x):
        await asyncio.sleep(0)
        # A function of the same app, from inside.
        return await shifted.remote.aio(x)

    with small.run():
        assert shifted.remote(1) == 102
        assert list(shifted.map(range(3))) == [100, 102, 104]
        assert list(counted.remote_gen(3)) == [0, 1, 2]
        assert waited.remote(2) == 104


def test_program_that_is_a_package(client):
    """`modal run -m package.module`: relative imports and exceptions of the package work on both sides."""
    running = client.modal("run", "-m", "orchard.app", cwd=PROGRAMS).ok(100)
    assert "tasted quince from orchard.fruit" in running.text("stdout")
    running = client.modal("run", "-m", "orchard.app", "--name", "medlar", cwd=PROGRAMS).ok(100)
    assert "refused: medlar of the orchard is bruised (medlar)" in running.text("stdout")


def test_deployed_functions_are_found_by_name(deployed, client, sdk, unique):
    """Functions of a deployed app are called by their names, generators and maps too; a missing one is named in the error."""
    deployed("functions.py", unique)
    square = sdk.Function.from_name(unique, "square")
    assert square.remote(6) == 36
    assert list(square.map(range(3))) == [0, 1, 4]
    assert list(sdk.Function.from_name(unique, "count").remote_gen(3)) == [0, 1, 2]
    with pytest.raises(sdk.exception.NotFoundError, match="nowhere"):
        sdk.Function.from_name(unique, "nowhere").remote(1)
    with pytest.raises(sdk.exception.NotFoundError, match="no-such-app"):
        sdk.Function.from_name("no-such-app", "square").remote(1)
