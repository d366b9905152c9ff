"""Fetches the client or its dependencies, and compiles both. Run by an interpreter in a container of its own.

    gather.py client VERSION      the client's packages into /__build/pkg
    gather.py deps                its dependencies into /__build/deps
    gather.py deps ABI LIBC       the same for another interpreter than the one that runs this
    gather.py compile             compiled modules for both, for the interpreter that runs this

Exit status 3: this interpreter has no pip and cannot get one.
"""

import os
import pathlib
import shutil
import subprocess
import sys

WORK = pathlib.Path("/__build")
PKG, DEPS = WORK / "pkg", WORK / "deps"
PACKAGES = ("modal", "modal_proto", "modal_version", "synchronicity")
PINNED = """
aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 attrs==26.1.0 cbor2==5.9.0 certifi>=2026.10.19 frozenlist==1.8.0
grpclib==0.4.9 h2==4.4.1 hpack==4.2.0 hyperframe==6.1.0 idna==3.20 multidict==7.1.0 propcache==0.5.4 protobuf==7.36.2
typing_extensions==4.16.0 yarl==1.25.1
""".split()
# For interpreters and indexes that do not have the pinned ones.
LOOSE = """
aiohappyeyeballs aiohttp aiosignal attrs cbor2<6 certifi frozenlist grpclib>=0.4.7,<0.5 h2 hpack hyperframe idna multidict
propcache protobuf>=4 typing_extensions yarl
""".split()
PLATFORMS = {
    "musl": ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"],
    "glibc": ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"],
}


def python(*arguments):
    return [sys.executable, "-I", *arguments]


def need_pip():
    if subprocess.run(python("-m", "pip", "--version"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
        return
    if subprocess.run(python("-m", "ensurepip")).returncode:
        sys.exit(3)


def install(target, requirements, options=()):
    command = python("-m", "pip", "install", "--quiet", "--no-input", "--no-cache-dir", "--no-compile", "--no-deps")
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--target", str(target), *options, *requirements]
    return subprocess.run(command).returncode == 0


def synchronicity(folder):
    """What the client says about its one dependency that goes beside it."""
    for line in (folder / "METADATA").read_text().splitlines():
        if line.startswith("Requires-Dist: synchronicity"):
            return line.split(":", 1)[1].split(";")[0].translate(str.maketrans("", "", " ()"))
    sys.exit("the client names no version of synchronicity")


def client(version):
    need_pip()
    fetched = WORK / "fetched"
    if not install(fetched, ["modal==" + version]):
        sys.exit("the client %s cannot be fetched" % version)
    [info] = fetched.glob("modal-*.dist-info")
    if not install(fetched, [synchronicity(info)]):
        sys.exit("synchronicity for the client %s cannot be fetched" % version)
    PKG.mkdir(parents=True)
    for name in PACKAGES:
        if (fetched / name).is_dir():
            shutil.copytree(fetched / name, PKG / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        elif (fetched / (name + ".py")).is_file():
            shutil.copy(fetched / (name + ".py"), PKG)
    shutil.rmtree(fetched)


def deps(abi=None, libc=None):
    need_pip()
    options, minor = [], sys.version_info[1]
    if abi:
        minor = int(abi[3:].rstrip("t"))
        options = ["--implementation", "cp", "--python-version", "3.%d" % minor, "--abi", abi, "--abi", "abi3", "--abi", "none"]
        for platform in PLATFORMS[libc]:
            options += ["--platform", platform]
    extra = ["async-timeout"] if minor < 11 else []
    if minor >= 10 and install(DEPS, PINNED + extra, options):
        return
    shutil.rmtree(DEPS, ignore_errors=True)
    if not install(DEPS, LOOSE + extra, options):
        sys.exit("the client's dependencies cannot be fetched")


def compile_all():
    import compileall
    import py_compile

    for folder, seen_at in ((PKG, "/pkg"), (DEPS, "/__modal/deps")):
        compileall.compile_dir(
            str(folder), quiet=2, ddir=seen_at, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
        )


os.umask(0o022)
{"client": client, "deps": deps, "compile": compile_all}[sys.argv[1]](*sys.argv[2:])
