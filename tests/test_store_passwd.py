"""The passwd store: a real name service that fails is Unavailable, and only a clean no is NotFound."""

import asyncio
import ctypes
import errno
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rcptd import schema
from rcptd.address import Recipient, parse
from rcptd.question import EXISTS, NOT_FOUND, Answer, Found, Mailbox, Service, Unavailable
from rcptd.stores import find, passwd
from rcptd.stores.passwd import Account, Accounts, Settings, Trouble, fragile, getpwnam, open_store

REQUIRED = os.environ.get("RCPTD_REQUIRE_REAL") == "1"


def declared(**table: object) -> Settings:
    faults: list[str] = []
    made = schema.read(Settings, table, lambda key, what: faults.append(f"{key}: {what}"))
    assert made, faults
    return made


class NameService:
    """Accounts that a test makes up; `down` is what it raises instead."""

    def __init__(self, **accounts: int) -> None:
        self.accounts = {"root": 0, **accounts}
        self.asked: list[str] = []
        self.down: Exception | None = None

    def __call__(self, name: str) -> Account | None:
        self.asked.append(name)
        if self.down:
            raise self.down
        return Account(name, self.accounts[name]) if name in self.accounts else None


def answers(ask: Callable[[str], Account | None], *addresses: str, **table: object) -> list[Answer]:
    async def main() -> list[Answer]:
        service = Accounts(declared(**table), ask=ask)
        try:
            return [await asyncio.wait_for(service.ask(parse(address)), 10) for address in addresses]
        finally:
            await service.aclose()

    return asyncio.run(main())


def why(answer: Answer) -> str:
    assert isinstance(answer, Unavailable)
    return answer.why


def test_the_type_is_found_by_name() -> None:
    assert find("passwd").Settings is Settings
    assert isinstance(open_store("local", declared()), Service)


def test_an_account_takes_mail_in_any_domain() -> None:
    names = NameService(anna=1000)
    assert answers(names, "anna@example.org", "anna@example.net", "anna") == [EXISTS] * 3


def test_no_such_account_is_not_found_while_the_canary_lives() -> None:
    names = NameService(anna=1000)
    assert answers(names, "bob@example.org") == [NOT_FOUND]
    assert names.asked == ["bob", "root"]
    del names.accounts["root"]
    assert why(answers(names, "bob@example.org")[0]) == "passwd: 'root', which must be there, is not found either"
    assert answers(names, "bob@example.org", canary="anna") == [NOT_FOUND]


def test_accounts_outside_the_range_take_no_mail_unless_named() -> None:
    names = NameService(daemon=1, anna=1000, nobody=65534, ldap=300_000)
    asked = ("root@x.example", "daemon@x.example", "anna@x.example", "nobody@x.example", "ldap@x.example")
    assert answers(names, *asked) == [NOT_FOUND, NOT_FOUND, EXISTS, NOT_FOUND, EXISTS]
    assert answers(names, *asked, accept=["root"], max_uid=60_000, refuse=["anna"]) == [
        EXISTS,
        NOT_FOUND,
        NOT_FOUND,
        NOT_FOUND,
        NOT_FOUND,
    ]


def test_lower_case_is_asked_first_and_then_the_name_as_written() -> None:
    names = NameService(Anna=1000)
    assert answers(names, "Anna@example.org") == [Found(Mailbox(spelling="Anna"))]
    assert names.asked == ["anna", "Anna"]


@pytest.mark.parametrize("local", ['"a/b"', '"a:b"', '".."', "a" * 257, "ü" * 129])
def test_what_cannot_be_an_account_is_not_asked_for(local: str) -> None:
    names = NameService()
    assert answers(names, f"{local}@example.org") == [NOT_FOUND]
    assert names.asked in ([], ["..", "root"])


def test_control_characters_are_not_asked_for() -> None:
    names = NameService()

    async def main() -> Answer:
        return await Accounts(declared(), ask=names).ask(Recipient("a\0b", "example.org"))

    assert asyncio.run(main()) == NOT_FOUND
    assert names.asked == []


def test_a_name_service_that_is_down_is_unavailable() -> None:
    names = NameService(anna=1000)
    names.down = Trouble("the name service cannot tell")
    assert answers(names, "anna@example.org") == [Unavailable("passwd: the name service cannot tell")]


