"""Keeps the measured values and prints them: medians with their range, and ratios to Punctual."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

OURS = "Punctual"


class Figures:
    """Values by benchmark, figure and contestant."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(dict))

    def note(self, what: str, who: str, figure: str, value: float) -> None:
        self._values[what][figure].setdefault(who, []).append(value)

    def print(self) -> None:
        """Print the values noted since the last call."""
        for what, figures in self._values.items():
            print(f"\n{what}")
            for figure, values in figures.items():
                texts = [f"{who} {_range(numbers)}{_ratio(values, who)}" for who, numbers in values.items()]
                print(f"  {figure:24} {'; '.join(texts)}", flush=True)
        self._values.clear()


def _ratio(values: dict[str, list[float]], who: str) -> str:
    """The ratio of a median to Punctual's median."""
    ours = median(values.get(OURS, [0]))
    return f" = {median(values[who]) / ours:.3g} x" if ours and who != OURS else ""


def _range(values: Sequence[float]) -> str:
    digits = 0 if median(values) >= 100 else 3
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle} [{low} to {high}]"
