"""Mail exchangers by the DNS, against a scripted server: what RFC 5321 5.1 says, and that no trouble becomes a "no"."""

import asyncio
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest

from rcptd.question import Absence
from rcptd.stores.callahead import mx
from rcptd.stores.callahead.mx import DnsTrouble, Exchanger, Exchangers, MxResolver, is_own, is_public
from tests.rig.dns import ScriptedDns
from tests.rig.ports import LOOPBACK, free_port

T = TypeVar("T")

ZONE = """
example.org          MX 20 mx2.example.org; MX 10 MX1.example.org; MX 30 gone.example.org
mx1.example.org      A 9.0.0.1; AAAA 2a00::1
mx2.example.org      A 9.0.0.3
implicit.example     A 9.0.0.4; AAAA 2a00::4
six.example          AAAA 2a00::6
alias.example        CNAME example.org
hosted.example       MX 10 www.hosted.example
www.hosted.example   CNAME web.hosted.example
web.hosted.example   A 9.0.0.5
null.example         MX 0 .
nearly.example       MX 0 .; MX 10 mx2.example.org
below.empty.example  A 9.0.0.6
nowhere.example      MX 10 gone.example.org
dangling.example     CNAME gone.example.org
loop.example         CNAME pool.example
pool.example         CNAME loop.example
hostloop.example     MX 10 loop.example
twice.example        MX 10 mx2.example.org; MX 20 mx2.example.org
twisted.example      MX !nxdomain; A 9.0.0.7
literal.example      MX 10 9.0.0.8
half.example         MX 10 half.example; A !servfail; AAAA 2a00::7
other.example        MX 10 sick.example; MX 20 mx2.example.org
sick.example         !servfail
only.example         MX 10 sick.example
bogus.example        MX 10 mx1.bogus.example
mx1.bogus.example    A 127.0.0.1; A 10.1.2.3; AAAA fe80::1
mixed.example        MX 10 mx1.mixed.example; MX 20 mx2.example.org
mx1.mixed.example    A 127.0.0.1; A 10.1.2.3; A 9.0.0.9; AAAA ::1
short.example        1 MX 10 mx2.example.org
long.example         900000 MX 10 mx.long.example
mx.long.example      900000 A 9.0.0.10
"""
MX1 = Exchanger("mx1.example.org", ("2a00::1", "9.0.0.1"))
MX2 = Exchanger("mx2.example.org", ("9.0.0.3",))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def dns() -> Iterator[ScriptedDns]:
    with ScriptedDns(ZONE) as running:
        yield running


def run(what: Awaitable[T]) -> T:
    async def main() -> T:
        async with asyncio.timeout(20):
            return await what

    return asyncio.run(main())


def resolver(dns: ScriptedDns, **options: Any) -> MxResolver:
    return MxResolver([(LOOPBACK, dns.port)], **{"own": lambda _: False, "rng": random.Random(1), **options})


def found(dns: ScriptedDns, domain: str, **options: Any) -> Exchangers:
    return run(resolver(dns, **options).resolve(domain))


def trouble(dns: ScriptedDns, domain: str, **options: Any) -> str:
    with pytest.raises(DnsTrouble) as caught:
        found(dns, domain, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("domain", "exchangers"),
    [
        ("example.org", (MX1, MX2)),
        ("alias.example", (MX1, MX2)),
        ("implicit.example", (Exchanger("implicit.example", ("2a00::4", "9.0.0.4")),)),
        ("six.example", (Exchanger("six.example", ("2a00::6",)),)),
        ("hosted.example", (Exchanger("www.hosted.example", ("9.0.0.5",)),)),
        ("nearly.example", (MX2,)),
        ("twice.example", (MX2,)),
        ("half.example", (Exchanger("half.example", ("2a00::7",)),)),
        ("other.example", (MX2,)),
        ("null.example", Absence.NULL_MX),
        ("gone.example", Absence.DOMAIN),
        ("dangling.example", Absence.DOMAIN),  # RFC 5321 5.1: as if the alias had been the initial name
    ],
)
def test_a_sound_answer_is_what_rfc_5321_makes_of_it(dns: ScriptedDns, domain: str, exchangers: Exchangers) -> None:
    assert found(dns, domain) == exchangers


