"""A deployed app that tells its version, where it runs, and which variables of a prefix it has."""

import os

import modal

VERSION = os.environ.get("TELLS_VERSION") or "1"
SECRETS = [modal.Secret.from_name(name) for name in os.environ.get("TELLS_SECRETS", "").split()]

# What this file reads when it is imported must be the same in the container.
SAME = {name: os.environ.get(name, "") for name in ("TELLS_VERSION", "TELLS_SECRETS", "TELLS_NAME")}

app = modal.App("tells")


@app.function(env=SAME, secrets=SECRETS)
def version() -> str:
    return VERSION


@app.function(env=SAME, secrets=SECRETS)
def variables(prefix: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(prefix)}


if VERSION != "without a class":

    @app.cls(env=SAME)
    class Teller:
        name: str = modal.parameter()

        @modal.method()
        def version(self) -> str:
            return f"{VERSION} {self.name}"


@app.function(env=SAME)
def place() -> tuple[str, str]:
    """The environment, and what a look-up by name alone finds from in here."""
    other = modal.Function.from_name(os.environ["TELLS_NAME"], "version")
    try:
        found = other.remote()
    except modal.exception.NotFoundError as error:
        found = f"not found: {error}"
    return os.environ["MODAL_ENVIRONMENT"], found
