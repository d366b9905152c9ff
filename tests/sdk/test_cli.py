"""The node's own commands: tables for people, --json for programs, exit codes, help with examples."""

import json
import re
import subprocess
import time

import pytest
from harness import outer_environment, shoal_binary, wait_for
from programs import functions

pytestmark = pytest.mark.timeout(120)

COMMANDS = ["start", "status", "token", "app", "task", "logs", "explain", "doctor"]
LISTS = [("status",), ("token", "list"), ("app", "list"), ("task", "list"), ("doctor",)]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command):
    """`shoal COMMAND --help` ends well, explains and shows at least one line to copy."""
    done = subprocess.run([str(shoal_binary()), command, "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    assert "Example" in done.stdout and f"shoal {command}" in done.stdout


def test_help_lists_every_command():
    """`shoal --help` names all of them, and `shoal --version` says a version."""
    done = subprocess.run([str(shoal_binary()), "--help"], capture_output=True, text=True, timeout=20)
    assert all(re.search(rf"^\s+{command}\b", done.stdout, re.MULTILINE) for command in COMMANDS), done.stdout
    version = subprocess.run([str(shoal_binary()), "--version"], capture_output=True, text=True, timeout=20)
    assert re.search(r"\d+\.\d+\.\d+", version.stdout)


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_json_is_json_and_the_table_is_not(node, token, command):
    """With --json nothing but JSON is on stdout; without it a table with a heading."""
    machine = node.shoal(*command, "--json", check=command != ("doctor",))
    json.loads(machine.stdout)
    people = node.shoal(*command, check=command != ("doctor",)).stdout
    assert people.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(people)


def test_wrong_use_ends_with_2():
    """An unknown command or flag ends with exit code 2 and a hint on stderr."""
    for wrong in (["no-such-command"], ["status", "--no-such-flag"]):
        done = subprocess.run([str(shoal_binary()), *wrong], capture_output=True, text=True, timeout=20)
        assert done.returncode == 2 and done.stderr.strip() and not done.stdout.strip()


def test_no_node_says_so(tmp_path):
    """A command for a node that does not run ends with 1 and says how to start one."""
    done = subprocess.run(
        [str(shoal_binary()), "status", "--data", str(tmp_path)],
        capture_output=True, text=True, timeout=30, env=outer_environment(),
    )  # fmt: skip
    assert done.returncode == 1
    assert "shoal start" in done.stderr and str(tmp_path) in done.stderr


def test_token_is_shown_once(node):
    """`token create` prints id and secret; no later command shows the secret, and the data folder does not hold it."""
    begin = time.time()
    made = node.create_token()
    assert made.id.startswith("ak-") and made.secret.startswith("as-")
    listed = node.shoal("token", "list", "--json").stdout
    assert made.id in listed and made.secret not in listed
    found = subprocess.run(
        ["find", str(node.data), "-xdev", "-type", "f", "-newermt", f"@{begin - 10:.0f}", "-exec", "grep", "-laF", made.secret, "{}", "+"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert not found.stdout.strip(), f"the secret is on the disk in {found.stdout}"
    node.shoal("token", "revoke", made.id)
    wait_for("the token to be listed as revoked or gone", lambda: "revoked" in json.dumps(revoked(node, made.id)) or not revoked(node, made.id), 20)


def revoked(node, token_id):
    return [row for row in node.json("token", "list") if row["token_id"] == token_id]


def test_unknown_ids_are_refused_with_a_sentence(node, token):
    """An id that is not there: exit code 1 and its name on stderr."""
    for command in (["app", "stop", "no-such-app"], ["token", "revoke", "ak-" + "0" * 22], ["logs", "no-such-app"], ["explain", "fc-" + "0" * 22]):
        done = node.shoal(*command, check=False)
        assert done.returncode == 1, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert command[-1] in done.stderr, f"{command}: {done.stderr}"


def test_app_task_and_logs_of_a_running_app(node, token):
    """A running app is in `app list`, its container in `task list`, its output in `logs`, and `app stop` ends it."""
    with functions.app.run():
        functions.sleep.remote(0)
        app_id = functions.app.app_id
        apps = [row for row in node.json("app", "list") if row["app_id"] == app_id]
        assert len(apps) == 1
        tasks = node.tasks(app_id)
        assert tasks and all(re.fullmatch(r"ta-[0-9A-Za-z]{22,26}", row["task_id"]) for row in tasks)
        table = node.shoal("task", "list").stdout
        assert tasks[0]["task_id"] in table
        wait_for("the function's line in `shoal logs`", lambda: "sleeping 0" in node.shoal("logs", app_id).stdout, 30)
        node.shoal("app", "stop", app_id)
        wait_for("its tasks to end", lambda: not node.tasks(app_id), 30)


def test_explain_says_what_a_call_waits_for(node, token):
    """`explain CALL` of an input that no node can run says what is wanted and what there is."""
    import modal

    app = modal.App("too-big")

    @app.function(memory=10_000_000, serialized=True)
    def huge():
        return 1

    with app.run():
        call = huge.spawn()
        text = wait_for(
            "explain to know why", lambda: (out := node.shoal("explain", call.object_id).stdout) and "memory" in out and out, 20
        )
        assert "wait" in text.lower()
        call.cancel()


def test_doctor_checks_the_machine(node, token):
    """`doctor` looks at everything containers need, each with a verdict, and says what to fix where one is bad."""
    done = node.shoal("doctor", "--json", check=False)
    checks = json.loads(done.stdout)
    text = json.dumps(checks).lower()
    for subject in ("kernel", "fuse", "runsc", "cgroup", "disk", "port", "sysctl", "base"):
        assert subject in text, f"doctor says nothing about {subject}"
    bad = [check for check in checks if check["status"] == "bad"]
    assert done.returncode == (1 if bad else 0)
    assert all(check.get("fix") for check in bad), "each bad check says what to fix"


def test_status_of_one_node(node, token):
    """`status` names the node, its address and that it leads its cluster of one."""
    status = node.json("status")
    assert str(node.api_port) in json.dumps(status)
    people = node.shoal("status").stdout
    assert str(node.api_port) in people
