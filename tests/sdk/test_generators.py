"""Generators: their items as they come, their errors, and readers that leave."""

import asyncio
import time

import pytest
from programs import functions
from programs.functions import Overripe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/functions.py for all tests of this file."""
    with functions.app.run():
        yield


def test_generator(running):
    """A generator's items come in order, from a plain and from an async generator."""
    assert list(functions.count.remote_gen(50)) == list(range(50))
    assert list(functions.count_async.remote_gen(50)) == list(range(50))


def test_generator_of_nothing_and_of_many(running):
    """No item at all, and more items than one batch of the data channel holds."""
    assert list(functions.count.remote_gen(0)) == []
    assert list(functions.count.remote_gen(5000)) == list(range(5000))


@pytest.mark.parametrize("function", [functions.count_then_fail, functions.count_then_fail_async], ids=["plain", "async"])
@pytest.mark.parametrize("items", [0, 3, 2000])
def test_generator_that_fails_gives_its_items_first(running, function, items):
    """Items that were yielded before an exception arrive before it, none, a few or many, from both kinds of generator."""
    got = []
    with pytest.raises(Overripe) as caught:
        for item in function.remote_gen(items):
            got.append(item)
    assert got == list(range(items))
    assert caught.value.days == items


def test_items_come_while_the_generator_runs(running):
    """An item is here before the next one is made: the first of a generator that never ends arrives."""
    items = functions.count_for_ever.remote_gen(10)
    assert [next(items) for _ in range(3)] == [(i, bytes(10)) for i in range(3)]
    items.close()


@pytest.mark.parametrize("size", [10, 1 << 20], ids=["small items", "more than a stream may hold"])
def test_generator_that_is_abandoned_half_way(running, size):
    """Who leaves a generator after some items is not held up by it, and the next generator call is answered."""
    begin = time.monotonic()
    for i, _ in functions.count_for_ever.remote_gen(size):
        if i == 20:
            break
    assert time.monotonic() - begin < 60
    assert list(functions.count.remote_gen(3)) == [0, 1, 2]


def test_items_larger_than_a_message(running):
    """Items over 2 MiB travel as blobs, in their order among small ones."""
    for size in (100, 3 << 20):
        got = list(functions.large_items.remote_gen(4, size))
        assert [(i, len(data), set(data)) for i, data in got] == [(i, size, {i}) for i in range(4)]


def test_generators_from_an_event_loop(running):
    """`.remote_gen.aio()`: several at once, and one that is left half-way."""

    async def read(n: int) -> list[int]:
        return [item async for item in functions.count.remote_gen.aio(n)]

    async def leave() -> int:
        async for i, _ in functions.count_for_ever.remote_gen.aio(10):
            if i == 5:
                return i
        raise AssertionError("a generator that never ends has ended")

    async def all_of_it():
        return await asyncio.gather(read(10), read(100), leave(), read(1000))

    assert asyncio.run(all_of_it()) == [list(range(10)), list(range(100)), 5, list(range(1000))]


def test_generator_that_is_spawned_is_refused_by_the_client(running):
    """A generator can't be called by `.remote()`: the error names the method that can."""
    with pytest.raises(Exception, match="remote_gen"):
        functions.count.remote(3)
