"""One connection to one next hop, and what it says of recipients.

A transaction is MAIL and some RCPTs, and RSET ends it when the next one begins; nothing is ever sent. Where the hop
offers PIPELINING (RFC 2920) all of that is one write, and the replies are read in their order.

A reply belongs to a command by its place alone. So nothing is written while something lies unread, and where a reply
turns up that nobody asked for, or one that no RCPT can have, the "no" before it may have been another recipient's:
none of the answers of that transaction counts then. A hop that hangs up or says 421 has not broken the order, and what
it answered before that stands.

LIMITS. The limit of refusals is kept by asking about no more recipients at once than it leaves room for.

BUGS. A reply too many that comes after the last one was read is noticed too late for the answers that were given; the
connection is not used again then.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from socket import AF_UNIX, socket

from rcptd.address import Recipient
from rcptd.question import Absence, Answer, NotFound, Unavailable
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import TRY_AGAIN, HopTrouble, Outcome, Step, Trouble, TryAgain, of_rcpt
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.opening import Opened, open_dialogue
from rcptd.stores.callahead.replies import Reply
from rcptd.stores.callahead.wire import Wire

Dial = Callable[[], Awaitable[socket]]
"""Gives a connected, non-blocking stream socket, which is then the connection's to close; raises `OSError`.

