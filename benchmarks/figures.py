"""What was measured, and how it is shown. Pure."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Series:
    """The same thing measured again and again; what is measured is never negative."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def shown(self, scale: float = 1.0, digits: int = 2) -> str:
        """Return the median and, in brackets, the quartiles."""
        low, _, high = (
            statistics.quantiles(self.values, n=4, method="inclusive") if self.values[1:] else self.values * 3
        )
        return f"{self.median * scale:,.{digits}f} ({low * scale:,.{digits}f}-{high * scale:,.{digits}f})"


class Target(NamedTuple):
    """What a ratio, or a figure, is to be."""

    bound: float
    at_most: bool = True

    def verdict(self, value: float) -> str:
        """Say what was wanted, and whether it was met."""
        met = value <= self.bound if self.at_most else value >= self.bound
        return f"{'<=' if self.at_most else '>='} {self.bound:g} {'met' if met else 'MISSED'}"


Row = Sequence[str]


def table(title: str, head: Row, rows: Iterable[Row]) -> str:
    """Align the columns: the first to the left, the others to the right, the last (a verdict) to the left."""
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([title, *("  " + _aligned(line, widths) for line in lines), ""])


def _aligned(line: Row, widths: Sequence[int]) -> str:
    first, *middle, last = line
    cells = (cell.rjust(width) for cell, width in zip(middle, widths[1:-1], strict=True))
    return "  ".join([first.ljust(widths[0]), *cells, last]).rstrip()
