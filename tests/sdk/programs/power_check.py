"""Holds facts of power_load.py and of the test against a node: python power_check.py APP FACTS-FILE.

Prints a line of JSON for each that does not hold, and exits with 0 if all were looked at.
"""

import hashlib
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import modal
from power_load import digest

# How long a call that was cut off may take to its result, in seconds.
PATIENCE = 60
LOOKED_AT_ONCE = 8


def problem(fact: dict, what: str) -> None:
    sys.stdout.write(json.dumps({"fact": fact, "problem": what}) + "\n")
    sys.stdout.flush()


def check_call(facts: list[dict]) -> None:
    """A call that was accepted has its right result, the one that was told before, if one was, and only that."""
    spawned = next((fact for fact in facts if fact["kind"] == "spawned"), None)
    fact = spawned or facts[0]
    call = modal.FunctionCall.from_id(fact["call"])
    first, again = (digest(call.get(timeout=PATIENCE)) for _ in range(2))
    if first != again:
        problem(fact, f"two readers got two outcomes: {first} and {again}")
    for told in facts:
        if told["kind"] == "result" and told["outcome"] != first:
            problem(told, f"the outcome is another one now: {first}")
    if spawned:
        x, size = spawned["x"], spawned["size"]
        right = [x * x, *(hashlib.sha256(random.Random(seed).randbytes(size)).hexdigest() for seed in (-x, x))]
        if first[:3] != right:
            problem(spawned, f"the result is wrong: {first} instead of {right}")


def check_secrets(facts: list[dict]) -> None:
    """Secrets reach a container with the values they were given."""
    app = modal.App("power-secrets")

    @app.function(secrets=[modal.Secret.from_name(name) for name in {fact["name"] for fact in facts}], serialized=True)
    def variables() -> dict[str, str]:
        import os

        return {name: value for name, value in os.environ.items() if name.startswith("POWER_")}

    with app.run():
        found = variables.remote()
    for fact in facts:
        if found.get(fact["variable"]) != fact["value"]:
            problem(fact, f"the variable is {found.get(fact['variable'])!r}")


def check_version(app: str, facts: list[dict]) -> None:
    """The deployed app answers, with the last version whose deploy had ended, or one that was being deployed."""
    version, built = modal.Function.from_name(app, "version").remote()
    for fact in facts:
        if int(version) < fact["version"] or built != f"built for {version}":
            problem(fact, f"version {version} answers, on an image that was {built}")


def check_stopped(facts: list[dict]) -> None:
    """An app that was stopped is still stopped."""
    for fact in facts:
        try:
            problem(fact, f"it answers {modal.Function.from_name(fact['app'], 'version').remote()}")
        except modal.exception.NotFoundError:
            pass


def check_tokens(facts: list[dict]) -> None:
    """A token that was made is good."""
    for fact in facts:
        try:
            modal.Client.from_credentials(fact["id"], fact["secret"]).hello()
        except modal.exception.AuthError as error:
            problem(fact, str(error))


def attempt(what, facts: list[dict], *arguments) -> None:
    """Any error is a problem of all that was looked at."""
    try:
        what(*arguments, facts)
    except Exception as error:
        problem(facts[0], f"{what.__name__} of {len(facts)} facts: {type(error).__name__}: {error}")


def main(app: str, path: str) -> None:
    with open(path) as file:
        facts = [json.loads(line) for line in file]
    kinds: dict[str, list[dict]] = {}
    calls: dict[str, list[dict]] = {}
    for fact in facts:
        if "call" in fact:
            calls.setdefault(fact["call"], []).append(fact)
        else:
            kinds.setdefault(fact["kind"], []).append(fact)
    with ThreadPoolExecutor(LOOKED_AT_ONCE) as pool:
        list(pool.map(lambda of: attempt(check_call, of), calls.values()))
    attempt(check_version, kinds["deployed"], app)
    for kind, check in {"secret": check_secrets, "stopped": check_stopped, "token": check_tokens}.items():
        if kind in kinds:
            attempt(check, kinds[kind])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
