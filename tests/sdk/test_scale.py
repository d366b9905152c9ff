"""Containers come when there is work, as many as the settings say, are used again, and go when there is none."""

import os
import time
from collections.abc import Callable

import pytest
from harness import SANDBOXES_AHEAD, Node, children, command_line, wait_for
from programs import functions, scale

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/scale.py for all tests of this file."""
    with scale.app.run() as app:
        yield app


@pytest.fixture
def tasks_of(node: Node, running) -> Callable[[str], set[str]]:
    """The live tasks of one of its functions: tasks_of("plain")."""
    return lambda tag: {task["task_id"] for task in node.tasks(running.app_id) if task["function"] == tag}


def together(stays: list[tuple[str, float, float]]) -> int:
    """Returns how many stays there were at once, at most."""
    moments = [begin for _, begin, _ in stays]
    return max(sum(begin <= moment < end for _, begin, end in stays) for moment in moments)


def test_containers_are_used_again(running, tasks_of):
    """Twenty calls one after another have one container."""
    assert len({scale.plain.remote()[0] for _ in range(20)}) == 1
    assert len(tasks_of("plain")) == 1


def test_a_thousand_inputs_finish(running):
    """A thousand inputs at once, of a map and of a spawned one, have their results on this machine's few cores."""
    assert len(list(scale.plain.starmap([(0.01,)] * 1000))) == 1000
    call = functions_of_1000()
    assert call == [x**2 for x in range(1000)]


def functions_of_1000() -> list[int]:
    with functions.app.run():
        call = functions.square.experimental_spawn_map(range(1000))
        return list(call.iter())


def test_short_inputs_do_not_start_a_container_each(running, tasks_of):
    """Two hundred inputs of a hundredth of a second are done by a few containers that are there, not by dozens: how many depends on
    how long each takes on a busy machine."""
    scale.plain.remote()
    used = {task for task, _, _ in scale.plain.starmap([(0.01,)] * 200)}
    assert len(used) <= 20, used


def test_inputs_that_take_long_get_a_container_each(running):
    """Four inputs that take long run at the same time."""
    calls = [scale.plain.spawn(300.0) for _ in range(4)]
    wait_for("all four to run", lambda: scale.plain.get_current_stats().num_running_inputs == 4, 90, every=0.2)
    for call in calls:
        call.cancel()


def test_max_containers(running, tasks_of):
    """`max_containers=2`: eight inputs run two at a time, in two containers, and all end."""
    stays = list(scale.at_most_two.starmap([(0.5,)] * 8))
    assert len({task for task, _, _ in stays}) <= 2
    assert together(stays) <= 2
    assert len(tasks_of("at_most_two")) <= 2


def test_scaledown_window(running, tasks_of):
    """`scaledown_window=3`: an idle container is there for three seconds and gone soon after; the next call gets a new one."""
    task, _, end = scale.short_lived.remote()

    def is_gone() -> bool:
        # The look itself may take long.
        is_there = task in tasks_of("short_lived")
        assert is_there or time.time() - end >= 2.9, "it went too early"
        return not is_there

    wait_for("the idle container to go", is_gone, 30, every=0.2)
    assert scale.short_lived.remote()[0] != task


def test_a_busy_container_is_not_idle(running, tasks_of):
    """An input that takes longer than the scaledown window keeps its container."""
    task = scale.short_lived.remote()[0]
    assert scale.short_lived.remote(5.0)[0] == task
    assert scale.short_lived.remote()[0] == task


def are_ready(node: Node, tasks: set[str]) -> bool:
    """Whether containers have started, and take inputs."""
    return all("its container is ready" in node.shoal("explain", task).stdout for task in tasks)


def test_buffer_containers(running, node, tasks_of):
    """`buffer_containers=1`: while an input runs a second container waits beside it, and takes the next one; both go in the end."""
    call = scale.with_a_spare.spawn(300.0)
    both = wait_for("a spare container", lambda: len(found := tasks_of("with_a_spare")) == 2 and found, 60, every=0.2)
    wait_for("both to be ready", lambda: are_ready(node, both), 60, every=0.2)
    assert scale.with_a_spare.get_current_stats().num_running_inputs == 1
    assert scale.with_a_spare.remote(0.0)[0] in both, "a spare was there"
    call.cancel()
    wait_for("both to go", lambda: not tasks_of("with_a_spare"), 60, every=0.2)


def test_single_use_containers(running, tasks_of):
    """`single_use_containers=True`: each input has a container of its own, which ends with it."""
    used = [task for task, _, _ in scale.only_once.starmap([(0.0,)] * 5)]
    assert len(set(used)) == 5
    wait_for("all of them to end", lambda: not tasks_of("only_once"), 60, every=0.2)


def test_concurrent_inputs(running, tasks_of):
    """`concurrent(max_inputs=20)`: twenty inputs run at once in one container."""
    scale.many_at_once.remote(0.0)
    stays = list(scale.many_at_once.starmap([(5.0,)] * 20))
    assert together(stays) >= 15
    assert len({task for task, _, _ in stays}) <= 2


def test_concurrent_inputs_above_their_target(running):
    """`target_inputs=2, max_inputs=20`: a container that may not have another one beside it takes more than its target."""
    stretched = list(scale.stretches.starmap([(5.0,)] * 12))
    assert together(stretched) > 2
    assert len({task for task, _, _ in stretched}) == 1


