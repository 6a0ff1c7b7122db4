"""Curves taken from a run's records."""

import math
from collections.abc import Iterable

import numpy as np

from edm_jax.report.runs import Record, Run, number

MAX_POINTS = 400  # of one curve: more cannot be seen


def curve(records: Iterable[Record], *keys: str) -> tuple[np.ndarray, np.ndarray]:
    """Collect (nimg, value) of the records that hold a finite value."""
    pairs = [(record["nimg"], number(record, *keys)) for record in records]
    kept = [(x, y) for x, y in pairs if y is not None and math.isfinite(y)]
    points = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def smooth(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over a trailing window of a thirtieth of the points."""
    width = max(1, len(y) // 30)
    if len(y) < 2:
        return x, y
    return x[width - 1 :], np.convolve(y, np.ones(width) / width, mode="valid")


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep at most MAX_POINTS, the last among them."""
    stride = -(-len(x) // MAX_POINTS) or 1
    first = (len(x) - 1) % stride if len(x) else 0
    return x[first::stride], y[first::stride]


def image_unit(runs: Iterable[Run]) -> tuple[float, str]:
    """The unit of the image axis and its label."""
    logs = (log for run in runs for log in (run.train, run.heldout, run.dynamics))
    most = max((log[-1]["nimg"] for log in logs if log), default=0)
    if most >= 2e6:
        return 1e6, "images trained (millions)"
    return 1e3, "images trained (thousands)"
