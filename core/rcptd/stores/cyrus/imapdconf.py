r"""imapd.conf(5), read as Cyrus reads it, with all that it stops at.

The rules are few and odd: one `name: value` to a line, a line that ends in `\` goes on with the next (comments, too),
`@include: FILE` reads another, the name of a service in front (`smmap_virtdomains`) makes an option that service's
own, an option given twice is fatal, one that is unknown is kept unseen. `$CYRUS_PREFIX` is tried in front of each file.

Cyrus stops at the first fault. We read on and name all: the first of `FaultyImapdConf.faults` is the one at which Cyrus
stops, the faults of our own options and bounds come last.

This module alone of the pure rules reads files: regular ones, each bounded before it is read, none waited for.
"""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcptd.stores.cyrus import options, values

FILE_OCTETS = 4 << 20  # a configuration has a few kB; Cyrus knows no limit
FILES = 100  # included in one another, or one after the other
_SHOWN = 80

_SPACE = b" \t\n\v\f\r"
_NAME = re.compile(rb"(@?[A-Za-z0-9_-]*):")
_HIDDEN = "(not shown)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImapdConf:
    """The options of imapd.conf(5) that this job asks for, and the two of our own.

    What is compared with addresses is bytes. `where` maps each option that was given to its FILE:LINE, `files` are all
    that were read, `warnings` the lines that Cyrus logs, and `texts` the text of each option in force.
    """

    configdirectory: Path
    virtdomains: str
    defaultdomain: bytes
    unixhierarchysep: bool
    postuser: bytes
    lmtp_downcase_rcpt: bool
    lmtp_over_quota_perm_failure: bool
    deletedprefix: bytes
    mboxlist_db: str
    mboxlist_db_path: Path
    quota_db: str
    quota_db_path: Path
    userdeny_db: str
    userdeny_db_path: Path
    cyrusdb_autoconvert: bool
    fulldirhash: bool
    hashimapspool: bool
    quota_use_conversations: bool
    conversations_db: str
    mboxname_lockpath: Path | None
    deleteright: bytes
    acl_admin_implies_write: bool
    auth_mech: str
    mupdate_server: str | None
    mupdate_config: str
    proxyservers: str | None
    auditlog: bool
    debug: bool
    debug_command: str | None
    syslog_prefix: str | None
    syslog_facility: str | None
    umask: int
    tcp_keepalive: bool
    tcp_keepalive_cnt: int
    tcp_keepalive_idle: int
    tcp_keepalive_intvl: int
    event_notifier: str | None
    event_groups: frozenset[str]
    fatals_abort: bool
    defaultpartition: str | None
    sql_engine: str | None
    sql_database: str | None
    sql_hostnames: str
    sql_user: str | None
    sql_passwd: str | None = field(repr=False)
    sql_usessl: bool
    rcptd_mode: str
    rcptd_shutdown: bool
    where: Mapping[str, str]
    files: tuple[Path, ...]
    warnings: tuple[str, ...]
    texts: Mapping[str, str] = field(repr=False)


