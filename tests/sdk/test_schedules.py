"""Functions that are called by schedules: when, how often, and what is said of those that cannot be."""

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from harness import PROGRAMS, Client, Node, founder, wait_for

pytestmark = pytest.mark.timeout(300)

PROGRAM = str(PROGRAMS / "schedules.py")


class Scheduled:
    """A name for a deployed app of programs/schedules.py, and what its functions have put down."""

    def __init__(self, sdk: Any, client: Client, node: Node, name: str):
        self.client, self.node, self.name = client, node, name
        self.queue = sdk.Queue.from_name(name, create_if_missing=True)
        self.calls: list[tuple[str, float, str]] = []
        self.is_deployed = False

    def modal(self, *arguments: str, **variables: str) -> Any:
        """Starts `modal ARGUMENTS` with variables of the program."""
        mine = {f"SCHEDULES_{key.upper()}": value for key, value in variables.items()}
        return self.client.modal(*arguments, environment={"SCHEDULES_QUEUE": self.name, **mine})

    def deploy(self, **variables: str) -> None:
        self.is_deployed = True
        self.modal("deploy", "--name", self.name, PROGRAM, **variables).ok(120)

    def of(self, what: str) -> list[tuple[str, float, str]]:
        """Returns the calls of a function that were put down so far."""
        self.calls += self.queue.get_many(1000, block=False)
        return [call for call in self.calls if call[0] == what]

    def wait(self, what: str, count: int, seconds: float = 60) -> list[tuple[str, float, str]]:
        """Waits until a function has put down so many calls."""
        wait_for(f"{count} calls of {what}", lambda: len(self.of(what)) >= count, seconds, every=0.2)
        return self.of(what)

    def all_made(self, what: str) -> None:
        """Waits until each time of a function's Period of 2 s since it began has its call, and nothing else has one.

        Two times may be missing: of a machine that was too busy for some seconds.
        """

        def is_all() -> bool:
            line = self.schedules()[what]
            calls = {call for _, _, call in self.of(what)}
            times = (line["last_ms"] - line["since_ms"]) // 2000
            assert len(calls) <= (self.schedules()[what]["last_ms"] - line["since_ms"]) // 2000, self.calls
            return times - 2 <= len(calls) <= times

        wait_for(f"each time to have a call of {what}", is_all, 60, every=0.3)

    def schedules(self) -> dict[str, dict[str, Any]]:
        """Returns what `shoal schedule list` says of the app, by function."""
        return {line["function"]: line for line in self.node.json("schedule", "list") if line["app"] == self.name}


@pytest.fixture
def scheduled(sdk: Any, client: Client, node: Node, unique: str) -> Iterator[Scheduled]:
    """An app that is stopped at the end, if it was deployed."""
    one = Scheduled(sdk, client, node, unique)
    yield one
    if one.is_deployed:
        client.stop_app(unique)
    sdk.Queue.objects.delete(unique, allow_missing=True)


