"""A function that imports what people import, in an image as people make it."""

import modal

app = modal.App("shoal-bench-numpy", image=modal.Image.debian_slim().pip_install("numpy", "pandas"))


@app.function(scaledown_window=2)
def imports(_):
    import numpy

    return numpy.__version__
