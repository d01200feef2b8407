"""Netstrings, `<length>:<body>,`: an incremental decoder without I/O, and the encoder.

Feed a `Decoder` whatever the wire brings; it gives the bodies that are complete, however they were cut
into pieces. The first fault ends it: bodies before the fault are still given, then `fault` holds an
exception whose type says which one, for a protocol to turn into its reply, and all further input is
dropped. A fault is found at the first byte that makes one, so the same bytes give the same bodies and the
same fault whether they come whole or one by one.

LIMITS: the length is bounded before a byte of the body is kept, and the length field itself is bounded.
What is kept is one incomplete frame, plus those that the caller did not take yet (`most`).
"""

import re

_DIGITS = re.compile(rb"[0-9]*")
_MORE_THAN_ANY_CHUNK = 1 << 62
_LENGTH_FIELD = 32  # digits, where leading zeros are allowed; otherwise as many as the limit has


class Fault(Exception):
    """The other side broke the framing; `str` of it is a few public words."""

    words = "bad netstring"

    def __str__(self) -> str:
        return self.words


class MissingLength(Fault):
    """There is no digit where a length must begin."""

    words = "missing length"


class LeadingZero(Fault):
    """The length has more digits than it needs, as in `007:`."""

    words = "leading zero in length"


class TooLong(Fault):
    """The length is beyond the limit, or its field is."""

    words = "too long"


class MissingColon(Fault):
    """The digits of the length are followed by something else than a colon, or by the end of input."""

    words = "missing colon"


class ShortBody(Fault):
    """The input ended inside a body."""

    words = "shorter than its length"


class MissingComma(Fault):
    """The body is followed by something else than a comma, or by the end of input."""

    words = "missing comma"


def encode(body: bytes) -> bytes:
    """Frame a body."""
    return b"%d:%b," % (len(body), body)


class Decoder:
    """One direction of one connection; `limit` is the longest body that is taken, in bytes.

    `leading_zeros` allows `007:`, as Cyrus does; the netstring specification forbids it.
    """

    __slots__ = ("_buffer", "_field", "_leading_zeros", "_length", "_limit", "fault")

    def __init__(self, limit: int, *, leading_zeros: bool = False) -> None:
        self.fault: Fault | None = None
        self._limit = limit
        self._leading_zeros = leading_zeros
        self._field = _LENGTH_FIELD if leading_zeros else len(str(limit))
        self._buffer = bytearray()
        self._length = -1  # of the body that the buffer begins with, -1 while its length is not read

    @property
    def partial(self) -> bool:
        """Say whether something is kept that was not given yet."""
        return bool(self._buffer) or self._length >= 0

    def feed(self, data: bytes, most: int = _MORE_THAN_ANY_CHUNK) -> list[bytes]:
        """Take input and give the bodies that are complete by now, `most` of them (at least 1).

        When as many as `most` came, more may wait: feed `b""` to go on.
        """
        if (body := self.whole(data)) is not None:
            return [body]
        if self.fault is not None:
            return []
        self._buffer += data
        return self._decode(most)

    def whole(self, data: bytes) -> bytes | None:
        """Give the body of what nearly every MTA sends, one whole frame in one piece; None, untaken, for all else."""
        if self._length >= 0 or self._buffer or self.fault is not None:
            return None
        colon = data.find(b":", 0, 6)
        if colon > 0 and data[-1] == 0x2C:
            digits = data[:colon]
            if digits.isdigit() and digits[0] != 0x30:
                length = int(digits)
                if length <= self._limit and length == len(data) - colon - 2:
                    return data[colon + 1 : -1]
        return None

    def end(self) -> None:
        """Say that the input has ended, all bodies being taken; an incomplete frame is then a fault."""
        if self.fault is not None or not self.partial:
            return
        if self._length < 0:
            self._fail(MissingColon())
        elif len(self._buffer) < self._length:
            self._fail(ShortBody())
        else:
            self._fail(MissingComma())

    def _decode(self, most: int) -> list[bytes]:
        buffer = self._buffer
        bodies: list[bytes] = []
        at = 0
        while len(bodies) < most:
            if self._length < 0:
                if (after := self._read_length(at)) < 0:
                    break
                at = after
            end = at + self._length
            if len(buffer) <= end:
                break
            if buffer[end] != 0x2C:
                self._fail(MissingComma())
                return bodies
            bodies.append(bytes(buffer[at:end]))
            at = end + 1
            self._length = -1
        del buffer[:at]  # moves a pointer, not the rest (CPython)
        return bodies

    def _read_length(self, at: int) -> int:
        """Read the length that begins there and give where the body begins, -1 while that is unknown."""
        buffer = self._buffer
        match = _DIGITS.match(buffer, at, at + self._field + 1)
        assert match  # it matches nothing at all, too
        digits, after = match[0], match.end()
        # In the order in which a reader of single bytes would meet them.
        if len(digits) > 1 and digits[0] == 0x30 and not self._leading_zeros:
            self._fail(LeadingZero())
        elif digits and (len(digits) > self._field or int(digits) > self._limit):
            self._fail(TooLong())
        elif after == len(buffer):
            pass
        elif not digits:
            self._fail(MissingLength())
        elif buffer[after] != 0x3A:
            self._fail(MissingColon())
        else:
            self._length = int(digits)
            return after + 1
        return -1

    def _fail(self, fault: Fault) -> None:
        self.fault = fault
        self._buffer = bytearray()
        self._length = -1
