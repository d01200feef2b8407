"""The store that asks next hops: in which order, what trouble makes of an answer, and what it tells of itself.

The connections are made up here; tests/test_callahead_faults.py has real ones.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema
from rcptd.address import Recipient, parse
from rcptd.question import (
    EXISTS,
    NOT_FOUND,
    Absence,
    Answer,
    AsksServers,
    Disabled,
    Explains,
    Found,
    Mailbox,
    NotFound,
    Reports,
    Service,
    Unavailable,
)  # fmt: skip
from rcptd.stores.callahead import hops, pool, store
from rcptd.stores.callahead.connection import Dial
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import HopTrouble, Outcome, Step, Trouble
from rcptd.stores.callahead.mx import DnsTrouble, Exchanger, Exchangers, MxResolver
from rcptd.stores.callahead.nexthop import NextHop
from rcptd.stores.callahead.store import CallAhead, Settings, open_store

ANNA = parse("anna@example.org")
REFUSED = HopTrouble(Trouble.REFUSED, Step.MAIL, "550 5.7.1 listed", 550)
GREY = Unavailable("450 greylisted", of_recipient=True)


class Network:
    """All next hops there are: what each says, by its name; `stranger` is what is said of random local parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.says: dict[str, Outcome] = {}
        self.stranger: Outcome = NOT_FOUND
        self.delay = 0.0
        self.asked: list[tuple[str, list[str]]] = []
        self.options: list[Dialogue] = []
        self.dials = False
        self.opening = 0.0
        monkeypatch.setattr(hops, "open_connection", self.open)

    async def open(self, hop: NextHop, dial: Dial, options: Dialogue, *, until: float) -> "Line":
        self.opening = until - asyncio.get_running_loop().time()
        assert self.opening > 0
        self.options.append(options)
        if self.dials:
            try:
                (await dial()).close()
            except OSError as error:
                raise HopTrouble(Trouble.CONNECT, Step.CONNECT, str(error)) from error
        said = self.says.get(str(hop), EXISTS)
        if isinstance(said, HopTrouble) and said.step is not Step.MAIL:
            raise said
        return Line(self, hop)


class Line:
    """A connection to a hop of the network."""

    usable = True
    room = 10

    def __init__(self, network: Network, hop: NextHop) -> None:
        self.network = network
        self.hop = str(hop)

    async def ask(self, recipients: Sequence[Recipient], *, until: float) -> list[Outcome]:
        assert until
        network = self.network
        network.asked.append((self.hop, [one.local for one in recipients]))
        await asyncio.sleep(network.delay)
        said = network.says.get(self.hop, EXISTS)
        return [network.stranger if one.local.startswith("rcptd-") else said for one in recipients]

    async def quit(self, *, within: float = 1.0) -> None:
        assert within

    def abort(self) -> None:
        pass


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.setattr(pool, "CLOSING", 0.05)
    return Network(monkeypatch)


def settings(**options: Any) -> Settings:
    faults: list[str] = []
    found = schema.read(Settings, options, lambda key, what: faults.append(f"{key}: {what}"))
    assert found, faults
    return found


def faults(**options: Any) -> list[str]:
    found: list[str] = []
    schema.read(Settings, options, lambda key, what: found.append(f"{key}: {what}"))
    return found


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await main()

    asyncio.run(bounded())


