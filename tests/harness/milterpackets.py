"""The packets of the milter protocol as an MTA writes and reads them: numbers, frames, replies; no I/O.

A packet is four octets of length (big endian), one letter, and data. What the letters and bits mean is
libmilter's `mfdef.h`; there is no RFC. An MTA offers a version, the actions and the steps it can do; the
milter answers with the subset it wants, and from version 3 on may say which macros it wants at which
stage. What an MTA offers was measured: Sendmail 8.17 and Postfix 3.7 both offer version 6, actions 0x1ff
and steps 0x1fffff.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag

PACKET_OCTETS = 1 << 20  # libmilter's largest data size (MDS_1M); nothing longer is read
ALL_ACTIONS = 0x1FF
ALL_STEPS = 0x1FFFFF
VERSION_2_ACTIONS = 0x3F  # mfdef.h, SMFI_V2_ACTS
VERSION_2_STEPS = 0x7F  # mfdef.h, SMFI_V2_PROT


class MilterTrouble(Exception):
    """The milter broke the protocol, closed, or did not answer in time."""


class Step(IntFlag):
    """SMFIP_*: what the milter wants left out (NO_), does not reply to (NR_), or can do."""

    NO_CONNECT = 0x1
    NO_HELO = 0x2
    NO_MAIL = 0x4
    NO_RCPT = 0x8
    NO_BODY = 0x10
    NO_HEADERS = 0x20
    NO_END_OF_HEADERS = 0x40
    NR_HEADER = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    SKIP = 0x400
    REJECTED_RECIPIENTS = 0x800
    NR_CONNECT = 0x1000
    NR_HELO = 0x2000
    NR_MAIL = 0x4000
    NR_RCPT = 0x8000
    NR_DATA = 0x10000
    NR_UNKNOWN = 0x20000
    NR_END_OF_HEADERS = 0x40000
    NR_BODY = 0x80000
    HEADER_LEADING_SPACE = 0x100000


SETSYMLIST = 0x100  # SMFIF_SETSYMLIST: the one action that matters at RCPT


class Stage(IntEnum):
    """SMFIM_*: the stages for which a milter may ask for macros."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    END_OF_MESSAGE = 5
    END_OF_HEADERS = 6


@dataclass(frozen=True, slots=True)
class Command:
    """One thing an MTA tells a milter: its letter, and the bits by which the milter declines it."""

    name: str
    letter: bytes
    no: Step = Step(0)
    no_reply: Step = Step(0)
    stage: Stage | None = None


CONNECT = Command("CONNECT", b"C", Step.NO_CONNECT, Step.NR_CONNECT, Stage.CONNECT)
HELO = Command("HELO", b"H", Step.NO_HELO, Step.NR_HELO, Stage.HELO)
MAIL = Command("MAIL", b"M", Step.NO_MAIL, Step.NR_MAIL, Stage.MAIL)
RCPT = Command("RCPT", b"R", Step.NO_RCPT, Step.NR_RCPT, Stage.RCPT)
DATA = Command("DATA", b"T", Step.NO_DATA, Step.NR_DATA, Stage.DATA)
UNKNOWN = Command("UNKNOWN", b"U", Step.NO_UNKNOWN, Step.NR_UNKNOWN)
HEADER = Command("HEADER", b"L", Step.NO_HEADERS, Step.NR_HEADER)
END_OF_HEADERS = Command(
    "END OF HEADERS", b"N", Step.NO_END_OF_HEADERS, Step.NR_END_OF_HEADERS, Stage.END_OF_HEADERS
)
BODY = Command("BODY", b"B", Step.NO_BODY, Step.NR_BODY)
END_OF_MESSAGE = Command("END OF MESSAGE", b"E", stage=Stage.END_OF_MESSAGE)
ABORT = Command("ABORT", b"A")
QUIT = Command("QUIT", b"Q")
QUIT_NEW_CONNECTION = Command("QUIT_NC", b"K")
MACRO = Command("MACRO", b"D")
NEGOTIATE = Command("NEGOTIATE", b"O")


class Kind(Enum):
    """What a milter answered."""

    CONTINUE = "continue"
    REJECT = "reject"
    TEMPFAIL = "tempfail"
    REPLY = "reply code"
    ACCEPT = "accept"
    DISCARD = "discard"
    SKIP = "skip"
    NOT_ASKED = "not asked"
    """The milter negotiated the step away, or has said accept before."""
    NO_REPLY = "no reply"
    """The milter was told, and negotiated that it does not answer."""


