"""The PROXY protocol's header, versions 1 and 2: who is at both ends, for a server behind a proxy.

A server that expects one (Cyrus' lmtpd with -H) takes nothing before it. We are no proxy, so the header tells what is
true anyway: our end of the connection and theirs; for a unix socket, that there is nothing to tell.
"""

import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_LOCAL, _PROXY = 0x20, 0x21
_TCP4, _TCP6 = 0x11, 0x21


def v1(ours: Any, theirs: Any, family: int) -> bytes:
    """Write the header of version 1 for a connection's names, as `getsockname` and `getpeername` give them."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return b"PROXY UNKNOWN\r\n"
    source, target = _address(ours), _address(theirs)
    return f"PROXY TCP{source.version} {source} {target} {ours[1]} {theirs[1]}\r\n".encode()


def v2(ours: Any, theirs: Any, family: int) -> bytes:
    """Write the header of version 2, as `v1`."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return _SIGNATURE + struct.pack("!BBH", _LOCAL, 0, 0)
    source, target = _address(ours), _address(theirs)
    ends = source.packed + target.packed + struct.pack("!HH", ours[1], theirs[1])
    kind = _TCP4 if source.version == 4 else _TCP6
    return _SIGNATURE + struct.pack("!BBH", _PROXY, kind, len(ends)) + ends


def _address(name: Any) -> IPv4Address | IPv6Address:
    return ip_address(name[0].partition("%")[0])  # fe80::1%eth0: the zone is nobody else's business
