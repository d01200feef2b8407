"""The socketmap protocol without I/O: bytes in, requests and at most one complaint out.

A request is a netstring whose body is a map name, one space and a key; the key may hold anything. The
reply to each, in order, is a netstring too: a word and, after a space, a value or a text. What each verdict
becomes there is `maps`' affair; here are the words, and what is no request at all. That gets one `PERM`
reply, after the replies to what came before it, and the connection is to be closed: behind a broken
frame nobody can tell where the next one begins. (To Postfix a PERM is 451 4.3.5, never a refusal.)

A `Dialect` says how strict to be and in which words to complain. Ours is strict; Cyrus' smmapd takes leading
zeros, a request without a map name and one with a NUL in it, and its words are known to people's rulesets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rcptd.address import KEY_OCTETS
from rcptd.netstring import Decoder, Fault, TooLong

NAME_OCTETS = 100  # ours; a longer map name is no map of any configuration


class Request(NamedTuple):
    """One question: the name of the map, and the key as it was received."""

    map: str
    key: bytes


class MissingKey(Fault):
    """There is no space in the request."""

    words = "missing key"


class MissingName(Fault):
    """The request begins with the space."""

    words = "missing map name"


@dataclass(frozen=True, slots=True)
class Dialect:
    """How strictly requests are read, and how a fault is put into the body of a reply."""

    leading_zeros: bool
    nameless: bool
    """whether a request may leave its map name empty"""
    complaint: Callable[[Fault], bytes]
    name_octets: int = NAME_OCTETS
    """how long a map name may be"""
    nul_ends: bool = False
    """whether a request ends at its first NUL, as a string of C does"""
    answers_stalled: bool = False
    """whether half a request is complained about, too, where its time is over"""


def _own_complaint(fault: Fault) -> bytes:
    return b"PERM Bad request: " + str(fault).encode("ascii")


OWN = Dialect(leading_zeros=False, nameless=False, complaint=_own_complaint)


class Conversation:
    """The requests of one connection; lives wherever its connection lives.

    After a fault `complaint` is the body of the last reply, and nothing is taken any more.
    """

    __slots__ = ("_decoder", "_dialect", "_nul_ends", "complaint")

    def __init__(self, dialect: Dialect = OWN) -> None:
        self.complaint: bytes | None = None
        self._dialect = dialect
        self._nul_ends = dialect.nul_ends
        self._decoder = Decoder(dialect.name_octets + 1 + KEY_OCTETS, leading_zeros=dialect.leading_zeros)

    @property
    def partial(self) -> bool:
        """Say whether input is kept that was not given as a request yet."""
        return self._decoder.partial

    def receive(self, data: bytes, most: int) -> list[Request]:
        """Take input and give the requests that are complete, `most` of them (at least 1).

        When as many as `most` came, more may wait: receive `b""` to go on.
        """
        requests: list[Request] = []
        if self.complaint is not None:
            return requests
        for body in self._decoder.feed(data, most):
            if self._nul_ends and b"\0" in body:
                body = body.partition(b"\0")[0]  # noqa: PLW2901 - what remains of it
            name, space, key = body.partition(b" ")
            fault: Fault
            if not space:
                fault = MissingKey()
            elif not name and not self._dialect.nameless:
                fault = MissingName()
            elif len(key) > KEY_OCTETS or len(name) > self._dialect.name_octets:
                fault = TooLong()
            else:
                requests.append(Request(name.decode("utf-8", "surrogateescape"), key))
                continue
            self.complaint = self._dialect.complaint(fault)
            return requests
        if self._decoder.fault is not None:
            self.complaint = self._dialect.complaint(self._decoder.fault)
        return requests

    def whole(self, data: bytes) -> tuple[str, bytes] | None:
        """Give map and key of a request that comes alone, whole and without fault; None, untaken, for all else."""
        body = self._decoder.whole(data)
        if body is None or self._nul_ends or self.complaint is not None:
            return None
        name, _, key = body.partition(b" ")
        if not name or not key or len(key) > KEY_OCTETS or len(name) > self._dialect.name_octets:
            return None
        return name.decode("utf-8", "surrogateescape"), key

    def end(self) -> None:
        """Say that the input has ended, all requests being taken; half a request is a fault."""
        self._decoder.end()
        if self._decoder.fault is not None and self.complaint is None:
            self.complaint = self._dialect.complaint(self._decoder.fault)
