"""Standard error where it is the client's socket, as spawn(8) makes it: a line there would be a reply."""

import os
import stat


def spare_client() -> bool:
    """Send standard error to nowhere if it is what we answer on; says whether it was."""
    if not (_same_pipe(0, 2) or _same_pipe(1, 2)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return True


def _same_pipe(one: int, other: int) -> bool:
    try:
        here, there = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    pipe = stat.S_ISSOCK(there.st_mode) or stat.S_ISFIFO(there.st_mode)
    return pipe and (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
