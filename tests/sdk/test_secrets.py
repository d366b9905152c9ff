"""Secrets: they reach containers and builds, and nothing else."""

import json
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from harness import wait_for

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def hidden() -> str:
    """A value that is nowhere else on this machine."""
    return f"hidden-{uuid.uuid4().hex}"


@pytest.fixture
def named(client, sdk, unique):
    """Makes named secrets and deletes them at the end."""
    made = []

    def make(variables: dict[str, str], suffix: str = "") -> str:
        name = f"{unique}{suffix}"
        sdk.Secret.objects.create(name, variables)
        made.append(name)
        return name

    yield make
    for name in made:
        sdk.Secret.objects.delete(name, allow_missing=True)


def rows(client, *arguments):
    return json.loads(client.modal("secret", "list", "--json", *arguments).ok(60).text("stdout"))


def function_with(sdk, secrets):
    """An app with one function that tells its variables of a prefix."""
    app = sdk.App("with-secrets")

    @app.function(secrets=secrets, serialized=True)
    def tell(prefix: str, seconds: float = 0.0):
        import os
        import time

        time.sleep(seconds)
        return {name: value for name, value in os.environ.items() if name.startswith(prefix)}

    return app, tell


def test_secrets_made_in_the_program(client):
    """`Secret.from_dict` with values of every shape, `from_local_environ`, and two secrets of which the later wins."""
    out = client.run("secretive.py", environment={"HUSH_LOCAL": "from here"}).ok(120).text()
    assert all(f"{what} right" in out for what in ("dict is", "local environ is", "two are"))


def test_a_dotenv_file(sdk, tmp_path):
    """`Secret.from_dotenv` takes the file's variables as python-dotenv reads them, wherever below it one stands."""
    pytest.importorskip("dotenv", reason="python-dotenv is not installed beside the client")
    (tmp_path / ".env").write_text("HUSH_A=plain\nHUSH_B='with spaces'\n# HUSH_C=no\nexport HUSH_D=\"${HUSH_A}-d\"\nHUSH_E=\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    app, tell = function_with(sdk, [sdk.Secret.from_dotenv(below)])
    with app.run():
        assert tell.remote("HUSH_") == {"HUSH_A": "plain", "HUSH_B": "with spaces", "HUSH_D": "plain-d", "HUSH_E": ""}


def test_a_named_secret(sdk, named, unique):
    """`Secret.from_name` finds what was created; required keys that are missing are named; a missing secret too."""
    name = named({"HUSH_A": "1", "HUSH_B": "2"})
    app, tell = function_with(sdk, [sdk.Secret.from_name(name, required_keys=["HUSH_A", "HUSH_B"])])
    with app.run():
        assert tell.remote("HUSH_") == {"HUSH_A": "1", "HUSH_B": "2"}
    with pytest.raises(sdk.exception.NotFoundError, match="HUSH_Z"):
        sdk.Secret.from_name(name, required_keys=["HUSH_A", "HUSH_Z"]).hydrate()
    with pytest.raises(sdk.exception.NotFoundError, match=f"{unique}-not"):
        sdk.Secret.from_name(f"{unique}-not").hydrate()
    with pytest.raises(sdk.exception.AlreadyExistsError, match=name):
        sdk.Secret.objects.create(name, {"HUSH_A": "other"})
    sdk.Secret.objects.create(name, {"HUSH_A": "other"}, allow_existing=True)
    with app.run():
        assert tell.remote("HUSH_A") == {"HUSH_A": "1"}, "an existing secret is left as it is"


def test_secret_commands(client, sdk, unique, token):
    """`modal secret create` from arguments, JSON and over an existing one, `list` newest first, `delete`."""
    one, other = f"{unique}-1", f"{unique}-2"
    out = client.modal("secret", "create", one, "HUSH_A=a=b", "HUSH_B=").ok(60).text()
    assert one in out and "a=b" not in out
    file = client.home / "more.json"
    file.write_text(json.dumps({"HUSH_J": "json"}))
    client.modal("secret", "create", other, "--from-json", str(file)).ok(60)
    mine = [row for row in rows(client) if row["name"].startswith(unique)]
    assert [row["name"] for row in mine] == [other, one]
    assert all(row["created_at"] and row["created_by"] for row in mine)
    again = client.modal("secret", "create", one, "HUSH_A=new")
    assert again.wait(60) != 0 and one in again.text()
    client.modal("secret", "create", "--force", one, "HUSH_A=new").ok(60)
    app, tell = function_with(sdk, [sdk.Secret.from_name(one), sdk.Secret.from_name(other)])
    with app.run():
        assert tell.remote("HUSH_") == {"HUSH_A": "new", "HUSH_J": "json"}
    for name in one, other:
        client.modal("secret", "delete", "--yes", name).ok(60)
    assert not [row for row in rows(client) if row["name"].startswith(unique)]
    gone = client.modal("secret", "delete", "--yes", one)
    assert gone.wait(60) != 0 and one in gone.text()
    client.modal("secret", "delete", "--yes", "--allow-missing", one).ok(60)


def test_an_update_merges(sdk, named):
    """`Secret.update` adds and overwrites keys and keeps the others; ten at once all arrive; containers to come have them."""
    from concurrent.futures import ThreadPoolExecutor

    name = named({"HUSH_A": "1", "HUSH_B": "2"})
    secret = sdk.Secret.from_name(name)
    secret.update({"HUSH_B": "3", "HUSH_C": "4"})
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda i: sdk.Secret.from_name(name).update({f"HUSH_N{i}": str(i)}), range(10)))
    expected = {"HUSH_A": "1", "HUSH_B": "3", "HUSH_C": "4"} | {f"HUSH_N{i}": str(i) for i in range(10)}
    app, tell = function_with(sdk, [sdk.Secret.from_name(name)])
    with app.run():
        assert tell.remote("HUSH_") == expected
    info = secret.info(refresh=True)
    assert info.name == name and info.created_by and info.environment_name == "main"


