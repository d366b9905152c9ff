"""What a token may be used for, who is told when it may not, and what the audit log keeps of it."""

import json
import re
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from harness import Client, Node, Token, wait_for
from programs import fenced

pytestmark = pytest.mark.timeout(240)


def variables(token: Token, environment: str = "") -> dict[str, str]:
    """Environment variables of a client process that uses another token than the test's own."""
    chosen = {"MODAL_ENVIRONMENT": environment} if environment else {}
    return {"MODAL_TOKEN_ID": token.id, "MODAL_TOKEN_SECRET": token.secret} | chosen


def refused(client: Client, token: Token, *arguments: str, environment: str = "") -> str:
    """Runs `modal ARGUMENTS` with a token, which must fail; returns what it printed as one line."""
    running = client.modal(*arguments, environment=variables(token, environment))
    assert running.wait(60) != 0, f"modal {' '.join(arguments)} was not refused:\n{running.text()}"
    return re.sub(r"[\s│]+", " ", running.text())


@pytest.fixture
def environment(client, unique) -> str:
    """The name of an environment of the test's own."""
    client.modal("environment", "create", unique).ok(60)
    return unique


def line_of(node: Node, token: Token) -> dict:
    """Returns the line of `shoal token list --json` that is about a token."""
    return next(line for line in node.json("token", "list") if line["token_id"] == token.id)


def test_list_shows_what_a_token_is_good_for(node, token, environment):
    """`shoal token list` shows purpose, environment and end of each token, and what has become of it."""
    plain = node.create_token("--label", "plain")
    limited = node.create_token("--label", "ci", "--environment", environment, "--purpose", "reader", "--expires-in", "2h")
    line = line_of(node, plain)
    assert (line["purpose"], line["environment"], line["expires_ms"], line["state"]) == ("client", None, None, "valid")
    line = line_of(node, limited)
    assert (line["label"], line["purpose"], line["environment"], line["state"]) == ("ci", "reader", environment, "valid")
    assert abs(line["expires_ms"] / 1000 - time.time() - 7200) < 120
    node.shoal("token", "revoke", limited.id)
    assert line_of(node, limited)["state"] == "revoked"
    people = node.shoal("token", "list").stdout
    assert "PURPOSE" in people and limited.id in people and limited.secret not in people


def test_create_refuses_what_cannot_be(node, token):
    """An environment that is not there, and a time without unit: each is named, with exit codes 1 and 2."""
    absent = node.shoal("token", "create", "--environment", "no-such", check=False)
    assert absent.returncode == 1 and "'no-such'" in absent.stderr and "main" in absent.stderr
    wrong = node.shoal("token", "create", "--expires-in", "5", check=False)
    assert wrong.returncode == 2 and "90m" in wrong.stderr
    huge = node.shoal("token", "create", "--expires-in", "99999999999999d", check=False)
    assert huge.returncode == 0, "a time beyond all calendars is as good as never"
    unknown = node.shoal("token", "revoke", "ak-" + "0" * 22, check=False)
    assert unknown.returncode == 1 and "`shoal token list` shows them" in unknown.stderr
    at_once = node.shoal("token", "create", "--expires-in", "0s", check=False)
    assert at_once.returncode == 1 and "ends at once" in at_once.stderr


def test_an_expired_token(node, client):
    """A token is good until its end, and from then on refused with a sentence that says so."""
    short = node.create_token("--expires-in", "15s")
    client.modal("app", "list", environment=variables(short)).ok(60)
    wait_for("the token to expire", lambda: line_of(node, short)["state"] == "expired", 40)
    said = refused(client, short, "app", "list")
    assert short.id in said and "has expired" in said and "shoal token create" in said


def test_a_token_of_one_environment(node, token, client, environment):
    """A token for one environment works there, and elsewhere a sentence says which environment it is for."""
    limited = node.create_token("--environment", environment)
    ran = client.modal("run", "programs/entrypoint.py", "--word", "here", environment=variables(limited, environment)).ok(120)
    assert "answer: here here" in ran.text()
    client.modal("app", "list", environment=variables(limited, environment)).ok(60)
    for arguments in (["app", "list"], ["run", "programs/entrypoint.py", "--word", "x"], ["secret", "list", "-e", "main"]):
        said = refused(client, limited, *arguments)
        assert f"limited to environment '{environment}'" in said and "'main'" in said, said
    said = refused(client, limited, "environment", "create", f"{environment}-2", environment=environment)
    assert f"limited to environment '{environment}'" in said and "token without limits" in said


