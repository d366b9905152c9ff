"""What a decorator says of regions, preemption and disk is held against what nodes are and have."""

import re

import pytest

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def label(node):
    """Labels the node: label("region=eu"); all such labels are gone afterwards."""
    name = node.json("status")["node"]
    yield lambda *labels: node.shoal("node", "label", name, *labels)
    node.shoal("node", "label", name, "region=", "preemptible=")


def placed(client, seconds: float = 90, **environment: str):
    running = client.run("placed.py", environment=environment)
    return running.wait(seconds), running.text()


def test_functions_run_where_labels_let_them(client, label):
    """Without such labels a region means nothing, and a warning says so; with them, one that no node has is refused at once, in words."""
    code, said = placed(client, PLACED_REGION="eu")
    assert code == 0 and "placed" in said
    assert "asks for region eu, which means nothing here" in said
    label("region=us-east", "preemptible=true")
    code, said = placed(client, PLACED_REGION="us")
    assert code == 0 and "means nothing" not in said
    code, said = placed(client, PLACED_REGION="eu")
    assert code != 0 and "function 'where' needs region eu, and no node is that: nodes are labelled region us-east" in said
    assert "shoal node label" in said
    code, said = placed(client, PLACED_FIRM="yes")
    assert code != 0 and "needs a node that is not preemptible" in said


def test_disk_is_set_aside_and_a_container_takes_no_more(client):
    """`ephemeral_disk` bounds what a container writes; more than any node has is refused at once, with the most that there is."""
    run = client.run("placed.py", environment={"PLACED_DISK": "64"}).ok(120)
    assert "with less: wrote all with more: No space left on device" in run.text("stdout")
    code, said = placed(client, PLACED_DISK=str(1 << 30))
    said = " ".join(said.split())
    assert code != 0 and "function 'fill' asks for ephemeral_disk=1073741824, in MiB, and no node" in said, said
    assert re.search(r"[1-9][0-9]* is the most that could be had", said), said
