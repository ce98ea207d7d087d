"""How far apart the means of two scenarios are, with an interval; and whether that is near enough to call them equal."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yolojax.config import check_keys
from yolojax.errors import UserError

CONFIDENCE = 0.9  # of the interval
FIGURES = {"map50": "mAP50", "map50_95": "mAP50-95", "test_map50": "test mAP50", "test_map50_95": "test mAP50-95"}


@dataclass(frozen=True)
class Comparison:
    """Two scenarios of a study whose means are compared.

    Attributes:
      first: name of a scenario.
      second: name of another.
      within: means are called equal if the whole interval of their difference in mAP50 lies within plus and minus this; None for no such claim.
    """

    first: str
    second: str
    within: float | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of one scenario minus that of another.

    Attributes:
      first: name of the one.
      second: name of the other.
      figure: one of ``FIGURES``.
      first_runs: how many of the one are finished.
      second_runs: of the other.
      mean: of the first minus that of the second.
      low: end of the interval.
      high: end of the interval.
      within: the claim that goes with the figure, if one does.
    """

    first: str
    second: str
    figure: str
    first_runs: int
    second_runs: int
    mean: float
    low: float
    high: float
    within: float | None = None

    @property
    def equal(self) -> bool | None:
        """Whether the interval bears the claim out; None where none is made."""
        return None if self.within is None else -self.within <= self.low and self.high <= self.within

    @property
    def verdict(self) -> str:
        """The claim and whether it holds, in words."""
        return {None: "", True: f"equal within ±{self.within}", False: f"not shown to be equal within ±{self.within}"}[
            self.equal
        ]


def read_comparison(row: Mapping[str, Any], where: str, names: Collection[str]) -> Comparison:
    """One entry of a study's ``compare``: ``{scenarios: [NAME, NAME], within: NUMBER}``.

    Raises:
      UserError: of what is wrong; ``names`` are those of the study's scenarios.
    """
    check_keys(where, row, ("scenarios", "within"))
    pair, within = row.get("scenarios"), row.get("within")
    if not isinstance(pair, list) or len(pair) != 2 or len(set(map(str, pair))) < 2:
        raise UserError(f"{where}: key 'scenarios': expected two names, found {pair!r}")
    for name in map(str, pair):
        if name not in names:
            raise UserError(f"{where}: no scenario is named {name!r}; there are: {', '.join(names)}")
    if within is not None and (isinstance(within, bool) or not isinstance(within, (int, float)) or within <= 0):
        raise UserError(f"{where}: key 'within': expected a number above 0, found {within!r}")
    return Comparison(str(pair[0]), str(pair[1]), within)


def interval(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """The difference of two means and the ends of its 90 % interval, by Welch's t: samples of their own, spreads of their own.

    Args:
      first: at least two numbers.
      second: at least two numbers.

    Source: B. L. Welch, "The generalization of 'Student's' problem when several different population variances are involved", 1947.

    >>> mean, low, high = interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    >>> mean, round(low, 3), round(high, 3)
    (0.0, -1.741, 1.741)
    """
    from scipy.special import stdtrit  # not before a study is reported

    mean = statistics.fmean(first) - statistics.fmean(second)
    errors = [statistics.variance(sample) / len(sample) for sample in (first, second)]
    if not sum(errors):
        return mean, mean, mean
    freedom = sum(errors) ** 2 / sum(e**2 / (len(s) - 1) for e, s in zip(errors, (first, second), strict=True))
    reach = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(sum(errors))
    return mean, mean - reach, mean + reach


def differences(
    comparisons: Sequence[Comparison], runs: Mapping[str, Sequence[Mapping[str, float | None]]]
) -> list[Difference]:
    """Each comparison by each figure that both sides have of two runs or more.

    Args:
      comparisons: of a study.
      runs: by name of scenario, the figures of its finished runs.
    """

    def values(name: str, figure: str) -> list[float]:
        return [value for run in runs.get(name, ()) if (value := run[figure]) is not None]

    found = []
    for comparison in comparisons:
        for figure in FIGURES:
            first, second = values(comparison.first, figure), values(comparison.second, figure)
            if min(len(first), len(second)) < 2:
                continue
            mean, low, high = interval(first, second)
            found.append(
                Difference(
                    first=comparison.first,
                    second=comparison.second,
                    figure=figure,
                    first_runs=len(first),
                    second_runs=len(second),
                    mean=mean,
                    low=low,
                    high=high,
                    within=comparison.within if figure == "map50" else None,
                )
            )
    return found


def difference_table(rows: Sequence[Difference]) -> tuple[list[str], list[list[str]]]:
    """What is compared, as text: heads and rows."""
    head = ["difference of means", "figure", "runs", "mean", f"{CONFIDENCE:.0%} interval", ""]
    return head, [
        [
            f"{row.first} − {row.second}",
            FIGURES[row.figure],
            f"{row.first_runs}, {row.second_runs}",
            _signed(row.mean),
            f"{_signed(row.low)} to {_signed(row.high)}",
            row.verdict,
        ]
        for row in rows
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")