Closes what it opened when it is cancelled.
"""

# RFC 5321 4.5.3.1.4 and 4.5.3.1.6: a command has 512 octets, a line of text 1000. What is longer nobody would take,
# but a parser that stumbles over it must not make a "no" of it.
COMMAND_OCTETS = 998

# Postfix counts RSET among the junk commands, of which a connection may give a hundred (smtpd_junk_command_limit). Each
# further one is an error like a refusal: measured, the 111th transaction was slow, and the 121st had no answer.
TRANSACTIONS = 80


async def open_connection(hop: NextHop, dial: Dial, options: Dialogue, *, until: float) -> "Connection":
    """Connect, and go through all that comes before MAIL; raises `HopTrouble`, and leaves nothing open then.

    `until` is the loop's time at which all of it must be over. After `Trouble.TLS` of an opportunistic dialogue the
    caller may try again with `tls="off"`.
    """
    loop = asyncio.get_running_loop()
    wire = Wire(hop, options.reply_timeout)
    try:
        async with asyncio.timeout_at(wire.limit(until)):
            await _connect(wire, await dial())
    except OSError as error:  # TimeoutError is one
        what = str(error) or "not within the time that there was"
        raise wire.trouble(Trouble.CONNECT, Step.CONNECT, what) from None
    try:
        opened = await open_dialogue(wire, hop, options, until)
    except BaseException:
        wire.abort()
        raise
    return Connection(wire, hop, options, opened, loop.time())


async def _connect(wire: Wire, connected: socket) -> None:
    loop = asyncio.get_running_loop()
    try:
        if connected.family == AF_UNIX:
            await loop.create_unix_connection(lambda: wire, sock=connected)
        else:
            await loop.create_connection(lambda: wire, sock=connected)
    except BaseException:
        connected.close()
        raise


class Connection:
    """A connection on which recipients can be asked about; on its loop only, one `ask` at a time.

    `opened` and `idle_since` are the loop's time: of the end of the opening, and of the last thing heard.
    """

    def __init__(self, wire: Wire, hop: NextHop, options: Dialogue, opened: Opened, now: float) -> None:
        self.hop = hop
        self.opened = now
        self.idle_since = now
        self.encrypted = opened.encrypted
        self._wire = wire
        self._options = options
        self._pipelining = "PIPELINING" in opened.extensions
        self._utf8 = "SMTPUTF8" in opened.extensions
        self._most = options.recipients_per_transaction
        self._transactions_left = TRANSACTIONS
        self._refusals_left = options.refusals_per_connection or None
        self._dirty = False
        self._trouble: HopTrouble | None = None

    @property
    def usable(self) -> bool:
        """Say whether more can be asked here; turns false by itself when the hop hangs up or speaks unasked."""
        return self.room > 0

    @property
    def room(self) -> int:
        """Say how many recipients fit into one transaction here, which is the best number to `ask` about; 0: none."""
        if self._trouble or not self._wire.silent or not self._transactions_left:
            return 0
        return self._most if self._refusals_left is None else min(self._most, self._refusals_left)

    async def ask(
        self, recipients: Sequence[Recipient], *, until: float
    ) -> list[Answer | HopTrouble | TryAgain]:
        """Ask about recipients, however many; gives an outcome for each, in their order, and raises none of them.

        `TRY_AGAIN` is for another connection: this one has heard enough refusals, or had enough transactions. Whoever
        cancels it aborts the connection.
        """
        outcomes: dict[int, Outcome] = {}
        plain: list[int] = []
        wide: list[int] = []
        for index, recipient in enumerate(recipients):
            if len(_rcpt(recipient).encode()) > COMMAND_OCTETS:
                outcomes[index] = Unavailable(f"{self.hop}: not asked about so long an address", of_recipient=True)
            elif recipient.local.isascii():
                plain.append(index)
            elif self._utf8:
                wide.append(index)
            else:
                outcomes[index] = NotFound(Absence.UTF8, f"{self.hop}: offers no SMTPUTF8")
        try:
            await self._ask_all(recipients, plain, outcomes, self._mail(""), until)
            await self._ask_all(recipients, wide, outcomes, self._mail(" SMTPUTF8"), until)
        except BaseException:
            self.abort()
            raise
        return [outcomes.get(index, self._trouble or TRY_AGAIN) for index in range(len(recipients))]

    def _mail(self, parameters: str) -> str:
        return f"MAIL FROM:<{self._options.sender}>{parameters}"

    async def _ask_all(
        self, recipients: Sequence[Recipient], todo: list[int], outcomes: dict[int, Outcome], mail: str, until: float
    ) -> None:
        """Ask about those at the places `todo`, as far as the connection bears it."""
        while todo and not self._trouble and (self.room or not self._wire.silent):
            batch, todo = todo[: self.room or 1], todo[self.room or 1 :]
            heard = await self._transaction(mail, [_rcpt(recipients[index]) for index in batch], until)
            again = [index for index, outcome in zip(batch, heard, strict=False) if outcome is TRY_AGAIN]
            outcomes.update(zip(batch, heard, strict=False))
            for index in again:
                del outcomes[index]
            if again:
                self._most = len(heard) - len(again)
            todo = again + todo

    async def _transaction(self, mail: str, rcpts: Sequence[str], until: float) -> list[Outcome]:
        """Give the outcomes of the first recipients; all, if no trouble came. The first is never to be asked again."""
        self._transactions_left -= 1
        commands = [(Step.MAIL, mail), *((Step.RCPT, rcpt) for rcpt in rcpts)]
        if self._dirty:
            commands.insert(0, (Step.RSET, "RSET"))
        self._dirty = True
        heard: list[Outcome] = []
        try:
            if self._pipelining:
                self._wire.write(commands[0][0], *(line for _, line in commands))
            for step, line in commands:
                if not self._pipelining:
                    self._wire.write(step, line)
                reply = await self._wire.read(step, until)
                if step is Step.RCPT:
                    heard.append(self._outcome(reply, first=not heard))
                elif reply.code // 100 != 2:
                    raise self._wire.trouble(Trouble.REFUSED, step, reply, reply.code)
            extra = self._wire.unread
            if extra and extra.code != 421:
                raise self._wire.trouble(Trouble.BROKEN, step, f"one reply too many: {extra}")
        except HopTrouble as trouble:
            if trouble.kind is Trouble.BROKEN and (trouble.code or self._wire.unread):
                heard.clear()
            self._trouble = trouble.with_traceback(None)
        self.idle_since = asyncio.get_running_loop().time()
        return heard

    def _outcome(self, reply: Reply, *, first: bool) -> Outcome:
        """Give the outcome of a reply to RCPT; raises `HopTrouble` where it is the last that this connection gives."""
        outcome = of_rcpt(reply, self.hop, self._options)
        if isinstance(outcome, HopTrouble) and (outcome.kind is Trouble.BROKEN or outcome.code == 421):
            raise outcome
        if outcome is TRY_AGAIN:
            # One recipient cannot be too many; asked again it would be so for ever.
            return Unavailable(f"{self.hop}: {reply}", of_recipient=True) if first else outcome
        if reply.code >= 400 and self._refusals_left:
            self._refusals_left -= 1
        return outcome

    async def reset(self, *, until: float) -> None:
        """End the transaction, if one is open; raises nothing: where that fails the connection is not `usable`."""
        if not self._dirty or self._trouble:
            return
        try:
            self._wire.write(Step.RSET, "RSET")
            reply = await self._wire.read(Step.RSET, until)
            if reply.code // 100 != 2:
                raise self._wire.trouble(Trouble.REFUSED, Step.RSET, reply, reply.code)
        except HopTrouble as trouble:
            self._trouble = trouble.with_traceback(None)
        self._dirty = False

    async def quit(self, *, within: float = 1.0) -> None:
        """Take leave and close, within so many seconds; raises nothing."""
        until = asyncio.get_running_loop().time() + within
        try:
            self._wire.write(Step.QUIT, "QUIT")
            await self._wire.read(Step.QUIT, until)
        except HopTrouble:
            pass  # whoever ended the session first, it is over
        finally:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        self._wire.abort()


def _rcpt(recipient: Recipient) -> str:
    return f"RCPT TO:<{recipient}>"
