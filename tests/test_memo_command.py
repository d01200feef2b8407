"""`rcptd memo` on the installed daemon: shown, purged at once, kept over a restart."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.daemon import HEAD, Daemon, rcptd
from tests.rig.place import sheltered

pytestmark = pytest.mark.daemon

RULES = """
[memo]
path = "{folder}/memo.db"

[stores.accounts]
type = "passwd"
min_uid = 0

[stores.accounts.memo]
yes = "1h"

[stores.others]
type = "passwd"

[[rules]]
name = "our accounts"
when = { domain = "example.org" }
verify = ["accounts"]
"""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with sheltered("memo") as folder, Daemon(folder, HEAD + RULES) as running:
        yield running


def memo(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    return rcptd("memo", "-c", str(daemon.file), *words)


def check(daemon: Daemon, address: str) -> str:
    _, out, _ = rcptd("check", "-c", str(daemon.file), "--live", "--explain", address)
    return out


def asked(daemon: Daemon) -> bool:
    """Check root, and say whether the store had to be asked about it."""

    def times() -> int:
        _, out, _ = memo(daemon, "show", "--store", "accounts", "nobody-of-that-name@example.org")
        found = re.search(r"(\d+) asked", out)
        return int(found[1]) if found else 0

    before = times()
    assert "250 2.1.5" in check(daemon, "root@example.org")
    return times() > before


def test_what_is_remembered_is_shown_explained_and_purged_and_survives_a_restart(daemon: Daemon) -> None:
    assert memo(daemon, "show", "--all") == (0, "accounts: nothing remembered\n", "")
    assert asked(daemon)
    assert "250 2.1.5" in check(daemon, "Root@example.org")
    assert "550 5.1.1" in check(daemon, "no-such-account@example.org")

    again = check(daemon, "root@example.org")
    assert re.search(r"remembered: found; learnt \d s ago, counts for 60 min more", again)

    status, out, _ = memo(daemon, "show", "ROOT@example.org")
    assert status == 0
    assert out.startswith("accounts: root@example.org\n    found; learnt")
    assert "accounts: Root@example.org\n" in out
    status, out, _ = memo(daemon, "show", "--all")
    assert "no-such-account@example.org\n    not found; learnt" in out
    assert "since the start 3 asked" in out

    assert memo(daemon, "purge", "no-such-account@example.org") == (
        0, "accounts: 1 forgotten of no-such-account@example.org\n", "",
    )  # fmt: skip
    daemon.stop()
    daemon.start()
    _, out, _ = memo(daemon, "show", "@example.org")
    assert "no-such-account" not in out
    assert "accounts: root@example.org\n" in out
    assert not asked(daemon)

    assert memo(daemon, "purge", "--store", "accounts", "--all")[1] == "accounts: 2 forgotten of all\n"
    assert asked(daemon)


def test_a_reload_keeps_what_is_remembered_unless_the_section_changes(daemon: Daemon) -> None:
    check(daemon, "root@example.org")
    daemon.reload()
    assert not asked(daemon)
    daemon.write((HEAD + RULES).replace("min_uid = 0", "min_uid = 0\nthreads = 3"))
    daemon.reload()
    assert asked(daemon)
    daemon.write((HEAD + RULES).replace("memo.db", "other.db"))
    after = len(daemon.log())
    daemon.reload()
    daemon.wait_for(r"\[memo\] has changed, which needs a restart", after)


def test_addresses_are_shown_as_the_log_shows_them(daemon: Daemon) -> None:
    daemon.write(HEAD + RULES + '\n[log]\naddresses = "domain"\n')
    daemon.reload()
    check(daemon, "root@example.org")
    _, out, _ = memo(daemon, "show", "--all")
    assert out.startswith("accounts: *@example.org\n")
    assert "learnt" not in out


def test_faults_of_the_asker_are_told(daemon: Daemon, tmp_path: Path) -> None:
    assert memo(daemon, "show")[0] == 64
    assert memo(daemon, "show", "--all", "a@b")[0] == 64
    assert memo(daemon, "lose", "--all")[0] == 64
    status, _, err = memo(daemon, "show", "--store", "others", "--all")
    assert status == 64
    assert "those that do: accounts" in err
    assert memo(daemon, "show", "a@b@c")[0] == 64
    daemon.stop()
    status, _, err = memo(daemon, "show", "--all")
    assert status == 69
    assert "is rcptd running" in err
    other = tmp_path / "rcptd.toml"
    other.write_text('[stores.s]\ntype = "memory"\n')
    status, _, err = rcptd("memo", "-c", str(other), "show", "--all")
    assert status == 78
    assert "needs a [control] section" in err


def test_where_nothing_is_remembered_that_is_said(daemon: Daemon) -> None:
    daemon.write((HEAD + RULES).replace('[stores.accounts.memo]\nyes = "1h"', ""))
    daemon.reload()
    assert memo(daemon, "show", "--all") == (0, "no store remembers anything\n", "")
    assert memo(daemon, "purge", "--all") == (0, "no store remembers anything\n", "")


def test_a_table_has_no_memo_and_its_section_is_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "rcptd.toml"
    file.write_text('[stores.s]\ntype = "memory"\n[stores.s.memo]\nyes = "1h"\n')
    assert rcptd("config", "-c", str(file))[2].endswith(
        "stores.s.memo: a store of type 'memory' answers at once, and nothing of it is remembered\n"
    )
    file.write_text('[stores.s]\ntype = "passwd"\nmemo = "on"\n')
    assert 'stores.s.memo: write "off"' in rcptd("config", "-c", str(file))[2]
    file.write_text('[stores.s]\ntype = "passwd"\n[stores.s.memo]\nyess = "1h"\n')
    wanted = "rcptd.toml:4: stores.s.memo.yess: no such option; did you mean 'yes'?"
    assert wanted in rcptd("config", "-c", str(file))[2]
    file.write_text('[stores.s]\ntype = "passwd"\nmemo = "off"\n[stores.t]\ntype = "passwd"\n')
    assert json.dumps(rcptd("config", "-c", str(file))[1]).count('memo = \\"off\\"') == 2
