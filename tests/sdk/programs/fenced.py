"""A function that looks for others from inside its container."""

import modal

app = modal.App("fenced")


@app.function()
def find(app_name: str, function: str, environment: str) -> str:
    """Returns "found", or how the look-up of a deployed function was refused."""
    try:
        modal.Function.from_name(app_name, function, environment_name=environment).hydrate()
        return "found"
    except modal.exception.Error as error:
        return f"{type(error).__name__}: {error}"


@app.local_entrypoint()
def main(app_name: str, function: str, environment: str):
    print("answer:", find.remote(app_name, function, environment))
