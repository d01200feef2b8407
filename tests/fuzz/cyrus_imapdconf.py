"""Fuzz the reading of imapd.conf: `tools/fuzz 60 cyrus_imapdconf`.

Invariants, for any octets in the file:
- a configuration comes out, or `FaultyImapdConf` with at least one fault and Cyrus' words, and nothing else;
- each fault begins `FILE:LINE: ` with a line that the file has;
- what is in force is listed whole, and a password never shown.
"""

import random
import re
import tempfile
from pathlib import Path

from rcptd.stores.cyrus import options
from rcptd.stores.cyrus.imapdconf import FaultyImapdConf, ImapdConf, in_force, read

LINES = (
    b"configdirectory: /x", b"configdirectory: x", b"postuser: bb", b"smmap_postuser: cc", b"PostUser : x",
    b"virtdomains: yes", b"virtdomains: On", b"unixhierarchysep: nope", b"umask: 027", b"maxquoted: 1 KiB",
    b"imapidlepoll: -1h30", b"tcp_keepalive_cnt: 0x", b"event_groups: quota  message", b"mboxlist_db: twom",
    b"quota_db_path: {configdirectory}/q", b"tls_cert_file: /y", b"unknown: z", b"# x", b"# x \\", b"\\", b"", b" ",
    b": x", b"@include: /nowhere/at/all", b"@include: /", b"@include: ", b"@other: x", b"rcptd_mode: strict",
    b"rcptd_mode: lenient", b"defaultpartition: a-b", b"x" * 5000 + b": y", b"sql_passwd: s",
)  # fmt: skip
ENDS = (b"\n", b"\n", b"\n", b"\r\n", b"\\\n", b"\0\n", b"")


def outcome(path: Path, service: str) -> ImapdConf | FaultyImapdConf:
    """What comes out of a file."""
    try:
        return read(path, service=service, environ={})
    except FaultyImapdConf as faulty:
        return faulty


def one(source: random.Random) -> None:
    """Try one input."""
    octets = bytearray(b"configdirectory: /x\n" if source.random() < 0.8 else b"")
    for line in source.choices(LINES, k=source.randrange(8)):
        octets += line + source.choice(ENDS)
    for _ in range(source.choice((0, 0, 0, 2))):
        octets[source.randrange(len(octets) + 1) :][:1] = source.randbytes(1)
    data = bytes(octets)
    with tempfile.NamedTemporaryFile(suffix=".conf") as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        found = outcome(path, source.choice(("", "smmap", "SMMAP")))
    if isinstance(found, FaultyImapdConf):
        assert found.faults, data
        assert found.fatal, data
        for fault in found.faults:
            where = re.match(re.escape(str(path)) + r":(\d+): \S", fault)
            assert where, (data, fault)
            assert 1 <= int(where[1]) <= data.count(b"\n") + 1, (data, fault)
        return
    conf = found
    listed = in_force(conf)
    assert [name for name, _, _ in listed] == list(options.DEFAULTS), data
    assert conf.configdirectory.is_absolute(), data
    assert all(value != "s" for name, value, _ in listed if name == "sql_passwd"), data
