"""The Cyrus store: what the judge finds, told as facts, with every trouble of a database on the way."""

import fcntl
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rcptd import schema
from rcptd.address import parse
from rcptd.config import load, open_world
from rcptd.drive import Driver
from rcptd.query import Query
from rcptd.question import EXISTS, NOT_FOUND, Answer, Busy, Disabled, Found, Mailbox, Posting, Quota, Unavailable
from rcptd.stores.cyrus import imapdconf
from rcptd.stores.cyrus.server import server
from rcptd.stores.cyrus.store import CyrusMailboxes, Settings, open_store
from rcptd.verdict import Action
from rcptd_daemon.sections import SECTIONS
from tests.rig.cyrus_site import Site, record
from tests.rig.daemon import rcptd
from tests.rig.place import sheltered
from tests.rig.ports import wait_until
from tests.rig.require import require_cyrus

pytestmark = pytest.mark.cyrus

OPTIONS = {"virtdomains": "userid", "defaultdomain": "example.org", "postuser": "bb"}
ID = "0123456789abcdef"


QUOTAS = {"quota/f/user.full": b"10240\n10\n", "quota/b/user.badquota": b"1 x\n"}


def site(place: Path, quotas: dict[str, bytes] = QUOTAS, **options: str) -> Site:
    """An installation with one mailbox of each kind."""
    made = Site(place, {**OPTIONS, **options})
    plain = record()
    made.mailboxes = {
        b"user\x1ffoo": plain,
        b"user\x1ffoo\x1fsub": plain,
        b"user\x1fdo.t": plain,
        b"user\x1ffull": plain.replace(b"I x", f"I {ID}".encode()),
        b"user\x1fdenied": plain,
        b"user\x1ffar": record(kind="er", S="other.example.org"),
        b"user\x1fnew": record(kind="ez"),
        b"user\x1fbroken": b"%(T e A",
        b"user\x1fbadquota": plain,
        b"sh": record(acl="anyone lrsp"),
        b"closed": record(acl="anyone lrs"),
        b"hidden": record(acl="foo lrs"),
    }
    made.quotas = dict(quotas)
    made.write()
    made.deny("denied", services=["smmap"], message="gone fishing")
    return made


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    require_cyrus()
    with sheltered("cyrus-store") as place:
        yield site(place / "shared")


@contextmanager
def opened(made: Site, **options: object) -> Iterator[Callable[[str], Answer | Busy]]:
    faults: list[str] = []
    settings = schema.read(
        Settings, {"imapd_conf": str(made.config), **options}, lambda key, what: faults.append(f"{key} {what}")
    )
    assert settings, faults
    store = open_store("cyrus", settings)
    asked = store.on_smmapd if isinstance(store, CyrusMailboxes) and store.on_smmapd else store
    try:
        yield lambda address: asked.lookup(parse(address))
    finally:
        asked.close()
        store.close()


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("foo@example.org", EXISTS),
        ("foo+sub@example.org", EXISTS),
        ("foo+none@example.org", NOT_FOUND),
        ("nobody@example.org", NOT_FOUND),
        ("denied@example.org", Found(Mailbox(disabled=Disabled(text="gone fishing")))),
        ("new@example.org", Found(Mailbox(disabled=Disabled(temporary=True)))),
        ("full@example.org", Found(Mailbox(quota=Quota(bytes_limit=10240, bytes_used=10240, unsized=0)))),
        ("bb+sh@example.org", EXISTS),
        ("bb+closed@example.org", Found(Mailbox(posting=Posting()))),
        ("bb+hidden@example.org", NOT_FOUND),
    ],
)
def test_what_is_known_is_told_as_facts(shared: Site, address: str, answer: Answer) -> None:
    with opened(shared) as ask:
        assert ask(address) == answer


def test_a_held_lock_is_busy(shared: Site) -> None:
    with opened(shared) as ask, shared.directory.joinpath("mailboxes.db").open("r+b") as writer:
        assert ask("foo@example.org") == EXISTS
        fcntl.lockf(writer, fcntl.LOCK_EX)
        # A POSIX lock is no obstacle to the process that holds it, but for locks of open file descriptions.
        assert isinstance(ask("foo@example.org"), Busy)
        fcntl.lockf(writer, fcntl.LOCK_UN)
        assert ask("foo@example.org") == EXISTS


