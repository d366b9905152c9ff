"""Functions with a routing region: clients call them by attempts, at the door that the node names."""

import pytest
from programs import routed

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def running(token):
    """The app of programs/routed.py for all tests of this file."""
    with routed.app.run() as app:
        yield app


@pytest.fixture
def attempts(monkeypatch) -> list[str]:
    """What was called by attempts since the test began: the client's own ways there, noted."""
    from modal import _functions

    noted: list[str] = []
    create, run_map = _functions._InputPlaneInvocation.create, _functions._map_invocation_inputplane

    async def noted_create(*args, **kwargs):
        noted.append("attempt")
        return await create(*args, **kwargs)

    def noted_map(*args, **kwargs):
        noted.append("map")
        return run_map(*args, **kwargs)

    monkeypatch.setattr(_functions._InputPlaneInvocation, "create", staticmethod(noted_create))
    monkeypatch.setattr(_functions, "_map_invocation_inputplane", noted_map)
    return noted


def test_calls(running, attempts):
    """`remote` with its result, its exception and arguments of 3 MiB, methods of instances, and a generator, each by an attempt."""
    assert routed.double.remote(4) == 8
    with pytest.raises(ValueError, match="-1 is negative"):
        routed.double.remote(-1)
    with pytest.raises(TypeError, match="unexpected keyword"):
        routed.double.remote(x=1, y=bytes(3 << 20))
    assert routed.Adder().add.remote(4) == 5 and routed.Adder(by=10).add.remote(4) == 14
    assert list(routed.counts.remote_gen(20)) == list(range(20))
    assert attempts == ["attempt"] * 6


def test_maps(running, attempts):
    """A map of 600 in order, and one some of whose inputs fail."""
    assert list(routed.double.map(range(600))) == list(range(0, 1200, 2))
    found = list(routed.double.map(range(-2, 3), return_exceptions=True))
    assert [str(one) for one in found] == ["-2 is negative", "-1 is negative", "0", "2", "4"]
    assert attempts == ["map"] * 2


def test_retries_are_the_nodes(running, attempts):
    """A function's own retries are done by the node, within one attempt, and within a map."""
    assert routed.eventually.remote(7) == 7
    assert list(routed.eventually.map([8, 9])) == [8, 9]
    assert attempts == ["attempt", "map"]


def test_spawns_and_containers_go_the_plain_way(running, attempts):
    """`spawn` is a call as ever, and a container calls through its own channel."""
    assert routed.double.spawn(5).get(timeout=60) == 10
    assert routed.through.remote(3) == 6 + 20
    assert attempts == []
