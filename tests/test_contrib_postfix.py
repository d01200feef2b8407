"""Each snippet of contrib/postfix, loaded by a real Postfix that asks a scripted server."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.rig.dialogue import FOREIGN, Dialogue, Reply, ask
from tests.rig.place import sheltered
from tests.rig.postfix import Postfix
from tests.rig.require import require, require_postfix
from tests.rig.scripted import ANY_MAP, Fault, ScriptedSocketmap
from tests.rig.scripted_filter import ScriptedMilter
from tests.rig.snippets import snippet, uncommented

pytestmark = pytest.mark.mta

GOOD, GONE, SICK = "good@example.org", "gone@example.org", "sick@example.org"
ELSEWHERE = "someone@other.example"
VARIANTS = pytest.mark.parametrize("variant", [False, True], ids=["loopback", "unix"])


@pytest.fixture
def place() -> Iterator[Path]:
    require_postfix()
    with sheltered() as directory:
        yield directory


def in_queue(postfix: Postfix) -> Path:
    """Make the folder for sockets in the queue directory, with the rights of contrib/systemd's tmpfiles.d."""
    postfix.prepare()
    folder = postfix.queue / "rcptd"
    folder.mkdir()
    shutil.chown(folder, "nobody", "postfix")
    folder.chmod(0o2750)
    return folder


def assert_relaying_is_refused(postfix: Postfix, asked: Callable[[], object]) -> None:
    """A foreign client gets no foreign domain past Postfix, and nobody is asked about it."""
    before = asked()
    (reply,) = ask(postfix.port, ELSEWHERE, source=FOREIGN)
    assert reply.code in (454, 554)
    assert "Relay access denied" in reply.text
    assert asked() == before
    (reply,) = ask(postfix.port, GOOD, source=FOREIGN)
    assert reply.code == 250


def codes(replies: list[Reply]) -> list[str]:
    return [f"{reply.code} {reply.enhanced}" for reply in replies]


MILTER_REPLIES = {
    GOOD: "",
    GONE: "550 5.1.1 No such mailbox",
    "notallowed@example.org": "550 5.7.1 Not allowed to post here",
    "disabled@example.org": "550 5.2.1 Mailbox disabled",
    "moved@example.org": "551 5.1.6 Mailbox has moved",
    "fullnow@example.org": "452 4.2.2 Mailbox full",
    "full@example.org": "552 5.2.2 Mailbox full",
    SICK: "451 4.4.3 Recipient cannot be verified now, please try again later",
}


@VARIANTS
def test_milter_gives_every_verdict_its_own_codes_and_text(place: Path, variant: bool) -> None:
    # The unix variant is chrooted, as Debian's smtpd is: that is where its path matters.
    postfix = Postfix(place, chroot=variant)
    where = in_queue(postfix) / "milter.sock" if variant else None
    with ScriptedMilter(MILTER_REPLIES, where=where, mode=0o660) as milter:
        ports = {} if variant else {"127.0.0.1:7851": f"127.0.0.1:{milter.port}"}
        postfix.configure(snippet("postfix/milter.cf", ports, variant=variant))
        with postfix:
            assert postfix.warnings() == ""
            replies = ask(postfix.port, *MILTER_REPLIES)
            assert [str(one) for one in replies] == [one or "250 2.1.5 Ok" for one in MILTER_REPLIES.values()]
            assert_relaying_is_refused(postfix, lambda: milter.asked.count(f"<{ELSEWHERE}>"))


def test_milter_in_trouble_defers_and_never_lasts_beyond_the_session(place: Path) -> None:
    with ScriptedMilter({GONE: "550 5.1.1 No such mailbox"}) as milter:
        replace = {"127.0.0.1:7851": f"127.0.0.1:{milter.port}", "command_timeout=20s": "command_timeout=1s"}
        with Postfix(place, main_cf=snippet("postfix/milter.cf", replace)) as postfix:
            for fault in Fault:
                milter.answers[SICK] = fault
                with Dialogue(postfix.port) as session:
                    session.mail()
                    replies = [session.rcpt(one) for one in (GOOD, SICK, GOOD)]
                assert codes(replies) == ["250 2.1.5", "451 4.7.1", "451 4.7.1"], fault
            assert codes(ask(postfix.port, GOOD, GONE)) == ["250 2.1.5", "550 5.1.1"]
            milter.stop()
            assert codes(ask(postfix.port, GOOD, GONE)) == ["451 4.7.1", "451 4.7.1"]
            milter.start()
            assert codes(ask(postfix.port, GOOD, GONE)) == ["250 2.1.5", "550 5.1.1"]


# Without a stall: Postfix waits 100 s for a socketmap, and no setting changes it.
TROUBLES: list[str | Fault] = [
    "TEMP text", "TIMEOUT text", "PERM text", "nonsense", Fault.DROP, Fault.GARBLE, Fault.HALF,
]  # fmt: skip


