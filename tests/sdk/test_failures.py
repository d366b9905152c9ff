"""Containers that fail: as they start, in mid-input, as they end. The caller hears why, nothing hangs, and what may be tried again is.

test_faults.py has errors of functions and what is pickled, test_containers.py what a container may use.
"""

import signal
import time

import pytest
from harness import kill, wait_for
from programs import failures

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/failures.py for all tests of this file."""
    with failures.app.run() as app:
        yield app


@pytest.fixture
def logged(node, running):
    """How often a text is in the app's log: logged("a try of stay")."""
    return lambda text: node.shoal("logs", running.app_id).stdout.count(text)


@pytest.fixture
def tasks_of(node, running):
    """The live tasks of one of its functions."""
    return lambda tag: [task for task in node.tasks(running.app_id) if task["function"] == tag]


def test_a_start_that_takes_too_long(running):
    """`startup_timeout=3` with an `@enter` of ten minutes: the caller is told of the start and of the seconds."""
    begin = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)could not start.*3 s"):
        failures.StartsSlowly().work.remote()
    assert time.monotonic() - begin < 60


def test_containers_that_crash_at_their_start_come_with_pauses(running, node, logged, tasks_of):
    """Each call fails with how the container ended; the next container waits longer each time, and `explain` says so."""
    for number in range(3):
        with pytest.raises(Exception, match="could not start.*9"):
            failures.Crashes().work.remote(number)
    calls = [failures.Crashes().work.spawn(number) for number in range(3)]

    def pause() -> str:
        # One after the other fails, each after a longer pause.
        said = [node.shoal("explain", call.object_id).stdout for call in calls]
        return next((text for text in said if "end as soon as they start" in text), "")

    assert " s" in wait_for("the pause", pause, 60, every=0.2)
    starts = logged("a start of Crashes")
    time.sleep(2)
    assert logged("a start of Crashes") - starts <= 2, "it is not started over and over"
    for call in calls:
        with pytest.raises(Exception, match="could not start.*9"):
            call.get(timeout=90)


def kill_all(node) -> None:
    for pid in node.sandboxes():
        kill(pid, signal.SIGKILL)


def test_sigkill_from_outside_in_mid_input(running, node, sdk, logged):
    """A sandbox that is killed from outside fails its input with a sentence; with `retries=1` the input runs again and succeeds."""
    call = failures.stay.spawn(300)
    wait_for("the function to run", lambda: logged("a try of stay\n") == 1, 60, every=0.2)
    kill_all(node)
    with pytest.raises(Exception, match="(?i)container ended while it worked.*9|killed"):
        call.get(timeout=60)
    with sdk.Dict.ephemeral() as tries:
        again = failures.stay_or_try_again.spawn(tries, 300)
        wait_for("the function to run", lambda: logged("a try of stay_or_try_again") == 1, 60, every=0.2)
        kill_all(node)
        assert again.get(timeout=90)
    wait_for("both tries in the log", lambda: logged("a try of stay_or_try_again") == 2, 30, every=0.2)


def test_out_of_memory_is_a_try(running, logged):
    """A container over its memory is killed and told as such, each try in its turn."""
    with pytest.raises(Exception, match="(?i)out of memory"):
        failures.eats.remote()
    wait_for("two tries in the log", lambda: logged("a try of eats") == 2, 30)


def test_children_and_threads_that_stay(running, tasks_of):
    """Children with signals of their own and threads that Python waits for end with their container, which is let go when idle."""
    assert failures.leaves_a_child.remote() and failures.leaves_a_thread.remote()
    for tag in ("leaves_a_child", "leaves_a_thread"):
        wait_for(f"the container of {tag} to go", lambda tag=tag: not tasks_of(tag), 60, every=0.2)
