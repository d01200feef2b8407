"""A database that cannot be asked at all, because of this machine's set-up and not of the file's state."""

from pathlib import Path
from typing import NoReturn

from rcptd.stores.cyrus.databases import Description
from rcptd.stores.cyrus.databases.errors import Unreadable


class Unusable:
    """Says to every question why it cannot be asked."""

    def __init__(self, kind: str, path: Path, why: str) -> None:
        self._kind = kind
        self._path = path
        self._why = why

    @property
    def kind(self) -> str:
        """The backend that was configured."""
        return self._kind

    def missing(self, quiet: bool = False) -> bool:  # noqa: ARG002 - a database's signature
        """Say that it is not."""
        return False

    def known(self, key: bytes) -> int:  # noqa: ARG002 - a database's signature
        """Say that nothing is known without a look."""
        return -1

    def fetch(self, key: bytes, quiet: bool = False) -> NoReturn:  # noqa: ARG002 - it is the same for all
        """Raise `Unreadable`."""
        raise Unreadable(self._why)

    begins = exists = fetch

    def describe(self) -> Description:
        """Say why nothing can be said."""
        return Description(self._path, self._kind, None, None, [self._why])

    def close(self) -> None:
        """Close nothing."""