def test_the_steps_of_an_answer_can_be_told(shared: Site) -> None:
    faults: list[str] = []
    settings = schema.read(Settings, {"imapd_conf": str(shared.config)}, lambda _, what: faults.append(what))
    assert settings, faults
    store = open_store("cyrus", settings)
    assert isinstance(store, CyrusMailboxes)

    def told(address: str) -> str:
        return "\n".join(store.explain(parse(address)))

    assert "no quota root" in told("foo@example.org")
    assert "quota root user.full: 10240 bytes used of 10240" in told("full@example.org")
    assert "a shared mailbox, internal name closed" in told("bb+closed@example.org")
    assert "ACL entries that count for anybody: none" in told("bb+hidden@example.org")
    assert "no key" in told("a!b@example.org")
    assert "record: none" in told("nobody@example.org")
    assert "on the server other.example.org" in told("far@example.org")
    assert "cannot tell: the record" in told("broken@example.org")
    assert "user_deny.db denies denied: pattern smmap" in told("denied@example.org")
    is_known = store._judge._mailboxes.known
    assert wait_until(lambda: "no quota root" in told("foo@example.org") and is_known(b"Nuser\x1ffoo") > 0)
    with shared.directory.joinpath("mailboxes.db").open("r+b") as writer:
        fcntl.lockf(writer, fcntl.LOCK_EX)
        assert "no quota root" in told("foo@example.org")  # what is committed, as long as nothing is written
        writer.write(b"\xa1")  # what is there already
        writer.flush()
        assert "cannot tell just now" in told("foo@example.org")
    store.close()
    assert isinstance(store.lookup(parse("foo@example.org")), Unavailable)


@pytest.mark.parametrize(
    ("database", "address"),
    [
        ("user_deny.db", "denied@example.org"),
        ("quotas.db", "full@example.org"),
        ("conversations.db", "full@example.org"),
    ],
)
def test_a_lock_on_any_database_is_busy(database: str, address: str) -> None:
    require_cyrus()
    with sheltered("cyrus-locks") as place:
        made = site(
            place / "site",
            {"user.full": b"10240 10"},
            userdeny_db="twoskip",
            quota_db="twoskip",
            quota_use_conversations="yes",
        )
        folder = made.directory / "user" / "uuid" / ID[0] / ID[1] / ID
        folder.mkdir(parents=True)
        made.own()
        made.write_database(folder / "conversations.db", "skiplist", {b"Q": b"1 %(E 7 S 10239)"})
        path = folder / database if database == "conversations.db" else made.directory / database
        with opened(made) as ask, path.open("r+b") as writer:
            before = ask(address)
            assert isinstance(before, Found | Unavailable)
            fcntl.lockf(writer, fcntl.LOCK_EX)
            assert isinstance(ask(address), Busy)
            fcntl.lockf(writer, fcntl.LOCK_UN)
            assert ask(address) == before


def test_the_database_of_quota_roots_may_be_missing_or_broken() -> None:
    require_cyrus()
    with sheltered("cyrus-quotas") as place:
        made = site(place / "site", {}, quota_db="twoskip")
        path = made.directory / "quotas.db"
        path.unlink()
        for mode in ("strict", "faithful"):
            with opened(made, mode=mode) as ask:
                assert ask("foo@example.org") == EXISTS
        path.write_bytes(b"no database" * 100)
        for mode in ("strict", "faithful"):
            with opened(made, mode=mode) as ask:
                assert isinstance(ask("foo@example.org"), Unavailable)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("broken@example.org", "the record of Nuser"),
        ("badquota@example.org", "the quota of user.badquota"),
        ("x@nowhere.example", "holds not one mailbox of that domain"),
    ],
)
def test_what_is_not_known_is_no_answer(shared: Site, address: str, why: str) -> None:
    with opened(shared) as ask:
        answer = ask(address)
        assert isinstance(answer, Unavailable)
        assert why in answer.why


def test_a_mailbox_on_another_server_is_found_with_that_server(shared: Site) -> None:
    with opened(shared) as ask:
        assert ask("far@example.org") == Found(Mailbox(server="other.example.org"))


def test_an_empty_domain_is_a_no_where_the_operator_says_so(shared: Site) -> None:
    with opened(shared, allow_empty=True) as ask:
        assert ask("x@nowhere.example") == NOT_FOUND


def test_the_last_message_fits_in_strict_and_full_for_good_is_told() -> None:
    require_cyrus()
    with sheltered("cyrus-perm") as place:
        made = site(place / "site", lmtp_over_quota_perm_failure="yes")
        made.directory.joinpath("quota/f/user.full").write_bytes(b"20480\n10 M 5 5\n")
        for mode, limit in (("strict", 6), ("faithful", 5)):
            with opened(made, mode=mode) as ask:
                answer = ask("full@example.org")
                assert isinstance(answer, Found)
                assert answer.mailbox.quota == Quota(10240, 20480, limit, 5, unsized=0, final=True)


