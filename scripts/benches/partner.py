"""A process beside the benches that is given orders."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import IO, Any

# How long a process may take for one answer, in seconds.
ANSWER_SECONDS = 300


class Partner:
    """A process that takes orders on stdin and answers each with a line of JSON."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: IO[bytes]):
        self.name = name
        self.process = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True, bufsize=1,
            start_new_session=True,
        )  # fmt: skip

    def answer(self, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """Waits for the next line; one that takes too long ends the process."""
        assert self.process.stdout is not None
        watch = threading.Timer(seconds, self.process.kill)
        watch.start()
        try:
            line = self.process.stdout.readline()
        finally:
            watch.cancel()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self.process.wait(10)} and gave no answer within {seconds:g} s")
        return json.loads(line)

    def order(self, line: str) -> dict[str, Any]:
        """Gives an order and waits for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        return self.answer()

    def do(self, **order: Any) -> dict[str, Any]:
        """Gives an order in JSON."""
        return self.order(json.dumps(order))

    def close(self, seconds: float = 30) -> None:
        """Ends it by the end of its stdin, or by force."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(seconds)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait(10)