@pytest.mark.parametrize(
    ("domain", "why"),
    [
        ("sick.example", "SERVFAIL"),
        ("empty.example", "empty.example has no address"),
        ("nowhere.example", "gone.example.org has no address"),
        ("literal.example", "9.0.0.8 has no address"),
        ("only.example", "sick.example AAAA: .*SERVFAIL|sick.example A: .*SERVFAIL"),
        ("loop.example", "loop.example MX: "),
        ("hostloop.example", "loop.example A+: "),
        ("twisted.example", "denies the domain, and then does not"),
        ("", "no name of a domain"),
        ("[192.0.2.1]", "no name of a domain"),
        (f"{'x' * 64}.example", "LabelTooLong"),
    ],
)
def test_whatever_is_unclear_is_trouble(dns: ScriptedDns, domain: str, why: str) -> None:
    assert re.search(why, trouble(dns, domain))


@pytest.mark.parametrize(
    "fault", ["servfail", "refused", "formerr", "garbage", "wrong-id", "lost", "closed", "silence"]
)
@pytest.mark.parametrize("domain", ["example.org", "gone.example", "null.example", "implicit.example"])
def test_no_fault_of_the_server_is_ever_a_no(dns: ScriptedDns, domain: str, fault: str) -> None:
    dns.fault = fault
    assert len(trouble(dns, domain, limit=0.15)) < 400


@pytest.mark.parametrize("fault", ["referral", "unsure"])
@pytest.mark.parametrize("domain", ["gone.example", "implicit.example", "empty.example"])
def test_who_does_not_serve_a_name_cannot_deny_it(dns: ScriptedDns, domain: str, fault: str) -> None:
    dns.fault = fault
    assert "does not serve it" in trouble(dns, domain)


@pytest.mark.parametrize("type_", ["MX", "A"])
def test_a_denial_needs_both_queries(dns: ScriptedDns, type_: str) -> None:
    dns.write(f"half.gone.example {type_} !nxdomain; {'A' if type_ == 'MX' else 'MX'} !servfail")
    assert trouble(dns, "half.gone.example")


@pytest.mark.parametrize("fault", ["truncated", "slow"])
def test_a_truncated_answer_is_asked_for_over_tcp_and_a_late_one_counts(dns: ScriptedDns, fault: str) -> None:
    dns.fault = fault
    assert found(dns, "example.org") == (MX1, MX2)
    assert ("tcp" in {over for _, _, over in dns.asked}) == (fault == "truncated")


