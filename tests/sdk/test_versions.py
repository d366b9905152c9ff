"""Clients of other versions than the one that the node's schema was made from, each in a virtual environment of its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Client, Node

pytestmark = pytest.mark.timeout(400)

# The last release of some series; the wire changed between them.
VERSIONS = ("1.1.4", "1.2.6", "1.4.3", "1.5.4")
# The last series that knows the spellings of the years before.
OLD = VERSIONS[:2]


@pytest.fixture
def other(node: Node, client: Client, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Client:
    """The client in the version that the test is for; installed once for a data folder."""
    folder: Path = node.data.parent / f"modal-{request.param}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True, timeout=120)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"modal=={request.param}"]
        subprocess.run(pip, check=True, timeout=240)
        (folder / "whole").touch()
    monkeypatch.setenv("SHOAL_CLIENT_PYTHON", str(python))
    return client


@pytest.mark.parametrize("other", VERSIONS, indirect=True)
def test_a_program_of_any_age_runs(other, request):
    """Calls, maps, spawns, generators, failures, classes, images and secrets through an older client, whose own code runs in the containers."""
    version = request.node.callspec.params["other"]
    said = other.run("versions.py").ok(300).text("stdout")
    (found,) = (line.removeprefix("FOUND ") for line in said.splitlines() if line.startswith("FOUND "))
    assert ast.literal_eval(found) == {
        "version": version,
        "remote": "said 1",
        "image": "marked\n",
        "generator": [0, 1, 2],
        "failed": "as it should",
        "async": 8,
        "map": ["said 0", "said 1", "said 2"],
        "spawn": "said 7",
        "concurrent": [0, 1, 2, 3, 4, 5],
        "class": 6,
        "instance": 11,
    }
    assert "saying 1" in said


@pytest.mark.parametrize("other", OLD, indirect=True)
def test_old_spellings_make_functions(other):
    """`@modal.web_endpoint()`, `keep_warm`, `concurrency_limit` and `container_idle_timeout` make functions that are called as ever;
    `modal.gpu.A100(count=4)` is understood, and refused with a sentence where there is no such GPU."""
    assert "PLAIN 1" in other.run("spelled.py").ok(200).text("stdout")
    refused = other.run("spelled.py", "--gpu")
    assert refused.wait(100) != 0
    said = " ".join(refused.text().split())
    assert "'large' asks for gpu=\"A100-40GB:4\", and this cluster has no GPU" in said, said
