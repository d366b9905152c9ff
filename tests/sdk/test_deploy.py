"""Deployed apps: versions and their history, the way back, tags, look-ups, and the commands that show and stop them."""

import json

import pytest
from harness import PROGRAMS, wait_for

pytestmark = pytest.mark.timeout(300)

TELLS = str(PROGRAMS / "tells.py")


@pytest.fixture
def deploy(client, unique):
    """Deploys tells.py under a name of its own as a version, and stops it at the end."""

    def one(version, *arguments, **variables):
        return client.modal(
            "deploy", "--name", unique, *arguments, TELLS, environment={"TELLS_VERSION": version, **variables}
        ).ok(120)  # fmt: skip

    yield one
    client.stop_app(unique)


def history(client, name):
    return json.loads(client.modal("app", "history", name, "--json").ok(60).text("stdout"))


def test_history_tells_of_each_deployment(client, deploy, unique, token):
    """`modal app history` has a line for each deploy, the newest first, with tag, client and who did it. Of a name that is written wrongly
    the command says which may have been meant."""
    deploy("1", "--tag", "first")
    deploy("2", "--tag", "second.2")
    rows = history(client, unique)
    assert [row["version"] for row in rows] == ["v2", "v1"]
    assert [row["tag"] for row in rows] == ["second.2", "first"]
    assert all(row["client"] == "1.6.4" and row["time_deployed"] and row["deployed_by"] for row in rows)
    for command in (["app", "history", unique[:-1]], ["function", "stats", f"{unique}/verison"]):
        wrong = client.modal(*command)
        assert wrong.wait(60) != 0 and (unique in wrong.text() if command[0] == "app" else f"{unique}/version" in wrong.text()), wrong.text()


def test_rollback_brings_an_old_version_back(client, deploy, sdk, unique):
    """`modal app rollback` makes the version before, or one that is named, the newest, with its code; history says so."""
    version = sdk.Function.from_name(unique, "version")
    for number in "1", "2", "3":
        deploy(number)
        wait_for(f"version {number} to answer", lambda number=number: version.remote() == number, 30)
    old = sdk.Function.from_name(unique, "version", version=1)
    assert (old.remote(), version.remote()) == ("1", "3"), "a version that is named is called, and the newest goes on"
    with pytest.raises(sdk.exception.NotFoundError, match="has no version 9: its newest is 3"):
        sdk.Function.from_name(unique, "version", version=9).hydrate()
    client.modal("app", "rollback", unique).ok(60)
    wait_for("version 2 to answer again", lambda: version.remote() == "2", 30)
    client.modal("app", "rollback", unique, "v1", "--strategy", "recreate").ok(90)
    assert version.remote() == "1", "with the strategy recreate no old container is left"
    assert [row["version"] for row in history(client, unique)] == ["v5", "v4", "v3", "v2", "v1"]
    deploy("6")
    wait_for("a new deploy to answer", lambda: version.remote() == "6", 30)


def test_instances_follow_their_class(client, deploy, sdk, unique):
    """An instance that was made before a deploy is one of the new version after it; when that has no such class, its call says so.
    One of a version that is named stays of that version."""
    deploy("1")
    teller = sdk.Cls.from_name(unique, "Teller")(name="Ann")
    assert teller.version.remote() == "1 Ann"
    deploy("2")
    wait_for("version 2 to answer", lambda: teller.version.remote() == "2 Ann", 30)
    assert sdk.Cls.from_name(unique, "Teller", version=1)(name="Bo").version.remote() == "1 Bo"
    deploy("without a class")
    with pytest.raises(sdk.exception.NotFoundError, match="no class 'Teller' any more: its version 3"):
        teller.version.remote()


