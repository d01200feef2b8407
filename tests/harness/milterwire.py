"""The MTA side of the milter protocol on asyncio: a conversation with one milter, for tests and the harness.

    async with MilterConnection("unix:/run/rcptd/milter.sock", macros={"j": "mx.example.org"}) as m:
        await m.connect("client.example", "192.0.2.7", 4711)
        await m.helo("client.example")
        await m.mail("<a@b.example>", "SIZE=1000")
        reply = await m.rcpt("<x@example.org>")

It behaves as Sendmail 8.17 and Postfix 3.7 do: a step that the milter negotiated away is not told, one
that it does not reply to is not waited for, and a list of macros that it asked for replaces the default
list of that stage. `travelled` names every packet sent, so that a test can prove what never was.

LIMITS. Every wait ends after `patience` seconds, progress packets included, and no packet over
`PACKET_OCTETS` is read. What the milter does wrong raises `MilterTrouble`; the connection is then spent.
"""

import asyncio
import contextlib
import re
import struct
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from tests.harness import milterpackets as wire
from tests.harness.milterpackets import Command, Kind, MilterTrouble, Negotiated, Reply, Stage, Step

__all__ = [
    "POSTFIX", "SENDMAIL", "Kind", "MilterConnection", "MilterTrouble", "Negotiated", "Reply", "Stage",
    "Step", "open_socket",
]  # fmt: skip

MacroLists = Mapping[Stage, Sequence[str]]

