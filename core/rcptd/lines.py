"""Where in a TOML file a key stands, which tomllib does not tell: for faults as `FILE:LINE: key: …`.

This reads just enough TOML to find headers and keys: it is only ever given text that tomllib has
accepted, so what it does not understand it passes over, and a fault then names the nearest line above.
"""

import re

Path = tuple[str, ...]
"""Keys from the outside in; the sections of a list such as `[[rules]]` are counted "0", "1", …"""

_KEY = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEYS = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_KEYS})\s*\]")
_ASSIGNMENT = re.compile(rf"\s*({_KEYS})\s*=(.*)", re.DOTALL)
_PART = re.compile(_KEY)
# What may open or close something, outside comments: strings of four kinds, brackets.
_TOKEN = re.compile(r'"""|\'\'\'|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]')
# Up to two quotes may stand before the closing three, and only the double ones can be escaped.
_ENDS = {'"""': re.compile(r'(?:\\.|[^\\])*?"{3,5}'), "'''": re.compile(r"[^\n]*?'{3,5}")}


class Lines:
    """The lines of the headers and keys of one TOML text."""

    def __init__(self, text: str) -> None:
        self._at: dict[Path, int] = {(): 1}
        self._counts: dict[Path, int] = {}
        self._scan(text)

    def of(self, path: Path) -> int:
        """Give the line, from 1, of a key, or of the nearest thing around it."""
        while path not in self._at:
            path = path[:-1]
        return self._at[path]

    def _scan(self, text: str) -> None:
        table: Path = ()
        waiting_for = ""  # the closing quotes of a string of several lines
        depth = 0
        for number, line in enumerate(text.split("\n"), start=1):
            rest = line
            if not waiting_for and depth == 0:
                if header := _HEADER.match(line):
                    table = self._enter(_parts(header[2]), repeated=header[1] == "[[")
                    self._at.setdefault(table, number)
                    continue
                if assignment := _ASSIGNMENT.match(line):
                    path = table
                    for part in _parts(assignment[1]):
                        path += (part,)
                        self._at.setdefault(path, number)
                    rest = assignment[2]
            waiting_for, depth = _follow(rest, waiting_for, depth)

    def _enter(self, parts: list[str], *, repeated: bool) -> Path:
        path: Path = ()
        for index, part in enumerate(parts):
            path += (part,)
            if repeated and index == len(parts) - 1:
                self._counts[path] = self._counts.get(path, -1) + 1
            if path in self._counts:
                path += (str(self._counts[path]),)
        return path


def _parts(keys: str) -> list[str]:
    return [part[1:-1] if part[0] in "\"'" else part for part in _PART.findall(keys)]


def _follow(text: str, waiting_for: str, depth: int) -> tuple[str, int]:
    """Track open strings and brackets to the end of a line."""
    at = 0
    while True:
        if waiting_for:
            closed = _ENDS[waiting_for].match(text, at)
            if not closed:
                return waiting_for, depth
            at = closed.end()
            waiting_for = ""
        token = _TOKEN.search(text, at)
        if not token:
            return "", depth
        at = token.end()
        if token[0] in ('"""', "'''"):
            waiting_for = token[0]
        elif token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
