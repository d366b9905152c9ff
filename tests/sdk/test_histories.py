"""The check of histories is right about such as are known to be good or bad. Nothing runs here."""

import random

import pytest
from scenarios.histories import LOST, Operation, contradiction


def op(kind: str, begin: float, end: float, answer: str | None, id: str | None = None) -> Operation:
    return Operation(kind, begin, end, answer, id)


GOOD = {
    "in turn": [op("make", 0, 1, "a"), op("look", 2, 3, "a"), op("delete", 4, 5, "deleted", "a"), op("look", 6, 7, None)],
    "at once, in some order": [op("make", 0, 9, "a"), op("look", 1, 2, None), op("look", 3, 4, "a"), op("make", 3, 8, "exists")],
    "two makers, and one is refused": [op("make", 0, 5, "a"), op("make", 0, 5, "exists")],
    "a new one after the old one": [op("make", 0, 1, "a"), op("delete", 2, 9, "deleted", "a"), op("make", 3, 4, "b"), op("look", 5, 6, "b")],
    "what was lost happened": [op("make", 0, 1, LOST), op("look", 2, 3, None), op("look", 5, 6, "a"), op("look", 7, 8, "a")],
    "what was lost did not happen": [op("make", 0, 1, LOST), op("make", 2, 3, "b"), op("look", 4, 5, "b")],
    "a lost delete": [op("make", 0, 1, "a"), op("delete", 2, 3, LOST, "a"), op("look", 4, 5, "a"), op("look", 6, 7, None)],
    # The second was tried again, and the first of its tries may have arrived.
    "deleted twice": [op("make", 0, 1, "a"), op("delete", 2, 6, "deleted", "a"), op("delete", 3, 7, "deleted", "a")],
    "ensured twice": [op("ensure", 0, 1, "a"), op("ensure", 0, 2, "a"), op("delete", 3, 4, "missing", "z")],
}
BAD = {
    "an old name after its end": [op("make", 0, 1, "a"), op("delete", 2, 3, "deleted", "a"), op("look", 4, 5, "a")],
    "nothing, after it was made": [op("make", 0, 1, "a"), op("look", 2, 3, None)],
    "back and forth": [op("make", 0, 9, "a"), op("look", 1, 2, "a"), op("look", 3, 4, None)],
    "two makers, and both made it": [op("make", 0, 5, "a"), op("make", 0, 5, "b")],
    "refused, and never there": [op("make", 0, 1, "exists"), op("look", 2, 3, None)],
    "one lost make is two": [op("make", 0, 1, LOST), op("look", 2, 3, "a"), op("look", 4, 5, "b")],
    "a lost delete that is undone": [op("make", 0, 1, "a"), op("delete", 2, 3, LOST, "a"), op("look", 4, 5, None), op("look", 6, 7, "a")],
    "ensured as two": [op("ensure", 0, 1, "a"), op("ensure", 2, 3, "b")],
    "missing, though it is there": [op("make", 0, 1, "a"), op("delete", 2, 3, "missing", "a")],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_have_happened_is_accepted(name):
    """Each history has an order in which all its answers are right, though it may not be that of its lines."""
    assert contradiction(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_have_happened_is_found(name):
    """Each history has no such order, and what fits nowhere is shown."""
    assert "none of these fits" in str(contradiction(BAD[name]))


def played(seed: int, stale: bool) -> list[Operation]:
    """Returns what four clients see of one name that is kept right, but for look-ups of an older state if `stale`."""
    drawn, now, thing, before, made, history = random.Random(seed), 0.0, None, None, 0, []
    for _ in range(300):
        now += 1
        # Each happens at `now` and may have begun before and end after what stands beside it.
        begin, end = now - drawn.random() * 3, now + drawn.random() * 3
        kind = drawn.choice(["make", "ensure", "look", "look", "delete"])
        asked = drawn.choice([thing or "none", f"{made}"]) if kind == "delete" else None
        answer, then = None, thing
        if kind in ("make", "ensure") and thing is None:
            made += 1
            answer = then = f"{made}"
        elif kind == "make":
            answer = "exists"
        elif kind == "delete":
            answer = "deleted" if asked == thing else "missing"
            then = None if answer == "deleted" else thing
        else:
            answer = thing
        if then != thing:
            before = thing
        # What was lost may still happen before the last look, and excuse it.
        lost = not stale and drawn.random() < 0.03
        history.append(op(kind, begin, end, LOST if lost and kind != "look" else answer, asked))
        thing = then
    if stale:
        history += [op("look", now + 10, now + 11, thing), op("look", now + 12, now + 13, before)]
    return history


@pytest.mark.parametrize("seed", range(40))
def test_long_histories_are_told_apart(seed):
    """A name that is kept right gives good histories, with lost answers among them; one late look at an older state spoils them."""
    assert contradiction(played(seed, stale=False)) is None
    assert contradiction(played(seed, stale=True)) is not None
