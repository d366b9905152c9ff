"""A client in a terminal: what a person types and sees."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading

from harness import HERE, Client, client_python, wait_for

# What moves the cursor, colours text or sets a title.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b[=>]")


class Terminal:
    """`modal ARGUMENTS` with a terminal of a known size as its stdin, stdout and stderr."""

    ROWS, COLUMNS = 31, 97

    def __init__(self, client: Client, *arguments: str, environment: dict[str, str] | None = None):
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", self.ROWS, self.COLUMNS, 0, 0))
        named = {name: value for name, value in client.environment().items() if name not in ("COLUMNS", "NO_COLOR")}
        self.process = subprocess.Popen(
            [str(client_python()), "-m", "modal", *arguments],
            cwd=HERE, env=named | {"TERM": "xterm-256color"} | (environment or {}),
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return
            if not data:
                return
            self._seen.extend(data)

    def text(self) -> str:
        """Returns all that was shown so far, without control sequences."""
        return CONTROL.sub("", bytes(self._seen).decode(errors="replace"))

    def is_raw(self) -> bool:
        """Whether what is typed goes to the program as it is: no echo, no lines, no signals."""
        modes = termios.tcgetattr(self._ours)[3]
        return not modes & (termios.ECHO | termios.ICANON | termios.ISIG)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Waits until something is shown."""
        try:
            return wait_for(f"{pattern!r} in a terminal", lambda: re.search(pattern, self.text()), seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\nshown so far:\n{self.text()}") from None

    def end(self, seconds: float = 60) -> int:
        """Waits for the client's end and returns its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the client still runs after {seconds:g} s; shown so far:\n{self.text()}") from None

    def close(self) -> None:
        """Hangs up, as when its window is closed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
        os.close(self._ours)
