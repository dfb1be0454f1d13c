"""The geometry of a plot's axes: where values lie in pixels, and where ticks stand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

RATIO = 8  # values that differ by more than this factor get a logarithmic axis


@dataclass
class Axis:
    """Values from `low` to `high`, drawn from pixel `start` to pixel `end`; log: on a logarithmic scale."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, count: int = 6) -> list[tuple[float, str]]:
        """(pixel, text) of each tick."""
        from matplotlib.ticker import LogLocator, MaxNLocator  # slow to import

        subs = (1, 2, 5) if self.log and self.high / self.low < 300 else (1,)
        locator = LogLocator(subs=subs, numticks=20) if self.log else MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
        values = [v for v in locator.tick_values(self.low, self.high) if self.low <= v <= self.high]
        return [(self.at(v), f"{v:,.10g}") for v in values]


def axis_of(values: Sequence[float], start: float, end: float, margin: float = 0.08, log: bool | None = None) -> Axis:
    """An axis for these values with a margin on both sides, a fraction of its length.

    log: None for a logarithmic scale where the positive values differ by more than the factor RATIO.
    """
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > RATIO
    if log:
        factor = (high / low) ** margin if high > low else 2
        return Axis(low / factor, high * factor, start, end, True)
    room = (high - low) * margin or abs(high) * margin or 1
    return Axis(low - room, high + room, start, end)
