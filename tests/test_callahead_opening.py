"""What comes before MAIL: PROXY header, EHLO and LHLO, loops, STARTTLS, AUTH; and a server of another author."""

import asyncio
import base64
import shutil
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from rcptd.stores.callahead import opening, proxyheader, sasl
from rcptd.stores.callahead.connection import open_connection
from rcptd.stores.callahead.dialogue import Dialogue
from rcptd.stores.callahead.meaning import HopTrouble, Step, Trouble
from rcptd.stores.callahead.nexthop import NextHop
from tests.harness.certificates import certificate, server_context
from tests.harness.dialling import HELLO, connected, counted, dial, later, loop, run
from tests.harness.nexthop import DROP, STALL, Action, Exchange, ScriptedHop, by_recipient

__all__ = ["loop"]
A = "a@example.org"


def opened(hop: ScriptedHop, *addresses: str, protocol: Any = "smtp", **options: Any) -> tuple[list[str], bool]:
    """Open a connection, ask; give what came, and whether the line was encrypted."""

    async def scenario() -> tuple[list[str], bool]:
        async with hop, connected(hop, protocol, **options) as connection:
            return await counted(connection, *(addresses or (A,))), connection.encrypted

    return run(scenario())


def trouble(hop: ScriptedHop, **options: Any) -> HopTrouble:
    with pytest.raises(HopTrouble) as caught:
        opened(hop, **options)
    return caught.value


# ---- EHLO, LHLO, loops


@pytest.mark.parametrize("code", [500, 502, 504])
def test_a_server_that_knows_no_ehlo_is_told_helo(code: int) -> None:
    hop = ScriptedHop({"EHLO": f"{code} what"})
    assert opened(hop) == (["yes"], False)
    assert hop.said[:3] == [f"EHLO {HELLO}", f"HELO {HELLO}", "MAIL FROM:<>"]


def test_refusals_of_our_name_are_about_us() -> None:
    refused: list[tuple[dict[str, Action], str]] = [
        ({"EHLO": "550 5.7.1 bad name"}, "smtp"),
        ({"EHLO": "502 what", "HELO": "550 bad name"}, "smtp"),
        ({"EHLO": "502 what", "HELO": ("421 bye", DROP)}, "smtp"),
        ({"LHLO": "500 this is SMTP"}, "lmtp"),
    ]
    for says, protocol in refused:
        told = trouble(ScriptedHop(says), protocol=protocol)
        assert (told.kind, told.step) == (Trouble.REFUSED, Step.HELLO)
        assert told.code


@pytest.mark.parametrize("greeting", [HELLO, f"{HELLO.upper()}. at your service", f"{HELLO} Hello {HELLO}"])
def test_a_server_with_our_name_is_ourselves_but_for_lmtp(greeting: str) -> None:
    told = trouble(ScriptedHop(name=greeting))
    assert told.kind is Trouble.LOOP
    assert HELLO in str(told)
    assert opened(ScriptedHop(name=greeting), protocol="lmtp")[0] == ["yes"]
    assert opened(ScriptedHop(name=f"mail.{greeting}"))[0] == ["yes"]
    assert trouble(ScriptedHop({"EHLO": "500 what"}, name=greeting)).kind is Trouble.LOOP


# ---- the PROXY header


def test_a_proxy_header_goes_before_all_else() -> None:
    for version in ("v1", "v2"):
        hop = ScriptedHop(proxy="v1" if version == "v1" else "v2")
        assert opened(hop, proxy=version)[0] == ["yes"]
        (header,) = hop.headers
        if version == "v1":
            assert header.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
            assert header.endswith(b" %d\r\n" % hop.port)
        else:
            assert header[:16] == b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"
            assert header[16:24] == bytes([127, 0, 0, 1]) * 2
            assert struct.unpack("!H", header[26:28]) == (hop.port,)


def test_a_unix_socket_has_nothing_to_tell_in_a_proxy_header(tmp_path: Path) -> None:
    for version, expected in (("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0")):
        hop = ScriptedHop(path=tmp_path / version, proxy="v1" if version == "v1" else "v2")
        assert opened(hop, proxy=version, protocol="lmtp")[0] == ["yes"]
        assert hop.headers == [expected]


