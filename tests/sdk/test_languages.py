"""The official clients for JavaScript and Go, each against what Python deployed: tests/sdk/clients has the programs.

Both say the same of the same parts, so each test is for both.
"""

import json
import subprocess
from typing import Any

import languages
import pytest
from harness import Client

pytestmark = pytest.mark.timeout(400)

LANGUAGES = {"javascript": languages.javascript, "go": languages.go}


@pytest.fixture(scope="module")
def app(node, token, tmp_path_factory):
    """The app of programs/foreign.py, with a secret of its own."""
    client, name = Client(node, token, tmp_path_factory.mktemp("foreign")), f"foreign-{token.id[-6:].lower()}"
    client.modal("secret", "create", f"{name}-secret", "A=1", "B=2").ok(60)
    client.deploy("foreign.py", name)
    yield name
    client.stop_app(name)
    client.close()


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def said(language, app, node, token, tmp_path_factory) -> dict[str, Any]:
    """What the client's program printed: an object with an answer for each of its parts."""
    command = LANGUAGES[language]()
    client = Client(node, token, tmp_path_factory.mktemp(language))
    image = next(image["image_id"] for image in node.json("image", "ls") if image["used_by"])
    done = subprocess.run(
        [*command, app, image], env=client.environment(), capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def failed(found: dict[str, Any], kind: str, *words: str) -> None:
    """Checks that an action failed with an error of a type that says some words."""
    assert found.get("error") == kind and all(word in found["says"] for word in words), found


def test_values_of_all_kinds_come_and_go_as_cbor(said, language):
    """Arguments arrive as Python's own types, and what Python returns as the language's."""
    # JavaScript has one kind of number, and one that large travels as a float.
    large = {"javascript": "float", "go": "int"}[language]
    assert said["arguments"] == {
        "kinds": ["int", "float", "str", "bool", "NoneType", "bytes", "list", "dict", "datetime", large],
        "same": True,
        "deep": True,
        "bytes": [0, 255],
        "day": "2024-02-29T12:30:15.000Z",
        "last": 2**40,
    }
    assert said["generators"] == {"items": 3}


def test_large_values_are_blobs(said):
    """3 MiB there and back; a spawn's arguments and result are blobs from 8 KiB on."""
    assert said["large"] == {"there": 5, "back": 3 << 20, "byte": 7, "spawned": 9 << 10}


def test_failures_have_their_types(said):
    """What Python raised, what CBOR cannot say, a container that died, a timeout, and wrong arguments."""
    found = said["failures"]
    failed(found["raised"], "RemoteError", "ValueError('plainly')")
    failed(found["unserializable"], "RemoteError", "SerializationError", "builtins.object as cbor")
    failed(found["died"], "RemoteError", "exit code 3")
    failed(found["overran"], "FunctionTimeoutError", "timeout")
    failed(found["spawned"], "RemoteError", "ValueError('later')")
    failed(found["wrong_arguments"], "RemoteError", "takes 0 positional arguments but 3 were given")


def test_what_is_not_there_is_not_found(said, app):
    """Apps, functions, classes, methods, queues, secrets, environments and images by wrong names and ids."""
    found = said["missing"]
    for name in ("app", "function", "class", "method", "id", "queue", "secret", "lookup", "environment", "image"):
        failed(found[name], "NotFoundError", "not found")
    failed(found["call"], "ClientError", "calls are forgotten 7 days after they ended")
    failed(said["stranger"], "ClientError", "is not known to this cluster", "shoal token create")


def test_calls_are_spawned_awaited_and_cancelled(said):
    """`get` at once, again and by id; `cancel` with and without the container."""
    found = said["calls"]
    failed(found["early"], "TimeoutError", "Timeout exceeded")
    assert found["results"] == ["waited"] * 3
    failed(found["cancelled"], "RemoteError", "cancelled")
    failed(found["terminated"], "RemoteError", "cancelled")


def test_classes_with_parameters(said):
    """Instances with and without parameters, with defaults, with keywords, spawned."""
    untyped = said["classes"].pop("untyped")
    assert "must be a string" in untyped["says"]
    assert said["classes"] == {"plain": 8, "some": "hi Ada!", "all": "HEJ ADA HEJ ADA?", "spawned": "HEJ BO HEJ BO?"}


def test_other_options_make_other_functions(said):
    """Variables and secrets of an instance's own, concurrency, batching, a region; a GPU that is not there."""
    failed(said["options"].pop("gpu"), "ClientError", "this cluster has no GPU")
    assert said["options"] == {
        "env": "from env",
        "secret": "from the secret",
        "without": None,
        "class": "of a class",
        "others": 4,
        "routed": "1",
    }


def test_the_autoscaler_and_its_figures(said):
    """Settings are changed and handed back, nonsense is refused, and the figures of a function at rest are told."""
    failed(said["scaling"].pop("refused"), "ClientError", "min_containers is 5, which is more than max_containers, 3")
    assert said["scaling"]["updated"] == {"minContainers": 0, "maxContainers": 3, "bufferContainers": 1, "scaledownWindowMs": 9000}
    assert said["scaling"]["stats"]["backlog"] == 0


def test_queues(said, language, app, sdk):
    """Items of all kinds, partitions, iteration, empty and full queues, deletion; Python takes what another language put."""
    found, items = said["queues"], [1, "two", None, {"three": [3, 3.5]}, True]
    assert found["lengths"] == [5, 1, 6]
    assert found["seen"] == found["got"] == items
    assert (found["aside"], found["cleared"]) == ("aside", 0)
    failed(found["empty"], "QueueEmptyError")
    failed(found["full"], "QueueFullError")
    failed(found["long"], "InvalidError", "64 bytes")
    failed(said["deleted"], "NotFoundError", f"'{app}-{language}-gone' not found")
    assert sdk.Queue.from_name(found["kept"]).get(timeout=10) == "for Python"


def test_secrets(said):
    """By name with the keys that it must have, and of an object."""
    assert said["secrets"]["id"] == "st-"
    failed(said["secrets"]["lacking"], "NotFoundError")
    failed(said["secrets"]["wrong"], "InvalidError", "1x")


def test_apps_environments_and_versions_are_found(said):
    """What an app has, by name and by id; environments are made, listed and deleted; a version that is not there is refused."""
    found = said["lookups"]
    failed(found.pop("twice"), "AlreadyExistsError")
    failed(found.pop("no_version"), "NotFoundError")
    assert found.pop("functions") == ["Greeter.*", "Plain.*", "counts", "describe", "fails", "overruns", "sized", "variable", "waits"]
    assert found == {
        "state": "deployed",
        "same": True,
        "by_id": "1",
        "made": "ap-",
        "listed": True,
        "environment": True,
        "web": "",
        "version": "1",
    }


def test_logs(said):
    """What a call printed: followed to its end, the last lines of its function, and from its start on."""
    assert said["logs"] == [True, True, True]


def test_metrics(said):
    """What a function did, in series."""
    assert said["metrics"] is True


def test_what_is_not_served_is_said(said):
    """Volumes, proxies and tags of images get a sentence at once."""
    for found in said["unserved"].values():
        failed(found, "ClientError", "Shoal ", "is not served")