def test_ids_of_another_environment(node, token, deployed, sdk, client, environment, unique):
    """Knowing the id of a function, an app or a secret elsewhere is no way into it for a limited token."""
    name = deployed("functions.py", f"{unique}-main")
    function = sdk.Function.from_name(name, "square")
    function.hydrate()
    secret = sdk.Secret.from_dict({"KEY": "value"})
    secret.hydrate()
    app = next(row for row in client.apps() if name in row.values())
    app_id = next(value for value in app.values() if str(value).startswith("ap-"))
    limited = node.create_token("--environment", environment)
    program = f"""
import modal
from modal_proto import api_pb2
from modal.client import _Client
from modal._utils.async_utils import synchronizer

@synchronizer.create_blocking
async def ask():
    client = await _Client.from_env()
    for name, request in [
        ("FunctionMap", api_pb2.FunctionMapRequest(function_id="{function.object_id}")),
        ("AppStop", api_pb2.AppStopRequest(app_id="{app_id}")),
        ("AppGetLayout", api_pb2.AppGetLayoutRequest(app_id="{app_id}")),
        ("SecretDelete", api_pb2.SecretDeleteRequest(secret_id="{secret.object_id}")),
    ]:
        try:
            await getattr(client.stub, name)(request)
            print(name, "answered")
        except modal.exception.Error as error:
            print(name, type(error).__name__, error)
ask()
"""
    said = client.start("-c", program, environment=variables(limited, environment)).ok(60).text("stdout").splitlines()
    assert len(said) == 4, said
    for line in said:
        assert "PermissionDeniedError" in line and "which is in 'main'" in line, line
    assert function.remote(4) == 16, "the function is as it was"


def test_what_runs_in_a_limited_environment_stays_in_it(node, token, client, deployed, environment, unique):
    """Code that a limited token brings cannot reach further than the token; other environments are as open as ever."""
    name = deployed("functions.py", f"{unique}-main")
    limited = node.create_token("--environment", environment)
    arguments = ("--app-name", name, "--function", "square", "--environment", "main")
    inside = client.modal("run", "programs/fenced.py", *arguments, environment=variables(limited, environment)).ok(120)
    assert "answer: PermissionDeniedError" in inside.text() and "is limited to it too" in inside.text(), inside.text()
    kept = [record for record in records(node, "--since", "5m", "--method", "FunctionGet") if record["who"].startswith("task ta-")]
    assert kept and environment in kept[-1]["why"], kept
    outside = client.modal("run", "programs/fenced.py", *arguments).ok(120)
    assert "answer: found" in outside.text()


def test_a_container_is_nobody_elsewhere(node, token):
    """A container's right is its own channel: at the port that everybody uses it is a stranger, and that is kept."""
    with fenced.app.run():
        for method in ("ContainerHello", "FunctionGetInputs", "AppList", "SecretList"):
            status, said = fenced.knock.remote(node.api_port, method)
            assert status == "UNAUTHENTICATED" and "shoal token create" in said, f"{method}: {status} {said}"
    kept = [record for record in records(node, "--who", "nobody", "--since", "5m") if record["method"] == "FunctionGetInputs"]
    assert kept and not kept[-1]["from"].startswith("127."), kept


def test_a_reader(node, token, client, deployed, unique):
    """A token for looking lists and shows, and is refused what changes anything, with a sentence."""
    name = deployed("functions.py", unique)
    reader = node.create_token("--purpose", "reader")
    listed = client.modal("app", "list", "--json", environment=variables(reader)).ok(60)
    assert name in listed.text("stdout")
    for arguments in (["app", "stop", "--yes", name], ["run", "programs/entrypoint.py", "--word", "x"], ["environment", "create", unique]):
        said = refused(client, reader, *arguments)
        assert "purpose reader" in said and "shoal token create" in said, said
    assert name in client.modal("app", "list", "--json").ok(60).text("stdout"), "the app was not stopped"