_FINAL = {
    b"c": Kind.CONTINUE,
    b"r": Kind.REJECT,
    b"t": Kind.TEMPFAIL,
    b"y": Kind.REPLY,
    b"a": Kind.ACCEPT,
    b"d": Kind.DISCARD,
    b"s": Kind.SKIP,
}
PROGRESS = b"p"
MODIFICATIONS = frozenset(b"+-2ebhimq")  # legal before the reply to END OF MESSAGE
_REPLY = re.compile(r"([45]\d\d)(?: ([45]\.\d{1,3}\.\d{1,3}))? ?(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the milter answered; `text` is the whole SMTP reply where `kind` is REPLY.

    `progress` counts the progress packets that came first; `modifications` are the letters of the changes
    to the message that came with the reply to its end.
    """

    kind: Kind
    text: str = ""
    progress: int = 0
    modifications: str = ""

    @property
    def code(self) -> int:
        """The reply code, 0 where the milter gave none."""
        parts = _REPLY.fullmatch(self.text)
        return int(parts[1]) if parts else 0

    @property
    def enhanced(self) -> str:
        """The enhanced status code, "" where the milter gave none."""
        parts = _REPLY.fullmatch(self.text)
        return (parts[2] or "") if parts else ""

    def __str__(self) -> str:
        return self.text or self.kind.value


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What MTA and milter agreed on; `macros` holds the lists that the milter asked for."""

    version: int
    actions: int
    steps: Step
    macros: Mapping[Stage, tuple[str, ...]]


def frame(letter: bytes, data: bytes = b"") -> bytes:
    """Write one packet."""
    return struct.pack("!I", len(letter) + len(data)) + letter + data


def strings(parts: Iterable[str]) -> bytes:
    """Write strings, each with its final NUL; surrogates become the octets they stand for."""
    return b"".join(part.encode("utf-8", "surrogateescape") + b"\0" for part in parts)


def negotiation(version: int, actions: int, steps: int) -> bytes:
    """Write the MTA's offer."""
    return frame(NEGOTIATE.letter, struct.pack("!III", version, actions, steps))


def negotiated(data: bytes, *, version: int, actions: int, steps: int) -> Negotiated:
    """Read the milter's answer to an offer; raises `MilterTrouble` where it asks for more than that."""
    if len(data) < 12:
        raise MilterTrouble(f"the answer to the negotiation has {len(data)} octets")
    theirs, wanted, declined = struct.unpack("!III", data[:12])
    if not 2 <= theirs <= version:
        raise MilterTrouble(f"version {theirs} was never offered")
    if wanted & ~actions:
        raise MilterTrouble(f"actions {wanted & ~actions:#x} were never offered")
    if declined & ~steps:
        raise MilterTrouble(f"steps {declined & ~steps:#x} were never offered")
    macros: dict[Stage, tuple[str, ...]] = {}
    rest = data[12:]
    while rest:
        if len(rest) < 5 or b"\0" not in rest[4:]:
            raise MilterTrouble("a macro list is cut short")
        (stage,) = struct.unpack("!I", rest[:4])
        names, _, rest = rest[4:].partition(b"\0")
        if stage not in iter(Stage):
            raise MilterTrouble(f"macros for a stage {stage} that does not exist")
        macros[Stage(stage)] = tuple(names.decode("ascii", "replace").split())
    if macros and not wanted & SETSYMLIST:
        raise MilterTrouble("macro lists without SMFIF_SETSYMLIST")
    return Negotiated(theirs, wanted, Step(declined), macros)


def reply(letter: bytes, data: bytes) -> Reply:
    """Read a final reply; raises `MilterTrouble` for one that an MTA does not know."""
    kind = _FINAL.get(letter)
    if kind is None:
        raise MilterTrouble(f"unknown reply {letter!r}")
    if kind is not Kind.REPLY:
        return Reply(kind)
    text, end, rest = data.partition(b"\0")
    if not end or rest:
        raise MilterTrouble("a reply code without its final NUL")
    # On the wire a single % is doubled; an MTA makes one of two (measured on Postfix and Sendmail).
    whole = Reply(kind, text.decode("utf-8", "replace").replace("%%", "%"))
    if not whole.code:
        raise MilterTrouble(f"{whole.text!r} is no reply of class 4 or 5")
    if whole.enhanced and whole.enhanced[0] != str(whole.code)[0]:
        # Postfix loses the session over this; Sendmail passes it on. Both are our fault.
        raise MilterTrouble(f"{whole.text!r} mixes classes")
    return whole
