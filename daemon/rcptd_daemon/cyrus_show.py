"""`rcptd cyrus show`: what of an imapd.conf is in force for this job, and what its databases hold."""

import sys
from collections.abc import Iterator
from pathlib import Path

from rcptd.stores.cyrus import imapdconf
from rcptd.stores.cyrus.databases import Description
from rcptd.stores.cyrus.imapdconf import FaultyImapdConf
from rcptd.stores.cyrus.judge import Judge

EX_CONFIG = 78  # sysexits(3)


def show(path: Path, service: str) -> int:
    """Print options, files, and what is wrong with them; gives the exit status."""
    try:
        conf = imapdconf.read(path, service=service)
    except FaultyImapdConf as faulty:
        for fault in faulty.faults:
            print(fault, file=sys.stderr)
        return EX_CONFIG
    for warning in conf.warnings:
        print(f"# note: {warning}")
    for name, value, where in imapdconf.in_force(conf):
        print(f"{name}: {value}".ljust(58), f"# {where}" if value else f"# not set, {where}")
    judge = Judge(conf, strict=conf.rcptd_mode == "strict", service=service.encode())
    try:
        for option, database in judge.databases.items():
            print()
            for line in _lines(option, database.describe()):
                print(line)
    finally:
        judge.close()
    return 0


def _lines(option: str, description: Description) -> Iterator[str]:
    octets = "no such file" if description.octets is None else f"{description.octets} bytes"
    records = "records not counted" if description.records is None else f"{description.records} records"
    yield f"{option}: {description.path}"
    yield f"    {description.kind}, {octets}, {records}"
    for fault in description.faults:
        yield f"    fault: {fault}"
