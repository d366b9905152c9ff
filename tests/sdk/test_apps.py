"""Apps by the client's own commands: run, deploy, look up, list, stop."""

import json
import re

import pytest
from harness import CONTAINER_GONE_SECONDS, REPOSITORY, wait_for, wait_until_none

pytestmark = pytest.mark.timeout(300)


def test_the_first_program_gives_its_results(client):
    """The program of every newcomer: a call, a map in order, packages in an image, output as it is printed."""
    out = client.run(REPOSITORY / "tests/examples/hello.py").ok(280).text()
    assert "square.remote(42) = 1764" in out
    assert "square.map(range(10)) = [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]" in out
    assert re.search(r"numpy \d+\.\d+.*, pandas \d+\.\d+.*, 1000 rows", out), out
    assert "summarize.remote(1000) = {'mean': 332833.5, 'max': 998001.0}" in out
    assert "squaring 42" in out


def test_entrypoint_takes_arguments(client):
    """Arguments of a local entrypoint are parsed by their types and reach the function."""
    out = client.run("entrypoint.py", "--word", "fish", "--times", "3", "--upper").ok(120).text()
    assert "answer: FISH FISH FISH" in out


def test_function_runs_without_an_entrypoint(client, tmp_path):
    """`modal run FILE::FUNCTION` calls one function with arguments and can write its result to a file."""
    result = tmp_path / "result"
    client.run("entrypoint.py::repeat", "--word", "ox", "--times", "2", "--no-upper").ok(120)
    client.modal(
        "run", "--write-result", str(result), "programs/entrypoint.py::repeat", "--word", "ox", "--times", "2", "--no-upper"
    ).ok(120)
    assert result.read_text() == "ox ox"


def test_failed_run_says_so_by_its_exit_code(client):
    """A function's exception ends `modal run` with an exit code that is not 0 and shows where it was raised."""
    running = client.run("functions.py::fail", "--fruit", "fig", "--days", "3")
    assert running.wait(120) != 0
    assert "Overripe" in running.text()
    assert "in inner" in running.text(), "the remote traceback names the remote function that raised"


def test_app_of_a_run_ends_with_it(client, node):
    """After `modal run` the app is listed as stopped and has no container."""
    running = client.run("entrypoint.py", "--word", "a").ok(120)
    app_id = running.app_id()
    wait_for("the app to be stopped", lambda: listed(client, app_id)["state"].startswith("stopped"), 30)
    wait_until_none("containers of it", lambda: node.tasks(app_id), CONTAINER_GONE_SECONDS)


def listed(client, app_id):
    rows = [row for row in client.apps() if row.get("app_id") == app_id]
    assert rows, f"app {app_id} is not in `modal app list`"
    return rows[0]


def test_deployed_function_is_found_by_name(client, deployed, sdk, unique):
    """`modal deploy`, then `Function.from_name(...).remote()` from another process that never saw the code."""
    deployed("functions.py", unique)
    assert sdk.Function.from_name(unique, "square").remote(9) == 81
    code = f"import modal; print('got', modal.Function.from_name({unique!r}, 'square').remote(11))"
    assert "got 121" in client.start("-c", code).ok(60).text()


def test_deployed_app_outlives_its_client_and_is_listed(client, deployed, unique):
    """A deployed app stays, under its name, after the client that deployed it is gone."""
    deployed("functions.py", unique)
    rows = [row for row in client.apps() if unique in json.dumps(row)]
    assert len(rows) == 1 and rows[0]["state"] == "deployed", rows


def test_deploy_again_keeps_the_app_and_takes_the_new_code(client, deployed, sdk, unique, tmp_path):
    """A second deploy under the same name is the same app; calls that come after it run the new code."""
    program = tmp_path / "versioned.py"
    text = "import modal\napp = modal.App('versioned')\n@app.function()\ndef version():\n    return {}\n"
    program.write_text(text.format(1))
    client.modal("deploy", "--name", unique, str(program)).ok(120)
    try:
        first = [row["app_id"] for row in client.apps() if unique in json.dumps(row)]
        assert sdk.Function.from_name(unique, "version").remote() == 1
        program.write_text(text.format(2))
        client.modal("deploy", "--name", unique, str(program)).ok(120)
        assert [row["app_id"] for row in client.apps() if unique in json.dumps(row)] == first
        wait_for("the new code to answer", lambda: sdk.Function.from_name(unique, "version").remote() == 2, 30)
    finally:
        client.stop_app(unique)


def test_stop_ends_containers_and_calls(client, node, sdk, unique):
    """`modal app stop` stops a deployed app: its containers end at once, later look-ups say it is not there."""
    client.deploy("functions.py", unique)
    sdk.Function.from_name(unique, "square").remote(2)
    app_id = next(row["app_id"] for row in client.apps() if unique in json.dumps(row))
    assert node.tasks(app_id), "a container waits for the next call"
    client.modal("app", "stop", "--yes", unique).ok(60)
    wait_until_none("containers of the app", lambda: node.tasks(app_id), CONTAINER_GONE_SECONDS)
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Function.from_name(unique, "square").remote(2)


def test_missing_app_and_function_are_not_found(sdk, deployed, unique):
    """A look-up of what is not there raises NotFoundError and names it."""
    with pytest.raises(sdk.exception.NotFoundError, match=unique):
        sdk.Function.from_name(unique, "square").hydrate()
    deployed("functions.py", unique)
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Function.from_name(unique, "no_such_function").hydrate()


def test_logs_of_a_deployed_app_by_name(client, deployed, sdk, unique):
    """`modal app logs NAME` shows what a deployed app's functions printed, and can filter by stream."""
    deployed("output.py", unique)
    sdk.Function.from_name(unique, "both").remote(20)

    def are_all(source: str, word: str) -> bool:
        return [line for line in client.logs(unique, "--source", source) if line] == [f"{word} {i:04d}" for i in range(20)]

    for source, word in (("stdout", "out"), ("stderr", "err")):
        wait_for(f"all lines of {source} in the log", lambda source=source, word=word: are_all(source, word), 30)


def test_logs_can_be_followed(client, deployed, sdk, unique):
    """`modal app logs -f` streams what is printed after it began, while the app runs."""
    deployed("output.py", unique)
    following = client.modal("app", "logs", "-f", unique)
    call = sdk.Function.from_name(unique, "ticks").spawn(1000, 0.2)
    # The first of them may have been printed before it began.
    following.wait_line(r"tick \d+ ", 60)
    call.cancel()
    following.interrupt()
    following.wait(20)
