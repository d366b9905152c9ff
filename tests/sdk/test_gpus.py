"""`gpu=`: which GPUs of a node containers hold. The node is told to have some; what runs in the containers sees none."""

import pytest
from harness import Client, founder, wait_for

pytestmark = pytest.mark.timeout(300)

CONFIG = '[gpu]\ninventory = ["H100:2", "A100-80GB"]\n'


def test_gpus_are_held_in_the_order_of_choices_and_what_is_not_there_is_refused(seed, tmp_path):
    """The first choice that is free is taken, then the next; what waits is told, and what no node has is refused with what there is."""
    node = founder(tmp_path / "data", seed, CONFIG)
    node.start()
    client = Client(node, node.create_token(), tmp_path / "home")
    go = tmp_path / "go"
    try:
        run = client.run("gpus.py::main", environment={"GPUS_GO": str(go)})
        run.wait_line("^spawned$", 120)
        app = run.app_id()
        def held():
            return sorted(tuple(task["gpus"]) for task in node.tasks(app))

        wait_for("two containers with GPUs", lambda: held() == [(0, 1), (2,)], 60)
        wait_for("the third to wait", lambda: 'waiting for gpu="H100:2" or "A100"' in node.shoal("explain", app).stdout, 30)
        go.touch()
        assert "containers; ta-" in run.ok(120).text("stdout")
        refused = client.modal("deploy", "programs/gpus.py::never")
        assert refused.wait(60) != 0
        said = " ".join(refused.text().split())
        assert "'lacking' asks for gpu=\"H100:3\" or \"T4\", and no node of this cluster has that; there are H100:2, A100-80GB" in said, said
    finally:
        client.close()
        node.stop()
