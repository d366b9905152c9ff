"""Many inputs in one container: together, or as batches; what cancelling one of them does to the others.

test_scale.py has how many containers there are for them.
"""

import time

import pytest
from harness import wait_for
from programs import concurrency

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/concurrency.py for all tests of this file."""
    with concurrency.app.run() as app:
        yield app


def test_each_input_knows_itself(running):
    """Ten inputs at once, async and in threads: one container, ten input ids, in as much time as one takes."""
    for function in (concurrency.together, concurrency.in_threads):
        function.remote(0.0)
        begin = time.monotonic()
        results = list(function.map([2.0] * 10))
        assert time.monotonic() - begin < 15
        assert len({result[0] for result in results}) == 1
        assert len({result[-1] for result in results}) == 10


def test_generators_side_by_side(running):
    """Two generators of one container give each reader its own."""
    assert [list(stream) for stream in (concurrency.generate.remote_gen(5), concurrency.generate.remote_gen(7))] == [
        list(range(5)),
        list(range(7)),
    ]


def test_one_of_many_is_cancelled(running, sdk):
    """An async function: the cancelled input ends at once, those beside it go on in the same container."""
    task, _ = concurrency.together.remote(0.0)
    calls = [concurrency.together.spawn(6.0) for _ in range(3)]
    doomed = concurrency.together.spawn(100.0)
    wait_until_running(concurrency.together, 4)
    doomed.cancel()
    with pytest.raises(sdk.exception.RemoteError, match="cancelled"):
        doomed.get(timeout=20)
    assert {call.get(timeout=60)[0] for call in calls} == {task}


def wait_until_running(function, count: int) -> None:
    """Waits until that many inputs of a function are with a container."""
    wait_for(f"{count} running inputs", lambda: function.get_current_stats().num_running_inputs >= count, 40, every=0.1)


def test_one_of_many_in_threads_is_cancelled(running, sdk):
    """A function that is not async: its container ends with the cancelled input, those beside it run again and succeed."""
    concurrency.in_threads.remote(0.0)  # A container is there, so that all three are begun together.
    calls = [concurrency.in_threads.spawn(4.0) for _ in range(2)]
    doomed = concurrency.in_threads.spawn(100.0)
    wait_until_running(concurrency.in_threads, 3)
    doomed.cancel()
    with pytest.raises(sdk.exception.RemoteError, match="cancelled"):
        doomed.get(timeout=30)
    assert len({call.get(timeout=60)[0] for call in calls}) == 1


def test_one_of_many_takes_too_long(running, sdk):
    """`timeout` is each input's own: the one that is over it fails, or with `retries` is tried again in the same container, and those
    beside it stay in theirs."""
    task, again = concurrency.in_time.remote(0.0), concurrency.in_time_or_again.remote("first", 0.0)
    late, late_again = concurrency.in_time.spawn(100.0), concurrency.in_time_or_again.spawn("late", 100.0)
    time.sleep(4.0)
    # These are at work when those are over their 8 s, and have 3 s left of their own.
    other, other_again = concurrency.in_time.spawn(5.0), concurrency.in_time_or_again.spawn("other", 5.0)
    with pytest.raises(sdk.exception.FunctionTimeoutError):
        late.get(timeout=60)
    assert other.get(timeout=60) == task
    assert late_again.get(timeout=60) == f"{again} again"
    assert other_again.get(timeout=60) == again


def test_a_full_batch_does_not_wait(running):
    """`wait_ms=8000`: four inputs are a batch and are done at once, one alone waits for company."""
    assert concurrency.patient.for_each(range(4)) is None  # A container is there, so that what follows is not a start.
    begin = time.monotonic()
    assert list(concurrency.patient.map(range(4))) == [(x, 4) for x in range(4)]
    full = time.monotonic() - begin
    begin = time.monotonic()
    assert concurrency.patient.remote(7) == (7, 1)
    assert time.monotonic() - begin >= 7.5
    assert full < 7.5, "a full batch was held back"


def test_a_batch_with_a_cancelled_input(running, sdk):
    """The others of its batch run again and succeed."""
    calls = [concurrency.slow_batch.spawn(4.0) for _ in range(3)]
    wait_until_running(concurrency.slow_batch, 3)
    calls[1].cancel()
    with pytest.raises(sdk.exception.RemoteError, match="cancelled"):
        calls[1].get(timeout=20)
    assert [call.get(timeout=60)[1] for call in (calls[0], calls[2])] == [2, 2]


def test_batches_that_fail(running):
    """An exception is that of each input of its batch; a list of the wrong length is told as such."""
    with pytest.raises(ValueError, match=r"a batch with \[-1\]"):
        concurrency.wrong_batch.remote(-1)
    results = list(concurrency.wrong_batch.map([-2, 1, 2, 3], return_exceptions=True))
    assert any("must return" in str(result) or "length" in str(result) for result in results), results
    assert concurrency.wrong_batch.remote(5) == 5


def test_batched_methods(running):
    """A batched method gets a list for each of its arguments."""
    results = list(concurrency.Batcher().run.starmap([(x, 10 * x) for x in range(6)]))
    assert [total for total, _ in results] == [11 * x for x in range(6)] and max(size for _, size in results) == 3


def test_single_use(running):
    """`single_use_containers`: as many containers as inputs."""
    assert len({concurrency.once.remote() for _ in range(3)}) == 3
