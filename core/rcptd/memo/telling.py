"""What is remembered, in words for a person."""

import math

from rcptd.memo.entries import Entry
from rcptd.trace import describe


def told(entry: Entry | None, now: float, stale: float) -> list[str]:
    """Tell an entry at `now`; `stale` is for how many seconds past its life it may stand in, 0 for not at all."""
    if entry is None:
        return ["nothing"]
    left = entry.until - now
    counts = f"counts for {span(left)} more" if left > 0 else f"counts no more, since {span(-left)}"
    lines = [f"{describe(entry.answer)}; learnt {ago(now - entry.asked)}, {counts}"]
    if left > 0 and entry.refresh_at < math.inf:
        when = f", in {span(entry.refresh_at - now)}" if entry.refresh_at > now else ""
        lines.append(f"asked about again when used{when}")
    if stale:
        lines.append(f"stands in while the store cannot tell, for {span(left + stale)} more")
    if entry.gone_at is not None and entry.good_at is not None:
        lines.append(f"was good {ago(now - entry.good_at)}, said to be gone since {span(now - entry.gone_at)}")
    return lines


def span(seconds: float) -> str:
    """Write a length of time in its largest fitting unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def ago(seconds: float) -> str:
    """Write how long ago something was."""
    return f"{span(seconds)} ago"
