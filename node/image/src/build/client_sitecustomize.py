"""Puts the client's dependencies last on the path, makes unbuffered output whole, then runs the sitecustomize that this one hides."""

import os as _os
import sys as _sys

_sys.path.append("/__modal/deps")
if not _os.path.isdir("/__modal/deps"):
    _sys.stderr.write("shoal: the client's dependencies are not mounted at /__modal/deps\n")


def _write_whole():
    """Makes unbuffered streams write all they are given. A sandbox's pipe may take only a part at once, as the kernel's never
    does when it blocks, and Python does not look how much an unbuffered stream took."""
    import io

    class Whole(io.FileIO):
        def write(self, data):
            left = memoryview(data).cast("B")
            count = len(left)
            while left:
                taken = super().write(left)
                if taken is None:
                    import select

                    select.select([], [self], [])
                else:
                    left = left[taken:]
            return count

    for name in ("stdout", "stderr"):
        old = getattr(_sys, name)
        if not isinstance(getattr(old, "buffer", None), io.FileIO):
            continue
        raw = Whole(old.fileno(), "wb", closefd=False)
        raw.name = "<%s>" % name
        new = io.TextIOWrapper(
            raw, encoding=old.encoding, errors=old.errors, newline="\n", line_buffering=old.line_buffering, write_through=True
        )
        new.mode = "w"
        setattr(_sys, name, new)
        setattr(_sys, "__%s__" % name, new)


def _run_hidden():
    import importlib.machinery

    here = _os.path.dirname(_os.path.abspath(__file__))
    for entry in _sys.path:
        if not entry or _os.path.abspath(entry) == here:
            continue
        spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [entry])
        if spec is None or not hasattr(spec.loader, "get_code"):
            continue
        module = type(_sys)("sitecustomize")
        module.__file__, module.__spec__, module.__loader__ = spec.origin, spec, spec.loader
        exec(spec.loader.get_code("sitecustomize"), module.__dict__)
        return


_write_whole()
_run_hidden()
