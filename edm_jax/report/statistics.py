"""Means over seeds with their intervals, and tests of differences between configs."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05  # of significance, after the correction


@dataclass(frozen=True)
class Estimate:
    """The mean of one quantity over seeds."""

    mean: float  # NaN or infinite if one of the values is
    half_width: float | None  # of the 95% t-interval; None for n = 1
    n: int


@dataclass(frozen=True)
class Difference:
    """The mean of a config minus that of the baseline."""

    mean: float
    half_width: float | None  # of the 95% t-interval; None if there is none
    n: int  # pairs of equal seeds, or the size of the smaller group
    paired: bool
    p: float | None  # two-sided; None if it cannot be tested
    of: tuple[int, int] = (0, 0)  # seeds of both sides, paired or not
    p_corrected: float | None = None  # by Holm, over all comparisons of a table

    @property
    def significant(self) -> bool:
        """Whether the corrected p-value is below LEVEL."""
        return self.p_corrected is not None and self.p_corrected < LEVEL


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean and the half width of its 95% t-interval; None without values.

    Values that are not finite are not left out: the mean is then not finite either.
    """
    if not values:
        return None
    mean, error = _mean_and_error(values)
    return Estimate(mean, _half_width(error, len(values) - 1), len(values))


def difference(
    values: Mapping[Hashable, float], baseline: Mapping[Hashable, float]
) -> Difference | None:
    """The difference of two means over seeds; None if a side has no values.

    With two or more common seeds only these count, in a paired t-test; otherwise all
    values count, in Welch's. There is no test (p = None) with fewer than two values on a
    side, with values that are not finite, or without any spread.

    Args:
        values: {seed: value}.
        baseline: {seed: value}.
    """
    if not values or not baseline:
        return None
    common = [seed for seed in values if seed in baseline]
    if len(common) >= 2:
        pairs = [values[seed] - baseline[seed] for seed in common]
        scale = max(abs(side[seed]) for side in (values, baseline) for seed in common)
        mean, error = _mean_and_error(pairs, scale)
        return _tested(mean, error, len(pairs) - 1, len(pairs), paired=True)
    means, errors = zip(
        *(_mean_and_error(list(side.values())) for side in (values, baseline)),
        strict=True,
    )
    sizes = [len(values), len(baseline)]
    mean, n = means[0] - means[1], min(sizes)
    if n < 2 or None in errors:
        return Difference(mean, None, n, paired=False, p=None)
    squares = [error**2 for error in errors]
    error = math.sqrt(sum(squares))
    # Welch and Satterthwaite; without any spread there is no test.
    parts = sum(s**2 / (size - 1) for s, size in zip(squares, sizes, strict=True))
    freedom = sum(squares) ** 2 / parts if parts else float(sum(sizes) - 2)
    return _tested(mean, error, freedom, n, paired=False)


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number by Holm's step-down method, in their order."""
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    greatest = 0.0
    for rank, index in enumerate(order):
        scaled = (len(p_values) - rank) * p_values[index]
        greatest = max(greatest, min(1.0, scaled))
        corrected[index] = greatest
    return corrected


def _mean_and_error(
    values: Sequence[float], scale: float = 0.0
) -> tuple[float, float | None]:
    """The mean and its standard error; None for one value, or if one is not finite.

    Args:
        values: the numbers.
        scale: the size of the numbers whose differences they are: a spread within their
            rounding counts as none.
    """
    mean = sum(values) / len(values)
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return mean, None
    if max(values) - min(values) <= 4 * np.finfo(np.float64).eps * scale:
        return values[0], 0.0
    return mean, float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _half_width(error: float | None, freedom: float) -> float | None:
    if error is None:
        return None
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error


def _tested(
    mean: float, error: float | None, freedom: float, n: int, paired: bool
) -> Difference:
    if error is None or error == 0:
        return Difference(mean, _half_width(error, freedom), n, paired, p=None)
    p = 2 * float(stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, _half_width(error, freedom), n, paired, p)
