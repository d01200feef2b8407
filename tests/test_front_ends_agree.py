"""One core: milter, socketmap and `rcptd check` say the same of every case whose facts they know."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rcptd_daemon import control
from tests.harness.case import Case, Rcpt, Transaction
from tests.harness.cases import CaseFile, read_all
from tests.harness.milterwire import MilterConnection
from tests.harness.socketmapwire import SocketmapConnection
from tests.rig.daemon import HEAD, Daemon, configuration_of, rcptd
from tests.rig.place import sheltered

FILES = read_all()
pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with sheltered("agree") as place, Daemon(place, HEAD + "\n[[rules]]\naccept = true\n") as running:
        running.expected_errors.append('msg="store')
        yield running


def facts_of(case: Case, transaction: Transaction) -> dict[str, Any]:
    return {
        "sender": transaction.sender,
        "client": case.client,
        "auth": case.auth,
        "size": transaction.size,
        "smtputf8": transaction.smtputf8,
    }


def sayable(one: Rcpt) -> bool:
    """Whether JSON and a line of text can carry the recipient as it is."""
    return one.path.isprintable() and one.path == one.path.strip()


async def by_milter(daemon: Daemon, case: Case, transaction: Transaction, one: Rcpt) -> str:
    """What the milter answers, in the words of `rcptd check`."""
    macros = {"{auth_authen}": case.auth} if case.auth else {}
    async with MilterConnection(f"inet:127.0.0.1:{daemon.milter_port}", macros=macros) as connection:
        await connection.connect(client=case.client)
        await connection.mail(transaction.sender, *transaction.parameters)
        reply = await connection.rcpt(one.path)
    return reply.text or reply.kind.name.lower()


@pytest.mark.parametrize("file", FILES, ids=[Path(file.path).stem for file in FILES])
def test_milter_maps_and_check_agree(daemon: Daemon, file: CaseFile) -> None:
    daemon.write(configuration_of(file.world, daemon.folder, FILES.index(file)))
    daemon.reload()
    asked = [
        (case, transaction, one) for case in file.cases for transaction, one in case.recipients() if sayable(one)
    ]
    assert asked
    for case, transaction, one in asked:
        where = f"{file.path}:{one.line}: {one.path}"
        with control.connected(daemon.folder / "control.sock", 20) as ask:
            live = ask({"op": "check", "address": one.path, "explain": True, **facts_of(case, transaction)})
        if "milter" in case.front_ends:
            assert asyncio.run(by_milter(daemon, case, transaction, one)) == live["replies"]["milter"], where
            wanted = one.wanted
            said = (live.get("code", 250), live.get("enhanced", "2.1.5"), live["verdict"] != "none")
            assert said == (wanted.code, wanted.enhanced, wanted.ours), where
        assert all(live["trace"]), where
        asyncio.run(compare_maps(daemon, one, live["replies"], where))


async def compare_maps(daemon: Daemon, one: Rcpt, replies: dict[str, str], where: str) -> None:
    async with SocketmapConnection(f"inet:127.0.0.1:{daemon.map_port}") as connection:
        for name in ("smmapd", "access", "sendmail"):
            assert await connection.ask(name, one.path) == replies[f"socketmap {name}"], where


@pytest.mark.parametrize("file", FILES, ids=[Path(file.path).stem for file in FILES])
def test_check_from_the_file_says_what_each_case_wants(daemon: Daemon, file: CaseFile) -> None:
    daemon.write(configuration_of(file.world, daemon.folder, FILES.index(file)))
    groups: dict[str, list[Rcpt]] = {}
    for case in file.cases:
        if "milter" in case.front_ends:
            for transaction, one in case.recipients():
                if sayable(one):
                    groups.setdefault(json.dumps(facts_of(case, transaction)), []).append(one)
    for facts, recipients in groups.items():
        options = json.loads(facts)
        words = [word for name in ("sender", "client", "auth") for word in (f"--{name}", options[name])]
        words += ["--size", str(options["size"])]
        words += [] if options["smtputf8"] else ["--no-smtputf8"]
        stdin = "".join(f"{one.path}\n" for one in recipients)
        code, out, err = rcptd("check", "-c", str(daemon.file), "--json", "--explain", *words, "-", stdin=stdin)
        assert all("/nowhere/" in line for line in err.splitlines()), err  # the store that is down, by its world
        results = [json.loads(line) for line in out.splitlines()]
        assert len(results) == len(recipients)
        for one, result in zip(recipients, results, strict=True):
            said = (result.get("code", 250), result.get("enhanced", "2.1.5"), result["verdict"] != "none")
            assert said == (one.wanted.code, one.wanted.enhanced, one.wanted.ours), f"{file.path}:{one.line}"
        worst = {one.wanted.code // 100 for one in recipients}
        assert code == (75 if 4 in worst else 1 if 5 in worst else 0)