def try_troubles(postfix: Postfix, server: ScriptedSocketmap, expected: str) -> None:
    """Every trouble defers the recipient that it befalls, in a session of its own, and no other."""
    for trouble in TROUBLES:
        server.answers = {key: value for key, value in server.answers.items() if key[1] != SICK}
        server.answers[ANY_MAP, SICK] = trouble
        sick, good = ask(postfix.port, SICK, GOOD)
        wanted = "451 4.3.5" if trouble == "PERM text" else expected
        assert f"{sick.code} {sick.enhanced}" == wanted, trouble
        assert good.code == 250, trouble
    server.stop()
    assert codes(ask(postfix.port, GOOD, GONE)) == [expected] * 2
    server.start()
    assert [one.code for one in ask(postfix.port, GOOD)] == [250]


@VARIANTS
def test_recipient_map_takes_and_refuses_and_defers(place: Path, variant: bool) -> None:
    postfix = Postfix(place, chroot=variant)
    where = in_queue(postfix) / "socketmap.sock" if variant else None
    answers = {("recipients", GOOD): f"OK {GOOD}", ("recipients", GONE): "NOTFOUND No such mailbox"}
    with ScriptedSocketmap(answers, where=where, mode=0o660) as server:
        ports = {} if variant else {"127.0.0.1:7850": f"127.0.0.1:{server.port}"}
        postfix.configure(snippet("postfix/recipient-map.cf", ports, variant=variant))
        with postfix:
            assert postfix.warnings() == ""
            good, gone, other = ask(postfix.port, "Good@Example.ORG", GONE, ELSEWHERE)
            assert good.code == 250
            assert str(gone) == f"550 5.1.1 <{GONE}>: Recipient address rejected: User unknown"
            assert other.code == 250
            assert server.asked == [("recipients", GOOD), ("recipients", GONE)]
            assert_relaying_is_refused(postfix, lambda: server.asked.count(("recipients", ELSEWHERE)))
            # As the README has it; for a path without a leading slash from within the queue directory.
            table = f"socketmap:{postfix.setting('rcptd_socketmap')}:recipients"
            assert postfix.query(GOOD, table).stdout == f"{GOOD}\n"
            assert postfix.query(GONE, table).returncode == 1
            try_troubles(postfix, server, "451 4.3.0")


def test_recipient_map_serves_virtual_and_local_domains_too(place: Path) -> None:
    known = {"good@virtual.example", "good@local.example", "good"}
    with ScriptedSocketmap({(ANY_MAP, one): f"OK {one}" for one in known}) as server:
        text = snippet("postfix/recipient-map.cf", {"127.0.0.1:7850": f"127.0.0.1:{server.port}"})
        text = uncommented(uncommented(text, "virtual_mailbox_maps"), "local_recipient_maps")
        text += "\nvirtual_mailbox_domains = virtual.example\nmydestination = local.example\n"
        with Postfix(place, main_cf=text) as postfix:
            replies = ask(
                postfix.port, "good@virtual.example", "gone@virtual.example", "good@local.example",
                "gone@local.example", "x@other.example", source=FOREIGN,
            )  # fmt: skip
            assert [one.code for one in replies] == [250, 550, 250, 550, 454]
            server.stop()
            replies = ask(postfix.port, "good@virtual.example", "gone@local.example")
            assert codes(replies) == ["451 4.3.0"] * 2


ACCESS_VALUES = {
    GOOD: "OK DUNNO",
    GONE: "OK 550 5.1.1 No such mailbox",
    "notallowed@example.org": "OK 550 5.7.1 Not allowed to post here",
    "disabled@example.org": "OK 550 5.2.1 Mailbox disabled",
    "moved@example.org": "OK 551 5.1.6 Mailbox has moved",
    "fullnow@example.org": "OK 452 4.2.2 Mailbox full",
    "full@example.org": "OK 552 5.2.2 Mailbox full",
    "badsyntax@example.org": "OK 553 5.1.3 Not a valid address",
    SICK: "OK 451 4.4.3 Recipient cannot be verified now, please try again later",
}


@VARIANTS
def test_access_map_gives_every_verdict_its_own_codes_and_text(place: Path, variant: bool) -> None:
    postfix = Postfix(place, chroot=variant)
    where = in_queue(postfix) / "socketmap.sock" if variant else None
    answers = {("access", key): value for key, value in ACCESS_VALUES.items()}
    with ScriptedSocketmap(answers, where=where, mode=0o660) as server:
        ports = {} if variant else {"127.0.0.1:7850": f"127.0.0.1:{server.port}"}
        postfix.configure(snippet("postfix/access-map.cf", ports, variant=variant))
        with postfix:
            assert postfix.warnings() == ""
            replies = ask(postfix.port, *ACCESS_VALUES)
            assert [str(reply) for reply in replies] == [access_reply(*one) for one in ACCESS_VALUES.items()]
            assert codes(ask(postfix.port, "unlisted@example.org", ELSEWHERE)) == ["250 2.1.5"] * 2
            assert_relaying_is_refused(postfix, lambda: server.asked.count(("access", ELSEWHERE)))
            # Even a server that permits everything opens no relay.
            server.default = "OK OK"
            assert_relaying_is_refused(postfix, lambda: server.asked.count(("access", ELSEWHERE)))
            try_troubles(postfix, server, "451 4.3.5")


