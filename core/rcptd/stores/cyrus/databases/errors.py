"""Why a database cannot tell: one class for each thing that a caller may want to do about it."""


class Trouble(Exception):
    """A database cannot tell; `why` is for the log and the trace, never for a client."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Absent(Trouble):
    """There is no such file, or it is empty: Cyrus would make a new one."""


class Unreadable(Trouble):
    """The file is there and cannot be read: rights, a directory, a server that is down."""


class Damaged(Trouble):
    """What was read cannot be right: a checksum, an end too early, a pointer to nowhere."""


class Held(Trouble):
    """A writer is at work, or the answer is on its way: ask again in a moment."""


class OtherFormat(Damaged):
    """The file is of another format than it was when it was opened; never leaves this package."""


class Forgotten(Exception):
    """What is remembered does not tell; never leaves this package."""
