"""Reads the file with every section that rcptd has, and says what an operator should be told about it."""

from collections.abc import Iterator
from pathlib import Path

from rcptd.config import Configuration, FaultyConfiguration, load
from rcptd_daemon import logs
from rcptd_daemon.sections import SECTIONS

DEFAULT_PATH = Path("/etc/rcptd/rcptd.toml")


def read_configuration(path: Path) -> Configuration:
    """Read and check a configuration file; raises `FaultyConfiguration`."""
    return load(path, SECTIONS)


def log_settings(configuration: Configuration) -> logs.Settings:
    """Give the `[log]` section, or its defaults."""
    settings = configuration.sections.get("log") or logs.DEFAULTS
    assert isinstance(settings, logs.Settings)
    return settings


def require_front_end(configuration: Configuration) -> None:
    """Raise `FaultyConfiguration` where there is nothing to serve."""
    if not {"milter", "socketmap"} & set(configuration.sections):
        raise FaultyConfiguration(
            [f"{configuration.path}:1: the file: names no front end; add [socketmap], [milter] or both"]
        )


def remarks(configuration: Configuration) -> Iterator[str]:
    """Say what is in order but may surprise."""
    if "socketmap" in configuration.sections:
        for rule in configuration.rules:
            if rule.verify and rule.posting_unknown == "accept":
                yield (
                    f"rule {rule.name!r}: a socketmap does not know who is posting, so limits on who may post are "
                    'not judged there (posting_unknown = "accept")'
                )
    if "milter" in configuration.sections and configuration.daemon.deadline >= 10:
        yield (
            f"deadline {configuration.daemon.deadline:g}s: Sendmail waits 10 s for a milter unless its T= says "
            "more, and defers the rest of the session when it has waited in vain"
        )
    if not configuration.rules:
        yield "there are no [[rules]], so every recipient is none of ours"
