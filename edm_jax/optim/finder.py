"""Learning-rate finder: the rate grows exponentially until the loss diverges.

NumPy only, for any training step: `search` calls a function with each rate, and
`suggestions` reads the curve. After Smith (arXiv 1506.01186) and fastai's lr_find.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Series = Sequence[float] | np.ndarray

DIVERGED = 4.0  # times the best smoothed loss
_KEPT = 0.8  # share of the smoothed loss that each step keeps [choice]
_FLAT = 1e-3  # of the whole fall; a smaller fall in one step counts as flat [choice]


class Curve(NamedTuple):
    """The result of a search: arrays (steps,), and whether the loss diverged."""

    rates: np.ndarray
    losses: np.ndarray  # after the step at that rate
    smoothed: np.ndarray
    diverged: bool

    @property
    def places(self) -> np.ndarray:
        """The rates (steps,) of the smoothed losses, smoothed in the same way.

        Otherwise smoothing would shift the curve to higher rates.
        """
        return np.exp(smooth(np.log(self.rates)))

    @property
    def limit(self) -> float | None:
        """The divergence point: after this rate, every step raised the loss.

        None if the loss did not diverge. For gradient descent on a quadratic whose
        largest curvature is lambda, this is 2 / lambda. If that direction had died out,
        the loss rises late, and the last rise, (rate lambda - 1)^2, gives lambda.
        """
        if not self.diverged or not len(self.rates):
            return None
        last = len(self.losses) - 1
        while last > 0 and self.losses[last] > self.losses[last - 1]:
            last -= 1
        limit = float(self.rates[last])
        if last < len(self.losses) - 1 and self.losses[-2] > 0:
            rise = float(self.losses[-1] / self.losses[-2])
            limit = min(limit, 2 * float(self.rates[-1]) / (1 + math.sqrt(rise)))
        return limit


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """A rate, and why the curve suggests it."""

    name: str
    rate: float
    why: str


def grid(low: float, high: float, num_steps: int) -> np.ndarray:
    """Rates (num_steps,) from low to high, equally spaced in their logarithm.

    Raises:
        ValueError: not 0 < low < high < inf, or there are fewer than 10 steps.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(
            f"The rate cannot grow from {low:g} to {high:g}: choose a minimum above 0 and "
            "a finite maximum above it."
        )
    if num_steps < 10:
        raise ValueError(f"{num_steps} steps are too few: choose 10 or more.")
    return np.geomspace(low, high, num_steps)


def smooth(losses: Series, kept: float = _KEPT) -> np.ndarray:
    """Exponential average of losses (n,), corrected for its start at 0.

    m_n = kept m_(n-1) + (1 - kept) l_n, divided by 1 - kept^n, n counted from 1.
    """
    mean, smoothed = 0.0, []
    for n, loss in enumerate(losses, 1):
        mean = kept * mean + (1 - kept) * loss
        smoothed.append(mean / (1 - kept**n))
    return np.array(smoothed)


def search(step: Callable[[float], float], rates: Series) -> Curve:
    """Takes steps at growing rates until the loss diverges.

    Args:
        step: trains one step at a rate and returns the loss after it. If all losses use
            the same random numbers, they differ by the weights alone.
        rates: in ascending order.

    Returns:
        The curve up to the first loss that is not finite (left out), or whose smoothed
        value exceeds DIVERGED times the best one before it.
    """
    losses: list[float] = []
    best, diverged = math.inf, False
    for rate in rates:
        loss = float(step(float(rate)))
        if diverged := not math.isfinite(loss):
            break
        losses.append(loss)
        latest = smooth(losses)[-1]
        if diverged := latest > DIVERGED * best:
            break
        best = min(best, latest)
    done = np.asarray(rates, np.float64)[: len(losses)]
    return Curve(done, np.array(losses), smooth(losses), diverged)


def suggestions(curve: Curve) -> list[Suggestion]:
    """Suggests rates to train at, by three readings of a curve.

    Raises:
        ValueError: the loss does not fall anywhere.
    """
    rates, loss = curve.places, curve.smoothed
    lowest = int(np.argmin(loss)) if len(loss) else 0
    if lowest < 2:
        raise ValueError(
            "The loss rises from the first rates on: start from a smaller minimum."
        )
    # By the logarithm of the rate, in which the grid is equally spaced.
    slope = np.gradient(loss, np.log(rates))[: lowest + 1]
    steepest = int(np.argmin(slope))
    start, stop = _longest_fall(loss)
    inside = start + round(2 / 3 * (stop - start))
    return [
        Suggestion(
            "steepest",
            float(rates[steepest]),
            f"the loss falls fastest there, by {-slope[steepest] * math.log(10):.3g} per "
            "tenfold rate",
        ),
        Suggestion(
            "valley",
            float(rates[inside]),
            f"two thirds into the longest fall, from {rates[start]:.3g} to "
            f"{rates[stop]:.3g}",
        ),
        Suggestion(
            "minimum/10",
            float(rates[lowest] / 10),
            f"a tenth of {rates[lowest]:.3g}, where the loss is lowest",
        ),
    ]


def _longest_fall(loss: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest stretch in which every step lowers the loss."""
    best, start = (0, 0), 0
    least = _FLAT * (loss[0] - loss.min())
    for i in range(1, len(loss)):
        if loss[i - 1] - loss[i] <= least:
            start = i
        elif i - start > best[1] - best[0]:
            best = start, i
    return best


class Agreement(NamedTuple):
    """One suggestion over repeats: geometric mean, and the range."""

    name: str
    rate: float
    low: float
    high: float
    why: str  # of the first repeat


def agreement(curves: Sequence[Curve]) -> list[Agreement]:
    """Combines each suggestion over repeats; raises ValueError as `suggestions` does."""
    found = []
    for same in zip(*map(suggestions, curves), strict=True):
        rates = [each.rate for each in same]
        mean = math.exp(sum(map(math.log, rates)) / len(rates))
        found.append(Agreement(same[0].name, mean, min(rates), max(rates), same[0].why))
    return found
