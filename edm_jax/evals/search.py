"""The best of a family of averaging profiles, by a search that narrows a bracket."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from edm_jax.ema import AnyProfile, parse_profile
from edm_jax.ema.profiles import NUMBER

_GOLDEN = (math.sqrt(5) - 1) / 2
MOST = 24  # evaluations
_SPLITS = 3  # of each side of the interval
_SURE = 2.0  # standard errors

Measure = Callable[[float], np.ndarray]  # the metric of each of the same rows


class Found(NamedTuple):
    """The best value measured, and the interval that the optimum lies in.

    The interval spans all measured values that are not worse than the best by two
    standard errors of the difference over the rows. Its ends are the next measured ones,
    or the ends of the range.
    """

    best: float
    loss: float
    low: float
    high: float
    evaluations: int


class Family(NamedTuple):
    """Profiles that differ in one number, from `low` to `high`."""

    before: str
    low: float
    high: float
    after: str

    @classmethod
    def parse(cls, text: str) -> "Family":
        """Reads a profile with LOW..HIGH in place of one number; raises ValueError."""
        found = re.fullmatch(rf"(.*?)({NUMBER})\.\.({NUMBER})(.*)", text)
        if found is None or ".." in found[4]:
            raise ValueError(
                f"{text!r}: write a profile with a range in place of one number, such as "
                "power:0.02..0.25 or decay:cosine:0.1..1."
            )
        family = cls(found[1], float(found[2]), float(found[3]), found[4])
        if not family.low < family.high:
            raise ValueError(f"{text!r}: the range must rise.")
        for end in (family.low, family.high):
            family.profile(end)
        return family

    def __str__(self) -> str:
        return f"{self.before}{self.low:g}..{self.high:g}{self.after}"

    def words(self, value: float) -> str:
        return f"{self.before}{value:.6g}{self.after}"

    def profile(self, value: float) -> AnyProfile:
        return parse_profile(self.words(value))


def minimum(
    measure: Measure,
    low: float,
    high: float,
    tolerance: float = 0.02,
    most: int = MOST,
) -> Found:
    """Searches for the least mean, by golden sections of the logarithm where low > 0.

    Ends when the bracket is `tolerance` of the range, or when its ends differ from the
    best by less than two standard errors: the rows cannot tell more.

    Args:
        measure: the metric of each row, always of the same rows: one for a metric
            without rows, which has no noise.
        low: the least value.
        high: the largest.
        tolerance: of the range.
        most: evaluations.
    """
    known: dict[float, np.ndarray] = {}
    to, back = (np.log, np.exp) if low > 0 else (float, float)
    start, stop = float(to(low)), float(to(high))

    def value(u: float) -> float:
        return float(f"{float(back(u)):.6g}")

    def mean(u: float) -> float:
        x = value(u)
        if x not in known:
            known[x] = np.atleast_1d(np.asarray(measure(x), np.float64))
        return float(known[x].mean())

    a, b = start, stop
    c, d = b - _GOLDEN * (b - a), a + _GOLDEN * (b - a)
    while b - a > tolerance * (stop - start) and len(known) < most:
        if mean(c) <= mean(d):
            b, d = d, c
            c = b - _GOLDEN * (b - a)
        else:
            a, c = c, d
            d = a + _GOLDEN * (b - a)
        inner = [x for x in known if value(a) <= x <= value(b)]
        best = min(known, key=lambda x: known[x].mean())
        told = [x for x in inner if x != best and _is_worse(known[x], known[best])]
        if len(inner) > 3 and not told:
            break
    for end in (start, stop):  # halve between what may be as good and what is worse
        for _ in range(_SPLITS + 1):
            inner, outer = _edge(known, value(end), below=end == start)
            if outer is None and inner != value(end):
                mean(end)
            elif outer is None or abs(to(outer) - to(inner)) <= tolerance * (
                stop - start
            ):
                break
            else:
                mean(float(to(outer) + to(inner)) / 2)
    low_end, high_end = (
        _edge(known, value(end), below=end == start)[1] for end in (start, stop)
    )
    best = min(known, key=lambda x: known[x].mean())
    return Found(
        best,
        float(known[best].mean()),
        low if low_end is None else low_end,
        high if high_end is None else high_end,
        len(known),
    )


def _edge(
    known: dict[float, np.ndarray], end: float, below: bool
) -> tuple[float, float | None]:
    """The outermost value that may be the best, and the next beyond it, if any is worse."""
    best = min(known, key=lambda x: known[x].mean())
    # All that may be as good: one of many can seem worse by chance.
    good = [x for x in known if not _is_worse(known[x], known[best])]
    if below:
        inner = min(good)
        return inner, max((x for x in known if end <= x < inner), default=None)
    inner = max(good)
    return inner, min((x for x in known if inner < x <= end), default=None)


def _is_worse(rows: np.ndarray, best: np.ndarray) -> bool:
    difference = rows - best
    if len(difference) == 1:
        return bool(difference[0] > 0)
    error = difference.std(ddof=1) / math.sqrt(len(difference))
    return bool(difference.mean() > _SURE * error)
