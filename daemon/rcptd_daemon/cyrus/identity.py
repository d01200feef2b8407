"""Who we are: never root, but the user that owns the mail."""

import os
import pwd
from collections.abc import Mapping

DEFAULT_USER = "cyrus"


class WouldStayRoot(Exception):
    """There is nobody to become; `str` says why."""


def leave_root(environ: Mapping[str, str]) -> None:
    """Become the Cyrus user ($CYRUS_USER, or `cyrus`) for good, if we are root; raises `WouldStayRoot`."""
    if os.geteuid() != 0 and os.getuid() != 0:
        return
    name = environ.get("CYRUS_USER") or DEFAULT_USER
    try:
        user = pwd.getpwnam(name)
    except KeyError:
        raise WouldStayRoot(f"must not run as root, and there is no user {name}") from None
    if user.pw_uid == 0:
        raise WouldStayRoot(f"must not run as root, and {name} is root")
    os.initgroups(name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