def test_rollback_says_what_cannot_be(client, deploy, unique):
    """There is nothing before the first version, and no version that never was; an app that is not deployed cannot go back."""
    deploy("1")
    none = client.modal("app", "rollback", unique)
    assert none.wait(60) != 0 and "first version" in none.text()
    never = client.modal("app", "rollback", unique, "v7")
    assert never.wait(60) != 0 and "no version 7" in never.text() and "v1" in never.text()
    client.stop_app(unique)
    stopped = client.modal("app", "rollback", unique)
    assert stopped.wait(60) != 0 and "is not deployed" in stopped.text()


def test_rollover_gives_fresh_containers(client, deploy, node, sdk, unique):
    """`modal app rollover` replaces containers and changes nothing else; it is a version of its own."""
    deploy("1")
    version = sdk.Function.from_name(unique, "version")
    assert version.remote() == "1"
    app_id = sdk.App.lookup(unique).app_id
    before = {task["task_id"] for task in node.tasks(app_id)}
    assert before
    client.modal("app", "rollover", unique, "--strategy", "recreate").ok(90)
    assert version.remote() == "1"
    assert before.isdisjoint(task["task_id"] for task in node.tasks(app_id))
    assert [row["version"] for row in history(client, unique)] == ["v2", "v1"]


def test_a_deploy_that_fails_half_way_changes_nothing(client, deploy, sdk, unique, tmp_path):
    """One function of the new version cannot be made: the app goes on as it was, the functions that could be made too."""
    deploy("1")
    version = sdk.Function.from_name(unique, "version")
    assert version.remote() == "1"
    program = tmp_path / "tells.py"
    text = (PROGRAMS / "tells.py").read_text()
    program.write_text(
        text + "\n\n@app.function(secrets=[modal.Secret.from_name('no-such-secret-" + unique + "')])\ndef more():\n    pass\n"
    )
    failed = client.modal("deploy", "--name", unique, str(program), environment={"TELLS_VERSION": "2"})
    assert failed.wait(120) != 0 and f"no-such-secret-{unique}" in failed.text()
    client.modal("container", "list").ok(60)
    # A fresh container too is of the version that was published.
    for task in json.loads(client.modal("container", "list", "--json").ok(60).text("stdout")):
        client.modal("container", "stop", "--yes", task["container_id"]).wait(60)
    assert version.remote() == "1"
    assert [row["version"] for row in history(client, unique)] == ["v1"]
    assert next(row for row in client.apps() if row["description"] == unique)["state"] == "deployed"


def test_lookup_of_apps(client, deploy, sdk, unique):
    """`App.lookup` finds a deployed app by name and by id, makes one on request, and names what is missing."""
    with pytest.raises(sdk.exception.NotFoundError, match=unique):
        sdk.App.lookup(unique)
    made = sdk.App.lookup(unique, create_if_missing=True)
    assert sdk.App.lookup(unique).app_id == made.app_id == sdk.App.lookup(made.app_id).app_id
    deploy("1")
    found = sdk.App.lookup(unique)
    assert found.app_id == made.app_id, "a deploy under the name takes the app that has it"
    info = found.info()
    assert set(info.functions) == {"version", "variables", "place", "Teller.*"} and info.lifecycle.version == 1
    assert sdk.Function.from_name(unique, "version").remote() == "1"
    with pytest.raises(sdk.exception.NotFoundError, match="ap-0000000000000000000000"):
        sdk.App.lookup("ap-0000000000000000000000")
    found.stop()
    with pytest.raises(sdk.exception.NotFoundError, match=unique):
        sdk.App.lookup(unique)


def test_tags_are_set_as_a_whole(deploy, sdk, unique):
    """`App.set_tags` replaces all tags, `App.get_tags` gives them, and a new deploy without any leaves them."""
    app = sdk.App.lookup(unique, create_if_missing=True)
    assert app.get_tags() == {}
    app.set_tags({"team": "red", "cost": "7"})
    app.set_tags({"team": "blue"})
    deploy("1")
    assert sdk.App.lookup(unique).get_tags() == {"team": "blue"}