def test_batches(running):
    """`batched(max_batch_size=10)`: inputs that come together are handed over together, each with its own result."""
    scale.in_batches.remote(0)
    results = list(scale.in_batches.map(range(40)))
    assert [x for x, _ in results] == list(range(40))
    assert max(size for _, size in results) == 10


def test_a_container_that_stops_itself(running):
    """`stop_fetching_inputs()`: the container finishes its input and ends; the next input gets another one."""
    assert scale.stops_itself.remote(1) != scale.stops_itself.remote(2)


def test_a_crowd_does_not_keep_others_out(running, node):
    """A function with hundreds of inputs has all cores: the first call of another app gets a container all the same, since one of the
    crowd's gives way once it is done with an input. No input of the crowd is lost by that, or runs twice."""
    cores = os.cpu_count() or 1
    crowd = scale.crowd.experimental_spawn_map(range(100 * cores))
    wait_for("every core to be taken", lambda: scale.crowd.get_current_stats().num_running_inputs == cores, 60, every=0.2)
    with scale.other.run():
        assert scale.modest.remote()
    left = scale.crowd.get_current_stats()
    assert left.backlog > 10 * cores, left
    crowd.cancel()
    lines = node.shoal("logs", running.app_id, "--function", "crowd").stdout.split("crowd ")
    ran = sorted(int(words.split()[0]) for words in lines if words.strip())
    assert len(ran) > cores and len(set(ran)) == len(ran), ran
    # Those that were begun last may have been cancelled before they said a word.
    assert set(range(ran[-1] + 1 - 2 * cores)) <= set(ran), ran


def test_min_containers(deployed, client, node, sdk, unique):
    """`min_containers=2`: two containers are there without a call, again after one was stopped, and go with their app."""

    def warm() -> set[str]:
        return {task["task_id"] for task in node.tasks() if task["function"] == "warm"}

    deployed("kept_warm.py", unique)
    first = wait_for("two containers", lambda: len(found := warm()) == 2 and found, 60, every=0.2)
    time.sleep(4)  # Longer than their scaledown window.
    assert warm() == first
    client.modal("container", "stop", "--yes", sorted(first)[0]).ok(60)
    wait_for("another one in its place", lambda: len(now := warm()) == 2 and now != first, 60, every=0.2)
    client.stop_app(unique)
    wait_for("none after the app was stopped", lambda: not warm(), 30, every=0.2)


def test_autoscaler_at_run_time(deployed, client, node, sdk, unique):
    """Settings are read and changed while the app is deployed, take effect at once, and are reset by the next deployment."""

    def count() -> int:
        return len([task for task in node.tasks() if task["function"] == "warm"])

    deployed("kept_warm.py", unique)
    warm = sdk.Function.from_name(unique, "warm")
    before = warm.autoscaler.settings()
    assert (before.min_containers, before.max_containers, before.scaledown_window) == (2, 3, 2)
    after = warm.autoscaler.update(min_containers=3, scaledown_window=4)
    assert (after.min_containers, after.max_containers, after.scaledown_window, after.buffer_containers) == (3, 3, 4, before.buffer_containers)
    wait_for("three containers", lambda: count() == 3, 60, every=0.2)
    assert warm.update_autoscaler(min_containers=0).min_containers == 0
    wait_for("none without work", lambda: count() == 0, 60, every=0.2)
    assert warm.autoscaler.update(max_containers=None).max_containers is None
    with pytest.raises(sdk.exception.InvalidError, match="5.*1|1.*5"):
        warm.autoscaler.update(min_containers=5, max_containers=1)
    # An empty change changes nothing.
    assert warm.autoscaler.update() == warm.autoscaler.settings()
    shown = client.modal("function", "info", f"{unique}/warm").ok(60).text()
    assert "4 seconds" in shown, shown
    client.deploy("kept_warm.py", unique)
    assert warm.autoscaler.settings() == before
    wait_for("two containers again", lambda: count() == 2, 60, every=0.2)


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process and its children that have ended have used."""
    words = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return sum(int(word) for word in words[11:15]) / 100


def used(node: Node) -> float:
    """Returns the CPU time of the node, its keeper and all its containers, in seconds."""
    assert node.keeper is not None
    own = [node.keeper.pid, *(pid for pid in children(node.keeper.pid) if command_line(pid))]
    return sum(map(cpu_seconds, own)) + node.cpu_seconds()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_idle_containers_cost_next_to_nothing(deployed, node, unique):
    """Ten containers that wait for work use less than a twentieth of a core, with the node."""
    deployed("idle.py", unique)
    idle = lambda: [task for task in node.tasks() if task["function"] == "idle"]  # noqa: E731
    wait_for("ten containers", lambda: len(idle()) == 10, 120, every=0.5)
    wait_for("all of them to be ready", lambda: are_ready(node, {task["task_id"] for task in idle()}), 120, every=1)
    wait_for("what the node makes ahead", lambda: len(node.sandboxes()) == 10 + SANDBOXES_AHEAD, 60, every=0.5)
    time.sleep(10)  # What their start leaves to be done.
    begin, before = time.monotonic(), used(node)
    time.sleep(30)
    share = (used(node) - before) / (time.monotonic() - begin)
    assert share < 0.05, f"{share:.1%} of a core"
