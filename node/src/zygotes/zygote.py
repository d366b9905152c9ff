"""A Python that has imported the client and waits for what to run.

It is started once for an image, says what it has loaded, and is written away as a snapshot while it waits on its stdin. What
goes on from the snapshot is told what to run (environment, working directory, arguments) and becomes it, as if it had been
started so. Where it cannot, it runs the program in its place.
"""

import gc
import importlib
import json
import os
import sys

ENTRYPOINT = "modal._container_entrypoint"

# What the entrypoint imports only when it runs, as far as the client's version has it.
LATER = [
    "asyncio", "concurrent.futures.thread", "contextvars", "grpclib.client", "grpclib.protocol", "h2.connection", "hashlib", "importlib.util",
    "inspect", "modal._object", "modal._runtime.gpu_memory_snapshot", "modal._utils.blob_utils", "modal._utils.function_utils",
    "modal._utils.grpc_utils", "modal._utils.time_utils", "multiprocessing", "pickle", "random", "runpy", "selectors", "signal", "ssl",
    "tempfile", "threading", "traceback", "typing_extensions", "uuid",
]  # fmt: skip


def load():
    """Imports the client, and returns the names of variables that were looked at meanwhile."""
    seen = set()
    mapping = type(os.environ)
    getitem, contains = mapping.__getitem__, mapping.__contains__

    def note(self, key):
        seen.add(key)
        return getitem(self, key)

    def note_contains(self, key):
        seen.add(key)
        return contains(self, key)

    mapping.__getitem__, mapping.__contains__ = note, note_contains
    try:
        importlib.import_module(ENTRYPOINT)
        for name in LATER:
            try:
                importlib.import_module(name)
            except ImportError:
                pass
    finally:
        mapping.__getitem__ = getitem
        if "__contains__" in mapping.__dict__ and contains is not mapping.__mro__[1].__contains__:
            mapping.__contains__ = contains
        else:
            del mapping.__contains__
    # It runs as the main module, which is another one.
    module = sys.modules.pop(ENTRYPOINT)
    package, _, name = ENTRYPOINT.rpartition(".")
    if getattr(sys.modules[package], name, None) is module:
        delattr(sys.modules[package], name)
    return sorted(seen)


def report(variables):
    loaded = {name.partition(".")[0] for name, module in list(sys.modules.items()) if getattr(module, "__file__", None)}
    said = {"modules": sorted(loaded), "path": [entry for entry in sys.path if entry], "variables": variables}
    os.write(1, (json.dumps(said) + "\n").encode())


def read(count):
    data = b""
    while len(data) < count:
        piece = os.read(0, count - len(data))
        if not piece:
            os._exit(0)
        data += piece
    return data


def read_job():
    strings = read(int.from_bytes(read(4), "little")).split(b"\0")
    keep, directory, count = strings[0] == b"1", strings[1], int(strings[2])
    argv = [os.fsdecode(word) for word in strings[3 : 3 + count]]
    variables = dict(item.split(b"=", 1) for item in strings[3 + count :] if b"=" in item)
    return keep, directory, argv, variables


def reseed():
    """Clones of one snapshot must not draw the same numbers."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(32), 32.0)
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None


def become(keep, directory, argv, variables):
    if not keep:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
    zone = os.environ.get("TZ")
    # One by one: clear() would ask for each name, and tell the C library so.
    for name in [name for name in os.environb if name not in variables]:
        del os.environb[name]
    os.environb.update(variables)
    if os.environ.get("TZ") != zone:
        importlib.import_module("time").tzset()
    os.makedirs(directory, exist_ok=True)
    os.chdir(directory)
    if argv[1:] != ["-u", "-m", ENTRYPOINT]:
        os.execvpe(argv[0], argv, os.environ)
    reseed()
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, os.getcwd())
    sys.orig_argv = argv
    sys.argv[:] = argv[3:]
    # Folders looked at before may have other content now.
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()


def main():
    # The entry for the working directory, which is only known with the job.
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]
    sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
    variables = load()
    gc.collect()
    gc.freeze()
    report(variables)
    job = read_job()
    become(*job)
    runpy = importlib.import_module("runpy")
    main_names = vars(sys.modules["__main__"])
    for name in [name for name in main_names if not name.startswith("__")]:
        del main_names[name]
    sys.modules.pop(__name__, None)
    runpy._run_module_as_main(ENTRYPOINT)
