"""The snippets of contrib/, as they stand in their files, for loading into a real MTA.

Only what every site must replace is replaced, ports and paths and names, and each replacement must be there
to be made. A line that a snippet has commented out as the variant of another (the same setting, over a unix
socket instead of loopback) can be taken instead of it.
"""

import re
from collections.abc import Mapping

from tests.rig.require import ROOT

# What two variants of one line have in common: the name of a main.cf setting, of an m4 macro with its first
# argument, of a K line's map.
_HEAD = re.compile(r"\w+ = |\w+\(`\w+', |K\w+ socket ")
_COMMENT = re.compile(r"(?:#|dnl )(?=\S)")


def snippet(name: str, replace: Mapping[str, str], *, variant: bool = False) -> str:
    """The text of `contrib/NAME` with every occurrence of some words replaced."""
    text = ROOT.joinpath("contrib", name).read_text()
    if variant:
        text = _with_variants(text)
    for old, new in replace.items():
        if old not in text:
            raise ValueError(f"contrib/{name} has no {old!r} to replace")
        text = text.replace(old, new)
    return text


def uncommented(text: str, head: str) -> str:
    """The same text with the commented-out lines that begin with some words in force."""
    changed, count = re.subn(rf"^(?:#|dnl )(?={re.escape(head)})", "", text, flags=re.MULTILINE)
    if not count:
        raise ValueError(f"no line {head!r} is commented out")
    return changed


def _with_variants(text: str) -> str:
    lines = text.split("\n")
    active = {head[0]: number for number, line in enumerate(lines) if (head := _HEAD.match(line))}
    swapped = 0
    for number, line in enumerate(lines):
        bare = _COMMENT.sub("", line, count=1) if _COMMENT.match(line) else ""
        if (head := _HEAD.match(bare)) and head[0] in active:
            lines[active[head[0]]] = ""
            lines[number] = bare
            swapped += 1
    if not swapped:
        raise ValueError("no line has a variant that is commented out")
    return "\n".join(lines)
