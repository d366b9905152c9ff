"""Environments: what has the same name in two of them is two things; renames, the default one, and the end of one."""

import json

import pytest
from harness import PROGRAMS, wait_for

pytestmark = pytest.mark.timeout(300)

TELLS = str(PROGRAMS / "tells.py")


@pytest.fixture
def environments(client, unique):
    """Makes environments of unique names and deletes them at the end."""
    made: list[str] = []

    def make(suffix: str = "") -> str:
        name = f"{unique}{suffix}"
        client.modal("environment", "create", name).ok(60)
        made.append(name)
        return name

    make.names = made
    yield make
    for name in made:
        client.modal("environment", "delete", "--yes", name).wait(60)


def listed(client):
    rows = json.loads(client.modal("environment", "list", "--json").ok(60).text("stdout"))
    return {row["name"]: row for row in rows}


def deploy(client, environment, name, version, **variables):
    variables = {"TELLS_VERSION": version, "TELLS_NAME": name, **variables}
    client.modal("deploy", "--env", environment, "--name", name, TELLS, environment=variables).ok(120)


def test_an_environment_is_made_listed_and_deleted(client, environments, unique):
    """`modal environment create|list|delete`; a second of the name, a bad name and an unknown one are refused by name."""
    name = environments()
    assert listed(client)[name]["web_suffix"] == name and listed(client)["main"]["active"] == "True"
    again = client.modal("environment", "create", name)
    assert again.wait(60) != 0 and name in again.text() and "already exists" in again.text()
    client.modal("environment", "delete", "--yes", name).ok(60)
    assert name not in listed(client)
    gone = client.modal("environment", "delete", "--yes", name)
    assert gone.wait(60) != 0 and name in gone.text() and "main" in gone.text(), "the answer names those that there are"
    bad = client.modal("environment", "create", "no spaces")
    assert bad.wait(60) != 0


def test_equal_names_in_two_environments_do_not_meet(client, environments, sdk, unique):
    """Apps and secrets of one name in two environments are two: calls, lists, look-ups and stops reach the one that is meant."""
    one, other = environments("-a"), environments("-b")
    for environment, version in (one, "1"), (other, "2"):
        sdk.Secret.objects.create("tells-secret", {"TELLS_HIDDEN": f"of {version}"}, environment_name=environment)
        deploy(client, environment, "tells", version, TELLS_SECRETS="tells-secret")
    for environment, version in (one, "1"), (other, "2"):
        of = lambda tag, environment=environment: sdk.Function.from_name("tells", tag, environment_name=environment)  # noqa: E731
        assert of("version").remote() == version
        assert of("variables").remote("TELLS_HIDDEN") == {"TELLS_HIDDEN": f"of {version}"}
        # A look-up without an environment, from inside, means the container's own.
        assert tuple(of("place").remote()) == (environment, version)
        rows = json.loads(client.modal("app", "list", "--json", "--env", environment).ok(60).text("stdout"))
        assert [row["description"] for row in rows if row["state"] == "deployed"] == ["tells"]
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Function.from_name("tells", "version").hydrate()
    client.modal("app", "stop", "--yes", "tells", "--env", one).ok(60)
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Function.from_name("tells", "version", environment_name=one).remote()
    assert sdk.Function.from_name("tells", "version", environment_name=other).remote() == "2"


def test_a_run_in_an_environment(client, environments):
    """`modal run --env` and MODAL_ENVIRONMENT put the app there, and its containers know where they are."""
    name = environments()
    running = client.modal("run", "--env", name, str(PROGRAMS / "typed.py") + "::asynchronous").ok(120)
    assert f"async got environment {name}" in running.text()
    rows = json.loads(client.modal("app", "list", "--json", "--env", name).ok(60).text("stdout"))
    assert [row["app_id"] for row in rows] == [running.app_id()]
    assert running.app_id() not in json.dumps(client.apps())
    running = client.run("typed.py::asynchronous", environment={"MODAL_ENVIRONMENT": name}).ok(120)
    assert f"async got environment {name}" in running.text()


def test_an_unknown_environment_is_named_at_once(client, sdk, unique):
    """Whatever is asked of an environment that is not there fails with its name and those that there are."""
    for command in (["run", "--env", unique, str(PROGRAMS / "typed.py") + "::where"], ["deploy", "--env", unique, TELLS], ["secret", "list", "--env", unique], ["app", "list", "--env", unique]):
        running = client.modal(*command)
        assert running.wait(60) != 0, command
        assert unique in running.text() and "main" in running.text(), running.text()
    with pytest.raises(sdk.exception.NotFoundError, match=unique):
        sdk.Environment.from_name(unique).hydrate()