def asking(ask: Callable[[CallAhead], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Do something with an open store, and close it."""

    async def main() -> None:
        ahead = open_store("ahead", settings(**options))
        try:
            await ask(ahead)
        finally:
            await ahead.aclose()

    run(main)


def answer(text: str = "anna@example.org", **options: Any) -> Answer:
    found: list[Answer] = []

    async def ask(ahead: CallAhead) -> None:
        found.append(await ahead.ask(parse(text)))

    asking(ask, **options)
    return found[0]


def why(said: Answer) -> str:
    assert isinstance(said, Unavailable), said
    return said.why


ONE, TWO = "lmtp:one:24", "smtp:two:25"
BOTH: dict[str, Any] = {"next_hops": [ONE, TWO]}


def test_it_is_what_it_says_it_is() -> None:
    ahead = CallAhead("ahead", settings(next_hops=ONE))
    for protocol in (Service, AsksServers, Reports, Explains):
        assert isinstance(ahead, protocol)
    assert ahead.next_hop


# The order of hops.


@pytest.mark.parametrize("said", [EXISTS, NOT_FOUND, GREY, Found(Mailbox(moved_to="x@example.net"))])
def test_what_a_hop_says_of_the_recipient_is_the_answer(network: Network, said: Answer) -> None:
    network.says[ONE] = said
    assert answer(**BOTH) == said
    assert {hop for hop, _ in network.asked} == {ONE}


@pytest.mark.parametrize(
    "trouble",
    [
        HopTrouble(Trouble.CONNECT, Step.CONNECT, "refused"),
        HopTrouble(Trouble.TIMEOUT, Step.BANNER, "silence"),
        HopTrouble(Trouble.REFUSED, Step.BANNER, "554 no", 554),
        HopTrouble(Trouble.AUTH, Step.AUTH, "535 no", 535),
        HopTrouble(Trouble.LOOP, Step.BANNER, "ourselves"),
        REFUSED,
    ],
)
def test_a_hop_that_says_nothing_of_the_recipient_makes_way_for_the_next(
    network: Network, trouble: HopTrouble
) -> None:
    network.says[ONE] = trouble
    assert answer(**BOTH) == EXISTS
    network.says[TWO] = REFUSED
    assert why(answer(**BOTH)) == f"{trouble.why}; 550 5.7.1 listed"


def test_a_hop_in_peace_is_passed_by_at_once(network: Network) -> None:
    network.says[ONE] = HopTrouble(Trouble.CONNECT, Step.CONNECT, "refused")

    async def ask(ahead: CallAhead) -> None:
        for _ in range(10):
            assert await ahead.ask(ANNA) == EXISTS
        assert len(network.options) == 3 + 1
        assert ahead.condition() == f"{ONE}: not well, left in peace for 1 s"

    asking(ask, **BOTH)


def test_without_a_route_nobody_is_asked(network: Network) -> None:
    assert "no route for example.org; add it to routes" in why(answer(routes={"example.net": ONE}))
    assert not network.options


def test_a_question_ends_at_its_time(network: Network) -> None:
    network.delay = 5
    assert why(answer(next_hops=ONE, timeout="100ms")) == "no answer in 0.1 s"


def test_whoever_gives_up_ends_at_once(network: Network) -> None:
    network.delay = 5

    async def ask(ahead: CallAhead) -> None:
        task = asyncio.create_task(ahead.ask(ANNA))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 1)
        assert ahead._accept_all.is_due((ONE, "example.org"), 0.0), "its test was not made"

    asking(ask, next_hops=ONE)


# The routes file, servers.


def test_the_routes_file_is_waited_for_at_the_start(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "routes"
    path.write_text(f"example.org {TWO}\n")
    assert answer(routes_file=str(path), next_hops=ONE) == EXISTS
    assert {hop for hop, _ in network.asked} == {TWO}


def test_a_routes_file_that_is_gone_is_told(network: Network, tmp_path: Path) -> None:
    async def ask(ahead: CallAhead) -> None:
        assert "No such file" in why(await ahead.ask(ANNA))
        assert ahead.condition() == f"{tmp_path}/routes: No such file or directory"
        assert ahead.explain(ANNA) == [ahead.condition()]

    asking(ask, routes_file=str(tmp_path / "routes"), next_hops=ONE)
    assert not network.asked


def test_a_server_that_another_store_named_is_asked(network: Network) -> None:
    async def ask(ahead: CallAhead) -> None:
        network.says["lmtp:backend1.example.org:2003"] = NOT_FOUND
        assert await ahead.ask_at("backend1.example.org!default", ANNA) == NOT_FOUND
        assert "is no host name" in why(await ahead.ask_at("unix:/etc/passwd", ANNA))
        network.delay = 5
        assert why(await ahead.ask_at("backend1.example.org", ANNA)) == "no answer in 0.2 s"

    asking(ask, servers="lmtp:*:2003", timeout="200ms")

    async def ask_without(ahead: CallAhead) -> None:
        assert "say how" in why(await ahead.ask_at("backend1.example.org", ANNA))

    asking(ask_without, next_hops=ONE)


# Mail exchangers.


def exchangers(monkeypatch: pytest.MonkeyPatch, found: Exchangers | Exception) -> None:
    async def resolve(_: MxResolver, domain: str) -> Exchangers:
        assert domain == "example.org"
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(MxResolver, "resolve", resolve)


BY_MX: dict[str, Any] = {"routes": {"example.org": ["mx", TWO]}, "mx_port": 2525}


def test_mail_exchangers_are_asked_in_their_order(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    exchangers(monkeypatch, (Exchanger("a.example", ("192.0.2.1",)), Exchanger("b.example", ("192.0.2.2",))))
    network.says["smtp:a.example:2525"] = REFUSED

    async def ask(ahead: CallAhead) -> None:
        assert ahead.explain(ANNA) == [f"route of {ANNA}: mx, {TWO}", f"next hop {TWO}: not asked yet"]
        assert await ahead.ask(ANNA) == EXISTS
        told = "\n".join(ahead.explain(ANNA))
        assert "next hop smtp:a.example:2525 by MX: 1 connections up, 1 of them idle" in told
        assert "smtp:b.example:2525 by MX: does not take every local part of example.org" in told
        network.says["smtp:b.example:2525"] = REFUSED
        network.says[TWO] = NOT_FOUND
        assert await ahead.ask(ANNA) == NOT_FOUND

    asking(ask, **BY_MX)


@pytest.mark.parametrize("absence", [Absence.NULL_MX, Absence.DOMAIN])
def test_what_the_dns_says_of_a_domain_is_an_answer(
    network: Network, monkeypatch: pytest.MonkeyPatch, absence: Absence
) -> None:
    exchangers(monkeypatch, absence)
    assert answer(**BY_MX) == NotFound(absence)
    assert not network.asked


def test_trouble_of_the_dns_makes_way_for_the_next(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    exchangers(monkeypatch, DnsTrouble("SERVFAIL"))
    assert answer(**BY_MX) == EXISTS
    assert why(answer(routes={"example.org": "mx"})) == "SERVFAIL"
    assert {hop for hop, _ in network.asked} == {TWO}


def test_without_dnspython_mx_says_so(
    network: Network, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "routes"
    path.write_text("example.org mx\n")
    monkeypatch.setitem(__import__("sys").modules, "rcptd.stores.callahead.mx", None)
    monkeypatch.setattr("rcptd.stores.callahead.settings.find_spec", lambda _: None)
    assert "pip install 'rcptd[mx]'" in why(answer(routes_file=str(path)))
    assert faults(routes={"example.org": "mx"}) == [": mx needs dnspython; install it by: pip install 'rcptd[mx]'"]
    assert not network.asked


# Next hops that take every local part.


def test_a_yes_of_a_hop_that_takes_everybody_proves_nothing(network: Network) -> None:
    network.stranger = EXISTS
    unproven = Found(Mailbox(unproven=True))

    async def ask(ahead: CallAhead) -> None:
        assert await ahead.ask(ANNA) == unproven
        ((_, batch),) = network.asked
        assert batch[0] == "anna"
        assert batch[1].startswith("rcptd-"), "in the same transaction"
        assert await ahead.ask(parse("bob@example.org")) == unproven
        assert len(network.asked[-1][1]) == 1
        assert f"next hop {ONE}: takes every local part of example.org" in ahead.explain(ANNA)
        assert await ahead.ask(parse("anna@example.net")) == unproven
        assert len(network.asked[-1][1]) == 2, "each domain by itself"

    asking(ask, next_hops=ONE)


def test_whoever_gets_a_yes_waits_for_a_test_under_way(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    network.stranger = EXISTS
    network.delay = 0.1

    async def ask(ahead: CallAhead) -> None:
        first = asyncio.create_task(ahead.ask(ANNA))
        await asyncio.sleep(0.05)
        network.delay = 0.0
        assert await ahead.ask(ANNA) == Found(Mailbox(unproven=True))
        assert await first == Found(Mailbox(unproven=True))

    asking(ask, next_hops=ONE)
    monkeypatch.setattr(store, "TEST", 0.01)

    async def ask_slow(ahead: CallAhead) -> None:
        network.delay = 0.2
        first = asyncio.create_task(ahead.ask(ANNA))
        await asyncio.sleep(0.05)
        network.delay = 0.0
        assert await ahead.ask(ANNA) == EXISTS, "but not for ever"
        await first

    asking(ask_slow, next_hops=ONE)


def test_connecting_may_take_as_long_as_is_said(network: Network) -> None:
    assert answer(next_hops=ONE, connect_timeout="30s") == EXISTS
    assert network.opening > 25


DISABLED = Found(Mailbox(disabled=Disabled()))


@pytest.mark.parametrize("stranger", [GREY, REFUSED, DISABLED])
def test_trouble_of_the_test_does_not_harm_the_answer(network: Network, stranger: Outcome) -> None:
    network.stranger = stranger

    async def ask(ahead: CallAhead) -> None:
        assert await ahead.ask(ANNA) == EXISTS
        assert await ahead.ask(ANNA) == EXISTS
        assert [len(batch) for _, batch in network.asked] == [2, 1], "not again at once"

    asking(ask, next_hops=ONE)


def test_a_hop_that_was_not_reached_is_tested_when_it_is(network: Network) -> None:
    network.says[ONE] = network.stranger = REFUSED

    async def ask(ahead: CallAhead) -> None:
        await ahead.ask(ANNA)
        network.says[ONE] = EXISTS
        await ahead.ask(ANNA)
        assert [len(batch) for _, batch in network.asked] == [2, 2]

    asking(ask, next_hops=ONE)


def test_a_no_is_a_no_whoever_else_is_taken(network: Network) -> None:
    network.says[ONE], network.stranger = NOT_FOUND, EXISTS
    assert answer(next_hops=ONE) == NOT_FOUND


def test_the_test_can_be_left_out(network: Network) -> None:
    network.stranger = EXISTS
    assert answer(next_hops=ONE, accept_all="ignore") == EXISTS
    assert [len(batch) for _, batch in network.asked] == [1]


# Dialling and options.


def test_hosts_and_unix_sockets_are_dialled(network: Network, tmp_path: Path) -> None:
    network.dials = True
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "lmtp"))
        unix.listen()
        assert answer(next_hops=f"smtp:127.0.0.1:{server.getsockname()[1]}") == EXISTS
        assert answer(next_hops=f"lmtp:unix:{tmp_path}/lmtp") == EXISTS
    assert why(answer(next_hops=f"lmtp:unix:{tmp_path}/none")) == "[Errno 2] No such file or directory"


def test_connecting_ends_at_its_time(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(*_: object) -> socket.socket:
        await asyncio.sleep(5)
        raise AssertionError

    monkeypatch.setattr("rcptd.stores.callahead.dialling.connect", connect)
    network.dials = True
    assert why(answer(next_hops="smtp:127.0.0.1:25", connect_timeout="100ms")) == "not connected in 0.1 s"


def test_an_exchanger_is_dialled_where_the_dns_has_it(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[object] = []

    async def connect(addresses: object, port: int) -> socket.socket:
        dialled.append((addresses, port))
        return socket.socket()

    monkeypatch.setattr("rcptd.stores.callahead.dialling.connect", connect)
    network.dials = True
    exchangers(monkeypatch, (Exchanger("a.example", ("192.0.2.1",)),))
    assert answer(**BY_MX) == EXISTS
    assert dialled == [(("192.0.2.1",), 2525)]


def test_the_password_is_read_for_each_connection(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"first\r\nnot this\n")
    options: dict[str, Any] = {"next_hops": ONE, "auth_user": "rcptd", "auth_password_file": str(path)}
    assert answer(**options) == EXISTS
    path.write_text("second")
    assert answer(**options) == EXISTS
    assert [one.auth_password for one in network.options] == ["first", "second"]
    for octets in (b"\n", b"a\0b\n"):
        path.write_bytes(octets)
        assert why(answer(**options)) == f"{path}: its first line is no password"
    path.write_bytes(b"\xff\n")
    assert "utf-8" in why(answer(**options))
    path.unlink()
    assert "No such file" in why(answer(**options))
    path.mkdir()
    assert "Is a directory" in why(answer(**options))


def test_tls_that_fails_is_left_out_where_it_is_opportunistic(network: Network) -> None:
    network.says[ONE] = HopTrouble(Trouble.TLS, Step.TLS, "no cipher")
    assert why(answer(next_hops=ONE, tls="opportunistic")) == "no cipher"
    assert [one.tls for one in network.options] == ["opportunistic", "off"]
    network.options.clear()
    assert why(answer(next_hops=ONE, tls="required")) == "no cipher"
    assert [one.tls for one in network.options] == ["required"]


def test_pools_are_bounded_in_number(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hops, "MOST", 2)

    async def ask(ahead: CallAhead) -> None:
        network.delay = 0.2
        busy = [asyncio.create_task(ahead.ask_at(f"b{at}.example.org", ANNA)) for at in range(3)]
        await asyncio.sleep(0.05)
        assert len(ahead._hops._pools) == 3, "none is forgotten that is in use"
        await asyncio.gather(*busy)
        network.delay = 0.0
        await asyncio.sleep(0.3)
        for at in range(3, 6):
            await ahead.ask_at(f"b{at}.example.org", ANNA)
        assert len(ahead._hops._pools) == 3
        assert "lmtp:b5.example.org:24" in ahead._hops._pools

    asking(ask, servers="lmtp:*:24", idle="100ms")


def test_a_condition_names_a_few_hops() -> None:
    async def ask(ahead: CallAhead) -> None:
        assert not ahead.condition()
        for at in range(7):
            ahead._hops.pool(hops.Place(NextHop("smtp", host=f"h{at}", port=25))).refusing = "550 secret"
        assert ahead.condition().count("refuses us") == 5
        assert ahead.condition().endswith("; and 2 more next hops")

    asking(ask, next_hops=ONE)


def test_it_explains_what_it_knows(network: Network) -> None:
    async def ask(ahead: CallAhead) -> None:
        assert ahead.explain(ANNA) == [f"route of {ANNA}: {ONE}", f"next hop {ONE}: not asked yet"]
        await ahead.ask(ANNA)
        assert ahead.explain(ANNA) == [
            f"route of {ANNA}: {ONE}",
            f"next hop {ONE}: 1 connections up, 1 of them idle, 0 questions waiting; 1 found",
            f"next hop {ONE}: does not take every local part of example.org",
        ]
        assert ahead._hops.describe(hops.Place(NextHop("smtp", host="h", port=25))) == "not asked yet"
        ahead._hops.pool(hops.Place(NextHop("smtp", host="h", port=25)))
        assert ahead._hops.describe(hops.Place(NextHop("smtp", host="h", port=25))).endswith("nothing asked yet")

    asking(ask, next_hops=ONE)
    assert network.asked


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({}, "nobody to ask"),
        ({"next_hops": ONE, "auth_user": "a"}, "go together"),
        ({"next_hops": ONE, "auth_password_file": "/p"}, "go together"),
        ({"next_hops": ONE, "hello": "a b"}, "is no host name"),
        ({"next_hops": ONE, "sender": "nonsense@"}, "is no address"),
        ({"next_hops": ONE, "sender": "anna"}, "with its domain"),
        ({"next_hops": ONE, "sender": "änna@example.org"}, "in ASCII"),
        ({"next_hops": ONE, "sender": '"a b"@example.org'}, "cannot stand in an SMTP command"),
        ({"next_hops": ONE, "also_no": "4.1.1"}, "refuses for good"),
        ({"next_hops": ONE, "also_no": 5}, "refuses for good"),
        ({"next_hops": ONE, "nameservers": "ns.example.org"}, "write an IP address"),
        ({"next_hops": ONE, "nameservers": "192.0.2.1:99999"}, "write an IP address"),
        ({"next_hops": ONE, "nameservers": "[[]"}, "write an IP address"),
        ({"next_hops": ONE, "nameservers": ["192.0.2.1", "192.0.2.1:54"]}, "two ports"),
    ],
)
def test_faulty_options_are_told(options: dict[str, Any], fault: str) -> None:
    (found,) = faults(**options)
    assert fault in found


def test_options_become_those_of_a_dialogue() -> None:
    given = settings(
        next_hops=ONE, hello="Filter.example.org", sender="<>", bare_refusal="unknown", also_no=["5.4.1"],
        nameservers=["192.0.2.1", "[2001:db8::1]:54", "2001:db8::2"],
    )  # fmt: skip
    found = given.dialogue()
    assert (found.hello, found.sender, found.bare_refusal) == ("filter.example.org", "", "unknown")
    assert found.also_no == frozenset({"5.4.1"})
    assert given.nameservers == (("192.0.2.1", 53), ("2001:db8::1", 54), ("2001:db8::2", 53))
    assert settings(next_hops=ONE, sender="Probe@Example.org").dialogue().sender == "Probe@example.org"
    assert settings(next_hops=ONE).dialogue().hello == socket.gethostname()
