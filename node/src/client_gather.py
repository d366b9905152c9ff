"""Gathers the client's package and its dependencies into one tree, with compiled modules.

Run by an image's interpreter in a container of its own; says "shoal: gathered" and waits to be read.
"""

import compileall
import importlib.metadata
import pathlib
import py_compile
import shutil
import subprocess
import sys

VERSION = sys.argv[1]
WORK = pathlib.Path("/__build")
OUT = WORK / "out"
CLIENT = ("modal", "modal_proto", "modal_version", "synchronicity")
DEPENDENCIES = [
    "aiohappyeyeballs", "aiohttp", "aiosignal", "attrs", "cbor2<6", "certifi", "frozenlist", "grpclib==0.4.9", "h2",
    "hpack", "hyperframe", "idna", "multidict", "propcache", "protobuf", "typing_extensions", "yarl",
]
if sys.version_info < (3, 11):
    DEPENDENCIES.append("async-timeout")

SITECUSTOMIZE = '''\
"""Puts the client's dependencies last on the path, then runs the sitecustomize that this one hides."""
import importlib.machinery as _machinery
import os as _os
import sys as _sys

_sys.path.append("/__modal/deps")


def _next():
    here = _os.path.dirname(_os.path.abspath(__file__))
    for entry in _sys.path:
        if entry and _os.path.abspath(entry) != here:
            spec = _machinery.PathFinder.find_spec("sitecustomize", [entry])
            if spec is not None and spec.loader is not None:
                return spec
    return None


_spec = _next()
if _spec is not None:
    exec(_spec.loader.get_code("sitecustomize"), {"__name__": "sitecustomize", "__file__": _spec.origin})
del _spec
'''


def pip(target, *requirements):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-input", "--no-cache-dir", "--no-compile", "--no-deps"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--target", str(target), *requirements]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit("pip could not install " + " ".join(requirements))


def have_pip():
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        subprocess.run([sys.executable, "-m", "ensurepip"], check=True, stdout=sys.stderr)


def requirement(client, name):
    [info] = client.glob("modal-*.dist-info")
    wanted = importlib.metadata.PathDistribution(info).requires or []
    [found] = [text for text in wanted if text.split(";")[0].strip().startswith(name)]
    return found.split(";")[0].replace("(", "").replace(")", "").replace(" ", "")


def compile_tree(tree, seen_at):
    compileall.compile_dir(
        tree, quiet=2, ddir=seen_at, workers=0, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


have_pip()
OUT.mkdir(parents=True)
client, other, pkg, deps = WORK / "client", WORK / "other", OUT / "pkg", OUT / "__modal" / "deps"
pip(client, "modal==" + VERSION)
pip(other, requirement(client, "synchronicity"))
pip(deps, *DEPENDENCIES)
pkg.mkdir()
for name in CLIENT:
    for source in (client / name, other / name):
        if source.exists():
            shutil.copytree(source, pkg / name)
(pkg / "sitecustomize.py").write_text(SITECUSTOMIZE)
compile_tree(pkg, "/pkg")
compile_tree(deps, "/__modal/deps")
print("shoal: gathered", flush=True)
sys.stdin.read()
