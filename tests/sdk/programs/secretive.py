"""Functions with secrets of every kind, that tell which variables they got."""

import os

import modal

app = modal.App("secretive")

PREFIX = "HUSH_"


def mine() -> dict[str, str]:
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIX)}


@app.function(secrets=[modal.Secret.from_dict({"HUSH_A": "a", "HUSH_NONE": None, "HUSH_LONG": "x" * 10_000, "HUSH_LINES": "1\n2 = ü"})])
def of_dict() -> dict[str, str]:
    return mine()


@app.function(secrets=[modal.Secret.from_local_environ(["HUSH_LOCAL"])])
def of_local_environ() -> dict[str, str]:
    return mine()


@app.function(secrets=[modal.Secret.from_dict({"HUSH_A": "first", "HUSH_B": "b"}), modal.Secret.from_dict({"HUSH_A": "second"})])
def of_two() -> dict[str, str]:
    return mine()


@app.local_entrypoint()
def main():
    told = of_dict.remote()
    assert set(told) == {"HUSH_A", "HUSH_LONG", "HUSH_LINES"}, told
    assert told["HUSH_A"] == "a" and told["HUSH_LINES"] == "1\n2 = ü" and len(told["HUSH_LONG"]) == 10_000
    print("dict is right")
    assert of_local_environ.remote() == {"HUSH_LOCAL": os.environ["HUSH_LOCAL"]}
    print("local environ is right")
    assert of_two.remote() == {"HUSH_A": "second", "HUSH_B": "b"}, "the later secret wins"
    print("two are right")