def test_a_rename_keeps_everything(client, environments, sdk, unique):
    """`modal environment update --set-name`: the id, the apps and their containers stay; the old name is free again."""
    name = environments()
    environment_id = sdk.Environment.from_name(name).hydrate().object_id
    deploy(client, name, "tells", "1")
    assert sdk.Function.from_name("tells", "version", environment_name=name).remote() == "1"
    renamed = f"{unique}-new"
    client.modal("environment", "update", name, "--set-name", renamed, "--set-web-suffix", f"{unique}-w").ok(60)
    environments.names.append(renamed)
    assert sdk.Environment.from_name(renamed).hydrate().object_id == environment_id
    assert listed(client)[renamed]["web_suffix"] == f"{unique}-w" and name not in listed(client)
    assert sdk.Function.from_name("tells", "version", environment_name=renamed).remote() == "1"
    client.modal("environment", "create", name).ok(60)
    assert sdk.Environment.from_name(name).hydrate().object_id != environment_id
    taken = client.modal("environment", "update", name, "--set-name", renamed)
    assert taken.wait(60) != 0 and renamed in taken.text()
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Function.from_name("tells", "version", environment_name=name).hydrate()


def test_the_builder_version_of_an_environment(client, environments):
    """`--set-image-builder-version` holds for one environment, an unknown one is refused, an empty one takes it back."""
    name = environments()
    client.modal("environment", "update", name, "--set-image-builder-version", "2024.10").ok(60)
    assert listed(client)[name]["image_builder_version"] == "2024.10"
    unknown = client.modal("environment", "update", name, "--set-image-builder-version", "1999.01")
    assert unknown.wait(60) != 0 and "1999.01" in unknown.text() and "2025.06" in unknown.text()
    client.modal("environment", "update", name, "--set-image-builder-version", "").ok(60)
    assert listed(client)[name]["image_builder_version"] is None


def test_the_default_environment(client, environments, sdk, unique):
    """The default one is not deleted; another can be made the default, and a rename leaves it the default."""
    refused = client.modal("environment", "delete", "--yes", "main")
    assert refused.wait(60) != 0 and "default" in refused.text()
    name = environments()
    client.modal("workspace", "settings", "set", "default-environment", name).ok(60)
    try:
        assert sdk.Environment.from_context().hydrate().name == name
        client.modal("environment", "update", name, "--set-name", f"{name}-x").ok(60)
        environments.names.append(f"{name}-x")
        assert sdk.Environment.from_context().hydrate().name == f"{name}-x"
    finally:
        client.modal("workspace", "settings", "set", "default-environment", "main").ok(60)
    assert sdk.Environment.from_context().hydrate().name == "main"


def test_config_sets_the_environment_of_a_profile(client, environments):
    """`modal config set-environment` makes an environment the one that commands mean, if there is such a one."""
    name = environments()
    unknown = client.modal("config", "set-environment", f"{name}-not")
    assert unknown.wait(60) != 0 and f"{name}-not" in unknown.text()
    client.modal("config", "set-environment", name).ok(60)
    running = client.run("typed.py::asynchronous").ok(120)
    assert f"async got environment {name}" in running.text()


def test_the_end_of_an_environment_ends_what_is_in_it(client, environments, node, sdk, unique):
    """`modal environment delete` stops apps and running calls, removes secrets, and leaves nothing to be found."""
    name = environments()
    sdk.Secret.objects.create("tells-secret", {"A": "b"}, environment_name=name)
    deploy(client, name, "tells", "1")
    sdk.Function.from_name("tells", "version", environment_name=name).remote()
    app_id = sdk.App.lookup("tells", environment_name=name).app_id
    running = client.modal("run", "--env", name, str(PROGRAMS / "lifecycle.py") + "::running")
    running.wait_line("quietly running", 120)
    assert node.tasks(app_id)
    client.modal("environment", "delete", "--yes", name).ok(60)
    assert running.wait(60) != 0, "a call that was waited for fails"
    wait_for("its containers to be gone", lambda: not node.tasks(app_id) and not node.tasks(running.app_id()), 30)
    assert app_id not in json.dumps(node.json("app", "list", "--all"))
    with pytest.raises(sdk.exception.NotFoundError):
        sdk.Secret.from_name("tells-secret", environment_name=name).hydrate()
    # The same name again is another environment, and empty.
    environments()
    assert json.loads(client.modal("app", "list", "--json", "--env", name).ok(60).text("stdout")) == []
    assert sdk.Secret.objects.list(environment_name=name) == []