def test_databases_that_cannot_be_read_are_no_answer_for_what_they_touch() -> None:
    require_cyrus()
    with sheltered("cyrus-trouble") as place:
        made = site(place / "site")
        deny = made.directory / "user_deny.db"
        quota = made.directory / "quota/f/user.full"
        mailboxes = made.directory / "mailboxes.db"

        def said(address: str, mode: str) -> Answer | Busy:
            with opened(made, mode=mode) as ask:
                return ask(address)

        quota.write_bytes(b"no line end")
        assert isinstance(said("full@example.org", "strict"), Unavailable)
        with opened(made, mode="faithful") as ask:
            for _ in range(2):  # it complains once
                assert ask("full@example.org") == Found(Mailbox(quota=Quota(unsized=0)))

        kept = deny.read_bytes()
        deny.unlink()
        assert said("denied@example.org", "strict") == EXISTS
        deny.mkdir()
        assert isinstance(said("denied@example.org", "strict"), Unavailable)
        assert said("denied@example.org", "faithful") == EXISTS
        deny.rmdir()
        deny.write_bytes(kept.replace(b"\t2", b"\t9"))
        assert isinstance(said("denied@example.org", "strict"), Unavailable)
        assert said("denied@example.org", "faithful") == EXISTS
        deny.write_bytes(kept.replace(b"smmap", b"imap"))
        assert said("denied@example.org", "strict") == EXISTS

        mailboxes.unlink()
        assert isinstance(said("foo@example.org", "strict"), Unavailable)
        assert isinstance(said("a!b@example.org", "strict"), Unavailable)  # though nobody can have that name
        assert isinstance(said("nobody@example.org", "faithful"), Unavailable)
        assert not mailboxes.exists()


def test_what_is_used_may_be_counted_by_conversations() -> None:
    require_cyrus()
    with sheltered("cyrus-conversations") as place:
        made = site(place / "site", quota_use_conversations="yes", conversations_db="twoskip")
        folder = made.directory / "user" / "uuid" / ID[0] / ID[1] / ID
        folder.mkdir(parents=True)
        made.own()
        with opened(made) as ask:
            assert ask("full@example.org") == Found(Mailbox(quota=Quota(bytes_limit=10240, unsized=0)))
            for value, answer in (
                (b"1 %(E 7 S 10239)", Found(Mailbox(quota=Quota(10240, 10239, None, 7, unsized=0)))),
                (b"1 %(S 5 E 2)", Found(Mailbox(quota=Quota(10240, 5, None, 2, unsized=0)))),
            ):
                made.write_database(folder / "conversations.db", "twoskip", {b"Q": value})
                assert ask("full@example.org") == answer
            made.write_database(folder / "conversations.db", "twoskip", {b"Q": b"nonsense"})
            assert isinstance(ask("full@example.org"), Unavailable)
            folder.joinpath("conversations.db").write_bytes(b"x" * 500)
            assert isinstance(ask("full@example.org"), Unavailable)


def test_an_inbox_without_a_unique_id_cannot_be_counted() -> None:
    require_cyrus()
    with sheltered("cyrus-no-id") as place:
        made = site(place / "site", quota_use_conversations="yes")
        made.mailboxes[b"user\x1ffull"] = b"%(T e P default A %(foo p))"
        made.mailboxes[b"user\x1fbadquota"] = record(kind="el")
        made.quotas["quota/b/user.badquota"] = b"1\n2\n"
        made.directory.joinpath("mailboxes.db").unlink()
        made.write()
        with opened(made) as ask:
            assert isinstance(ask("full@example.org"), Unavailable)
            assert "layout before unique ids" in str(ask("badquota@example.org"))


def test_a_faulty_imapd_conf_makes_the_store_unavailable_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    require_cyrus()
    with sheltered("cyrus-faulty") as place:
        made = Site(place / "site", OPTIONS)
        made.prepare()
        made.config.write_text("virtdomains: perhaps\n")
        with opened(made) as ask:
            answer = ask("foo@example.org")
    assert isinstance(answer, Unavailable)
    assert f"{made.config}:1" in answer.why
    assert f"{made.config}:1" in caplog.text


def test_faithful_shapes_the_words_of_smmapd_alone(shared: Site) -> None:
    configuration = shared.place / "faithful.toml"
    configuration.write_text(f"""
[milter]
listen = "inet:127.0.0.1:7851"

[socketmap]
listen = "inet:127.0.0.1:7850"

[socketmap.maps]
"*" = "key"
cyrus = "smmapd"

[stores.imap]
type = "cyrus"
imapd_conf = "{shared.config}"
mode = "faithful"

[[rules]]
verify = ["imap"]
""")
    # To the original ^ in an address is a dot in the mailbox' name; in strict no mailbox is meant.
    code, out, err = rcptd("check", "-c", str(configuration), "--json", "--explain", "do^t", "full")
    assert (code, err) == (1, "")
    odd, full = (json.loads(line) for line in out.splitlines())
    assert odd["replies"] == {
        "milter": "550 5.1.1 No such mailbox",
        "socketmap *": "NOTFOUND No such mailbox",
        "socketmap cyrus": "OK do^t",
    }
    assert set(full["replies"].values()) == {"continue", "OK full"}
    asked = {name: trace[-1]["store"] for name, trace in full["trace"].items()}
    assert asked == {"milter": "imap", "socketmap *": "imap", "socketmap cyrus": "imap as smmapd"}

    world = open_world(load(configuration, SECTIONS))
    try:
        for wire, accepted in (("key", False), ("smmapd", True)):
            decision = Driver(world).begin(Query("do^t", "socketmap", wire=wire))
            assert decision.verdict
            assert (decision.verdict.action is Action.ACCEPT) is accepted
    finally:
        for store in world.stores.values():
            assert isinstance(store, CyrusMailboxes)
            store.close()


