"""Where Cyrus 3.6.1 and ours must not agree: the one place that says what is kept out, and what stands for what.

Ours is the newest Cyrus, in faithful mode, and better in the few things that nobody can want as they are. The
differential test asks 3.6.1, since that is what a distribution has. So:

kept out of it, since the newest takes it otherwise (tests/test_cyrus_vectors.py holds it against recorded replies):
  - a detail that is encoded already (3.13.4 takes it as it is)
  - userdeny (from 3.12 on): no site has a user_deny.db
  - the option -p (from 3.12 on)
  - what breaks the protocol
  - internal names over 480 octets: 3.6.1 cuts them at 490 before it looks for a quota root, the newest at 510
  - the kind `j` of a mailbox

kept out, since 3.6.1 reads on behind the end of the value, into whatever follows in memory:
  - a quota root in the text form in a quota_db that is flat, or that is twoskip with no padding behind the value
  - a record of mailboxes.db that ends too early, where that is flat

mapped, since ours says TEMP where the original says PERM, or dies:
  - a record or quota that cannot be read
  - a record at which 3.6.1 aborts without an answer
"""

import re

DEFERRED = b"TEMP"  # ours, whatever it says behind it

_ENCODED = re.compile(rb"\+[^&]*&[A-Za-z0-9+,]*-", re.DOTALL)
_CANNOT_READ = frozenset(
    {
        b"PERM Mailbox has an invalid format",
        b"PERM Invalid identifier",
        b"PERM System I/O error",
        b"PERM Zero-length message literal",
    }
)
ABORTED = b""  # what the differential notes where 3.6.1 closes instead of a reply

NAME_OCTETS = 400  # of an address: its detail may grow by a half in modified UTF-7


def is_comparable(address: bytes) -> bool:
    """Whether 3.6.1 and the newest take an address alike."""
    return b"\0" not in address and not _ENCODED.search(address) and len(address) <= NAME_OCTETS


def is_comparable_record(backend: str, value: bytes) -> bool:
    """Whether 3.6.1 and the newest take a record of mailboxes.db alike, and each time."""
    if re.search(rb'T "?j', value):
        return False
    return backend != "flat" or not value.startswith(b"%") or _is_whole(value)


def _is_whole(value: bytes) -> bool:
    is_balanced = value.count(b"(") == value.count(b")") and value.count(b'"') % 2 == 0
    return is_balanced and value.endswith(b")") and not re.search(rb"[\\{]", value)


def is_comparable_quota(backend: str, root: bytes, value: bytes) -> bool:
    """Whether 3.6.1 reads a quota root of this backend to its end and no further."""
    if value.startswith(b"%") or backend in {"quotalegacy", "skiplist"}:
        return True
    return backend == "twoskip" and (len(root) + len(value)) % 8 != 0


def wanted(original: bytes) -> bytes:
    """What ours must say where 3.6.1 says this; DEFERRED stands for every TEMP that is not `Over quota`."""
    return DEFERRED if original == ABORTED or original in _CANNOT_READ else original


def comparable(ours: bytes) -> bytes:
    """Our reply as `wanted` writes it: the text of a TEMP is ours alone."""
    return DEFERRED if ours.startswith(b"TEMP ") and ours != b"TEMP Over quota" else ours
