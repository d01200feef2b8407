"""Verdicts of a configuration file, as the milter's side would ask for them, without a front end."""

import asyncio
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rcptd.config import load, open_world
from rcptd.drive import Driver
from rcptd.query import Query
from rcptd.verdict import Action, Verdict
from rcptd_daemon.sections import SECTIONS

T = TypeVar("T")
LIMIT = 60.0  # seconds for whatever a test does with it


def run(what: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine to its end, with a limit."""

    async def main() -> T:
        async with asyncio.timeout(LIMIT):
            return await what

    return asyncio.run(main())


def words(verdict: Verdict | None) -> str:
    """A verdict as code and enhanced code; an accepted recipient has 250 2.1.5, `not ours` is for none."""
    if verdict is None:
        return "not ours"
    return "250 2.1.5" if verdict.action is Action.ACCEPT else f"{verdict.code} {verdict.enhanced}"


class Deciding:
    """A configuration in force; an asynchronous context manager."""

    def __init__(self, folder: Path, text: str) -> None:
        self._file = folder / "rcptd.toml"
        self._file.write_text(text)

    async def __aenter__(self) -> Self:
        self.world = open_world(load(self._file, SECTIONS))
        self._driver = Driver(self.world)
        self._driver.attach(asyncio.get_running_loop())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._driver.aclose()

    async def ask(self, recipient: str) -> str:
        """The verdict on one recipient, mail from the null sender."""
        decision = self._driver.begin(Query(recipient, "milter", sender="", client=None, authenticated="", size=0))
        await self._driver.finish(decision)
        return words(decision.verdict)

    async def ask_in_turn(self, recipients: Iterable[str]) -> list[str]:
        """The verdicts, one after the other."""
        return [await self.ask(one) for one in recipients]

    async def ask_at_once(self, recipients: Iterable[str]) -> list[str]:
        """The verdicts, all asked at once."""
        return await asyncio.gather(*map(self.ask, recipients))