def test_no_search_domain_is_ever_tried(dns: ScriptedDns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {LOOPBACK}\nsearch example.org\noptions ndots:5\n")
    monkeypatch.setattr("dns.resolver.BaseResolver.reset", _with_port(dns.port))
    asking = MxResolver(resolv_conf=str(conf), own=lambda _: False)
    assert run(asking.resolve("mx1")) is Absence.DOMAIN
    assert run(asking.resolve("example.org")) == (MX1, MX2)
    assert {name for name, _, _ in dns.asked if "example.org" not in name} == {"mx1"}
    assert "mx1.example.org" not in {name for name, kind, _ in dns.asked if kind == "MX"}


def _with_port(port: int) -> Callable[[Any], None]:
    reset = __import__("dns.resolver").resolver.BaseResolver.reset

    def replacement(self: Any) -> None:
        reset(self)
        self.port = port

    return replacement


def test_without_a_resolv_conf_that_is_the_trouble(tmp_path: Path) -> None:
    with pytest.raises(DnsTrouble, match="NoResolverConfiguration"):
        run(MxResolver(resolv_conf=str(tmp_path / "none")).resolve("example.org"))


def test_another_nameserver_is_asked_where_the_first_is_sick(dns: ScriptedDns) -> None:
    nobody = ("127.0.0.2", free_port())
    asking = MxResolver([nobody, (LOOPBACK, dns.port)], limit=1.5, own=lambda _: False)
    assert run(asking.resolve("example.org")) == (MX1, MX2)


def test_two_ports_of_one_nameserver_are_a_fault_of_the_caller() -> None:
    with pytest.raises(ValueError, match="one port"):
        MxResolver([(LOOPBACK, 53), (LOOPBACK, 54)])


def test_equals_come_in_random_order_and_never_before_the_more_preferred(dns: ScriptedDns) -> None:
    names = [f"m{n}.example" for n in range(6)]
    records = "; ".join(f"MX {10 if n else 5} {name}" for n, name in enumerate(names))
    dns.write("\n".join([f"many.example {records}", *(f"{name} A 9.0.1.{n}" for n, name in enumerate(names))]))
    orders = set()
    for seed in range(8):
        exchangers = found(dns, "many.example", rng=random.Random(seed))
        assert not isinstance(exchangers, Absence)
        orders.add(tuple(one.host for one in exchangers))
        assert exchangers[0].host == "m0.example"
        assert sorted(one.host for one in exchangers) == names
    assert len(orders) > 3


def test_there_is_an_end_to_exchangers_and_addresses(dns: ScriptedDns) -> None:
    hosts = [f"m{n}.example" for n in range(30)]
    lines = [f"many.example {'; '.join(f'MX {n} {one}' for n, one in enumerate(hosts))}"]
    lines += [f"{one} {'; '.join(f'A 9.0.2.{n}; AAAA 2a00::{n}' for n in range(1, 31))}" for one in hosts]
    dns.write("\n".join(lines))
    exchangers = found(dns, "many.example")
    assert not isinstance(exchangers, Absence)
    assert [one.host for one in exchangers] == hosts[: mx.EXCHANGERS]
    for one in exchangers:
        assert len(one.addresses) == mx.ADDRESSES
        assert sum(":" in address for address in one.addresses) == mx.ADDRESSES // 2


def test_addresses_that_nobody_in_the_internet_has_are_left_out_unless_allowed(dns: ScriptedDns) -> None:
    assert "mx1.bogus.example is at fe80::1, which mx_networks does not allow" in trouble(dns, "bogus.example")
    assert found(dns, "mixed.example") == (Exchanger("mx1.mixed.example", ("9.0.0.9",)), MX2)
    allowed = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]
    (first, _) = _several(found(dns, "mixed.example", allowed=allowed))
    assert set(first.addresses) == {"10.1.2.3", "9.0.0.9"}


def _several(exchangers: Exchangers) -> tuple[Exchanger, ...]:
    assert not isinstance(exchangers, Absence)
    return exchangers


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1",
        "169.254.1.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255", "192.0.2.1",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:9.9.9.9", "fe80::1", "fec0::1", "fc00::1", "ff02::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_what_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["9.9.9.9", "172.32.0.1", "2a00::1", "64:ff9b::909:909"])
def test_what_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    ("ours", "left"),
    [
        ("9.0.0.1", []),
        ("9.0.0.3", ["a.example"]),
        ("9.0.0.4", ["a.example", "b.example", "c.example"]),
        ("9.0.0.5", ["a.example", "b.example", "c.example", "d.example"]),
    ],
)
def test_who_is_no_nearer_than_we_are_is_not_asked(dns: ScriptedDns, ours: str, left: list[str]) -> None:
    names = {"a.example": 10, "b.example": 20, "c.example": 20, "d.example": 30}
    records = "; ".join(f"MX {preference} {name}" for name, preference in names.items())
    hosts = "\n".join(f"{name} A 9.0.0.{n}" for n, name in enumerate(names, 1))
    dns.write(f"ring.example {records}\n{hosts}")
    allowed = [ip_network("9.0.0.0/8")]  # that one may be asked does not mean that we ask ourselves
    if left:
        exchangers = _several(found(dns, "ring.example", own=ours.__eq__, allowed=allowed))
        assert sorted(one.host for one in exchangers) == left
    else:
        assert "a.example is this host" in trouble(dns, "ring.example", own=ours.__eq__, allowed=allowed)


