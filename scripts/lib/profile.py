"""Adds, finds and removes the profile `shoal` in the client's configuration, by the client's own rules.

    profile.py has FILE URL      exit 0 when there is a profile `shoal` for this server
    profile.py add FILE URL      takes `shoal token create --json` on stdin; active only when no profile is
    profile.py active FILE       exit 0 when `shoal` is the profile that a plain `modal` uses
    profile.py remove FILE       takes the profile out again

The text of other profiles, with its comments, stays as it is, byte by byte.
"""

import json
import os
import re
import sys
import tomllib
from pathlib import Path

NAME = "shoal"


def profiles(file: Path) -> dict[str, dict]:
    return tomllib.loads(file.read_text()) if file.exists() else {}


def active(file: Path) -> str | None:
    """Returns the profile that a plain client uses: the one marked active, else `default` where there is one."""
    found = profiles(file)
    marked = [name for name, values in found.items() if values.get("active") is True]
    return marked[0] if marked else "default" if "default" in found else None


def without(text: str) -> str:
    """Returns the text without the section of the profile."""
    section = re.compile(rf"^\[{NAME}\][^\n]*\n(?:(?!\[)[^\n]*(?:\n|\Z))*", re.MULTILINE)
    return section.sub("", text)


def write(file: Path, text: str) -> None:
    """Replaces the file as a whole; it holds secrets, so only its owner may read it."""
    mode = file.stat().st_mode & 0o777 if file.exists() else 0o600
    fresh = file.with_name(file.name + ".new")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as out:
        out.write(text)
    fresh.replace(file)


def add(file: Path, url: str, token: dict) -> None:
    was_active = active(file) in (None, NAME)
    text = without(file.read_text()) if file.exists() else ""
    if text and not text.endswith("\n"):
        text += "\n"
    values = {"server_url": url, "token_id": token["token_id"], "token_secret": token["token_secret"]}
    # What JSON writes of a text is a basic string of TOML.
    lines = [f"[{NAME}]"] + [f"{key} = {json.dumps(value)}" for key, value in values.items()] + ["active = true"] * was_active
    write(file, text + "\n".join(lines) + "\n")


def main() -> int:
    command, file = sys.argv[1], Path(sys.argv[2])
    match command:
        case "has":
            return 0 if profiles(file).get(NAME, {}).get("server_url") == sys.argv[3] else 1
        case "add":
            add(file, sys.argv[3], json.load(sys.stdin))
        case "active":
            return 0 if active(file) == NAME else 1
        case "remove":
            if file.exists():
                write(file, without(file.read_text()))
        case _:
            raise SystemExit(f"unknown command {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