def test_proxy_headers_for_ipv6() -> None:
    ours, theirs = ("fe80::1%eth0", 1025, 0, 2), ("2001:db8::2", 24, 0, 0)
    assert proxyheader.v1(ours, theirs, socket.AF_INET6) == b"PROXY TCP6 fe80::1 2001:db8::2 1025 24\r\n"
    header = proxyheader.v2(ours, theirs, socket.AF_INET6)
    assert header[12:16] == b"\x21\x21\0\x24"
    assert len(header) == 16 + 36
    assert header[-4:] == struct.pack("!HH", 1025, 24)


@pytest.mark.parametrize("options", [{"proxy": "v1"}, {"proxy": "v2"}, {"auth_user": "u"}, {}])
def test_a_server_that_was_gone_at_once_has_no_address(options: dict[str, Any]) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            there = NextHop("smtp", host="127.0.0.1", port=server.getsockname()[1])

            async def reset() -> socket.socket:
                connected = await dial(there)()
                accepted, _ = server.accept()
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                accepted.close()
                await asyncio.sleep(0.01)
                return connected

            with pytest.raises(HopTrouble) as caught:
                await open_connection(there, reset, Dialogue(HELLO, **options), until=later(2))
            assert caught.value.kind is Trouble.BROKEN

    run(scenario())


# ---- STARTTLS

TLS = ("STARTTLS", "PIPELINING")


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("right"), "DNS:hop.example", "IP:127.0.0.1")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("wrong"), "DNS:other.example")


def test_required_tls_with_the_right_name(right: Path) -> None:
    for name in ("", "hop.example"):  # "": the host that the hop is named by, here 127.0.0.1
        hop = ScriptedHop({"RCPT": by_recipient({A: "250 OK"})}, offers=TLS, tls=server_context(right))
        options = {"tls": "required", "tls_ca": str(right), "tls_name": name}
        assert opened(hop, A, "b@example.org", **options) == (["yes", "no"], True)
        assert hop.said[:4] == [f"EHLO {HELLO}", "STARTTLS", f"EHLO {HELLO}", "MAIL FROM:<>"]


