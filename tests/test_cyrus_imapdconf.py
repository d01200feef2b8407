"""imapd.conf: what Cyrus takes, and each fault that it stops at, with its place and in its own words."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rcptd.stores.cyrus import imapdconf, options, values
from rcptd.stores.cyrus.imapdconf import FILE_OCTETS, FILES, FaultyImapdConf, ImapdConf, in_force, read


@pytest.fixture(name="path")
def _path(tmp_path: Path) -> Path:
    return tmp_path / "imapd.conf"


def taken(path: Path, text: str | bytes, *, service: str = "smmap", prefix: str = "") -> ImapdConf:
    octets = text.encode("latin-1") if isinstance(text, str) else text
    path.write_bytes(b"configdirectory: /var/imap\n" + octets)
    return read(path, service=service, environ={"CYRUS_PREFIX": prefix} if prefix else {})


def faults(path: Path, text: str | bytes, *, service: str = "smmap") -> tuple[list[str], str]:
    """The faults without the file's path, and Cyrus' own words."""
    with pytest.raises(FaultyImapdConf) as caught:
        taken(path, text, service=service)
    assert str(caught.value) == "\n".join(caught.value.faults)
    place = f"{path.parent}/"
    return [fault.replace(place, "") for fault in caught.value.faults], caught.value.fatal.replace(place, "")


def test_defaults(path: Path) -> None:
    conf = taken(path, "")
    assert conf.configdirectory == Path("/var/imap")
    assert (conf.virtdomains, conf.defaultdomain, conf.postuser, conf.deletedprefix) == (
        "off", b"internal", b"", b"DELETED",
    )  # fmt: skip
    assert conf.unixhierarchysep
    assert conf.lmtp_downcase_rcpt
    assert not conf.lmtp_over_quota_perm_failure
    assert (conf.mboxlist_db, conf.mboxlist_db_path) == ("twoskip", Path("/var/imap/mailboxes.db"))
    assert (conf.quota_db, conf.quota_db_path) == ("quotalegacy", Path("/var/imap/quotas.db"))
    assert (conf.userdeny_db, conf.userdeny_db_path) == ("flat", Path("/var/imap/user_deny.db"))
    assert conf.umask == 0o077
    assert conf.event_groups == {"message", "mailbox"}
    assert conf.mupdate_server is None
    assert (conf.rcptd_mode, conf.rcptd_shutdown) == ("faithful", False)
    assert conf.files == (path,)
    assert conf.warnings == ()
    assert conf.where == {"configdirectory": f"{path}:1"}


def test_the_table_of_defaults_is_about_known_options_of_one_kind() -> None:
    of_a_kind = [
        *options.SWITCHES, *options.INTEGERS, *options.STRINGS, *options.DURATIONS, *options.SIZES,
        *options.ENUMERATIONS, *options.CHOICES, *options.SETS,
    ]  # fmt: skip
    assert len(options.KNOWN) == len(of_a_kind)
    assert set(options.DEFAULTS) <= options.KNOWN | options.OWN
    assert not options.KNOWN & options.OWN
    assert set(options.DEPRECATED) <= options.KNOWN
    assert {new for new, _ in options.DEPRECATED.values() if new} <= options.KNOWN
    assert options.DEFAULTS.keys() == ImapdConf.__dataclass_fields__.keys() - {"where", "files", "warnings", "texts"}


@pytest.mark.parametrize(
    ("text", "option", "value"),
    [
        ("defaultdomain: example.org", "defaultdomain", b"example.org"),
        ("  DefaultDomain:\t example.org \r\n", "defaultdomain", b"example.org"),
        ("defaultdomain:x", "defaultdomain", b"x"),
        ("defaultdomain: x # y", "defaultdomain", b"x # y"),
        ("defaultdomain: \xe9", "defaultdomain", b"\xe9"),
        ("defaultdomain: x\0y\npostuser: bb", "defaultdomain", b"x"),
        ("defaultdomain: x\\\0\npostuser: bb", "postuser", b"bb"),
        ("defaultdomain: a\\\n  b\n", "defaultdomain", b"a  b"),
        ("defaultdomain: \\\n\\\na\n", "defaultdomain", b"a"),
        ("default\\\ndomain: x\n", "defaultdomain", b"x"),
        ("defaultdomain: a\\", "defaultdomain", b"a\\"),
        ("# defaultdomain: a \\\ndefaultdomain: b\npostuser: p\n", "defaultdomain", b"internal"),
        ("postuser: bb\ndefaultdomain: x\\\n", "defaultdomain", b"internal"),  # the last line is lost
        ("\n \t\n#x\n  # y\npostuser: bb", "postuser", b"bb"),
        ("virtdomains: userid", "virtdomains", "userid"),
        ("virtdomains: yes", "virtdomains", "on"),
        ("virtdomains: 1", "virtdomains", "on"),
        ("virtdomains: false", "virtdomains", "off"),
        ("unixhierarchysep: nope", "unixhierarchysep", False),
        ("unixhierarchysep: of course not", "unixhierarchysep", False),
        ("lmtp_over_quota_perm_failure: yup", "lmtp_over_quota_perm_failure", True),
        ("mboxlist_db: twom", "mboxlist_db", "twom"),
        ("mboxlist_db_path: /elsewhere/m.db", "mboxlist_db_path", Path("/elsewhere/m.db")),
        ("mboxlist_db_path: {ConfigDirectory}/m.db", "mboxlist_db_path", Path("/var/imap/m.db")),
        ("mboxlist_db_path: /x{configdirectory}", "mboxlist_db_path", Path("/x{configdirectory}")),
        ("postuser: {configdirectory}", "postuser", b"/var/imap"),
        ("mboxname_lockpath: /run/lock", "mboxname_lockpath", Path("/run/lock")),
        ("mupdate_server: m.example.org", "mupdate_server", "m.example.org"),
        ("tcp_keepalive_cnt: 0x10", "tcp_keepalive_cnt", 16),
        ("tcp_keepalive_idle: 1h", "tcp_keepalive_idle", 3600),
        ("umask: 027", "umask", 0o27),
        ("umask: x", "umask", 0),
        ("event_groups: quota  access", "event_groups", frozenset({"quota", "access"})),
        ("sql_passwd: secret", "sql_passwd", "secret"),
        ("rcptd_mode: strict", "rcptd_mode", "strict"),
        ("rcptd_shutdown: yes", "rcptd_shutdown", True),
        ("smmap_postuser: bb", "postuser", b"bb"),
        ("SMMAP_postuser: bb", "postuser", b"bb"),
        ("smmap_postuser: bb\npostuser: cc", "postuser", b"bb"),
        ("postuser: cc\nsmmap_postuser: bb", "postuser", b"bb"),
        ("smmap_postuser: bb\npostuser: cc\nimap_postuser: dd", "postuser", b"bb"),
        ("imap_postuser: bb", "postuser", b""),
        ("smmap_rcptd_mode: strict\nrcptd_mode: faithful", "rcptd_mode", "strict"),
        ("some_unknown: thing\nsmmap_unknown: x\npartition-default: /y", "postuser", b""),
        ("defaultpartition: Part1", "defaultpartition", "Part1"),
        ("maxquoted: 128k", "postuser", b""),
    ],
)
def test_what_is_taken(path: Path, text: str, option: str, value: object) -> None:
    assert getattr(taken(path, text), option) == value


@pytest.mark.parametrize(
    ("text", "fault", "fatal"),
    [
        ("postuser : bb", "imapd.conf:2: 'postuser : bb' has no name with a `:` right behind it; write `name: value`",
         "invalid option name on line 2 of configuration file imapd.conf"),
        ("nonsense", "imapd.conf:2: 'nonsense' has no name", "invalid option name on line 2 of"),
        ("x" * 200, "imapd.conf:2: '" + "x" * 80 + "...' has no name", "invalid option name on line 2 of"),
        ("postuser:", "imapd.conf:2: postuser has no value", "empty option value on line 2 of configuration file"),
        ("postuser: \t\r", "imapd.conf:2: postuser has no value", "empty option value on line 2"),
        ("postuser: \0x", "imapd.conf:2: postuser has no value", "empty option value on line 2"),
        (": x", "imapd.conf:2: an option without a name", "aborted"),
        ("smmap_: x", "imapd.conf:2: an option without a name", "aborted"),
        ("@exclude: x", "imapd.conf:2: no such directive as @exclude", "invalid directive on line 2 of"),
        ("@: x", "imapd.conf:2: no such directive as @", "invalid directive on line 2 of"),
        ("postuser: a\nPostUser: b", "imapd.conf:3: postuser is given twice, first at imapd.conf:2",
         "option 'postuser' was specified twice in config file (second occurrence on line 3)"),
        ("smmap_postuser: a\nsmmap_postuser: b", "imapd.conf:3: smmap_postuser is given twice",
         "option 'smmap_postuser' was specified twice in config file (second occurrence on line 3)"),
        ("what: a\nwhat: b", "imapd.conf:3: what is given twice, first at imapd.conf:2", "option 'what' was specified"),
        ("configdirectory: /x", "imapd.conf:2: configdirectory is given twice", "option 'configdirectory' was"),
        ("unixhierarchysep: On", "imapd.conf:2: unixhierarchysep is neither on nor off: 'On'",
         "non-switch value for unixhierarchysep in line 2"),
        ("unixhierarchysep: o", "imapd.conf:2: unixhierarchysep is neither on nor off: 'o'", "non-switch value"),
        ("virtdomains: y", "imapd.conf:2: virtdomains may not be 'y'; it may be: off userid on",
         "invalid value 'y' for virtdomains in line 2"),
        ("virtdomains: user id", "imapd.conf:2: virtdomains may not be 'user id'", "invalid value 'user id'"),
        ("mboxlist_db: quotalegacy", "imapd.conf:2: mboxlist_db may not be 'quotalegacy'", "invalid value 'quotal"),
        ("quota_db: on", "imapd.conf:2: quota_db may not be 'on'", "invalid value 'on' for quota_db in line 2"),
        ("event_groups: quota x y", "imapd.conf:2: event_groups may not be 'x'", "invalid value 'x' for event_groups"),
        ("tcp_keepalive_cnt: 5x", "imapd.conf:2: tcp_keepalive_cnt is no whole number: '5x'",
         "non-integer value for tcp_keepalive_cnt in line 2"),
        ("imapidlepoll: 5y", "imapd.conf:2: imapidlepoll is no time like 1h30m: '5y'",
         "unparsable duration '5y' for imapidlepoll in line 2"),
        ("maxquoted: 5X", "imapd.conf:2: maxquoted is no size like 10M: '5X'",
         "unparsable byte size '5X' for maxquoted in line 2"),
        ("defaultpartition: a-b", "imapd.conf:2: defaultpartition option contains non-alnum character",
         "defaultpartition option contains non-alnum character"),
        ("# a \\\n  b\nnonsense\\\n more", "imapd.conf:4: 'nonsense more'", "invalid option name on line 5 of"),
    ],
)  # fmt: skip
def test_faults(path: Path, text: str, fault: str, fatal: str) -> None:
    found, words = faults(path, text)
    assert len(found) == 1
    assert found[0].startswith(fault)
    assert words.startswith(fatal)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "imapd.conf:1: configdirectory option not specified in configuration file"),
        ("configdirectory: var\n", "imapd.conf:1: configdirectory must be fully qualified"),
        ("configdirectory: /\n", "imapd.conf:1: configdirectory must not be '/'"),
    ],
)
def test_the_configuration_directory(path: Path, text: str, fault: str) -> None:
    path.write_text(text)
    with pytest.raises(FaultyImapdConf) as caught:
        read(path)
    assert caught.value.faults == [f"{path.parent}/{fault}"]
    assert caught.value.fatal == fault.partition(": ")[2]


def test_all_faults_are_named_those_of_cyrus_first(path: Path) -> None:
    found, fatal = faults(path, "rcptd_mode: strictly\nnonsense\nvirtdomains: 2\nrcptd_shutdown: maybe\n@x: y\n")
    assert [fault.partition(" ")[0] for fault in found] == [
        "imapd.conf:3:", "imapd.conf:4:", "imapd.conf:6:", "imapd.conf:2:", "imapd.conf:5:",
    ]  # fmt: skip
    assert fatal.startswith("invalid option name on line 3")


def test_a_fault_of_our_own_option_is_told_where_cyrus_has_none(path: Path) -> None:
    found, fatal = faults(path, "rcptd_mode: strictly")
    assert found == ["imapd.conf:2: rcptd_mode may not be 'strictly'; it may be: faithful strict"]
    assert fatal == found[0]


def test_without_a_service_nothing_is_a_service_of_its_own(path: Path) -> None:
    conf = taken(path, "smmap_postuser: bb\nsmmap_: x\n_postuser: y", service="")
    assert conf.postuser == b""


def test_a_value_for_a_service_is_checked_even_where_another_is_not(path: Path) -> None:
    assert taken(path, "smmap_virtdomains: on\nvirtdomains: nonsense").virtdomains == "on"
    assert faults(path, "virtdomains: nonsense\nsmmap_virtdomains: on")[0][0].startswith("imapd.conf:2: ")


def test_deprecated_options_are_warned_of(path: Path) -> None:
    conf = taken(path, "tls_cert_file: /x\npostspec: y")
    assert conf.warnings == (
        "Option 'postspec' is deprecated in version 3.13.1.",
        "Option 'tls_cert_file' is deprecated in favor of 'tls_server_cert' since version 2.5.0.",
    )
    assert faults(path, "tls_cert_file: /x\ntls_cert_file: /y")[0] == [
        "imapd.conf:3: tls_cert_file is given twice, first at imapd.conf:2"
    ]


def test_includes(path: Path) -> None:
    one, two = path.with_name("one"), path.with_name("two")
    one.write_text(f"postuser: bb\n@Include: {two}\n")
    two.write_text("defaultdomain: x")
    conf = taken(path, f"@include: {one}\nvirtdomains: on\n")
    assert (conf.postuser, conf.defaultdomain, conf.virtdomains) == (b"bb", b"x", "on")
    assert conf.files == (path, one, two)
    assert conf.where["defaultdomain"] == f"{two}:1"
    assert conf.where["virtdomains"] == f"{path}:3"


def test_faulty_includes(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("nonsense\n")
    found, fatal = faults(path, f"@include: {other}\n@include: {other}\n@include: {path}\n@include: {path}.no\n")
    assert found == [
        "other:1: 'nonsense' has no name with a `:` right behind it; write `name: value`",
        "imapd.conf:3: other is included twice",
        "imapd.conf:4: imapd.conf is included twice",
        "imapd.conf:5: cannot open imapd.conf.no: No such file or directory",
    ]
    assert fatal == "invalid option name on line 1 of configuration file other"
    fatal = faults(path, f"@include: {path}\n")[1]
    assert fatal == "configuration file imapd.conf included twice"


def test_a_file_that_is_not_there(path: Path) -> None:
    with pytest.raises(FaultyImapdConf) as caught:
        read(path)
    assert caught.value.faults == [f"{path}: cannot open {path}: No such file or directory"]
    assert caught.value.fatal == f"can't open configuration file {path}: No such file or directory"


@pytest.mark.timeout(10)
def test_no_file_is_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(FaultyImapdConf, match="it is no regular file"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(FaultyImapdConf, match=r"Is a directory|it is no regular file"):
        read(path)


def test_files_are_bounded(path: Path) -> None:
    with pytest.raises(FaultyImapdConf, match=f"it is larger than {FILE_OCTETS} bytes"):
        taken(path, b"#" * FILE_OCTETS)
    names = [path.with_name(f"f{number}") for number in range(FILES + 2)]
    for name, following in pairwise(names):
        name.write_text(f"@include: {following}\n")
    names[-1].write_text("postuser: bb")
    found = faults(path, f"@include: {names[0]}\n")[0]
    assert found == [f"f{FILES - 2}:1: more than {FILES} files are included"]


def test_the_prefix_is_tried_first(path: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    there = Path(f"{prefix}{path}")
    there.parent.mkdir(parents=True)
    assert taken(path, "postuser: plain", prefix=str(prefix)).postuser == b"plain"
    there.write_text("configdirectory: /x\npostuser: prefixed")
    conf = read(path, environ={"CYRUS_PREFIX": str(prefix)})
    assert (conf.postuser, conf.files) == (b"prefixed", (there,))


def test_a_name_with_a_nul_ends_there(path: Path) -> None:
    with pytest.raises(FaultyImapdConf, match="cannot open"):
        read(path.with_name("a\0b"), environ={})


def test_what_is_in_force(path: Path) -> None:
    conf = taken(path, "postuser: bb\nmboxlist_db_path: {configdirectory}/m\nsql_passwd: secret")
    listed = {name: (value, where) for name, value, where in in_force(conf)}
    assert list(listed) == list(options.DEFAULTS)
    assert listed["postuser"] == ("bb", f"{path}:2")
    assert listed["mboxlist_db_path"] == ("/var/imap/m", f"{path}:3")
    assert listed["quota_db_path"] == ("/var/imap/quotas.db", "default")
    assert listed["sql_passwd"] == ("(not shown)", f"{path}:4")
    assert listed["mupdate_server"] == ("", "default")
    assert "secret" not in repr(conf)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"5", 5), (b"-5", -5), (b"+5", 5), (b" 5", 5), (b"0", 0), (b"00", 0), (b"010", 8), (b"0x1F", 31),
        (b"0X1f", 31),
        (b"08", None), (b"0x", None), (b"", None), (b"-", None), (b"5 ", None), (b"1.5", None), (b"4294967296", 0),
        (b"2147483648", -2147483648), (b"-1", -1), (b"0xFFFFFFFF", -1), (b"9" * 100, -1), (b"-" + b"9" * 100, 0),
        (b"0" * 100 + b"7", 7),
    ],
)  # fmt: skip
def test_integers(value: bytes, wanted: int | None) -> None:
    assert values.integer(value) == wanted


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (b"5", "s", 5), (b"5", "m", 300), (b"1h30m", "s", 5400), (b"1d2h3m4s", "s", 93784), (b"1m1m", "s", 120),
        (b"30m1h", "s", 5400), (b"-1", "d", -86400), (b"-1h30", "m", -5400), (b"0", "d", 0), (b"1h5", "m", 3900),
        (b"2147483647", "s", 2147483647), (b"2147483648", "s", None), (b"24856d", "s", None), (b"9" * 100, "s", None),
        (b"-", "s", None), (b"h", "s", None), (b"5w", "s", None), (b"1 h", "s", None), (b"--1", "s", None),
        (b"-h", "s", None), (b"+1", "s", None), (b"1hm", "s", None),
    ],
)  # fmt: skip
def test_durations(value: bytes, unit: str, wanted: int | None) -> None:
    assert values.duration(value, unit) == wanted


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [
        (b"5", "B", 5), (b"5", "K", 5120), (b"5K", "B", 5120), (b"5k", "M", 5120), (b"5 M", "B", 5242880),
        (b"5Mi", "B", 5242880),
        (b"5MiB", "B", 5242880), (b"5GB", "B", 5368709120), (b"5B", "K", 5), (b"5b", "K", 5), (b"-1", "K", -1024),
        (b"+1", "B", 1), (b" 1", "B", 1), (b"0", "K", 0), (b"8589934591G", "B", 8589934591 << 30),
        (b"8589934592G", "B", None), (b"-8589934592G", "B", -(1 << 63)), (b"9223372036854775808", "B", None),
        (b"9" * 100, "B", None), (b"x", "B", None), (b"5x", "B", None), (b"5i", "B", None), (b"5BB", "B", None),
        (b"5K B", "B", None), (b"-", "B", None), (b"5T", "B", None),
    ],
)  # fmt: skip
def test_sizes(value: bytes, unit: str, wanted: int | None) -> None:
    assert values.size(value, unit) == wanted


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(b"1", True), (b"y", True), (b"yes", True), (b"yup", True), (b"t", True), (b"on", True), (b"once", True),
     (b"10", True),
     (b"0", False), (b"n", False), (b"nope", False), (b"f", False), (b"off", False), (b"of", False),
     (b"o", None), (b"On", None), (b"YES", None), (b"2", None), (b"-1", None), (b"", None)],
)  # fmt: skip
def test_switches(value: bytes, wanted: bool | None) -> None:
    assert values.switch(value) is wanted


LINES = st.sampled_from(
    ["postuser: bb", "smmap_postuser: cc", "virtdomains: on", "virtdomains: x", "#", "# \\", "\\", "x", "x: y", ": z",
     "@include: /nowhere/at/all", "@include: .", "@x: y", "umask: 9", "maxquoted: 1K", "imapidlepoll: 1",
     "tcp_keepalive_cnt: 08",
     "rcptd_mode: x", "configdirectory: y", "\0", "\x80: x", "defaultpartition: ?", " ", "postuser:"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\\\n"]))
def test_anything_is_taken_or_faulty(path: Path, lines: list[str], newline: str) -> None:
    text = newline.join(lines)
    try:
        conf = taken(path, text)
    except FaultyImapdConf as faulty:
        for fault in faulty.faults:
            assert fault.startswith(f"{path}:")
            assert 1 <= int(fault.removeprefix(f"{path}:").partition(":")[0]) <= text.count("\n") + 2
    else:
        assert len(in_force(conf)) == len(options.DEFAULTS)


def test_lines_are_those_of_c() -> None:
    def texts(octets: bytes) -> list[tuple[int, int, bytes]]:
        return [(line.first, line.last, line.text) for line in imapdconf._lines("f", octets)]

    assert texts(b"") == []
    assert texts(b"a\nb") == [(1, 1, b"a"), (2, 2, b"b")]
    assert texts(b"a\\\nb\nc\n") == [(1, 2, b"ab"), (3, 3, b"c")]
    assert texts(b"a\\\n") == []
    assert texts(b"a\\") == [(1, 1, b"a\\")]
    assert texts(b"a\\\r\nb") == [(1, 1, b"a\\\r"), (2, 2, b"b")]
