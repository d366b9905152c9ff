"""`modal.Dict`: what a program sees of it, alone, from many threads and from containers, over restarts, and on the command line."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def named(client, sdk, unique):
    """A dict with a name, deleted at the end."""
    yield sdk.Dict.from_name(unique, create_if_missing=True)
    sdk.Dict.objects.delete(unique, allow_missing=True)


def test_a_dict_is_like_pythons(sdk):
    """Everything that `modal.Dict` can do, on an ephemeral one, with keys and values of many kinds."""
    with sdk.Dict.ephemeral() as d:
        d["a"], d[1], d[(2, "x")] = 1, None, {"deep": [b"bytes"]}
        assert (d["a"], d[1], d[(2, "x")]) == (1, None, {"deep": [b"bytes"]})
        assert d.get("b") is None and d.get("b", 7) == 7 and "b" not in d and "a" in d
        with pytest.raises(KeyError, match="b"):
            d["b"]
        with pytest.raises(KeyError, match="b"):
            d.pop("b")
        assert d.pop("b", None) is None and d.len() == 3
        d.update({"a": 2, "c": ""}, e=5)
        assert sorted(map(str, d.keys())) == sorted(map(str, ["a", 1, (2, "x"), "c", "e"]))
        assert dict(d.items())["e"] == 5 and "" in list(d.values())
        assert d.put("a", 3, skip_if_exists=True) is False and d["a"] == 2
        assert d.put("n", 3, skip_if_exists=True) is True and d.put("n", 4) is True and d["n"] == 4
        del d["n"]
        assert d.pop("a") == 2 and "a" not in d and d.put("a", 9, skip_if_exists=True) is True
        d.clear()
        assert d.len() == 0 and list(d.items()) == []
        d.update({number: "x" * 100 for number in range(2500)})
        assert d.len() == 2500 and sorted(d.keys()) == list(range(2500)), "pages of a long dict"


def test_large_values_and_ones_that_are_too_large(sdk):
    """Values of 1 byte to 100 MiB come back as they were, also beside others in one update; a larger one is refused by type."""
    with sdk.Dict.ephemeral() as d:
        values = {str(size): bytes([size % 251]) * size for size in (1, 1 << 20, (1 << 20) + 1, 5 << 20)}
        d.update(values)
        assert dict(d.items()) == values
        whole = b"\x07" * ((100 << 20) - 200)
        d["whole"] = whole
        assert d["whole"] == whole and d.pop("whole") == whole and "whole" not in d
        with pytest.raises(sdk.exception.RequestSizeError):
            d["more"] = b"\x07" * (100 << 20)
        assert d[str(5 << 20)] == values[str(5 << 20)]


def test_of_a_hundred_that_race_one_wins(sdk, unique):
    """A hundred threads, and a hundred inputs of containers, put the same keys if they are absent: for each one sees True, and
    its value is the one."""
    app = sdk.App(unique)

    @app.function(serialized=True, max_containers=3)
    @sdk.concurrent(max_inputs=40)
    def race(d, key: str, number: int):
        return d.put(key, number, skip_if_exists=True)

    with sdk.Dict.ephemeral() as d, ThreadPoolExecutor(100) as pool:
        for key in ("one", "two", "three"):
            won = list(pool.map(lambda number: d.put(key, number, skip_if_exists=True), range(100)))
            assert won.count(True) == 1 and d[key] == won.index(True)
        with app.run():
            won = list(race.starmap((d, "far", number) for number in range(100)))
        assert won.count(True) == 1 and d["far"] == won.index(True)


def test_what_was_put_is_there_after_a_crash(node, sdk, named):
    """The node is killed in the midst of puts: all that were acknowledged are there, what was removed stays away."""
    named.update({f"kept-{n}": n for n in range(50)})
    for n in range(0, 50, 2):
        del named[f"kept-{n}"]
    named["large"] = b"x" * (3 << 20)
    with ThreadPoolExecutor(2) as pool:
        putting = pool.submit(lambda: [named.put("counter", n) and n for n in range(60)])
        old = node.kill_child()
        node.wait_reborn(old)
        assert putting.result(timeout=120)[-1] == 59
    assert named["counter"] == 59 and named["large"] == b"x" * (3 << 20)
    assert {k: v for k, v in named.items() if str(k).startswith("kept")} == {f"kept-{n}": n for n in range(1, 50, 2)}


def test_names_environments_and_the_end_of_a_dict(client, sdk, unique):
    """A name is one dict for all, another one in another environment; what is deleted is gone for those that held it too."""
    with pytest.raises(sdk.exception.NotFoundError, match=unique):
        sdk.Dict.from_name(unique).hydrate()
    sdk.Dict.objects.create(unique)
    with pytest.raises(sdk.exception.AlreadyExistsError, match=unique):
        sdk.Dict.objects.create(unique)
    one, same = sdk.Dict.from_name(unique), sdk.Dict.from_name(unique, create_if_missing=True)
    one["a"] = 1
    assert same["a"] == 1 and sdk.Dict.from_id(one.object_id)["a"] == 1 and one.info().name == unique
    assert unique in {d.name for d in sdk.Dict.objects.list()}
    client.modal("environment", "create", unique).ok(60)
    other = sdk.Dict.from_name(unique, environment_name=unique, create_if_missing=True)
    assert other.get("a") is None
    other["b"] = 1
    client.modal("environment", "delete", "--yes", unique).ok(60)
    with pytest.raises(sdk.exception.NotFoundError):
        other["b"]
    sdk.Dict.objects.delete(unique)
    for gone in (lambda: one["a"], lambda: same.put("a", 2), lambda: one.len(), lambda: list(same.keys())):
        with pytest.raises(sdk.exception.NotFoundError, match=one.object_id):
            gone()
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Dict.objects.delete(unique)
    sdk.Dict.objects.delete(unique, allow_missing=True)
    again = sdk.Dict.from_name(unique, create_if_missing=True)
    assert again.len() == 0
    sdk.Dict.objects.delete(unique)


def test_the_command_line(client, sdk, unique):
    """`modal dict create|list|get|items|clear|delete`."""
    client.modal("dict", "create", unique).ok(60)
    sdk.Dict.from_name(unique)["key"] = "value 17"
    assert unique in [row["name"] for row in json.loads(client.modal("dict", "list", "--json").ok(60).text("stdout"))]
    assert "value 17" in client.modal("dict", "get", unique, "key").ok(60).text()
    assert "value 17" in client.modal("dict", "items", unique).ok(60).text()
    client.modal("dict", "clear", "--yes", unique).ok(60)
    assert sdk.Dict.from_name(unique).len() == 0
    client.modal("dict", "delete", "--yes", unique).ok(60)
    missing = client.modal("dict", "get", unique, "key")
    assert missing.wait(60) != 0 and unique in missing.text() and "not found" in missing.text()


def test_an_operation_takes_milliseconds(sdk):
    """A put and a get are a few round trips and one sync of the disk: neither waits for somebody's next look. Single ones may be held up
    by what else the machine does."""
    with sdk.Dict.ephemeral() as d:
        took = []
        for number in range(60):
            began = time.monotonic()
            d["n"] = number
            assert d["n"] == number
            took.append(time.monotonic() - began)
        assert sorted(took)[30] < 0.5, took
