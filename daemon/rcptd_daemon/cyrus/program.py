"""Whether the program that we are was replaced on disk: then a newer one is to take the next client."""

import os
import sys
from pathlib import Path

_Look = tuple[int, int, int]


class Program:
    """The files of a program as they were when it started; what cannot be seen then is not watched."""

    def __init__(self, paths: tuple[str, ...]) -> None:
        self._seen = {path: look for path in paths if (look := _look(path))}

    def replaced(self) -> bool:
        """Say whether a file is gone or another."""
        return any(_look(path) != look for path, look in self._seen.items())


def started() -> Program:
    """Watch the script that was started, and the code behind it, which an upgrade replaces with it."""
    script = sys.argv[0]
    code = str(Path(__file__).resolve())
    return Program((script, code) if script.startswith("/") else (code,))


def _look(path: str) -> _Look | None:
    try:
        seen = os.stat(path)  # noqa: PTH116 - before each client
    except OSError:
        return None
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
