"""A name that is not there, believed for as long as its directory has not changed.

Most sites have no user_deny.db, and no quota root that covers all users. To look for one with open(2) costs twice what
it costs to see that the directory is the same one and was last changed when it was (by ctime, which no tool sets):
who makes a name, or renames something to it, changes the directory first.
"""

import os
import time
from typing import Self

SETTLED = 0.1  # seconds after a change in which another one may leave the same time


class Missing:
    """A path at which nothing is; any thread."""

    __slots__ = ("_directory", "_stamp")

    def __init__(self, directory: str | bytes, status: os.stat_result) -> None:
        self._directory = directory
        self._stamp = (status.st_ctime_ns, status.st_ino, status.st_dev)

    @classmethod
    def at(cls, path: str | bytes) -> Self | None:
        """Look for a path; None if something is there (a link that leads nowhere, too) or that may change unseen."""
        directory = os.path.dirname(path)  # noqa: PTH120 - octets
        try:
            status = os.stat(directory)  # noqa: PTH116
            if abs(time.time() - status.st_ctime) <= SETTLED:
                return None
            os.lstat(path)
        except FileNotFoundError as error:
            return cls(directory, status) if error.filename == path else None
        except OSError:
            return None
        return None

    def lasts(self) -> bool:
        """Say whether nothing can have come there."""
        try:
            status = os.stat(self._directory)  # noqa: PTH116 - a microsecond, not three
        except OSError:
            return False
        return (status.st_ctime_ns, status.st_ino, status.st_dev) == self._stamp