class FaultyImapdConf(Exception):
    """An imapd.conf that is not taken: `faults`, and in `fatal` the words with which Cyrus ends."""

    def __init__(self, faults: list[str], fatal: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
        self.fatal = fatal


def read(path: Path, *, service: str = "", environ: Mapping[str, str] = os.environ) -> ImapdConf:
    """Read an imapd.conf and all that it includes; raises `FaultyImapdConf`, and nothing else.

    `service` is the name in cyrus.conf's SERVICES, whose own options win.
    """
    reading = _Reading(service.lower(), environ.get("CYRUS_PREFIX", ""))
    reading.file(os.fsencode(path), None)
    return reading.done()


def in_force(conf: ImapdConf) -> list[tuple[str, str, str]]:
    """List the options of this job: name, value ("" for none) and FILE:LINE, or "default"."""
    return [
        (name, _HIDDEN if name == "sql_passwd" and text else text, conf.where.get(name, "default"))
        for name, text in conf.texts.items()
    ]


@dataclass(frozen=True, slots=True)
class _Line:
    """A joined line: where it begins for people, where it ends for Cyrus' own words."""

    file: str
    first: int
    last: int
    text: bytes

    @property
    def where(self) -> str:
        return f"{self.file}:{self.first}"


class _Reading:
    """One reading: what has been given so far, and what was wrong."""

    def __init__(self, service: str, prefix: str) -> None:
        self._service = service
        self._prefix = os.fsencode(prefix)
        self._given: dict[str, bytes] = {}
        self._by_service: set[str] = set()
        self._unknown: set[str] = set()
        self._where: dict[str, str] = {}
        self._names: set[bytes] = set()
        self._files: list[Path] = []
        self._warnings: list[str] = []
        self._faults: list[str] = []
        self._own_faults: list[str] = []
        self._fatal = ""

    def file(self, name: bytes, by: _Line | None, depth: int = 0) -> None:
        """Read one file, and those that it includes."""
        shown = os.fsdecode(name)
        at = by.where if by else shown
        try:
            path, octets = self._octets(name)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            self._fault(at, f"cannot open {shown}: {why}", f"can't open configuration file {shown}: {why}")
            return
        except ValueError as error:
            self._own_fault(at, f"cannot read {shown}: {error}")
            return
        if name in self._names:
            self._fault(at, f"{shown} is included twice", f"configuration file {shown} included twice")
            return
        if depth >= FILES or len(self._names) >= FILES:
            self._own_fault(at, f"more than {FILES} files are included")
            return
        self._names.add(name)
        self._files.append(Path(os.fsdecode(path)))
        for line in _lines(os.fsdecode(path), octets):
            self._line(line, depth)

    def done(self) -> ImapdConf:
        """Check what Cyrus checks in the end, and give the configuration."""
        self._directory()
        for old, (new, since) in options.DEPRECATED.items():
            if old in self._given:
                instead = f"in favor of '{new}' since" if new else "in"
                self._warnings.append(f"Option '{old}' is deprecated {instead} version {since}.")
        partition = self._given.get("defaultpartition", b"")
        if not re.fullmatch(rb"[A-Za-z0-9]*", partition):
            text = "defaultpartition option contains non-alnum character"
            self._fault(self._where["defaultpartition"], text, text)
        faults = self._faults + self._own_faults
        if faults:
            raise FaultyImapdConf(faults, self._fatal or faults[0])
        return self._typed()

    def _octets(self, name: bytes) -> tuple[bytes, bytes]:
        """Give the path that was opened, and what is in it."""
        if b"\0" in name:
            name = name.partition(b"\0")[0]
        if self._prefix:
            try:
                return self._prefix + name, _contents(self._prefix + name)
            except OSError:
                pass
        return name, _contents(name)

    def _line(self, line: _Line, depth: int) -> None:
        text = line.text.lstrip(_SPACE)
        if not text or text.startswith(b"#"):
            return
        name = _NAME.match(text)
        if name is None:
            self._fault(
                line.where,
                f"{_shown(text)} has no name with a `:` right behind it; write `name: value`",
                f"invalid option name on line {line.last} of configuration file {line.file}",
            )
            return
        key = name[1].decode("ascii").lower()
        value = text[name.end() :].strip(_SPACE)
        if not value:
            self._fault(
                line.where, f"{key} has no value", f"empty option value on line {line.last} of configuration file"
            )
        elif key == "@include":
            self.file(value, line, depth + 1)
        elif key.startswith("@"):
            self._fault(
                line.where,
                f"no such directive as {key}; there is @include only",
                f"invalid directive on line {line.last} of configuration file {line.file}",
            )
        else:
            self._option(line, key, value)

    def _option(self, line: _Line, key: str, value: bytes) -> None:
        """Take an option, unless it was given before; that of the service wins, in whichever order they come."""
        name = key
        own = key.removeprefix(f"{self._service}_") if self._service else key
        for_service = own != key and (own in options.KNOWN or own in options.OWN or not own)
        if for_service:
            name = own
        if not name:
            self._fault(line.where, "an option without a name", "aborted")  # no words: the original ends by abort()
            return
        if name in options.OWN:
            known, cyrus_knows = True, False
        else:
            known = cyrus_knows = name in options.KNOWN
        before = set(self._given) if known else self._unknown
        twice = name in before and (for_service == (name in self._by_service))
        if twice:
            self._fault(
                line.where,
                f"{key} is given twice, first at {self._where[name]}",
                f"option '{key}' was specified twice in config file (second occurrence on line {line.last})",
            )
            return
        if not known:
            self._unknown.add(name)
            self._where[name] = line.where
            return
        if name in self._by_service:
            return
        if for_service:
            self._by_service.add(name)
        fault = _fault(name, value)
        if fault:
            say, words = fault
            if cyrus_knows:
                self._fault(line.where, say, f"{words} in line {line.last}")
            else:
                self._own_fault(line.where, say)
        self._given[name] = value
        self._where[name] = line.where

    def _directory(self) -> None:
        directory = self._given.get("configdirectory")
        if directory is None:
            if not self._files:
                return  # the file itself is the fault
            where, fault = f"{self._files[0]}:1", "configdirectory option not specified in configuration file"
        elif not directory.startswith(b"/"):
            where, fault = self._where["configdirectory"], "configdirectory must be fully qualified"
        elif directory == b"/":
            where, fault = self._where["configdirectory"], "configdirectory must not be '/'"
        else:
            return
        self._fault(where, fault, fault)

    def _fault(self, where: str, say: str, fatal: str) -> None:
        self._faults.append(f"{where}: {say}")
        self._fatal = self._fatal or fatal

    def _own_fault(self, where: str, say: str) -> None:
        self._own_faults.append(f"{where}: {say}")

    def _typed(self) -> ImapdConf:
        directory = self._given["configdirectory"]
        texts = {
            name: _placed(name, self._given.get(name, default), directory) for name, default in options.DEFAULTS.items()
        }
        return ImapdConf(
            **{name: _typed(name, text) for name, text in texts.items()},
            where={name: where for name, where in self._where.items() if name in texts},
            files=tuple(self._files),
            warnings=tuple(self._warnings),
            texts={name: os.fsdecode(text or b"") for name, text in texts.items()},
        )


def _contents(path: bytes) -> bytes:
    """Give what is in a regular file, without waiting for a FIFO's writer; raises OSError and ValueError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("it is no regular file")
        octets = file.read(FILE_OCTETS + 1)
    if len(octets) > FILE_OCTETS:
        raise ValueError(f"it is larger than {FILE_OCTETS} bytes")
    return octets


def _lines(name: str, octets: bytes) -> Iterator[_Line]:
    """Give the lines, joined where one ends in a backslash; what a joined line lacks at the end of the file is lost."""
    pieces: list[bytes] = []
    first = 0
    physical = octets.split(b"\n")
    ended = not physical[-1]  # the last line has its newline
    if ended:
        physical.pop()
    for number, line in enumerate(physical, start=1):
        first = first or number
        text, nul, _ = line.partition(b"\0")  # a string ends there in C, and so does the line
        if not nul and text.endswith(b"\\") and (ended or number < len(physical)):
            pieces.append(text[:-1])
            continue
        yield _Line(name, first, number, b"".join((*pieces, text)))
        pieces.clear()
        first = 0


def _fault(name: str, value: bytes) -> tuple[str, str] | None:
    """Say what is wrong with a value, for people and in Cyrus' own words."""
    shown, text = _shown(value), os.fsdecode(value)
    if name in options.SWITCHES or name in options.OWN_SWITCHES:
        if values.switch(value) is None:
            return f"{name} is neither on nor off: {shown}", f"non-switch value for {name}"
    elif name in options.INTEGERS:
        if values.integer(value) is None:
            return f"{name} is no whole number: {shown}", f"non-integer value for {name}"
    elif name in options.DURATIONS:
        if values.duration(value, options.DURATIONS[name]) is None:
            return f"{name} is no time like 1h30m: {shown}", f"unparsable duration '{text}' for {name}"
    elif name in options.SIZES:
        if values.size(value, options.SIZES[name]) is None:
            return f"{name} is no size like 10M: {shown}", f"unparsable byte size '{text}' for {name}"
    elif wrong := _wrong_word(name, value):
        words = " ".join(_words(name))
        fatal = f"invalid value '{os.fsdecode(wrong)}' for {name}"
        return f"{name} may not be {_shown(wrong)}; it may be: {words}", fatal
    return None


def _words(name: str) -> tuple[str, ...]:
    for table in (options.ENUMERATIONS, options.CHOICES, options.SETS, options.OWN_WORDS):
        if name in table:
            return table[name]
    return ()


def _wrong_word(name: str, value: bytes) -> bytes | None:
    """Give the first word that an option may not hold."""
    allowed = _words(name)
    if not allowed:
        return None
    if name in options.SETS:
        given = value.split()
    else:
        given = [values.enumeration(value) if name in options.ENUMERATIONS else value]
    return next((word for word in given if os.fsdecode(word) not in allowed), None)


def _shown(value: bytes) -> str:
    text = os.fsdecode(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _placed(name: str, value: bytes | None, directory: bytes) -> bytes | None:
    """Put the configuration directory for its name at the beginning of a string."""
    mark = options.CONFIGDIRECTORY
    if value is None or name == "configdirectory" or name not in options.STRINGS:
        return value
    if value[: len(mark)].lower() == mark:
        return directory + value[len(mark) :]
    return value


def _octal(value: bytes) -> int:
    """Read as strtol does in base 8: the digits that are there, 0 for none."""
    digits = re.match(rb"[ \t-\r]*\+?([0-7]{1,21})", value)
    return int(digits[1], 8) & 0o7777 if digits else 0


_OCTETS = frozenset({"defaultdomain", "postuser", "deletedprefix", "deleteright"})


def _typed(name: str, text: bytes | None) -> Any:
    """Give the value of a sound option."""
    if text is None:
        return None
    if name in options.SWITCHES or name in options.OWN_SWITCHES:
        return values.switch(text)
    if name in options.INTEGERS:
        return values.integer(text)
    if name in options.DURATIONS:
        return values.duration(text, options.DURATIONS[name])
    if name in _OCTETS:
        return text
    if name.endswith("path") or name == "configdirectory":
        return Path(os.fsdecode(text))
    return _typed_words(name, text)


def _typed_words(name: str, text: bytes) -> Any:
    if name in options.ENUMERATIONS:
        text = values.enumeration(text)
    if name in options.SETS:
        return frozenset(os.fsdecode(text).split())
    return _octal(text) if name == "umask" else os.fsdecode(text)
