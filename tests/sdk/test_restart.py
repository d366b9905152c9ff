"""`kill -9` of the node, not of its keeper: it is back by itself, and those who wait notice only a delay."""

import re
import threading
import time

import pytest
from harness import SANDBOXES_AHEAD, Machine, command_line, wait_for, wait_until_none
from programs import functions

pytestmark = pytest.mark.timeout(400)


def restart(node) -> None:
    """Kills the node and waits until the keeper's next one answers."""
    node.wait_reborn(node.kill_child())


def test_it_is_back_by_itself(node, token):
    """The keeper starts the node again; the ports never refuse."""
    import socket

    old = node.kill_child()
    for _ in range(20):
        socket.create_connection(("127.0.0.1", node.api_port), timeout=5).close()
        time.sleep(0.05)
    node.wait_reborn(old)


def test_a_waiting_remote_gets_its_result(client, node):
    """`modal run` in the middle of a `.remote()` ends well, with the right result and exit code 0."""
    running = client.run("restart.py", "--seconds", "8")
    running.wait_line("working on 7", 120)
    restart(node)
    running.ok(240)
    assert "result 49" in running.text()


def test_a_waiting_get_gets_its_result(deployed, node, sdk, unique):
    """A thread in `.get()` and one in `.map()` of a deployed app get their results."""
    deployed("restart.py", unique)
    work = sdk.Function.from_name(unique, "work")
    call = work.spawn(6, 11)
    answers: dict[str, object] = {}

    def ask(name, what):
        try:
            answers[name] = what()
        except Exception as error:  # The test shows whatever came instead of an answer.
            answers[name] = error

    threads = [
        threading.Thread(target=ask, args=("get", lambda: call.get(timeout=240))),
        threading.Thread(target=ask, args=("map", lambda: list(work.map([3] * 4, range(4))))),
    ]
    for thread in threads:
        thread.start()
    wait_for("the calls to run", lambda: len(node.tasks()) > 0, 60)
    time.sleep(2)  # Into the functions.
    restart(node)
    for thread in threads:
        thread.join(300)
    assert answers == {"get": 121, "map": [0, 1, 4, 9]}


def test_accepted_spawns_finish(deployed, node, sdk, unique):
    """Every call whose `.spawn()` had returned before the kill has its result afterwards, queued ones too."""
    deployed("restart.py", unique)
    work = sdk.Function.from_name(unique, "work")
    calls = [work.spawn(0.5, x) for x in range(12)]
    restart(node)
    assert [call.get(timeout=240) for call in calls] == [x * x for x in range(12)]


def test_results_are_kept(deployed, node, sdk, unique):
    """A result that was there before the kill is there after it, by the call's id."""
    deployed("restart.py", unique)
    call = sdk.Function.from_name(unique, "work").spawn(0, 5)
    assert call.get(timeout=120) == 25
    restart(node)
    assert sdk.FunctionCall.from_id(call.object_id).get(timeout=60) == 25


def test_a_deployed_app_answers(deployed, node, sdk, client, unique):
    """A deployed app is there after the kill, to this client and to a new one."""
    deployed("functions.py", unique)
    square = sdk.Function.from_name(unique, "square")
    assert square.remote(3) == 9
    restart(node)
    assert square.remote(4) == 16
    code = f"import modal; print('got', modal.Function.from_name({unique!r}, 'square').remote(11))"
    assert "got 121" in client.start("-c", code).ok(120).text()


def test_images_are_not_built_again(client, node, tmp_path, unique):
    """An image that was built before the kill is known after it: no step runs."""
    from test_images import program, run, steps

    image = f'modal.Image.debian_slim().run_commands("echo built once {unique} > /once")'
    _, out = run(client, program(tmp_path / "once", image))
    assert len(steps(out)) == 1
    restart(node)
    result, out = run(client, program(tmp_path / "once", image, 'return open("/once").read()'))
    assert result == f"built once {unique}\n" and steps(out) == []


def test_a_token_made_before_still_works(node, token, client):
    """Tokens are in the state, not in the process."""
    made = node.create_token()
    restart(node)
    other = type(client)(node, made, client.home)
    assert isinstance(other.apps(), list)
    other.close()


def test_leftovers_of_the_killed_node_are_cleaned(token, node):
    """Mounts, namespaces, veths, cgroups and sandboxes of the killed node's containers are gone or its successor's own."""
    wait_until_none("tasks of earlier tests", node.tasks, 60, every=0.2)
    wait_for("the sandboxes that the node makes ahead", lambda: len(node.sandboxes()) == SANDBOXES_AHEAD, 60, every=0.2)
    before = Machine.now(node)
    with functions.app.run():
        functions.sleep.remote(0)
        old = node.sandboxes()
        assert old, "the app has a container"
        restart(node)
        # They are nobody's children now, so they are looked for by their process ids.
        wait_until_none("sandboxes of the killed node", lambda: [pid for pid in old if "boot" in command_line(pid)], 60)
        assert functions.square.remote(2) == 4
    wait_until_none("tasks of the app", node.tasks, 60)
    wait_until_none("leftovers on the machine", lambda: Machine.now(node).more_than(before), 60, every=0.2)
    wait_for("no more sandboxes than before", lambda: len(node.sandboxes()) <= SANDBOXES_AHEAD, 60, every=0.2)


def test_logs_from_before_are_readable(client, node):
    """What a function printed before the kill is in `modal app logs` after it."""
    running = client.run("output.py::streams", "--n", "50").ok(120)
    app_id = running.app_id()
    restart(node)
    kept = [line for line in client.logs(app_id, "--source", "stdout", "--tail", "1000") if re.match(r"out \d+", line)]
    assert kept == [f"out {i:04d}" for i in range(50)]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_over_and_over(deployed, node, sdk, unique):
    """Five kills at odd moments under a stream of spawned calls: each accepted call has its one right result."""
    deployed("restart.py", unique)
    work = sdk.Function.from_name(unique, "work")
    calls = {}
    for turn in range(5):
        for x in range(turn * 8, turn * 8 + 8):
            calls[x] = work.spawn(0.2, x)
        time.sleep(0.3 * turn)
        restart(node)
    assert {x: call.get(timeout=300) for x, call in calls.items()} == {x: x * x for x in calls}
