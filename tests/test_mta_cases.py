"""Ring 4: the cases, by SMTP, on the harness, on real Postfix and on real Sendmail, in each mode of each.

One rcptd serves all of a module; before each file of cases it is given that file's world and reloads. The MTAs
run on the snippets of contrib/, with the domains of all worlds in place of example.org. What the client must
get is derived from the verdict in `tests.harness.expect`.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from tests.harness.cases import CaseFile, read_all
from tests.harness.expect import MODES, Mode, Mta, expected_of
from tests.harness.mta import HarnessMTA
from tests.harness.play import PASSWORD, play
from tests.rig.daemon import HEAD, Daemon, configuration_of
from tests.rig.place import sheltered
from tests.rig.postfix import Postfix
from tests.rig.require import require_postfix, require_sendmail
from tests.rig.sendmail import Sendmail
from tests.rig.snippets import snippet

FILES = read_all()
DOMAINS = tuple(dict.fromkeys(domain for file in FILES for domain in file.world.domains))
ASCII_DOMAINS = tuple(domain for domain in DOMAINS if domain.isascii())
MAPS: dict[Mode, str] = {"key": "recipients", "smmapd": "smmapd", "access": "access", "error": "sendmail"}

pytestmark = [pytest.mark.daemon, pytest.mark.timeout(300)]


class Rig:
    """One rcptd and the world that it is in."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._world = ""
        self._generation = 0

    def enter(self, file: CaseFile) -> None:
        """Reload rcptd with the world of a file, unless it is there."""
        if self._world == file.path:
            return
        self._world = file.path
        self._generation += 1
        self.daemon.write(configuration_of(file.world, self.daemon.folder, self._generation))
        self.daemon.reload()


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with sheltered("cases") as place, Daemon(place, HEAD + "\n[[rules]]\naccept = true\n") as daemon:
        # Worlds have stores that are down, and aliases that nobody can follow.
        daemon.expected_errors.append('msg="store')
        yield Rig(daemon)


def make_postfix(place: Path, daemon: Daemon, mode: Mode) -> Postfix:
    name = {"milter": "milter", "key": "recipient-map", "smmapd": "smmapd", "access": "access-map"}[mode]
    ports = {"127.0.0.1:7851": f"127.0.0.1:{daemon.milter_port}"}
    if mode != "milter":
        ports = {"127.0.0.1:7850": f"127.0.0.1:{daemon.map_port}", "= example.org": f"= {' '.join(DOMAINS)}"}
    text = snippet(f"postfix/{name}.cf", ports)
    if mode == "milter":
        text += f"\nrelay_domains = {' '.join(DOMAINS)}\n"
    if mode == "smmapd":
        text = text.replace("lmtp:unix:/run/cyrus/socket/lmtp", "discard") + "\nrelay_domains =\n"
    return Postfix(place, main_cf=text)


def make_sendmail(place: Path, daemon: Daemon, mode: Mode) -> Sendmail:
    relayed = tuple(ASCII_DOMAINS)
    if mode == "milter":
        text = snippet("sendmail/milter.mc", {"7851@": f"{daemon.milter_port}@"})
        return Sendmail(place, mc=text + "FEATURE(`relay_hosts_only')dnl\n", relay_domains=relayed)
    if mode == "error":
        text = snippet(
            "sendmail/socketmap.mc",
            {
                "7850@": f"{daemon.map_port}@",
                "RCPTD_DOMAIN(`example.org')dnl": "\n".join(f"RCPTD_DOMAIN(`{one}')dnl" for one in ASCII_DOMAINS),
            },
        )
        return Sendmail(place, mc=text, relay_domains=relayed)
    # The same ruleset over a map of another shape: what it makes of OK, NOTFOUND, TEMP and PERM alone. Its K name
    # is the map name of the request.
    text = snippet(
        "sendmail/socketmap-plain.mc",
        {
            "7850@": f"{daemon.map_port}@",
            "C{RcptdDomain}example.org": "C{RcptdDomain}" + " ".join(ASCII_DOMAINS),
            "Ksendmail socket": f"K{MAPS[mode]} socket -a<OK>",
            "$(sendmail ": f"$({MAPS[mode]} ",
            "R$* $| OK\t": "R$* $| $* <OK>\t",
        },
    )
    return Sendmail(place, mc="FEATURE(`relay_hosts_only')dnl\n", mc_local=text, relay_domains=relayed)


class _HarnessThread:
    """The harness MTA on a loop of its own, so that blocking dialogues can be held with it."""

    def __init__(self, daemon: Daemon, mode: Mode) -> None:
        filters: dict[str, str] = {"milter": f"inet:127.0.0.1:{daemon.milter_port}"}
        if mode != "milter":
            filters = {"socketmap": f"inet:127.0.0.1:{daemon.map_port}", "manner": mode, "map_name": MAPS[mode]}
        self._mta = HarnessMTA(domains=DOMAINS, users={"joe": PASSWORD}, **filters)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._mta.start(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._mta.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def port(self) -> int:
        return self._mta.port


PLACES = [
    pytest.param((mta, mode), id=f"{mta}-{mode}", marks=[] if mta == "harness" else [pytest.mark.mta])
    for mta, modes in MODES.items()
    for mode in modes
]


@pytest.fixture(scope="module", params=PLACES)
def mta(request: pytest.FixtureRequest, rig: Rig) -> Iterator[tuple[Mta, Mode, int]]:
    name, mode = request.param
    with ExitStack() as stack:
        place = stack.enter_context(sheltered(f"{name}-{mode}"))
        if name == "postfix":
            require_postfix()
            port = stack.enter_context(make_postfix(place, rig.daemon, mode)).port
        elif name == "sendmail":
            require_sendmail()
            port = stack.enter_context(make_sendmail(place, rig.daemon, mode)).port
        else:
            port = stack.enter_context(_HarnessThread(rig.daemon, mode)).port
        yield name, mode, port


@pytest.mark.parametrize("file", FILES, ids=[Path(file.path).stem for file in FILES])
def test_each_recipient_gets_what_its_verdict_means_here(
    rig: Rig, mta: tuple[Mta, Mode, int], file: CaseFile
) -> None:
    name, mode, port = mta
    front_end = "milter" if mode == "milter" else "socketmap"
    cases = [
        case
        for case in file.cases
        # A real MTA's AUTH wants a password database; {auth_authen} over the wire is the harness's to show.
        if front_end in case.front_ends and name in case.mtas and not (case.auth and name != "harness")
    ]
    if not cases:
        pytest.skip(f"no case of this file is for {name} as {mode}")
    rig.enter(file)
    world = replace(file.world, domains=DOMAINS)
    wrong = [
        f"{case.title}: {heard}, which is not {expected}"
        for case in cases
        for heard in play(case, port)
        if not (expected := expected_of(case, heard.rcpt, world, mode, name)).meets(*heard.reply)
    ]
    assert not wrong, "\n".join(wrong)
