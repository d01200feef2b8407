"""A milter on pymilter that does nothing: what any filter of recipients in Python costs at least.

    python -m benchmarks.nothing SOCKET [--bare]

It negotiates what rcptd negotiates, so that the same packets travel, and takes every recipient. As people write them
it is a class (`Milter.Base`); `--bare` registers its callbacks with the extension itself, as rcptd does, which costs
less. It is ended by SIGKILL: libmilter takes seconds to end by itself.
"""

import argparse
import importlib
from typing import Any

Milter: Any = importlib.import_module("Milter")  # the stubs know only what rcptd_milter uses

STEPS = (
    Milter.P_NOHELO | Milter.P_NODATA | Milter.P_NOUNKNOWN | Milter.P_NOHDRS | Milter.P_NOEOH | Milter.P_NOBODY
    | Milter.P_NR_CONN | Milter.P_NR_MAIL
)  # fmt: skip
MACROS = (
    (Milter.M_CONNECT, "{client_addr}"),
    (Milter.M_ENVFROM, "i {auth_authen}"),
    (Milter.M_ENVRCPT, "i {rcpt_mailer} {rcpt_addr}"),
)


def negotiate(context: Any, offer: list[int]) -> Any:
    """Want what rcptd wants."""
    actions = offer[0] & Milter.SETSYMLIST
    if actions:
        for stage, names in MACROS:
            context.setsymlist(stage, names)
    offer[:] = [actions, offer[1] & STEPS, 0, 0]
    return Milter.CONTINUE


class Nothing(Milter.Base):  # type: ignore[misc]
    """One session."""

    def negotiate(self, offer: list[int]) -> Any:
        """Want what rcptd wants."""
        return negotiate(self._ctx, offer)

    def connect(self, *_: object) -> Any:
        """Say nothing."""
        return Milter.NOREPLY

    def envfrom(self, *_: object) -> Any:
        """Say nothing."""
        return Milter.NOREPLY

    def envrcpt(self, *_: object) -> Any:
        """Take it."""
        return Milter.CONTINUE


def run_bare(address: str) -> None:
    """Serve with callbacks of the extension's."""
    Milter.set_connect_callback(lambda *_: Milter.NOREPLY)
    Milter.set_envfrom_callback(lambda *_: Milter.NOREPLY)
    Milter.set_envrcpt_callback(lambda *_: Milter.CONTINUE)
    Milter.register("nothing", negotiate=negotiate)
    Milter.setbacklog(1024)
    Milter.setconn(address)
    Milter.opensocket(True)
    Milter.main()


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="benchmarks.nothing", description=__doc__)
    parser.add_argument("socket")
    parser.add_argument("--bare", action="store_true")
    given = parser.parse_args()
    if given.bare:
        run_bare(given.socket)
    Milter.factory = Nothing
    Milter.set_flags(0)
    Milter.setbacklog(1024)
    Milter.runmilter("nothing", given.socket, 60)


if __name__ == "__main__":
    main()
