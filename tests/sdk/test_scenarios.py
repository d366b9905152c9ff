"""A cluster of three whose machines and wires fail under load: nothing that was accepted is lost, and clients do not notice.

scenarios/world.py names what must hold. What is not short is played in a full run; by hand: scripts/scenarios.
"""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import shoal_binary, worker
from scenarios.__main__ import play
from scenarios.cluster import CONFIG, Cluster, make_seed
from scenarios.faults import SCENARIOS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# What is drawn in a scenario; a failure prints it besides.
SEED = int(os.environ.get("SHOAL_TEST_SEED", "1"))
# Played in every run; the others in a full one.
SHORT = [name for name, one in SCENARIOS.items() if one.short]
LONG = [name for name, one in SCENARIOS.items() if not one.short and name != "upgrade" and not one.nodes]


@pytest.fixture(scope="module")
def fleet(module_folder: Path, seed: Path) -> Iterator[tuple[Cluster, str]]:
    """A cluster of three with an app, one for all scenarios but those that need another."""
    yield from made(module_folder, seed, None)


def made(folder: Path, seed: Path, binary: Path | None, nodes: int = 3, config: str = CONFIG, containers: int = 0) -> Iterator[tuple[Cluster, str]]:
    cluster, app = Cluster(folder, seed, worker(), binary, config), f"fleet-{uuid.uuid4().hex[:6]}"
    try:
        cluster.grow(nodes)
        cluster.deploy(app, containers)
        yield cluster, app
    finally:
        cluster.close()


@pytest.mark.parametrize("name", SHORT)
def test_a_fault_under_load_costs_nothing_that_was_accepted(fleet, name):
    """Each scenario in turn, on one cluster, which is whole again after each."""
    cluster, app = fleet
    assert not play(cluster, app, name, SEED).broken


@pytest.mark.parametrize("name", LONG)
def test_longer_faults_cost_nothing_either(fleet, name, full):
    """The same of those that take longer."""
    if not full:
        pytest.skip("only in a full run (--full)")
    cluster, app = fleet
    assert not play(cluster, app, name, SEED).broken


@pytest.mark.timeout(2400)
def test_four_of_twenty_nodes_are_lost_in_the_midst_of_a_map(tmp_path, seed, full):
    """The leader and three that follow are lost at once: all that was accepted has its one outcome, another node votes, and they follow again."""
    if not full:
        pytest.skip("only in a full run (--full)")
    one = SCENARIOS["twenty"]
    for cluster, app in made(tmp_path, seed, None, one.nodes, one.config, one.containers):
        assert not play(cluster, app, "twenty", SEED).broken


def test_nodes_are_upgraded_one_by_one_under_load(tmp_path):
    """A cluster of an older release becomes one of this release node by node, and reads what the older one wrote."""
    old = os.environ.get("SHOAL_OLD_BIN")
    if not old:
        pytest.skip("SHOAL_OLD_BIN names no binary of an older release")
    make_seed(tmp_path / "seed", Path(old))
    for cluster, app in made(tmp_path, tmp_path / "seed", Path(old)):
        assert not play(cluster, app, "upgrade", SEED, shoal_binary()).broken