def test_another_server_of_this_host_may_be_asked_on_loopback(dns: ScriptedDns) -> None:
    allowed = [ip_network("127.0.0.0/8"), ip_network("::1")]
    (exchanger, _) = _several(found(dns, "mixed.example", allowed=allowed, own=is_own))
    assert set(exchanger.addresses) == {"::1", "127.0.0.1", "9.0.0.9"}


def test_the_kernel_tells_which_address_is_our_own() -> None:
    assert is_own(LOOPBACK)
    assert not is_own("192.0.2.1")
    assert not is_own("no address")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return  # there is loopback only
        assert is_own(probe.getsockname()[0])


# ---- what is remembered ----


def test_an_answer_counts_as_long_as_the_dns_says_within_bounds(dns: ScriptedDns) -> None:
    async def main() -> None:
        clock = Clock()
        asking = resolver(dns, clock=clock)
        for domain, seconds in (
            ("example.org", 60),  # gone.example.org: its SOA says 60
            ("implicit.example", 60),  # it has no MX record
            ("short.example", 30), ("long.example", 60),  # mx.long.example has no AAAA record
            ("null.example", 300), ("gone.example", 60),
        ):  # fmt: skip
            dns.asked.clear()
            await asking.resolve(domain)
            begun = len(dns.asked)
            clock.now += seconds - 0.1
            await asking.resolve(domain)
            assert len(dns.asked) == begun, domain
            clock.now += 0.2
            await asking.resolve(domain)
            assert len(dns.asked) > begun, domain

    run(main())


@pytest.mark.parametrize(("ttl", "seconds"), [(1, 30), (200, 200), (900000, 3600)])
def test_the_least_and_the_most_time(dns: ScriptedDns, ttl: int, seconds: int) -> None:
    dns.write(f"x.example {ttl} MX 10 y.example\ny.example {ttl} A 9.0.0.1; {ttl} AAAA 2a00::1")

    async def main() -> None:
        clock = Clock()
        asking = resolver(dns, clock=clock)
        for count, later in ((3, 0.0), (3, seconds - 1), (6, 2.0)):
            clock.now += later
            await asking.resolve("x.example")
            assert len(dns.asked) == count

    run(main())


def test_many_askers_are_one_question_even_when_the_first_has_given_up(dns: ScriptedDns) -> None:
    dns.fault = "slow"

    async def main() -> None:
        asking = resolver(dns)
        first = asyncio.create_task(asking.resolve("example.org"))
        others = [asyncio.create_task(asking.resolve("example.org")) for _ in range(50)]
        await asyncio.sleep(0.05)
        first.cancel()
        assert set(await asyncio.gather(*others)) == {(MX1, MX2)}
        assert first.cancelled()
        assert dns.questions("example.org") == ["MX"]

    run(main())


