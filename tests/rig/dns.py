"""A scripted DNS server on loopback, UDP and TCP, with a zone that a person can read, and with faults.

    ZONE = '''
    example.org       MX 10 mx1.example.org; MX 20 mx2.example.org
    mx1.example.org   A 203.0.113.1; AAAA 2a00::1
    mx2.example.org   60 CNAME mx1.example.org     # kept for 60 s, others for 300
    sick.example      !servfail
    half.example      MX 10 half.example; A !silence; AAAA 2a00::2
    '''
    with ScriptedDns(ZONE) as dns: ...  # at 127.0.0.1, dns.port

A line is a name and what is there: records, faults of one type, faults of all types. All names are absolute. Of what
is not there it says NXDOMAIN, or that the name has no such record where it, or something below it, is in the zone;
both with an SOA whose minimum is 60 s. It says to be a resolver: chains of CNAMEs come whole. `zone` may be
written anew, and `fault` is one of everything while it is set. `asked` is every question, in order.

Faults: servfail, refused, formerr, nxdomain, nodata, silence, slow (0.3 s late), truncated (over UDP, whole over TCP),
lost (truncated over UDP, silence over TCP), wrong-id, garbage, closed (as lost, TCP closes), referral (a server that
does not serve the name names others), unsure (an answer with neither authority nor recursion).
"""

import contextlib
import socketserver
import threading
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from tests.rig.ports import LOOPBACK

TTL = 300
CHAIN = 40  # CNAMEs that it follows: more than any resolver
_SLOW = 0.3  # seconds
_CODES = {"servfail": dns.rcode.SERVFAIL, "refused": dns.rcode.REFUSED, "formerr": dns.rcode.FORMERR}
_FAULTS = {
    *_CODES, "nxdomain", "nodata", "silence", "slow", "truncated", "lost", "closed", "wrong-id", "garbage", "referral",
    "unsure",
}  # fmt: skip

Zone = dict[str, dict[str, list[str]]]
"""For each name, by type ("" for all), its records as "TTL rdata", or its faults as "!fault"."""


def read(text: str) -> Zone:
    """Read a zone; raises `ValueError` for what it does not understand."""
    zone: Zone = {}
    for line in text.splitlines():
        name, _, rest = line.partition("#")[0].strip().partition(" ")
        for item in rest.split(";") if name else ():
            words = item.split()
            ttl = words.pop(0) if words and words[0].isdigit() else str(TTL)
            kind = words.pop(0) if words and words[0][0] != "!" else ""
            if words and words[0][0] == "!" and (len(words) > 1 or words[0][1:] not in _FAULTS):
                raise ValueError(f"{line!r}: no such fault")
            if not words or (kind and kind not in dns.rdatatype.RdataType.__members__):
                raise ValueError(f"{line!r}: neither a record nor a fault")
            value = words[0] if words[0][0] == "!" else f"{ttl} {' '.join(words)}"
            zone.setdefault(name.lower(), {}).setdefault(kind, []).append(value)
    return zone


class ScriptedDns:
    """The server; a context manager, or `start` and `stop`."""

    def __init__(self, zone: str) -> None:
        self.zone = read(zone)
        self.fault = ""
        self.asked: list[tuple[str, str, str]] = []  # name, type, "udp" or "tcp"
        self.port = 0
        self._leave = threading.Event()
        self._servers: list[socketserver.BaseServer] = []

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def write(self, zone: str) -> None:
        """Put another zone in force."""
        self.zone = read(zone)

    def questions(self, name: str) -> list[str]:
        """The types that were asked of one name."""
        return [kind for asked, kind, _ in self.asked if asked == name]

    def start(self) -> Self:
        """Listen, on the same port again after a stop."""
        script = self

        class OverUdp(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                reply = script._reply(self.request[0], "udp")
                if reply:
                    self.request[1].sendto(reply, self.client_address)

        class OverTcp(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the asker has gone
                    while length := self.rfile.read(2):
                        reply = script._reply(self.rfile.read(int.from_bytes(length, "big")), "tcp")
                        if not reply:
                            return
                        self.wfile.write(len(reply).to_bytes(2, "big") + reply)

        self._leave.clear()
        while not self._servers:
            udp = _Udp((LOOPBACK, self.port), OverUdp)
            port = udp.server_address[1]
            try:
                self._servers = [udp, _Tcp((LOOPBACK, port), OverTcp)]
            except OSError:  # taken over TCP
                udp.server_close()
                if self.port:
                    raise
        self.port = port
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Go down."""
        self._leave.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []

    def _reply(self, octets: bytes, over: str) -> bytes:
        """The octets of the reply; none where there is to be none, as for `silence`, after which TCP is closed."""
        query = dns.message.from_wire(octets)
        (question,) = query.question
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, over))
        there = self.zone.get(name, {})
        faults = {one[1:] for key in ("", kind) for one in there.get(key, []) if one[0] == "!"}
        fault = self.fault or next(iter(faults), "")
        if fault == "silence" or (fault == "lost" and over == "tcp"):
            self._leave.wait(30 if over == "tcp" else 0)
            return b""
        if fault == "closed" and over == "tcp":
            return b""
        if fault == "garbage":
            return octets[:2] + b"\xff" * 30
        if fault == "slow":
            self._leave.wait(_SLOW)
        reply = dns.message.make_response(query, recursion_available=True)
        reply.set_rcode(_CODES.get(fault, dns.rcode.NOERROR))
        if fault == "referral":
            reply.flags &= ~dns.flags.RA
            reply.authority.append(_rrset(".", "NS", f"{TTL} ns.root.example."))
        elif fault not in _CODES:
            self._fill(reply, name, kind, fault)
        if fault == "unsure":
            reply.flags &= ~(dns.flags.RA | dns.flags.AA)
        if fault == "wrong-id":
            reply.id ^= 1
        if over == "udp" and fault in ("truncated", "lost", "closed"):
            reply.flags |= dns.flags.TC
            reply.answer.clear()
        return reply.to_wire()

    def _fill(self, reply: dns.message.Message, name: str, kind: str, fault: str) -> None:
        for _ in range(CHAIN):
            records = [one for one in self.zone.get(name, {}).get(kind, []) if one[0] != "!"]
            aliases = self.zone.get(name, {}).get("CNAME", [])
            if fault in ("nxdomain", "nodata"):
                break
            if records:
                reply.answer.append(_rrset(name, kind, *records))
                return
            if not aliases:
                break
            reply.answer.append(_rrset(name, "CNAME", *aliases))
            name = aliases[0].split()[1].lower().removesuffix(".")
        else:
            return
        exists = any(f".{one}".endswith(f".{name}") for one in self.zone) and fault != "nxdomain"
        reply.set_rcode(dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN)
        top = name.rpartition(".")[2]
        reply.authority.append(_rrset(top, "SOA", f"{TTL} ns.{top} hostmaster.{top} 1 7200 900 604800 60"))


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True


class _Tcp(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def _rrset(name: str, kind: str, *records: str) -> dns.rrset.RRset:
    ttls = [int(one.split()[0]) for one in records]
    texts = [one.partition(" ")[2] for one in records]
    owner = dns.name.from_text(name)
    return dns.rrset.from_text_list(
        owner, min(ttls), dns.rdataclass.IN, kind, texts, origin=dns.name.root, relativize=False
    )
