"""A database in one file: twoskip, skiplist or twom, whichever the file turns out to be, or flat."""

import os
import time
from pathlib import Path

from rcptd.stores.cyrus.databases import Description
from rcptd.stores.cyrus.databases.detection import chooser
from rcptd.stores.cyrus.databases.errors import Held, Trouble
from rcptd.stores.cyrus.databases.files import Following, Format, Plain, Walk
from rcptd.stores.cyrus.databases.learning import Learning
from rcptd.stores.cyrus.databases.watches import Watches

STEP = 200  # records of a walk under one lock: less than a millisecond
PATIENCE = 5.0  # seconds that a walk waits for writers, all in all


def _begins(form: Format, descriptor: int, prefix: bytes) -> bool:
    return form.begins(descriptor, prefix)


def _walk(form: Format, descriptor: int, walk: Walk) -> None:
    form.walk(descriptor, walk, STEP)


class OneFile:
    """A database in one file; see `files` for threads and locks."""

    def __init__(
        self,
        kind: str,
        path: Path,
        watches: Watches | None = None,
        learning: Learning | None = None,
        plain: Plain | None = None,
    ) -> None:
        self._configured = kind
        self._path = path
        self._file = Following(str(path), chooser(kind, plain), watches, learning)
        self.missing = self._file.missing
        self.fetch = self._file.fetch
        self.known = self._file.known

    @property
    def kind(self) -> str:
        """The backend in use: what the file is, once it was opened, else what was configured."""
        form = self._file.format
        return form.kind if form else self._configured

    def begins(self, prefix: bytes) -> bool:
        """Say whether any key begins with the prefix; raises `Trouble`."""
        return self._file.ask(_begins, prefix)

    def exists(self, key: bytes) -> bool:
        """Say whether the key is there; raises `Trouble`."""
        return self._file.fetch(key) is not None

    def describe(self) -> Description:
        """Go through all records, a few under each lock, so that writers go on; may take seconds."""
        walk = Walk()
        patience = time.monotonic() + PATIENCE
        while not walk.ended:
            try:
                self._file.ask(_walk, walk)
            except Held as held:
                if time.monotonic() > patience:
                    walk.faults.append(held.why)
                    break
                time.sleep(0.01)
            except Trouble as trouble:
                walk.faults.append(trouble.why)
                break
        octets = None
        try:
            octets = os.stat(self._path).st_size  # noqa: PTH116 - what Path.stat calls
        except OSError as error:
            if not walk.faults:
                walk.faults.append(f"{self._path}: {error.strerror}")
        records = walk.records if walk.ended or walk.records else None
        return Description(self._path, self.kind, octets, records, walk.faults)

    def close(self) -> None:
        """Close the file; questions that are under way end well."""
        self._file.close()


