"""Call-ahead to a real Cyrus lmtpd: what rcptd says of each recipient is what lmtpd itself says at RCPT."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.harness.deciding import Deciding, run
from tests.harness.milterwire import Kind, MilterConnection
from tests.harness.socketmapwire import SocketmapConnection
from tests.rig.cyrus_site import Site, record
from tests.rig.daemon import HEAD, Daemon
from tests.rig.dialogue import Reply
from tests.rig.lmtpd import CLIENT, PASSWORD, STRANGER, VERDICTS, Lmtpd, codes
from tests.rig.place import sheltered
from tests.rig.ports import LOOPBACK
from tests.rig.processes import members
from tests.rig.require import require_cyrus

pytestmark = pytest.mark.cyrus

RULES = """
[daemon]
postmaster = false

[stores.hop]
type = "callahead"
memo = "off"
{options}

[[rules]]
verify = ["hop"]
"""

# What rcptd makes of what lmtpd says; all else is the same.
OURS = {"451 4.2.1": "451 4.4.3"}


@pytest.fixture(scope="module")
def lmtpd() -> Iterator[Lmtpd]:
    require_cyrus()
    with sheltered("lmtpd") as place, Lmtpd(place) as running:
        (place / "password").write_text(f"{PASSWORD}\n")
        yield running
        assert not running.cyrus.complaints(r"IDLE: error|badlogin|not an admin")


def options(lmtpd: Lmtpd, which: str, **more: str) -> str:
    """The options of the store for one of lmtpd's listeners."""
    where = f"lmtp:unix:{lmtpd.unix}" if which == "unix" else f"lmtp:{LOOPBACK}:{getattr(lmtpd, which)}"
    lines = {"next_hops": f'["{where}"]'}
    if which in ("wanting", "secure"):
        lines |= {"auth_user": f'"{CLIENT}"', "auth_password_file": f'"{lmtpd.unix.parent / "password"}"'}
    if which == "wanting":
        lines["auth_in_clear"] = "true"
    if which == "secure":
        lines |= {"tls": '"required"', "tls_ca": f'"{lmtpd.certificate.file}"', "tls_name": '"mx.example.org"'}
    return "\n".join(f"{name} = {value}" for name, value in (lines | more).items())


def deciding(folder: Path, lmtpd: Lmtpd, which: str, **more: str) -> Deciding:
    return Deciding(folder, RULES.replace("{options}", options(lmtpd, which, **more)))


def wanted(replies: list[Reply]) -> list[str]:
    return [OURS.get(one, one) for one in map(codes, replies)]


@pytest.mark.parametrize("which", ["unix", "trusting", "wanting", "secure", "final", "single"])
def test_each_recipient_gets_what_lmtpd_says_itself(tmp_path: Path, lmtpd: Lmtpd, which: str) -> None:
    by_hand = wanted(lmtpd.ask(getattr(lmtpd, "trusting" if which == "secure" else which), *VERDICTS))
    asked = list(VERDICTS)

    async def main() -> None:
        async with deciding(tmp_path, lmtpd, which) as ours:
            assert await ours.ask_in_turn(asked) == by_hand
            assert await ours.ask_at_once(asked * 5) == by_hand * 5

    run(main())


def test_a_detail_that_is_no_folder_reaches_the_inbox_and_is_asked_as_it_came(tmp_path: Path, lmtpd: Lmtpd) -> None:
    async def main() -> None:
        async with deciding(tmp_path, lmtpd, "unix") as ours:
            assert await ours.ask("foo+nosuch@example.org") == "250 2.1.5"
            assert await ours.ask("foo+no such@example.org") != "550 5.1.1"

    run(main())


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("wanting", {"auth_user": f'"{STRANGER}"'}),
        ("wanting", {"auth_user": '"nobody"'}),
        ("secure", {"tls": '"off"'}),
        ("secure", {"tls_name": '"other.example.org"'}),
        ("secure", {"auth_user": f'"{STRANGER}"'}),
        ("trusting", {"tls": '"required"'}),
    ],
)
def test_a_refusal_of_us_is_never_a_no(
    tmp_path: Path, lmtpd: Lmtpd, which: str, change: dict[str, str]
) -> None:
    async def main() -> None:
        async with deciding(tmp_path, lmtpd, which, **change) as ours:
            assert await ours.ask_in_turn(["foo@example.org", "nobody@example.org"]) == ["451 4.4.3"] * 2

    run(main())


def test_without_any_auth_where_it_is_wanted_nothing_is_known(tmp_path: Path, lmtpd: Lmtpd) -> None:
    text = RULES.replace("{options}", f'next_hops = ["lmtp:{LOOPBACK}:{lmtpd.wanting}"]')

    async def main() -> None:
        async with Deciding(tmp_path, text) as ours:
            assert await ours.ask_in_turn(["foo@example.org", "nobody@example.org"]) == ["451 4.4.3"] * 2

    run(main())


