"""`shoal logs` and `shoal explain`: each way to say what is meant, and each flag, against an app that has printed known lines."""

import json
import re
import subprocess
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from harness import PROGRAMS, Client, Node, outer_environment, wait_for

pytestmark = pytest.mark.timeout(300)

OURS = re.compile(r"(out|err) \d{4}|tick \d+ ")


@dataclass
class Printed:
    """An app that has printed: three lines on each stream in one call, two in another, and two ticks in a third."""

    node: Node
    environment: str
    name: str
    app: str
    functions: dict[str, str]
    calls: list[str]

    def lines(self, of: str, *arguments: str) -> list[dict]:
        """Returns the app's own lines that `shoal logs OF --json` prints."""
        out = self.node.shoal("logs", of, *arguments, "--json").stdout
        return [line for line in map(json.loads, out.splitlines()) if OURS.match(line["data"])]

    def texts(self, of: str, *arguments: str) -> list[str]:
        """Returns the first two words of those lines, in order."""
        return [" ".join(line["data"].split()[:2]) for line in self.lines(of, *arguments)]


def both(count: int) -> list[str]:
    return sorted(f"{stream} {i:04d}" for i in range(count) for stream in ("out", "err"))


TICKS = ["tick 0", "tick 1"]


@pytest.fixture(scope="module")
def printed(node, token, tmp_path_factory):
    import modal

    client = Client(node, token, tmp_path_factory.mktemp("home"))
    environment, name = f"logs-{uuid.uuid4().hex[:8]}", f"printer-{uuid.uuid4().hex[:8]}"
    client.modal("environment", "create", environment).ok(60)
    client.modal("deploy", "--env", environment, "--name", name, str(PROGRAMS / "output.py")).ok(120)
    found = {tag: modal.Function.from_name(name, tag, environment_name=environment) for tag in ("both", "ticks")}
    calls = []
    for tag, arguments in (("both", (3,)), ("both", (2,)), ("ticks", (2, 0.01))):
        call = found[tag].spawn(*arguments)
        call.get(timeout=120)
        calls.append(call.object_id)
    (app,) = [row["app_id"] for row in node.json("app", "list") if row["environment"] == environment]
    one = Printed(node, environment, name, app, {tag: function.object_id for tag, function in found.items()}, calls)
    wait_for("all that was printed", lambda: len(one.lines(app)) == 12, 60)
    yield one
    client.modal("environment", "delete", "--yes", environment).wait(60)
    client.close()


def test_logs_of_an_app(printed, node):
    """By its id, and by its name in its environment; the name alone means the default environment, and is refused there."""
    assert sorted(printed.texts(printed.app)) == sorted(both(3) + both(2) + TICKS)
    assert printed.lines(printed.name, "--env", printed.environment) == printed.lines(printed.app)
    elsewhere = node.shoal("logs", printed.name, check=False)
    assert elsewhere.returncode == 1 and printed.name in elsewhere.stderr and "shoal app list" in elsewhere.stderr


def test_logs_of_a_function(printed, node):
    """By the function's id as what is meant, and by `--function` with its name or its id; a name that the app has not is refused."""
    for tag, expected in (("both", both(3) + both(2)), ("ticks", TICKS)):
        id = printed.functions[tag]
        for arguments in ([id], [printed.app, "--function", tag], [printed.app, "--function", id]):
            assert sorted(printed.texts(*arguments)) == sorted(expected), arguments
    wrong = node.shoal("logs", printed.app, "--function", "no_such", check=False)
    assert wrong.returncode == 1 and "no_such" in wrong.stderr and "shoal explain" in wrong.stderr


def test_logs_of_a_call(printed):
    """By the call's id as what is meant, and by `--call`; each line names the call."""
    for call, expected in zip(printed.calls, (both(3), both(2), TICKS), strict=True):
        for arguments in ([call], [printed.app, "--call", call]):
            assert sorted(printed.texts(*arguments)) == expected, arguments
        assert {line["call_id"] for line in printed.lines(call)} == {call}


def test_logs_of_a_container(printed):
    """By the container's id as what is meant, and by `--container` and `--task`."""
    everything = printed.lines(printed.app)
    containers = {line["task_id"] for line in everything}
    assert len(containers) >= 2, "two functions have containers of their own"
    for container in containers:
        expected = [line for line in everything if line["task_id"] == container]
        for arguments in ([container], [printed.app, "--container", container], [printed.app, "--task", container]):
            assert printed.lines(*arguments) == expected, arguments


def test_logs_with_a_text_or_of_a_stream(printed, node):
    """`--search` leaves lines with a text in them, `--stream` those of a stream; both at once leave what is in both."""
    assert sorted(printed.texts(printed.app, "--search", "0001")) == ["err 0001", "err 0001", "out 0001", "out 0001"]
    assert printed.texts(printed.app, "--search", "0002", "--stream", "stderr") == ["err 0002"]
    assert printed.texts(printed.app, "--stream", "system") == [] == printed.texts(printed.app, "--search", "nobody printed this")
    shown = node.shoal("logs", printed.app, "--stream", "stderr")
    assert shown.stdout == "" and sorted(shown.stderr.split()) == sorted(["err"] * 5 + ["0000", "0001"] * 2 + ["0002"])