def test_the_list_says_when_a_secret_was_last_used(client, sdk, named, node, unique):
    """`modal secret list` and `info()` tell when a container or a build was last started with a secret, and "-" of one that was
    only made or looked up; a restart of the node forgets none of it."""
    ran, built, made = (named({"HUSH_A": "1"}, suffix) for suffix in ("-ran", "-built", "-made"))

    def used() -> dict[str, str]:
        return {row["name"]: row["last_used_at"] for row in rows(client) if row["name"].startswith(unique)}

    assert used() == {ran: "-", built: "-", made: "-"}
    sdk.Secret.from_name(made).hydrate()
    assert sdk.Secret.from_name(ran).info(refresh=True).last_used is None
    begin = time.time()
    image = sdk.Image.debian_slim(python_version="3.11").run_commands(f"echo {unique}", secrets=[sdk.Secret.from_name(built)])
    app = sdk.App("last-used", image=image)

    @app.function(secrets=[sdk.Secret.from_name(ran)], serialized=True)
    def tell():
        import os

        return os.environ["HUSH_A"]

    with app.run():
        assert tell.remote() == "1"
    at = sdk.Secret.from_name(ran).info(refresh=True).last_used
    assert begin - 1 <= at.timestamp() <= time.time(), at
    before = used()
    assert before[made] == "-" and "-" not in (before[ran], before[built]), before
    node.stop()
    node.start()
    assert used() == before
    assert sdk.Secret.from_name(ran).info(refresh=True).last_used == at


def test_many_secrets_are_listed_in_pages(sdk, named):
    """More secrets than a page holds are all listed, each once, the newest first."""
    names = [named({"A": "1"}, f"-{i:03d}") for i in range(105)]
    found = [secret.name for secret in sdk.Secret.objects.list()]
    assert [name for name in found if name in set(names)] == names[::-1]
    assert len(sdk.Secret.objects.list(max_objects=7)) == 7


def test_bad_secrets_are_refused_without_their_values(sdk, named, hidden, unique):
    """What cannot be a variable, or is too large, is refused with the name of the variable; the value is not repeated."""
    for variables in ({"A=B": hidden}, {"A": hidden + "\0"}, {"A": hidden * 2000}):
        with pytest.raises(sdk.exception.InvalidError) as refused:
            sdk.Secret.objects.create(unique, variables)
        assert hidden not in str(refused.value) and ("A" in str(refused.value) or "bytes" in str(refused.value))
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Secret.from_name(unique).hydrate()


