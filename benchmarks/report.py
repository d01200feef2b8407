"""What was measured, in rows and ratios: medians of the rounds, with the least and the most.

A turn is one server, asked for a moment in one scenario. Ratios are those of two turns of the same round, so that
what else the machine did meanwhile counts for both as far as it can. A target is a number to be reached; whether it
is, is said and never asserted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, TypeVar

Item = TypeVar("Item")

# Heading ({} is what is counted), factor, digits: figures are in seconds, octets and shares.
FIGURES: Mapping[str, tuple[str, float, int]] = {
    "rate": ("{}s/s", 1, 0),
    "cpu": ("CPU µs/{}", 1e6, 1),
    "filter": ("of it the filter's, µs", 1e6, 1),
    "time": ("ms", 1e3, 1),
    "cost": ("µs", 1e6, 2),
    "p50": ("p50 µs", 1e6, 0),
    "p99": ("p99 µs", 1e6, 0),
    "beside": ("questions/s beside", 1, 0),
    "busy": ("CPUs busy", 1, 2),
    "private": ("private MB", 1e-6, 1),
    "processes": ("processes", 1, 0),
    "modules": ("modules", 1, 0),
    "generator": ("asking, % of a CPU", 100, 0),
}


@dataclass(frozen=True)
class Turn:
    """One server in one scenario of one round, and its figures by name."""

    round: int
    scenario: str
    server: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """A figure of one server, or its ratio to that of another, and what it is to be."""

    what: str
    scenario: str
    server: str
    figure: str
    limit: float
    at_least: bool = False
    against: str = ""
    """The server that it is held against, in `against_scenario` or the same."""
    against_scenario: str = ""


@dataclass
class Report:
    """One part of the benchmark."""

    part: str
    title: str
    counted: str = "answer"
    turns: list[Turn] = field(default_factory=list)
    baseline: str = ""
    """The server that all others are held against."""
    compared: Sequence[str] = ("rate", "cpu")
    targets: Sequence[Target] = ()
    remarks: list[str] = field(default_factory=list)

    def add(self, number: int, scenario: str, server: str, figures: Mapping[str, float]) -> None:
        """Take in a turn."""
        self.turns.append(Turn(number, scenario, server, figures))

    def rows(self) -> dict[tuple[str, str], list[Turn]]:
        """The turns by scenario and server, both in the order in which they first came."""
        scenarios = list(dict.fromkeys(one.scenario for one in self.turns))
        rows: dict[tuple[str, str], list[Turn]] = {}
        for one in sorted(self.turns, key=lambda one: (scenarios.index(one.scenario), one.round)):
            rows.setdefault((one.scenario, one.server), []).append(one)
        return rows

    def values(self, scenario: str, server: str, figure: str) -> list[float]:
        """A figure of each round."""
        return [
            one.figures[figure] for one in self.rows().get((scenario, server), []) if figure in one.figures
        ]

    def ratios(self, scenario: str, server: str, figure: str, against: str, against_scenario: str = "") -> list[float]:
        """The ratios of a figure, round by round."""
        ours = self.values(scenario, server, figure)
        theirs = self.values(against_scenario or scenario, against, figure)
        return [one / other for one, other in zip(ours, theirs, strict=False) if other]

    def figures(self) -> list[str]:
        """The figures that any turn has, in the order of the table."""
        there = {name for one in self.turns for name in one.figures}
        return [name for name in FIGURES if name in there]

    def heading(self, figure: str) -> str:
        """How a figure is called here."""
        return FIGURES[figure][0].format(self.counted)

    def reached(self, target: Target) -> tuple[float | None, bool]:
        """The value of a target, None where it was not measured, and whether it is reached."""
        if target.against:
            found = self.ratios(target.scenario, target.server, target.figure, target.against, target.against_scenario)
        else:
            found = self.values(target.scenario, target.server, target.figure)
        if not found:
            return None, False
        value = median(found)
        return value, value >= target.limit if target.at_least else value <= target.limit

    def as_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        said = [(one, *self.reached(one)) for one in self.targets]
        return {
            "part": self.part, "title": self.title, "counted": self.counted, "baseline": self.baseline,
            "turns": [asdict(one) for one in self.turns], "remarks": self.remarks,
            "targets": [{**asdict(one), "value": value, "reached": reached} for one, value, reached in said],
        }  # fmt: skip

    def __str__(self) -> str:
        parts = [f"## {self.part}: {self.title}", table(self)]
        if self.baseline and (text := ratio_table(self)):
            parts.append(text)
        if self.targets:
            parts.append("\n".join(told(self)))
        parts += self.remarks
        return "\n\n".join(parts)


def rotated(items: Sequence[Item], number: int) -> Iterator[Item]:
    """The items in turn, another one first in each round."""
    at = number % len(items)
    yield from items[at:]
    yield from items[:at]


def spread(numbers: Sequence[float], digits: int = 0) -> str:
    """Median, least and most."""
    if not numbers:
        return ""
    middle, least, most = (f"{one:.{digits}f}" for one in (median(numbers), min(numbers), max(numbers)))
    return middle if least == most else f"{middle} ({least}–{most})"  # noqa: RUF001 - a range


def lines_of(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    return "\n".join([*head, *(f"| {' | '.join(one)} |" for one in rows)])


def table(report: Report) -> str:
    """The figures of each server in each scenario."""
    figures = report.figures()
    rows = []
    for scenario, server in report.rows():
        cells = []
        for figure in figures:
            _, factor, digits = FIGURES[figure]
            numbers = [one * factor for one in report.values(scenario, server, figure)]
            cells.append(spread(numbers, digits))
        rows.append([scenario, server, *cells])
    return lines_of(["scenario", "server", *map(report.heading, figures)], rows)


def ratio_table(report: Report) -> str:
    """Each server against the baseline; "" where there is nothing to compare."""
    rows = []
    for scenario, server in report.rows():
        if server != report.baseline:
            found = [report.ratios(scenario, server, figure, report.baseline) for figure in report.compared]
            if any(found):
                rows.append([scenario, server, *(spread(one, 2) for one in found)])
    headings = [f"{report.heading(one)}, ratio" for one in report.compared]
    return lines_of(["scenario", f"to {report.baseline}", *headings], rows) if rows else ""


def told(report: Report) -> list[str]:
    """The targets, each in a line."""
    said = []
    for one in report.targets:
        value, reached = report.reached(one)
        factor, digits, unit = 1.0, 2, ""
        if not one.against:
            heading, factor, digits = FIGURES[one.figure]
            unit = f" {heading.format(report.counted)}"
        sense = "at least" if one.at_least else "at most"
        result = "not measured" if value is None else f"{value * factor:.{digits}f}{unit}"
        verdict = "" if value is None else ", reached" if reached else ", **missed**"
        said.append(f"- {one.what}: {result}; to be {sense} {one.limit * factor:g}{verdict}")
    return said
