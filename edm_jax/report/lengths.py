"""Quality against EMA length, as a run's evaluation has it."""

import math
from collections.abc import Iterator

import numpy as np

from edm_jax.report.records import Record, number
from edm_jax.report.runs import Run


def sweep(run: Run) -> np.ndarray:
    """The finite (sigma_rel, loss) of a run's sweep, in order of sigma_rel."""
    records = _records(run, "sweep")
    pairs = [(number(r, "sigma_rel"), number(r, "loss")) for r in records]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)  # None becomes NaN
    points = points[np.isfinite(points).all(axis=1)]
    return points[points[:, 0].argsort()]


def _records(run: Run, key: str) -> list[Record]:
    found = run.evaluation.get(key)
    return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []


def traditional(run: Run) -> Iterator[tuple[float, float]]:
    """(sigma_rel, loss) of a run's traditional EMAs."""
    duration = (number(run.evaluation, "nimg") or 0) / 1e6
    rampup = number(run.config, "ema", "halflife_rampup") or 0.0
    for record in _records(run, "traditional"):
        halflife, value = number(record, "halflife_mimg"), number(record, "loss")
        if halflife and duration and value is not None and math.isfinite(value):
            yield traditional_sigma_rel(halflife, rampup, duration), value


def traditional_sigma_rel(halflife: float, rampup: float, duration: float) -> float:
    """The relative standard deviation of an exponential EMA (Sec. 3, App. C).

    A half-life that is still rampup · nimg at the end leaves a power function with
    γ + 1 = ln 2 / rampup. Half-life and duration are in the same unit.
    """
    if 0 < rampup * duration < halflife:
        gamma = math.log(2) / rampup - 1
        return math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    return halflife / (math.log(2) * duration)


def excess(y: np.ndarray) -> np.ndarray:
    """How much each loss lies above the lowest, in percent."""
    return 100 * (y / y.min() - 1)
