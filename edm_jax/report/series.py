"""Curves taken from runs' records: smoothed, averaged over seeds, thinned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edm_jax.report.runs import Curve, Run

MAX_POINTS = 400  # of one curve: more cannot be seen
MIN_POINTS = 30  # of one curve among very many


@dataclass(frozen=True)
class Band:
    """A mean over seeds, and its lowest and highest seed where there are several."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


def loss_curve(run: Run, log: str) -> Curve:
    """A run's loss by images, 'heldout' or 'train'; the latter smoothed."""
    x, y = run.logs[log].curve("loss_per_element")
    x, y = x[y > 0], y[y > 0]  # for a logarithmic axis
    return smooth(x, y) if log == "train" else (x, y)


def smooth(x: np.ndarray, y: np.ndarray) -> Curve:
    """Average over a trailing window of a thirtieth of the points."""
    width = max(1, len(y) // 30)
    if len(y) < 2:
        return x, y
    return x[width - 1 :], np.convolve(y, np.ones(width) / width, mode="valid")


def over_seeds(curves: Sequence[Curve]) -> Band | None:
    """Average curves where all have points, on the places of the densest."""
    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    x = max((x for x, _ in curves), key=len)
    begin = max(x[0] for x, _ in curves)
    end = min(x[-1] for x, _ in curves)
    shared = x[(begin <= x) & (x <= end)]
    if len(curves) == 1 or not len(shared):
        return Band(*curves[0])
    values = np.array([np.interp(shared, x, y) for x, y in curves])
    return Band(shared, values.mean(0), values.min(0), values.max(0))


def thin(x: np.ndarray, y: np.ndarray, points: int = MAX_POINTS) -> Curve:
    """Keep at most so many points, the last among them."""
    kept = places(len(x), points)
    return x[kept], y[kept]


def thin_band(band: Band, points: int) -> Band:
    """Keep at most so many points of a band, the last among them."""
    kept = places(len(band.x), points)
    sides = (None if s is None else s[kept] for s in (band.low, band.high))
    return Band(band.x[kept], band.mean[kept], *sides)


def places(count: int, points: int = MAX_POINTS) -> slice:
    """Which of `count` points are kept: evenly spaced ones, the last among them."""
    stride = -(-count // points) or 1
    return slice((count - 1) % stride if count else 0, None, stride)


def share(values: int, curves: int) -> int:
    """How many points each of so many curves may have of a budget of values."""
    return max(MIN_POINTS, min(MAX_POINTS, values // max(1, curves)))


def image_unit(runs: Iterable[Run]) -> tuple[float, str]:
    """The unit of the image axis and its label."""
    logs = (log for run in runs for log in run.logs.values())
    most = max((log.nimg[-1] for log in logs if len(log)), default=0)
    if most >= 2e6:
        return 1e6, "images trained (millions)"
    return 1e3, "images trained (thousands)"