def test_a_thousand_questions_at_once(tmp_path: Path, lmtpd: Lmtpd) -> None:
    asked = [f"{'foo' if number % 3 else f'nobody-{number}'}@example.org" for number in range(1000)]

    async def main() -> None:
        async with deciding(tmp_path, lmtpd, "unix") as ours:
            replies = await ours.ask_at_once(asked)
            assert replies == ["250 2.1.5" if one.startswith("foo@") else "550 5.1.1" for one in asked]

    run(main())


def test_where_it_serves_one_client_at_a_time_all_are_answered_by_that_one(tmp_path: Path, lmtpd: Lmtpd) -> None:
    async def main() -> None:
        async with deciding(tmp_path, lmtpd, "single") as ours:
            begun = time.monotonic()
            assert await ours.ask_at_once(["foo@example.org", "nobody@example.org"] * 40) == [
                "250 2.1.5", "550 5.1.1",
            ] * 40  # fmt: skip
            assert time.monotonic() - begun < 5

    run(main())


def test_a_kept_connection_that_dies_costs_no_answer(tmp_path: Path) -> None:
    require_cyrus()

    async def main(lmtpd: Lmtpd) -> None:
        # One connection: a second one could be just opening when it dies, and that is trouble. And where more than
        # five lmtpds die that wait for a client master gives the service up.
        async with deciding(tmp_path, lmtpd, "unix", connections="1") as ours:
            for again in (True, False):
                assert await ours.ask_at_once(["foo@example.org", "nobody@example.org"] * 5) == [
                    "250 2.1.5", "550 5.1.1",
                ] * 5  # fmt: skip
                if again:
                    assert kill_all(lmtpd, "lmtpunix")

    with sheltered("lmtpd") as place, Lmtpd(place) as lmtpd:
        run(main(lmtpd))


def kill_all(lmtpd: Lmtpd, name: str) -> int:
    """Kill every lmtpd of a service, and count them; master starts others."""
    killed = 0
    for pid in members(lmtpd.cyrus.pid):
        with suppress(OSError):
            if f"CYRUS_SERVICE={name}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    return killed


def test_a_mailbox_that_a_murder_has_elsewhere_is_asked_for_there(tmp_path: Path, lmtpd: Lmtpd) -> None:
    far = record(kind="er", S="localhost")
    with sheltered("frontend") as place:
        front = Site(place / "front", {"virtdomains": "userid", "defaultdomain": "example.org"})
        front.mailboxes = {b"user\x1f" + name: far for name in (b"foo", b"full", b"denied", b"gone")}
        front.mailboxes[b"user\x1fhere"] = record()
        front.write()
        text = RULES.replace("{options}", f'servers = "lmtp:*:{lmtpd.trusting}"').replace(
            'verify = ["hop"]', 'verify = ["imap", "hop"]'
        )

        async def main() -> None:
            configuration = f'[stores.imap]\ntype = "cyrus"\nimapd_conf = "{front.config}"\n{text}'
            async with Deciding(tmp_path, configuration) as ours:
                names = ("foo", "full", "denied", "gone", "here")
                # The frontend has `gone`, its server does not: they disagree, and nobody knows.
                assert await ours.ask_in_turn(f"{one}@example.org" for one in names) == [
                    "250 2.1.5", "452 4.2.2", "451 4.4.3", "451 4.4.3", "250 2.1.5",
                ]  # fmt: skip

        run(main())


@pytest.mark.daemon
def test_both_front_ends_of_the_daemon_say_what_lmtpd_says(lmtpd: Lmtpd) -> None:
    by_hand = wanted(lmtpd.ask(lmtpd.unix, *VERDICTS))
    configuration = HEAD + RULES.replace("{options}", options(lmtpd, "unix"))
    with sheltered("callahead") as folder, Daemon(folder, configuration) as daemon:
        assert dict(zip(VERDICTS, run(by_milter(daemon)), strict=True)) == dict(zip(VERDICTS, by_hand, strict=True))
        # A map does not know the message's size nor who sends; neither matters here.
        assert dict(zip(VERDICTS, run(by_map(daemon)), strict=True)) == dict(zip(VERDICTS, by_hand, strict=True))


async def by_milter(daemon: Daemon) -> list[str]:
    said = []
    async with MilterConnection(f"inet:{LOOPBACK}:{daemon.milter_port}") as milter:
        await milter.connect("client.example", "192.0.2.7")
        await milter.helo("client.example")
        await milter.mail("<>")
        for one in VERDICTS:
            reply = await milter.rcpt(f"<{one}>")
            said.append("250 2.1.5" if reply.kind is Kind.CONTINUE else f"{reply.code} {reply.enhanced}")
    return said


async def by_map(daemon: Daemon) -> list[str]:
    said = []
    async with SocketmapConnection(f"unix:{daemon.folder}/socketmap.sock") as connection:
        for one in VERDICTS:
            reply = await connection.ask("access", one)
            said.append("250 2.1.5" if reply == "OK DUNNO" else reply[3:12])
    return said