# What each MTA sends where the milter did not ask (measured; Postfix: its milter_*_macros defaults).
SENDMAIL: MacroLists = {
    Stage.CONNECT: ("j", "_", "{daemon_name}", "{if_name}", "{if_addr}"),
    Stage.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Stage.MAIL: (
        "i", "{auth_type}", "{auth_authen}", "{auth_ssf}", "{auth_author}",
        "{mail_mailer}", "{mail_host}", "{mail_addr}",
    ),
    Stage.RCPT: ("{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}"),
    Stage.END_OF_MESSAGE: ("{msg_id}",),
}  # fmt: skip
POSTFIX: MacroLists = {
    Stage.CONNECT: ("j", "{daemon_name}", "{daemon_addr}", "v", "_"),
    Stage.HELO: ("{tls_version}", "{cipher}", "{cipher_bits}", "{cert_subject}", "{cert_issuer}"),
    Stage.MAIL: (
        "i", "{auth_type}", "{auth_authen}", "{auth_author}",
        "{mail_addr}", "{mail_host}", "{mail_mailer}",
    ),
    Stage.RCPT: ("i", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
    Stage.DATA: ("i",),
    Stage.END_OF_HEADERS: ("i",),
    Stage.END_OF_MESSAGE: ("i",),
}  # fmt: skip

_STANDING = (Kind.ACCEPT, Kind.DISCARD)
_NOT_ASKED = Reply(Kind.NOT_ASKED)


async def open_socket(address: str, patience: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to `unix:/path`, `inet:127.0.0.1:7851`, `inet6:[::1]:7851` or `inet:7851@127.0.0.1`.

    Raises `OSError`, `TimeoutError` among them, after `patience` seconds at the latest.
    """
    kind, _, rest = address.partition(":")
    async with asyncio.timeout(patience):
        if kind in ("unix", "local"):
            return await asyncio.open_unix_connection(rest)
        if kind not in ("inet", "inet6"):
            raise ValueError(f"{address!r}: write unix:/path or inet:HOST:PORT")
        port, at, host = rest.partition("@")
        if not at:
            host, _, port = rest.rpartition(":")
        return await asyncio.open_connection(host.strip("[]"), int(port))


class MilterConnection:
    """One connection to a milter, from negotiation to QUIT; use it on one loop, from one task at a time.

    `macros` holds what the MTA knows, by name as on the wire (`j`, `{auth_authen}`), and may be changed at
    any time; `lists` says which of them go out at which stage by default. `rcpt` and `mail` fill in the
    macros that follow from their argument.
    """

    def __init__(
        self,
        address: str,
        *,
        version: int = 6,
        actions: int | None = None,
        steps: int | None = None,
        macros: Mapping[str, str] | None = None,
        lists: MacroLists = SENDMAIL,
        patience: float = 10.0,
    ) -> None:
        self.address = address
        self.version = version
        old = version == 2
        all_actions = wire.VERSION_2_ACTIONS if old else wire.ALL_ACTIONS
        all_steps = wire.VERSION_2_STEPS if old else wire.ALL_STEPS
        self.actions = all_actions if actions is None else actions
        self.steps = all_steps if steps is None else steps
        self.macros: dict[str, str] = dict(macros or {})
        self.lists = lists
        self.patience = patience
        self.travelled: list[str] = []
        self.macros_sent: dict[Stage, dict[str, str]] = {}
        self.negotiated = Negotiated(version, 0, Step(0), {})
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._session_reply: Reply | None = None
        self._message_reply: Reply | None = None
        self._in_mail = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.quit()
        await self.close()

    async def open(self) -> Negotiated:
        """Connect and negotiate."""
        try:
            self._reader, self._writer = await open_socket(self.address, self.patience)
        except (OSError, TimeoutError) as error:
            raise MilterTrouble(f"no connection: {error or 'timeout'}") from error
        await self._send(wire.negotiation(self.version, self.actions, self.steps), "NEGOTIATE")
        letter, data = await self._packet()
        if letter != wire.NEGOTIATE.letter:
            raise MilterTrouble(f"{letter!r} for an answer to the negotiation")
        self.negotiated = wire.negotiated(
            data, version=self.version, actions=self.actions, steps=self.steps
        )
        return self.negotiated

    async def close(self) -> None:
        """Close without a word, as an MTA does that was killed; twice is harmless."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self.patience):
                    await writer.wait_closed()

    # The SMTP session, command by command.

    async def connect(
        self, hostname: str = "localhost", client: str = "127.0.0.2", port: int = 4711
    ) -> Reply:
        """Tell who connected: an IP address, a unix socket's path, or "" for a client without address."""
        self._session_reply = self._message_reply = None
        data = wire.strings([hostname])
        if client.startswith("/"):
            data += b"L" + struct.pack("!H", 0) + wire.strings([client])
        elif client:
            family = b"4" if ip_address(client).version == 4 else b"6"
            # As Sendmail spells it: an IPv6 address carries its tag.
            text = client if family == b"4" else f"IPv6:{client}"
            data += family + struct.pack("!H", port) + wire.strings([text])
        else:
            data += b"U"
        return self._stands_for_session(await self._tell(wire.CONNECT, data))

    async def helo(self, name: str) -> Reply:
        """Tell HELO or EHLO."""
        return self._stands_for_session(await self._tell(wire.HELO, wire.strings([name])))

    async def mail(self, path: str, *parameters: str) -> Reply:
        """Tell MAIL FROM: `path` with its brackets, ESMTP parameters one by one."""
        self._message_reply = None
        self._in_mail = True
        bare = _bare(path)
        self.macros["{mail_addr}"] = bare
        self.macros["{mail_host}"] = bare.rpartition("@")[2] if "@" in bare else ""
        self.macros["{mail_mailer}"] = "esmtp"
        return self._stands_for_message(await self._tell(wire.MAIL, wire.strings([path, *parameters])))

    async def rcpt(self, path: str, *parameters: str, rejected: str = "") -> Reply:
        """Tell RCPT TO. `rejected` is the MTA's own refusal, as in "550 5.1.1 text"."""
        bare = _bare(path)
        if rejected:
            words = rejected.split(" ", 2)
            self.macros.update({"{rcpt_mailer}": "error", "{rcpt_host}": words[1], "{rcpt_addr}": rejected})
            if Step.REJECTED_RECIPIENTS not in self.negotiated.steps:
                await self._send_macros(wire.RCPT)  # Sendmail: macros, but no command (measured)
                return _NOT_ASKED
        else:
            self.macros.update(
                {"{rcpt_mailer}": "esmtp", "{rcpt_host}": bare.rpartition("@")[2], "{rcpt_addr}": bare}
            )
        reply = await self._tell(wire.RCPT, wire.strings([path, *parameters]))
        return self._stands_for_message(reply, skip=True)

    async def data(self) -> Reply:
        """Tell DATA, which version 2 and 3 do not know."""
        if self.negotiated.version < 4:
            return _NOT_ASKED
        return self._stands_for_message(await self._tell(wire.DATA))

    async def header(self, name: str, value: str) -> Reply:
        """Tell one header field."""
        return self._stands_for_message(await self._tell(wire.HEADER, wire.strings([name, value])))

    async def end_of_headers(self) -> Reply:
        """Tell that the header is complete."""
        return self._stands_for_message(await self._tell(wire.END_OF_HEADERS))

    async def body(self, chunk: bytes) -> Reply:
        """Tell a piece of the body, at most 65,535 octets."""
        return self._stands_for_message(await self._tell(wire.BODY, chunk[:65535]), skip=True)

    async def end_of_message(self) -> Reply:
        """Tell that the message is complete; its reply may come with modifications."""
        reply = await self._tell(wire.END_OF_MESSAGE)
        self._message_reply = None
        self._in_mail = False
        return reply

    async def unknown(self, line: str) -> Reply:
        """Tell an SMTP command that the MTA does not know; version 2 has no word for it."""
        if self.negotiated.version < 3:
            return _NOT_ASKED
        return await self._tell(wire.UNKNOWN, wire.strings([line]))

    async def abort(self) -> None:
        """End the transaction (RSET, or a new MAIL); a milter does not answer that."""
        self._message_reply = None
        self._in_mail = False
        await self._send(wire.frame(wire.ABORT.letter), wire.ABORT.name)

    async def quit(self) -> None:
        """End the session and the connection."""
        if self._writer and not self._writer.is_closing():
            with contextlib.suppress(MilterTrouble):
                await self._send(wire.frame(wire.QUIT.letter), wire.QUIT.name)
        await self.close()

    async def quit_new_connection(self) -> None:
        """End the session and keep the connection for the next one, as version 6 allows.

        An open transaction is ended first: libmilter never answers again after QUIT_NC in one (measured).
        """
        if self.negotiated.version < 6:
            raise ValueError("QUIT_NC needs version 6")
        if self._in_mail:
            await self.abort()
        self._session_reply = self._message_reply = None
        await self._send(wire.frame(wire.QUIT_NEW_CONNECTION.letter), wire.QUIT_NEW_CONNECTION.name)

    async def raw(self, octets: bytes) -> None:
        """Send octets as they are, for tests of hostile MTAs."""
        await self._send(octets, "RAW")

    async def unasked(self, seconds: float) -> bytes:
        """Collect what the milter says within some seconds though nobody asked; b"" is right."""
        if not self._reader:
            return b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._reader.read(4096)
        return b""

    async def closed_by_milter(self) -> bool:
        """Tell whether the milter closes the connection, without another packet, within `patience`."""
        if not self._reader:
            return True
        try:
            async with asyncio.timeout(self.patience):
                return not await self._reader.read(1)
        except TimeoutError:
            return False
        except OSError:
            return True

    # Below: one question, its macros, its reply.

    def _stands_for_session(self, reply: Reply) -> Reply:
        if reply.kind in _STANDING:
            self._session_reply = _NOT_ASKED
        return reply

    def _stands_for_message(self, reply: Reply, *, skip: bool = False) -> Reply:
        # An accept ends the questions about this message, as does skip where it is known (measured).
        if reply.kind in _STANDING or (skip and reply.kind is Kind.SKIP):
            self._message_reply = _NOT_ASKED
        return reply

    async def _tell(self, command: Command, data: bytes = b"") -> Reply:
        standing = self._session_reply or self._message_reply
        if standing:
            return standing
        await self._send_macros(command)
        if command.no & self.negotiated.steps:
            return _NOT_ASKED
        await self._send(wire.frame(command.letter, data), command.name)
        if command.no_reply & self.negotiated.steps:
            return Reply(Kind.NO_REPLY)
        return await self._reply(command)

    async def _send_macros(self, command: Command) -> None:
        """Send the macros of a stage; Sendmail does so also where the command itself is not wanted."""
        if command.stage is None:
            return
        names = self.negotiated.macros.get(command.stage, self.lists.get(command.stage, ()))
        known = {name: self.macros[name] for name in names if name in self.macros}
        self.macros_sent[command.stage] = known
        pairs = wire.strings(part for pair in known.items() for part in pair)
        if pairs:
            await self._send(wire.frame(wire.MACRO.letter, command.letter + pairs), "MACRO")

    async def _reply(self, command: Command) -> Reply:
        progress = 0
        modifications = ""
        try:
            async with asyncio.timeout(self.patience):
                while True:
                    letter, data = await self._packet()
                    if letter == wire.PROGRESS:
                        progress += 1
                    elif letter[0] in wire.MODIFICATIONS and command is wire.END_OF_MESSAGE:
                        modifications += letter.decode("ascii")
                    else:
                        reply = wire.reply(letter, data)
                        break
        except TimeoutError:
            raise MilterTrouble(f"no answer to {command.name} within {self.patience:g} s") from None
        return Reply(reply.kind, reply.text, progress, modifications)

    async def _packet(self) -> tuple[bytes, bytes]:
        if not self._reader:
            raise MilterTrouble("the connection is closed")
        try:
            async with asyncio.timeout(self.patience):
                (length,) = struct.unpack("!I", await self._reader.readexactly(4))
                if not 0 < length <= wire.PACKET_OCTETS:
                    raise MilterTrouble(f"a packet of {length} octets")
                packet = await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError):
                raise MilterTrouble(f"no answer within {self.patience:g} s") from None
            raise MilterTrouble(f"the milter closed the connection: {error}") from error
        return packet[:1], packet[1:]

    async def _send(self, octets: bytes, name: str) -> None:
        if not self._writer:
            raise MilterTrouble("the connection is closed")
        self.travelled.append(name)
        try:
            async with asyncio.timeout(self.patience):
                self._writer.write(octets)
                await self._writer.drain()
        except OSError as error:  # TimeoutError among them
            raise MilterTrouble(f"the milter takes no packet: {error or 'timeout'}") from error


def _bare(path: str) -> str:
    inner = path[1:-1] if path.startswith("<") and path.endswith(">") else path
    return re.sub(r"^@[^:\"]*:", "", inner)
