"""Access control lists, for whoever asks without a name: may mail be posted, and may the mailbox be known of.

smmapd asks as the anonymous user, so the entries for `anyone` and `anonymous` count and no other, in that spelling. An
identifier with a `-` in front takes rights away; the order of entries has no effect. Of the rights two count: `p` to
post, `l` to be seen. They stand for themselves: none of the old letters that stand for several rights (c, d), no
`deleteright` and no `acl_admin_implies_write` gives or takes one of the two.
"""

from collections.abc import Iterable
from typing import NamedTuple

_COUNTING = frozenset({b"anyone", b"anonymous"})


class Rights(NamedTuple):
    """What somebody without a name may do; `counted` are the entries that say so."""

    postable: bool
    visible: bool
    counted: tuple[tuple[bytes, bytes], ...]


def rights(acl: Iterable[tuple[bytes, bytes]]) -> Rights:
    """Add up the entries that count; never raises."""
    given, taken = bytearray(), bytearray()
    counted = []
    for identifier, letters in acl:
        negative = identifier.startswith(b"-")
        if (identifier[1:] if negative else identifier) in _COUNTING:
            counted.append((identifier, letters))
            (taken if negative else given).extend(letters)
    return Rights(b"p" in given and b"p" not in taken, b"l" in given and b"l" not in taken, tuple(counted))
