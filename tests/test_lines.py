"""Lines: where in a TOML text a key stands, for all that tomllib accepts."""

import tomllib

import pytest

from rcptd.lines import Lines, Path

TEXT = '''# a comment = 1
top = 1
dotted.key = 2

[daemon]   # [not.this]
deadline = "6s"  # x = 1
"quoted key" = 1
'single' = 1
list = [
    1, # ] not closed
    "]",
    { a = 1 },
]
after = 1
text = """
fake = 1
[fake]
\\""" still = 1
ends with two """""
raw = \'\'\'
fake2 = 1
\\\'\'\'
behind = """one line""" # """
end = \'\'\'"""\'\'\'
last = "\\"["

[stores . "a.b"]
type = "x"

[[rules]]
name = "0"
  [[rules.inner]]
  deep = 1
[[rules]]
  [rules.table]
  x = 1
  [[rules.inner]]
  deep = 2
[a.b.c]
d = 1
'''

WHERE: list[tuple[Path, int]] = [
    ((), 1),
    (("top",), 2),
    (("dotted",), 3),
    (("dotted", "key"), 3),
    (("daemon",), 5),
    (("daemon", "deadline"), 6),
    (("daemon", "quoted key"), 7),
    (("daemon", "single"), 8),
    (("daemon", "list"), 9),
    (("daemon", "list", "2", "a"), 9),
    (("daemon", "after"), 14),
    (("daemon", "text"), 15),
    (("daemon", "fake"), 5),
    (("fake",), 1),
    (("daemon", "raw"), 20),
    (("daemon", "behind"), 23),
    (("daemon", "end"), 24),
    (("daemon", "last"), 25),
    (("daemon", "nowhere"), 5),
    (("stores", "a.b"), 27),
    (("stores", "a.b", "type"), 28),
    (("rules", "0"), 30),
    (("rules", "0", "name"), 31),
    (("rules", "0", "inner", "0", "deep"), 33),
    (("rules", "1"), 34),
    (("rules", "1", "table", "x"), 36),
    (("rules", "1", "inner", "0", "deep"), 38),
    (("rules", "2"), 1),
    (("a", "b", "c", "d"), 40),
]


def test_the_text_is_toml() -> None:
    read = tomllib.loads(TEXT)
    assert read["daemon"]["text"].endswith('ends with two ""')
    assert read["daemon"]["last"] == '"['


@pytest.mark.parametrize(("path", "line"), WHERE, ids=[".".join(path) for path, _ in WHERE])
def test_a_key_stands_where_it_stands(path: Path, line: int) -> None:
    assert Lines(TEXT).of(path) == line


def test_an_empty_text_has_a_first_line() -> None:
    assert Lines("").of(("daemon", "deadline")) == 1
