"""Clustered functions: `modal.clustered`, with containers of one node."""

import pytest
from harness import wait_until_none

pytestmark = pytest.mark.timeout(300)


def test_a_gang_meets_and_shares_each_input_and_its_end(node, client, no_leftovers):
    """The containers of a gang reach each other by addresses of both kinds, each input comes to all of them, and rank 0 answers.

    That another one fails or dies is the input's failure; one that is stopped takes the others along, and the input is tried again."""
    running = client.run("gangs.py::main")
    stopped = running.wait_line(r"^stop (ta-\S+)$", 200)
    task = stopped.text.split()[1]
    client.modal("container", "stop", "--yes", task).ok(60)
    said = running.ok(120).text("stdout")
    assert said.count("\nmet ") + said.startswith("met ") == 2
    lines = {line.split(":")[0]: line for line in said.splitlines()}
    assert lines["stumble failed"].endswith("ValueError rank 1 stumbled")
    assert "rank 1: the container ended while it worked" in lines["die failed"]
    assert lines["both failed"].endswith("ValueError rank 0 has its own words")
    assert lines["fine again"].endswith("was fine")
    assert lines["after the stop"] == "after the stop: again"
    wait_until_none("tasks", node.tasks, 60, every=0.2)


def test_a_gang_that_never_fits_is_refused_at_once(client):
    """What no nodes could hold is refused at the deploy, with what there is."""
    running = client.modal("deploy", "programs/gangs.py::too_large", environment={"GANG_CPU": "1.5"})
    assert running.wait(60) != 0
    said = " ".join(running.text().split())
    assert "function 'never' can never run here: 2 containers, each 1.5 cores" in said, said
    assert "have room for 1 of them, even when empty" in said, said
