"""Puts the client's dependencies last on the path, then runs the sitecustomize that this one hides."""

import os as _os
import sys as _sys

_sys.path.append("/__modal/deps")
if not _os.path.isdir("/__modal/deps"):
    _sys.stderr.write("shoal: the client's dependencies are not mounted at /__modal/deps\n")


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


_run_hidden()
