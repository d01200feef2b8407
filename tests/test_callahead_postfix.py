"""Call-ahead to a real Postfix: its verdicts, its patience, its refusals of us, and the way to it by MX."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.deciding import Deciding, run
from tests.rig.dns import ScriptedDns
from tests.rig.lmtpd import codes
from tests.rig.nexthop_postfix import VERDICTS, NextHopPostfix
from tests.rig.place import sheltered
from tests.rig.ports import LOOPBACK, free_port
from tests.rig.require import require_postfix

pytestmark = pytest.mark.mta

RULES = """
[stores.hop]
type = "callahead"
memo = "off"
{options}

[[rules]]
verify = ["hop"]
"""

# What rcptd makes of what Postfix says; all else is the same.
OURS = {
    "450 4.7.1": "451 4.4.3",  # greylisted: not known yet
    "454 4.7.1": "451 4.4.3",  # it does not relay for us
    "551 5.1.6": "550 5.1.1",
}
UNKNOWN = "451 4.4.3"


@pytest.fixture(scope="module")
def hop() -> Iterator[NextHopPostfix]:
    require_postfix()
    with sheltered("hop") as place, NextHopPostfix(place) as running:
        yield running


def deciding(folder: Path, port: int, *options: str) -> Deciding:
    lines = [f'next_hops = ["smtp:{LOOPBACK}:{port}"]', 'hello = "filter.example.org"', *options]
    return Deciding(folder, RULES.replace("{options}", "\n".join(lines)))


def test_each_recipient_gets_what_postfix_says_itself(tmp_path: Path, hop: NextHopPostfix) -> None:
    asked = list(VERDICTS)
    wanted = [OURS.get(one, one) for one in map(codes, hop.ask(hop.port, *asked))]

    async def main() -> None:
        async with deciding(tmp_path, hop.port) as ours:
            assert dict(zip(asked, await ours.ask_in_turn(asked), strict=True)) == dict(zip(asked, wanted, strict=True))
            assert await ours.ask_at_once(asked) == wanted

    run(main())


def test_60_unknown_recipients_in_a_row_meet_neither_421_nor_a_pause(tmp_path: Path, hop: NextHopPostfix) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.port) as ours:
            begun = time.monotonic()
            assert await ours.ask_in_turn(f"nobody-{n}@example.org" for n in range(60)) == ["550 5.1.1"] * 60
            assert time.monotonic() - begun < 5  # at one second's pause in each beyond ten it would be 50

    run(main())
    assert "too many errors" not in hop.postfix.log()


def test_good_recipients_in_their_hundreds_meet_no_pause_either(tmp_path: Path, hop: NextHopPostfix) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.port) as ours:
            slowest = 0.0
            for _ in range(130):
                begun = time.monotonic()
                assert await ours.ask("user@example.org") == "250 2.1.5"
                slowest = max(slowest, time.monotonic() - begun)
            assert slowest < 0.9

    run(main())


def test_unknown_recipients_at_once(tmp_path: Path, hop: NextHopPostfix) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.port) as ours:
            begun = time.monotonic()
            assert await ours.ask_at_once(f"nobody-{n}@example.org" for n in range(200)) == ["550 5.1.1"] * 200
            assert time.monotonic() - begun < 5

    run(main())


@pytest.mark.parametrize("port", ["blocking", "choosy", "formal", "encrypted"])
def test_a_refusal_of_us_is_never_a_no(tmp_path: Path, hop: NextHopPostfix, port: str) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.ports[port]) as ours:
            assert await ours.ask_in_turn(["user@example.org", "nobody@example.org"]) == [UNKNOWN] * 2

    run(main())


def test_where_tls_is_required_it_is_spoken(tmp_path: Path, hop: NextHopPostfix) -> None:
    secure = ('tls = "required"', f'tls_ca = "{hop.certificate.file}"', 'tls_name = "mx.example.org"')

    async def main() -> None:
        async with deciding(tmp_path, hop.ports["encrypted"], *secure) as ours:
            assert await ours.ask_in_turn(["user@example.org", "nobody@example.org"]) == ["250 2.1.5", "550 5.1.1"]
        async with deciding(tmp_path, hop.ports["encrypted"], 'tls = "opportunistic"') as ours:
            assert await ours.ask_in_turn(["user@example.org", "nobody@example.org"]) == ["250 2.1.5", "550 5.1.1"]

    run(main())


ASKED = [f"{'user' if number % 2 else f'nobody-{number}'}@example.org" for number in range(30)]
WANTED = ["250 2.1.5" if one.startswith("user@") else "550 5.1.1" for one in ASKED]


def test_a_hop_that_takes_two_connections_answers_all_by_these(tmp_path: Path, hop: NextHopPostfix) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.ports["crowded"]) as ours:
            assert await ours.ask_in_turn(ASKED) == WANTED
            assert await ours.ask_at_once(ASKED) == WANTED

    run(main())


def test_a_hop_that_hangs_up_after_each_refusal_is_never_misunderstood(tmp_path: Path, hop: NextHopPostfix) -> None:
    async def main() -> None:
        async with deciding(tmp_path, hop.ports["stressed"]) as ours:
            assert await ours.ask_in_turn(ASKED) == WANTED
            at_once = await ours.ask_at_once(ASKED)
            # One whose connection is lost under it again and again has no answer; most have one.
            assert all(one in (wanted, UNKNOWN) for one, wanted in zip(at_once, WANTED, strict=True))
            assert at_once.count(UNKNOWN) < len(ASKED) / 2

    run(main())


def test_the_next_hop_in_the_list_is_asked_where_one_is_dead_or_refuses_us(
    tmp_path: Path, hop: NextHopPostfix
) -> None:
    hops = ", ".join(f'"smtp:{LOOPBACK}:{port}"' for port in (free_port(), hop.ports["blocking"], hop.port))

    async def main() -> None:
        async with Deciding(tmp_path, RULES.replace("{options}", f"next_hops = [{hops}]")) as ours:
            assert await ours.ask_in_turn(["user@example.org", "nobody@example.org"]) == ["250 2.1.5", "550 5.1.1"]

    run(main())


# ---- by MX ----

ZONE = f"""
example.org         MX 10 dead.example.org; MX 20 mx.example.org
dead.example.org    A 127.0.0.9
mx.example.org      A {LOOPBACK}
implicit.example    A {LOOPBACK}
null.example        MX 0 .
sick.example        !servfail
silent.example      !silence
strange.example     MX 10 strange.example; A 10.0.0.1
"""
ROUTED = ("example.org", "implicit.example", "null.example", "sick.example", "silent.example", "strange.example",
          "gone.example")  # fmt: skip


@pytest.mark.parametrize(
    ("recipient", "verdict"),
    [
        ("user@example.org", "250 2.1.5"),
        ("nobody@example.org", "550 5.1.1"),
        ("full@example.org", "452 4.2.2"),
        ("user@implicit.example", UNKNOWN),  # Postfix does not relay for it
        ("user@null.example", "556 5.1.10"),
        ("user@gone.example", "550 5.1.2"),
        ("user@sick.example", UNKNOWN),
        ("user@silent.example", UNKNOWN),
        ("user@strange.example", UNKNOWN),
        ("user@elsewhere.example", UNKNOWN),  # no route: a stranger, who is never asked
    ],
)
def test_the_way_by_mx(tmp_path: Path, hop: NextHopPostfix, recipient: str, verdict: str) -> None:
    routes = ", ".join(f'"{one}" = "mx"' for one in ROUTED)
    with ScriptedDns(ZONE) as dns:
        text = '[daemon]\ndeadline = "2s"\n' + RULES.replace("{options}", f"""\
routes = {{ {routes} }}
nameservers = ["{LOOPBACK}:{dns.port}"]
mx_port = {hop.port}
mx_networks = ["127.0.0.0/8"]""")  # fmt: skip

        async def main() -> None:
            async with Deciding(tmp_path, text) as ours:
                begun = time.monotonic()
                assert await ours.ask(recipient) == verdict
                assert time.monotonic() - begun < 4

        run(main())
        asked = {name for name, _, _ in dns.asked}
        assert "elsewhere.example" not in asked
