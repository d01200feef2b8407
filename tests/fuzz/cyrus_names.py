"""Fuzz the reading of recipients as Cyrus has them: `tools/fuzz 60 cyrus_names`.

Invariants, for any octets:
- an address means something definite in both ways, and nothing is raised;
- the key is what the internal name is read as; a shared mailbox has no user;
- in strict, a key that is looked up has the parts that were typed, and none of what parts names within them;
- what is encoded in modified UTF-7 is printable ASCII.
"""

import random
import tempfile
from functools import cache
from pathlib import Path

from rcptd.stores.cyrus import utf7
from rcptd.stores.cyrus.imapdconf import ImapdConf, read
from rcptd.stores.cyrus.names import key_of, resolve

PIECES = (
    b"foo", b"bb", b"BB", b"user", b"DELETED", b"5F000000", b"-0x1", b"zz", b"+", b"+", b"@", b"@", b".", b"/", b"!",
    b"^", b"&", b"&-", b"&AOk-", b"\x1f", b"\x1d", b"\0", b"example.org", b"EXAMPLE.ORG", b"other.test", b"\xc3\xa9",
    b"\xff", b" ", b"%", b"x" * 500,
)  # fmt: skip
OPTIONS = (
    "virtdomains: off", "virtdomains: userid", "defaultdomain: example.org", "defaultdomain: Example.org",
    "unixhierarchysep: no", "postuser: bb", "postuser: bb@other.test", "lmtp_downcase_rcpt: no", "deletedprefix: foo",
)  # fmt: skip


@cache
def configured(choice: tuple[str, ...]) -> ImapdConf:
    """Give a configuration with some options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "imapd.conf"
        path.write_text("\n".join(("configdirectory: /x", *choice)))
        return read(path)


def one(source: random.Random) -> None:
    """Try one input."""
    by_name = {option.partition(":")[0]: option for option in source.sample(OPTIONS, k=source.randrange(5))}
    conf = configured(tuple(sorted(by_name.values())))
    address = b"".join(source.choices(PIECES, k=source.randrange(9))) + source.randbytes(source.choice((0, 0, 3)))
    drop = source.random() < 0.2

    faithful = resolve(conf, address, drop_folder=drop)
    assert faithful.key == key_of(conf, faithful.internal), address
    assert faithful.shared == (faithful.userid is None), address

    strict = resolve(conf, address, drop_folder=drop, strict=True)
    if strict.key is not None:
        assert key_of(conf, strict.internal) == strict.key, address
        parts = strict.key[1:].rpartition(b"\x1d")[2].split(b"\x1f")
        assert len(parts) == len(strict.boxes) + (0 if strict.shared else 2), address
        assert not set(b"\0\x1d!^") & set(b"".join(parts)), address

    assert all(0x20 <= octet < 0x7F for octet in utf7.encode(address)), address