def test_modal_token(node, token, client, tmp_path):
    """`modal token set` keeps a token that works and refuses one that does not, `info` shows it, `new` says what to do here."""
    made = node.create_token("--label", "of the test", "--expires-in", "1d")
    config = {"MODAL_CONFIG_PATH": str(tmp_path / "modal.toml")}
    # `modal` without the variables that carry the test's own token: only the file counts.
    program = """
import os, runpy, sys
for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "MODAL_PROFILE"):
    os.environ.pop(name, None)
sys.argv[0] = "modal"
runpy.run_module("modal", run_name="__main__")
"""

    def modal(*arguments: str):
        return client.start("-c", program, "token", *arguments, environment=config)

    wrong = modal("set", "--token-id", made.id, "--token-secret", "as-wrong")
    assert wrong.wait(60) != 0 and "wrong secret" in wrong.text(), wrong.text()
    modal("set", "--token-id", made.id, "--token-secret", made.secret).ok(60)
    shown = modal("info").ok(60).text()
    assert made.id in shown and "of the test" in shown and "Expires at" in shown and made.secret not in shown
    new = modal("new")
    assert new.wait(60) != 0
    said = re.sub(r"[\s│]+", " ", new.text())
    assert "shoal token create" in said and "modal token set" in said and "Traceback" not in said, new.text()


def records(node: Node, *arguments: str) -> list[dict]:
    """Returns what `shoal audit --json ARGUMENTS` prints."""
    return [json.loads(line) for line in node.shoal("audit", "--json", *arguments).stdout.splitlines()]


def test_refusals_are_kept(node, token, client):
    """Each refusal is in the audit log with who, what, from where and why; `shoal audit` filters, for people and programs."""
    made = node.create_token("--label", "audited", "--purpose", "reader")
    refused(client, made, "environment", "create", "never")
    node.shoal("token", "revoke", made.id)
    refused(client, made, "app", "list")
    of_token = records(node, "--who", made.id)
    assert [record["method"] for record in of_token] == ["EnvironmentCreate"]
    assert of_token[0]["what"] == "refused" and of_token[0]["from"].startswith("127.0.0.1:")
    assert "purpose reader" in of_token[0]["why"]
    made_and_ended = [record["what"] for record in records(node) if made.id in record["why"] and record["who"] == "operator"]
    assert made_and_ended == ["token-created", "token-revoked"]
    nobody = records(node, "--who", "nobody", "--method", "App", "--tail", "1")
    assert "was revoked" in nobody[0]["why"] and made.id in nobody[0]["why"]
    assert records(node, "--since", "1h", "--what", "token-created", "--from", "10.9.9.9") == []
    people = node.shoal("audit", "--who", made.id).stdout
    assert re.search(rf"^\d{{4}}-\d\d-\d\dT[\d:]+Z  \S+  token {made.id}  127\.0\.0\.1:\d+  EnvironmentCreate  ", people), people


def test_the_audit_log_keeps_no_secret(node, token, client):
    """Neither a good secret nor a wrong one is written, not even where a client mistakes the secret for the id."""
    made = node.create_token()
    swapped = Token(id=made.secret, secret=made.id)
    said = refused(client, swapped, "app", "list")
    assert "ids begin with" in said and made.secret not in said
    refused(client, Token(made.id, "as-wrong-and-secret"), "app", "list")
    wait_for("both refusals in the log", lambda: len(records(node, "--who", "nobody", "--since", "5m")) >= 2, 10)
    kept = "".join(file.read_text() for file in (node.data / "audit").glob("*.jsonl"))
    for secret in (made.secret, "as-wrong-and-secret", token.secret):
        assert secret not in kept and secret not in node.log_tail(2000)


def test_following_the_audit_log(node, token, client):
    """`shoal audit --follow` shows a refusal as it happens."""
    following = subprocess.Popen(
        [str(node.binary), "audit", "--follow", "--tail", "1", "--who", "nobody", "--data", str(node.data)], stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        mark = f"/blob/bl-{'7' * 22}"
        url = f"{node.url}{mark}?expires=1&signature=no"

        def seen() -> bool:
            with pytest.raises(urllib.error.HTTPError) as answered:
                urllib.request.urlopen(url, timeout=10)
            assert answered.value.code == 403
            line = following.stdout.readline()
            while mark not in line:
                line = following.stdout.readline()
            return f"GET {mark}" in line

        assert seen()
    finally:
        following.kill()
        following.wait(10)