def test_while_the_dns_fails_the_exchangers_of_before_are_used_for_a_day(
    dns: ScriptedDns, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        clock = Clock()
        asking = resolver(dns, clock=clock, limit=2.0)
        assert await asking.resolve("example.org") == (MX1, MX2)
        dns.fault = "servfail"
        clock.now += 100
        assert await asking.resolve("example.org") == (MX1, MX2)
        assert "are those of before" in caplog.text
        asked = len(dns.asked)
        clock.now += 29
        assert await asking.resolve("example.org") == (MX1, MX2)
        assert len(dns.asked) == asked  # not asked again so soon
        dns.fault = "silence"
        clock.now += 2
        begun = asyncio.get_running_loop().time()
        assert await asking.resolve("example.org") == (MX1, MX2)
        assert asyncio.get_running_loop().time() - begun < 1.5  # PATIENCE, not the whole limit
        assert len(dns.asked) > asked
        dns.fault = ""
        dns.write("example.org MX 10 new.example.org\nnew.example.org A 9.0.0.99")
        clock.now += 40
        await asyncio.gather(*asking._flights.values())
        clock.now += 40
        assert _several(await asking.resolve("example.org"))[0].host == "new.example.org"
        dns.fault = "servfail"
        clock.now += 60 + mx.STALE + 1
        with pytest.raises(DnsTrouble, match="SERVFAIL"):
            await asking.resolve("example.org")

    run(main())


@pytest.mark.parametrize("domain", ["gone.example", "null.example"])
def test_a_no_is_never_used_after_its_time(dns: ScriptedDns, domain: str) -> None:
    async def main() -> None:
        clock = Clock()
        asking = resolver(dns, clock=clock)
        assert isinstance(await asking.resolve(domain), Absence)
        dns.fault = "servfail"
        clock.now += 301
        with pytest.raises(DnsTrouble, match="SERVFAIL"):
            await asking.resolve(domain)

    run(main())


def test_trouble_is_not_remembered(dns: ScriptedDns) -> None:
    async def main() -> None:
        asking = resolver(dns)
        dns.fault = "servfail"
        with pytest.raises(DnsTrouble):
            await asking.resolve("example.org")
        dns.fault = ""
        assert await asking.resolve("example.org") == (MX1, MX2)

    run(main())


def test_silence_at_every_step_ends_within_the_limit(dns: ScriptedDns) -> None:
    dns.write("x.example MX 10 y.example\ny.example A !silence; AAAA !silence")

    async def main() -> None:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(DnsTrouble):
            await resolver(dns, limit=0.4).resolve("x.example")
        assert asyncio.get_running_loop().time() - begun < 1.2

    run(main())


def test_all_queries_of_a_domain_together_have_one_limit(dns: ScriptedDns) -> None:
    dns.fault = "slow"  # 0.3 s each, and there are two in a row

    async def main() -> None:
        with pytest.raises(DnsTrouble, match=r"no answer of the DNS within 0\.5 s"):
            await resolver(dns, limit=0.5).resolve("example.org")

    run(main())


def test_so_many_domains_are_remembered_and_no_more(dns: ScriptedDns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "DOMAINS", 2)

    async def main() -> None:
        asking = resolver(dns)
        for domain in ("example.org", "implicit.example", "null.example", "implicit.example", "example.org"):
            await asking.resolve(domain)
        assert dns.questions("null.example") == ["MX"]
        assert dns.questions("example.org") == ["MX", "MX"]
        assert dns.questions("implicit.example").count("MX") == 1
        assert list(asking._known) == ["null.example", "example.org"]

    run(main())


def test_only_so_many_queries_are_under_way_at_once(dns: ScriptedDns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "QUERIES", 2)
    assert found(dns, "example.org") == (MX1, MX2)


def test_closing_ends_the_queries_and_tells_who_waits(dns: ScriptedDns) -> None:
    dns.fault = "silence"

    async def main() -> None:
        asking = resolver(dns)
        waiting = asyncio.create_task(asking.resolve("example.org"))
        await asyncio.sleep(0.05)
        await asking.aclose()
        with pytest.raises(DnsTrouble, match="closing"):
            await waiting
        assert not asking._flights

    run(main())


def test_a_fault_of_our_own_is_trouble_too(dns: ScriptedDns) -> None:
    def broken(_: str) -> bool:
        raise RuntimeError("of ours")

    assert "RuntimeError('of ours')" in trouble(dns, "example.org", own=broken)


def test_it_works_on_the_faster_loop(dns: ScriptedDns) -> None:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(resolver(dns).resolve("example.org")) == (MX1, MX2)
        dns.fault = "truncated"
        assert runner.run(resolver(dns).resolve("example.org")) == (MX1, MX2)
