"""hosts.allow and hosts.deny: which TCP clients a service takes, by the library that Cyrus asks, too.

It is told the client's address alone, for a name would have
to be looked up and waited for; so a rule by name matches nobody. A rule that starts a program (`spawn`, `twist`) starts
none; one that puts another program in our place refuses.
"""

import ctypes

LIBRARY = "libwrap.so.0"
_UNKNOWN = b"unknown"  # STRING_UNKNOWN of tcpd.h


class Wrappers:
    """The rules for one service; raises `OSError` where the library cannot be had. The files are read each time."""

    def __init__(self, service: str) -> None:
        library = ctypes.CDLL(LIBRARY)
        self._allows = library.hosts_ctl
        self._allows.argtypes = (ctypes.c_char_p,) * 4
        self._dry_run = ctypes.c_int.in_dll(library, "dry_run")
        self._service = service.encode("utf-8", "surrogateescape")

    def allow(self, address: str) -> bool:
        """Say whether a client may be served."""
        self._dry_run.value = 1  # no rule may start a program
        allowed: int = self._allows(self._service, _UNKNOWN, address.encode("ascii", "replace"), _UNKNOWN)
        # A rule with `twist` takes the dry run back.
        return bool(allowed) and self._dry_run.value == 1
