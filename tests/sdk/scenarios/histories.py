"""Whether what clients saw of named things can have happened one after the other: a check for linearizability.

A history is the operations on one name, each with when it was asked and when it was answered. It is good if there is a moment for
each operation between the two, so that every answer is right in the order of these moments. The search is that of Wing and Gong:
take any operation that began before all others that are left have ended, see whether its answer fits, go on; where nothing fits,
go back. What was seen already, the same operations done with the same thing there, is not looked at twice (Lowe).

The rules of a name, which at any time stands for one id or for nothing:

make    gives an id if the name stood for nothing; else "exists"
ensure  gives the id for which the name stands, or a new one
look    gives that id, or None
delete  of an id gives "deleted" if the name stands for it; else "missing", or "deleted" too where the client tried it again: a node
        cannot know whether the first try did it

An operation whose answer was lost (`answer` is LOST) may have happened at any moment from its begin on, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

LOST = "lost"
FOREVER = float("inf")


@dataclass(frozen=True)
class Operation:
    """One operation on a name; times are of one clock. `id` is what a delete named."""

    kind: str
    begin: float
    end: float
    answer: str | None
    id: str | None = None

    @property
    def lost(self) -> bool:
        return self.answer == LOST


# What a name stands for: an id, nothing, or what a lost operation made, whose id nobody was told yet: ("unseen", which).
Thing = str | None | tuple[str, int]


def after(operation: Operation, number: int, thing: Thing) -> Iterator[Thing]:
    """Gives what the name may stand for after an operation, for each way in which its answer fits what it stood for."""
    unseen = isinstance(thing, tuple)
    match operation.kind, operation.answer:
        case "make", "exists":
            if thing is not None:
                yield thing
        case ("make" | "ensure"), answer if answer == LOST:
            if thing is None:
                yield "unseen", number
        case "make", answer:
            if thing is None:
                yield answer
        case "ensure", answer:
            if thing is None or thing == answer or unseen:
                yield answer
        case "look", None:
            if thing is None:
                yield None
        case "look", answer:
            if thing == answer or unseen:
                yield answer
        case "delete", "missing":
            if thing != operation.id:
                yield thing
        case "delete", "deleted" if thing != operation.id and not unseen:
            yield thing
        case "delete", _:
            # Deleted, or lost: then only what changes something is of interest. Of what was unseen the id is known now.
            if thing == operation.id or unseen:
                yield None
        case kind, answer:
            raise ValueError(f"a {kind} cannot be answered {answer!r}")


def contradiction(history: Sequence[Operation]) -> str | None:
    """Returns None for a good history; else in words how far it can be understood, and what fits nowhere then."""
    told = [replace(one, end=FOREVER) if one.lost else one for one in history if not (one.lost and one.kind == "look")]
    operations = sorted(told, key=lambda one: (one.begin, one.end))
    needed = sum(1 << number for number, one in enumerate(operations) if not one.lost)
    seen: set[tuple[int, Thing]] = set()
    best: tuple[int, int, Thing] = (0, 0, None)
    stack: list[tuple[int, Thing]] = [(0, None)]
    while stack:
        done, thing = stack.pop()
        if done & needed == needed:
            return None
        if (done, thing) in seen:
            continue
        seen.add((done, thing))
        if (count := (done & needed).bit_count()) >= best[0]:
            best = count, done, thing
        left = [number for number in range(len(operations)) if not done >> number & 1]
        first_end = min(operations[number].end for number in left)
        for number in reversed(left):
            if operations[number].begin <= first_end:
                stack.extend((done | 1 << number, then) for then in after(operations[number], number, thing))
    count, done, thing = best
    left = [one for number, one in enumerate(operations) if not done >> number & 1]
    first_end = min(one.end for one in left)
    stuck = "\n".join(f"  {one}" for one in left if one.begin <= first_end)
    ordered = f"{count} of {needed.bit_count()} operations have an order, after which the name stands for {thing}"
    return f"{ordered}; none of these fits then:\n{stuck}"
