"""The recorded replies of real smmapds of three versions: vectors.json, with every byte of their fixtures.

A vector is what a client sent and what it got, on one of ten sites. Its strings are latin-1, so that they hold any
byte. `questions` cuts well-formed ones into keys and replies; what breaks the protocol is for the wire's own tests.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.rig.cyrus_site import Site

VECTORS = Path(__file__).with_name("vectors.json")


@dataclass(frozen=True)
class Vector:
    """One exchange with a smmapd of some version on some site."""

    number: int
    version: str
    site: str
    request: bytes
    reply: bytes
    exit_status: int | None

    @property
    def is_well_formed(self) -> bool:
        """Whether the request is made of questions only."""
        payloads = _netstrings(self.request)
        return bool(payloads) and all(b" " in one for one in payloads)

    def questions(self) -> list[tuple[bytes, bytes]]:
        """The keys, each cut at its first NUL, with the payloads of their replies."""
        keys = [one.partition(b" ")[2].partition(b"\0")[0] for one in _netstrings(self.request)]
        return list(zip(keys, _netstrings(self.reply), strict=True))


@cache
def vectors() -> list[Vector]:
    """All vectors, in the order of their numbers."""
    return [
        Vector(
            one["n"], one["version"], one["config"], one["request"].encode("latin-1"), one["reply"].encode("latin-1"),
            one["exit"],
        )
        for one in _read()["vectors"]
    ]  # fmt: skip


def sites(place: Path) -> dict[str, Site]:
    """Write the sites of the vectors below a directory; give them by name."""
    made = {}
    for name, content in _read()["configs"].items():
        options = dict(line.split(": ", 1) for line in content["imapd_conf"].splitlines())
        site = made[name] = Site(place / name, options)
        site.mailboxes = {key.encode("latin-1"): value.encode("latin-1") for key, value in content["mailboxes"].items()}
        site.quotas = {path: value.encode("latin-1") for path, value in content["quota_files"].items()}
        site.write()
        if content["user_deny"]:
            records = {key.encode("latin-1"): value.encode("latin-1") for key, value in content["user_deny"].items()}
            site.directory.joinpath("user_deny.db").write_bytes(flat(records))
            site.own()
    return made


def arguments(name: str) -> list[str]:
    """What the smmapd of a site is started with, besides its imapd.conf."""
    given: list[str] = _read()["configs"][name]["argv"]
    return given


def flat(records: dict[bytes, bytes]) -> bytes:
    """A file of the backend flat; cyr_dbtool writes no LF, which a message here has."""

    def escaped(octets: bytes) -> bytes:
        return re.sub(rb"[\0\t\n\r\xff]", lambda octet: b"\xff" + bytes([octet[0][0] | 0x80]), octets)

    # No name here has what Cyrus orders in its own way but `.`, which comes before all that is printable.
    order = sorted(records, key=lambda key: key.replace(b".", b"\x02"))
    return b"".join(b"%b\t%b\n" % (escaped(key), escaped(records[key])) for key in order)


@cache
def _read() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(VECTORS.read_text())
    return content


def _netstrings(octets: bytes) -> list[bytes]:
    """The payloads of netstrings, none where one of them is broken."""
    found = []
    while octets:
        length = re.match(rb"(\d+):", octets)
        end = length.end() + int(length[1]) if length else 0
        if length is None or octets[end : end + 1] != b",":
            return []
        found.append(octets[length.end() : end])
        octets = octets[end + 1 :]
    return found
