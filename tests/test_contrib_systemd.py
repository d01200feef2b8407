"""The units of contrib/systemd are what systemd reads without a complaint, and say what the snippets rely on."""

import configparser
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.rig.require import ROOT, program

UNITS = ROOT / "contrib" / "systemd"


class Unit(configparser.RawConfigParser):
    """A unit file; of an assignment that is made more than once, all values."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, comment_prefixes=("#", ";"), delimiters=("=",))
        self.values_of: dict[str, list[str]] = {}
        for line in UNITS.joinpath(name).read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                self.values_of.setdefault(key, []).append(value)
        self.read(UNITS / name)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def need(name: str) -> str:
    """A program of systemd's; the tests that read the units by themselves do without."""
    path = program(name)
    if not path:
        pytest.skip(f"{name} is not installed: systemd is not here")
    return path


@pytest.fixture
def units(tmp_path: Path) -> list[str]:
    """Copies of the units whose program exists: rcptd need not be installed in /usr/bin."""
    paths = []
    for one in sorted(UNITS.glob("rcptd*.*")):
        text = one.read_text().replace("/usr/bin/rcptd ", "/bin/true ")
        tmp_path.joinpath(one.name).write_text(text)
        paths.append(str(tmp_path / one.name))
    assert len(paths) == 2
    return paths


def test_systemd_finds_no_fault_in_the_units(units: list[str]) -> None:
    command = [need("systemd-analyze"), "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_a_fault_where_there_is_one(units: list[str]) -> None:
    path = Path(units[1])
    path.write_text(path.read_text().replace("WatchdogSec=30s", "WatchdogSec=often"))
    command = [need("systemd-analyze"), "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "often" in done.stderr


def test_the_service_is_little_exposed(units: list[str]) -> None:
    command = [need("systemd-analyze"), "security", "--offline=yes", "--threshold=20", units[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout  # 20 is an exposure of 2.0 of 10


def test_the_service_tells_systemd_when_it_is_ready_and_alive() -> None:
    unit = Unit("rcptd.service")
    service = unit["Service"]
    assert (service["Type"], service["NotifyAccess"]) == ("notify", "main")
    assert service["WatchdogSec"] == "30s"
    assert service["ExecStart"] == "/usr/bin/rcptd serve -c /etc/rcptd/rcptd.toml"
    assert unit.values_of["ExecReload"][-1] == "/bin/kill -HUP $MAINPID"
    # The exit codes of a faulty command line and a faulty configuration: starting again would not help.
    assert service["RestartPreventExitStatus"] == "64 78"
    assert service["User"] == "rcptd"


def test_the_listeners_have_the_name_that_the_configuration_uses() -> None:
    unit = Unit("rcptd-socketmap.socket")
    assert unit["Socket"]["FileDescriptorName"] == "socketmap"
    assert unit["Socket"]["Service"] == "rcptd.service"
    assert unit.values_of["ListenStream"] == ["127.0.0.1:7850", "/run/rcptd/socketmap.sock"]
    assert 'listen = ["fd:socketmap"]' in UNITS.joinpath("rcptd-socketmap.socket").read_text()
    # The socket's folder must be there when the service has stopped.
    assert Unit("rcptd.service")["Service"]["RuntimeDirectoryPreserve"] == "yes"


def test_the_account_and_the_folders_are_made(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("systemd-tmpfiles changes owners as root only")
    tmp_path.joinpath("etc").mkdir()
    tmp_path.joinpath("etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    tmp_path.joinpath("etc/group").write_text("root:x:0:\npostfix:x:120:\n")
    tmp_path.joinpath("var/spool/postfix").mkdir(parents=True)
    root = f"--root={tmp_path}"
    for command in (
        [need("systemd-sysusers"), root, str(UNITS / "sysusers.d/rcptd.conf")],
        [need("systemd-tmpfiles"), "--create", root, str(UNITS / "tmpfiles.d/rcptd.conf")],
        [need("systemd-tmpfiles"), "--create", root, str(UNITS / "tmpfiles.d/rcptd-postfix.conf")],
    ):
        subprocess.run(command, capture_output=True, timeout=60, check=True)
    account = next(
        line.split(":") for line in tmp_path.joinpath("etc/passwd").read_text().splitlines() if "rcptd" in line
    )
    uid, gid = int(account[2]), int(account[3])
    assert account[6] == "/usr/sbin/nologin"
    expected = {
        "var/lib/rcptd": (0o750, uid, gid),
        "etc/rcptd": (0o750, 0, gid),
        "run/rcptd": (0o755, uid, gid),
        "var/spool/postfix/rcptd": (0o2750, uid, 120),
    }
    for path, rights in expected.items():
        found = tmp_path.joinpath(path).stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == rights, path
    shutil.rmtree(tmp_path / "var")
