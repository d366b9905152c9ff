"""Programs that are one function on an image: written, run, and read.

Each is run in a process of its own, so that nothing is shared but the node's store.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from harness import Client, Running

# The node says this line before each step that it really runs, and nothing for one that it knows.
STEP = re.compile(r"^=> Step \d+: RUN (.*)$", re.MULTILINE)


def program(
    folder: Path, image: str, body: str = "return 1", *, before: str = "", options: str = "", name: str = "program.py"
) -> Path:
    """Writes a program with one function `f` on `image`; its result is printed as JSON. `before` stands before the image."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"""
import json
import os
import modal

{textwrap.dedent(before).strip()}

image = {image}
app = modal.App("{folder.name}")


@app.function(image=image{options})
def f():
{textwrap.indent(textwrap.dedent(body).strip(), "    ")}


@app.local_entrypoint()
def main():
    print("RESULT " + json.dumps(f.remote()))
"""
    path = folder / name
    path.write_text(text)
    return path


def run(client: Client, path: Path, seconds: float = 500, **environment: str) -> tuple[Any, str]:
    """Runs a program and returns its function's result and all its output."""
    return outcome(client.run(path, cwd=path.parent, environment=environment), seconds)


def outcome(running: Running, seconds: float = 500) -> tuple[Any, str]:
    """Waits for the end of such a program and returns its function's result and all its output."""
    out = running.ok(seconds).text()
    found = re.search(r"^RESULT (.*)$", out, re.MULTILINE)
    assert found, out
    return json.loads(found.group(1)), out


def steps(out: str) -> list[str]:
    """Returns the RUN commands that were really run."""
    return STEP.findall(out)


def programs_of_this_machine(root: Path) -> None:
    """Fills a folder with a shell and some programs, and the libraries that they need."""
    programs = ["/bin/sh", "/bin/cat", "/usr/bin/env", "/usr/bin/sort", "/bin/ls"]
    listed = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    for file in {*programs, *libraries}:
        place = root / file.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    (root / "tmp").mkdir()