def test_mailboxes_may_be_in_a_table_of_a_database_server() -> None:
    require_cyrus()
    with sheltered("cyrus-sql") as place:
        sql = {"mboxlist_db": "sql", "sql_engine": "sqlite", "sql_database": f"{place}/cyrus.sqlite"}
        made = Site(place / "site", {**OPTIONS, **sql})
        made.prepare()
        with sqlite3.connect(place / "cyrus.sqlite") as database:
            database.execute("CREATE TABLE mailboxes_db (dbkey TEXT PRIMARY KEY, data TEXT)")
            database.execute("INSERT INTO mailboxes_db VALUES (?, ?)", ("Nuser\x1ffoo", record().decode()))
        database.close()
        with opened(made) as ask:

            def settled(address: str) -> Answer | Busy:
                said: list[Answer | Busy] = []

                def ended() -> bool:
                    said[:] = [ask(address)]
                    return not isinstance(said[0], Busy)

                assert wait_until(ended, 10)
                return said[0]

            assert settled("foo@example.org") == EXISTS
            assert settled("nobody@example.org") == NOT_FOUND
        made.options = {**made.options, "sql_hostnames": "one.example.org, two.example.org", "sql_user": "cyrus"}
        made.prepare()
        found = server(imapdconf.read(made.config, service="smmap", environ={}))
        assert found
        assert (found.engine, found.host, found.user) == ("sqlite", "one.example.org", "cyrus")


def test_what_cyrus_warns_of_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    require_cyrus()
    with sheltered("cyrus-warned") as place:
        made = Site(place / "site", {**OPTIONS, "tls_cert_file": "/nowhere"})
        made.prepare()
        with opened(made):
            assert "Option 'tls_cert_file' is deprecated" in caplog.text


def test_the_command_line_explains_and_shows(shared: Site) -> None:
    configuration = shared.place / "rcptd.toml"
    configuration.write_text(f"""
[milter]
listen = "inet:127.0.0.1:7851"

[stores.imap]
type = "cyrus"
imapd_conf = "{shared.config}"

[[rules]]
when = {{ domain = "example.org" }}
verify = ["imap"]
""")

    def checked(address: str, *words: str) -> tuple[int, str, str]:
        code, out, _ = rcptd("check", "-c", str(configuration), "--json", "--explain", *words, address)
        result = json.loads(out)
        steps = [step for entry in result["trace"]["milter"] for step in entry.get("steps", ())]
        return code, result["replies"]["milter"], "\n".join(steps)

    code, reply, steps = checked("full@example.org", "--size", "5")
    assert (code, reply[:9]) == (75, "452 4.2.2")
    for part in ("user full, internal name user.full", "key Nuser\\x1ffull", "record: %(T e", "quota root user.full"):
        assert part in steps
    assert checked("full@example.org")[1] == "continue"
    assert checked("full@example.org", "--size", "99999")[1][:9] == "552 5.2.3"
    assert checked("denied@example.org")[1] == "550 5.2.1 gone fishing"
    assert "user_deny.db denies denied: pattern smmap" in checked("denied@example.org")[2]
    assert checked("bb+closed@example.org")[1][:9] == "550 5.7.1"
    assert "ACL entries that count for anybody: anyone lrs" in checked("bb+closed@example.org")[2]
    assert checked("foo+none@example.org")[1] == "continue"  # the rule ignores a detail that names no folder
    assert "record: none" in checked("nobody@example.org")[2]
    assert "cannot tell" in checked("broken@example.org")[2]
    assert checked("far@example.org")[1][:9] == "451 4.4.3"

    code, out, err = rcptd("cyrus", "show", str(shared.config))
    assert (code, err) == (0, "")
    assert "defaultdomain: example.org".ljust(58) + f" # {shared.config}:" in out
    assert "twoskip, " in out
    assert "12 records" in out
    assert "quotalegacy, " in out
    code, _, err = rcptd("cyrus", "show", str(shared.place / "nowhere"))
    assert code == 78
    assert "nowhere" in err