def test_info_shows_functions_and_dates(client, deploy, unique):
    """`modal app info` names the app's state, version and functions, for people and as JSON."""
    deploy("1")
    told = json.loads(client.modal("app", "info", unique, "--json").ok(60).text("stdout"))
    assert told["lifecycle"]["state"] == "deployed" and told["lifecycle"]["version"] == 1
    assert set(told["functions"]) == {"version", "variables", "place", "Teller.*"}
    people = client.modal("app", "info", unique).ok(60).text()
    assert "version" in people and "CPU" in people


def test_stop_by_name_and_by_id(client, deploy, sdk, unique):
    """An app is stopped by name or id; the second time, and by the name it had, one is told who stopped it."""
    deploy("1")
    app_id = sdk.App.lookup(unique).app_id
    client.modal("app", "stop", "--yes", unique).ok(60)
    for identifier in unique, app_id:
        again = client.modal("app", "stop", "--yes", identifier)
        assert again.wait(60) != 0 and "already stopped" in again.text()
    assert "Stopped at" in again.text(), "it was stopped by somebody, and did not end by itself"
    deploy("2")
    second = sdk.App.lookup(unique).app_id
    assert second != app_id
    client.modal("app", "stop", "--yes", second).ok(60)
    row = next(row for row in client.apps() if row["app_id"] == second)
    assert row["state"] == "stopped" and row["stopped_at"]


def test_commands_name_what_is_not_there(client, unique):
    """Each command on an app that never was says so by name, and ends with an exit code that is not 0."""
    for command in (["history"], ["logs"], ["stop", "--yes"], ["info"], ["rollback"]):
        running = client.modal("app", *command, unique)
        assert running.wait(60) != 0 and unique in running.text(), command


def test_a_container_is_shown_and_stopped(client, deploy, node, sdk, unique):
    """`modal container list|logs|stop`: the container of a deployed app, its lines also when it has ended, and its end."""
    deploy("1")
    sdk.Function.from_name(unique, "version").remote()
    app_id = sdk.App.lookup(unique).app_id
    rows = json.loads(client.modal("container", "list", "--json").ok(60).text("stdout"))
    mine = [row["container_id"] for row in rows if row["app_id"] == app_id]
    assert len(mine) == 1, rows
    client.modal("container", "stop", "--yes", mine[0]).ok(60)
    wait_for("the container to be gone", lambda: not node.tasks(app_id), 30)
    client.modal("container", "logs", mine[0]).ok(60)
    again = client.modal("container", "stop", "--yes", mine[0])
    assert again.wait(60) != 0 and "already stopped" in again.text()
    never = client.modal("container", "stop", "--yes", "ta-" + "0" * 22)
    assert never.wait(60) != 0 and "ta-" + "0" * 22 in never.text()


def test_who_am_i(client, token, node):
    """`modal token info`, `config show`, `profile list|current|activate` tell of the token and hide its secret."""
    info = client.modal("token", "info").ok(60).text()
    assert token.id in info and "shoal" in info and "Created at" in info
    shown = client.modal("config", "show").ok(60).text()
    assert token.id in shown and node.url in shown and token.secret not in shown
    bare = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""}
    client.modal("token", "set", "--token-id", token.id, "--token-secret", token.secret, "--profile", "here").wait(60)
    client.modal(
        "token", "set", "--token-id", token.id, "--token-secret", token.secret, environment={"MODAL_PROFILE": "here", **bare}
    ).ok(60)  # fmt: skip
    assert "here" in client.modal("profile", "current", environment=bare).ok(60).text("stdout")
    rows = json.loads(client.modal("profile", "list", "--json", environment=bare).ok(60).text("stdout"))
    assert rows == [{"name": "here", "workspace": "shoal", "active": True}] or rows[0]["name"] == "here", rows
    assert "here" in client.modal("profile", "activate", "here", environment=bare).ok(60).text("stdout")