def test_logs_of_a_time(printed, node):
    """`--since` and `--until` take a time ago or a date; what was printed at the time itself is in the later part."""
    first_tick = printed.lines(printed.app, "--function", "ticks")[0]["timestamp_ns"]
    at = datetime.fromtimestamp(first_tick // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert printed.texts(printed.app, "--since", at) == TICKS
    assert sorted(printed.texts(printed.app, "--until", at)) == sorted(both(3) + both(2))
    assert printed.texts(printed.app, "--since", at, "--until", at) == [] == printed.texts(printed.app, "--until", "1d")
    assert printed.lines(printed.app, "--since", "1d") == printed.lines(printed.app)
    wrong = node.shoal("logs", printed.app, "--since", "yesterday", check=False)
    assert wrong.returncode == 2 and "yesterday" in wrong.stderr and "90m" in wrong.stderr


def test_the_newest_lines_and_their_times(printed, node):
    """`--tail` leaves the newest lines, `--timestamps` begins each with the time that `--json` has of it."""
    newest = printed.lines(printed.functions["ticks"], "--tail", "1")
    assert [line["data"].split()[1] for line in newest] == ["1"]
    shown = node.shoal("logs", printed.functions["ticks"], "--timestamps", "--tail", "2").stdout.splitlines()
    for text, line in zip(shown, printed.lines(printed.functions["ticks"]), strict=True):
        at, rest = text.split(" ", 1)
        assert rest == line["data"].rstrip("\n")
        assert abs(datetime.fromisoformat(at).timestamp() - line["timestamp_ns"] / 1e9) < 0.002


@pytest.mark.parametrize("json_lines", [False, True], ids=["text", "json"])
def test_logs_that_are_followed(client, node, json_lines):
    """`--follow` prints lines while the app runs, and ends by itself with all of them when the app has ended."""
    running = client.run("output.py::live", "--n", "20", "--every", "0.25")
    app = running.app_id()
    command = [str(node.binary), "logs", app, "--follow", "--data", str(node.data), *(["--json"] if json_lines else [])]
    follower = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=outer_environment())
    try:
        assert follower.stdout is not None
        first = next(line for line in follower.stdout if "tick 0 " in line)
        assert running.process.poll() is None, "the line came after the run"
        running.ok(120)
        rest = follower.stdout.read()
        assert follower.wait(60) == 0
    finally:
        follower.kill()
        follower.wait()
    lines = [first, *rest.splitlines()]
    texts = [json.loads(line)["data"] for line in lines] if json_lines else lines
    assert [text.split()[1] for text in texts if text.startswith("tick ")] == [str(i) for i in range(20)]


def explained(node: Node, *arguments: str) -> dict:
    """Returns what `shoal explain --json` says, and sees that the text has every sentence of it."""
    told = node.json("explain", *arguments)
    text = node.shoal("explain", *arguments).stdout

    def kinds(part: dict) -> list[str]:
        return [f"{part['kind']} {part['id']}", *(kind for below in part["parts"] for kind in kinds(below))]

    assert all(kind in text for kind in kinds(told)), f"{text}\nlacks some of {kinds(told)}"
    return told


def test_explain_of_an_app_and_its_functions(printed, node):
    """By id and by name in an environment: the app with its functions; a function by itself."""
    by_id = explained(node, printed.app)
    by_name = explained(node, printed.name, "--env", printed.environment)
    assert (by_id["kind"], by_id["id"]) == ("app", printed.app) == (by_name["kind"], by_name["id"])
    assert f"deployed in environment {printed.environment}" in by_id["says"][0]
    assert set(printed.functions.values()) <= {part["id"] for part in by_id["parts"] if part["kind"] == "function"}
    alone = explained(node, printed.functions["both"])
    assert (alone["kind"], alone["name"]) == ("function", "both") and alone["says"]
    nowhere = node.shoal("explain", printed.name, check=False)
    assert nowhere.returncode == 1 and printed.name in nowhere.stderr, "the name means the default environment"


def test_explain_of_a_call(printed, node):
    """A call that is over: its inputs, and how each came out."""
    told = explained(node, printed.calls[0])
    assert told["kind"] == "call" and "1 input, 0 without an output, 1 succeeded" in told["says"][0]
    assert [(part["kind"], part["says"]) for part in told["parts"]] == [("input", ["returned"])]


def test_explain_of_a_container_while_it_runs_and_when_it_has_ended(printed, node, sdk):
    """A container: what it runs, how it started, and, once it was stopped, how it ended and where its lines are."""
    sdk.Function.from_name(printed.name, "both", environment_name=printed.environment).remote(0)
    task = [row["task_id"] for row in node.tasks(printed.app) if row["function"] == "both"][0]
    running = explained(node, task)
    assert running["kind"] == "task" and running["says"][0].startswith("runs both ("), running
    assert any("its container is ready" in says for says in running["says"]), running
    node.shoal("task", "stop", task)
    wait_for("the container to end", lambda: task not in [row["task_id"] for row in node.tasks()], 30)
    ended = explained(node, task)
    assert ended["says"][0].startswith("ran both (") and "stopped by an operator" in ended["says"][1], ended
    assert f"shoal logs {task}" in ended["says"][2]


def test_explain_of_an_image_and_of_a_node(printed, node):
    """The image that the app's functions need, and the node with what it has free."""
    image = next(image["image_id"] for image in node.json("image", "ls") if printed.app in json.dumps(image["used_by"]))
    told = explained(node, image)
    assert told["kind"] == "image" and told["says"][0].startswith("built ") and "packages" in told["says"][1]
    status = node.json("status")
    told = explained(node, status["node_id"])
    assert (told["kind"], told["name"]) == ("node", status["node"])
    assert any("memory are free" in says for says in told["says"]) and any("of its disk" in says for says in told["says"])
