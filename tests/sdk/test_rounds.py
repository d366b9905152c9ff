"""`kill -9` of the node at random moments under load, again and again. What must hold has names:

accepted_survives       a call that was accepted has its result in the end
one_outcome             who asks twice, in whatever way, gets the same result
client_never_sees_error whoever waits gets a result, not an error
no_leftovers            afterwards the machine has what it had before
"""

import random
import threading
import time

import pytest
from harness import SANDBOXES_AHEAD, Machine, wait_for, wait_until_none

# Fifty in a full run: as many as are promised.
ROUNDS, ROUNDS_FULL = 6, 50
# How long after all kills the last result may take, in seconds.
PATIENCE = 300


class Load:
    """Clients that never stop asking, each in a thread of its own, and what they saw."""

    def __init__(self, modal, app: str):
        self.work = modal.Function.from_name(app, "work")
        self.count = modal.Function.from_name(app, "count")
        self.ends = threading.Event()
        self.errors: list[str] = []
        self.done: dict[str, int] = {}
        self.spawned: list[tuple[int, object]] = []
        self.kinds = {"remote": self.remote, "map": self.map, "generator": self.generator, "spawn": self.spawn}
        self.threads = [threading.Thread(target=self.repeat, args=kind, daemon=True) for kind in self.kinds.items()]

    def repeat(self, kind: str, once) -> None:
        turn = 0
        while not self.ends.is_set():
            try:
                once(turn)
                self.done[kind] = self.done.get(kind, 0) + 1
            except Exception as error:  # Whatever it is, a client must not see it.
                self.errors.append(f"{kind} {turn}: {type(error).__name__}: {error}")
            turn += 1
            time.sleep(0.05)

    def remote(self, turn: int) -> None:
        square, _ = self.work.remote(turn, 0.1)
        assert square == turn * turn

    def map(self, turn: int) -> None:
        assert [square for square, _ in self.work.map(range(6))] == [x * x for x in range(6)]

    def generator(self, turn: int) -> None:
        got = list(self.count.remote_gen(10))
        # What an attempt gave before it was lost comes again with the next one.
        assert got[-1] == 9 and set(got) == set(range(10)), got

    def spawn(self, turn: int) -> None:
        self.spawned.append((turn, self.work.spawn(turn, 0.05)))
        time.sleep(0.2)

    def all_went_on(self, since: dict[str, int]) -> bool:
        """Whether each client has got something done."""
        return all(self.done.get(kind, 0) > since.get(kind, 0) for kind in self.kinds)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.ends.set()
        for thread in self.threads:
            thread.join(PATIENCE)


def is_another(node, old: int) -> bool:
    """Whether the keeper has started the node anew."""
    try:
        return node.child() != old
    except AssertionError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_under_load(deployed, node, sdk, unique, full):
    """Every round kills the node at a random moment: accepted_survives, one_outcome, client_never_sees_error, no_leftovers."""
    deployed("rounds.py", unique)
    wait_until_none("tasks of earlier tests", node.tasks, 60, every=0.2)
    wait_for("the sandboxes that the node makes ahead", lambda: len(node.sandboxes()) == SANDBOXES_AHEAD, 60, every=0.2)
    before = Machine.now(node)
    seed = random.randrange(1 << 32)
    rounds = ROUNDS_FULL if full else ROUNDS
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Load(sdk, unique) as load:
        for _ in range(rounds):
            time.sleep(moments.choice([0.0, 0.3, 1.0, 2.0, 4.0]) * moments.random() * 2)
            old = node.kill_child()
            if moments.random() < 0.3:
                # And the next one while it starts. There is no third: a client asks four times and gives up.
                wait_for("another process", lambda old=old: is_another(node, old), 60)
                time.sleep(moments.random())
                old = node.kill_child()
            node.wait_reborn(old)
            done = dict(load.done)
            wait_for("everybody's work to go on", lambda done=done: load.errors or load.all_went_on(done), PATIENCE)
    assert not [thread for thread in load.threads if thread.is_alive()], "client_never_sees_error: somebody still waits"
    assert load.errors == [], f"client_never_sees_error, seed {seed}"

    first = {x: call.get(timeout=PATIENCE) for x, call in load.spawned}
    assert {x: square for x, (square, _) in first.items()} == {x: x * x for x, _ in load.spawned}, f"accepted_survives, seed {seed}"
    again = {x: call.get(timeout=60) for x, call in load.spawned}
    found = {x: sdk.FunctionCall.from_id(call.object_id).get(timeout=60) for x, call in load.spawned}
    assert first == again == found, f"one_outcome, seed {seed}"

    wait_until_none("tasks of the app", node.tasks, 120, every=0.2)
    wait_for("the sandboxes that the node makes ahead", lambda: len(node.sandboxes()) == SANDBOXES_AHEAD, 60, every=0.2)
    wait_until_none("no_leftovers", lambda: Machine.now(node).more_than(before), 60, every=0.2)
    print(f"{load.done} in {rounds} rounds")


@pytest.mark.timeout(300)
def test_a_half_built_image_is_built_on(client, node, unique):
    """A client that waits for a build while the node is killed gets its image; the steps that were done are not run again."""
    running = client.run("slow_build.py", environment={"MARK": unique})
    running.wait_line(rf"step 3 of {unique}", 120)
    node.wait_reborn(node.kill_child())
    running.ok(240)
    assert f"read ['first', 'of', '{unique}', 'second']" in running.text("stdout")
