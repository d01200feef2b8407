"""Directories where real MTAs agree to live: owned by root, mode 0755, and so is every folder above.

Sendmail refuses a unix socket below a directory that everybody may write to, as /tmp is, and Postfix's
daemons run as the user `postfix`, whom pytest's own temporary directories (mode 0700) keep out.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARENTS = (Path("/run"), Path("/var/lib"))


@contextmanager
def sheltered(name: str = "rig") -> Iterator[Path]:
    """Yield a fresh directory, 0755, below none that others may write to; it is removed afterwards.

    The path is short, since that of a unix socket ends at 107 bytes. Without root's rights it is an ordinary
    temporary directory: the real MTAs are skipped then.
    """
    parent = next((one for one in PARENTS if os.geteuid() == 0 and _is_safe(one)), None)
    place = Path(tempfile.mkdtemp(prefix=f"rcptd-{name}-", dir=parent))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_safe(directory: Path) -> bool:
    # Some containers have a /run that everybody may write to.
    return all(one.is_dir() and not one.stat().st_mode & stat.S_IWOTH for one in (directory, *directory.parents))