def access_reply(key: str, value: str) -> str:
    if value == "OK DUNNO":
        return "250 2.1.5 Ok"
    code, enhanced, text = value.removeprefix("OK ").split(" ", 2)
    return f"{code} {enhanced} <{key}>: Recipient address rejected: {text}"


def test_a_socket_that_smtpd_may_not_reach_defers_in_every_mode(place: Path) -> None:
    """The commonest mistake in wiring: a chrooted smtpd and a path outside the queue directory."""
    outside = place / "socketmap.sock"
    with ExitStack() as running:
        running.enter_context(ScriptedSocketmap(where=outside, default="OK x"))
        text = snippet("postfix/recipient-map.cf", {"inet:127.0.0.1:7850": f"unix:{outside}"})
        postfix = running.enter_context(Postfix(place, main_cf=text, chroot=True))
        assert codes(ask(postfix.port, GOOD)) == ["451 4.3.0"]
        assert postfix.logs("No such file or directory")


STDIO_SERVER = """\
import sys
ask, answer = sys.stdin.buffer, sys.stdout.buffer
print("a line of log that would break the wire", file=sys.stderr, flush=True)
while True:
    length = b""
    while (byte := ask.read(1)).isdigit():
        length += byte
    if not byte:
        break
    name, _, key = ask.read(int(length)).decode().partition(" ")
    ask.read(1)
    reply = b"OK " + key.encode() if key.startswith("good@") else b"NOTFOUND "
    answer.write(b"%d:%b," % (len(reply), reply))
    answer.flush()
"""


def python_for_nobody() -> str:
    """A Python that the account `nobody` may run: not one below /root."""
    for one in (os.path.realpath(sys.executable), shutil.which("python3", path="/usr/bin:/usr/local/bin")):
        if one and is_for_nobody(one):
            return one
    require(present=False, what="no Python is installed where an ordinary account may run it")
    raise AssertionError


def is_for_nobody(program: str) -> bool:
    try:
        subprocess.run([program, "-c", ""], user="nobody", group="nogroup", extra_groups=[], cwd="/",
                       timeout=30, check=True)  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def test_spawn_starts_a_program_for_each_connection(place: Path) -> None:
    script = place / "stdio.py"
    script.write_text(STDIO_SERVER)
    program = {
        "/usr/bin/rcptd serve --stdio -c /etc/rcptd/rcptd.toml": f"{python_for_nobody()} {script}",
        "user=rcptd": "user=nobody",
    }
    services = snippet("postfix/spawn.master.cf", program)
    postfix = Postfix(place, main_cf=snippet("postfix/spawn.cf", {}), master_cf=services, chroot=True)
    with postfix:
        assert postfix.warnings() == ""
        for _ in range(2):
            replies = ask(postfix.port, GOOD, GONE, GOOD)
            assert codes(replies) == ["250 2.1.5", "550 5.1.1", "250 2.1.5"], postfix.log()
        assert_relaying_is_refused(postfix, lambda: None)
    script.write_text("raise SystemExit(78)\n")
    with postfix:
        assert codes(ask(postfix.port, GOOD, GONE)) == ["451 4.3.0"] * 2


@VARIANTS
def test_smmapd_words_in_virtual_mailbox_maps(place: Path, variant: bool) -> None:
    answers = {("smmapd", GOOD): f"OK {GOOD}", ("smmapd", GONE): "NOTFOUND Mailbox does not exist"}
    where = place / "smmap" if variant else None
    with ScriptedSocketmap(answers, where=where) as server:
        placeholder = "unix:/run/cyrus/socket/smmap" if variant else "inet:127.0.0.1:7850"
        text = snippet("postfix/smmapd.cf", {placeholder: server.postfix}, variant=variant)
        with Postfix(place, main_cf=f"relay_domains =\n{text}") as postfix:
            assert postfix.warnings() == ""
            good, gone, other = ask(postfix.port, GOOD, GONE, ELSEWHERE)
            assert [good.code, gone.code, other.code] == [250, 550, 250]
            assert str(gone) == f"550 5.1.1 <{GONE}>: Recipient address rejected: User unknown"
            assert_relaying_is_refused(postfix, lambda: server.asked.count(("smmapd", ELSEWHERE)))
            try_troubles(postfix, server, "451 4.3.0")
