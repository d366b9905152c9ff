"""Pythons and their packages: every series that this machine can make, and each way to install."""

import json
import urllib.request

import pytest
from imaging import program, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Series that the pinned client knows and for which the machines of the tests have an interpreter.
SERIES = ("3.10", "3.11", "3.12", "3.13")


def test_debian_slim_of_every_python(client, tmp_path):
    """One program with a function for each series: each runs its own Python, with pip, TLS and a C compiler."""
    folder = tmp_path / "series"
    folder.mkdir()
    functions = "".join(
        f"""
@app.function(image=modal.Image.debian_slim("{series}"))
def f{number}():
    return about()
"""
        for number, series in enumerate(SERIES)
    )
    (folder / "program.py").write_text(f"""
import json
import modal

app = modal.App("series")


def about():
    import ssl, sqlite3, lzma, subprocess, sys
    said = lambda *words: subprocess.run(words, capture_output=True, text=True).stdout.split()[0]
    return ["%d.%d" % sys.version_info[:2], said("python", "-m", "pip", "--version"), said("gcc", "-dumpversion").isdigit(), sys.prefix]

{functions}

@app.local_entrypoint()
def main():
    print("RESULT " + json.dumps([f.remote() for f in ({", ".join(f"f{n}" for n in range(len(SERIES)))})]))
""")
    out = client.run(folder / "program.py", cwd=folder).ok(1400).text()
    result = json.loads(out.split("RESULT ", 1)[1].splitlines()[0])
    assert result == [[series, "pip", True, "/usr/local"] for series in SERIES]


def test_a_python_that_nobody_has(client, tmp_path):
    """A series without an interpreter here and without a source package says so, and what to do."""
    path = program(tmp_path / "future", 'modal.Image.debian_slim("3.15")')
    running = client.run(path, cwd=path.parent)
    assert running.wait(600) != 0
    assert "python:3.15" in running.text() and "images.python_dirs" in running.text()


def test_pip_install(client, tmp_path):
    """`pip_install` installs packages that a function imports, for the image's Python."""
    path = program(
        tmp_path / "pip",
        'modal.Image.debian_slim().pip_install("numpy", "pandas")',
        "import numpy, pandas; return int(pandas.Series(numpy.arange(5)).sum())",
    )
    assert run(client, path)[0] == 10


def test_pip_install_takes_options_and_a_requirements_file(client, tmp_path):
    """Version bounds, extra options and a requirements file reach pip."""
    folder = tmp_path / "requirements"
    folder.mkdir()
    (folder / "needs.txt").write_text("six==1.16.0\n")
    image = 'modal.Image.debian_slim().pip_install("idna<3.7", extra_options="--no-deps").pip_install_from_requirements("needs.txt")'
    path = program(folder, image, "import six, importlib.metadata as m; return [m.version('idna'), six.__version__]")
    (idna, six), _ = run(client, path)
    assert [int(part) for part in idna.split(".")] < [3, 7] and six == "1.16.0"


PYPROJECT = """
[project]
name = "mine"
version = "1"
requires-python = ">=3.9"
dependencies = ["six==1.16.0"]

[project.optional-dependencies]
more = ["idna==3.6"]
"""

POETRY = """
[tool.poetry]
name = "mine"
version = "1"
description = ""
authors = []

[tool.poetry.dependencies]
python = ">=3.9"
six = "1.16.0"
"""


def poetry_finds_packages() -> bool:
    """Whether the index answers poetry, which asks in a way of its own; not every mirror does."""
    from pip._internal.models.index import PyPI

    try:
        with urllib.request.urlopen(f"{PyPI.pypi_url}/six/1.16.0/json", timeout=20) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_each_way_to_install_for_a_project(client, tmp_path):
    """`uv_pip_install`, `pip_install_from_pyproject`, `uv_sync` and `poetry_install_from_file`: in each image a function
    imports what the project names. uv and poetry come from the package index."""
    folder = tmp_path / "project"
    (folder / "poetry").mkdir(parents=True)
    (folder / "uv").mkdir()
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "uv/pyproject.toml").write_text(PYPROJECT)
    (folder / "poetry/pyproject.toml").write_text(POETRY)
    (folder / "needs.txt").write_text("idna==3.7\n")
    images = {
        "uv_pip": 'uv_pip_install("six==1.16.0", requirements=["needs.txt"])',
        "pyproject": 'pip_install_from_pyproject("pyproject.toml", optional_dependencies=["more"])',
        "uv_sync": 'uv_sync("uv", frozen=False, extras=["more"])',
        "poetry": 'poetry_install_from_file("poetry/pyproject.toml", ignore_lockfile=True)',
    }
    if not poetry_finds_packages():
        del images["poetry"]
    functions = "".join(
        f"@app.function(image=modal.Image.debian_slim().{method})\ndef {name}():\n    return about()\n"
        for name, method in images.items()
    )
    (folder / "program.py").write_text(f"""
import json
import modal

app = modal.App("project")


def about():
    import importlib.metadata as metadata
    import six
    import sys
    version = lambda name: next((one.version for one in metadata.distributions(name=name)), None)
    return [six.__version__, version("idna") if version("idna") in ("3.6", "3.7") else None, sys.prefix]

{functions}

@app.local_entrypoint()
def main():
    print("RESULT " + json.dumps({{name: f.remote() for name, f in dict({", ".join(f"{name}={name}" for name in images)}).items()}}))
""")
    out = client.run(folder / "program.py", cwd=folder).ok(1400).text()
    result = json.loads(out.split("RESULT ", 1)[1].splitlines()[0])
    assert result["uv_pip"] == ["1.16.0", "3.7", "/usr/local"]
    assert result["pyproject"] == ["1.16.0", "3.6", "/usr/local"]
    assert result["uv_sync"] == ["1.16.0", "3.6", "/.uv/.venv"]
    assert "poetry" not in images or result["poetry"][0] == "1.16.0" and result["poetry"][2] == "/usr/local"