def test_a_bug_is_unavailable_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    names = NameService()
    names.down = ZeroDivisionError()
    assert answers(names, "anna@example.org") == [Unavailable("passwd: ZeroDivisionError()")]
    assert "ZeroDivisionError" in caplog.text


class Stuck:
    """A name service that hangs until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.inside = 0
        self.asked: list[str] = []

    def __call__(self, name: str) -> Account | None:
        self.inside += 1
        self.asked.append(name)
        self.go.wait(20)
        return Account(name, 1000)


def test_a_service_that_hangs_holds_so_many_threads_and_a_bounded_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwd, "WAITING", 5)
    stuck = Stuck()

    async def main() -> None:
        service = Accounts(declared(threads=2), ask=stuck)
        tasks = [asyncio.create_task(service.ask(parse(f"u{at}@example.org"))) for at in range(5)]
        await asyncio.sleep(0.05)
        assert stuck.inside == 2
        assert "wait already" in why(await service.ask(parse("one@example.org")))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "wait already" in why(await service.ask(parse("one@example.org")))
        stuck.go.set()
        deadline = asyncio.get_running_loop().time() + 10
        while service._waiting:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        assert stuck.inside == 2  # nobody waited for the other three
        assert await asyncio.wait_for(service.ask(parse("one@example.org")), 10) is EXISTS
        await service.aclose()
        assert "closed" in why(await service.ask(parse("one@example.org")))

    asyncio.run(main())


def test_an_answer_that_comes_after_the_loop_has_ended_harms_nobody() -> None:
    stuck = Stuck()
    service = Accounts(declared(threads=1), ask=stuck)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(service.ask(parse("anna@example.org")), 0.05)

    asyncio.run(main())
    stuck.go.set()
    service._threads[0].join(10)
    assert not service._threads[0].is_alive()


def test_no_thread_to_be_had_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> Answer:
        service = Accounts(declared(), ask=NameService())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            return await service.ask(parse("anna@example.org"))

    assert asyncio.run(main()) == Unavailable("passwd: can't start new thread")


# The C library itself.


def test_getpwnam_says_what_pythons_pwd_says() -> None:
    account = getpwnam("root")
    assert account
    assert (account.name, account.uid) == ("root", pwd.getpwnam("root").pw_uid)
    assert getpwnam("rcptd-no-such-account") is None


@pytest.mark.parametrize(
    "code", [errno.EIO, errno.ENOENT, errno.ESRCH, errno.EINTR, errno.EMFILE, errno.EBADF, errno.EPERM, 9999]
)
def test_any_code_but_zero_is_trouble(code: int) -> None:
    with pytest.raises(Trouble, match=f"cannot tell: .*{errno.errorcode.get(code, code)}"):
        getpwnam("anna", call=lambda *_: code)


def test_a_buffer_that_is_too_small_grows_within_bounds() -> None:
    sizes: list[int] = []

    def full(_name: bytes, _entry: Any, _buffer: Any, size: ctypes.c_size_t, _result: Any) -> int:
        sizes.append(size.value)
        return errno.ERANGE if size.value < 10_000 else 0

    assert getpwnam("anna", call=full) is None
    assert sizes == [1024, 4096, 16384]
    with pytest.raises(Trouble, match="larger than 1048576 bytes"):
        getpwnam("anna", call=lambda *_: errno.ERANGE)


@pytest.mark.parametrize(
    ("line", "service"),
    [
        ("passwd: files systemd", ""),
        ("passwd: files systemd sss", ""),
        ("passwd: files sss systemd", "sss"),
        ("passwd: ldap files # comment", "ldap"),
        ("passwd: ldap [UNAVAIL=return TRYAGAIN=return] files", ""),
        ("passwd: ldap [!SUCCESS=return] files", ""),
        ("passwd: ldap [NOTFOUND=return] files", "ldap"),
        ("passwd: ldap [NOTFOUND=return]", ""),
        ("group: ldap files\npasswd files\n", ""),
        ("", ""),
    ],
)
def test_an_order_of_services_that_hides_an_outage_is_noticed(line: str, service: str) -> None:
    assert fragile(f"# nsswitch\n{line}\n") == service


def test_such_an_order_is_warned_of_when_the_store_is_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "passwd: ldap files\n")
    open_store("local", declared())
    assert "an outage of 'ldap' looks like no such account" in caplog.text

    def refuse(*_: object, **__: object) -> str:
        raise OSError

    caplog.clear()
    monkeypatch.setattr(Path, "read_text", refuse)
    open_store("local", declared())
    assert not caplog.records


MODULE = r"""
#include <nss.h>
#include <pwd.h>
#include <stdlib.h>
enum nss_status _nss_rcptdtest_getpwnam_r(const char *name, struct passwd *pw, char *b, size_t n, int *error)
{
    *error = atoi(getenv("TEST_ERRNO"));
    return atoi(getenv("TEST_STATUS"));
}
"""

PROGRAM = """
import asyncio, sys
sys.path[:0] = {path!r}
from rcptd import schema
from rcptd.address import parse
from rcptd.stores.passwd import Settings, open_store
async def main():
    store = open_store("local", schema.read(Settings, {{"accept": ["root"]}}, print))
    for name in ("root", "rcptd-no-such-account"):
        print(await asyncio.wait_for(store.ask(parse(name + "@example.org")), 10))
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a module of the name service that fails as its environment says."""
    if os.geteuid() or not shutil.which("gcc") or not shutil.which("unshare"):
        if REQUIRED:
            pytest.fail("root, gcc and unshare are needed for a failing name service")
        pytest.skip("root, gcc and unshare are needed for a failing name service")
    folder = tmp_path_factory.mktemp("nss")
    (folder / "nss.c").write_text(MODULE)
    command = ["gcc", "-shared", "-fPIC", "-o", f"{folder}/libnss_rcptdtest.so.2", f"{folder}/nss.c"]
    subprocess.run(command, check=True, timeout=60)
    return folder


def ask_system(folder: Path, services: str, status: int, code: int) -> list[str]:
    """Ask for root and for nobody under another nsswitch.conf, in a mount namespace of its own."""
    (folder / "nsswitch.conf").write_text(f"passwd: {services}\n")
    # Where an unprivileged container forbids mounts there is nothing to be tested.
    script = 'mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf || exit 99; exec "$2" -c "$3"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", folder, sys.executable, PROGRAM.format(path=sys.path)],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "TEST_STATUS": str(status), "TEST_ERRNO": str(code)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode == 99 or "unshare failed" in done.stderr:
        if REQUIRED:
            pytest.fail(done.stderr)
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


UNAVAILABLE, NOTFOUND, TRYAGAIN = -1, 0, -2  # enum nss_status


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (UNAVAILABLE, errno.EIO),
        (UNAVAILABLE, errno.ENOENT),
        (UNAVAILABLE, errno.ESRCH),
        (UNAVAILABLE, errno.ETIMEDOUT),
        (UNAVAILABLE, errno.EMFILE),
        (UNAVAILABLE, errno.ERANGE),
        (TRYAGAIN, errno.EAGAIN),
        (TRYAGAIN, errno.ERANGE),
    ],
)
def test_a_real_service_that_fails_is_no_no(failing: Path, status: int, code: int) -> None:
    found, missing = ask_system(failing, "files rcptdtest", status, code)
    assert found.startswith("Found")  # what the files say is believed
    assert missing.startswith("Unavailable"), missing


def test_a_real_service_that_finds_nothing_is_a_no(failing: Path) -> None:
    assert ask_system(failing, "files rcptdtest", NOTFOUND, 0)[1] .startswith("NotFound(")


def test_an_outage_behind_which_glibc_goes_on_is_hidden_unless_it_returns(failing: Path) -> None:
    """The trap that we warn of; should a glibc mend it, the first assertion says so."""
    assert ask_system(failing, "rcptdtest files", UNAVAILABLE, errno.EIO)[1] .startswith("NotFound(")
    services = "rcptdtest [UNAVAIL=return TRYAGAIN=return] files"
    assert ask_system(failing, services, UNAVAILABLE, errno.EIO)[1].startswith("Unavailable")
