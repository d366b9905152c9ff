"""How containers start: from a zygote where they can, and so that no program can tell."""

import os
import time

import pytest
from harness import Node, wait_for
from programs import starts

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.environ.get("SHOAL_TEST_ZYGOTES") == "off", reason="the node makes no zygotes"),
]


def explanation(node: Node, function: str) -> str:
    """What `explain` says of the first container of a function of the running app."""
    app_id = starts.app.app_id
    tasks = wait_for("a container", lambda: [t for t in node.tasks(app_id) if t["function"] == function], 60, every=0.1)
    return node.shoal("explain", tasks[0]["task_id"]).stdout


def from_zygote(node: Node, seconds: float = 120) -> None:
    """Waits until containers of the default image go on from a zygote."""

    def goes_on() -> bool:
        with starts.app.run():
            call = starts.wait.spawn(3)
            time.sleep(1)
            said = explanation(node, "wait")
            call.get()
        return "went on from its image's zygote" in said

    wait_for("a zygote of the default image", goes_on, seconds, every=1)


@pytest.fixture
def zygote(token, node):
    from_zygote(node)


def test_an_images_second_container_goes_on_from_a_zygote(zygote):
    """After an image's first use its containers start with the client loaded, and `explain` says so."""


def test_a_program_cannot_tell(zygote):
    """What a program sees of its start (arguments, path, main module, stdin, environment) is the same from a zygote and
    from an interpreter of its own."""
    with starts.app.run():
        quick = starts.look.remote()
    assert quick["environment"]["A_SECRET"] == "of this app"
    assert quick["stdin"] == "" and quick["pid"] == 1 and quick["modules"] == [] and quick["main"][2] == []
    assert quick["main"][:2] == ["__main__", "modal._container_entrypoint"]
    with starts.app.run():
        # Another seed of hashes is read when Python starts: no zygote can have it.
        plain = starts.look_with_another_seed.remote()
    for what in ("argv", "orig_argv", "path", "main", "cwd", "stdin", "pid", "threads"):
        assert quick[what] == plain[what], what
    assert "hash_randomization=0" in plain["flags"]

    differ = {"MODAL_TASK_ID", "A_SECRET", "PYTHONHASHSEED"}
    same = [{name: value for name, value in seen["environment"].items() if name not in differ} for seen in (quick, plain)]
    assert same[0] == same[1]


def test_clones_of_a_zygote_draw_numbers_of_their_own(zygote, sdk):
    """Two containers from one snapshot share neither random numbers nor those of TLS."""
    with starts.app.run(), sdk.Dict.ephemeral() as drawn:
        (one, first), (two, second) = starts.draw.map([drawn, drawn])
    assert one != two, "each had a container of its own"
    assert not set(map(str, first)) & set(map(str, second))


def test_a_sensitive_variable_means_the_plain_way(zygote, node):
    """A secret with a variable that Python reads when it starts is obeyed, and `explain` says why the start was slow."""
    hashes = set()
    for _ in range(2):
        with starts.app.run():
            hashes.add(starts.look_with_another_seed.remote()["hash"])
            said = explanation(node, "look_with_another_seed")
    assert len(hashes) == 1
    assert "without a zygote: its PYTHONHASHSEED differs" in said, said


def test_a_module_of_ones_own_wins_over_a_loaded_one(zygote, client, tmp_path):
    """A program that brings a module by the name of one that the zygote has loaded gets its own."""
    (tmp_path / "quopri.py").write_text(
        "import importlib.util, sysconfig\n"
        "spec = importlib.util.spec_from_file_location('_', sysconfig.get_path('stdlib') + '/quopri.py')\n"
        "theirs = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(theirs)\n"
        "globals().update({name: value for name, value in vars(theirs).items() if not name.startswith('__')})\n"
    )
    program = tmp_path / "own.py"
    program.write_text(
        "import modal\n"
        "app = modal.App('own')\n"
        "image = modal.Image.debian_slim().add_local_file('quopri.py', '/root/quopri.py')\n"
        "@app.function(image=image)\n"
        "def mine():\n"
        "    import quopri\n"
        "    return quopri.__file__\n"
        "@app.local_entrypoint()\n"
        "def main():\n"
        "    print('from', mine.remote())\n"
    )
    done = client.run(program, cwd=tmp_path).ok(120)
    assert "from /root/quopri.py" in done.text("stdout")
