"""Quality against EMA length, as a run's evaluation has it."""

import math
from collections.abc import Iterator

import numpy as np

from edm_jax.report.runs import Curve, Run


def sweep(run: Run) -> Curve:
    """The sigma_rel of a run's sweep, rising, and the losses, all finite."""
    found = run.evaluation.sweep if run.evaluation else np.empty((0, 2))
    return found[:, 0], found[:, 1]


def traditional(run: Run) -> Iterator[tuple[float, float]]:
    """(sigma_rel, loss) of a run's traditional EMAs."""
    if run.evaluation and run.evaluation.nimg:
        duration = run.evaluation.nimg / 1e6
        for halflife, loss in run.evaluation.traditional:
            if math.isfinite(loss):
                yield (
                    traditional_sigma_rel(halflife, run.halflife_rampup, duration),
                    loss,
                )


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
