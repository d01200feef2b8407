"""One connection to one next hop, and what it says of recipients."""

from collections.abc import Awaitable, Callable, Sequence
from socket import socket

from rcptd.address import Recipient
from rcptd.question import Answer
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import HopTrouble, TryAgain
from rcptd.stores.callahead.nexthop import NextHop

Dial = Callable[[], Awaitable[socket]]
"""Gives a connected, non-blocking stream socket, which is then the connection's to close; raises `OSError`."""


async def open_connection(hop: NextHop, dial: Dial, options: Dialogue, *, until: float) -> "Connection":
    """Connect, and go through all that comes before MAIL; raises `HopTrouble`, and leaves nothing open then.

    `until` is the loop's time at which all of it must be over. After `Trouble.TLS` of an opportunistic dialogue the
    caller may try again with `tls="off"`.
    """
    raise NotImplementedError


class Connection:
    """A connection on which recipients can be asked about; on its loop only, one `ask` at a time.

    `opened` and `idle_since` are the loop's time: of the end of the opening, and of the last thing heard.
    """

    hop: NextHop
    opened: float
    idle_since: float
    encrypted: bool

    @property
    def usable(self) -> bool:
        """Say whether more can be asked here; turns false by itself when the hop hangs up or speaks unasked."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """Say how many recipients fit into one transaction here, which is the best number to `ask` about; 0: none."""
        raise NotImplementedError

    async def ask(
        self, recipients: Sequence[Recipient], *, until: float
    ) -> list[Answer | HopTrouble | TryAgain]:
        """Ask about recipients, however many; gives an outcome for each, in their order, and raises none of them.

        `TRY_AGAIN` is for another connection: this one has heard enough refusals. Whoever cancels it aborts the
        connection.
        """
        raise NotImplementedError

    async def quit(self, *, within: float = 1.0) -> None:
        """Take leave and close, within so many seconds; raises nothing."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close at once."""
        raise NotImplementedError
