"""The first program: a function, a map over it, and a function with packages of its own.

    modal run tests/examples/hello.py
    modal run tests/examples/hello.py --x 12 --rows 500
    modal run tests/examples/hello.py::square --x 7

Everything below `@app.function()` runs in a container on the node; everything in `main` runs
here, in this terminal.
"""

import modal

app = modal.App("example")

data_image = modal.Image.debian_slim().pip_install("numpy", "pandas")


@app.function()
def square(x: int) -> int:
    # What a function prints appears here at once, as it is printed there.
    print(f"squaring {x}")
    return x**2


@app.function(image=data_image, timeout=300, cpu=1.0, memory=1024)
def summarize(rows: int) -> dict[str, float]:
    # Imported here, because numpy and pandas are in the function's image and need not be here.
    import numpy as np
    import pandas as pd

    print(f"numpy {np.__version__}, pandas {pd.__version__}, {rows} rows")
    frame = pd.DataFrame({"n": np.arange(rows)})
    frame["square"] = frame["n"] ** 2
    return {"mean": float(frame["square"].mean()), "max": float(frame["square"].max())}


@app.local_entrypoint()
def main(x: int = 42, rows: int = 1000):
    print(f"square.remote({x}) = {square.remote(x)}")
    print(f"square.map(range(10)) = {list(square.map(range(10)))}")
    print(f"summarize.remote({rows}) = {summarize.remote(rows)}")
