"""What goes wrong in functions, and how it reaches the caller: errors, pickle trouble, tries that are repeated."""

import threading
import time

import pytest
from harness import Token, wait_for
from programs import faults, functions
from programs.functions import Overripe

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/functions.py for all tests of this file."""
    with functions.app.run():
        yield


@pytest.fixture(scope="module")
def faulty(token):
    """The app of programs/faults.py for all tests of this file."""
    with faults.app.run() as app:
        yield app


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


def test_chained_exceptions_keep_their_cause(faulty):
    """`raise … from …` in a container: the caller sees the outer one, and its text tells of the inner one."""
    with pytest.raises(ValueError, match="the outer one"):
        faults.raise_chained.remote()


def test_exception_that_the_container_can_not_pickle(faulty):
    """An exception that holds a lock reaches the caller as an error with its name and text."""
    with pytest.raises(Exception, match="stuck to its container"):
        faults.raise_sticky.remote()


def test_exception_that_the_caller_can_not_make_again(faulty, sdk):
    """An exception whose arguments don't fit its class fails at the caller, with the remote text."""
    with pytest.raises(sdk.exception.ExecutionError, match="cherry: too small"):
        faults.raise_picky.remote()


def test_exception_of_a_module_that_the_caller_lacks(faulty, sdk):
    """The caller is told that it can't read the exception, and what the traceback in the container was."""
    with pytest.raises(sdk.exception.ExecutionError, match="from a module that nobody else has"):
        faults.raise_from_nowhere.remote()


def test_exception_with_a_huge_message(faulty):
    """A message of 5 MB is no reason to lose the exception."""
    with pytest.raises(ValueError) as caught:
        faults.raise_huge.remote(5_000_000)
    assert len(str(caught.value)) >= 5_000_000


def test_sys_exit_is_an_error_of_the_input(faulty):
    """sys.exit() in a function fails its call, without a wait for another container."""
    begin = time.monotonic()
    with pytest.raises(BaseException) as caught:
        faults.leave.remote(3)
    assert caught.type is SystemExit or "3" in str(caught.value)
    assert time.monotonic() - begin < 60


def test_arguments_that_can_not_be_pickled(faulty):
    """Refused here, before anything is sent, with the type's name."""
    with pytest.raises(Exception, match="(?i)lock"):
        faults.pid_of.remote(threading.Lock())


def test_arguments_that_the_container_can_not_read(faulty):
    """An object of a module that only the caller has fails the call and names the module; the container goes on."""
    pid = faults.pid_of.remote()
    with pytest.raises(Exception, match="harness"):
        faults.pid_of.remote(Token("id", "secret"))
    assert faults.pid_of.remote() == pid


def test_results_that_can_not_be_pickled(faulty):
    """A lock as a return value fails the call with a sentence about it."""
    with pytest.raises(Exception, match="(?i)lock"):
        faults.return_lock.remote()


def test_results_that_the_caller_can_not_read(faulty):
    """A return value of a module that only the container has is an error here that names the module."""
    with pytest.raises(Exception, match="only_in_the_container"):
        faults.return_foreign.remote()


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_retries_until_it_works(faulty, unique, failures):
    """`retries=2`: a function that fails once or twice succeeds at its next try."""
    assert faults.fail_times.remote(f"{unique}-{failures}", failures) == failures + 1


def test_retries_are_not_endless(faulty, unique):
    """After the last try the caller gets that try's exception."""
    with pytest.raises(ValueError, match=f"try 3 of {unique}"):
        faults.fail_times.remote(unique, 10)


def test_retries_in_a_map_and_of_a_spawned_call(faulty, unique):
    """Each input of a map, and a call that nobody waits for, are tried again for themselves."""
    assert list(faults.fail_times.starmap([(f"{unique}-{x}", x) for x in range(3)])) == [1, 2, 3]
    assert faults.fail_times.spawn(f"{unique}-spawned", 1).get(timeout=60) == 2
    results = list(faults.fail_times.starmap([(f"{unique}-{x}-again", 10 * x) for x in range(2)], return_exceptions=True))
    assert results[0] == 1 and isinstance(results[1], ValueError)


def test_retries_wait_as_their_policy_says(faulty, unique):
    """`Retries(initial_delay=1, backoff_coefficient=2)`: the second try comes a second later, the third two more."""
    first, second, third = faults.fail_slowly.remote(unique)
    # A busy machine may take longer for each.
    assert 0.9 <= second - first < 20 and 1.9 <= third - second < 20


def lines_of(node, app, text: str) -> int:
    """Returns how many lines of an app's log say this."""
    return node.shoal("logs", app.app_id).stdout.count(text)


def test_timeouts_are_tried_again_too(faulty, node, sdk):
    """`timeout` holds for each try: with `retries=1` the function runs twice, then the caller gets the timeout."""
    begin = time.monotonic()
    with pytest.raises(sdk.exception.FunctionTimeoutError):
        faults.too_slow.remote(100)
    assert 4 <= time.monotonic() - begin < 90
    wait_for("two tries in the log", lambda: lines_of(node, faulty, "a try of too_slow") == 2, 30)


def test_containers_that_die_are_tried_again(faulty, node):
    """A container that dies with its input counts as a failed try; after `retries=1` the caller is told how it died."""
    with pytest.raises(Exception, match="(?i)container.*7"):
        faults.die_always.remote()
    wait_for("two tries in the log", lambda: lines_of(node, faulty, "a try of die_always") == 2, 30)