def test_functions_are_called_when_their_schedules_say(scheduled: Scheduled) -> None:
    """A Period of 2 s calls its function for each of its times once, from the first 2 s after the deploy on, each time as a
    call of its own, whose lines `modal app logs` has; one that fails is tried again as its retries say. A Cron of a zone
    waits for its time. `modal app list` and `shoal explain` show the next run. The same Period deployed again keeps its
    phase, another one counts anew, a rollback brings the old one back, and a stopped app is called no more."""
    begun = time.time()
    scheduled.deploy()
    deployed = time.time()
    lines = scheduled.schedules()
    assert {name: line["schedule"] for name, line in lines.items()} == {
        "tick": "Period(seconds=2)",
        "fail": "Period(seconds=2)",
        "weekly": 'Cron("0 9 * * 1", timezone="America/New_York")',
    }
    monday = datetime.fromtimestamp(lines["weekly"]["next_ms"] / 1000, ZoneInfo("America/New_York"))
    assert (monday.weekday(), monday.hour, monday.minute, monday.second) == (0, 9, 0, 0)
    assert begun < monday.timestamp() < begun + 8 * 86400
    assert monday.strftime("%Y-%m-%d 09:00:00") in lines["weekly"]["next"] and lines["weekly"]["last"] is None
    since = lines["tick"]["since_ms"]
    assert begun * 1000 <= since <= deployed * 1000

    # The app is shown with the time of its next run: one of the phase, and to come.
    asked = time.time()
    (row,) = [row for row in scheduled.client.apps() if row["description"].startswith(scheduled.name)]
    answered = time.time()
    shown = row["description"].removeprefix(f"{scheduled.name} (next run ").removesuffix(")")
    assert asked - 2 < datetime.strptime(shown, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp() < answered + 4, row
    explained = scheduled.node.shoal("explain", scheduled.name).stdout
    assert "called by Period(seconds=2): " in explained and ", next at 20" in explained, explained

    calls = scheduled.wait("tick", 4)
    assert len({call for _, _, call in calls}) == len(calls), "each time is a call of its own"
    assert min(at for _, at, _ in calls) >= since / 1000 + 2
    scheduled.all_made("tick")

    def tries() -> Counter[str]:
        return Counter(call for _, _, call in scheduled.of("fail"))

    wait_for("all tries of a call that fails", lambda: 3 in tries().values(), 60, every=0.2)
    assert max(tries().values()) == 3, tries()

    # The same period keeps its phase; no time is missed, and none is called for twice.
    scheduled.deploy()
    kept = scheduled.schedules()["tick"]
    assert kept["since_ms"] == since and (kept["next_ms"] - since) % 2000 == 0
    scheduled.wait("tick", len(scheduled.of("tick")) + 2)
    scheduled.all_made("tick")
    assert not scheduled.of("weekly")

    # Another one counts from its own deploy; what has no schedule any more is called no more.
    scheduled.deploy(seconds="3", alone="yes")
    lines = scheduled.schedules()
    assert set(lines) == {"tick"} and lines["tick"]["schedule"] == "Period(seconds=3)"
    assert lines["tick"]["since_ms"] > since and (lines["tick"]["next_ms"] - lines["tick"]["since_ms"]) % 3000 == 0
    scheduled.client.modal("app", "rollback", scheduled.name).ok(60)
    lines = scheduled.schedules()
    assert set(lines) == {"tick", "fail", "weekly"} and lines["tick"]["schedule"] == "Period(seconds=2)"
    assert lines["tick"]["since_ms"] > since, "it was away, and counts anew"
    assert any("tick was called" in line for line in scheduled.client.logs(scheduled.name))

    scheduled.client.stop_app(scheduled.name)
    assert scheduled.schedules() == {}
    count = len(scheduled.of("tick"))
    time.sleep(4.5)  # Two times of the period; nothing can be waited for.
    assert len(scheduled.of("tick")) == count


def test_only_deployed_apps_are_called(scheduled: Scheduled) -> None:
    """`modal run` of an app with schedules runs what it is told to; nothing else is called, and no schedule is left."""
    scheduled.modal("run", f"{PROGRAM}::tick", seconds="1", alone="yes").ok(120)
    assert len(scheduled.of("tick")) == 1
    assert scheduled.schedules() == {} and not [line for line in scheduled.node.json("schedule", "list") if line["app"] == ""]


WRONG = {
    'modal.Cron("0 0 30 2 *") never fires: no day of the calendar is such a day': {"cron": "0 0 30 2 *"},
    'modal.Cron("61 * * * *") cannot be understood: its minute "61" is wrong': {"cron": "61 * * * *"},
    'modal.Cron("0 9 * * 1", timezone="Mars/Base"): there is no such time zone': {"cron": "0 9 * * 1", "zone": "Mars/Base"},
    "modal.Period(): a period of zero would never pass": {"seconds": "0"},
    "modal.Period(seconds=0.25) is shorter than 1000 ms": {"seconds": "0.25"},
}


def test_what_cannot_be_a_schedule_is_refused(scheduled: Scheduled) -> None:
    """`modal deploy` of a schedule that never fires, or that nobody understands, ends with one sentence, and deploys nothing."""
    deploys = {
        sentence: scheduled.modal("deploy", "--name", scheduled.name, PROGRAM, alone="yes", **variables)
        for sentence, variables in WRONG.items()
    }
    for sentence, running in deploys.items():
        assert running.wait(100) != 0, f"it was taken: {sentence}"
        said = " ".join(running.text().replace("│", " ").split())
        assert f"Function 'tick' cannot be called by a schedule: {sentence}" in said, running.text()
        assert "Traceback" not in said
    assert scheduled.schedules() == {}


@pytest.fixture
def three(tmp_path: Path, seed: Path) -> Iterator[dict[str, Node]]:
    """A cluster of three nodes whose calls have copies; what they make of schedules is in their logs."""
    config = 'name = "{}"\nlog = "info,shoal::schedules=debug"\n[calls]\nsettle_seconds = 1\n[containers]\nzygotes = false\n'
    a = founder(tmp_path / "a", seed, config.format("a"))
    nodes = {"a": a} | {name: Node(tmp_path / name, config=config.format(name)) for name in "bc"}
    try:
        a.start()
        nodes["b"].join(a)
        nodes["c"].join(a)
        yield nodes
    finally:
        for node in nodes.values():
            if node.keeper is not None and node.keeper.poll() is None:
                node.keeper.send_signal(signal.SIGTERM)
        for node in nodes.values():
            node.stop()


def is_whole(node: Node, count: int) -> bool:
    """Says whether so many nodes vote, and all shards of calls have copies."""
    status = node.json("status")
    voters = status["consensus"]["voters"]
    settled = len(voters) == count and all(voter["answers"] and voter["behind"] < 100 for voter in voters)
    return settled and status["shards_missing_copies"] == 0


def made(nodes: Mapping[str, Node]) -> dict[int, set[str]]:
    """Returns the calls that were made for each time, by what the logs of all nodes say."""
    calls: dict[int, set[str]] = {}
    for node in nodes.values():
        text = re.sub(r"\x1b\[[0-9;]*m", "", node.log.read_text(errors="replace"))
        for due, call in re.findall(r"called by its schedule.* due=(\d+) call=(fc-\w+)", text):
            calls.setdefault(int(due), set()).add(call)
    return calls


def test_each_time_is_fired_once_when_the_leader_is_lost(three: dict[str, Node], tmp_path: Path, unique: str) -> None:
    """Of three nodes the one that leads is killed while a Period of 2 s runs. Each time has at most one call; before and after
    the change of leader none is missing; what came due meanwhile is made up for by one call, and the phase stays. Every call
    that was made runs, those of the lost node too."""
    a = three["a"]
    wait_for("three nodes that vote", lambda: is_whole(a, 3), 120, every=0.5)
    # The founder alone has all of the image: it is not the one to lose, so it must not lead.
    a.shoal("node", "demote", "a")
    wait_for("another leader", lambda: a.json("status")["leader_name"] in ("b", "c"), 60, every=0.2)
    a.shoal("node", "promote", "a")
    wait_for("three nodes that vote, with copies of calls", lambda: is_whole(a, 3), 120, every=0.5)
    leader = a.json("status")["leader_name"]
    assert leader in ("b", "c")
    lost, near, far = three[leader], a, three["c" if leader == "b" else "b"]
    client = Client(near, near.create_token(), tmp_path / "home")
    variables = {"SCHEDULES_QUEUE": unique, "SCHEDULES_ALONE": "yes"}
    client.modal("deploy", "--name", unique, PROGRAM, environment=variables).ok(120)

    def line() -> dict[str, Any]:
        return next(line for line in near.json("schedule", "list") if line["app"] == unique)

    since = line()["since_ms"]
    wait_for("three times", lambda: (line()["last_ms"] or 0) >= since + 6000, 60, every=0.3)
    lost_at = time.time() * 1000
    lost.lose()
    wait_for("another leader", lambda: far.json("status")["leader_name"] not in (None, leader), 30, every=0.1)
    led_at = time.time() * 1000
    wait_for("four times more", lambda: line()["last_ms"] >= led_at + 8000, 60, every=0.3)

    read = f"import json, modal; print(json.dumps(modal.Queue.from_name({unique!r}, create_if_missing=True).get_many(1000, block=False)))"
    seen: set[str] = set()

    def all_ran() -> bool:
        until_now = {call for calls in made(three).values() for call in calls}
        seen.update(call for _, _, call in json.loads(client.start("-c", read).ok(60).text("stdout")))
        return until_now <= seen

    wait_for("every call that was made to run", all_ran, 60, every=1)
    calls = made(three)
    client.close()
    assert all(len(one) == 1 for one in calls.values()), calls
    assert len({call for one in calls.values() for call in one}) == len(calls), calls
    assert seen <= {call for one in calls.values() for call in one}, "a call ran that was made for no time"
    due = sorted(calls)
    assert all((one - since) % 2000 == 0 for one in due) and due[0] == since + 2000, (since, due)
    gaps = [(one, other) for one, other in zip(due, due[1:], strict=False) if other - one != 2000]
    # Nothing is missing but right after the first time that came due without a leader.
    assert len(gaps) <= 1, (since, due)
    for one, other in gaps:
        assert lost_at - 500 <= one and one - 2000 <= lost_at and other <= led_at + 8000, (lost_at, led_at, gaps)


def test_what_came_due_while_a_node_was_down_is_made_up_for_once(tmp_path: Path, seed: Path, unique: str) -> None:
    """A node is stopped for more than three times of a Period of 2 s. After its start one call is made for the first time that was
    missed, none for the others, and the next comes in the old phase."""
    node = founder(tmp_path / "node", seed, 'log = "info,shoal::schedules=debug"\n[containers]\nzygotes = false\n')
    try:
        node.start()
        client = Client(node, node.create_token(), tmp_path / "home")
        client.modal("deploy", "--name", unique, PROGRAM, environment={"SCHEDULES_QUEUE": unique, "SCHEDULES_ALONE": "yes"}).ok(120)
        (line,) = node.json("schedule", "list")
        wait_for("two calls", lambda: len(made({"": node})) >= 2, 60, every=0.2)
        node.stop()
        before = sorted(made({"": node}))
        missed = before[-1] + 2000
        wait_for("three times to pass", lambda: time.time() * 1000 > missed + 6500, 30)
        node.start()
        wait_for("three calls after the start", lambda: len(made({"": node})) >= len(before) + 3, 60, every=0.2)
        after = sorted(made({"": node}))[len(before) :]
        assert after[0] == missed, (before, after)
        assert after[1] >= missed + 8000, (before, after)
        assert all((due - line["since_ms"]) % 2000 == 0 for due in after), (line, after)
        client.close()
    finally:
        node.stop()
