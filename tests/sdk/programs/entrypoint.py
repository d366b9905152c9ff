"""A local entrypoint with arguments of several types."""

import modal

app = modal.App("entrypoint")


@app.function()
def repeat(word: str, times: int, upper: bool) -> str:
    line = " ".join([word] * times)
    return line.upper() if upper else line


@app.local_entrypoint()
def main(word: str, times: int = 2, upper: bool = False):
    print(f"answer: {repeat.remote(word, times, upper)}")