def test_a_deleted_secret_is_missed_by_name(sdk, client, named):
    """An app whose secret was deleted: a call that needs a new container fails with a sentence, and does not wait."""
    name = named({"HUSH_A": "1"})
    app, tell = function_with(sdk, [sdk.Secret.from_name(name)])
    with app.run():
        assert tell.remote("HUSH_") == {"HUSH_A": "1"}
        sdk.Secret.objects.delete(name)
        for row in json.loads(client.modal("container", "list", "--json").ok(60).text("stdout")):
            if row["app_id"] == app.app_id:
                client.modal("container", "stop", "--yes", row["container_id"]).wait(60)
        with pytest.raises(Exception, match="(?i)secret") as failed:
            tell.remote("HUSH_")
        assert "not found" in str(failed.value)


def test_a_build_step_has_its_secrets_and_the_image_has_not(sdk, named, hidden):
    """`run_commands(secrets=…)` sees the variable; containers of the image don't."""
    name = named({"HUSH_BUILD": hidden})
    image = sdk.Image.debian_slim(python_version="3.11").run_commands(
        "test -n \"$HUSH_BUILD\" && printf %s \"$HUSH_BUILD\" | wc -c > /seen", secrets=[sdk.Secret.from_name(name)]
    )  # fmt: skip
    app = sdk.App("build-secret", image=image)

    @app.function(serialized=True)
    def look():
        import os

        return open("/seen").read().strip(), os.environ.get("HUSH_BUILD")

    with app.run():
        assert look.remote() == (str(len(hidden)), None)


def found_in_files(value: str, *folders: Path) -> list[str]:
    """Returns the files below folders, on their own filesystems, that hold a value."""
    found = []
    for folder in folders:
        done = subprocess.run(
            ["find", str(folder), "-xdev", "-type", "f", "-newermt", f"@{time.time() - 600:.0f}", "-exec", "grep", "-laF", value, "{}", "+"],
            capture_output=True, text=True, timeout=250,
        )  # fmt: skip
        found += done.stdout.split()
    return found


def found_in_processes(value: str) -> list[str]:
    """Returns processes that show a value in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if value.encode() in file.read_bytes():
                found.append(f"{file}: {file.read_bytes()[:80]!r}")
        except OSError:
            continue
    return found


def test_values_are_nowhere_in_clear(sdk, client, node, named, hidden):
    """While a container runs with secrets, and when all is over, no file of the node and no command line shows a value."""
    name = named({"HUSH_NAMED": hidden})
    app, tell = function_with(sdk, [sdk.Secret.from_name(name), sdk.Secret.from_dict({"HUSH_DICT": f"{hidden}-too"})])
    with app.run():
        call = tell.spawn("HUSH_NO", 8)
        wait_for("the container", lambda: node.tasks(app.app_id), 60)
        end = time.monotonic() + 4
        while time.monotonic() < end:
            assert not found_in_processes(hidden)
            time.sleep(0.05)
        assert not found_in_files(hidden, node.data, Path("/run/shoal") / node.tag)
        assert call.get(timeout=120) == {}
        assert "HUSH_NAMED" not in client.logs(app.app_id)
    sdk.Secret.objects.delete(name)
    assert not found_in_files(hidden, node.data)
    assert hidden not in node.log.read_text(errors="replace")


def test_the_secret_of_an_app_ends_with_it(sdk, client):
    """A secret without a name is gone when its app is: its id is not found any more."""
    secret = sdk.Secret.from_dict({"HUSH_A": "1"})
    app, tell = function_with(sdk, [secret])
    with app.run():
        assert tell.remote("HUSH_") == {"HUSH_A": "1"}
        secret_id = secret.object_id
        assert sdk.Secret._from_id(secret_id).hydrate().object_id == secret_id
    with pytest.raises(sdk.exception.NotFoundError, match=secret_id):
        sdk.Secret._from_id(secret_id).hydrate()