def test_required_tls_goes_wrong_in_all_these_ways(right: Path, wrong: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    ways: list[tuple[Path, dict[str, str], str]] = [
        (right, {"tls_ca": str(right), "tls_name": "other.example"}, "Hostname mismatch"),
        (right, {"tls_ca": str(wrong)}, "self-signed certificate"),
        (right, {}, "self-signed certificate"),  # by the CAs of the system
        (wrong, {"tls_ca": str(wrong)}, "IP address mismatch"),
        (right, {"tls_ca": str(tmp_path / "missing.pem")}, "No such file"),
        (right, {"tls_ca": str(broken)}, "certificate"),
        (right, {"tls_ca": str(right), "tls_name": "x" * 64 + ".example"}, "label"),
    ]
    for shown, options, words in ways:
        told = trouble(ScriptedHop(offers=TLS, tls=server_context(shown)), tls="required", **options)
        assert (told.kind, told.step) == (Trouble.TLS, Step.TLS), options
        assert words in str(told)


def test_another_file_of_cas_counts_without_a_restart(right: Path, wrong: Path, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(wrong, ca)
    options = {"tls": "required", "tls_ca": str(ca)}
    assert trouble(ScriptedHop(offers=TLS, tls=server_context(right)), **options).kind is Trouble.TLS
    shutil.copy(right, ca)
    assert opened(ScriptedHop(offers=TLS, tls=server_context(right)), **options) == (["yes"], True)


def test_opportunistic_tls_takes_any_certificate_or_none(wrong: Path) -> None:
    encrypting = ScriptedHop(offers=TLS, tls=server_context(wrong))
    assert opened(encrypting, tls="opportunistic") == (["yes"], True)
    assert opened(ScriptedHop(), tls="opportunistic") == (["yes"], False)


@pytest.mark.parametrize("tls", ["opportunistic", "required"])
def test_starttls_goes_wrong_in_all_these_ways(tls: str) -> None:
    injected = (b"220 go ahead\r\n250 mine\r\n", b"220 go ahead\r\n250-", b"220-go\r\n220 ahead\r\n250 mine\r\n")
    for action in ("454 4.7.0 not now", "220 go ahead", ("220 go ahead", DROP), *injected):
        told = trouble(ScriptedHop({"STARTTLS": action}, offers=TLS), tls=tls, reply_timeout=0.5)
        assert (told.kind, told.step) == (Trouble.TLS, Step.TLS), action
        assert ("something follows" in str(told)) == (action in injected)
    told = trouble(ScriptedHop({"STARTTLS": ("220 go ahead", STALL)}, offers=TLS), tls=tls, reply_timeout=0.05)
    assert (told.kind, told.step) == (Trouble.TIMEOUT, Step.TLS)


def test_required_tls_is_required(tmp_path: Path) -> None:
    for hop in (ScriptedHop(), ScriptedHop({"EHLO": "500 what"})):
        assert trouble(hop, tls="required").kind is Trouble.TLS
    nameless = trouble(ScriptedHop(path=tmp_path / "lmtp"), protocol="lmtp", tls="required")
    assert "set tls_name" in str(nameless)


def test_what_was_offered_in_clear_is_void(right: Path) -> None:
    def greeting(session: Any, _line: str) -> Action:
        return "250 hop.example" if session.encrypted else "250-hop.example\n250-STARTTLS\n250 AUTH PLAIN"

    hop = ScriptedHop({"EHLO": greeting}, tls=server_context(right))
    assert trouble(hop, tls="opportunistic", auth_user="u").kind is Trouble.AUTH


# ---- AUTH

USER = {"auth_user": "tim", "auth_password": "tanstaaftanstaaf"}


def test_plain_in_one_exchange() -> None:
    hop = ScriptedHop({"AUTH": "235 2.7.0 OK"}, offers=("AUTH LOGIN PLAIN CRAM-MD5",))
    assert opened(hop, **USER)[0] == ["yes"]
    assert hop.said[1] == f"AUTH PLAIN {base64.b64encode(b'%ctim%ctanstaaftanstaaf' % (0, 0)).decode()}"


@pytest.mark.parametrize("offer", ["AUTH LOGIN NTLM", "AUTH=LOGIN", "auth login"])
def test_login(offer: str) -> None:
    hop = ScriptedHop({"AUTH": Exchange("334 VXNlcm5hbWU6", "334 UGFzc3dvcmQ6", "235 OK")}, offers=(offer,))
    assert opened(hop, **USER)[0] == ["yes"]
    assert hop.said[1:4] == ["AUTH LOGIN", "dGlt", base64.b64encode(b"tanstaaftanstaaf").decode()]


def test_cram_md5_answers_the_example_of_rfc_2195() -> None:
    challenge = base64.b64encode(b"<1896.697170952@postoffice.reston.mci.net>").decode()
    hop = ScriptedHop({"AUTH": Exchange(f"334 {challenge}", "235 OK")}, offers=("AUTH CRAM-MD5",))
    assert opened(hop, **USER)[0] == ["yes"]
    assert base64.b64decode(hop.said[2]) == b"tim b913a602c7eda7a495b4e6e7334d3890"


def test_auth_goes_wrong_in_all_these_ways() -> None:
    ways: list[tuple[Action, tuple[str, ...], str]] = [
        ("535 5.7.8 wrong", ("AUTH PLAIN",), "PLAIN: 535 5.7.8 wrong"),
        ("454 4.7.0 not now", ("AUTH PLAIN",), "454"),
        ("250 OK", ("AUTH PLAIN",), "250"),
        (Exchange("334 more", "235 OK"), ("AUTH PLAIN",), "asks for more"),
        (Exchange("334 ", "334 ", "334 "), ("AUTH LOGIN",), "asks for more"),
        (Exchange("334 !", "235 OK"), ("AUTH CRAM-MD5",), "no base64"),
        ("235 OK", ("AUTH GSSAPI",), "no AUTH that we could use: GSSAPI"),
        ("235 OK", (), "no AUTH that we could use: none at all"),
    ]
    for action, offers, words in ways:
        told = trouble(ScriptedHop({"AUTH": action}, offers=offers), **USER)
        assert (told.kind, told.step) == (Trouble.AUTH, Step.AUTH), words
        assert words in str(told)
        assert "tanstaaf" not in str(told)


def test_a_password_never_goes_in_clear_over_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loopback is all that a test can count on.
    monkeypatch.setattr(opening, "_is_local", lambda _: False)
    hop = ScriptedHop({"AUTH": "235 OK"}, offers=("AUTH PLAIN LOGIN",))
    told = trouble(hop, **USER)
    assert told.kind is Trouble.AUTH
    assert "could use in clear" in str(told)
    assert hop.said == [f"EHLO {HELLO}"]
    assert opened(hop, auth_in_clear=True, **USER)[0] == ["yes"]


def test_which_mechanism_is_chosen() -> None:
    everything = ("GSSAPI", "CRAM-MD5", "LOGIN", "PLAIN")
    assert sasl.choose(everything, private=True, in_clear=False) == "PLAIN"
    assert sasl.choose(everything, private=False, in_clear=False) == "CRAM-MD5"
    assert sasl.choose(everything, private=False, in_clear=True) == "CRAM-MD5"
    assert sasl.choose(("LOGIN", "PLAIN"), private=False, in_clear=False) == ""
    assert sasl.choose(("LOGIN", "PLAIN"), private=False, in_clear=True) == "PLAIN"


def test_a_password_goes_over_a_unix_socket(tmp_path: Path) -> None:
    hop = ScriptedHop({"AUTH": "235 OK"}, offers=("AUTH PLAIN",), path=tmp_path / "lmtp")
    assert opened(hop, protocol="lmtp", **USER)[0] == ["yes"]


# ---- options


@pytest.mark.parametrize(
    "options",
    [{"hello": ""}, {"hello": "a b"}, {"hello": "a\r\nb"}, {"hello": "é"}, {"sender": "a>"}, {"sender": "a\0"},
     {"auth_user": "a\0"}, {"auth_password": "\0"}],
)  # fmt: skip
def test_what_cannot_stand_on_a_line_is_no_option(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Dialogue(**{"hello": HELLO, **options})  # type: ignore[arg-type]


def test_a_password_is_not_shown() -> None:
    assert "secret" not in repr(Dialogue(HELLO, auth_user="u", auth_password="secret"))


# ---- aiosmtpd


class Handler:
    """Knows one recipient."""

    async def handle_RCPT(self, _s: Any, _e: Any, envelope: Any, who: str, _o: Any) -> str:  # noqa: N802
        envelope.rcpt_tos.append(who)
        return "250 2.1.5 OK" if who == A else "550 5.1.1 no such user"

    async def handle_PROXY(self, _s: Any, _e: Any, _w: Any, data: Any) -> bool:  # noqa: N802
        return bool(data.valid)


def authenticated(_s: Any, _e: Any, _w: Any, _m: str, data: Any) -> AuthResult:
    return AuthResult(success=data == LoginPassword(b"tim", b"tanstaaftanstaaf"))


@pytest.mark.parametrize("kind", [SMTP, LMTP])
@pytest.mark.parametrize("proxy", ["off", "v1", "v2"])
def test_aiosmtpd_is_asked_with_all_of_it(kind: type[SMTP], proxy: Any, right: Path) -> None:
    async def scenario() -> None:
        def server() -> SMTP:
            return kind(
                Handler(), hostname="hop.example", tls_context=server_context(right), require_starttls=kind is SMTP,
                authenticator=authenticated, auth_required=kind is SMTP, enable_SMTPUTF8=True,
                proxy_protocol_timeout=None if proxy == "off" else 5.0,
            )  # fmt: skip

        listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
        there = NextHop("lmtp" if kind is LMTP else "smtp", "", "127.0.0.1", listening.sockets[0].getsockname()[1])
        auth: dict[str, Any] = USER if kind is SMTP else {}
        options = Dialogue(HELLO, proxy=proxy, tls="required", tls_ca=str(right), **auth)
        connection = await open_connection(there, dial(there), options, until=later(5))
        assert await counted(connection, A, "b@example.org", "ø@example.org") == ["yes", "no", "no"]
        assert await counted(connection, A) == ["yes"]
        await connection.quit()
        listening.close()
        await asyncio.sleep(0.01)

    run(scenario())
