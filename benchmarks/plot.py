"""Draws reports as bars: an SVG of a few lines, so that no library is needed."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.report import FIGURES, Report

WIDTH, BAR, LABEL, ROOM = 960, 18, 420, 380
COLOURS = ("#4878a8", "#d08040", "#60a060", "#a05878", "#808080", "#8868b0")
DRAWN = ("rate", "cpu", "p99", "time", "cost")
"""A panel for each of these figures that a report has."""


def draw(reports: Sequence[Report], file: Path) -> None:
    """Write the file: for each figure the medians as bars, and the least and the most as a line."""
    body: list[str] = []
    top = 10
    for report in reports:
        for figure in DRAWN:
            if figure in report.figures():
                rows = list(_rows(report, figure))
                body += _panel(f"{report.part}: {report.heading(figure)}", rows, top, FIGURES[figure][2])
                top += BAR * (len(rows) + 3)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>'
    )
    file.write_text("\n".join([head, *body, "</svg>\n"]))


Row = tuple[str, str, float, float, float]


def _rows(report: Report, figure: str) -> Iterator[Row]:
    servers = list(dict.fromkeys(one.server for one in report.turns))
    for scenario, server in report.rows():
        numbers = [one * FIGURES[figure][1] for one in report.values(scenario, server, figure)]
        if numbers:
            colour = COLOURS[servers.index(server) % len(COLOURS)]
            yield f"{scenario}: {server}", colour, median(numbers), min(numbers), max(numbers)


def _panel(title: str, rows: Sequence[Row], top: int, digits: int) -> Iterator[str]:
    scale = ROOM / (max(most for *_, most in rows) or 1)
    yield f'<text x="10" y="{top + BAR}" font-weight="bold">{escape(title)}</text>'
    for number, (label, colour, middle, least, most) in enumerate(rows):
        y = top + BAR * (number + 2) - 6
        centre = y + BAR // 2 - 1
        yield f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{LABEL}" y="{y}" width="{middle * scale:.1f}" height="{BAR - 4}" fill="{colour}"/>'
        yield (
            f'<line x1="{LABEL + least * scale:.1f}" x2="{LABEL + most * scale:.1f}" y1="{centre}" y2="{centre}" '
            'stroke="black"/>'
        )
        yield f'<text x="{LABEL + most * scale + 6:.1f}" y="{y + 12}">{middle:.{digits}f}</text>'
