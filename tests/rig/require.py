"""Real parts that a test needs: a missing one skips the test with a reason, or fails it where none may miss.

`RCPTD_REQUIRE_REAL=1` says that none may, as the continuous integration does: there a skip would be a green
light for something that nobody tried.
"""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

# Debian keeps daemons where an ordinary user's PATH does not lead.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"])
ROOT = Path(__file__).parents[2]
SENDMAIL_PREFIX = Path(os.environ.get("RCPTD_SENDMAIL", str(ROOT / ".real" / "sendmail")))
CYRUS_PROGRAMS = Path("/usr/lib/cyrus/bin")


def require(present: object, what: str) -> None:
    """Skip the test, or fail it under RCPTD_REQUIRE_REAL=1, when a real part is not present."""
    if present:
        return
    reason = f"{what}; `tools/setup test` fetches the real parts"
    if os.environ.get("RCPTD_REQUIRE_REAL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str | None:
    """The path of an installed program, also one in /usr/sbin."""
    return shutil.which(name, path=_PATH)


def require_program(name: str) -> str:
    """The path of an installed program; without it the test is skipped or fails."""
    path = program(name)
    require(path, f"{name} is not installed")
    assert path
    return path


def require_postfix() -> None:
    """Skip or fail unless a private Postfix can be started: the package and root's rights."""
    require(program("postfix"), "postfix is not installed")
    require(os.geteuid() == 0, "postfix starts as root only")


def require_sendmail() -> None:
    """Skip or fail unless a private Sendmail can be started: the unpacked packages, m4, root's rights."""
    binary = SENDMAIL_PREFIX / "usr/libexec/sendmail/sendmail"
    require(binary.exists(), "no Sendmail is unpacked in .real/sendmail")
    require(program("m4"), "m4 is not installed")
    require(os.geteuid() == 0, "sendmail opens its queue and sockets as root only")
    require(_has_all_libraries(str(binary)), "Sendmail misses a shared library")
    require(_may_unshare(), "unshare -u -m is not permitted here, and Sendmail wants a qualified host name")


def require_cyrus() -> None:
    """Skip or fail unless a private Cyrus IMAP can be started: its packages, root's rights, a /dev of its own."""
    require(program("cyrmaster") and program("saslpasswd2"), "cyrus-common or sasl2-bin is not installed")
    needed = ("smmapd", "imapd", "lmtpd", "cyr_dbtool", "cyr_deny")
    missing = [one for one in needed if not (CYRUS_PROGRAMS / one).exists()]
    require(not missing, f"Cyrus IMAP misses {', '.join(missing)}")
    require(os.geteuid() == 0, "cyrmaster starts as root only")
    require(_may_unshare(), "unshare -u -m is not permitted here, and Cyrus logs to /dev/log only")


@cache
def _has_all_libraries(binary: str) -> bool:
    found = subprocess.run(["ldd", binary], capture_output=True, text=True, timeout=10, check=False)
    return found.returncode == 0 and "not found" not in found.stdout


@cache
def _may_unshare() -> bool:
    tried = subprocess.run(["unshare", "-u", "-m", "true"], capture_output=True, timeout=10, check=False)
    return tried.returncode == 0
